"""The ORU^R01 as hl7apy validates it and as an independent reader of its separators finds it."""

import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from conformance.test_dicom_results import HEADERS
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from pydicom.config import disable_value_validation

from dicom_gateway.report.fhir import encode_bundle
from dicom_gateway.report.hl7 import encode_oru
from dicom_gateway.report.pdf import encode_pdf
from dicom_gateway.report.stored import StoredResult

MakeCase = Callable[..., StoredResult]

PRESENCE = {"present": "52101004", "absent": "272519000", "indeterminate": "373068000", "not_assessed": "NOT_ASSESSED"}
SEPARATORS = {"F": "|", "S": "^", "T": "&", "R": "~", "E": "\\"}


def lines_of(result: StoredResult) -> list[list[str]]:
    """Fields of each segment; of MSH, the number of a field is one less than its index."""
    text = encode_oru(result).decode("utf-8")
    assert text.endswith("\r")
    assert "\n" not in text
    return [line.split("|") for line in text.removesuffix("\r").split("\r")]


def segments(result: StoredResult, name: str) -> list[list[str]]:
    return [[*line, *[""] * 30] for line in lines_of(result) if line[0] == name]


def plain(text: str) -> str:
    return re.sub(r"\\([FSTRE])\\", lambda found: SEPARATORS[found[1]], text)


def components(field: str) -> list[str]:
    return [plain(component) for component in field.split("^")]


def by_answer(result: StoredResult) -> list[list[list[str]]]:
    """The OBX of each finding, in the order of the report; the first of them is its answer."""
    codes = {"121073"}
    numbered = [obx for obx in segments(result, "OBX") if obx[4] and components(obx[3])[0] not in codes]
    answers = {obx[4]: [o for o in numbered if o[4] == obx[4]] for obx in numbered}
    return list(answers.values())


def test_hl7apy_finds_it_valid(case: StoredResult) -> None:
    message = parse_message(encode_oru(case).decode(), validation_level=VALIDATION_LEVEL.TOLERANT)
    assert message.validate()
    assert message.name == "ORU_R01"


def test_two_encodes_are_byte_identical(case: StoredResult) -> None:
    assert encode_oru(case) == encode_oru(case)


def test_the_header_says_what_it_is_in_utf_8(case: StoredResult) -> None:
    (header,) = segments(case, "MSH")
    assert header[1:3] == ["^~\\&", "ONESCAN"]
    assert (header[6], header[8], header[10], header[11], header[17]) == (
        "20260110123005+0000",
        "ORU^R01^ORU_R01",
        "P",
        "2.5.1",
        "UNICODE UTF-8",
    )
    assert re.fullmatch(r"[0-9a-f]{20}", header[9])
    (request,) = segments(case, "OBR")
    assert (request[3], request[18], request[25]) == ("A-77", "A-77", "P")
    assert components(request[4])[:3] == ["AI_CHEST_CT", "AI chest CT findings", "99ONESCAN"]


def test_the_control_id_follows_the_report(make_case: MakeCase) -> None:
    case = make_case("negative")
    amended = replace(case, report=case.report.model_copy(update={"revision": 2}))
    assert segments(case, "MSH")[0][9] != segments(amended, "MSH")[0][9]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("Wang^XiaoDong=王^小东", "Wang^XiaoDong^^^^^L^A~王^小东^^^^^L^I"),
        ("王^小东", "王^小东^^^^^L"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada^Tarou^^^^^L^A~山田^太郎^^^^^L^I~やまだ^たろう^^^^^L^P"),
        ("Smith^John^Paul^Dr^Jr", "Smith^John^Paul^Jr^Dr^^L"),
        ("A&B^C|D~E", "A\\T\\B^C\\F\\D\\R\\E^^^^^L"),
        ("", ""),
    ],
)
def test_a_name_keeps_its_parts(name: str, written: str, make_case: MakeCase) -> None:
    (patient,) = segments(make_case("refused", count=1, PatientName=name), "PID")
    assert patient[5] == written


@pytest.mark.parametrize("name", HEADERS)
def test_the_patient_is_named_whatever_the_source_headers(name: str, make_case: MakeCase) -> None:
    case = make_case("refused", count=2, **HEADERS[name])
    (patient,) = segments(case, "PID")
    source = case.headers.first
    assert components(patient[3])[0] == source.PatientID
    assert patient[7:9] == [source.PatientBirthDate, source.PatientSex]
    (request,) = segments(case, "OBR")
    assert re.fullmatch(r"(20260110(093005|235959)?(\+0800)?)?", request[7])


