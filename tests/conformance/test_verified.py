"""Reports that a person verified, with what they say otherwise, as the judges and an independent reader find them."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from conformance.test_amendment import DOCUMENTS, STUDY, named
from conformance.test_chinese import chinese_of, english_words, texts, true_to_life
from conformance.test_dicom_results import (
    MakeCase,
    code,
    complaints,
    encoded,
    group_by_tracking_uid,
    read_back,
    tool,
)
from conformance.test_dicom_results import named as concepts
from conformance.test_pdf import stored, words
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from pydicom.dataset import Dataset

from dicom_gateway.pipeline import write_result
from dicom_gateway.report.content import Report, ReportedFinding, Verification
from dicom_gateway.report.fhir import encode_bundle
from dicom_gateway.report.hl7 import encode_oru
from dicom_gateway.report.language import ENGLISH
from dicom_gateway.report.objects import ENCODERS, read_superseded
from dicom_gateway.report.printed import Row, assessed_rows
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.report.verification import (
    ContradictoryVerdict,
    Question,
    Stated,
    restated,
    stated_in,
    verified_report,
)
from dicom_gateway.settings import ResultObject
from models.findings import FindingKind

EVERYTHING = get_args(ResultObject)
COMMENT = "左肺下叶 ~ 5, ^&|\\ 随访"
READER = Verification(observer_name="Li^Wei=李^伟", organization="Test Hospital", comment=COMMENT)
NODULE, EFFUSION, PNEUMOTHORAX = (
    FindingKind.PULMONARY_NODULE,
    FindingKind.PLEURAL_EFFUSION,
    FindingKind.PNEUMOTHORAX,
)
OTHERWISE: Mapping[Question, Stated] = {
    Question(NODULE, 2): "absent",
    Question(EFFUSION): "absent",
    Question(PNEUMOTHORAX): "present",
}


def verified(
    case: StoredResult,
    results: Path,
    stated: Mapping[Question, Stated],
    verification: Verification = READER,
    automated: StoredResult | None = None,
) -> StoredResult:
    """`case` as the next revision, whose earlier one stands in `results`; made of `automated`, by default of itself."""
    automated = automated or case
    revision = case.report.revision + 1
    write_result(case, results / f"r{case.report.revision}")
    supersedes = read_superseded(results / f"r{revision}", STUDY, revision)
    assert supersedes is not None
    report = verified_report(
        automated.report,
        verification,
        supersedes=supersedes,
        revision=revision,
        created=case.report.created + timedelta(hours=1),
        stated=restated(stated_in(case.report), stated),
    )
    shown = {finding.key_image for finding in report.findings}
    key_images = {name: image for name, image in automated.key_images.items() if name in shown}
    return replace(automated, report=report, key_images=key_images)


def answers(report: Report) -> dict[str, tuple[str, str | None]]:
    """Presence and decision of each answer."""
    return {
        str(Question(FindingKind(f.kind), f.lesion)): (f.presence, f.verdict and f.verdict.decision)
        for f in report.findings
    }


@pytest.fixture(scope="module", params=("findings", "negative"))
def confirmed(request: pytest.FixtureRequest, make_case: MakeCase, tmp_path_factory: Any) -> StoredResult:
    case = true_to_life(make_case(request.param))
    return verified(case, tmp_path_factory.mktemp("results"), OTHERWISE if request.param == "findings" else {})


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", EVERYTHING)
def test_the_judges_are_content(name: str, language: str, confirmed: StoredResult, tmp_path: Path) -> None:
    case = chinese_of(confirmed) if language == "zh" else confirmed
    for ds in ENCODERS[name](case):
        path = tmp_path / "object.dcm"
        path.write_bytes(encoded(ds))
        assert complaints(path) == []
        assert ("（已审核）" if language == "zh" else "(verified)") in ds.SeriesDescription
        assert ds.ContentQualification == "RESEARCH"
        if language == "zh":
            assert [text for text in texts(ds) if english_words(text.replace("Test Hospital", ""))] == []
        if name in (*DOCUMENTS, "ko"):
            dump = subprocess.run([tool("dsrdump"), str(path)], capture_output=True, errors="replace", check=False)
            assert dump.returncode == 0, dump.stderr


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_names_who_verified_it_and_what_it_supersedes(
    name: str, make_case: MakeCase, tmp_path: Path
) -> None:
    case = make_case("findings")
    (automated,), (ds,) = ENCODERS[name](case), ENCODERS[name](verified(case, tmp_path, OTHERWISE))
    assert (ds.VerificationFlag, ds.PreliminaryFlag, ds.CompletionFlag) == ("VERIFIED", "FINAL", "COMPLETE")
    (observer,) = read_back(ds).VerifyingObserverSequence
    assert (observer.VerifyingObserverName, observer.VerifyingOrganization) == ("Li^Wei=李^伟", "Test Hospital")
    assert observer.VerificationDateTime == "20260110133005+0000"
    assert named(ds) == [(STUDY, automated.SeriesInstanceUID, automated.SOPClassUID, automated.SOPInstanceUID)]
    assert [i.PersonName for i in concepts(ds, "121008")] == ["Li^Wei=李^伟"]
    if name != "marks":
        (impressions,) = concepts(read_back(ds), "121072")
        comment, _disclaimer = (i.TextValue for i in concepts(impressions, "121106"))
        assert comment == f"Comment of the verifying observer: {COMMENT}"


def test_what_the_person_says_stands_in_the_record_with_what_the_model_said(
    make_case: MakeCase, tmp_path: Path
) -> None:
    report = verified(make_case("findings"), tmp_path, OTHERWISE).report
    found = answers(report)
    assert found["pulmonary_nodule"] == ("present", "confirmed"), "the doubtful one did not count"
    assert found["pulmonary_nodule:1"] == ("present", "confirmed")
    assert found["pulmonary_nodule:2"] == ("absent", "rejected")
    assert found["pleural_effusion"] == found["pleural_effusion:1"] == ("absent", "rejected")
    assert found["pneumothorax"] == ("present", "edited")
    assert found["low_bone_density"] == ("not_assessed", None)
    assert {answer for kind, answer in found.items() if kind.startswith("emphysema")} == {("present", "confirmed")}
    rejected = next(f for f in report.findings if f.kind == "pleural_effusion" and f.lesion == 1)
    assert (rejected.probability, rejected.measurements, rejected.key_image) == (None, (), None)
    assert (rejected.key_sop_instance_uid, rejected.centre_mm) == (None, None)
    assert rejected.reason == "rejected by the verifying observer; the automated answer was present (99.0 %)"
    (count,) = next(f for f in report.findings if f.kind == "pulmonary_nodule" and f.lesion is None).measurements
    assert count.value == 1


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, 1),
        ({Question(NODULE, 2): "absent"}, 1),
        ({Question(NODULE, 2): "present"}, 2),
        ({Question(NODULE, 1): "absent", Question(NODULE, 2): "present"}, 1),
    ],
)
def test_a_doubtful_lesion_counts_when_a_person_says_so(
    stated: Mapping[Question, Stated], expected: int, make_case: MakeCase, tmp_path: Path
) -> None:
    """Of a study with one nodule, and another that may be none."""
    after = verified(make_case("findings"), tmp_path, stated).report.findings
    study = next(f for f in after if (f.kind, f.lesion) == (NODULE, None))
    assert (study.presence, [m.value for m in study.measurements]) == ("present", [expected])


def test_rejected_lesions_are_neither_marked_nor_segmented_nor_shown(make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("findings")
    after = verified(case, tmp_path, OTHERWISE)
    findings = after.report.findings
    gone = {f.tracking_uid for f in findings if f.verdict and f.verdict.decision == "rejected"}
    assert len(gone) == 3
    (seg,), (marks,) = ENCODERS["seg"](after), ENCODERS["marks"](after)
    assert not gone & {segment.TrackingUID for segment in seg.SegmentSequence}
    assert not gone & set(group_by_tracking_uid(marks))
    assert len(ENCODERS["key_images"](after)) == len(ENCODERS["key_images"](case)) - 2
    groups = group_by_tracking_uid(ENCODERS["sr"](after)[0])
    for finding in findings:
        by_algorithm = len(concepts(groups[finding.tracking_uid], "111001")) == 1
        assert by_algorithm is not finding.is_by_a_person
        verdict = [code(i.ConceptCodeSequence)[0] for i in concepts(groups[finding.tracking_uid], "VERDICT")]
        decision = finding.verdict and finding.verdict.decision
        assert verdict == ([] if decision is None else [decision.upper()])


def test_pages_say_who_verified(make_case: MakeCase, tmp_path: Path) -> None:
    after = verified(make_case("findings"), tmp_path, OTHERWISE)
    dicom, document = stored(after, tmp_path)
    assert complaints(dicom) == []
    text = words(document)
    for expected in ("VERIFIED BY Li Wei (李伟), Test Hospital", "NOT A MEDICAL DEVICE", "supersedes revision 1"):
        assert expected in text
    assert "随访" in text
    assert "UNVERIFIED" not in text
    assert "not verified" not in text
    assert "rejected by the verifying observer" in text
    (pdf,) = ENCODERS["pdf"](after)
    assert (pdf.VerificationFlag, pdf.DocumentTitle) == ("VERIFIED", "OneScan chest CT summary (AI, verified)")


def fhir_statuses(case: StoredResult) -> set[str]:
    entries = json.loads(encode_bundle(case))["entry"]
    kinds = ("Observation", "DiagnosticReport")
    return {e["resource"]["status"] for e in entries if e["resource"]["resourceType"] in kinds}


def hl7_statuses(case: StoredResult) -> tuple[str, set[str]]:
    message = parse_message(encode_oru(case).decode(), validation_level=VALIDATION_LEVEL.TOLERANT)
    assert message.validate()
    lines = [line.split("|") for line in encode_oru(case).decode().split("\r")]
    (request,) = (line for line in lines if line[0] == "OBR")
    return request[25], {line[11] for line in lines if line[0] == "OBX"}


def test_other_standards_say_final_and_a_second_verification_corrects(make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("findings")
    assert fhir_statuses(case) == {"preliminary"}
    first = verified(case, tmp_path, OTHERWISE)
    assert fhir_statuses(first) == {"final"}
    assert hl7_statuses(first) == ("F", {"F", "X"})
    assert "|&Li&Wei\r" in encode_oru(first).decode()
    *observations, report = [entry["resource"] for entry in json.loads(encode_bundle(first))["entry"]][2:]
    performers = [o["performer"][0]["display"] for o in observations if "device" not in o]
    assert performers == ["Li Wei (李伟), Test Hospital"] * 4
    by_person = [line.split("|")[16] for line in encode_oru(first).decode().split("\r") if "|^Li^Wei" in line]
    # XCN.10: the legal name.
    assert by_person == ["^Li^Wei^^^^^^^L"] * 4
    assert COMMENT in report["conclusion"]
    escaped = "左肺下叶 \\R\\ 5, \\S\\\\T\\\\F\\\\E\\ 随访"
    assert f"|Comment of the verifying observer: {escaped}|" in encode_oru(first).decode()
    assert report["resultsInterpreter"] == [{"type": "Practitioner", "display": "Li Wei (李伟), Test Hospital"}]
    second = verified(first, tmp_path, {Question(NODULE): "absent"}, automated=case)
    assert fhir_statuses(second) == {"amended"}
    assert hl7_statuses(second) == ("C", {"C", "X"})
    assert answers(second.report)["pulmonary_nodule:1"] == ("absent", "rejected")
    # What was said the first time stays said.
    assert answers(second.report)["pleural_effusion"] == ("absent", "rejected")


def test_a_verifier_without_an_alphabetic_name_is_named(make_case: MakeCase, tmp_path: Path) -> None:
    reader = READER.model_copy(update={"observer_name": "=王^小"})
    message = encode_oru(verified(make_case("findings"), tmp_path, OTHERWISE, reader)).decode()
    assert "|&王&小\r" in message
    assert message.count("|^王^小^^^^^^^L|") == 4
    nobody = READER.model_copy(update={"observer_name": "="})
    assert hl7_statuses(verified(make_case("findings"), tmp_path / "nobody", OTHERWISE, nobody)) == ("F", {"F", "X"})


def test_a_negative_report_is_confirmed_as_it_stands(make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("negative")
    after = verified(case, tmp_path, {}).report
    assert set(answers(after).values()) == {("absent", "confirmed")}
    for before, now in zip(case.report.findings, after.findings, strict=True):
        assert now.model_copy(update={"verdict": None}) == before


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({Question(NODULE, 3): "absent"}, "the report has no pulmonary_nodule:3"),
        ({Question(NODULE, 1): "absent", Question(NODULE, 2): "absent"}, "no lesion of pulmonary_nodule is left"),
        ({Question(EFFUSION): "absent", Question(EFFUSION, 1): "present"}, "pleural_effusion is absent, and"),
    ],
)
def test_what_cannot_be_true_together_is_refused(
    stated: Mapping[Question, Stated], words: str, make_case: MakeCase, tmp_path: Path
) -> None:
    case = make_case("findings")
    with pytest.raises(ContradictoryVerdict, match=words):
        verified(case, tmp_path, stated)


def changed(case: StoredResult, kind: FindingKind, **values: Any) -> StoredResult:
    """`case` with other answers about a kind and its lesions."""
    findings = tuple(f.model_copy(update=values) if f.kind == kind else f for f in case.report.findings)
    return replace(case, report=case.report.model_copy(update={"findings": findings}))


def study_of(report: Report, kind: FindingKind) -> ReportedFinding:
    return next(f for f in report.findings if (f.kind, f.lesion) == (kind, None))


def test_a_rejection_that_is_taken_back_leaves_nothing(make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("findings")
    case = replace(case, report=case.report.model_copy(update={"urgent": (EFFUSION.value,)}))
    rejected = verified(case, tmp_path, {Question(EFFUSION): "absent", Question(NODULE, 2): "absent"})
    assert rejected.report.urgent == ()
    again = verified(rejected, tmp_path, {Question(EFFUSION): "present"}, automated=case)
    assert again.report.urgent == ("pleural_effusion",)
    assert answers(again.report)["pulmonary_nodule:2"] == ("absent", "rejected")
    for before, now in zip(case.report.findings, again.report.findings, strict=True):
        if now.kind == EFFUSION:
            assert now.verdict is not None and now.verdict.decision == "confirmed"
            assert now.model_copy(update={"verdict": None}) == before
    assert again.key_images.keys() == {f.key_image for f in again.report.findings if f.key_image}
    assert all(not finding.is_by_a_person for finding in again.report.findings if finding.kind == EFFUSION)


def test_the_only_lesion_of_an_open_kind_is_what_the_kind_is(make_case: MakeCase, tmp_path: Path) -> None:
    case = changed(make_case("findings"), EFFUSION, presence="indeterminate", probability=0.4)
    after = verified(case, tmp_path, {Question(EFFUSION): "present"})
    assert answers(after.report)["pleural_effusion:1"] == ("present", "edited")
    (marks,) = ENCODERS["marks"](after)
    assert next(f.tracking_uid for f in after.report.findings if f.kind == EFFUSION and f.lesion == 1) in (
        group_by_tracking_uid(marks)
    )


def test_of_an_open_kind_what_is_said_to_be_there_counts(make_case: MakeCase, tmp_path: Path) -> None:
    case = changed(make_case("findings"), NODULE, presence="indeterminate")
    after = verified(case, tmp_path, {Question(NODULE): "present", Question(NODULE, 2): "present"}).report
    lesion = next(f for f in after.findings if (f.kind, f.lesion) == (NODULE, 2))
    study = study_of(after, NODULE)
    assert (study.laterality, study.site, study.key_slice) == (lesion.laterality, lesion.site, lesion.key_slice)
    assert answers(after)["pulmonary_nodule:1"] == ("indeterminate", "confirmed")


def test_what_is_there_is_printed_before_what_was_rejected(make_case: MakeCase, tmp_path: Path) -> None:
    both = {Question(NODULE, 1): "absent", Question(NODULE, 2): "present"}
    rows = list(assessed_rows(verified(make_case("findings"), tmp_path, both).report, ENGLISH))
    nodules = [row.finding for row in rows if isinstance(row, Row) and row.finding.kind == NODULE]
    assert [(f.lesion, f.presence) for f in nodules] == [(None, "present"), (2, "present"), (1, "absent")]


def test_a_kind_is_open_where_only_doubtful_lesions_are_left(make_case: MakeCase, tmp_path: Path) -> None:
    after = verified(make_case("findings"), tmp_path, {Question(NODULE, 1): "absent"}).report
    study = study_of(after, NODULE)
    assert (study.presence, study.probability, study.is_by_a_person) == ("indeterminate", None, True)
    assert answers(after)["pulmonary_nodule:2"] == ("indeterminate", "confirmed")


def test_more_lesions_than_are_described_are_counted_as_before(make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("findings")
    findings = list(case.report.findings)
    place = next(n for n, f in enumerate(findings) if (f.kind, f.lesion) == (NODULE, None))
    (count,) = findings[place].measurements
    five = {"measurements": (count.model_copy(update={"value": 5.0}),), "reason": "1; the 1 largest of 5 are described"}
    findings[place] = findings[place].model_copy(update=five)
    case = replace(case, report=case.report.model_copy(update={"findings": tuple(findings)}))
    more = study_of(verified(case, tmp_path, {Question(NODULE, 2): "present"}).report, NODULE)
    assert ([m.value for m in more.measurements], more.reason) == ([6], "1; the 2 largest of 6 are described")
    with pytest.raises(ContradictoryVerdict, match="no lesion of pulmonary_nodule is left"):
        verified(case, tmp_path, {Question(NODULE, 1): "absent"})
    left = verified(case, tmp_path, {Question(NODULE, 1): "absent", Question(NODULE): "present"}).report
    assert [m.value for m in study_of(left, NODULE).measurements] == [4]


def test_a_lesion_of_an_open_kind_is_not_present_alone(make_case: MakeCase, tmp_path: Path) -> None:
    case = changed(make_case("findings"), NODULE, presence="indeterminate")
    with pytest.raises(ContradictoryVerdict, match="has a lesion but is indeterminate"):
        verified(case, tmp_path, {Question(NODULE, 1): "present"})
    after = verified(case, tmp_path, {Question(NODULE, 1): "present", Question(NODULE): "present"})
    assert answers(after.report)["pulmonary_nodule:1"] == ("present", "edited")


def test_a_refused_study_has_nothing_to_verify(make_case: MakeCase, tmp_path: Path) -> None:
    with pytest.raises(ContradictoryVerdict, match="not analysed"):
        verified(make_case("refused"), tmp_path, {})


def test_a_name_of_one_part_gets_into_no_warning(make_case: MakeCase, tmp_path: Path) -> None:
    """highdicom warns of such names, with the name; a warning here is an error."""
    single = Verification(observer_name="Onlyname", organization="Test Hospital")
    (ds,) = ENCODERS["sr"](verified(make_case("negative"), tmp_path, {}, single))
    assert observer_of(ds) == "Onlyname"


def observer_of(ds: Dataset) -> str:
    return str(ds.VerifyingObserverSequence[0].VerifyingObserverName)
