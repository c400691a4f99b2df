"""The summary page as a Secondary Capture image: the one result that every PACS shows."""

from pydicom.dataset import Dataset

from dicom_gateway.report.page import draw_page
from dicom_gateway.report.secondary_capture import secondary_capture
from dicom_gateway.report.stored import StoredResult

SERIES_NUMBER = 9002
SERIES_DESCRIPTION = "AI chest CT summary"


def encode_summary(result: StoredResult) -> tuple[Dataset]:
    """Secondary Capture (RGB, 8 bit) of the summary page; the same result gives the same bytes."""
    page = draw_page(result.report, result.headers.first.StudyDate, result.key_images, result.edition.language)
    ds = secondary_capture(result, page, "SC", SERIES_NUMBER, SERIES_DESCRIPTION)
    # (0028,0301), PS3.3 C.7.6.1: the page shows the study date and the free text of a series description.
    ds.BurnedInAnnotation = "YES"
    return (ds,)
