"""The summary page as a Secondary Capture image: the one result that every PACS shows."""

from highdicom.sc import SCImage
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_gateway.report.instance import finish, instance_arguments
from dicom_gateway.report.page import draw_page
from dicom_gateway.report.stored import StoredResult

SERIES_NUMBER = 9002
SERIES_DESCRIPTION = "AI chest CT summary (unverified)"


def encode_summary(result: StoredResult) -> tuple[Dataset]:
    """Secondary Capture (RGB, 8 bit) of the summary page; the same result gives the same bytes."""
    report, headers = result.report, result.headers
    source = headers.first
    ds = SCImage(
        pixel_array=draw_page(report, source.StudyDate, result.key_images),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=report.study_instance_uid,
        patient_id=source.PatientID,
        patient_birth_date=source.PatientBirthDate or None,
        patient_sex=source.PatientSex or None,
        accession_number=source.AccessionNumber,
        study_id=source.StudyID,
        study_date=source.StudyDate or None,
        study_time=source.StudyTime or None,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        patient_orientation=("L", "P"),
        **instance_arguments(report, headers, "SC", SERIES_NUMBER),
    )
    ds.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    # (0028,0301), PS3.3 C.7.6.1: the page shows the study date and the free text of a series description.
    ds.BurnedInAnnotation = "YES"
    ds.LossyImageCompression = "00"
    ds.DerivationDescription = report.disclaimer
    # Makes Laterality (2C, PS3.3 C.7.3.1) not required: the chest is not a paired part.
    ds.BodyPartExamined = "CHEST"
    return (finish(ds, report, headers, SERIES_DESCRIPTION),)
