"""Segmentations and marks lie where the lesions are, on any grid, as highdicom, SimpleITK and plain arithmetic read."""

import io
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage

from dicom_gateway.report import segmentation
from dicom_gateway.report.content import Report, ReportedFinding, ReportedModel
from dicom_gateway.report.marks import encode_marks
from dicom_gateway.report.objects import part_10
from dicom_gateway.report.outlines import Outlines, outlines_of
from dicom_gateway.report.segmentation import encode_labelmap, encode_seg, segments_by_tracking_uid
from dicom_gateway.report.source_headers import SourceHeaders
from dicom_gateway.report.sr import encode_sr
from dicom_gateway.report.stored import StoredResult
from imaging.headers import Slice
from imaging.volume import order_slices
from models.findings import EvidenceGrade, Finding, FindingKind, Presence, Region

SHAPE = (14, 37, 43)
ANGLE = np.deg2rad(25)
OBLIQUE = (np.cos(ANGLE), 0.0, np.sin(ANGLE), 0.0, 1.0, 0.0)
GRIDS = {
    "axial": ((1.0, 0, 0, 0, 1.0, 0), 3.0, (1.0, 1.0)),
    "anisotropic": ((1.0, 0, 0, 0, 1.0, 0), 5.0, (0.61, 0.87)),
    "oblique": (OBLIQUE, 2.5, (0.8, 0.8)),
    "flipped in the plane": ((-1.0, 0, 0, 0, -1.0, 0), 3.0, (1.0, 1.2)),
    "flipped rows, oblique": ((-OBLIQUE[0], 0, -OBLIQUE[2], 0, 1.0, 0), 4.0, (0.7, 0.9)),
    "coronal": ((1.0, 0, 0, 0, 0, -1.0), 3.0, (1.0, 0.9)),
}
# Centre as a fraction of the grid and radii in mm of two lesions that overlap, and one that does not.
LESIONS = (((0.4, 0.5, 0.4), 7.0), ((0.5, 0.55, 0.5), 6.0), ((0.75, 0.2, 0.85), 3.5))


# How many instances hold the frames of an Enhanced CT.
MULTI_FRAME = pytest.mark.parametrize("frames", [0, 1, 2], ids=["single frames", "enhanced", "enhanced, two instances"])


def slices_of(name: str, *, frames: int = 0, columns: int = SHAPE[2]) -> list[Slice]:
    """Single images, or the frames of so many multi-frame instances, one below the other."""
    orientation, step_mm, spacing_mm = GRIDS[name]
    in_instance = SHAPE[0] // (frames or 1)
    normal = np.cross(orientation[:3], orientation[3:])
    return [
        Slice(
            path=Path(f"{i}.dcm"),
            sop_instance_uid=f"1.2.3.1.{i // in_instance + 1 if frames else i + 1}",
            sop_class_uid=EnhancedCTImageStorage if frames else CTImageStorage,
            # The first two frames of an Enhanced CT are localizers and not analysed.
            frame_number=i % in_instance + 3 if frames else None,
            instance_number=i + 1,
            image_type=("ORIGINAL",),
            acquisition_number=1,
            frame_of_reference_uid="1.2.3.9",
            image_position_patient=tuple(map(float, np.array([-20.5, 11.25, 100.0]) - normal * step_mm * i)),  # type: ignore[arg-type]
            image_orientation_patient=tuple(map(float, orientation)),
            pixel_spacing_mm=spacing_mm,
            rows=SHAPE[1],
            columns=columns,
            slice_thickness_mm=step_mm,
            rescale_slope=1.0,
            rescale_intercept=0.0,
        )
        for i in range(SHAPE[0])
    ]


def points_mm(position, orientation, spacing_mm, rows: int, columns: int) -> np.ndarray:
    """(rows, columns, 3) voxel centres of one image by the equation of PS3.3 C.7.6.2.1.1."""
    along_row, along_column = np.reshape(np.asarray(orientation, float), (2, 3))
    r, c = np.mgrid[0:rows, 0:columns]
    return (
        np.asarray(position, float)
        + np.multiply.outer(c * spacing_mm[1], along_row)
        + np.multiply.outer(r * spacing_mm[0], along_column)
    )


