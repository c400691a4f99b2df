"""The printed report as an Encapsulated PDF (PS3.3 A.45.1), for archives that keep documents."""

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from dicom_gateway.report import codes
from dicom_gateway.report.instance import finish, instance_arguments
from dicom_gateway.report.printed import TITLE
from dicom_gateway.report.stored import StoredResult

SERIES_NUMBER = 9009
SERIES_DESCRIPTION = "AI chest CT report"


def encode_pdf(result: StoredResult) -> tuple[Dataset]:
    """Encapsulated PDF of the report; the same result gives the same bytes."""
    # Not every analysis prints: ReportLab is loaded where one does.
    from dicom_gateway.report.pdf_pages import draw_pdf

    headers, language = result.headers, result.edition.language
    source = headers.first
    shared = instance_arguments(result, "PDF", SERIES_NUMBER)
    document = draw_pdf(result.report, source, result.key_images, language)
    ds = Dataset()
    ds.SpecificCharacterSet = shared["specific_character_set"]
    ds.SOPClassUID = EncapsulatedPDFStorage
    ds.SOPInstanceUID = shared["sop_instance_uid"]
    ds.SeriesInstanceUID = shared["series_instance_uid"]
    for keyword in ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
        setattr(ds, keyword, source.get(keyword))
    for keyword in ("PatientID", "PatientBirthDate", "PatientSex"):
        setattr(ds, keyword, source.get(keyword))
    ds.Modality = "DOC"
    ds.SeriesNumber = shared["series_number"]
    ds.InstanceNumber = shared["instance_number"]
    ds.SeriesDate = ds.ContentDate = shared["content_date"].strftime("%Y%m%d")
    ds.SeriesTime = ds.ContentTime = shared["content_time"].strftime("%H%M%S")
    # Type 2: the page shows more than one acquisition can say.
    ds.AcquisitionDateTime = None
    ds.Manufacturer = shared["manufacturer"]
    ds.ManufacturerModelName = shared["manufacturer_model_name"]
    ds.SoftwareVersions = shared["software_versions"]
    ds.DeviceSerialNumber = shared["device_serial_number"]
    ds.ContentQualification = shared["content_qualification"]
    ds.ConversionType = "SYN"
    ds.BurnedInAnnotation = "YES"
    ds.VerificationFlag = "VERIFIED" if result.report.verification else "UNVERIFIED"
    title = "{title} (AI, verified)" if result.report.verification else "{title} (AI, unverified)"
    ds.DocumentTitle = language.say(title, title=language.say(TITLE))
    ds.ConceptNameCodeSequence = [_code(codes.DIAGNOSTIC_IMAGING_REPORT)]
    ds.SourceInstanceSequence = [_reference(header) for header in headers.instances]
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.EncapsulatedDocumentLength = len(document)
    ds.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return (finish(ds, result, SERIES_DESCRIPTION),)


def _code(entry: codes.CodeEntry) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = entry.value, entry.scheme, entry.meaning
    return item


def _reference(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item
