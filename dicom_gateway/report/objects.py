"""The kinds of result objects by the names that settings use, and the stored record they are made of."""

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset

from dicom_gateway.report.content import Report, SupersededReport
from dicom_gateway.report.edition import PLAIN, Edition
from dicom_gateway.report.key_image_objects import encode_key_images
from dicom_gateway.report.key_objects import encode_key_objects
from dicom_gateway.report.key_slices import is_marked
from dicom_gateway.report.marks import encode_marks
from dicom_gateway.report.outlines import Outlines, read_outlines
from dicom_gateway.report.pdf import encode_pdf
from dicom_gateway.report.presentation import encode_presentation
from dicom_gateway.report.segmentation import encode_labelmap, encode_seg
from dicom_gateway.report.source_headers import read_source_headers
from dicom_gateway.report.sr import encode_sr
from dicom_gateway.report.sr_fallbacks import encode_basic_text_sr, encode_comprehensive_sr, encode_enhanced_sr
from dicom_gateway.report.stored import Encoder, StoredResult
from dicom_gateway.report.summary import encode_summary
from dicom_gateway.store.files import OUTLINES_NAME, REPORT_NAME
from imaging.render import Rgb

__all__ = ["ENCODERS", "Encoder", "StoredResult", "encode_beside", "part_10", "read_result", "read_superseded"]

ENCODERS: Mapping[str, Encoder] = {
    "sr": encode_sr,
    "sc": encode_summary,
    "seg": encode_seg,
    "seg_labelmap": encode_labelmap,
    "marks": encode_marks,
    "key_images": encode_key_images,
    "ko": encode_key_objects,
    "gsps": encode_presentation,
    "pdf": encode_pdf,
    "sr_comprehensive": encode_comprehensive_sr,
    "sr_enhanced": encode_enhanced_sr,
    "sr_text": encode_basic_text_sr,
}


def encode_beside(held: Collection[str], name: str, result: StoredResult) -> tuple[Dataset, ...]:
    """The objects of kind `name` for whoever has those of the kinds `held`: they refer to no others."""
    return ENCODERS[name](replace(result, beside_segmentations="seg" in held))


def read_result(folder: Path, source_files: Sequence[Path], edition: Edition = PLAIN) -> StoredResult:
    """The stored record in a result folder, with the headers of the files that were analysed.

    Raises OSError or ValueError (a pydantic.ValidationError is one) when the record is missing or damaged, and
    UnreadableInstance when an image that was analysed cannot be read again. Older records have no outlines.
    """
    report, outlines = _read_record(folder)
    names = dict.fromkeys(f.key_image for f in report.findings if f.key_image)
    return StoredResult(
        report=report,
        headers=read_source_headers(source_files, report.series_instance_uid, outlines.analysed_instances),
        outlines=outlines,
        key_images={name: _picture(folder / name) for name in names},
        edition=edition,
    )


def read_superseded(folder: Path, study_instance_uid: str, revision: int) -> SupersededReport | None:
    """The newest finished report of the study before `revision`, in whose result folder the next one will stand.

    None where there is none (earlier revisions may have failed or not been analysed) and where that one is damaged or
    of another study: nothing can be said of it then.
    """
    folders = (folder.with_name(f"r{number}") for number in range(revision - 1, 0, -1))
    newest = next((earlier for earlier in folders if (earlier / REPORT_NAME).exists()), None)
    if newest is None:
        return None
    try:
        report, outlines = _read_record(newest)
    except ValueError:
        return None
    if report.study_instance_uid != study_instance_uid or report.revision >= revision:
        return None
    return SupersededReport(
        revision=report.revision,
        report_uid=report.report_uid,
        content_sha256=report.content_sha256,
        marked=is_marked(report, outlines),
        verified=report.verification is not None,
    )


def _read_record(folder: Path) -> tuple[Report, Outlines]:
    report = Report.model_validate_json((folder / REPORT_NAME).read_bytes())
    written = folder / OUTLINES_NAME
    return report, read_outlines(written.read_bytes()) if written.exists() else Outlines()


def _picture(path: Path) -> Rgb:
    with Image.open(path, formats=["PNG"]) as picture:
        return np.asarray(picture.convert("RGB"), np.uint8)


def part_10(ds: Dataset) -> bytes:
    """The object as a DICOM file (PS3.10)."""
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