def voxels_mm(slices: list[Slice]) -> np.ndarray:
    return np.stack(
        [
            points_mm(s.image_position_patient, s.image_orientation_patient, s.pixel_spacing_mm, s.rows, s.columns)
            for s in slices
        ]
    )


def make_result(slices: list[Slice]) -> tuple[StoredResult, dict[str, np.ndarray], list[Slice]]:
    """A result with three lesions, and where each truly is: (n, 3) points in mm by tracking UID."""
    ordered = list(order_slices(slices))
    points = voxels_mm(ordered)
    findings, truth, reported = [], {}, []
    for n, (fractions, radius_mm) in enumerate(LESIONS, start=1):
        index = [round(f * (size - 1)) for f, size in zip(fractions, points.shape[:3], strict=True)]
        inside = np.linalg.norm(points - points[tuple(index)], axis=3) <= radius_mm
        bounds = [(int(a.min()), int(a.max()) + 1) for a in np.nonzero(inside)]
        box = tuple(slice(a, b) for a, b in bounds)
        uid = f"2.25.77{n}"
        truth[uid] = points[inside]
        findings.append(
            Finding(
                kind=FindingKind.PULMONARY_NODULE,
                presence=Presence.PRESENT,
                tracking_uid=uid,
                evidence_grade=EvidenceGrade.C,
                method="made up",
                lesion=n,
                region=Region(
                    centre_mm=tuple(map(float, points[tuple(index)])),  # type: ignore[arg-type]
                    box=box,  # type: ignore[arg-type]
                    mask=inside[box],
                    key_slice=index[0],
                ),
            )
        )
        reported.append(_reported(findings[-1], ordered))
    report = Report(
        report_uid="2.25.1",
        study_instance_uid="1.2.3",
        series_instance_uid="1.2.3.1",
        revision=1,
        created=datetime(2026, 1, 10, tzinfo=UTC),
        software_version="0.1.0",
        model=ReportedModel(name="onescan-chest", version="0.1.0", sha256="ab" * 32),
        outcome="reported",
        refusal=None,
        analysed_series=None,
        quality=(),
        rejected_series=(),
        unreadable_file_count=0,
        findings=tuple(reported),
        timings_s={},
    )
    return StoredResult(report=report, headers=_headers(slices), outlines=outlines_of(findings, slices)), truth, ordered


def _reported(finding: Finding, ordered: list[Slice]) -> ReportedFinding:
    assert finding.region is not None
    key = ordered[finding.region.key_slice]
    return ReportedFinding(
        kind=finding.kind,
        presence="present",
        probability=None,
        operating_point=None,
        reason=None,
        laterality=None,
        site=None,
        evidence_grade="C",
        method="made up",
        tracking_uid=finding.tracking_uid,
        lesion=finding.lesion,
        measurements=(),
        key_sop_instance_uid=key.sop_instance_uid,
        key_frame_number=key.frame_number,
        key_slice=finding.region.key_slice,
        key_image=None,
        centre_mm=finding.region.centre_mm,
    )


def _headers(slices: list[Slice]) -> SourceHeaders:
    headers = []
    for uid, sop_class in dict.fromkeys((s.sop_instance_uid, s.sop_class_uid) for s in slices):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = sop_class, uid
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.3.1", "1.2.3.9"
        for keyword in ("PatientName", "PatientID", "AccessionNumber", "StudyID", "ReferringPhysicianName"):
            setattr(ds, keyword, "")
        ds.StudyDate = ds.StudyTime = ds.PatientBirthDate = ds.PatientSex = ""
        ds.Modality, ds.SpecificCharacterSet = "CT", "ISO_IR 192"
        headers.append(ds)
    return SourceHeaders(tuple(headers))


