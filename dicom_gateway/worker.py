"""The jobs of the worker: analyse a study revision, deliver a report; and the process that runs them."""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import sqlalchemy as sa
import structlog
from pydantic import ValidationError
from pydicom.uid import generate_uid

from dicom_gateway.deliver import commitment, dimse, fhir, mail, mllp, shelf, stow, webhook
from dicom_gateway.deliver.attempt import Encode
from dicom_gateway.deliver.notice import Notice
from dicom_gateway.early_decoder import EarlyDecoder
from dicom_gateway.errors import ConfigurationError, PeerRefused, PeerUnreachable
from dicom_gateway.events import Event, emit
from dicom_gateway.jobs import engine as job_engine
from dicom_gateway.jobs.housekeeping import DEAD_AFTER_S, Housekeeper, beat, stop_beating
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.notices import Notices
from dicom_gateway.report.content import Report
from dicom_gateway.report.edition import PLAIN, Edition, edition_for
from dicom_gateway.report.fhir import encode_bundle
from dicom_gateway.report.hl7 import encode_oru
from dicom_gateway.report.objects import encode_beside, read_result, read_superseded
from dicom_gateway.settings import (
    AnyDestination,
    Destination,
    DicomwebDestination,
    FhirDestination,
    Hl7Destination,
    NotifiedDestination,
    Settings,
    StowDestination,
    WebhookDestination,
)
from dicom_gateway.store import index, ledger
from dicom_gateway.store.files import REPORT_NAME, result_path
from dicom_gateway.store.schema import CommitmentState, DeliveryState, ObjectOutcome, StudyState, open_database
from dicom_gateway.tls import context_towards
from imaging.errors import ImagingError
from models.errors import ModelError

