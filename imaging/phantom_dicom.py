"""Phantoms as DICOM files: CT Image Storage (PS3.3 A.3), a localizer of the same study, and the truth as JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from imaging.phantom import Phantom, phantom_uid, truth_document

DATE = "20260105"
TIME = "083000"
_STORED_OFFSET = 1024
_KERNEL_NAMES = {"soft": "B30f", "sharp": "B70f"}


def write_phantom(
    phantom: Phantom,
    folder: Path,
    *,
    study_tag: str = "",
    transfer_syntax: UID = ExplicitVRLittleEndian,
    on_slice: Callable[[int, int], None] | None = None,
) -> tuple[Path, ...]:
    """Write one file a slice, lowest slice first, and return their paths.

    UIDs follow from the phantom's seed and `study_tag` alone: the same study twice is a duplicate, another tag is
    another study. A compressed `transfer_syntax` needs an encoder pydicom knows. `on_slice` is told (done, total).
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    total = phantom.volume.hu.shape[0]
    for index in range(total):
        dataset = slice_dataset(phantom, index, study_tag)
        if transfer_syntax.is_encapsulated:
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset.compress(transfer_syntax, generate_instance_uid=False)
        else:
            dataset.file_meta.TransferSyntaxUID = transfer_syntax
        path = folder / f"ct{index + 1:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
        if on_slice is not None:
            on_slice(index + 1, total)
    return tuple(paths)


def write_truth(phantom: Phantom, path: Path) -> None:
    """Write `truth_document` as indented JSON."""
    path.write_text(json.dumps(truth_document(phantom), indent=2) + "\n", encoding="utf-8")


def write_localizer(phantom: Phantom, folder: Path, *, study_tag: str = "") -> Path:
    """Write the frontal localizer ("scout") of the phantom's study as a series of its own and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    hu, geometry = phantom.volume.hu, phantom.volume.geometry
    slice_mm, _, column_mm = geometry.spacing_mm
    attenuation = np.clip(hu.astype(np.float32) + 1000, 0, None).mean(axis=1)[::-1]
    repeats = max(1, round(slice_mm / column_mm))
    picture = np.repeat(attenuation, repeats, axis=0) - 1000
    dataset = study_dataset(phantom, study_tag, "localizer", series_number=1, description="Scout")
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = phantom_uid(phantom.seed, study_tag, "localizer", "instance")
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dataset.InstanceNumber = 1
    _add_plane(dataset, (1, 0, 0, 0, 0, -1), geometry.index_to_patient((hu.shape[0] - 1, 0, 0)))
    dataset.SliceThickness = _decimal(geometry.spacing_mm[1] * hu.shape[1])
    dataset.PixelSpacing = [_decimal(slice_mm / repeats), _decimal(column_mm)]
    _add_ct_image(dataset, phantom)
    # A projection has no Hounsfield units: RescaleType of the CT Image module (PS3.3 C.8.2.1).
    dataset.RescaleType = "US"
    add_pixels(dataset, picture)
    dataset.file_meta = _file_meta(dataset)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / "localizer.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


def slice_dataset(phantom: Phantom, index: int, study_tag: str = "") -> Dataset:
    """The CT Image of slice `index` with its file meta, transfer syntax left open."""
    geometry = phantom.volume.geometry
    slice_mm, row_mm, column_mm = geometry.spacing_mm
    description = f"Chest {slice_mm:.1f} {_KERNEL_NAMES[phantom.kernel]}" + (" CE" if phantom.contrast else "")
    dataset = study_dataset(phantom, study_tag, "series", series_number=2, description=description)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = phantom_uid(phantom.seed, study_tag, "instance", str(index))
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    # Scanners number a chest from the top.
    dataset.InstanceNumber = geometry.shape[0] - index
    corner = geometry.index_to_patient((index, 0, 0))
    _add_plane(dataset, (1, 0, 0, 0, 1, 0), corner)
    dataset.SliceLocation = _decimal(corner[2])
    dataset.SliceThickness = _decimal(slice_mm)
    dataset.PixelSpacing = [_decimal(row_mm), _decimal(column_mm)]
    dataset.ConvolutionKernel = _KERNEL_NAMES[phantom.kernel]
    _add_ct_image(dataset, phantom)
    add_pixels(dataset, phantom.volume.hu[index])
    dataset.file_meta = _file_meta(dataset)
    return dataset


def study_dataset(phantom: Phantom, study_tag: str, series: str, *, series_number: int, description: str) -> Dataset:
    """Patient, study, series, frame of reference and equipment (PS3.3 C.7.1 to C.7.5) of a phantom."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword in ("InstanceCreation", "Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{keyword}Date", DATE)
        setattr(dataset, f"{keyword}Time", TIME)
    dataset.PatientName = f"Phantom^{phantom.seed}"
    dataset.PatientID = f"PHANTOM-{phantom.seed:06d}"
    dataset.PatientBirthDate = "19600101"
    dataset.PatientSex = "O"
    dataset.PatientAge = "066Y"
    dataset.PatientComments = "Synthetic phantom, no real patient"
    dataset.StudyInstanceUID = phantom_uid(phantom.seed, study_tag, "study")
    dataset.SeriesInstanceUID = phantom_uid(phantom.seed, study_tag, series)
    dataset.FrameOfReferenceUID = phantom_uid(phantom.seed, study_tag, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.StudyID = f"P{phantom.seed}"
    dataset.AccessionNumber = f"PH{phantom.seed:08d}"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "CT chest phantom"
    dataset.SeriesDescription = description
    dataset.SeriesNumber = series_number
    dataset.Modality = "CT"
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientPosition = "HFS"
    dataset.Manufacturer = "OneScan"
    dataset.ManufacturerModelName = "Chest phantom"
    dataset.DeviceSerialNumber = "0"
    dataset.SoftwareVersions = "1"
    return dataset


def add_pixels(dataset: Dataset, hu: npt.NDArray[np.generic]) -> None:
    """Image pixel module (PS3.3 C.7.6.3): HU as unsigned 12 bit; `hu` is (rows, columns) or (frames, rows, columns)."""
    stored = np.clip(np.rint(hu).astype(np.int32) + _STORED_OFFSET, 0, 4095).astype("<u2")
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"


def _add_plane(dataset: Dataset, orientation: tuple[int, ...], corner_mm: npt.NDArray[np.float64]) -> None:
    dataset.ImageOrientationPatient = list(orientation)
    dataset.ImagePositionPatient = [_decimal(value) for value in corner_mm]


def _add_ct_image(dataset: Dataset, phantom: Phantom) -> None:
    """CT Image module (PS3.3 C.8.2.1) and the display windows of lung and mediastinum."""
    dataset.AcquisitionNumber = 1
    dataset.KVP = 120
    dataset.RescaleIntercept = -_STORED_OFFSET
    dataset.RescaleSlope = 1
    dataset.RescaleType = "HU"
    dataset.WindowCenter, dataset.WindowWidth = [-600, 40], [1500, 400]
    dataset.WindowCenterWidthExplanation = ["LUNG", "MEDIASTINUM"]
    dataset.BurnedInAnnotation = "NO"
    if phantom.contrast:
        dataset.ContrastBolusAgent = "Synthetic contrast"


def _file_meta(dataset: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return meta


def _decimal(value: float) -> str:
    """Decimal string of at most 16 characters (PS3.5 6.2, DS)."""
    return f"{round(float(value), 6) + 0.0:.10g}"
