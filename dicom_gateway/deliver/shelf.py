"""Results kept beside their record, to be fetched from our own DICOMweb server."""

import os
from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_gateway.deliver.attempt import Encode, prepared, store_all
from dicom_gateway.errors import PeerUnreachable
from dicom_gateway.settings import DicomwebDestination
from dicom_gateway.store.schema import ObjectOutcome

_FOLDER = "dicomweb"


def send(encode: Encode, destination: DicomwebDestination, folder: Path) -> tuple[ObjectOutcome, ...]:
    """Write what the destination names below the result folder; on the disk, and nothing else, when this returns.

    Raises PeerUnreachable where the disk does not take it: another attempt may succeed.
    """
    shelf = folder / _FOLDER / destination.name
    written: set[Path] = set()

    def store(data_set: Dataset) -> None:
        changed = prepared(data_set, ExplicitVRLittleEndian, destination.character_set)
        target = shelf / f"{changed.SOPInstanceUID}.dcm"
        part = target.with_suffix(".part")
        try:
            shelf.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                changed.save_as(file, enforce_file_format=True)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
            written.add(target)
        except OSError as error:
            raise PeerUnreachable(f"cannot write: {error.strerror}") from error

    outcomes = store_all(destination.objects, encode, store, refused={})
    for stale in set(shelf.iterdir()) - written if shelf.is_dir() else ():
        stale.unlink()
    return outcomes


def kept_files(folder: Path) -> Sequence[Path]:
    """What was kept of the report in a result folder; empty where nothing was."""
    return sorted((folder / _FOLDER).glob("*/*.dcm"))
