"""One received image: streamed to the disk, checked, kept, indexed. C-STORE and STOW-RS both end here."""

import struct
import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field

import sqlalchemy as sa
from pydicom.uid import UID

from dicom_gateway.errors import ConflictingInstance, StorageFull
from dicom_gateway.events import Event, emit
from dicom_gateway.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_gateway.jobs.queue import ROUTINE, STAT
from dicom_gateway.receive.header import read_header
from dicom_gateway.receive.statuses import StoreRefused, StoreStatus
from dicom_gateway.settings import Settings
from dicom_gateway.store import files, ledger
from imaging.uids import is_safe_uid

# A scanner may pause as long between two images of one association. Without a new image for longer than that, nothing
# that the senders of a study do counts as sending it.
LONGEST_PAUSE_S = 300.0
_LOCKS = 64
_SPACE_CHECKED_EVERY_BYTES = 32 << 20


@dataclass(slots=True)
class OpenAssociations:
    """Which studies each open association is sending, and how many images of each study it has sent.

    Only the study of its latest image counts as being sent: a PACS that moves forty studies over one association
    need not end it before the first is analysed. One that comes back to a study which it had left sends them by turns:
    then it is sending all of them until it ends.
    """

    _images: dict[Hashable, dict[str, int]] = field(default_factory=dict)
    _sending: dict[Hashable, frozenset[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, association: Hashable, study_instance_uid: str) -> int:
        """Number of images of the study this association has sent, with the one being stored."""
        with self._lock:
            images = self._images.setdefault(association, {})
            sending = self._sending.get(association, frozenset())
            if study_instance_uid not in sending:
                by_turns = study_instance_uid in images or len(sending) > 1
                self._sending[association] = frozenset({study_instance_uid, *(images if by_turns else ())})
            images[study_instance_uid] = images.get(study_instance_uid, 0) + 1
            return images[study_instance_uid]

    def studies(self) -> frozenset[str]:
        """Study Instance UIDs that any open association is sending."""
        with self._lock:
            return frozenset().union(*self._sending.values())

    def sending(self, association: Hashable) -> frozenset[str]:
        """Study Instance UIDs that the association is sending; none before its first image."""
        with self._lock:
            return self._sending.get(association, frozenset())

    def close(self, association: Hashable) -> None:
        """Forget an association."""
        with self._lock:
            self._images.pop(association, None)
            self._sending.pop(association, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reception:
    """What those who receive share. The `engine` records images: one that is `rebuildable` will do."""

    settings: Settings
    engine: sa.Engine
    associations: OpenAssociations = field(default_factory=OpenAssociations)
    _locks: tuple[threading.Lock, ...] = field(default_factory=lambda: tuple(threading.Lock() for _ in range(_LOCKS)))
    _one_writer: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def alone_with(self, sop_instance_uid: str) -> Iterator[None]:
        """Only one thread at a time places and indexes the file of one SOP Instance UID."""
        with self._locks[hash(sop_instance_uid) % _LOCKS]:
            yield

    def writing(self) -> AbstractContextManager[object]:
        """Threads queue here for SQLite, which would let each sleep and try again; PostgreSQL takes them together."""
        return self._one_writer if self.engine.dialect.name == "sqlite" else nullcontext()

    def require_space(self) -> None:
        """Raises StorageFull below the free space that the site wants to keep."""
        files.require_space(self.settings.data_dir, 0, self.settings.minimum_free_space_mb * 1_000_000)


class Incoming:
    """One instance on its way in: `write` its data set as it comes, then `keep` or `discard` it.

    `association` stands for whatever sends it: the images of a study that come through one are counted together.
    All but `discard` raise StoreRefused or StorageFull, `keep` also ConflictingInstance; no row of it is left then.
    """

    def __init__(
        self,
        reception: Reception,
        *,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax: str,
        calling_ae_title: str,
        association: Hashable,
    ) -> None:
        if not is_safe_uid(sop_instance_uid):
            raise StoreRefused(StoreStatus.INVALID_SOP_INSTANCE, "SOP Instance UID is not valid (PS3.5 section 9.1)")
        self._reception = reception
        self._sop_class_uid, self._sop_instance_uid = sop_class_uid, sop_instance_uid
        self._transfer_syntax, self._calling_ae_title = transfer_syntax, calling_ae_title
        self._association = association
        self._next_space_check = _SPACE_CHECKED_EVERY_BYTES
        reception.require_space()
        meta = encode_file_meta(sop_class_uid, sop_instance_uid, transfer_syntax, calling_ae_title)
        self._part = files.PartFile(reception.settings.data_dir, meta)

    def write(self, content: bytes | memoryview) -> None:
        """Append to the data set."""
        try:
            self._part.write(content)
            size_bytes = self._part.data_set_bytes
            if size_bytes > self._reception.settings.maximum_instance_mb * 1_000_000:
                raise StoreRefused(StoreStatus.REFUSED_OUT_OF_RESOURCES, "Larger than maximum_instance_mb")
            if size_bytes >= self._next_space_check:
                self._next_space_check += _SPACE_CHECKED_EVERY_BYTES
                self._reception.require_space()
        except StoreRefused as refused:
            self._part.discard()
            self._count_refusal(refused, None)
            raise
        except BaseException:
            self._part.discard()
            raise

    def keep(self, of_study: str | None = None) -> ledger.InstanceHeader:
        """Check the instance and keep it: durable and indexed when this returns. Refused if not `of_study`."""
        study_instance_uid = None
        try:
            header = read_header(
                self._part.read,
                self._part.data_set_bytes,
                transfer_syntax=UID(self._transfer_syntax),
                sop_class_uid=self._sop_class_uid,
                sop_instance_uid=self._sop_instance_uid,
            )
            study_instance_uid = header.study_instance_uid
            if of_study not in (None, study_instance_uid):
                status = StoreStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS
                raise StoreRefused(status, "Of another study than the one it was sent to")
            associations = self._reception.associations
            if header.study_instance_uid not in associations.sending(self._association):
                release_study(self._reception, self._association)
            count = associations.count(self._association, header.study_instance_uid)
            with self._reception.alone_with(self._sop_instance_uid):
                self._place(header, count)
        except (StoreRefused, ConflictingInstance) as error:
            self._count_refusal(_as_refused(error), study_instance_uid)
            raise
        except sa.exc.OperationalError as error:
            raise StorageFull("the index does not take it") from error
        finally:
            self._part.discard()
        return header

    def discard(self) -> None:
        """Forget it; also after `keep`."""
        self._part.discard()

    def _count_refusal(self, refused: StoreRefused, study_instance_uid: str | None) -> None:
        # The sender is refused all the same, and the log has it, where the index cannot be written.
        with suppress(sa.exc.OperationalError), self._reception.writing(), self._reception.engine.begin() as connection:
            ledger.record_refusal(
                connection,
                study_instance_uid,
                status=refused.status,
                reason=refused.comment,
                calling_ae_title=self._calling_ae_title,
                now=time.time(),
            )

    def _place(self, header: ledger.InstanceHeader, association_count: int) -> None:
        settings = self._reception.settings
        path = files.instance_path(header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid)
        file, is_new = self._part.place(path)
        try:
            with self._reception.writing(), self._reception.engine.begin() as connection:
                receipt = ledger.record_instance(
                    connection,
                    header,
                    file,
                    calling_ae_title=self._calling_ae_title,
                    association_count=association_count,
                    now=time.time(),
                    priority=priority_of(self._calling_ae_title, settings),
                    file_is_new=is_new,
                )
        except ConflictingInstance:
            # The row is of the same UID in another place. After any other failure the file stays: another door may
            # have acknowledged it meanwhile, and the sender's next attempt or our next start finds it.
            if is_new:
                files.discard(settings.data_dir, path)
            raise
        if receipt.reopened:
            emit(Event.STUDY_REOPENED, study_instance_uid=header.study_instance_uid, revision=receipt.revision)
        if receipt.other_patient:
            # Kept all the same: nobody knows which image is wrong, and the analysis refuses a study of two patients.
            emit(
                Event.PATIENTS_DIFFER,
                level="warning",
                calling_ae_title=self._calling_ae_title,
                study_instance_uid=header.study_instance_uid,
                sop_instance_uid=header.sop_instance_uid,
            )


def refusal_of(error: Exception, calling_ae_title: str) -> StoreRefused:
    """What the sender is told where an instance is not kept because of `error`; logs it."""
    event, level, known = Event.INSTANCE_REFUSED, "warning", {}
    if isinstance(error, StoreRefused | ConflictingInstance):
        refusal = _as_refused(error)
    elif isinstance(error, StorageFull):
        event, refusal = Event.STORAGE_FULL, StoreRefused(StoreStatus.REFUSED_OUT_OF_RESOURCES, str(error))
    else:
        refusal = StoreRefused(StoreStatus.PROCESSING_FAILURE, "Internal error")
        event, level, known = Event.INSTANCE_HANDLER_FAILED, "error", {"error": type(error).__name__}
    emit(
        event,
        level=level,
        calling_ae_title=calling_ae_title,
        status=refusal.status.name,
        reason=refusal.comment,
        **known,
    )
    return refusal


def _as_refused(error: StoreRefused | ConflictingInstance) -> StoreRefused:
    if isinstance(error, StoreRefused):
        return error
    return StoreRefused(StoreStatus.DUPLICATE_SOP_INSTANCE, "Stored already, with other bytes")


def priority_of(calling_ae_title: str, settings: Settings) -> int:
    """How urgent what this sender sends is; smaller is more urgent."""
    return STAT if calling_ae_title in settings.stat_calling_ae_titles else ROUTINE


def release_study(reception: Reception, association: Hashable, *, broke: bool = False) -> None:
    """Note that the association has sent all it will of what it is sending, before that is forgotten of it.

    The other way round the study would look quiet in between. Of one that `broke` there may be more to come.
    """
    sent = reception.associations.sending(association)
    if sent:
        with reception.writing(), reception.engine.begin() as connection:
            ledger.mark_released(connection, sent, 0.0 if broke else time.time())


def encode_file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax: str, calling_ae_title: str) -> bytes:
    """Preamble and file meta information (PS3.10 7.1) of an instance that `calling_ae_title` sent."""
    elements = b"".join(
        (
            _meta_element(0x0001, b"OB", b"\x00\x01"),
            _meta_element(0x0002, b"UI", sop_class_uid.encode("ascii")),
            _meta_element(0x0003, b"UI", sop_instance_uid.encode("ascii")),
            _meta_element(0x0010, b"UI", transfer_syntax.encode("ascii")),
            _meta_element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode("ascii")),
            _meta_element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode("ascii")),
            _meta_element(0x0016, b"AE", calling_ae_title[:16].encode("ascii", "replace")),
        )
    )
    return bytes(128) + b"DICM" + _meta_element(0x0000, b"UL", struct.pack("<I", len(elements))) + elements


def _meta_element(element: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    length = struct.pack("<HI", 0, len(value)) if vr == b"OB" else struct.pack("<H", len(value))
    return struct.pack("<HH2s", 2, element, vr) + length + value
