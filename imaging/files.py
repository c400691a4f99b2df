"""DICOM files in any layout a person hands over: single files, folders, a DICOMDIR, zip archives."""

import lzma
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from imaging.errors import UnreadableInstance

_MAX_ARCHIVE_BYTES = 20 * 1024**3
_MAX_ARCHIVE_FILES = 200_000
# Images shrink by 2 to 20, those full of air somewhat more.
_MOST_COMPRESSED = 100
_NEGLIGIBLE_BYTES = 64 * 1024**2
_COPY_BYTES = 1024 * 1024
# An archive begins with a member, or is empty (APPNOTE.TXT 4.3). The library takes any file whose end looks like one.
_ARCHIVE_BEGINS = (b"PK\x03\x04", b"PK\x05\x06")
_PREAMBLE_BYTES = 128


def find_files(paths: Iterable[Path], extract_into: Path) -> tuple[Path, ...]:
    """All files below `paths`, in a stable order, each once.

    Folders are walked; a DICOMDIR gives the files it references; a zip archive is unpacked below
    `extract_into`, under names of our own. Raises FileNotFoundError for a path that does not exist and
    UnreadableInstance for an archive among `paths` that is broken or too large to be a study; one in a folder stays
    what it is, for the others to be read.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"no such file or folder: {path}")
        for file in _files_below(path, extract_into):
            found.setdefault(file)
    return tuple(found)


def _files_below(path: Path, extract_into: Path) -> Iterator[Path]:
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name.upper() != "DICOMDIR"):
            yield from _unpacked_or_itself(file, extract_into) if _is_archive(file) else (file,)
    elif _is_archive(path):
        yield from _unpack(path, extract_into)
    elif path.name.upper() == "DICOMDIR":
        yield from _referenced_files(path)
    else:
        yield path


def _unpacked_or_itself(archive: Path, extract_into: Path) -> tuple[Path, ...]:
    """The members of an archive among other files; where it is broken the archive, which counts as unreadable then."""
    try:
        return tuple(_unpack(archive, extract_into))
    except UnreadableInstance:
        return (archive,)


def _is_archive(path: Path) -> bool:
    """Whether a file is a zip archive and not a DICOM file whose preamble says so (PS3.10 7.1)."""
    try:
        with path.open("rb") as file:
            head = file.read(_PREAMBLE_BYTES + 4)
    except OSError:
        return False
    return head.startswith(_ARCHIVE_BEGINS) and head[_PREAMBLE_BYTES:] != b"DICM"


def most_unpacked_bytes(packed_bytes: int) -> int:
    """What images of so many bytes may grow to; what grows more is made to fill a disk or a memory."""
    return max(_NEGLIGIBLE_BYTES, _MOST_COMPRESSED * packed_bytes)


def _unpack(archive: Path, extract_into: Path) -> Iterator[Path]:
    """Members are written as numbered files, so that no name in the archive can choose a path."""
    target = extract_into / f"zip{len(list(extract_into.iterdir())) if extract_into.exists() else 0:04d}"
    target.mkdir(parents=True)
    limit_bytes = min(_MAX_ARCHIVE_BYTES, most_unpacked_bytes(archive.stat().st_size))
    remaining_bytes = min(limit_bytes, shutil.disk_usage(target).free // 2)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if not m.is_dir() and not m.filename.upper().endswith("DICOMDIR")]
            if len(members) > _MAX_ARCHIVE_FILES:
                raise UnreadableInstance(f"archive {archive.name} holds more than {_MAX_ARCHIVE_FILES} files")
            for number, member in enumerate(members):
                file = target / f"{number:06d}"
                with opened.open(member) as source, file.open("wb") as sink:
                    while block := source.read(_COPY_BYTES):
                        remaining_bytes -= len(block)
                        if remaining_bytes < 0:
                            raise UnreadableInstance(
                                f"archive {archive.name} unpacks to more than a study has, or than the disk holds"
                            )
                        sink.write(block)
                yield file
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, OSError, ValueError) as error:
        # NotImplementedError for methods of compression it does not know is a RuntimeError.
        raise UnreadableInstance(f"archive {archive.name} cannot be unpacked: {type(error).__name__}") from error


def _referenced_files(dicomdir: Path) -> Iterator[Path]:
    """Files named by the directory records of a DICOMDIR (PS3.3 F.3), if they lie below its own folder."""
    try:
        # PS3.10 8.6: Explicit VR Little Endian. Others are tolerated, but for one that could inflate to any size.
        if read_file_meta_info(dicomdir).TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
            raise UnreadableInstance(f"{dicomdir.name} is deflated")
        records = pydicom.dcmread(dicomdir).get("DirectoryRecordSequence") or ()
        named = [file_id for record in records if (file_id := record.get("ReferencedFileID"))]
        parts = [[file_id] if isinstance(file_id, str) else [str(part) for part in file_id] for file_id in named]
    except UnreadableInstance:
        raise
    except Exception as error:
        # The parser fails in many ways on damaged bytes.
        raise UnreadableInstance(f"{dicomdir.name} cannot be read ({type(error).__name__})") from error
    root = dicomdir.parent.resolve()
    for path in parts:
        if (file := _below(root, path)) is not None:
            yield file


def _below(root: Path, parts: list[str]) -> Path | None:
    """The file of these path components, unless it lies elsewhere, through a link too, or there is none."""
    try:
        file = root.joinpath(*parts).resolve()
        return file if file.is_relative_to(root) and file.is_file() else None
    except (OSError, ValueError):  # names too long, or with a NUL
        return None
