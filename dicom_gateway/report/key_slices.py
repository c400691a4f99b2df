"""The source slices that a result points at: which finding is shown where, and the line around it."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset

from dicom_gateway.report.content import Report, ReportedFinding
from dicom_gateway.report.outlines import Outlines
from dicom_gateway.report.segmentation import outlined_findings
from dicom_gateway.report.stored import StoredResult
from imaging.contour import Polygon, outer_polygons
from imaging.lungs import Mask

_SHOWN = ("present", "indeterminate")


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """The outlines of one finding on its key slice, as closed polygons of (column, row) (see imaging.contour).

    `slice_index` is that of the analysed grid; `frame_number` is None but for an Enhanced CT.
    """

    finding: ReportedFinding
    source: Dataset
    frame_number: int | None
    slice_index: int
    polygons: tuple[Polygon, ...]


def marks_of(result: StoredResult) -> tuple[Mark, ...]:
    """A mark for each outlined finding that is present or indeterminate, in the order of the report."""
    by_uid = {str(header.SOPInstanceUID): header for header in result.headers.instances}
    marks = []
    for finding, z, plane in _on_key_slices(result.report, result.outlines):
        source = by_uid.get(finding.key_sop_instance_uid or "")
        if source is not None:
            marks.append(Mark(finding, source, finding.key_frame_number, z, outer_polygons(plane)))
    return tuple(marks)


def is_marked(report: Report, outlines: Outlines) -> bool:
    """Whether anything is outlined on its key slice; the source images are not needed to know."""
    return any(True for _ in _on_key_slices(report, outlines))


def _on_key_slices(report: Report, outlines: Outlines) -> Iterator[tuple[ReportedFinding, int, Mask]]:
    """Finding, index of its key slice and its outline there."""
    grid = outlines.grid
    if grid is None:
        return
    for finding in outlined_findings(report, outlines):
        z = finding.key_slice
        if finding.presence not in _SHOWN or z is None:
            continue
        plane = outlines.by_tracking_uid[finding.tracking_uid].plane(z, (grid.rows, grid.columns))
        if plane.any():
            yield finding, z, plane


def key_slices_of(result: StoredResult) -> tuple[tuple[Dataset, tuple[int, ...]], ...]:
    """The instances that show a finding that is present or indeterminate, once each, with frame numbers if any."""
    by_uid = {str(header.SOPInstanceUID): header for header in result.headers.instances}
    frames: dict[str, list[int]] = {}
    for finding in result.report.findings:
        uid = finding.key_sop_instance_uid
        if uid is None or uid not in by_uid or finding.presence not in _SHOWN:
            continue
        numbers = frames.setdefault(uid, [])
        if finding.key_frame_number is not None and finding.key_frame_number not in numbers:
            numbers.append(finding.key_frame_number)
    return tuple((by_uid[uid], tuple(sorted(numbers))) for uid, numbers in frames.items())
