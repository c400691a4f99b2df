"""Received bytes on disk: durable before anything is promised, never overwritten, never outside their folder."""

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dicom_gateway.errors import ConflictingInstance, StorageFull
from imaging.uids import is_safe_uid

# Files of a result folder. The record (report, outlines, key images) is what the others are made of; the report is
# written last.
REPORT_NAME = "report.json"
OUTLINES_NAME = "outlines.npz"
SR_NAME = "findings.sr.dcm"
SUMMARY_NAME = "summary.sc.dcm"
SEGMENTS_NAME = "segments.seg.dcm"

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_PREAMBLE_BYTES = 128
_META_LENGTH_END = _PREAMBLE_BYTES + 4 + 12


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file of the store: `path` relative to the data folder, `sha256` of the data set alone.

    The file meta information (PS3.10 7.1) is left out of the digest: it is ours and may change with our version.
    """

    path: Path
    sha256: str
    size_bytes: int


def instance_path(study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str) -> Path:
    """Where an instance lives, relative to the data folder. Raises ValueError for a UID that may not name a file."""
    if not all(map(is_safe_uid, (study_instance_uid, series_instance_uid, sop_instance_uid))):
        raise ValueError("a UID that may not name a file")
    return Path("studies") / study_instance_uid / series_instance_uid / f"{sop_instance_uid}.dcm"


def result_path(study_instance_uid: str, revision: int) -> Path:
    """Where the results of a revision live, relative to the data folder. Raises ValueError as instance_path."""
    if not is_safe_uid(study_instance_uid):
        raise ValueError("a UID that may not name a folder")
    return Path("results") / study_instance_uid / f"r{revision}"


def require_space(data_dir: Path, size_bytes: int, minimum_free_bytes: int) -> None:
    """Raises StorageFull when `size_bytes` more would leave less than `minimum_free_bytes` free."""
    if shutil.disk_usage(data_dir).free - size_bytes < minimum_free_bytes:
        raise StorageFull("less free space than the site's floor")


def keep(data_dir: Path, path: Path, meta: bytes, data_set: bytes | memoryview) -> StoredFile:
    """Put preamble and file meta `meta` and the `data_set` bytes at `path`; on the disk when it returns.

    The same data set at that path already is a success. Raises ConflictingInstance when another one is there,
    StorageFull when the disk has no room; both leave nothing behind.
    """
    stored = StoredFile(path=path, sha256=hashlib.sha256(data_set).hexdigest(), size_bytes=len(meta) + len(data_set))
    target = data_dir / path
    part = data_dir / "incoming" / f"{uuid.uuid4().hex}.part"
    with _no_room_is_storage_full():
        try:
            _write_durably(part, meta, data_set)
            _make_folders(target.parent, data_dir)
            # A hard link, unlike a rename, never replaces a file that is there.
            os.link(part, target)
        except FileExistsError:
            if digest(target) != stored.sha256:
                raise ConflictingInstance("stored already, with other bytes") from None
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(target.parent)
    return stored


def discard(data_dir: Path, path: Path) -> None:
    """Take back a file that no index row names."""
    (data_dir / path).unlink(missing_ok=True)


def sweep(incoming_dir: Path) -> int:
    """Remove what an interrupted reception left; how many files that were."""
    parts = list(incoming_dir.glob("*.part"))
    for part in parts:
        part.unlink(missing_ok=True)
    return len(parts)


def stored_paths(data_dir: Path) -> Iterator[Path]:
    """Every stored instance, relative to the data folder."""
    for path in (data_dir / "studies").glob("*/*/*.dcm"):
        yield path.relative_to(data_dir)


def digest(path: Path) -> str:
    """SHA-256 of a stored file's data set. Raises ValueError when it is no DICOM file."""
    with path.open("rb") as file:
        file.seek(data_set_offset(file))
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_set_offset(file: BinaryIO) -> int:
    """Where the data set of a PS3.10 file begins, in bytes. Raises ValueError when it is no DICOM file."""
    head = file.read(_META_LENGTH_END)
    if len(head) < _META_LENGTH_END or head[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] != b"DICM":
        raise ValueError("not a DICOM file")
    # (0002,0000) UL, always the first element (PS3.10 Table 7.1-1): the bytes of group 2 that follow.
    return _META_LENGTH_END + int.from_bytes(head[-4:], "little")


@contextlib.contextmanager
def _no_room_is_storage_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise StorageFull(os.strerror(error.errno)) from error
        raise


def _write_durably(part: Path, meta: bytes, data_set: bytes | memoryview) -> None:
    with part.open("xb", buffering=0) as file:
        for content in (memoryview(meta), memoryview(data_set)):
            written = 0
            while written < len(content):
                written += file.write(content[written:])
        os.fdatasync(file.fileno())


def _make_folders(folder: Path, data_dir: Path) -> None:
    missing = []
    while folder != data_dir and not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        _sync_folder(new.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
