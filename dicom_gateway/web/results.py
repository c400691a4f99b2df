"""Files of a written report, found by its row and never by a path of the request."""

import re
from pathlib import Path

from pydantic import ValidationError

from dicom_gateway.errors import NotFound
from dicom_gateway.report.content import Report
from dicom_gateway.settings import Settings
from dicom_gateway.store.files import REPORT_NAME, SEGMENTS_NAME, SR_NAME, SUMMARY_NAME
from dicom_gateway.store.index import ReportRow

MEDIA_TYPES = {".json": "application/json", ".png": "image/png", ".dcm": "application/dicom"}
_DICOM_OBJECTS = {SR_NAME: "SR (DICOM)", SUMMARY_NAME: "Summary (DICOM)", SEGMENTS_NAME: "Segments (DICOM)"}
# What is too large for one object has further parts: "2_segments.seg.dcm".
SERVED_NAME = rf"^(key_[0-9]{{1,4}}\.png|([0-9]{{1,3}}_)?({'|'.join(map(re.escape, _DICOM_OBJECTS))}))$"


def dicom_objects(settings: Settings, row: ReportRow) -> dict[str, str]:
    """The DICOM files of a report that are there, with the words for them."""
    folder = settings.data_dir / row.folder
    found: dict[str, str] = {}
    for name, words in _DICOM_OBJECTS.items():
        parts = sorted(folder.glob(f"*_{name}"), key=lambda path: (len(path.name), path.name))
        whole = [folder / name] if (folder / name).is_file() else []
        found |= {path.name: words if n == 1 else f"{words} {n}" for n, path in enumerate([*whole, *parts], start=1)}
    return found


def result_file(settings: Settings, row: ReportRow, name: str) -> Path:
    """The file `name` of a report. Raises NotFound when it is not there or would lie outside the results."""
    path = (settings.data_dir / row.folder / name).resolve()
    if not path.is_relative_to(settings.results_dir.resolve()) or not path.is_file():
        raise NotFound("This report has no such file.")
    return path


def read_report(settings: Settings, row: ReportRow) -> Report:
    """The stored record. Raises NotFound when it is missing or not one of this version's."""
    try:
        return Report.model_validate_json(result_file(settings, row, REPORT_NAME).read_bytes())
    except (ValidationError, OSError) as error:
        raise NotFound("The stored report is missing or cannot be read.") from error
