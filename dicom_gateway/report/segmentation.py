"""What was outlined as DICOM Segmentations: one segment a lesion or measured organ, BINARY or as label maps.

highdicom would hold every segment of every slice in memory (1.6 GB for 20 segments of 300 x 512 x 512), so it is
given images of one pixel, from which it makes everything but the pixels; those are put in afterwards.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.content import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from dicom_gateway.report import codes
from dicom_gateway.report.content import Report, ReportedFinding
from dicom_gateway.report.edition import Edition
from dicom_gateway.report.instance import (
    MANUFACTURER,
    described,
    finish,
    instance_arguments,
    object_uid,
    private_coding_scheme,
)
from dicom_gateway.report.outlines import Outlined, Outlines, SliceGrid
from dicom_gateway.report.sr_items import concept
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.report.wording import finding_title
from models.findings import FindingKind, Laterality
from models.measure import shared_voxels

CONTENT_LABEL = "AI_FINDINGS"

LARGEST_OBJECT_BYTES = 20_000_000
# Of one label map, so that its labels have 8 bit.
_MOST_LABELS = 255
# What pydicom and the functional groups of one frame take besides its pixels, generously.
_BYTES_A_FRAME = 1_000
_BYTES_A_SEGMENT = 2_000
_BYTES_A_SLICE = 200

# Kinds whose outline is of the organ that was measured, diseased or not.
_ORGAN_KINDS = frozenset(
    {
        FindingKind.AORTIC_DILATATION,
        FindingKind.CARDIOMEGALY,
        FindingKind.PULMONARY_ARTERY_ENLARGEMENT,
        FindingKind.LOW_BONE_DENSITY,
        FindingKind.HEPATIC_STEATOSIS,
    }
)
_RLE = get_encoder(RLELossless)
_SHOWN = ("present", "indeterminate")
_COLOURS = (
    (255, 150, 50),
    (80, 180, 255),
    (120, 220, 120),
    (240, 110, 170),
    (250, 220, 90),
    (170, 130, 255),
    (90, 220, 210),
    (220, 120, 90),
)


@dataclass(frozen=True, slots=True)
class _Form:
    """What tells the two kinds of Segmentations apart; `kind` is a part of their UIDs."""

    kind: str
    segmentation_type: SegmentationTypeValues
    series_number: int
    series_description: str


BINARY = _Form("SEG", SegmentationTypeValues.BINARY, 9003, "AI chest CT segments")
LABELMAP = _Form("LABELMAP", SegmentationTypeValues.LABELMAP, 9008, "AI chest CT label maps")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """One segment: whose outline it is, and the instance and number under which others refer to it.

    `planes` are indices of slices: all that the outline touches, unless it is divided among instances.
    """

    finding: ReportedFinding
    outlined: Outlined
    sop_instance_uid: str
    number: int
    planes: tuple[int, ...]


def encode_seg(result: StoredResult) -> tuple[Dataset, ...]:
    """BINARY Segmentations (PS3.3 A.51) of the outlined findings; the same result gives the same bytes.

    Empty where nothing is outlined or the source has no frame of reference. More than one, in one series, where one
    would be larger than LARGEST_OBJECT_BYTES. Frames exist only where a segment is. Segments may overlap.
    """
    grid = _placed_grid(result)
    objects = () if grid is None else _objects_of_segments(result, grid)
    if grid is None or not objects:
        return ()
    sources = _one_pixel_sources(result, grid)
    made: list[Dataset] = []
    for number, segments in enumerate(objects, start=1):
        ds = _segmentation(result, grid, sources, segments, number, BINARY)
        ds.SegmentsOverlap = "YES" if _overlap(segments) else "NO"
        _put_bits_in(ds, grid, segments)
        _name_frames(ds, result, grid)
        made.append(ds)
    return tuple(made)


def encode_labelmap(result: StoredResult) -> tuple[Dataset, ...]:
    """The same segments as label maps, 8 bit and RLE Lossless; the same result gives the same bytes.

    A label map has one label a voxel: what overlaps lies in different instances, so that nothing of it is lost.
    Uncompressed they would be larger than LARGEST_OBJECT_BYTES, for which compressed ones are divided by slices.
    """
    grid = _placed_grid(result)
    layers = _layers(result) if grid is not None else ()
    if grid is None or not layers:
        return ()
    sources = _one_pixel_sources(result, grid)
    made: list[Dataset] = []
    for layer in layers:
        for frames in _portions(_compressed_planes(layer, result.outlines, grid), grid, len(layer)):
            uid = object_uid(result.report, "sop", LABELMAP.kind, str(len(made) + 1), edition=result.edition)
            segments = _in_frames(layer, result.outlines, frames, uid)
            ds = _segmentation(result, grid, sources, segments, len(made) + 1, LABELMAP)
            ds.file_meta.TransferSyntaxUID = RLELossless
            ds.PixelData = encapsulate([frames[z] for _, z in _frames(ds, grid)])
            ds["PixelData"].is_undefined_length = True
            _name_frames(ds, result, grid)
            made.append(ds)
    return tuple(made)


def segments_by_tracking_uid(result: StoredResult) -> dict[str, Segment]:
    """The segment in a BINARY Segmentation of each finding that has one; none that is divided.

    A measurement group can refer to one segment of one instance (TID 1411).
    """
    grid = _placed_grid(result)
    segments = [s for of_one in _objects_of_segments(result, grid) for s in of_one] if grid is not None else []
    times = Counter(segment.finding.tracking_uid for segment in segments)
    return {s.finding.tracking_uid: s for s in segments if times[s.finding.tracking_uid] == 1}


def _placed_grid(result: StoredResult) -> SliceGrid | None:
    grid = result.outlines.grid
    return None if grid is None or grid.frame_of_reference_uid is None else grid


def _objects_of_segments(result: StoredResult, grid: SliceGrid) -> tuple[tuple[Segment, ...], ...]:
    """The segments of each BINARY instance, in the order of the report; one is divided only if too large for any."""
    frame_bytes = grid.rows * grid.columns // 8 + _BYTES_A_FRAME
    whole = LARGEST_OBJECT_BYTES - _BYTES_A_SLICE * len(grid.sop_instance_uids)
    most_planes = max(1, (whole - _BYTES_A_SEGMENT) // frame_bytes)
    objects: list[list[Segment]] = []
    room = 0
    for finding in outlined_findings(result.report, result.outlines):
        outlined = result.outlines.by_tracking_uid[finding.tracking_uid]
        touched = _planes(outlined)
        for start in range(0, len(touched), most_planes):
            planes = touched[start : start + most_planes]
            size = _BYTES_A_SEGMENT + len(planes) * frame_bytes
            if size > room:
                objects.append([])
                room = whole
            room -= size
            uid = object_uid(result.report, "sop", BINARY.kind, str(len(objects)), edition=result.edition)
            number = len(objects[-1]) + 1
            objects[-1].append(
                Segment(finding=finding, outlined=outlined, sop_instance_uid=uid, number=number, planes=planes)
            )
    return tuple(map(tuple, objects))


def outlined_findings(report: Report, outlines: Outlines) -> tuple[ReportedFinding, ...]:
    """What has a segment: lesions, and answers about the study whose outline is not that of one of their lesions."""
    outlined = [f for f in report.findings if f.tracking_uid in outlines.by_tracking_uid]
    with_lesions = {f.kind for f in outlined if f.lesion is not None}
    return tuple(
        f
        for f in outlined
        if (f.lesion is not None or f.kind not in with_lesions) and (f.presence in _SHOWN or f.kind in _ORGAN_KINDS)
    )


def _planes(outlined: Outlined) -> tuple[int, ...]:
    """Indices of the slices that the outline touches."""
    return tuple(int(z) + outlined.box[0].start for z in np.flatnonzero(outlined.mask.any(axis=(1, 2))))


def _layers(result: StoredResult) -> list[list[ReportedFinding]]:
    """The outlined findings in groups of which none overlaps another of its group, each in the first that takes it."""
    outlines = result.outlines.by_tracking_uid
    layers: list[list[ReportedFinding]] = []
    for finding in outlined_findings(result.report, result.outlines):
        outlined = outlines[finding.tracking_uid]
        free = (
            layer
            for layer in layers
            if len(layer) < _MOST_LABELS and not any(shared_voxels(outlined, outlines[f.tracking_uid]) for f in layer)
        )
        layer = next(free, None)
        if layer is None:
            layers.append(layer := [])
        layer.append(finding)
    return layers


def _compressed_planes(layer: Sequence[ReportedFinding], outlines: Outlines, grid: SliceGrid) -> dict[int, bytes]:
    """The label map of each slice that has a label, RLE Lossless: labels are places in the layer, from 1 on."""
    labelled = [outlines.by_tracking_uid[finding.tracking_uid] for finding in layer]
    compressed = {}
    for z in sorted({z for outlined in labelled for z in _planes(outlined)}):
        plane = np.zeros((grid.rows, grid.columns), np.uint8)
        for label, outlined in enumerate(labelled, start=1):
            if outlined.box[0].start <= z < outlined.box[0].stop:
                plane[outlined.box[1:]][outlined.mask[z - outlined.box[0].start]] = label
        compressed[z] = _RLE.encode(
            plane,
            # The one that is always there: others may make other bytes of the same plane.
            encoding_plugin="pydicom",
            rows=grid.rows,
            columns=grid.columns,
            samples_per_pixel=1,
            bits_allocated=8,
            bits_stored=8,
            pixel_representation=0,
            number_of_frames=1,
            photometric_interpretation="MONOCHROME2",
        )
    return compressed


def _portions(frames: Mapping[int, bytes], grid: SliceGrid, segment_count: int) -> list[dict[int, bytes]]:
    """The frames of each instance, as many as LARGEST_OBJECT_BYTES allows."""
    whole = LARGEST_OBJECT_BYTES - _BYTES_A_SLICE * len(grid.sop_instance_uids) - _BYTES_A_SEGMENT * segment_count
    portions: list[dict[int, bytes]] = []
    room = 0
    for z, content in frames.items():
        size = len(content) + _BYTES_A_FRAME
        if size > room:
            portions.append({})
            room = whole
        room -= size
        portions[-1][z] = content
    return portions


def _in_frames(
    layer: Sequence[ReportedFinding], outlines: Outlines, frames: Collection[int], sop_instance_uid: str
) -> list[Segment]:
    """What of the layer lies in these slices, with the layer's labels, which need not be consecutive."""
    segments = []
    for number, finding in enumerate(layer, start=1):
        outlined = outlines.by_tracking_uid[finding.tracking_uid]
        if planes := tuple(z for z in _planes(outlined) if z in frames):
            segments.append(
                Segment(
                    finding=finding,
                    outlined=outlined,
                    sop_instance_uid=sop_instance_uid,
                    number=number,
                    planes=planes,
                )
            )
    return segments


