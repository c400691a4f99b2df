"""An amended report's documents name those that they take the place of (PS3.3 C.17.2)."""

import hashlib
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from conformance.test_dicom_results import MakeCase, complaints, encoded, items, read_back
from pydicom.dataset import Dataset

from dicom_gateway.pipeline import write_result
from dicom_gateway.report.objects import ENCODERS, read_superseded
from dicom_gateway.report.stored import StoredResult

DOCUMENTS = ("sr", "sr_comprehensive", "sr_enhanced", "sr_text", "marks")
STUDY = "1.2.3.4"


def amended(first: StoredResult, later: StoredResult, results: Path) -> StoredResult:
    """`later` as the revision after `first`, whose record stands in `results`."""
    write_result(first, results / "r1")
    values = {
        "revision": 2,
        "report_uid": later.report.report_uid + "1",
        "created": first.report.created + timedelta(hours=1),
        "supersedes": read_superseded(results / "r2", STUDY, 2),
    }
    return replace(later, report=later.report.model_copy(update=values))


def named(ds: Dataset) -> list[tuple[str, str, str, str]]:
    """Study, series, class and instance of each predecessor."""
    return [
        (
            study.StudyInstanceUID,
            series.SeriesInstanceUID,
            document.ReferencedSOPClassUID,
            document.ReferencedSOPInstanceUID,
        )
        for study in ds.get("PredecessorDocumentsSequence", ())
        for series in study.ReferencedSeriesSequence
        for document in series.ReferencedSOPSequence
    ]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_names_the_one_it_supersedes(name: str, make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("findings")
    (first,) = map(read_back, ENCODERS[name](case))
    assert "PredecessorDocumentsSequence" not in first
    later = amended(case, case, tmp_path)
    (second,) = ENCODERS[name](later)
    assert named(second) == [(STUDY, first.SeriesInstanceUID, first.SOPClassUID, first.SOPInstanceUID)]
    assert second.SOPInstanceUID != first.SOPInstanceUID
    path = tmp_path / "second.dcm"
    path.write_bytes(encoded(second))
    assert complaints(path) == []
    assert encoded(ENCODERS[name](later)[0]) == path.read_bytes()


def test_a_refused_study_that_becomes_complete_is_amended(make_case: MakeCase, tmp_path: Path) -> None:
    """The first revision had no marks, so those of the second take the place of none."""
    refused = make_case("refused")
    later = amended(refused, make_case("findings"), tmp_path)
    predecessor = {name: [uid for *_, uid in named(ENCODERS[name](later)[0])] for name in ("sr", "marks")}
    assert predecessor == {"sr": [str(ENCODERS["sr"](refused)[0].SOPInstanceUID)], "marks": []}


def test_other_objects_say_in_words_what_they_supersede(make_case: MakeCase, tmp_path: Path) -> None:
    later = amended(make_case("refused"), make_case("negative"), tmp_path)
    texts = {i.TextValue for i in items(ENCODERS["sr"](later)[0]) if i.ValueType == "TEXT"}
    assert "Revision 2, supersedes revision 1" in texts
    nothing_before = replace(later, report=later.report.model_copy(update={"supersedes": None}))
    for name in ("sr", "sc", "pdf"):
        assert encoded(ENCODERS[name](later)[0]) != encoded(ENCODERS[name](nothing_before)[0])
    texts = {i.TextValue for i in items(ENCODERS["sr"](nothing_before)[0]) if i.ValueType == "TEXT"}
    assert "Revision 2" in texts


def test_a_record_of_an_earlier_version_has_the_uids_it_had(make_case: MakeCase) -> None:
    """Fields that came later do not count where they are not there."""
    report = make_case("negative").report
    old = json.loads(report.model_dump_json())
    for name in ("supersedes", "urgent", "verification"):
        del old[name]
    del old["analysed_series"]["contrast_phase"]
    for finding in old["findings"]:
        del finding["verdict"]
    said = {name: value for name, value in old.items() if name != "timings_s"}
    digest = hashlib.sha256(json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()
    assert type(report).model_validate(old).content_sha256 == digest == report.content_sha256


def test_only_a_finished_report_of_the_study_is_superseded(make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("negative")
    write_result(case, tmp_path / "r1")
    # Revision 2 failed and left no record: the third takes the place of the first.
    (tmp_path / "r2").mkdir()
    third = read_superseded(tmp_path / "r3", STUDY, 3)
    assert third is not None
    assert (third.revision, third.content_sha256) == (1, case.report.content_sha256)
    assert read_superseded(tmp_path / "r1", STUDY, 1) is None
    assert read_superseded(tmp_path / "r2", "1.2.3.99", 2) is None
    (tmp_path / "r2" / "report.json").write_text("{}")
    assert read_superseded(tmp_path / "r3", STUDY, 3) is None
