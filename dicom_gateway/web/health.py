"""Whether the parts of the service are up, told cheaply enough to be asked every few seconds."""

import math
import shutil
import socket
import time
from dataclasses import dataclass

import sqlalchemy as sa

from dicom_gateway.jobs.housekeeping import DEAD_AFTER_S, newest_beat_age_s
from dicom_gateway.settings import Settings
from dicom_gateway.store.index import counts
from dicom_gateway.store.schema import DeliveryState, StudyState

_CONNECT_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the service; `detail` is a short sentence."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The parts in the order of a study's way, and what waits for a person; None where the database does not tell."""

    parts: tuple[Part, ...]
    failed_studies: int | None
    parked_deliveries: int | None

    @property
    def ok(self) -> bool:
        return all(part.ok for part in self.parts)


# Each connection takes one of the listener's associations for a moment: pages that poll must not crowd out senders.
_PROBE_EVERY_S = 3.0
_last_answer: dict[tuple[str, int], float] = {}


def check_health(settings: Settings, engine: sa.Engine) -> Health:
    """Try each part once: connect to the DICOM port, read the worker's heartbeat, count rows, ask for free space."""
    listener, disk, web = _listener(settings), _disk(settings), Part("web", True, "This answer proves it.")
    try:
        counted = counts(engine)
        worker = _worker(newest_beat_age_s(engine))
    except sa.exc.SQLAlchemyError:
        down = Part("database", False, "It does not answer.")
        unknown = Part("worker", False, "Unknown while the database does not answer.")
        return Health(parts=(listener, unknown, web, down, disk), failed_studies=None, parked_deliveries=None)
    return Health(
        parts=(listener, worker, web, Part("database", True, "It answers."), disk),
        failed_studies=counted.studies[StudyState.FAILED],
        parked_deliveries=counted.deliveries[DeliveryState.PARKED],
    )


def _listener(settings: Settings) -> Part:
    address = (settings.dicom_loopback_host, settings.dicom_port)
    if time.monotonic() - _last_answer.get(address, -math.inf) > _PROBE_EVERY_S:
        try:
            socket.create_connection(address, _CONNECT_TIMEOUT_S).close()
        except OSError:
            return Part("listener", False, f"Nothing answers on DICOM port {settings.dicom_port}.")
        _last_answer[address] = time.monotonic()
    return Part("listener", True, f"{settings.ae_title} answers on port {settings.dicom_port}.")


def _worker(beat_age_s: float | None) -> Part:
    if beat_age_s is None:
        return Part("worker", False, "No worker has run yet.")
    if beat_age_s > DEAD_AFTER_S:
        return Part("worker", False, f"The last sign of life is {beat_age_s:.0f} s old.")
    return Part("worker", True, "It is alive.")


def _disk(settings: Settings) -> Part:
    try:
        free_mb = shutil.disk_usage(settings.data_dir).free // 1_000_000
    except OSError as error:
        return Part("disk", False, f"The data folder cannot be read: {error.strerror}.")
    ok = free_mb >= settings.minimum_free_space_mb
    floor = f"images are refused below {settings.minimum_free_space_mb} MB"
    return Part("disk", ok, f"{free_mb} MB free; {floor}.")
