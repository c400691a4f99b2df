"""The SR in the older classes: content for the judges, and nothing lost but what the class cannot hold."""

import subprocess
from pathlib import Path

import pytest
from conformance.test_dicom_results import complaints, encoded, group_by_tracking_uid, items, read_back, tool
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, ComprehensiveSRStorage, EnhancedSRStorage

from dicom_gateway.report.objects import ENCODERS
from dicom_gateway.report.stored import StoredResult

CLASSES = {
    "sr_comprehensive": ComprehensiveSRStorage,
    "sr_enhanced": EnhancedSRStorage,
    "sr_text": BasicTextSRStorage,
}
TREES = ("sr_comprehensive", "sr_enhanced")
_TEXT_ONLY = {"CONTAINER", "TEXT", "CODE", "UIDREF", "IMAGE"}


def encode(name: str, case: StoredResult) -> Dataset:
    (ds,) = ENCODERS[name](case)
    return ds


@pytest.mark.parametrize("name", CLASSES)
def test_dciodvfy_and_dcmtk_are_content(name: str, case: StoredResult, tmp_path: Path) -> None:
    path = tmp_path / "sr.dcm"
    path.write_bytes(encoded(encode(name, case)))
    assert complaints(path) == []
    dump = subprocess.run([tool("dsrdump"), str(path)], capture_output=True, text=True, check=False)
    assert dump.returncode == 0, dump.stderr
    assert ("Basic Text SR" if name == "sr_text" else "SR Document") in dump.stdout


@pytest.mark.parametrize("name", CLASSES)
def test_chinese_name_and_poor_headers(name: str, make_case, tmp_path: Path) -> None:
    case = make_case("findings", PatientName="王^小东", AccessionNumber=None, StudyDate=None, FrameOfReferenceUID=None)
    path = tmp_path / "sr.dcm"
    path.write_bytes(encoded(encode(name, case)))
    assert complaints(path) == []
    assert str(read_back(encode(name, case)).PatientName) == "王^小东"


@pytest.mark.parametrize(("name", "sop_class"), CLASSES.items())
def test_another_class_is_another_instance_of_the_same_study(name: str, sop_class: str, case: StoredResult) -> None:
    sr, other = encode("sr", case), encode(name, case)
    assert other.SOPClassUID == other.file_meta.MediaStorageSOPClassUID == sop_class
    assert other.SOPInstanceUID == other.file_meta.MediaStorageSOPInstanceUID
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber"):
        assert sr[keyword].value != other[keyword].value
    for keyword in ("StudyInstanceUID", "PatientName", "PatientID", "VerificationFlag", "ContentDate"):
        assert sr[keyword].value == other[keyword].value
    assert encoded(other) == encoded(encode(name, case))


@pytest.mark.parametrize("name", TREES)
def test_the_tree_is_the_srs_but_for_coordinates_in_space(name: str, case: StoredResult) -> None:
    sr, other = read_back(encode("sr", case)), read_back(encode(name, case))
    assert [str(item) for item in items(sr) if is_leaf_of_both(item)] == [
        str(item) for item in items(other) if is_leaf_of_both(item)
    ]
    assert {item.ValueType for item in items(sr)} - {item.ValueType for item in items(other)} <= {"SCOORD3D"}
    assert "SCOORD3D" not in {item.ValueType for item in items(other)}
    assert set(group_by_tracking_uid(other)) == {f.tracking_uid for f in case.report.findings}


def is_leaf_of_both(item: Dataset) -> bool:
    return item.ValueType != "SCOORD3D" and "ContentSequence" not in item


def test_the_text_says_everything_of_each_finding(case: StoredResult) -> None:
    ds = read_back(encode("sr_text", case))
    found = list(items(ds))
    assert {item.ValueType for item in found} <= _TEXT_ONLY
    paragraphs = [i for i in found if i.ConceptNameCodeSequence[0].CodeMeaning == "Finding"]
    assert len(paragraphs) == len(case.report.findings)
    for finding, paragraph in zip(case.report.findings, paragraphs, strict=True):
        text = paragraph.TextValue.casefold()
        assert finding.method.casefold() in text
        assert (finding.reason or "").casefold() in text
        for measurement in finding.measurements:
            assert f"{measurement.value:g}" in text
        shown = [i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in paragraph.get("ContentSequence", ())]
        assert shown == ([finding.key_sop_instance_uid] if finding.key_sop_instance_uid else [])


def test_the_text_of_a_finding_reads_well(make_case) -> None:
    found = items(encode("sr_text", make_case("findings")))
    texts = [i.TextValue for i in found if i.ConceptNameCodeSequence[0].CodeMeaning == "Finding"]
    nodule = next(text for text in texts if text.startswith("Pulmonary nodule 1"))
    assert nodule.startswith(
        "Pulmonary nodule 1: present (93.7 %), left upper lobe. 16.0 x 11.9 mm, volume 1123 mm³, mean attenuation 30"
    )
    assert nodule.endswith("Method: multi-head network, then measured on the source voxels. Evidence grade C.")


def test_the_text_of_a_refused_study_says_so(make_case) -> None:
    case = make_case("refused")
    texts = [item.TextValue for item in items(encode("sr_text", case)) if item.ValueType == "TEXT"]
    assert any(text.startswith("Not analysed: ") for text in texts)
    assert case.report.disclaimer in texts
    assert not any("not found" in text for text in texts if text.startswith(("Pneumothorax", "Pulmonary nodule")))