def read_back(ds: Dataset) -> Dataset:
    return dcmread(io.BytesIO(part_10(ds)))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Of two sets of (n, 3) points in mm; points nearer than 0.005 mm are the same."""
    first, second = ({tuple(p) for p in np.rint(points * 100).astype(int).tolist()} for points in (a, b))
    return 2 * len(first & second) / (len(first) + len(second))


def planes_of(ds: Dataset) -> np.ndarray:
    """(frames, rows, columns), also of a single frame."""
    return ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)


def stored_points(ds: Dataset, number: int) -> np.ndarray:
    """Where the voxels of a segment are, from the functional groups of its frames alone."""
    shared = ds.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    spacing_mm = shared.PixelMeasuresSequence[0].PixelSpacing
    found = []
    for frame, pixels in zip(ds.PerFrameFunctionalGroupsSequence, planes_of(ds), strict=True):
        assert pixels.any(), "a frame without a voxel of its segment"
        groups = frame if "SegmentIdentificationSequence" in frame else shared
        if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            position = frame.PlanePositionSequence[0].ImagePositionPatient
            found.append(points_mm(position, orientation, spacing_mm, ds.Rows, ds.Columns)[pixels > 0])
    return np.concatenate(found)


@MULTI_FRAME
@pytest.mark.parametrize("name", GRIDS)
def test_every_segment_lies_on_its_lesion(name: str, frames: int) -> None:
    """In frames of 1591 pixels, so that they begin inside a byte."""
    result, truth, _ = make_result(slices_of(name, frames=frames))
    (ds,) = map(read_back, encode_seg(result))
    assert [str(s.TrackingUID) for s in ds.SegmentSequence] == list(truth)
    for number, points in enumerate(truth.values(), start=1):
        assert dice(stored_points(ds, number), points) == 1.0


@pytest.mark.parametrize("name", GRIDS)
def test_highdicom_puts_the_segments_where_the_lesions_are(name: str) -> None:
    result, truth, _ = make_result(slices_of(name))
    seg = hd.seg.segread(io.BytesIO(part_10(*encode_seg(result))))
    for number, points in enumerate(truth.values(), start=1):
        volume = seg.get_volume(segment_numbers=[number], combine_segments=True)
        indices = np.argwhere(volume.array > 0)
        assert dice(volume.map_indices_to_reference(indices), points) > 0.99


@pytest.mark.parametrize("name", GRIDS)
def test_simpleitk_puts_the_segments_where_the_lesions_are(name: str, tmp_path: Path) -> None:
    """One lesion a file, since SimpleITK takes the frames of a Segmentation as the slices of one image; in frames of
    whole bytes, since it sets the last bits of others (as of 2.5)."""
    result, truth, _ = make_result(slices_of(name, columns=40))
    for uid, points in truth.items():
        alone = replace(result, outlines=Outlines(result.outlines.grid, {uid: result.outlines.by_tracking_uid[uid]}))
        path = tmp_path / f"{uid}.dcm"
        path.write_bytes(part_10(*encode_seg(alone)))
        image = sitk.ReadImage(str(path))
        indices = np.argwhere(sitk.GetArrayFromImage(image) > 0)[:, ::-1]
        found = np.array([image.TransformIndexToPhysicalPoint(i) for i in indices.tolist()])
        assert dice(found, points) > 0.99


def inside(corners: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) pixels whose centres are inside a closed polyline of (column, row), 0 at the corner of the first
    pixel (PS3.3 C.18.6.1), by the even-odd rule."""
    row, column = np.mgrid[0:rows, 0:columns] + 0.5
    crossed = np.zeros((rows, columns), dtype=int)
    for (x0, y0), (x1, y1) in pairwise(corners.tolist()):
        if y0 != y1:
            crossed += ((y0 > row) != (y1 > row)) & (column < x0 + (row - y0) * (x1 - x0) / (y1 - y0))
    return crossed % 2 == 1


@MULTI_FRAME
@pytest.mark.parametrize("name", GRIDS)
def test_marks_lie_on_the_lesions_of_the_slice_they_name(name: str, frames: int) -> None:
    """As highdicom reads them; where a slice lies is taken from the source, not from the order of the slices."""
    slices = slices_of(name, frames=frames)
    result, truth, _ = make_result(slices)
    planes = {
        (s.sop_instance_uid, s.frame_number): (s, plane) for s, plane in zip(slices, voxels_mm(slices), strict=True)
    }
    groups = hd.sr.srread(io.BytesIO(part_10(*encode_marks(result)))).content.get_planar_roi_measurement_groups()
    assert [group.tracking_uid for group in groups] == list(truth)
    for group in groups:
        (image,) = group.roi.ContentSequence
        (reference,) = image.ReferencedSOPSequence
        source, plane = planes[reference.ReferencedSOPInstanceUID, reference.get("ReferencedFrameNumber")]
        normal = np.cross(*np.reshape(source.image_orientation_patient, (2, 3)))
        above_mm = (truth[group.tracking_uid] - source.image_position_patient) @ normal
        expected = truth[group.tracking_uid][np.abs(above_mm) < 0.01]
        assert dice(plane[inside(group.roi.value, source.rows, source.columns)], expected) > 0.99


