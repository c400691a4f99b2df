"""The FHIR transaction, read back by the R4B and R5 classes and by an independent walk over its JSON."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from conformance.test_dicom_results import HEADERS
from fhir.resources.R4B import get_fhir_model_class
from fhir.resources.R4B.bundle import Bundle

from dicom_gateway.report.content import SupersededReport
from dicom_gateway.report.fhir import check_bundle, encode_bundle
from dicom_gateway.report.sr import encode_sr
from dicom_gateway.report.stored import StoredResult

MakeCase = Callable[..., StoredResult]


def bundle_of(result: StoredResult, **more: Any) -> dict[str, Any]:
    return json.loads(encode_bundle(result, **more))


def resources(bundle: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [e["resource"] for e in bundle["entry"] if e["resource"]["resourceType"] == kind]


def by_tracking_uid(bundle: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {o["identifier"][1]["value"].removeprefix("urn:oid:"): o for o in resources(bundle, "Observation")}


def codes_of(concept: dict[str, Any]) -> list[str]:
    return [coding["code"] for coding in concept["coding"]]


def test_every_resource_is_accepted_by_its_class(case: StoredResult) -> None:
    bundle = bundle_of(case)
    assert Bundle.model_validate(bundle)
    for entry in bundle["entry"]:
        model = get_fhir_model_class(entry["resource"]["resourceType"])
        assert model.model_validate(entry["resource"])


def test_two_encodes_are_byte_identical(case: StoredResult) -> None:
    assert encode_bundle(case) == encode_bundle(case)


def test_every_number_is_read_back_to_the_digit(case: StoredResult) -> None:
    observations = by_tracking_uid(bundle_of(case))
    assert len(observations) == len(case.report.findings)
    for finding in case.report.findings:
        stated = [
            (c["valueQuantity"]["value"], c["valueQuantity"]["code"], codes_of(c["code"])[-1])
            for c in observations[finding.tracking_uid].get("component", ())
            if "valueQuantity" in c
        ]
        expected = [
            (m.value, m.unit, f"{m.quantity}.{m.laterality}" if m.laterality else m.quantity)
            for m in finding.measurements
        ]
        if finding.probability is not None:
            expected.insert(0, (round(finding.probability * 100, 1), "%", "111012"))
        assert stated == expected


def test_an_answer_keeps_its_meaning(case: StoredResult) -> None:
    answers = {"present": "52101004", "absent": "272519000", "indeterminate": "373068000"}
    observations = by_tracking_uid(bundle_of(case))
    for finding in case.report.findings:
        observation = observations[finding.tracking_uid]
        assert finding.kind in codes_of(observation["code"])
        assert [note["text"] for note in observation.get("note", ())] == ([finding.reason] if finding.reason else [])
        if finding.presence == "not_assessed":
            assert "valueCodeableConcept" not in observation
            assert "interpretation" not in observation
            assert codes_of(observation["dataAbsentReason"]) == ["not-performed", "NOT_ASSESSED"]
            assert observation["dataAbsentReason"]["text"] == f"Not assessed: {finding.reason}"
        else:
            assert "dataAbsentReason" not in observation
            assert codes_of(observation["valueCodeableConcept"]) == [answers[finding.presence]]


def test_a_refused_study_calls_nothing_absent(make_case: MakeCase) -> None:
    case = make_case("refused")
    content = encode_bundle(case)
    assert b"272519000" not in content
    assert b"NEG" not in content
    (report,) = resources(json.loads(content), "DiagnosticReport")
    assert str(case.report.refusal) in report["conclusion"]


def test_lesions_are_members_of_their_kind(make_case: MakeCase) -> None:
    case = make_case("findings")
    bundle = bundle_of(case)
    urls = {e["fullUrl"]: e["resource"] for e in bundle["entry"]}
    observations = by_tracking_uid(bundle)
    for finding in case.report.findings:
        members = [urls[m["reference"]] for m in observations[finding.tracking_uid].get("hasMember", ())]
        lesions = [f.tracking_uid for f in case.report.findings if f.kind == finding.kind and f.lesion is not None]
        expected = lesions if finding.lesion is None else []
        assert members == [observations[uid] for uid in expected]
    (report,) = resources(bundle, "DiagnosticReport")
    assert [urls[r["reference"]] for r in report["result"]] == list(observations.values())


def test_everything_is_preliminary_and_made_by_the_device(case: StoredResult) -> None:
    bundle = bundle_of(case)
    device = next(e for e in bundle["entry"] if e["resource"]["resourceType"] == "Device")
    for observation in resources(bundle, "Observation"):
        assert observation["status"] == "preliminary"
        assert observation["device"] == {"reference": device["fullUrl"]}
    (report,) = resources(bundle, "DiagnosticReport")
    assert report["status"] == "preliminary"
    assert report["conclusion"].endswith(case.report.disclaimer)
    assert "performer" not in report


def test_it_names_what_the_structured_report_names(make_case: MakeCase) -> None:
    case = make_case("findings")
    bundle, (sr,) = bundle_of(case), encode_sr(case)
    (report,), (device,), (study,) = (resources(bundle, k) for k in ("DiagnosticReport", "Device", "ImagingStudy"))
    assert report["identifier"][1]["value"] == f"urn:oid:{sr.SOPInstanceUID}"
    assert study["identifier"][0]["value"] == f"urn:oid:{sr.StudyInstanceUID}"
    uids = [i.UID for i in sr.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "121012"]
    assert uids == [device["identifier"][0]["value"].removeprefix("urn:oid:")]


def test_each_is_put_by_its_identifier_but_the_archives_study_is_left_alone(make_case: MakeCase) -> None:
    for entry in bundle_of(make_case("findings"))["entry"]:
        kind, request = entry["resource"]["resourceType"], entry["request"]
        first = entry["resource"]["identifier"][0]
        condition = f"identifier={first['system']}%7C{first['value']}"
        if kind == "ImagingStudy":
            assert request == {"method": "POST", "url": kind, "ifNoneExist": condition}
        else:
            assert request == {"method": "PUT", "url": f"{kind}?{condition}"}


def test_an_amended_report_takes_the_place_of_the_earlier_one(make_case: MakeCase) -> None:
    case = make_case("findings")
    kept = tuple(f for f in case.report.findings if f.lesion != 2)
    first = SupersededReport(
        revision=1, report_uid=case.report.report_uid, content_sha256=case.report.content_sha256, marked=True
    )
    amended = case.report.model_copy(
        update={"revision": 2, "supersedes": first, "report_uid": case.report.report_uid + "1", "findings": kept}
    )
    second = StoredResult(report=amended, headers=case.headers)
    first_requests = [e["request"]["url"] for e in bundle_of(case)["entry"]]
    bundle = bundle_of(second, earlier=[case.report])
    assert sorted(e["request"]["url"] for e in bundle["entry"]) == sorted(first_requests)
    (cancelled,) = (o for o in resources(bundle, "Observation") if o["status"] == "cancelled")
    assert cancelled["code"]["text"] == "Pulmonary nodule 2"
    assert "valueCodeableConcept" not in cancelled
    (report,) = resources(bundle, "DiagnosticReport")
    assert "Revision 2, supersedes revision 1." in report["conclusion"]


@pytest.mark.parametrize("name", HEADERS)
def test_the_patient_is_referred_to_whatever_the_source_headers(name: str, make_case: MakeCase) -> None:
    case = make_case("negative", count=2, **HEADERS[name])
    (report,) = resources(bundle_of(case), "DiagnosticReport")
    subject = report["subject"]
    patient_id = HEADERS[name].get("PatientID", "P-1")
    assert subject.get("reference") == (f"Patient?identifier={patient_id}" if patient_id else None)
    shown = {"UTF-8 name": "Wang XiaoDong (王小东)", "GB18030 name": "王小东", "Latin-1 name": "Müller Jürgen"}
    assert subject["display"] == shown.get(name, subject["display"])


def test_the_patient_identifier_is_safe_in_the_query(make_case: MakeCase) -> None:
    case = make_case("refused", PatientID="A&B|1 王", IssuerOfPatientID="HOSPITAL")
    (report,) = resources(bundle_of(case, patient_identifier_system="http://hospital.example/ids"), "DiagnosticReport")
    assert report["subject"]["reference"] == (
        "Patient?identifier=http%3A%2F%2Fhospital.example%2Fids%7CA%26B%7C1%20%E7%8E%8B"
    )
    assert report["subject"]["identifier"] == {
        "system": "http://hospital.example/ids",
        "value": "A&B|1 王",
        "assigner": {"display": "HOSPITAL"},
    }


@pytest.mark.parametrize(
    ("overrides", "stated"),
    [
        ({}, "2026-01-10"),
        ({"TimezoneOffsetFromUTC": "+0800"}, "2026-01-10T09:30:05+08:00"),
        ({"TimezoneOffsetFromUTC": "-0330", "StudyTime": "0930"}, "2026-01-10T09:30:00-03:30"),
        ({"TimezoneOffsetFromUTC": "+0800", "StudyTime": None}, "2026-01-10"),
        ({"StudyDate": None}, None),
    ],
)
def test_the_time_of_the_study_is_as_exact_as_the_source(
    overrides: dict[str, Any], stated: str | None, make_case: MakeCase
) -> None:
    case = make_case("refused", count=1, **overrides)
    (report,) = resources(bundle_of(case), "DiagnosticReport")
    assert report.get("effectiveDateTime") == stated
    assert report["issued"] == "2026-01-10T12:30:05Z"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda b: resources(b, "Observation")[0].update(status="unverified"), "Observation.status"),
        (lambda b: resources(b, "DiagnosticReport")[0].update(status="done"), "DiagnosticReport.status"),
        (lambda b: resources(b, "DiagnosticReport")[0]["text"].update(status="made"), "text.status"),
        (lambda b: b["entry"][0]["request"].update(method="SEND"), "request.method"),
        (lambda b: b.update(type="batch"), "Bundle.type"),
        (lambda b: b["entry"].pop(0), "refers to nothing"),
        (lambda b: resources(b, "Observation")[0].pop("valueCodeableConcept"), "either a value"),
        (lambda b: resources(b, "Observation")[0]["code"]["coding"][0].update(system="SCT"), "not a URI"),
    ],
)
def test_what_the_classes_let_through_is_found(
    change: Callable[[dict[str, Any]], Any], complaint: str, make_case: MakeCase
) -> None:
    good = bundle_of(make_case("findings"))
    check_bundle(good)
    changed = deepcopy(good)
    change(changed)
    with pytest.raises(ValueError, match=complaint):
        check_bundle(changed)


@pytest.mark.parametrize(("number", "said"), [(-1, None), (0, 0), (7, 7), (2**31, None)])
def test_a_series_number_is_left_out_where_fhir_has_none(number: int, said: int | None, make_case: MakeCase) -> None:
    case = make_case("findings")
    assert case.report.analysed_series is not None
    series = case.report.analysed_series.model_copy(update={"series_number": number})
    changed = replace(case, report=case.report.model_copy(update={"analysed_series": series}))
    resources = [entry["resource"] for entry in json.loads(encode_bundle(changed))["entry"]]
    (study,) = (one for one in resources if one["resourceType"] == "ImagingStudy")
    assert study["series"][0].get("number") == said
