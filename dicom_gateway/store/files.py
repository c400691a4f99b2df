"""Received bytes on disk: durable before anything is promised, never overwritten, never outside their folder."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
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

_PREAMBLE_BYTES = 128
_COMPARED_BYTES = 1 << 20
_UNFINISHED = ".part"
# Whoever wrote it was killed.
_ABANDONED_S = 3600.0
_making_folders = threading.Lock()
_META_LENGTH_END = _PREAMBLE_BYTES + 4 + 12


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file of the store; `path` is relative to the data folder."""

    path: Path
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
    """Raises StorageFull when `size_bytes` more would leave less than `minimum_free_bytes` free, or it is gone."""
    with _failing_is_storage_full():
        free_bytes = shutil.disk_usage(data_dir).free
    if free_bytes - size_bytes < minimum_free_bytes:
        raise StorageFull("less free space than the site's floor")


class PartFile:
    """A data set on its way into the store: under incoming/ until it is placed.

    `meta` is preamble and file meta information. Every method raises StorageFull when the storage does not take the
    bytes or give them back; nothing is left behind by `discard`, nor by a `place` that raises.
    """

    def __init__(self, data_dir: Path, meta: bytes) -> None:
        self._data_dir = data_dir
        self._path = data_dir / "incoming" / f"{uuid.uuid4().hex}.part"
        self._meta_bytes = len(meta)
        self.data_set_bytes = 0
        with _failing_is_storage_full():
            self._file = self._path.open("xb+", buffering=0)
            try:
                # Until the file is closed, or its process is gone: see `sweep`. Not every file system has locks.
                with contextlib.suppress(OSError):
                    fcntl.flock(self._file, fcntl.LOCK_EX)
                _write_whole(self._file, meta)
            except OSError:
                self.discard()
                raise

    def write(self, content: bytes | memoryview) -> None:
        """Append to the data set."""
        self.data_set_bytes += len(content)
        with _failing_is_storage_full():
            _write_whole(self._file, content)

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes of the data set from `offset` on."""
        with _failing_is_storage_full():
            return os.pread(self._file.fileno(), count, self._meta_bytes + offset)

    def place(self, path: Path) -> tuple[StoredFile, bool]:
        """Put the file at `path`, relative to the data folder: on the disk when this returns; whether it is new there.

        The same data set at that path already is a success: that file stays and is what is returned. Raises
        ConflictingInstance when another one is there.
        """
        is_new = True
        target = self._data_dir / path
        size_bytes = self._meta_bytes + self.data_set_bytes
        with _failing_is_storage_full():
            try:
                os.fdatasync(self._file.fileno())
                _make_folders(target.parent, self._data_dir)
                # A hard link, unlike a rename, never replaces a file that is there.
                os.link(self._path, target)
            except FileExistsError:
                if not _same_data_set(self._path, target):
                    raise ConflictingInstance("stored already, with other bytes") from None
                is_new = False
                # Its file meta information may be longer or shorter, as with another sender's AE title.
                size_bytes = target.stat().st_size
            finally:
                self.discard()
            sync_folder(target.parent)
        return StoredFile(path=path, size_bytes=size_bytes), is_new

    def discard(self) -> None:
        """Close and remove the part file."""
        if self._file.closed:
            return
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def discard(data_dir: Path, path: Path) -> None:
    """Take back a file that no index row names."""
    (data_dir / path).unlink(missing_ok=True)


@contextlib.contextmanager
def unfinished(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` for what is not whole yet; it goes at the end, as do those of killed processes."""
    for other in parent.glob(f".*{_UNFINISHED}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(other, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=_UNFINISHED, dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def sweep(incoming_dir: Path) -> int:
    """Remove what an interrupted reception left, and nothing that some process is still writing; how many that were.

    Where the file system has no locks nothing is removed.
    """
    removed = 0
    for part in incoming_dir.glob("*.part"):
        with contextlib.suppress(OSError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
            removed += 1
    return removed


def stored_paths(data_dir: Path, changed_since: float = 0.0) -> Iterator[Path]:
    """Stored instances, relative to the data folder, of every series that got one since `changed_since` (epoch s)."""
    for series in (data_dir / "studies").glob("*/*"):
        if series.stat().st_mtime >= changed_since:
            for path in series.glob("*.dcm"):
                yield path.relative_to(data_dir)


def _same_data_set(first: Path, second: Path) -> bool:
    """Whether two files differ in nothing but their file meta information (PS3.10 7.1), which changes with our version.

    Raises ValueError when one is no DICOM file.
    """
    with first.open("rb") as one, second.open("rb") as other:
        for file in (one, other):
            file.seek(data_set_offset(file))
        while chunk := one.read(_COMPARED_BYTES):
            if other.read(_COMPARED_BYTES) != chunk:
                return False
        return not other.read(1)


def data_set_offset(file: BinaryIO) -> int:
    """Where the data set of a PS3.10 file begins, in bytes. Raises ValueError when it is no DICOM file."""
    head = file.read(_META_LENGTH_END)
    if len(head) < _META_LENGTH_END or head[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] != b"DICM":
        raise ValueError("not a DICOM file")
    # (0002,0000) UL, always the first element (PS3.10 Table 7.1-1): the bytes of group 2 that follow.
    return _META_LENGTH_END + int.from_bytes(head[-4:], "little")


@contextlib.contextmanager
def _failing_is_storage_full() -> Iterator[None]:
    # Full, read-only, failing and vanished storage are one to a sender: it keeps its copy and tries again.
    try:
        yield
    except OSError as error:
        raise StorageFull(os.strerror(error.errno or errno.EIO)) from error


def _write_whole(file: FileIO, content: bytes | memoryview) -> None:
    written = 0
    while written < len(content):
        written += file.write(content[written:])


def _make_folders(folder: Path, data_dir: Path) -> None:
    missing = []
    # One at a time: a folder that another thread has made and not yet synced would be taken for durable.
    with _making_folders:
        while folder != data_dir and not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            sync_folder(new.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, as fsync of a file does its bytes. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