@MULTI_FRAME
def test_a_frame_refers_to_the_slice_it_lies_in(frames: int) -> None:
    """And the object names every instance of the source once."""
    result, _, ordered = make_result(slices_of("flipped rows, oblique", frames=frames))
    at = {(s.sop_instance_uid, s.frame_number): s.image_position_patient for s in ordered}
    for ds in map(read_back, (*encode_seg(result), *encode_labelmap(result))):
        for frame in ds.PerFrameFunctionalGroupsSequence:
            source = frame.DerivationImageSequence[0].SourceImageSequence[0]
            position = at[source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")]
            assert frame.PlanePositionSequence[0].ImagePositionPatient == pytest.approx(position, abs=1e-6)
        (series,) = ds.ReferencedSeriesSequence
        for references in (series.ReferencedInstanceSequence, ds.SourceImageSequence):
            named = [(item.ReferencedSOPInstanceUID, item.ReferencedSOPClassUID) for item in references]
            assert named == list(dict.fromkeys((s.sop_instance_uid, s.sop_class_uid) for s in ordered))


def test_the_order_of_the_files_changes_nothing() -> None:
    slices = slices_of("oblique")
    forward, backward = (make_result(s)[0] for s in (slices, slices[::-1]))
    same_headers = replace(backward, headers=forward.headers)
    assert [part_10(ds) for ds in encode_seg(forward)] == [part_10(ds) for ds in encode_seg(same_headers)]


def test_overlap_is_said() -> None:
    result, truth, _ = make_result(slices_of("axial"))
    assert encode_seg(result)[0].SegmentsOverlap == "YES"
    apart = {uid: result.outlines.by_tracking_uid[uid] for uid in list(truth)[::2]}
    assert encode_seg(replace(result, outlines=Outlines(result.outlines.grid, apart)))[0].SegmentsOverlap == "NO"


def test_nothing_outlined_or_no_frame_of_reference_is_no_segmentation() -> None:
    result, _, _ = make_result(slices_of("axial"))
    assert result.outlines.grid is not None
    unplaced = replace(result.outlines, grid=replace(result.outlines.grid, frame_of_reference_uid=None))
    for outlines in (Outlines(), Outlines(result.outlines.grid, {}), unplaced):
        assert encode_seg(replace(result, outlines=outlines)) == ()


def label_points(ds: Dataset) -> dict[str, np.ndarray]:
    """Where the voxels of each segment of a label map are by tracking UID, read by pydicom."""
    shared = ds.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    spacing_mm = shared.PixelMeasuresSequence[0].PixelSpacing
    labels = planes_of(ds)
    positions = [f.PlanePositionSequence[0].ImagePositionPatient for f in ds.PerFrameFunctionalGroupsSequence]
    points = np.stack([points_mm(p, orientation, spacing_mm, ds.Rows, ds.Columns) for p in positions])
    assert labels.any(axis=(1, 2)).all(), "a frame without a label"
    assert set(np.unique(labels)) == {int(s.SegmentNumber) for s in ds.SegmentSequence}
    return {str(s.TrackingUID): points[labels == s.SegmentNumber] for s in ds.SegmentSequence if s.SegmentNumber}


def joined(parts: list[Dataset]) -> dict[str, np.ndarray]:
    """Points of each segment of several label maps; no voxel of it may be in two of them."""
    by_uid: dict[str, list[np.ndarray]] = {}
    for ds in parts:
        for uid, points in label_points(ds).items():
            by_uid.setdefault(uid, []).append(points)
    return {uid: np.concatenate(of_one) for uid, of_one in by_uid.items()}


@MULTI_FRAME
@pytest.mark.parametrize("name", GRIDS)
def test_label_maps_lose_nothing_where_lesions_overlap(name: str, frames: int) -> None:
    result, truth, _ = make_result(slices_of(name, frames=frames))
    maps = [read_back(ds) for ds in encode_labelmap(result)]
    assert [ds.SegmentsOverlap for ds in maps] == ["NO", "NO"]
    found = joined(maps)
    assert found.keys() == truth.keys()
    for uid, points in truth.items():
        assert dice(found[uid], points) == 1.0
        assert len(found[uid]) == len(points)


@pytest.mark.parametrize("name", GRIDS)
def test_highdicom_reads_the_label_maps(name: str) -> None:
    result, truth, _ = make_result(slices_of(name))
    for ds in encode_labelmap(result):
        seg = hd.seg.segread(io.BytesIO(part_10(ds)))
        volume = seg.get_volume(combine_segments=True)
        for segment in seg.SegmentSequence[1:]:
            indices = np.argwhere(volume.array == segment.SegmentNumber)
            assert dice(volume.map_indices_to_reference(indices), truth[segment.TrackingUID]) > 0.99


def test_the_segments_of_a_label_map_are_those_of_the_binary_segmentation() -> None:
    result, _, _ = make_result(slices_of("axial"))
    said = ("TrackingUID", "TrackingID", "SegmentLabel", "SegmentedPropertyTypeCodeSequence", "SegmentAlgorithmType")
    binary, labels = (
        {
            s.TrackingUID: [s[k].value for k in said]
            for ds in encode(result)
            for s in ds.SegmentSequence
            if "TrackingUID" in s
        }
        for encode in (encode_seg, encode_labelmap)
    )
    assert binary == labels
    first, again = ([part_10(ds) for ds in encode_labelmap(result)] for _ in range(2))
    assert first == again


def test_no_label_map_grows_past_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    result, truth, _ = make_result(slices_of("axial"))
    limit = 8_000
    assert max(len(part_10(ds)) for ds in encode_labelmap(result)) > limit
    monkeypatch.setattr(segmentation, "LARGEST_OBJECT_BYTES", limit)
    parts = [read_back(ds) for ds in encode_labelmap(result)]
    assert max(len(part_10(ds)) for ds in parts) <= limit
    assert len({ds.SeriesInstanceUID for ds in parts}) == 1
    assert len({ds.SOPInstanceUID for ds in parts}) == len(parts)
    found = joined(parts)
    for uid, points in truth.items():
        assert dice(found[uid], points) == 1.0
        assert len(found[uid]) == len(points)


def test_a_segment_too_large_for_one_object_is_divided_by_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    result, truth, _ = make_result(slices_of("axial"))
    uid = next(iter(truth))
    alone = replace(result, outlines=Outlines(result.outlines.grid, {uid: result.outlines.by_tracking_uid[uid]}))
    whole = len(part_10(*encode_seg(alone)))
    assert uid in segments_by_tracking_uid(alone)
    monkeypatch.setattr(segmentation, "LARGEST_OBJECT_BYTES", whole - 1000)
    parts = [read_back(ds) for ds in encode_seg(alone)]
    assert len(parts) > 1
    assert max(len(part_10(ds)) for ds in parts) <= whole - 1000
    assert {str(s.TrackingUID) for ds in parts for s in ds.SegmentSequence} == {uid}
    points = np.concatenate([stored_points(ds, 1) for ds in parts])
    assert dice(points, truth[uid]) == 1.0
    assert len(points) == len(truth[uid])
    # A measurement group has one reference, which would be to a part of the lesion only.
    assert segments_by_tracking_uid(alone) == {}
    (sr,) = encode_sr(alone)
    templates = [
        group.ContentTemplateSequence[0].TemplateIdentifier
        for section in sr.ContentSequence
        if section.ConceptNameCodeSequence[0].CodeValue == "126010"
        for group in section.ContentSequence
    ]
    assert set(templates) == {"1501"}


def test_no_object_grows_past_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    result, truth, _ = make_result(slices_of("axial"))
    whole = len(part_10(*encode_seg(result)))
    monkeypatch.setattr(segmentation, "LARGEST_OBJECT_BYTES", whole - 1)
    parts = [read_back(ds) for ds in encode_seg(result)]
    assert len(parts) > 1
    assert all(len(part_10(ds)) < whole for ds in parts)
    assert len({ds.SeriesInstanceUID for ds in parts}) == 1
    assert [ds.InstanceNumber for ds in parts] == list(range(1, len(parts) + 1))
    by_instance = {str(ds.SOPInstanceUID): ds for ds in parts}
    assert len(by_instance) == len(parts)
    for uid, segment in segments_by_tracking_uid(result).items():
        ds = by_instance[segment.sop_instance_uid]
        assert dice(stored_points(ds, segment.number), truth[uid]) == 1.0
