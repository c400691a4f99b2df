"""Five hundred connections that dawdle in four ways, while four senders want their studies taken."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
from factories import make_ct_dataset
from peers import ASSOCIATE_AC, associate_request, message, store_request
from running import make_settings, role, wait_until

from dicom_gateway.settings import Settings
from trials.ground import Tally, acknowledged, answers, judge, start_storescu, write_study

PEERS, ADDRESSES = 500, 25
SENDERS, IMAGES = 4, 50
FORGOTTEN_WITHIN_S = 150.0


def crowd(folder: Path, trials: int, seed: int) -> Tally:
    """A quarter each: silent; an association request a byte a second; associated and silent; an image a byte a second.

    They come from 25 addresses of this machine, twenty from each; the senders from another. In the end the listener
    must have got rid of all of them by itself.
    """
    tally = Tally(f"{PEERS} connections that dawdle, {SENDERS} studies of {IMAGES} images beside them")
    settings = make_settings(folder, maximum_associations=600, quiet_period_s=600.0)
    with role(settings, "listener") as listener:
        process = psutil.Process(listener.pid)
        alone_s, *_ = _send(settings, folder, f"alone {seed}", tally)
        for trial in range(trials):
            peers = [_Dawdler(settings, number) for number in range(PEERS)]
            began = time.monotonic()
            tally.note("associated", sum(peer.is_associated for peer in peers))
            beside_s, sent, taken = _send(settings, folder, f"beside {trial} {seed}", tally)
            tally.tried += 1
            tally.note("ms alone", round(1000 * alone_s))
            tally.note("ms beside them", round(1000 * beside_s))
            tally.note("MB of the listener", round(process.memory_info().rss / 1e6))
            wait_until(lambda: not any(peer.is_open for peer in peers), "all are closed", FORGOTTEN_WITHIN_S)  # noqa: B023
            tally.note("seconds until the last was closed", round(time.monotonic() - began))
            tally.add(judge(settings, sent, taken))
    return tally


def _send(settings: Settings, folder: Path, name: str, tally: Tally) -> tuple[float, dict[str, str], set[str]]:
    """Seconds that it took; digests of what was sent, by SOP Instance UID; the UIDs of what was acknowledged."""
    sent: dict[str, str] = {}
    for number in range(SENDERS):
        sent |= write_study(folder / name / str(number), f"{name} {number}", IMAGES)
    began = time.monotonic()
    senders = [start_storescu(settings, folder / name / str(number)) for number in range(SENDERS)]
    with ThreadPoolExecutor(SENDERS) as pool:
        taken = set().union(*map(acknowledged, pool.map(answers, senders)))
    seconds = time.monotonic() - began
    tally.acknowledged += len(taken)
    tally.note("not taken", len(sent) - len(taken))
    return seconds, sent, taken


class _Dawdler:
    """One connection; a thread of its own sends what it sends, and sees its end."""

    def __init__(self, settings: Settings, number: int) -> None:
        self.is_associated = False
        self._connection = socket.create_connection(
            ("127.0.0.1", settings.dicom_port), timeout=30, source_address=(f"127.0.1.{1 + number % ADDRESSES}", 0)
        )
        self.is_open = True
        way, drip = number // ADDRESSES % 4, b""
        if way == 1:
            drip = associate_request()
        if way >= 2:
            self._connection.sendall(associate_request())
            self.is_associated = self._connection.recv(1) == bytes([ASSOCIATE_AC])
        if way == 3:
            command, drip, *_ = message(store_request(make_ct_dataset(InstanceNumber=number)))
            self._connection.sendall(command)
        threading.Thread(target=self._dawdle, args=[drip], daemon=True).start()

    def _dawdle(self, drip: bytes) -> None:
        self._connection.settimeout(1.0)
        with suppress(ConnectionError):
            for byte in drip:
                self._connection.sendall(bytes([byte]))
                if not self._goes_on():
                    break
            while self._goes_on():
                continue
        self._connection.close()
        self.is_open = False

    def _goes_on(self) -> bool:
        with suppress(TimeoutError):
            return self._connection.recv(65536) != b""
        return True