def test_separators_and_line_ends_in_text_are_no_structure(make_case: MakeCase) -> None:
    with disable_value_validation():
        case = make_case("findings", PatientID="P|1^2&3~4", AccessionNumber="A|7", IssuerOfPatientID="ST. A&B")
    odd = "5 ~ 6 | a^b & c\\d \\F\\ 双肺\r\nOBX|99|ST|x"
    findings = tuple(f.model_copy(update={"reason": odd, "method": odd}) for f in case.report.findings)
    odd_case = replace(case, report=case.report.model_copy(update={"findings": findings}))
    (patient,), (request,) = segments(odd_case, "PID"), segments(odd_case, "OBR")
    assert components(patient[3]) == ["P|1^2&3~4", "", "", "ST. A&B"]
    assert plain(request[3]) == "A|7"
    expected = odd.replace("\r\n", " ")
    assert {plain(note[3]) for note in segments(odd_case, "NTE")} == {expected}
    assert {components(obx[17])[1] for (obx, *_) in by_answer(odd_case)} == {expected}
    assert list(map(len, by_answer(odd_case))) == list(map(len, by_answer(case)))


def test_every_number_is_read_back_to_the_digit(case: StoredResult) -> None:
    answers = by_answer(case)
    assert len(answers) == len(case.report.findings)
    for finding, observations in zip(case.report.findings, answers, strict=True):
        stated = [(components(o[3])[0], o[5], components(o[6])[0]) for o in observations if o[2] == "NM"]
        expected = [
            (f"{m.quantity}.{m.laterality}" if m.laterality else m.quantity, m.value, m.unit)
            for m in finding.measurements
        ]
        if finding.probability is not None:
            expected.insert(0, ("111012", round(finding.probability * 100, 1), "%"))
        assert [(code, float(value), unit) for code, value, unit in stated] == expected
        (tracking,) = (o[5] for o in observations if components(o[3])[0] == "112040")
        assert tracking == finding.tracking_uid


def test_an_answer_keeps_its_meaning(case: StoredResult) -> None:
    lines = lines_of(case)
    for finding, (answer, *_) in zip(case.report.findings, by_answer(case), strict=True):
        assert components(answer[3])[0] == finding.kind
        assert components(answer[5])[0] == PRESENCE[finding.presence]
        assert answer[11] == ("X" if finding.presence == "not_assessed" else "P")
        assert answer[8] == ("A" if finding.presence == "present" else "")
        below = lines[next(n for n, line in enumerate(lines) if line[:2] == answer[:2]) + 1]
        assert (plain(below[3]) if below[0] == "NTE" else None) == finding.reason


def test_no_two_observations_have_the_same_identifier(case: StoredResult) -> None:
    keys = [(components(obx[3])[0], obx[4]) for obx in segments(case, "OBX")]
    assert len(set(keys)) == len(keys)
    assert [obx[1] for obx in segments(case, "OBX")] == [str(n) for n in range(1, len(keys) + 1)]


def test_a_refused_study_calls_nothing_absent(make_case: MakeCase) -> None:
    case = make_case("refused")
    assert b"272519000" not in encode_oru(case)
    assert any(f"Not analysed: {case.report.refusal}" in plain(obx[5]) for obx in segments(case, "OBX"))


@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:Value length")
def test_a_backslash_in_a_header_is_a_character_of_it(make_case: MakeCase) -> None:
    """pydicom takes it for two values; HL7 escapes it, FHIR and the page write it."""
    broken = {"PatientName": "Doe^John\\X", "PatientID": "A\\B", "AccessionNumber": "C\\D", "StudyDescription": "E\\F"}
    with disable_value_validation():
        case = make_case("findings", IssuerOfPatientID="G\\H", **broken)
    (patient,), (request,) = segments(case, "PID"), segments(case, "OBR")
    assert [components(patient[3])[0], components(patient[3])[3]] == ["A\\B", "G\\H"]
    assert components(patient[5])[:2] == ["Doe", "John\\X"]
    assert plain(request[3]) == "C\\D"
    resources = [entry["resource"] for entry in json.loads(encode_bundle(case))["entry"]]
    (study,) = (one for one in resources if one["resourceType"] == "ImagingStudy")
    assert (study["subject"]["identifier"]["value"], study["description"]) == ("A\\B", "E\\F")
    assert study["subject"]["display"] == "Doe John\\X"
    assert encode_pdf(case)


def test_a_study_without_accession_number_is_known_by_its_uid(make_case: MakeCase) -> None:
    (request,) = segments(make_case("findings", AccessionNumber=""), "OBR")
    assert components(request[3]) == ["1.2.3.4", "ONESCAN"]
    (request,) = segments(make_case("findings"), "OBR")
    assert request[3] == "A-77"
