"""Small valid DICOM data sets for tests."""

from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from imaging.uids import derive_uid


def make_ct_dataset(**overrides: Any) -> Dataset:
    """A valid small axial CT slice (16 x 16, HU around -1000), as a PS3.10 data set that can be saved.

    Keyword arguments are DICOM keywords; None leaves an element out. `InstanceNumber` n puts the slice at z = n mm
    and makes its SOP Instance UID, so that slices of one study differ by it alone.
    """
    number = int(overrides.get("InstanceNumber") or 1)
    study = str(overrides.get("StudyInstanceUID") or derive_uid("test study"))
    series = str(overrides.get("SeriesInstanceUID") or derive_uid("test series", study))
    pixels = np.full((16, 16), 24, np.int16) + (np.arange(16, dtype=np.int16) + number)
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": derive_uid("test instance", series, str(number)),
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "FrameOfReferenceUID": derive_uid("test frame", study),
        "PositionReferenceIndicator": "",
        "PatientName": "Test^Patient",
        "PatientID": "TEST-1",
        "PatientBirthDate": "19600101",
        "PatientSex": "O",
        "StudyDate": "20260101",
        "StudyTime": "120000",
        "StudyID": "1",
        "StudyDescription": "CT CHEST",
        "AccessionNumber": "ACC1",
        "ReferringPhysicianName": "",
        "Modality": "CT",
        "Manufacturer": "OneScan tests",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "BodyPartExamined": "CHEST",
        "SeriesNumber": 1,
        "InstanceNumber": number,
        "AcquisitionNumber": 1,
        "KVP": 120,
        "SliceThickness": 1,
        "ImagePositionPatient": [-8, -8, number],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PatientPosition": "HFS",
        "PixelSpacing": [1, 1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": 16,
        "Columns": 16,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
        "RescaleType": "HU",
        "PixelData": pixels.tobytes(),
    }
    data_set = Dataset()
    for keyword, value in (values | overrides).items():
        if value is not None:
            setattr(data_set, keyword, value)
    return _as_file(data_set)


def save_ct(path: Any, **overrides: Any) -> Dataset:
    """Write `make_ct_dataset(**overrides)` to a path or stream; the data set."""
    data_set = make_ct_dataset(**overrides)
    data_set.save_as(path, enforce_file_format=True)
    return data_set


def _as_file(data_set: Dataset) -> Dataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = data_set.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = data_set.get("SOPInstanceUID", "1.2.3")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data_set.file_meta = meta
    return data_set