def _segmentation(
    result: StoredResult,
    grid: SliceGrid,
    sources: Sequence[Dataset],
    segments: Sequence[Segment],
    instance: int,
    form: _Form,
) -> Dataset:
    """Everything but the pixels."""
    report, language = result.report, result.edition.language
    slices = len(grid.sop_instance_uids)
    if form is BINARY:
        touched = np.zeros((slices, 1, 1, len(segments)), np.uint8)
        for index, segment in enumerate(segments):
            touched[segment.planes, 0, 0, index] = 1
    else:
        touched = np.zeros((slices, 1, 1), np.uint8)
        for segment in segments:
            touched[segment.planes, 0, 0] = segment.number
    ds = Segmentation(
        source_images=sources,
        pixel_array=touched,
        segmentation_type=form.segmentation_type,
        segment_descriptions=[_description(segment, report, result.edition) for segment in segments],
        content_label=CONTENT_LABEL,
        content_description=described(form.series_description, report.verification, language),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **instance_arguments(result, form.kind, form.series_number, instance),
    )
    if form is LABELMAP:
        # The label 0, which highdicom adds.
        ds.SegmentSequence[0].SegmentLabel = language.say(ds.SegmentSequence[0].SegmentLabel)
    ds.Rows, ds.Columns = grid.rows, grid.columns
    organization = object_uid(report, "dimensions", form.kind, str(instance), edition=result.edition)
    for item in (*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    ds.CodingSchemeIdentificationSequence = [private_coding_scheme()]
    # highdicom shares these elements with the sources, and finish() would name the persons there, too.
    for keyword in ("PatientName", "ReferringPhysicianName"):
        ds.pop(keyword, None)
    return finish(ds, result, form.series_description)


def _one_pixel_sources(result: StoredResult, grid: SliceGrid) -> list[Dataset]:
    """Headers of the analysed slices as highdicom reads them, one pixel large; one of all frames for an Enhanced CT.

    highdicom takes one multi-frame image only: where the frames come from several, `_name_frames` says from which.
    """
    by_uid = {str(header.SOPInstanceUID): header for header in result.headers.instances}
    thickness_mm = grid.slice_thickness_mm or grid.geometry.spacing_mm[0]
    if any(grid.frame_numbers):
        return [_enhanced_source(by_uid[grid.sop_instance_uids[0]], grid, thickness_mm)]
    sources = []
    for uid, position in zip(grid.sop_instance_uids, grid.positions_mm.tolist(), strict=True):
        source = _source(by_uid[uid], grid)
        source.ImagePositionPatient = position
        source.ImageOrientationPatient = list(grid.image_orientation_patient)
        source.PixelSpacing = list(grid.pixel_spacing_mm)
        source.SliceThickness = thickness_mm
        sources.append(source)
    return sources


def _source(header: Dataset, grid: SliceGrid) -> Dataset:
    source = Dataset()
    source.update(header)
    # The elements are shared with the header: what is assigned below is taken out first, so as not to change it.
    for keyword in ("PatientName", "ReferringPhysicianName", "FrameOfReferenceUID"):
        source.pop(keyword, None)
    # finish() names the persons; highdicom warns with a name in the text if that has one component.
    source.PatientName = source.ReferringPhysicianName = ""
    source.FrameOfReferenceUID = grid.frame_of_reference_uid
    source.Rows = source.Columns = 1
    return source


def _enhanced_source(header: Dataset, grid: SliceGrid, thickness_mm: float) -> Dataset:
    source = _source(header, grid)
    shared = Dataset()
    shared.PlaneOrientationSequence = PlaneOrientationSequence("PATIENT", grid.image_orientation_patient)
    shared.PixelMeasuresSequence = PixelMeasuresSequence(grid.pixel_spacing_mm, thickness_mm)
    source.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for position in grid.positions_mm.tolist():
        frame = Dataset()
        frame.PlanePositionSequence = PlanePositionSequence("PATIENT", position)
        frames.append(frame)
    source.PerFrameFunctionalGroupsSequence = frames
    source.NumberOfFrames = len(frames)
    return source


def _description(segment: Segment, report: Report, edition: Edition) -> SegmentDescription:
    finding, language = segment.finding, edition.language
    kind = codes.KIND_CODES[FindingKind(finding.kind)]
    is_organ = FindingKind(finding.kind) in _ORGAN_KINDS
    is_device = finding.kind == FindingKind.MEDICAL_DEVICE
    category = codes.ANATOMICAL_STRUCTURE if is_organ else codes.ABNORMAL_STRUCTURE
    # Not by the name of a disease that the organ may be free of.
    label = (
        language.say("{site} (measured)", site=language.say(kind.site.meaning))
        if is_organ
        else finding_title(finding, language)
    )
    description = SegmentDescription(
        segment_number=segment.number,
        segment_label=label,
        segmented_property_category=concept(codes.PHYSICAL_OBJECT if is_device else category),
        segmented_property_type=concept(kind.site if is_organ else edition.finding_code(FindingKind(finding.kind))),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=report.model.name,
            family=concept(codes.ARTIFICIAL_INTELLIGENCE),
            version=f"{report.model.version} / {report.software_version}",
            source=MANUFACTURER,
        ),
        tracking_uid=finding.tracking_uid,
        tracking_id=tracking_identifier(finding),
        anatomic_regions=[concept(kind.site)],
        display_color=CIELabColor.from_rgb(*_COLOURS[(segment.number - 1) % len(_COLOURS)]),
    )
    if finding.laterality is not None:
        side = concept(codes.LATERALITY_CODES[Laterality(finding.laterality)])
        description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [side]
    return description


