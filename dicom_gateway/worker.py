"""The jobs of the worker: analyse a study revision, deliver a report; and the process that runs them."""

import fcntl
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
import structlog

from dicom_gateway.deliver.dimse import send
from dicom_gateway.errors import PeerRefused, PeerUnreachable
from dicom_gateway.events import Event, emit
from dicom_gateway.jobs import engine as job_engine
from dicom_gateway.jobs.housekeeping import DEAD_AFTER_S, Housekeeper, beat, stop_beating
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.settings import Destination, Settings
from dicom_gateway.store import index, ledger
from dicom_gateway.store.files import result_path
from dicom_gateway.store.schema import DeliveryState, StudyState, open_database

if TYPE_CHECKING:
    from models.detect import Detector

# Files of a result folder by what a destination asks for; the pipeline writes them.
RESULT_FILES = {"sr": "findings.sr.dcm", "sc": "summary.sc.dcm"}
REPORT_FILE = "report.json"
LONGEST_DELAY_S = 3600.0
DRAIN_S = 20
NOT_CONFIGURED = "the destination is no longer configured"

Analyse = Callable[[Sequence[Path], Path, int, datetime], str]
"""Analyse files into a result folder, for a revision and a time of creation: "reported" or "refused"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What the jobs share."""

    settings: Settings
    engine: sa.Engine
    jobs: JobQueue
    analyse: Analyse

    def analyse_study(self, study_instance_uid: str, revision: int, created: float) -> None:
        """The analysis job: ends with a report and its deliveries, or with a failed study that can be replayed."""
        with structlog.contextvars.bound_contextvars(study_instance_uid=study_instance_uid, revision=revision):
            if not self._begin(study_instance_uid, revision):
                emit(Event.ANALYSIS_SUPERSEDED)
                return
            folder = result_path(study_instance_uid, revision)
            files = [
                self.settings.data_dir / row.path
                for row in index.list_instances(self.engine, study_instance_uid, revision)
            ]
            emit(Event.ANALYSIS_STARTED, files=len(files))
            try:
                outcome = self.analyse(
                    files, self.settings.data_dir / folder, revision, datetime.fromtimestamp(created, UTC)
                )
            except Exception as error:  # noqa: BLE001  # edge: any failure parks this study, not the worker
                self._fail(study_instance_uid, revision, error)
                return
            self._finish(study_instance_uid, revision, folder, created, outcome)
            emit(Event.ANALYSIS_FINISHED, outcome=outcome)

    def deliver_report(
        self, study_instance_uid: str, revision: int, destination: str, attempt: int, attempts_left: int
    ) -> None:
        """The delivery job: one attempt; its end is delivered, delayed with the next attempt queued, or parked."""
        row = index.get_delivery(self.engine, study_instance_uid, revision, destination)
        waiting = (DeliveryState.PENDING, DeliveryState.DELAYED)
        if row is None or row.state not in waiting or row.attempts >= attempt:
            return
        peers = {peer.name: peer for peer in self.settings.destinations}
        bound = {"study_instance_uid": study_instance_uid, "revision": revision, "destination": destination}
        with structlog.contextvars.bound_contextvars(**bound):
            try:
                self._send(row, peers[destination])
            except PeerUnreachable as error:
                if attempts_left > 0:
                    self._try_again(row, attempt, attempts_left, str(error))
                else:
                    self._park(row, attempt, str(error))
            except PeerRefused as error:
                self._park(row, attempt, str(error))
            except Exception as error:  # noqa: BLE001  # edge: any other failure needs a person
                self._park(row, attempt, type(error).__name__)
            else:
                self._change(row, DeliveryState.DELIVERED, attempts=attempt, last_error=None)
                emit(Event.DELIVERED, attempt=attempt)

    def _begin(self, study_instance_uid: str, revision: int) -> bool:
        # ANALYSING too: this may be the second run of a job whose worker was killed.
        with self.engine.begin() as connection:
            return ledger.change_study(
                connection,
                study_instance_uid,
                revision,
                to=StudyState.ANALYSING,
                since=(StudyState.QUEUED, StudyState.ANALYSING),
            )

    def _fail(self, study_instance_uid: str, revision: int, error: Exception) -> None:
        # The class only: a message may quote header values.
        reason = type(error).__name__
        with self.engine.begin() as connection:
            ledger.change_study(
                connection,
                study_instance_uid,
                revision,
                to=StudyState.FAILED,
                since=(StudyState.ANALYSING,),
                error=reason,
            )
        emit(Event.ANALYSIS_FAILED, level="error", error=reason)

    def _finish(self, study_instance_uid: str, revision: int, folder: Path, created: float, outcome: str) -> None:
        """Report, state and deliveries in one transaction."""
        state = StudyState.REFUSED if outcome == "refused" else StudyState.REPORTED
        with self.engine.begin() as connection:
            ledger.record_report(
                connection, study_instance_uid, revision, folder=folder, created=created, outcome=outcome
            )
            # Not if a late image opened the study again meanwhile: then it is RECEIVING its next revision.
            ledger.change_study(connection, study_instance_uid, revision, to=state, since=(StudyState.ANALYSING,))
            for peer in self.settings.destinations:
                self._open_delivery(connection, study_instance_uid, revision, peer)

    def _open_delivery(
        self, connection: sa.Connection, study_instance_uid: str, revision: int, peer: Destination
    ) -> None:
        if ledger.open_delivery(
            connection, study_instance_uid, revision, peer.name, objects=peer.objects, now=time.time()
        ):
            self.jobs.submit_delivery(
                connection,
                study_instance_uid,
                revision,
                peer.name,
                attempt=1,
                attempts_left=self.settings.delivery_attempts - 1,
            )

    def _send(self, row: index.DeliveryRow, peer: Destination) -> None:
        folder = self.settings.data_dir / result_path(row.study_instance_uid, row.revision)
        files = [folder / RESULT_FILES[kind] for kind in row.objects]
        send(files, peer, calling_ae_title=self.settings.ae_title)

    def _try_again(self, row: index.DeliveryRow, attempt: int, attempts_left: int, reason: str) -> None:
        done = self.settings.delivery_attempts - 1 - attempts_left
        delay_s = min(LONGEST_DELAY_S, self.settings.delivery_backoff_s * 2.0 ** max(0, done))
        now = time.time()
        with self.engine.begin() as connection:
            if ledger.change_delivery(
                connection,
                row.study_instance_uid,
                row.revision,
                row.destination,
                to=DeliveryState.DELAYED,
                now=now,
                attempts=attempt,
                last_error=reason,
                next_attempt=now + delay_s,
            ):
                self.jobs.submit_delivery(
                    connection,
                    row.study_instance_uid,
                    row.revision,
                    row.destination,
                    attempt=attempt + 1,
                    attempts_left=attempts_left - 1,
                    delay_s=delay_s,
                )
        emit(Event.DELIVERY_DELAYED, level="warning", attempt=attempt, reason=reason, delay_s=delay_s)

    def _park(self, row: index.DeliveryRow, attempt: int, reason: str) -> None:
        self._change(row, DeliveryState.PARKED, attempts=attempt, last_error=reason)
        emit(Event.DELIVERY_PARKED, level="error", attempt=attempt, reason=reason)

    def _change(self, row: index.DeliveryRow, to: DeliveryState, *, attempts: int, last_error: str | None) -> None:
        with self.engine.begin() as connection:
            ledger.change_delivery(
                connection,
                row.study_instance_uid,
                row.revision,
                row.destination,
                to=to,
                now=time.time(),
                attempts=attempts,
                last_error=last_error,
            )


