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
_LOOK_BACK_S = 86400.0


def reconcile(engine: sa.Engine, settings: Settings, now: float) -> tuple[int, int]:
    """Index stored files that have no row, and log rows whose file is gone; the numbers of both.

    Looks at the series that got files not long before the newest row or after it: rows are only ever lost at the end.
    """
    with engine.connect() as connection:
        newest = connection.scalar(sa.select(sa.func.max(instance.c.received)))
    # A newest row of the future tells nothing: the clock was set since.
    since = newest - _LOOK_BACK_S if newest is not None and newest <= now else 0.0
    on_disk = set(files.stored_paths(settings.data_dir, since))
    with engine.connect() as connection:
        query = sa.select(instance.c.path).where(instance.c.received >= since)
        recent = {Path(path) for (path,) in connection.execute(query)}
        unknown = sorted(path for path in on_disk - recent if not _is_indexed(connection, path))
    added = sum(_index(engine, settings, path, now) for path in unknown)
    missing = sum(not (settings.data_dir / path).exists() for path in recent - on_disk)
    if missing:
        emit(Event.FILE_MISSING, level="error", count=missing)
    if added:
        emit(Event.INDEX_RECONCILED, count=added)
    return added, missing


def _is_indexed(connection: sa.Connection, path: Path) -> bool:
    query = sa.select(sa.literal(1)).where(instance.c.sop_instance_uid == path.stem, instance.c.path == path.as_posix())
    return connection.execute(query).first() is not None


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
        stored = files.StoredFile(path=path, size_bytes=size_bytes)
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
