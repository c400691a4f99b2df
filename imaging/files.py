"""DICOM files in any layout a person hands over: single files, folders, a DICOMDIR, zip archives."""

import lzma
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableFile:
    """A file that gives no DICOM instance of a study, with the reason in words free of patient data."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFiles:
    """Files to be read, in a stable order, each once; and what was named or met but cannot be opened at all."""

    files: tuple[Path, ...]
    missed: tuple[UnreadableFile, ...] = ()


def find_files(paths: Iterable[Path], extract_into: Path) -> FoundFiles:
    """All files below `paths`.

    Folders are walked, links to others too; a DICOMDIR gives the files it references; a zip archive is unpacked below
    `extract_into`, under names of our own, all of it or nothing. Folders and links that cannot be followed, archives
    that cannot be unpacked and files that a DICOMDIR names in vain are missed. Raises FileNotFoundError for a path that
    does not exist.
    """
    found: dict[Path, None] = {}
    missed: list[UnreadableFile] = []
    for path in paths:
        if not os.path.lexists(path):
            raise FileNotFoundError(f"no such file or folder: {path}")
        found |= dict.fromkeys(_files_below(path, extract_into, missed))
    return FoundFiles(files=tuple(found), missed=tuple(dict.fromkeys(missed)))


def _files_below(path: Path, extract_into: Path, missed: list[UnreadableFile]) -> Iterator[Path]:
    try:
        files = _walked(path, missed) if path.is_dir() else (path,)
    except OSError as error:
        missed.append(UnreadableFile(path=path, reason=_in_words(error)))
        return
    for file in files:
        try:
            if not stat.S_ISREG(file.stat().st_mode):
                continue
            if _is_archive(file):
                yield from _unpack(file, extract_into)
            elif file.name.upper() != "DICOMDIR":
                yield file
            elif file == path:
                yield from _referenced_files(file, missed)
        except OSError as error:
            missed.append(UnreadableFile(path=file, reason=_in_words(error)))
        except UnreadableInstance as error:
            missed.append(UnreadableFile(path=file, reason=str(error)))


def _walked(top: Path, missed: list[UnreadableFile]) -> Iterator[Path]:
    """What is in a folder and in those below it, also through links, each folder once."""
    seen: set[tuple[int, int]] = set()

    def miss(error: OSError) -> None:
        missed.append(UnreadableFile(path=Path(error.filename), reason=_in_words(error)))

    for folder, below, names in os.walk(top, onerror=miss, followlinks=True):
        place = Path(folder).stat()
        if (place.st_dev, place.st_ino) in seen:
            below.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        below.sort()
        yield from (Path(folder, name) for name in sorted(names))


def _in_words(error: Exception) -> str:
    """What the system says of a file, or which kind of damage a library met, without the bytes it may quote."""
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _is_archive(path: Path) -> bool:
    """Whether a file is a zip archive and not a DICOM file whose preamble says so (PS3.10 7.1). Raises OSError."""
    with path.open("rb") as file:
        head = file.read(_PREAMBLE_BYTES + 4)
    return head.startswith(_ARCHIVE_BEGINS) and head[_PREAMBLE_BYTES:] != b"DICM"


def most_unpacked_bytes(packed_bytes: int) -> int:
    """What images of so many bytes may grow to; what grows more is made to fill a disk or a memory."""
    return max(_NEGLIGIBLE_BYTES, _MOST_COMPRESSED * packed_bytes)


def _unpack(archive: Path, extract_into: Path) -> tuple[Path, ...]:
    """Members are written as numbered files, so that no name in the archive can choose a path.

    Raises UnreadableInstance for an archive that is broken or too large to be a study, of which nothing is left then.
    """
    target = extract_into / f"zip{len(list(extract_into.iterdir())) if extract_into.exists() else 0:04d}"
    target.mkdir(parents=True)
    try:
        return tuple(_members(archive, target))
    except UnreadableInstance:
        shutil.rmtree(target, ignore_errors=True)
        raise
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, OSError, ValueError) as error:
        # NotImplementedError for methods of compression it does not know is a RuntimeError.
        shutil.rmtree(target, ignore_errors=True)
        raise UnreadableInstance(f"the archive cannot be unpacked: {_in_words(error)}") from error


def _members(archive: Path, target: Path) -> Iterator[Path]:
    limit_bytes = min(_MAX_ARCHIVE_BYTES, most_unpacked_bytes(archive.stat().st_size))
    remaining_bytes = min(limit_bytes, shutil.disk_usage(target).free // 2)
    with zipfile.ZipFile(archive) as opened:
        members = [m for m in opened.infolist() if not m.is_dir() and not m.filename.upper().endswith("DICOMDIR")]
        if len(members) > _MAX_ARCHIVE_FILES:
            raise UnreadableInstance(f"the archive holds more than {_MAX_ARCHIVE_FILES} files")
        for number, member in enumerate(members):
            file = target / f"{number:06d}"
            with opened.open(member) as source, file.open("wb") as sink:
                while block := source.read(_COPY_BYTES):
                    remaining_bytes -= len(block)
                    if remaining_bytes < 0:
                        raise UnreadableInstance("the archive unpacks to more than a study has, or than the disk holds")
                    sink.write(block)
            yield file


def _referenced_files(dicomdir: Path, missed: list[UnreadableFile]) -> Iterator[Path]:
    """Files named by the directory records of a DICOMDIR (PS3.3 F.3), if they lie below its own folder.

    Raises UnreadableInstance.
    """
    try:
        # PS3.10 8.6: Explicit VR Little Endian. Others are tolerated, but for one that could inflate to any size.
        if read_file_meta_info(dicomdir).TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
            raise UnreadableInstance("the DICOMDIR is deflated")
        records = pydicom.dcmread(dicomdir).get("DirectoryRecordSequence") or ()
        named = [file_id for record in records if (file_id := record.get("ReferencedFileID"))]
        parts = [[file_id] if isinstance(file_id, str) else [str(part) for part in file_id] for file_id in named]
    except UnreadableInstance:
        raise
    except Exception as error:
        # The parser fails in many ways on damaged bytes.
        raise UnreadableInstance(f"the DICOMDIR cannot be read ({type(error).__name__})") from error
    root = dicomdir.parent.resolve()
    absent = 0
    for path in parts:
        if (file := _below(root, path)) is not None:
            yield file
        else:
            absent += 1
    if absent:
        missed.append(UnreadableFile(path=dicomdir, reason=f"{absent} of its {len(parts)} files are not there"))


def _below(root: Path, parts: list[str]) -> Path | None:
    """The file of these path components, unless it lies elsewhere, through a link too, or there is none.

    Names may be there in small letters, as some systems show a medium (ISO 9660).
    """
    try:
        file = root.joinpath(*parts).resolve()
        if not file.exists():
            file = root.joinpath(*(part.lower() for part in parts)).resolve()
        return file if file.is_relative_to(root) and file.is_file() else None
    except (OSError, ValueError):  # names too long, or with a NUL
        return None