def tracking_identifier(finding: ReportedFinding) -> str:
    """What a person may read in place of the tracking UID: "finding:pulmonary_nodule:2"."""
    return f"finding:{finding.kind}" if finding.lesion is None else f"finding:{finding.kind}:{finding.lesion}"


def _overlap(segments: Sequence[Segment]) -> bool:
    return any(shared_voxels(a.outlined, b.outlined) for a, b in combinations(segments, 2))


def _frames(ds: Dataset, grid: SliceGrid) -> Iterator[tuple[Dataset, int]]:
    """Each frame's functional groups with the index of the slice that it lies in."""
    by_uid = {uid: z for z, uid in enumerate(grid.sop_instance_uids)}
    for frame in ds.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        number = source.get("ReferencedFrameNumber")
        yield frame, by_uid[source.ReferencedSOPInstanceUID] if number is None else int(number) - 1


def _put_bits_in(ds: Dataset, grid: SliceGrid, segments: Sequence[Segment]) -> None:
    """The masks in the order of the frames; bits run on over the borders of frames and bytes (PS3.5 8.1.1)."""
    by_number = {segment.number: segment.outlined for segment in segments}
    shared = ds.SharedFunctionalGroupsSequence[0]
    planes = []
    for frame, z in _frames(ds, grid):
        # A single segment is said once, for all frames.
        groups = frame if "SegmentIdentificationSequence" in frame else shared
        number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        planes.append((by_number[number], z))
    packed = bytearray()
    # Eight frames at a time end with a whole byte.
    for start in range(0, len(planes), 8):
        bits = [o.plane(z, (grid.rows, grid.columns)).ravel() for o, z in planes[start : start + 8]]
        packed += np.packbits(np.concatenate(bits), bitorder="little").tobytes()
    ds.PixelData = bytes(packed) + b"\0" * (len(packed) % 2)


def _name_frames(ds: Dataset, result: StoredResult, grid: SliceGrid) -> None:
    """Instances and frame numbers of an Enhanced CT as they are in the source.

    The series may be in several instances, and they may hold frames that were not analysed.
    """
    if not any(grid.frame_numbers):
        return
    classes = {str(header.SOPInstanceUID): header.SOPClassUID for header in result.headers.instances}
    for frame, z in tuple(_frames(ds, grid)):
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        uid, number = grid.sop_instance_uids[z], grid.frame_numbers[z]
        source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = classes[uid], uid
        if number is None:
            source.pop("ReferencedFrameNumber", None)
        else:
            source.ReferencedFrameNumber = number
    instances = []
    for uid in dict.fromkeys(grid.sop_instance_uids):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = classes[uid], uid
        instances.append(item)
    ds.SourceImageSequence = instances
    ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence = instances
