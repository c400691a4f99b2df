"""The source slices that a result points at: which finding is shown where, and the line around it."""

from dataclasses import dataclass

from pydicom.dataset import Dataset

from dicom_gateway.report.content import ReportedFinding
from dicom_gateway.report.segmentation import outlined_findings
from dicom_gateway.report.stored import StoredResult
from imaging.contour import Polygon, outer_polygons

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
    grid = result.outlines.grid
    if grid is None:
        return ()
    by_uid = {str(header.SOPInstanceUID): header for header in result.headers.instances}
    marks = []
    for finding in outlined_findings(result):
        source, z = by_uid.get(finding.key_sop_instance_uid or ""), finding.key_slice
        if finding.presence not in _SHOWN or source is None or z is None:
            continue
        plane = result.outlines.by_tracking_uid[finding.tracking_uid].plane(z, (grid.rows, grid.columns))
        if plane.any():
            marks.append(Mark(finding, source, finding.key_frame_number, z, outer_polygons(plane)))
    return tuple(marks)


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
