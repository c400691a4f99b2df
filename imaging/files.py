"""DICOM files in any layout a person hands over: single files, folders, a DICOMDIR, zip archives."""

import lzma
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pydicom

from imaging.errors import UnreadableInstance

_MAX_ARCHIVE_BYTES = 20 * 1024**3
_MAX_ARCHIVE_FILES = 200_000
_COPY_BYTES = 1024 * 1024


def find_files(paths: Iterable[Path], extract_into: Path) -> tuple[Path, ...]:
    """All files below `paths`, in a stable order, each once.

    Folders are walked; a DICOMDIR gives the files it references; a zip archive is unpacked below
    `extract_into`, under names of our own. Raises FileNotFoundError for a path that does not exist and
    UnreadableInstance for an archive that is broken or too large to be a study.
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
            yield from _files_below(file, extract_into) if zipfile.is_zipfile(file) else (file,)
    elif zipfile.is_zipfile(path):
        yield from _unpack(path, extract_into)
    elif path.name.upper() == "DICOMDIR":
        yield from _referenced_files(path)
    else:
        yield path


def _unpack(archive: Path, extract_into: Path) -> Iterator[Path]:
    """Members are written as numbered files, so that no name in the archive can choose a path."""
    target = extract_into / f"zip{len(list(extract_into.iterdir())) if extract_into.exists() else 0:04d}"
    target.mkdir(parents=True)
    remaining_bytes = _MAX_ARCHIVE_BYTES
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
                            raise UnreadableInstance(f"archive {archive.name} unpacks to more than 20 GiB")
                        sink.write(block)
                yield file
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError) as error:
        raise UnreadableInstance(f"archive {archive.name} cannot be unpacked: {type(error).__name__}") from error


def _referenced_files(dicomdir: Path) -> Iterator[Path]:
    """Files named by the directory records of a DICOMDIR (PS3.3 F.3), if they lie below its own folder."""
    try:
        records = pydicom.dcmread(dicomdir).get("DirectoryRecordSequence", ())
    except Exception as error:
        # The parser fails in many ways on damaged bytes.
        raise UnreadableInstance(f"{dicomdir.name} cannot be read ({type(error).__name__})") from error
    root = dicomdir.parent.resolve()
    for record in records:
        file_id = record.get("ReferencedFileID")
        if not file_id:
            continue
        parts = [file_id] if isinstance(file_id, str) else list(file_id)
        file = root.joinpath(*parts).resolve()
        if file.is_relative_to(root) and file.is_file():
            yield file
