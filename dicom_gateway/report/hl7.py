"""The report as an HL7 v2.5.1 ORU^R01, for interface engines and hospital information systems.

All observations of one answer have its number in OBX-4; OBX-3 begins with a code of our own that is of one thing only.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from hl7 import Message, Segment
from pydicom.dataset import Dataset

from dicom_gateway.report import codes
from dicom_gateway.report.codes import CodeEntry
from dicom_gateway.report.content import Report, ReportedFinding, Verification
from dicom_gateway.report.edition import Edition
from dicom_gateway.report.headline import commented, headline
from dicom_gateway.report.instance import DEVICE_NAME, object_uid
from dicom_gateway.report.language import Language
from dicom_gateway.report.local_codes import kind_code, measurement_code
from dicom_gateway.report.source_headers import text_of
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.report.wording import decimals, finding_title, percentage, place, revision_in_words
from imaging.uids import derive_uid
from models.findings import EvidenceGrade, FindingKind, Presence, Quantity

VERSION = "2.5.1"

# 2.7.1 of the standard. Not hl7.Message.escape, which makes hexadecimal sequences of all that is not ASCII.
_ESCAPES = str.maketrans({"|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\", "\\": "\\E\\"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
# Tables 0085 and 0123: preliminary, final, corrected after it was final, cannot be obtained; 0078: abnormal.
_PRELIMINARY, _FINAL, _CORRECTED, _NOT_OBTAINED, _ABNORMAL = "P", "F", "C", "X", "A"
_CONTROL_ID_LENGTH = 20


def encode_oru(result: StoredResult) -> bytes:
    """The message in UTF-8 (MSH-18), each segment ending in a carriage return; the same result gives the same bytes.

    A kind that was not assessed has an OBX too, with the status "cannot be obtained" and the reason below it.
    """
    report, source, language = result.report, result.headers.first, result.edition.language
    segments = [_segment("MSH", _header(result)), _segment("PID", _patient(source))]
    segments.append(_segment("OBR", _request(report, source, language)))
    for set_id, (fields, comment) in enumerate(_observations(report, result.edition), start=1):
        segments.append(_segment("OBX", {1: str(set_id), 11: _status(report)} | fields))
        if comment:
            segments.append(_segment("NTE", {1: "1", 3: _text(comment)}))
    return str(Message("\r", segments)).encode()


def _segment(name: str, fields: dict[int, str]) -> Segment:
    """A segment with `fields` by their number, as they are written between the separators."""
    return Segment("|", [name, *(fields.get(number, "") for number in range(1, max(fields) + 1))])


def _text(value: str) -> str:
    return _CONTROL.sub(" ", value).translate(_ESCAPES)


def _components(*values: str) -> str:
    return "^".join(map(_text, values)).rstrip("^")


def _coded(language: Language, *entries: CodeEntry) -> str:
    """CE: a code and at most one alternative."""
    return _components(
        *(part for entry in entries for part in (entry.value, language.say(entry.meaning), entry.scheme))
    )


def _header(result: StoredResult) -> dict[int, str]:
    report, language = result.report, result.edition.language
    identity = int(object_uid(report, "hl7", "ORU", edition=result.edition).removeprefix("2.25."))
    return {
        1: "|",
        2: "^~\\&",
        3: DEVICE_NAME.upper(),
        7: report.created.strftime("%Y%m%d%H%M%S%z"),
        9: "ORU^R01^ORU_R01",
        10: f"{identity:032x}"[:_CONTROL_ID_LENGTH],
        11: "P",
        12: VERSION,
        18: "UNICODE UTF-8",
        19: _components(language.tag.partition("-")[0], language.say(language.entry.meaning), "ISO639"),
    }


def _patient(source: Dataset) -> dict[int, str]:
    identity = text_of(source, "PatientID")
    return {
        1: "1",
        3: _components(identity, "", "", text_of(source, "IssuerOfPatientID")) if identity else "",
        5: _name(text_of(source, "PatientName")),
        7: source.PatientBirthDate,
        8: source.PatientSex,
    }


def _name(dicom_name: str) -> str:
    """XPN repetitions of a DICOM name: alphabetic, ideographic and phonetic (XPN.8) where it has more than one."""
    groups = dicom_name.split("=")[:3]
    repetitions = []
    for group, representation in zip(groups, "AIP", strict=False):
        if group:
            family, given, middle, prefix, suffix = _parts(group)
            names = (family, given, middle, suffix, prefix, "", "L", representation if len(groups) > 1 else "")
            repetitions.append(_components(*names))
    return "~".join(repetitions)


def _request(report: Report, source: Dataset, language: Language) -> dict[int, str]:
    return {
        1: "1",
        # One of placer and filler number must be there; the study's UID is one for all revisions.
        3: _text(text_of(source, "AccessionNumber")) or _components(report.study_instance_uid, DEVICE_NAME.upper()),
        4: _coded(language, codes.AI_CHEST_CT, codes.CT_CHEST),
        7: _study_time(source),
        # IHE Radiology looks for the accession number here.
        18: _text(text_of(source, "AccessionNumber")),
        22: report.created.strftime("%Y%m%d%H%M%S%z"),
        24: "CT",
        25: _status(report),
    } | ({} if report.verification is None else {32: _interpreter(report.verification)})


def _status(report: Report) -> str:
    if report.verification is None:
        return _PRELIMINARY
    return _CORRECTED if report.supersedes is not None and report.supersedes.verified else _FINAL


def _observer(verification: Verification) -> list[str]:
    """Identifier (none), family, given and middle name, suffix and prefix of who verified: XCN.1 to 6, CNN.1 to 6."""
    group = next((group for group in verification.observer_name.split("=") if group), "")
    family, given, middle, prefix, suffix = _parts(group)
    return ["", family, given, middle, suffix, prefix]


def _interpreter(verification: Verification) -> str:
    """NDL.1 (CNN) of OBR-32: the person who verified the report, by the first group of the name that is not empty."""
    return "&".join(map(_text, _observer(verification))).rstrip("&")


def _parts(group: str) -> list[str]:
    """Family, given and middle name, prefix and suffix of a DICOM name's group (PS3.5 6.2.1)."""
    return [*group.split("^"), "", "", "", "", ""][:5]