LONGEST_DELAY_S = 3600.0
_MOST_DOUBLINGS = 60
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
    _delivering: WeakValueDictionary[tuple[str, str], threading.Lock] = field(default_factory=WeakValueDictionary)
    _one_at_the_locks: threading.Lock = field(default_factory=threading.Lock)

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
                with self._limited(study_instance_uid, revision):
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
        """The delivery job: one attempt, which ends delivered, delayed with the next queued, parked or superseded.

        It waits for another revision of the study that is on its way to the same destination.
        """
        with self._alone_with(study_instance_uid, destination):
            self._deliver(study_instance_uid, revision, destination, attempt, attempts_left)

    @contextmanager
    def _alone_with(self, study_instance_uid: str, destination: str) -> Iterator[None]:
        """Only one thread of this process at a time decides that a report is the newest, and sends it.

        A lock of its own for each pair, kept while somebody has it or waits for it: a destination that hangs delays
        no other.
        """
        with self._one_at_the_locks:
            lock = self._delivering.setdefault((study_instance_uid, destination), threading.Lock())
        with lock:
            yield

    def _deliver(
        self, study_instance_uid: str, revision: int, destination: str, attempt: int, attempts_left: int
    ) -> None:
        row = index.get_delivery(self.engine, study_instance_uid, revision, destination)
        waiting = (DeliveryState.PENDING, DeliveryState.DELAYED)
        bound = {"study_instance_uid": study_instance_uid, "revision": revision, "destination": destination}
        with structlog.contextvars.bound_contextvars(**bound):
            if row is not None and row.state is DeliveryState.DELIVERED and row.attempts == attempt:
                # The second run of a job whose worker was killed, or the database away, when all had arrived.
                self._ask_for_commitment(row)
                return
            if row is None or row.state not in waiting or row.attempts >= attempt:
                return
            newest = index.newest_meant_for(self.engine, study_instance_uid, destination)
            if newest > revision:
                # Arriving after it, the older report would look like the latest word.
                self._change(row, DeliveryState.SUPERSEDED, attempts=row.attempts, last_error=None)
                emit(Event.DELIVERY_SUPERSEDED, newer_revision=newest)
                return
            sent: list[commitment.Reference] = []
            told: Notice | None = None
            try:
                if self.notices.is_notice(destination):
                    # Attempts at one notice end with the same one, which is before that of the next notice.
                    told = self._tell(row, last_attempt=attempt + attempts_left)
                    outcomes = tuple(ObjectOutcome(name=name, sent_as=name, instances=1) for name in row.objects)
                else:
                    outcomes = self._send(row, sent)
            except PeerUnreachable as error:
                if attempts_left > 0:
                    self._try_again(row, attempt, attempts_left, str(error))
                else:
                    self._park(row, attempt, str(error))
            except (PeerRefused, ConfigurationError) as error:
                self._park(row, attempt, str(error))
            except Exception as error:  # noqa: BLE001  # edge: any other failure needs a person
                self._park(row, attempt, type(error).__name__)
            else:
                self._finish_delivery(row, attempt, outcomes, sent)
                emit(
                    Event.DELIVERED,
                    attempt=attempt,
                    sent=list(dict.fromkeys(o.sent_as for o in outcomes if o.sent_as and o.instances)),
                    not_as_asked={o.name: o.sent_as for o in outcomes if o.sent_as != o.name},
                )
                self._ask_for_commitment(row)
                if told is not None:
                    self.notices.send_again_if_changed(row, told)

    @property
    def notices(self) -> Notices:
        return Notices(settings=self.settings, engine=self.engine, jobs=self.jobs)

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

    @contextmanager
    def _limited(self, study_instance_uid: str, revision: int) -> Iterator[None]:
        """End this process where what is done in here takes longer than it may: a thread that hangs cannot be ended.

        The job is taken up again, and parked with the reason when that has happened too often.
        """
        limit_s = self.settings.analysis_timeout_s
        reason = f"the analysis took longer than analysis_timeout_s ({limit_s:g} s)"

        def end() -> None:
            emit(Event.ANALYSIS_OVERDUE, level="error", **about, reason=reason)
            try:
                with self.engine.begin() as connection:
                    analysing = StudyState.ANALYSING
                    ledger.change_study(connection, **about, to=analysing, since=(analysing,), error=reason)
            finally:
                os._exit(1)

        about: Any = {"study_instance_uid": study_instance_uid, "revision": revision}
        timer = threading.Timer(limit_s, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _fail(self, study_instance_uid: str, revision: int, error: Exception) -> None:
        # Of other errors the class only: a message may quote header values.
        told = str(error) if isinstance(error, (ImagingError, ModelError)) else ""
        reason = told or type(error).__name__
        with self.engine.begin() as connection:
            if ledger.change_study(
                connection,
                study_instance_uid,
                revision,
                to=StudyState.FAILED,
                since=(StudyState.ANALYSING,),
                error=reason,
            ):
                self.notices.queue_parked(connection, study_instance_uid, revision)
        emit(Event.ANALYSIS_FAILED, level="error", error=reason)

    def _finish(self, study_instance_uid: str, revision: int, folder: Path, created: float, outcome: str) -> None:
        """Report, state and deliveries in one transaction."""
        state = StudyState.REFUSED if outcome == "refused" else StudyState.REPORTED
        applied = index.get_applied_rule(self.engine, study_instance_uid, revision)
        wanted = None if applied is None else applied.destinations
        events = self.notices.events_of_report(study_instance_uid, revision)
        listeners = self.notices.listeners(study_instance_uid, revision, events)
        with self.engine.begin() as connection:
            ledger.record_report(
                connection, study_instance_uid, revision, folder=folder, created=created, outcome=outcome
            )
            # Not if a late image opened the study again meanwhile: then it is RECEIVING its next revision.
            ledger.change_study(connection, study_instance_uid, revision, to=state, since=(StudyState.ANALYSING,))
            for peer in self.settings.destinations:
                if not isinstance(peer, NotifiedDestination) and (wanted is None or peer.name in wanted):
                    self._open_delivery(connection, study_instance_uid, revision, peer)
            self.notices.queue(connection, study_instance_uid, revision, listeners)

    def _open_delivery(
        self, connection: sa.Connection, study_instance_uid: str, revision: int, peer: AnyDestination
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

    def _send(self, row: index.DeliveryRow, sent: list[commitment.Reference]) -> tuple[ObjectOutcome, ...]:
        """Send what the destination's profile names today, made of the stored record.

        `sent` is given the objects that a C-STORE destination has now.
        """
        peers = {peer.name: peer for peer in self.settings.destinations}
        peer, data_dir = peers[row.destination], self.settings.data_dir
        assert not isinstance(peer, NotifiedDestination)
        images = index.list_instances(self.engine, row.study_instance_uid, row.revision)
        folder = data_dir / result_path(row.study_instance_uid, row.revision)
        source_files = [data_dir / image.path for image in images]
        edition = edition_for(peer)
        match peer:
            case FhirDestination():
                bundle = encode_bundle(
                    read_result(folder, source_files, edition),
                    earlier=earlier_reports(folder, row.revision),
                    patient_identifier_system=peer.patient_identifier_system,
                )
                fhir.send(bundle, peer.url, bearer_token=peer.bearer_token())
            case Hl7Destination():
                message = encode_oru(read_result(folder, source_files, edition))
                mllp.send(message, peer.host, peer.port, tls=context_towards(peer))
            case DicomwebDestination():
                return shelf.send(encoder_of(folder, source_files, edition), peer, folder)
            case StowDestination():
                return stow.send(encoder_of(folder, source_files, edition), peer)
            case _:
                return dimse.send(
                    encoder_of(folder, source_files, edition),
                    peer,
                    calling_ae_title=self.settings.ae_title,
                    on_stored=lambda ds: sent.append(commitment.Reference(ds.SOPClassUID, ds.SOPInstanceUID)),
                )
        return (ObjectOutcome(name=peer.kind, sent_as=peer.kind, instances=1),)

    def _tell(self, row: index.DeliveryRow, *, last_attempt: int) -> Notice:
        """Tell a listener how the revision stands now; what it was told."""
        peer = next(peer for peer in self.settings.destinations if peer.name == row.destination)
        assert isinstance(peer, NotifiedDestination)
        notice = self.notices.standing(row.study_instance_uid, row.revision)
        if isinstance(peer, WebhookDestination):
            occasion = f"{peer.name} {last_attempt}"
            webhook.send(notice, peer.url, occasion=occasion, secret=peer.secret(), bearer_token=peer.bearer_token())
        else:
            mail.send(notice, peer)
        return notice

    def _finish_delivery(
        self,
        row: index.DeliveryRow,
        attempt: int,
        outcomes: Sequence[ObjectOutcome],
        sent: Sequence[commitment.Reference],
    ) -> None:
        """State and the wish for commitment in one transaction: the job that runs again asks for what is wished."""
        key, now = (row.study_instance_uid, row.revision, row.destination), time.time()
        with self.engine.begin() as connection:
            ledger.change_delivery(
                connection,
                *key,
                to=DeliveryState.DELIVERED,
                now=now,
                attempts=attempt,
                last_error=None,
                objects=",".join(outcome.name for outcome in outcomes),
                outcomes=[asdict(outcome) for outcome in outcomes],
            )
            peer = next(peer for peer in self.settings.destinations if peer.name == row.destination)
            if sent and isinstance(peer, Destination) and peer.storage_commitment:
                # Random: whoever could guess it could answer for the destination.
                transaction_uid = str(generate_uid(prefix=None))
                references = [(one.sop_class_uid, one.sop_instance_uid) for one in sent]
                ledger.request_commitment(connection, transaction_uid, *key, references=references, now=now)

    def _ask_for_commitment(self, row: index.DeliveryRow) -> None:
        """Ask a destination that has the objects, where that is wished; its answer comes to the listener."""
        with self.engine.connect() as connection:
            wish = ledger.unanswered_commitment(connection, row.study_instance_uid, row.revision, row.destination)
        peer = next(peer for peer in self.settings.destinations if peer.name == row.destination)
        if wish is None or not isinstance(peer, Destination):
            return
        transaction_uid, references = wish
        wanted = [commitment.Reference(*reference) for reference in references]
        try:
            commitment.request(peer, wanted, transaction_uid=transaction_uid, calling_ae_title=self.settings.ae_title)
        except (PeerRefused, PeerUnreachable, ConfigurationError) as error:
            # Its answer may have come before our request's response was lost.
            since, reason = (CommitmentState.REQUESTED,), str(error)
            with self.engine.begin() as connection:
                unanswered = ledger.answer_commitment(
                    connection, transaction_uid, [peer.name], reason=reason, now=time.time(), since=since
                )
            if unanswered is not None:
                emit(Event.RESULTS_NOT_COMMITTED, level="error", transaction_uid=transaction_uid, reason=reason)

    def _try_again(self, row: index.DeliveryRow, attempt: int, attempts_left: int, reason: str) -> None:
        delay_s = retry_delay_s(self.settings, attempts_left)
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
        key = (row.study_instance_uid, row.revision, row.destination)
        with self.engine.begin() as connection:
            ledger.change_delivery(
                connection, *key, to=DeliveryState.PARKED, now=time.time(), attempts=attempt, last_error=reason
            )
            self.notices.queue_parked(connection, *key)
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


def encoder_of(folder: Path, source_files: Sequence[Path], edition: Edition = PLAIN) -> Encode:
    """Makes result objects of the record in a result folder; the record is read when the first one is wanted."""
    read = cache(partial(read_result, folder, source_files, edition))
    return lambda name, held: encode_beside(held, name, read())


def earlier_reports(folder: Path, revision: int) -> list[Report]:
    """The records of the revisions before the one in `folder`, as far as they are kept and can be read."""
    records = [_record(folder.with_name(f"r{number}")) for number in range(1, revision)]
    return [record for record in records if record is not None]


def retry_delay_s(settings: Settings, attempts_left: int) -> float:
    """Seconds until the next of `attempts_left` attempts: doubled each time, one hour at most."""
    doublings = settings.delivery_attempts - 1 - attempts_left
    return min(LONGEST_DELAY_S, settings.delivery_backoff_s * 2.0 ** min(max(0, doublings), _MOST_DOUBLINGS))


def model_analysis(settings: Settings) -> Analyse:
    """The analysis with the site's model. Raises ModelError when that or its execution provider cannot be used."""
    from dicom_gateway.pipeline import process_study, write_result
    from imaging.headers import read_studies
    from imaging.preprocess import preload
    from models.detect import Detector
    from models.session import ModelSession

    preload()
    threads = settings.inference_threads or None
    detector = Detector(ModelSession.open(settings.model_dir, settings.execution_provider, threads=threads))

    def analyse(files: Sequence[Path], folder: Path, revision: int, created: datetime) -> str:
        finished = finished_outcome(folder, created)
        if finished is not None:
            return finished
        studies, unreadable = read_studies(files)
        (study,) = studies
        result = process_study(
            study,
            detector,
            revision=revision,
            created=created,
            supersedes=read_superseded(folder, study.study_instance_uid, revision),
            urgent_kinds=settings.urgent_kinds,
            unreadable_file_count=len(unreadable),
            decoded=settings.decoded_dir / study.study_instance_uid,
        )
        write_result(result, folder)
        return result.report.outcome

    return analyse


def finished_outcome(folder: Path, created: datetime) -> str | None:
    """Outcome of the record in a result folder if this job wrote it, which was killed before it could say so.

    Another time of creation means another job: the index may have been rebuilt and count its revisions anew.
    """
    record = _record(folder)
    return record.outcome if record is not None and record.created == created else None


def _record(folder: Path) -> Report | None:
    try:
        return Report.model_validate_json((folder / REPORT_NAME).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def run_worker(
    settings: Settings,
    stop: threading.Event,
    on_ready: Callable[[], None] = lambda: None,
    analyse: Analyse | None = None,
) -> None:
    """Take jobs until `stop` is set, then finish what runs, for DRAIN_S at most.

    The model is opened before `on_ready`; raises ModelError when it cannot be used. The database must be prepared.
    Threads of the engine may still run when this returns: leave with os._exit.
    """
    engine = open_database(settings.database)
    executor = job_engine.executor_id(engine)
    with _only_worker(settings, executor):
        jobs = JobQueue(engine)
        worker = Worker(settings=settings, engine=engine, jobs=jobs, analyse=analyse or model_analysis(settings))
        park_unconfigured(engine, settings, worker.notices)
        beat(engine, executor)
        work = job_engine.Work(
            analyse=worker.analyse_study,
            deliver=worker.deliver_report,
            destinations=tuple(peer.name for peer in settings.destinations),
            concurrency=settings.worker_concurrency,
        )
        early = EarlyDecoder(settings=settings, engine=engine)
        early.clear()
        job_engine.start_worker(engine, settings.database, executor, work)
        judge_after = time.monotonic() + DEAD_AFTER_S
        keeper = Housekeeper(engine, jobs, executor, judge_after, worker.notices.queue_parked)
        threading.Thread(target=keeper.run, args=[stop], name="housekeeping", daemon=True).start()
        threading.Thread(target=early.run, args=[stop], name="early decoder", daemon=True).start()
        emit(Event.WORKER_READY, executor=executor, destinations=len(settings.destinations))
        on_ready()
        stop.wait()
        job_engine.drain(DRAIN_S)
        stop_beating(engine, executor)


def park_unconfigured(engine: sa.Engine, settings: Settings, notices: Notices) -> None:
    """Park waiting deliveries whose destination is no longer in the settings; nobody would take their jobs."""
    known = {peer.name for peer in settings.destinations}
    for state in (DeliveryState.PENDING, DeliveryState.DELAYED):
        for row in index.list_deliveries(engine, state=state):
            if row.destination in known:
                continue
            with engine.begin() as connection:
                key = (row.study_instance_uid, row.revision, row.destination)
                if ledger.park_unsent(connection, *key, now=time.time(), reason=NOT_CONFIGURED):
                    notices.queue_parked(connection, *key)


@contextmanager
def _only_worker(settings: Settings, executor: str) -> Iterator[None]:
    """Wait until no other worker uses the embedded database: both would call themselves the same executor."""
    if executor != job_engine.EMBEDDED_EXECUTOR:
        yield
        return
    with (settings.data_dir / "worker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
