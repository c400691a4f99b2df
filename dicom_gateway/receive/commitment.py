"""Storage commitment for what was received (PS3.4 Annex J, push model): asked for by N-ACTION, told by N-EVENT-REPORT.

A sender that is one of the `sources` is told on an association that we open, as modalities expect; another one on the
association it asked on. A request is in the database before it is answered, so that a restart forgets none.
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID
from pynetdicom import build_role
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import StorageCommitmentPushModel

from dicom_gateway.errors import ConfigurationError
from dicom_gateway.events import Event, emit
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.notices import Notices
from dicom_gateway.receive.data_sets import items_of, parse_data_set
from dicom_gateway.receive.pdu import CommandSet
from dicom_gateway.receive.statuses import StoreRefused, StoreStatus
from dicom_gateway.requestor import HANDLERS, requestor, tls_arguments
from dicom_gateway.settings import Destination, Settings, Source
from dicom_gateway.store import ledger
from dicom_gateway.store.schema import DeliveryState, commitment, instance
from imaging.uids import is_safe_uid

SOP_CLASS_UID = str(StorageCommitmentPushModel)
_INVALID = StoreStatus.INVALID_ARGUMENT_VALUE
# PS3.4 J.4: the one well-known instance of the class.
SOP_INSTANCE_UID = "1.2.840.10008.1.20.1.1"
_REQUEST_ACTION_TYPE = 1
ALL_COMMITTED, SOME_FAILED = 1, 2
MAXIMUM_REQUEST_BYTES = 16 << 20
# PS3.3 C.14.1.1.
_PROCESSING_FAILURE, _NO_SUCH_INSTANCE, _CLASS_INSTANCE_CONFLICT = 0x0110, 0x0112, 0x0119
_CONNECTION_TIMEOUT_S, _RESPONSE_TIMEOUT_S = 10, 30
_FIRST_DELAY_S, _LONGEST_DELAY_S, _GIVEN_UP_AFTER_S = 10.0, 3600.0, 86400.0
_LOOK_EVERY_S = 1.0

Reference = tuple[str, str]
"""SOP Class UID and SOP Instance UID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentRequest:
    """What a sender wants to know safe with us."""

    calling_ae_title: str
    transaction_uid: str
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentReport:
    """What a destination says of results of ours; `failed` counts those it says it has not committed."""

    transaction_uid: str
    committed: frozenset[Reference]
    failed: int
    failure_reasons: tuple[int, ...]


def parse_request(
    command: CommandSet, encoded: bytes, transfer_syntax: str, calling_ae_title: str
) -> CommitmentRequest:
    """An N-ACTION request with its information (PS3.4 Table J.3-1). Raises StoreRefused for anything else."""
    if command.action_type_id != _REQUEST_ACTION_TYPE:
        raise StoreRefused(StoreStatus.NO_SUCH_ACTION, "Only storage commitment is an action here")
    if command.sop_instance_uid != SOP_INSTANCE_UID:
        raise StoreRefused(StoreStatus.NO_SUCH_SOP_INSTANCE, "Not the instance of storage commitment")
    information = parse_data_set(encoded, transfer_syntax, _INVALID)
    request = CommitmentRequest(
        calling_ae_title=calling_ae_title,
        transaction_uid=_text(information, "TransactionUID"),
        references=_references(information),
    )
    uids = (request.transaction_uid, *(uid for reference in request.references for uid in reference))
    if not request.references or not all(map(is_safe_uid, uids)):
        raise StoreRefused(_INVALID, "A UID is missing or not valid")
    return request


def parse_report(encoded: bytes, transfer_syntax: str) -> CommitmentReport:
    """The information of an N-EVENT-REPORT request (PS3.4 Table J.3-2). Raises StoreRefused for anything else."""
    information = parse_data_set(encoded, transfer_syntax, _INVALID)
    failed = items_of(information, "FailedSOPSequence", _INVALID)
    reasons = [item.get("FailureReason") for item in failed]
    return CommitmentReport(
        transaction_uid=_text(information, "TransactionUID"),
        committed=frozenset(_references(information)),
        failed=len(failed),
        failure_reasons=tuple(sorted({reason if isinstance(reason, int) else 0 for reason in reasons})),
    )


def _references(information: Dataset) -> tuple[Reference, ...]:
    return tuple(
        (_text(item, "ReferencedSOPClassUID"), _text(item, "ReferencedSOPInstanceUID"))
        for item in items_of(information, "ReferencedSOPSequence", _INVALID)
    )


