"""Results kept beside their record, to be fetched from our own DICOMweb server."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_gateway.deliver.attempt import Encode, prepared, store_all
from dicom_gateway.errors import PeerUnreachable
from dicom_gateway.settings import DicomwebDestination
from dicom_gateway.store.files import sync_folder
from dicom_gateway.store.schema import ObjectOutcome

_FOLDER = "dicomweb"


def send(encode: Encode, destination: DicomwebDestination, folder: Path) -> tuple[ObjectOutcome, ...]:
    """Write what the destination names below the result folder; on the disk, and nothing else, when this returns.

    Nothing of it is seen before all is written. Raises PeerUnreachable where the disk does not take it: another
    attempt may succeed.
    """
    with _replacing(folder / _FOLDER / destination.name) as part:

        def store(data_set: Dataset) -> None:
            changed = prepared(data_set, ExplicitVRLittleEndian, destination.character_set)
            with _failing_is_unreachable(), (part / f"{changed.SOPInstanceUID}.dcm").open("wb") as file:
                changed.save_as(file, enforce_file_format=True)
                file.flush()
                os.fsync(file.fileno())

        return store_all(destination.objects, encode, store, refused={})


def kept_files(folder: Path) -> Sequence[Path]:
    """What was kept of the report in a result folder; empty where nothing was."""
    # No name of a destination begins with a dot: such a folder is not whole.
    return sorted((folder / _FOLDER).glob("[!.]*/*.dcm"))


@contextmanager
def _replacing(shelf: Path) -> Iterator[Path]:
    """A new folder that takes the place of the shelf when all is in it; a failure until then leaves that as it was."""
    # Names of its own: what a killed process left there goes with the next attempt.
    part, replaced = (shelf.with_name(f".{shelf.name}.{state}") for state in ("part", "replaced"))
    with _failing_is_unreachable():
        for left in (part, replaced):
            if left.exists():
                shutil.rmtree(left)
        part.mkdir(parents=True)
    try:
        yield part
        with _failing_is_unreachable():
            sync_folder(part)
            if shelf.exists():
                shelf.rename(replaced)
            part.rename(shelf)
            for changed in (shelf.parent, shelf.parent.parent):
                sync_folder(changed)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def _failing_is_unreachable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PeerUnreachable(f"cannot write: {error.strerror}") from error
