"""Every kind of result object as the tools of others see it, and what all of them share."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from conformance.conftest import SLICES, reported, write_ct
from conformance.test_dicom_results import (
    HEADERS,
    MakeCase,
    complaints,
    encoded,
    group_by_tracking_uid,
    items,
    named,
    read_back,
)
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage

from dicom_gateway.pipeline import write_result
from dicom_gateway.report.fhir import encode_bundle
from dicom_gateway.report.instance import object_uid
from dicom_gateway.report.objects import ENCODERS, read_result
from dicom_gateway.report.source_headers import read_source_headers
from dicom_gateway.report.stored import StoredResult
from imaging.errors import UnreadableInstance

# Those that are made of outlines and key images; a study without a finding has none of them.
OF_FINDINGS = ("seg", "seg_labelmap", "marks", "key_images", "ko", "gsps")
NAME = "王^小东"


def valid(data_sets: tuple[Dataset, ...], folder: Path) -> list[str]:
    found = []
    for n, ds in enumerate(data_sets):
        path = folder / f"{n}.dcm"
        path.write_bytes(encoded(ds))
        found += complaints(path)
    return found


@pytest.mark.parametrize("header", HEADERS)
def test_dciodvfy_is_content_whatever_the_source_headers(header: str, make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("findings", **HEADERS[header])
    for name in OF_FINDINGS:
        data_sets = ENCODERS[name](case)
        # A Segmentation lies in a frame of reference; without one the marks on the slices remain.
        assert bool(data_sets) != (name.startswith("seg") and header == "no frame of reference")
        assert valid(data_sets[:1], tmp_path) == [], name
        for back in map(read_back, data_sets):
            assert str(back.PatientName or "") == (HEADERS[header].get("PatientName", "Test^Patient") or "")
            assert (back.PatientID or "") == (HEADERS[header].get("PatientID", "P-1") or "")
            assert back.StudyInstanceUID == "1.2.3.4"
            assert back.SpecificCharacterSet == "ISO_IR 192"


@pytest.mark.parametrize(
    "told",
    [
        {"LossyImageCompressionRatio": "12.5", "LossyImageCompressionMethod": "ISO_15444_1"},
        {"LossyImageCompressionRatio": ["4", "2"], "LossyImageCompressionMethod": ["ISO_10918_1", "ISO_14495_1"]},
        {},
    ],
)
def test_what_was_once_lossy_stays_lossy(told: dict[str, object], make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("findings", LossyImageCompression="01", **told)
    for name in ("seg", "seg_labelmap", "key_images", "sc"):
        data_sets = ENCODERS[name](case)
        assert valid(data_sets[:1], tmp_path) == [], name
        for back in map(read_back, data_sets):
            assert back.LossyImageCompression == "01"
            for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
                assert (keyword in back) is (keyword in told)
            assert back.get("LossyImageCompressionMethod") == told.get("LossyImageCompressionMethod")


def test_a_presentation_state_keeps_the_shape_of_its_pixels(make_case: MakeCase) -> None:
    case = make_case("findings")
    grid = case.outlines.grid
    assert grid is not None
    oblong = replace(case, outlines=replace(case.outlines, grid=replace(grid, pixel_spacing_mm=(2.0, 4.0))))
    for back in map(read_back, ENCODERS["gsps"](oblong)):
        for shown in back.DisplayedAreaSelectionSequence:
            assert shown.PresentationPixelSpacing == [2.0, 4.0]
            assert "PresentationPixelAspectRatio" not in shown


@pytest.mark.parametrize(
    ("name", "declared"),
    [
        (NAME.encode(), "ISO_IR 192"),
        (NAME.encode("gb18030"), "GB18030"),
        (NAME.encode("gbk"), "GBK"),
        (b"\x1b$)A\xcd\xf5^\x1b$)A\xd0\xa1\xb6\xab", ["", "ISO 2022 IR 58"]),
        (NAME.encode("gb2312"), ["", "ISO 2022 IR 58"]),
        (NAME.encode("gbk"), "ISO_IR 100"),
        (NAME.encode("gbk"), None),
        (NAME.encode("gbk"), "ISO_IR 192"),
        (NAME.encode(), "ISO_IR 100"),
        (NAME.encode(), None),
    ],
)
def test_a_chinese_name_is_right_in_every_object_however_it_is_written(
    name: bytes, declared: str | list[str] | None, tmp_path: Path
) -> None:
    placeholder = b"A" * len(name)
    files = write_ct(tmp_path, SpecificCharacterSet=declared, PatientName=placeholder.decode())
    for file in files:
        assert file.read_bytes().count(placeholder) == 1
        file.write_bytes(file.read_bytes().replace(placeholder, name))
    report, outlines, key_images = reported("findings")
    case = StoredResult(report=report, headers=read_source_headers(files), outlines=outlines, key_images=key_images)
    # What the headers hold is read once for all objects: every kind is tried with one of the spellings.
    for kind in ENCODERS if declared == "GB18030" else ("sr",):
        for ds in ENCODERS[kind](case):
            assert str(read_back(ds).PatientName) == NAME, kind
    resources = [entry["resource"] for entry in json.loads(encode_bundle(case))["entry"]]
    assert {resource["subject"]["display"] for resource in resources if "subject" in resource} == {"王小东"}


@pytest.mark.parametrize("name", ENCODERS)
def test_two_encodes_are_byte_identical(name: str, make_case: MakeCase) -> None:
    case = make_case("findings")
    first, second = (list(map(encoded, ENCODERS[name](case))) for _ in range(2))
    assert first == second


def uids(data_sets: tuple[Dataset, ...]) -> set[str]:
    return {str(uid) for ds in data_sets for uid in (ds.SOPInstanceUID, ds.SeriesInstanceUID)}


@pytest.mark.parametrize("name", ENCODERS)
def test_another_report_has_other_uids_and_other_timings_have_not(name: str, make_case: MakeCase) -> None:
    case = make_case("findings")
    before = ENCODERS[name](case)
    report = case.report
    later = report.model_copy(update={"created": report.created + timedelta(seconds=1)})
    after = ENCODERS[name](replace(case, report=later))
    assert uids(before).isdisjoint(uids(after))
    assert {ds.StudyInstanceUID for ds in after} == {"1.2.3.4"}
    slower = replace(case, report=report.model_copy(update={"timings_s": {"read": 99.0}}))
    assert list(map(encoded, ENCODERS[name](slower))) == list(map(encoded, before))


def test_every_series_of_an_urgent_report_says_so_first(make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("findings")
    urgent = replace(case, report=case.report.model_copy(update={"urgent": ("pneumothorax",), "revision": 1_000_000}))
    for name, encode in ENCODERS.items():
        for ds in encode(urgent):
            assert ds.SeriesDescription.startswith("URGENT AI "), name
            assert "unverified" in ds.SeriesDescription
            assert len(ds.SeriesDescription) <= 64
        assert "URGENT" not in encode(case)[0].SeriesDescription
    assert valid((*ENCODERS["sr"](urgent), *ENCODERS["sc"](urgent)), tmp_path) == []


def test_a_uid_depends_on_all_that_a_report_says(make_case: MakeCase) -> None:
    report = make_case("findings").report
    other_answer = report.findings[0].model_copy(update={"probability": 0.5})
    changes = (
        {"findings": (other_answer, *report.findings[1:])},
        {"software_version": "0.1.1"},
        {"revision": 2},
        {"urgent": ("pneumothorax",)},
        {"quality": ()},
    )
    found = {object_uid(report.model_copy(update=change), "sop", "SR") for change in ({}, *changes)}
    assert len(found) == len(changes) + 1
    assert object_uid(report, "sop", "SR") != object_uid(report, "sop", "SC")


def test_all_objects_are_instances_of_their_own_in_series_of_their_own(make_case: MakeCase) -> None:
    case = make_case("all outlined")
    by_name = {name: encode(case) for name, encode in ENCODERS.items()}
    instances = [str(ds.SOPInstanceUID) for data_sets in by_name.values() for ds in data_sets]
    assert len(instances) == len(set(instances))
    series = [{(str(ds.SeriesInstanceUID), int(ds.SeriesNumber)) for ds in d} for d in by_name.values() if d]
    assert all(len(of_one) == 1 for of_one in series)
    assert len({uid for of_one in series for uid, _ in of_one}) == len(series)
    assert len({number for of_one in series for _, number in of_one}) == len(series)


def test_the_stored_record_gives_the_same_bytes_whatever_the_order_of_the_files(tmp_path: Path) -> None:
    report, outlines, key_images = reported("findings")
    report = report.model_copy(update={"series_instance_uid": "1.2.3.4.1"})
    files = write_ct(tmp_path / "ct")
    # Neither a series that was not analysed nor an image that came later is a source.
    files += write_ct(tmp_path / "other", 1, SeriesInstanceUID="1.2.3.4.7", SOPInstanceUID="1.2.3.4.7.1")
    headers = read_source_headers(files, "1.2.3.4.1")
    files += write_ct(tmp_path / "late", SLICES + 1)[-1:]
    result = StoredResult(report=report, headers=headers, outlines=outlines, key_images=key_images)
    written = {path.name: path.read_bytes() for path in write_result(result, tmp_path / "result")}
    random.Random(1).shuffle(files)
    read = read_result(tmp_path / "result", files)
    for name in ("sr", "sc", *OF_FINDINGS):
        assert list(map(encoded, ENCODERS[name](read))) == list(map(encoded, ENCODERS[name](result))), name
    with pytest.raises(UnreadableInstance):
        read_result(tmp_path / "result", files[: SLICES // 2])
    assert written["segments.seg.dcm"] == encoded(ENCODERS["seg"](read)[0])


def tracking_uids(data_sets: tuple[Dataset, ...]) -> set[str]:
    """Of SR groups, segments and graphics."""

    def of(node: Dataset) -> Iterator[str]:
        for element in node:
            if element.VR == "SQ":
                for item in element.value:
                    yield from of(item)
            elif element.keyword == "TrackingUID":
                yield str(element.value)
        yield from (str(i.UID) for i in items(node) if i.ValueType == "UIDREF" and i in named_uids(node))

    def named_uids(node: Dataset) -> list[Dataset]:
        return [i for i in items(node) if i.ConceptNameCodeSequence[0].CodeValue == "112040"]

    return {uid for ds in data_sets for uid in of(ds)}


def test_a_finding_has_one_tracking_uid_in_all_objects(make_case: MakeCase) -> None:
    case = make_case("all outlined")
    in_report = {f.tracking_uid for f in case.report.findings}
    with_lesions = {f.kind for f in case.report.findings if f.lesion is not None}
    outlined = {f.tracking_uid for f in case.report.findings if f.lesion or f.kind not in with_lesions}
    assert len(outlined) == 30
    assert set(group_by_tracking_uid(read_back(ENCODERS["sr"](case)[0]))) == in_report
    for name in ("seg", "seg_labelmap", "marks", "gsps"):
        assert tracking_uids(ENCODERS[name](case)) == outlined, name


def filled(points: list[float], rows: int, columns: int, zoom: int = 8) -> np.ndarray:
    """Pixels whose centre a closed polyline of (column, row) encloses, drawn by Pillow on a finer grid."""
    corners = np.asarray(points, float).reshape(-1, 2)
    assert corners[0].tolist() == corners[-1].tolist(), "the outline is open"
    picture = Image.new("1", (columns * zoom, rows * zoom))
    # Pillow draws the border too: half a fine pixel less keeps it inside.
    ImageDraw.Draw(picture).polygon([(x * zoom - 0.5, y * zoom - 0.5) for x, y in corners.tolist()], fill=1)
    return np.array(picture)[zoom // 2 :: zoom, zoom // 2 :: zoom]


def test_marks_and_presentation_state_enclose_what_the_segmentation_holds(make_case: MakeCase) -> None:
    case = make_case("all outlined")
    (seg,) = map(read_back, ENCODERS["seg"](case))
    tracked = {int(s.SegmentNumber): str(s.TrackingUID) for s in seg.SegmentSequence}
    held = {}
    for frame, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        uid = tracked[int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        held[uid, str(source)] = pixels > 0
    drawn = dict(marked(case)) | {("gsps", *key): value for key, value in presented(case)}
    keys = {f.tracking_uid: f.key_sop_instance_uid for f in case.report.findings}
    assert len(drawn) == 2 * len(tracked)
    for key, points in drawn.items():
        uid, source = key[-2:]
        assert source == keys[uid]
        assert np.array_equal(filled(points, seg.Rows, seg.Columns), held[uid, source])


def marked(case: StoredResult) -> Iterator[tuple[tuple[str, str], list[float]]]:
    (sr,) = map(read_back, ENCODERS["marks"](case))
    for group in items(sr):
        for region in named(group, "111030"):
            (image,) = items(region)
            uid = str(named(group, "112040")[0].UID)
            yield (uid, str(image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)), region.GraphicData


def presented(case: StoredResult) -> Iterator[tuple[tuple[str, str], list[float]]]:
    (state,) = map(read_back, ENCODERS["gsps"](case))
    for annotation in state.GraphicAnnotationSequence:
        image = annotation.ReferencedImageSequence[0].ReferencedSOPInstanceUID
        for graphic in annotation.GraphicObjectSequence:
            assert (graphic.GraphicType, graphic.GraphicAnnotationUnits) == ("POLYLINE", "PIXEL")
            yield (str(graphic.TrackingUID), str(image)), graphic.GraphicData


def test_marks_have_a_coordinate_in_every_group_and_no_number(make_case: MakeCase) -> None:
    """What a viewer that draws SR marks needs: a group without coordinates stops some of them."""
    (sr,) = map(read_back, ENCODERS["marks"](make_case("findings")))
    groups = [g for part in named(sr, "126010") for g in named(part, "125007")]
    assert len(groups) == 4
    for group in groups:
        assert group.ContentTemplateSequence[0].TemplateIdentifier == "1410"
        assert len(named(group, "111030")) == 1
    assert not [i for i in items(sr) if i.ValueType == "NUM"]


def test_the_key_objects_are_the_key_slices_of_findings(make_case: MakeCase) -> None:
    case = make_case("findings")
    (ko,) = map(read_back, ENCODERS["ko"](case))
    images = [i for i in ko.ContentSequence if i.ValueType == "IMAGE"]
    assert all("ConceptNameCodeSequence" not in image for image in images)
    shown = {f.key_sop_instance_uid for f in case.report.findings if f.presence in ("present", "indeterminate")}
    assert {str(i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for i in images} == shown - {None}


def test_a_key_image_says_what_it_shows_and_that_nobody_verified_it(make_case: MakeCase) -> None:
    case = make_case("findings")
    objects = list(map(read_back, ENCODERS["key_images"](case)))
    shown = [f for f in case.report.findings if f.key_image]
    assert [ds.InstanceNumber for ds in objects] == list(range(1, len(shown) + 1))
    for ds, finding in zip(objects, shown, strict=True):
        picture = case.key_images[finding.key_image]
        assert np.array_equal(ds.pixel_array[-picture.shape[0] :, : picture.shape[1]], picture)
        head = ds.pixel_array[: -picture.shape[0]].astype(int)
        assert ((head[..., 0] > 200) & (head[..., 1] < 120)).sum() > 200, "the red warning line is missing"
        assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == finding.key_sop_instance_uid


@pytest.mark.parametrize("instances", [1, 2])
def test_objects_of_an_enhanced_ct_refer_to_its_frames(instances: int, make_case: MakeCase, tmp_path: Path) -> None:
    """Of two instances the first holds a third of the slices."""
    case = make_case("findings", count=instances, SOPClassUID=EnhancedCTImageStorage)
    in_first = SLICES // (3 if instances == 2 else 1)
    uids_of_source = [str(header.SOPInstanceUID) for header in case.headers.instances]
    frames = [(uids_of_source[0], n + 1) for n in range(in_first)]
    frames += [(uids_of_source[-1], n + 1) for n in range(SLICES - in_first)]
    findings = tuple(
        f.model_copy(update=dict(zip(("key_sop_instance_uid", "key_frame_number"), frames[f.key_slice], strict=True)))
        if f.key_slice is not None
        else f
        for f in case.report.findings
    )
    assert case.outlines.grid is not None
    uids_of_frames, numbers = zip(*frames, strict=True)
    grid = replace(case.outlines.grid, sop_instance_uids=uids_of_frames, frame_numbers=numbers)
    enhanced = replace(
        case,
        report=case.report.model_copy(update={"findings": findings}),
        outlines=replace(case.outlines, grid=grid),
    )
    key_frames = {(f.key_sop_instance_uid, f.key_frame_number) for f in findings if f.key_frame_number}
    assert {uid for uid, _ in key_frames} == set(uids_of_source)
    for name in OF_FINDINGS:
        data_sets = ENCODERS[name](enhanced)
        assert valid(data_sets, tmp_path) == [], name
        referred = {frame for ds in data_sets for frame in frames_referred_to(ds)}
        assert referred <= set(frames), name
        assert referred >= key_frames if name.startswith("seg") else referred == key_frames, name


def frames_referred_to(node: Dataset) -> Iterator[tuple[str, int]]:
    if "ReferencedFrameNumber" in node:
        for number in np.atleast_1d(node.ReferencedFrameNumber):
            yield str(node.ReferencedSOPInstanceUID), int(number)
    for element in node:
        for item in element.value if element.VR == "SQ" else ():
            yield from frames_referred_to(item)
