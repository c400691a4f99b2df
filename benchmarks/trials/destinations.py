"""Destinations that are full, break off or are away: every report arrives, always as the same objects."""

import random
import time
from pathlib import Path

from running import ROOT, free_port, make_settings, pacs, role, wait_until

from dicom_gateway.settings import Destination, Settings
from dicom_gateway.store import index
from dicom_gateway.store.schema import DeliveryState, open_database
from trials.ground import Tally, acknowledged, answers, start_storescu, write_study

IMAGES = 3
_FAULTS = (None, 0xA700, 0x0000)
# A worker whose analysis takes no time: the trial is of deliveries.
_WORKER = ROOT / "tests" / "worker_with_own_analysis.py"


def trouble(folder: Path, trials: int, seed: int) -> Tally:
    """Each report meets a destination that is away for up to 2 s, then answers its first objects at random."""
    tally, choice = Tally("destinations in trouble"), random.Random(seed)
    port = free_port()
    peer = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, objects=("sr", "sc"))
    settings = make_settings(folder, destinations=(peer,), delivery_backoff_s=0.2)
    worker = [str(_WORKER), str(folder / "analyses.log")]
    with role(settings, "listener"), role(settings, "worker", worker):
        for trial in range(trials):
            write_study(folder / str(trial), f"receiver {trial} {seed}", IMAGES, side=16)
            taken = acknowledged(answers(start_storescu(settings, folder / str(trial))))
            away_s = choice.choice((0.0, 0.0, 2.0))
            time.sleep(away_s)
            with pacs(port) as receiver:
                receiver.answers = [choice.choice(_FAULTS) for _ in range(choice.randrange(5))]
                tally.note("answers that were an abort", receiver.answers.count(None))
                tally.note("answers that were 0xA700", receiver.answers.count(0xA700))
                wait_until(lambda done=trial + 1: _delivered(settings) == done, "the delivery", 120)
            tally.tried += 1
            tally.note("away at first", away_s > 0)
            tally.acknowledged += len(taken)
            tally.note("objects delivered", len(receiver.received))
            tally.note("sent again after an abort, with the same UID and bytes", sum(receiver.received.values()) - 2)
            if len(receiver.received) != 2:
                tally.add({"lost": {f"report {trial}"}})
            tally.add({"changed": {uid for uid, contents in receiver.digests.items() if len(contents) > 1}})
            tally.add({"twice": set(receiver.received) if len(receiver.received) > 2 else set()})
    return tally


def _delivered(settings: Settings) -> int:
    engine = open_database(settings.database)
    rows = index.list_deliveries(engine, state=DeliveryState.DELIVERED)
    engine.dispose()
    return len(rows)