def _text(data_set: Dataset, keyword: str) -> str:
    return str(data_set.get(keyword) or "")


def judge(engine: sa.Engine, data_dir: Path, request: CommitmentRequest) -> tuple[int, Dataset]:
    """Event type and event information of the N-EVENT-REPORT (PS3.4 Table J.3-2) that answers a request."""
    committed, failed = [], []
    for reference in request.references:
        reason = _why_not_committed(engine, data_dir, reference)
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference
        if reason is None:
            committed.append(item)
        else:
            item.FailureReason = reason
            failed.append(item)
    information = Dataset()
    information.TransactionUID = request.transaction_uid
    if committed:
        information.ReferencedSOPSequence = committed
    if failed:
        information.FailedSOPSequence = failed
    return SOME_FAILED if failed else ALL_COMMITTED, information


def encode_information(information: Dataset, transfer_syntax: str) -> bytes:
    """The data set of an N-EVENT-REPORT."""
    encoded = encode(information, bool(UID(transfer_syntax).is_implicit_VR), True)
    assert encoded is not None  # UIDs and numbers of our own
    return bytes(encoded)


def _why_not_committed(engine: sa.Engine, data_dir: Path, reference: Reference) -> int | None:
    sop_class_uid, sop_instance_uid = reference
    query = sa.select(instance.c.path, instance.c.size_bytes).where(instance.c.sop_instance_uid == sop_instance_uid)
    with engine.connect() as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        return _NO_SUCH_INSTANCE
    path = data_dir / row.path
    try:
        if path.stat().st_size != row.size_bytes:
            return _PROCESSING_FAILURE
        stored_class = str(read_file_meta_info(path).MediaStorageSOPClassUID)
    # Where bytes are damaged pydicom raises nearly anything.
    except Exception:  # noqa: BLE001  # edge: the other images of the request are told all the same
        return _PROCESSING_FAILURE
    return None if stored_class == sop_class_uid else _CLASS_INSTANCE_CONFLICT


class Commitments:
    """Requests for commitment, from their arrival until their sender knows."""

    def __init__(self, engine: sa.Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._notices = Notices(settings=settings, engine=engine, jobs=JobQueue(engine))
        self._sources = {source.ae_title: source for source in settings.sources}

    def take(self, request: CommitmentRequest) -> tuple[int, Dataset] | None:
        """Remember a request; what to tell on the association it came on, None where its source is told by `report`."""
        if request.calling_ae_title not in self._sources:
            return judge(self._engine, self._settings.data_dir, request)
        now = time.time()
        with self._engine.begin() as connection:
            _forget(connection, request)
            connection.execute(
                sa.insert(commitment).values(
                    calling_ae_title=request.calling_ae_title,
                    transaction_uid=request.transaction_uid,
                    references=[list(reference) for reference in request.references],
                    created=now,
                    attempts=0,
                    next_attempt=now,
                )
            )
        return None

    def told(self, report: CommitmentReport, calling_ae_title: str) -> None:
        """Note what a destination says of results of ours. Raises StoreRefused where it was not asked."""
        destinations = [peer for peer in self._settings.destinations if isinstance(peer, Destination)]
        asked = [peer.name for peer in destinations if peer.ae_title == calling_ae_title.strip()]
        now = time.time()
        with self._engine.begin() as connection:
            references = ledger.requested_references(connection, report.transaction_uid, asked)
            if references is None:
                raise StoreRefused(StoreStatus.NO_SUCH_SOP_INSTANCE, "A transaction that nobody asked for")
            reason = _what_is_missing(report, references)
            delivery = ledger.answer_commitment(connection, report.transaction_uid, asked, reason=reason, now=now)
            assert delivery is not None
            # What it has not committed it does not have: a person sends it again.
            if reason is not None and ledger.change_delivery(
                connection,
                *delivery,
                to=DeliveryState.PARKED,
                since=(DeliveryState.DELIVERED,),
                now=now,
                last_error=f"storage commitment: {reason}",
            ):
                self._notices.queue_parked(connection, *delivery)
        if reason is None:
            emit(Event.RESULTS_COMMITTED, transaction_uid=report.transaction_uid)
        else:
            emit(Event.RESULTS_NOT_COMMITTED, level="error", transaction_uid=report.transaction_uid, reason=reason)

    def run(self, stop: threading.Event) -> None:
        """Tell sources, again and again until each has said that it knows, until `stop` is set."""
        while not stop.wait(_LOOK_EVERY_S):
            try:
                self.report(time.time())
            except Exception as error:  # noqa: BLE001  # edge: without this thread no source is told again
                emit(Event.COMMITMENT_DELAYED, level="error", reason=type(error).__name__)

    def report(self, now: float) -> None:
        """Tell every source that is due at `now`, UTC epoch seconds."""
        due = sa.select(commitment).where(commitment.c.next_attempt <= now).order_by(commitment.c.created)
        with self._engine.connect() as connection:
            rows = connection.execute(due).mappings().all()
        for row in rows:
            request = CommitmentRequest(
                calling_ae_title=row["calling_ae_title"],
                transaction_uid=row["transaction_uid"],
                references=tuple((sop_class, uid) for sop_class, uid in row["references"]),
            )
            try:
                problem = self._tell(request)
            except Exception as error:  # noqa: BLE001  # edge: one request must not keep the others waiting
                problem = type(error).__name__
            about = {"calling_ae_title": request.calling_ae_title, "transaction_uid": request.transaction_uid}
            given_up = problem is not None and now - row["created"] > _GIVEN_UP_AFTER_S
            with self._engine.begin() as connection:
                if problem is None or given_up:
                    _forget(connection, request)
                else:
                    delay_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(row["attempts"], 20))
                    connection.execute(
                        sa.update(commitment)
                        .where(*_key(request))
                        .values(attempts=row["attempts"] + 1, next_attempt=now + delay_s)
                    )
            if problem is None:
                emit(Event.COMMITMENT_TOLD, **about, instances=len(request.references))
            elif given_up:
                emit(Event.COMMITMENT_GIVEN_UP, level="error", **about, reason=problem)
            else:
                emit(Event.COMMITMENT_DELAYED, level="warning", **about, reason=problem)

    def _tell(self, request: CommitmentRequest) -> str | None:
        """N-EVENT-REPORT on an association of our own; why its source does not know, None when it does."""
        source = self._sources.get(request.calling_ae_title)
        if source is None:
            return "the source is no longer configured"
        event_type, information = judge(self._engine, self._settings.data_dir, request)
        return send_event_report(source, self._settings.ae_title, event_type, information)


