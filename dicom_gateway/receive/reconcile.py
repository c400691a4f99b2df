"""Files and index made to agree at start: a kill can leave a durable file without its row."""

import os
from pathlib import Path

import sqlalchemy as sa
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID

from dicom_gateway.errors import ConflictingInstance
from dicom_gateway.events import Event, emit
from dicom_gateway.receive.header import read_header
from dicom_gateway.receive.reception import priority_of
from dicom_gateway.settings import Settings
from dicom_gateway.store import files, ledger
from dicom_gateway.store.schema import instance

RECOVERED = "(recovered)"


def reconcile(engine: sa.Engine, settings: Settings, now: float) -> tuple[int, int]:
    """Index stored files that have no row, and log rows whose file is gone; the numbers of both."""
    on_disk = set(files.stored_paths(settings.data_dir))
    with engine.connect() as connection:
        indexed = {Path(path) for (path,) in connection.execute(sa.select(instance.c.path))}
    added = sum(_index(engine, settings, path, now) for path in sorted(on_disk - indexed))
    missing = indexed - on_disk
    if missing:
        emit(Event.FILE_MISSING, level="error", count=len(missing))
    if added:
        emit(Event.INDEX_RECONCILED, count=added)
    return added, len(missing)


def _index(engine: sa.Engine, settings: Settings, path: Path, now: float) -> bool:
    full = settings.data_dir / path
    try:
        meta = read_file_meta_info(full)
        with full.open("rb") as file:
            offset = files.data_set_offset(file)
            size_bytes = os.fstat(file.fileno()).st_size
            header = read_header(
                lambda at, count: os.pread(file.fileno(), count, offset + at),
                size_bytes - offset,
                transfer_syntax=UID(meta.TransferSyntaxUID),
                sop_class_uid=str(meta.MediaStorageSOPClassUID),
                sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
            )
        sender = str(meta.get("SourceApplicationEntityTitle") or RECOVERED)
        stored = files.StoredFile(path=path, sha256=files.digest(full), size_bytes=size_bytes)
        with engine.begin() as connection:
            ledger.record_instance(
                connection,
                header,
                stored,
                calling_ae_title=sender,
                association_count=1,
                now=now,
                priority=priority_of(sender, settings),
            )
    except ConflictingInstance:
        # The row is of the same UID in another place: this one was never acknowledged.
        files.discard(settings.data_dir, path)
        return False
    except Exception as error:  # noqa: BLE001  # edge: one strange file must not keep the port closed
        emit(Event.FILE_NOT_INDEXABLE, level="error", error=type(error).__name__)
        return False
    return True
