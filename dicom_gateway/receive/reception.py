"""One received image: checked, kept, indexed."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import sqlalchemy as sa
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from dicom_gateway.errors import StorageFull
from dicom_gateway.events import Event, emit
from dicom_gateway.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_gateway.jobs.queue import ROUTINE, STAT
from dicom_gateway.receive.header import read_header
from dicom_gateway.receive.statuses import StoreRefused, StoreStatus
from dicom_gateway.settings import Settings
from dicom_gateway.store import files, ledger
from imaging.uids import is_safe_uid

_LOCKS = 64


@dataclass(slots=True)
class OpenAssociations:
    """Which study each open association is sending, and how many images of each study it has sent.

    Only the study of its latest image counts as being sent: a PACS that moves forty studies over one association
    need not end it before the first is analysed.
    """

    _images: dict[Any, dict[str, int]] = field(default_factory=dict)
    _sending: dict[Any, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, association: Any, study_instance_uid: str) -> int:
        """Number of images of the study this association has sent, with the one being stored."""
        with self._lock:
            images = self._images.setdefault(association, {})
            images[study_instance_uid] = images.get(study_instance_uid, 0) + 1
            self._sending[association] = study_instance_uid
            return images[study_instance_uid]

    def studies(self) -> frozenset[str]:
        """Study Instance UIDs of the latest image of each open association."""
        with self._lock:
            return frozenset(self._sending.values())

    def sending(self, association: Any) -> str | None:
        """Study Instance UID of the association's latest image; None before its first."""
        with self._lock:
            return self._sending.get(association)

    def close(self, association: Any) -> None:
        """Forget an association."""
        with self._lock:
            self._images.pop(association, None)
            self._sending.pop(association, None)

    def ended(self) -> list[Any]:
        """Associations whose thread has gone without telling."""
        with self._lock:
            return [association for association in self._images if not association.is_alive()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reception:
    """What the handlers share."""

    settings: Settings
    engine: sa.Engine
    associations: OpenAssociations = field(default_factory=OpenAssociations)
    _locks: tuple[threading.Lock, ...] = field(default_factory=lambda: tuple(threading.Lock() for _ in range(_LOCKS)))

    @contextmanager
    def alone_with(self, sop_instance_uid: str) -> Iterator[None]:
        """Only one thread at a time places and indexes the file of one SOP Instance UID."""
        with self._locks[hash(sop_instance_uid) % _LOCKS]:
            yield


def take(event: Any, reception: Reception, calling_ae_title: str) -> None:
    """Check and keep the image of a C-STORE request; durable and indexed when it returns.

    Raises StoreRefused, ConflictingInstance or StorageFull, and then nothing of it is left.
    """
    request = event.request
    sop_instance_uid = str(request.AffectedSOPInstanceUID)
    if not is_safe_uid(sop_instance_uid):
        raise StoreRefused(StoreStatus.INVALID_SOP_INSTANCE, "SOP Instance UID is not valid (PS3.5 section 9.1)")
    if request.AffectedSOPClassUID != event.context.abstract_syntax:
        raise StoreRefused(StoreStatus.REFUSED_SOP_CLASS_NOT_SUPPORTED, "SOP Class differs from the context's")
    data_set = request.DataSet.getvalue()
    settings = reception.settings
    files.require_space(settings.data_dir, len(data_set), settings.minimum_free_space_mb * 1_000_000)
    transfer_syntax = UID(event.context.transfer_syntax)
    header = _header(data_set, transfer_syntax, str(request.AffectedSOPClassUID), sop_instance_uid)
    meta = _file_meta(str(request.AffectedSOPClassUID), sop_instance_uid, transfer_syntax)
    if reception.associations.sending(event.assoc) != header.study_instance_uid:
        release_study(reception, event.assoc)
    count = reception.associations.count(event.assoc, header.study_instance_uid)
    with reception.alone_with(sop_instance_uid):
        _keep(reception, header, meta, data_set, calling_ae_title=calling_ae_title, association_count=count)


def release_study(reception: Reception, association: Any) -> None:
    """Note that the association has sent all it will of the study it is sending, before that is forgotten of it.

    The other way round the study would look quiet in between.
    """
    study_instance_uid = reception.associations.sending(association)
    if study_instance_uid is not None:
        with reception.engine.begin() as connection:
            ledger.mark_released(connection, frozenset({study_instance_uid}), time.time())


def _header(data_set: bytes, transfer_syntax: UID, sop_class_uid: str, sop_instance_uid: str) -> ledger.InstanceHeader:
    try:
        return read_header(
            data_set,
            transfer_syntax=transfer_syntax,
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
        )
    except StoreRefused:
        raise
    except Exception as error:
        raise StoreRefused(StoreStatus.CANNOT_UNDERSTAND, "Not a data set of the agreed syntax") from error


def _keep(
    reception: Reception,
    header: ledger.InstanceHeader,
    meta: bytes,
    data_set: bytes,
    *,
    calling_ae_title: str,
    association_count: int,
) -> None:
    settings = reception.settings
    data_dir = settings.data_dir
    path = files.instance_path(header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid)
    is_new = not (data_dir / path).exists()
    file = files.keep(data_dir, path, meta, data_set)
    try:
        with reception.engine.begin() as connection:
            receipt = ledger.record_instance(
                connection,
                header,
                file,
                calling_ae_title=calling_ae_title,
                association_count=association_count,
                now=time.time(),
                priority=STAT if calling_ae_title in settings.stat_calling_ae_titles else ROUTINE,
            )
    except Exception as error:
        if is_new:
            files.discard(data_dir, path)
        if isinstance(error, sa.exc.OperationalError) and "disk is full" in str(error.orig):
            raise StorageFull("the database has no room") from error
        raise
    if receipt.reopened:
        emit(Event.STUDY_REOPENED, study_instance_uid=header.study_instance_uid, revision=receipt.revision)


def _file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax: UID) -> bytes:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = sop_class_uid
    meta.MediaStorageSOPInstanceUID = sop_instance_uid
    meta.TransferSyntaxUID = transfer_syntax
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    stream = BytesIO()
    stream.write(bytes(128) + b"DICM")
    write_file_meta_info(stream, meta)
    return stream.getvalue()