def model_analysis(settings: Settings) -> Analyse:
    """The analysis with the site's model, which is loaded at its first use."""

    @functools.cache
    def detector() -> "Detector":
        from models.detect import Detector
        from models.session import ModelSession

        threads = settings.inference_threads or None
        return Detector(ModelSession.open(settings.model_dir, settings.execution_provider, threads=threads))

    def analyse(files: Sequence[Path], folder: Path, revision: int, created: datetime) -> str:
        from dicom_gateway.pipeline import process_study, write_result
        from dicom_gateway.report.content import Report
        from imaging.headers import read_studies

        record = folder / REPORT_FILE
        if record.exists():
            # Written last by a run that was killed before it could say so: the same answer, not a second one.
            return Report.model_validate_json(record.read_bytes()).outcome
        studies, unreadable = read_studies(files)
        (study,) = studies
        result = process_study(
            study,
            detector(),
            revision=revision,
            created=created,
            unreadable_file_count=len(unreadable),
        )
        write_result(result, folder)
        return result.report.outcome

    return analyse


def run_worker(
    settings: Settings,
    stop: threading.Event,
    on_ready: Callable[[], None] = lambda: None,
    analyse: Analyse | None = None,
) -> None:
    """Take jobs until `stop` is set, then finish what runs, for DRAIN_S at most.

    The database must be prepared. Threads of the engine may still run when this returns: leave with os._exit.
    """
    engine = open_database(settings.database)
    executor = job_engine.executor_id(engine)
    with _only_worker(settings, executor):
        jobs = JobQueue(engine)
        worker = Worker(settings=settings, engine=engine, jobs=jobs, analyse=analyse or model_analysis(settings))
        park_unconfigured(engine, settings)
        beat(engine, executor)
        work = job_engine.Work(
            analyse=worker.analyse_study,
            deliver=worker.deliver_report,
            destinations=tuple(peer.name for peer in settings.destinations),
            concurrency=settings.worker_concurrency,
        )
        job_engine.start_worker(engine, settings.database, executor, work)
        keeper = Housekeeper(engine, jobs, executor, judge_after=time.monotonic() + DEAD_AFTER_S)
        threading.Thread(target=keeper.run, args=[stop], name="housekeeping", daemon=True).start()
        emit(Event.WORKER_READY, executor=executor, destinations=len(settings.destinations))
        on_ready()
        stop.wait()
        job_engine.drain(DRAIN_S)
        stop_beating(engine, executor)


def park_unconfigured(engine: sa.Engine, settings: Settings) -> None:
    """Park waiting deliveries whose destination is no longer in the settings; nobody would take their jobs."""
    known = {peer.name for peer in settings.destinations}
    for state in (DeliveryState.PENDING, DeliveryState.DELAYED):
        for row in index.list_deliveries(engine, state=state):
            if row.destination in known:
                continue
            with engine.begin() as connection:
                ledger.change_delivery(
                    connection,
                    row.study_instance_uid,
                    row.revision,
                    row.destination,
                    to=DeliveryState.PARKED,
                    now=time.time(),
                    last_error=NOT_CONFIGURED,
                )


@contextmanager
def _only_worker(settings: Settings, executor: str) -> Iterator[None]:
    """Wait until no other worker uses the embedded database: both would call themselves the same executor."""
    if executor != job_engine.EMBEDDED_EXECUTOR:
        yield
        return
    with (settings.data_dir / "worker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