def _what_is_missing(report: CommitmentReport, asked: frozenset[Reference]) -> str | None:
    """Why a report is not the commitment of all that was asked for (PS3.4 J.3.3), None where it is."""
    missing = len(asked - report.committed)
    if not missing and not report.failed:
        return None
    reasons = [f"0x{reason:04X}" for reason in report.failure_reasons]
    if missing > report.failed:
        reasons.append("not named")
    return f"{max(missing, report.failed)} objects are not committed ({', '.join(reasons)})"


def send_event_report(source: Source, calling_ae_title: str, event_type: int, information: Dataset) -> str | None:
    """One N-EVENT-REPORT to a source; why it does not know, None when it does."""
    entity = requestor(
        calling_ae_title, connection_timeout_s=_CONNECTION_TIMEOUT_S, response_timeout_s=_RESPONSE_TIMEOUT_S
    )
    entity.add_requested_context(StorageCommitmentPushModel)
    # We are the one who provides the service, though we open the association (PS3.4 J.3.3).
    role = build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    try:
        association = entity.associate(
            source.host,
            source.port,
            ae_title=source.called_ae_title,
            ext_neg=[role],
            tls_args=tls_arguments(source),
            evt_handlers=HANDLERS,
        )
    except ConfigurationError as error:
        return str(error)
    except (OSError, UnicodeError):
        return "the host name cannot be resolved"
    if not association.is_established:
        return "no association for storage commitment"
    try:
        status, _ = association.send_n_event_report(
            information, event_type, StorageCommitmentPushModel, SOP_INSTANCE_UID
        )
    except (RuntimeError, ValueError):
        return "the association ended, or the class was refused"
    finally:
        if association.is_established:
            association.release()
    if "Status" not in status:
        return "no answer"
    return None if status.Status == 0x0000 else f"status 0x{status.Status:04X}"


def _key(request: CommitmentRequest) -> Iterable[sa.ColumnElement[bool]]:
    return (
        commitment.c.calling_ae_title == request.calling_ae_title,
        commitment.c.transaction_uid == request.transaction_uid,
    )


def _forget(connection: sa.Connection, request: CommitmentRequest) -> None:
    connection.execute(sa.delete(commitment).where(*_key(request)))
