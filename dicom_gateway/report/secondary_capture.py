"""A picture of ours as a Secondary Capture image (PS3.3 A.8.1), which every PACS shows."""

from highdicom.sc import SCImage
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_gateway.report.instance import finish, instance_arguments
from dicom_gateway.report.stored import StoredResult
from imaging.render import Rgb


def secondary_capture(
    result: StoredResult, picture: Rgb, kind: str, series_number: int, description: str, number: int = 1
) -> Dataset:
    """The RGB picture (rows, columns, 3) as instance `number` of the series of its `kind` and description."""
    report, source = result.report, result.headers.first
    ds = SCImage(
        pixel_array=picture,
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
        **instance_arguments(result, kind, series_number, number),
    )
    ds.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    ds.LossyImageCompression = "00"  # finish() knows better where the source lost something
    ds.DerivationDescription = result.edition.language.told(report.disclaimer)
    # Makes Laterality (2C, PS3.3 C.7.3.1) not required: the chest is not a paired part.
    ds.BodyPartExamined = "CHEST"
    return finish(ds, result, description)