def _study_time(source: Dataset) -> str:
    if not source.StudyDate:
        return ""
    time = source.StudyTime.partition(".")[0]
    if len(time) < 4:
        return str(source.StudyDate)
    return f"{source.StudyDate}{time}{source.get('TimezoneOffsetFromUTC', '')}"


def _observations(report: Report, edition: Edition) -> Iterator[tuple[dict[int, str], str]]:
    """(fields of the OBX, comment below it or nothing)"""
    language = edition.language
    about = [
        (codes.STUDY_INSTANCE_UID, report.study_instance_uid),
        (codes.REVISION, revision_in_words(report, language)),
    ]
    for entry, words in about:
        yield _observation("ST", _coded(language, entry), "", _text(words)), ""
    for number, sentence in enumerate(headline(report, language), start=1):
        yield _observation("TX", _coded(language, codes.IMPRESSION), str(number), _text(sentence)), ""
    for words in commented(report, language):
        yield _observation("TX", _coded(language, codes.COMMENT), "1", _text(words)), ""
    yield _observation("TX", _coded(language, codes.COMMENT), "", _text(language.told(report.disclaimer))), ""
    for number, finding in enumerate(report.findings, start=1):
        yield _answer(finding, report, str(number), edition), language.told(finding.reason or "")
        for fields in _details(finding, str(number), language):
            yield fields, ""


def _observation(value_type: str, identifier: str, sub_id: str, value: str, unit: str = "") -> dict[int, str]:
    return {2: value_type, 3: identifier, 4: sub_id, 5: value, 6: unit}


def _answer(finding: ReportedFinding, report: Report, sub_id: str, edition: Edition) -> dict[int, str]:
    language = edition.language
    kind, presence = FindingKind(finding.kind), Presence(finding.presence)
    own = kind_code(kind)
    titled = replace(own, meaning=finding_title(finding, language))
    fields = _observation(
        "CE",
        _coded(language, titled, edition.finding_code(kind)),
        sub_id,
        _coded(language, codes.PRESENCE_CODES[presence]),
    )
    fields[8] = _ABNORMAL if presence is Presence.PRESENT else ""
    if presence is Presence.NOT_ASSESSED:
        fields[11] = _NOT_OBTAINED
    fields[17] = _components("", language.told(finding.method))
    if report.verification is not None and finding.is_by_a_person:
        # XCN: degree, source table and authority are empty before the legal name's type.
        fields[16] = _components(*_observer(report.verification), "", "", "", "L")
    if finding.measurements or not finding.is_by_a_person:
        device = derive_uid("device", report.model.sha256, report.software_version)
        fields[18] = _components(f"{report.model.name} {report.model.version}", "", device, "ISO")
    return fields


def _details(finding: ReportedFinding, sub_id: str, language: Language) -> Iterator[dict[int, str]]:
    if finding.probability is not None:
        identifier, unit = _coded(language, codes.CERTAINTY_OF_FINDING), _coded(language, codes.UNIT_CODES["%"])
        yield _observation("NM", identifier, sub_id, percentage(finding.probability), unit)
    units = {str(unit): entry for unit, entry in codes.UNIT_CODES.items()}
    for measured in finding.measurements:
        own = measurement_code(measured, language)
        identifier = _coded(language, own, codes.QUANTITY_CODES[Quantity(measured.quantity)].name)
        value = f"{measured.value:.{decimals(measured.unit, measured.value)}f}"
        yield _observation("NM", identifier, sub_id, value, _coded(language, units[measured.unit]))
    if where := place(finding, language):
        yield _observation("ST", _coded(language, codes.SITE_IN_WORDS), sub_id, _text(where))
    if finding.evidence_grade is not None:
        grade = codes.EVIDENCE_CODES[EvidenceGrade(finding.evidence_grade)]
        yield _observation("CE", _coded(language, codes.EVIDENCE_GRADE), sub_id, _coded(language, grade))
    if finding.verdict is not None:
        verdict = codes.VERDICT_CODES[finding.verdict.decision]
        yield _observation("CE", _coded(language, codes.VERDICT), sub_id, _coded(language, verdict))
    yield _observation("ST", _coded(language, codes.TRACKING_UID), sub_id, finding.tracking_uid)
