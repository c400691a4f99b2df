"""Each key image as a Secondary Capture of its own; above it is written what it shows, and that nobody verified it."""

import numpy as np
from pydicom.dataset import Dataset

from dicom_gateway.report.canvas import DIM, RED, Canvas
from dicom_gateway.report.content import ReportedFinding
from dicom_gateway.report.language import Language
from dicom_gateway.report.printed import caption, warning
from dicom_gateway.report.secondary_capture import secondary_capture
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.report.wording import finding_title
from imaging.render import Rgb

SERIES_NUMBER = 9007
SERIES_DESCRIPTION = "AI chest CT key images"
_MARGIN_PX = 12
_NARROWEST_PX = 512


def encode_key_images(result: StoredResult) -> tuple[Dataset, ...]:
    """A Secondary Capture (RGB, 8 bit) for each finding that has a key image, in the order of the report."""
    shown = [f for f in result.report.findings if f.key_image in result.key_images]
    return tuple(_image(result, finding, number) for number, finding in enumerate(shown, start=1))


def _image(result: StoredResult, finding: ReportedFinding, number: int) -> Dataset:
    language = result.edition.language
    picture = _with_words(
        result.key_images[finding.key_image or ""], finding, warning(result.report, language), language
    )
    ds = secondary_capture(result, picture, "KEY", SERIES_NUMBER, SERIES_DESCRIPTION, number)
    # Slice, side and measurements are written in it; nothing tells whose they are.
    ds.BurnedInAnnotation = "NO"
    ds.ImageComments = finding_title(finding, language)
    _refer_to_source(ds, result, finding)
    return ds


def _with_words(picture: Rgb, finding: ReportedFinding, red_line: str, language: Language) -> Rgb:
    rows, columns, _ = picture.shape
    canvas = Canvas(max(columns, _NARROWEST_PX), _MARGIN_PX)
    canvas.space(_MARGIN_PX)
    canvas.text(red_line, 11, RED, bold=True)
    canvas.text(finding_title(finding, language), 18, bold=True)
    if words := caption(finding, language):
        canvas.text(words, 14, DIM)
    head = canvas.rgb(0)
    below = np.zeros((rows, head.shape[1], 3), np.uint8)
    left = (head.shape[1] - columns) // 2
    below[:, left : left + columns] = picture
    return np.concatenate([head, below])


def _refer_to_source(ds: Dataset, result: StoredResult, finding: ReportedFinding) -> None:
    source = next((h for h in result.headers.instances if h.SOPInstanceUID == finding.key_sop_instance_uid), None)
    if source is None:
        return
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    if finding.key_frame_number is not None:
        reference.ReferencedFrameNumber = finding.key_frame_number
    ds.SourceImageSequence = [reference]
