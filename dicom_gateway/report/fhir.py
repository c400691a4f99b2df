"""The report as a FHIR R4 transaction: DiagnosticReport, Observations, ImagingStudy and Device.

Built with the R4B classes of fhir.resources (it has none of R4), which these resources have in common with R4. They do
not check required codes, so that is done here.

Report and Observations are updated in place by an identifier that all revisions of a study share: the newest answer is
the only one a query finds, and the server keeps the versions before it. A lesion that only earlier revisions had is
cancelled. The ImagingStudy belongs to the archive: it is only made where the server has none.

The display of a coding is its code system's (English); in another language, `text` and narrative are.
"""

import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from html import escape
from typing import Any
from urllib.parse import quote

from fhir.resources.R4B.bundle import Bundle
from pydicom.dataset import Dataset

from dicom_gateway.report import codes
from dicom_gateway.report.codes import CodeEntry
from dicom_gateway.report.content import (
    DISCLAIMER,
    Report,
    ReportedFinding,
    ReportedMeasurement,
    Verification,
)
from dicom_gateway.report.edition import Edition
from dicom_gateway.report.headline import commented, headline
from dicom_gateway.report.instance import DEVICE_NAME, MANUFACTURER, object_uid
from dicom_gateway.report.language import ENGLISH, Language
from dicom_gateway.report.local_codes import kind_code, measurement_code
from dicom_gateway.report.printed import person_name
from dicom_gateway.report.source_headers import text_of
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.report.wording import decimals, finding_title, percentage, place, revision_in_words
from imaging.uids import derive_uid
from models.findings import EvidenceGrade, FindingKind, Laterality, Presence, Quantity

_Json = dict[str, Any]

_DICOM_UID = "urn:dicom:uid"
_XHTML = 'xmlns="http://www.w3.org/1999/xhtml"'
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_SYSTEMS = {
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "SCT": "http://snomed.info/sct",
    "LN": "http://loinc.org",
    "RADLEX": "http://radlex.org",
    "UCUM": "http://unitsofmeasure.org",
    codes.PRIVATE_SCHEME: f"urn:oid:{codes.PRIVATE_SCHEME_UID}",
    **{scheme: f"{_TERMINOLOGY}/{scheme}" for scheme in codes.HL7_SCHEMES},
}
_EMPTY: tuple[Any, ...] = (None, "", [], {})
# Required bindings (R4 4.0.1) of what is written here, by resource or data type and element.
_REQUIRED_CODES: dict[str, frozenset[str]] = {
    "Bundle.type": frozenset({"transaction"}),
    "request.method": frozenset({"POST", "PUT"}),
    "text.status": frozenset({"generated", "extensions", "additional", "empty"}),
    "deviceName.type": frozenset(
        {
            "udi-label-name",
            "user-friendly-name",
            "patient-reported-name",
            "manufacturer-name",
            "model-name",
            "other",
        }
    ),
    "Device.status": frozenset({"active", "inactive", "entered-in-error", "unknown"}),
    "ImagingStudy.status": frozenset({"registered", "available", "cancelled", "entered-in-error", "unknown"}),
    "Observation.status": frozenset(
        {
            "registered",
            "preliminary",
            "final",
            "amended",
            "corrected",
            "cancelled",
            "entered-in-error",
            "unknown",
        }
    ),
    "DiagnosticReport.status": frozenset(
        {
            "registered",
            "partial",
            "preliminary",
            "final",
            "amended",
            "corrected",
            "appended",
            "cancelled",
            "entered-in-error",
            "unknown",
        }
    ),
}


def encode_bundle(
    result: StoredResult, *, earlier: Sequence[Report] = (), patient_identifier_system: str | None = None
) -> bytes:
    """The transaction as JSON (R4 4.0.1); the same arguments give the same bytes.

    `earlier` are the reports of the study's earlier revisions. The patient is referred to by Patient ID, of the
    server's `patient_identifier_system` where one is given: a server that does not know the patient refuses all of it.
    Raises ValueError for a bundle that R4 does not allow.
    """
    report, source, language = result.report, result.headers.first, result.edition.language
    subject = _subject(source, patient_identifier_system, language)
    shared = {
        "language": language.tag,
        "subject": subject,
        "issued": _instant(report.created),
        "effectiveDateTime": _study_time(source),
    }
    device, study = _device(report, language), _imaging_study(report, source, subject, language)
    context = shared | {
        "device": {"reference": device["fullUrl"]},
        "derivedFrom": [{"reference": study["fullUrl"]}],
    }
    observations = [_observation(finding, report, context, result.edition) for finding in report.findings]
    cancelled = [
        _cancelled(finding, report, context, result.edition) for finding in _no_longer_reported(report, earlier)
    ]
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "timestamp": _instant(report.created),
        "entry": [device, study, *observations, *cancelled, _diagnostic_report(result, shared, study)],
    }
    content = _without_empty(bundle)
    check_bundle(content)
    return Bundle.model_validate(content).model_dump_json().encode()


def check_bundle(bundle: _Json) -> None:
    """Raises ValueError for a code outside its required binding, a reference to nothing, or an Observation that
    leaves open whether it has a value."""
    present = {entry["fullUrl"] for entry in bundle["entry"]}
    for name, value in _elements(bundle, "Bundle"):
        if name in _REQUIRED_CODES and value not in _REQUIRED_CODES[name]:
            raise ValueError(f"{name} may not be {value!r}")
        if name.endswith(".reference") and str(value).startswith("urn:") and value not in present:
            raise ValueError(f"{name} refers to nothing in the bundle")
        if name.endswith(".system") and not str(value).startswith(("http://", "https://", "urn:")):
            raise ValueError(f"{name} is not a URI")
    for entry in bundle["entry"]:
        resource = entry["resource"]
        if resource["resourceType"] == "Observation" and ("valueCodeableConcept" in resource) == (
            "dataAbsentReason" in resource
        ):
            raise ValueError("an Observation has either a value or a reason why it has none")


def _elements(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """("Type.element", value) of every primitive; the name of an element stands for its type."""
    if isinstance(node, list):
        for item in node:
            yield from _elements(item, name)
    elif isinstance(node, dict):
        owner = node.get("resourceType", name)
        for key, value in node.items():
            if isinstance(value, dict | list):
                yield from _elements(value, key)
            else:
                yield f"{owner}.{key}", value


def _without_empty(node: Any) -> Any:
    """FHIR allows no empty element."""
    if isinstance(node, dict):
        kept = {key: _without_empty(value) for key, value in node.items()}
        return {key: value for key, value in kept.items() if value not in _EMPTY}
    if isinstance(node, list):
        return [item for item in map(_without_empty, node) if item not in _EMPTY]
    return node


def _entry(resource: _Json, uid: str, *, is_ours: bool = True) -> _Json:
    """`resource` under the DICOM UID that identifies it; one that is not ours is left as the server has it."""
    kind = resource["resourceType"]
    condition = f"identifier={quote(f'{_DICOM_UID}|urn:oid:{uid}', safe=':')}"
    request = (
        {"method": "PUT", "url": f"{kind}?{condition}"}
        if is_ours
        else {"method": "POST", "url": kind, "ifNoneExist": condition}
    )
    return {"fullUrl": _full_url(kind, uid), "resource": resource, "request": request}


def _full_url(kind: str, uid: str) -> str:
    return f"urn:uuid:{uuid.UUID(int=int(derive_uid('fhir', kind, uid).removeprefix('2.25.')))}"


def _identifier(uid: str) -> _Json:
    return {"system": _DICOM_UID, "value": f"urn:oid:{uid}"}


def _coding(entry: CodeEntry) -> _Json:
    return {"system": _SYSTEMS[entry.scheme], "code": entry.value, "display": entry.meaning}


def _concept(language: Language, *entries: CodeEntry, text: str | None = None) -> _Json:
    if text is None and language is not ENGLISH:
        text = language.say(entries[0].meaning)
    return {"coding": [_coding(entry) for entry in entries], "text": text}


def _subject(source: Dataset, system: str | None, language: Language) -> _Json:
    name, identity = person_name(text_of(source, "PatientName"), language), text_of(source, "PatientID")
    if not identity:
        return {"type": "Patient", "display": name}
    token = identity if system is None else f"{system}|{identity}"
    issuer = text_of(source, "IssuerOfPatientID") or None
    return {
        "reference": f"Patient?identifier={quote(token, safe='')}",
        "type": "Patient",
        "identifier": {"system": system, "value": identity, "assigner": {"display": issuer}},
        "display": name,
    }


def _device(report: Report, language: Language) -> _Json:
    uid = derive_uid("device", report.model.sha256, report.software_version)
    return _entry(
        {
            "resourceType": "Device",
            "identifier": [_identifier(uid)],
            "status": "active",
            "manufacturer": MANUFACTURER,
            "serialNumber": report.model.sha256,
            "deviceName": [
                {"name": DEVICE_NAME, "type": "manufacturer-name"},
                {"name": f"{report.model.name} {report.model.version}", "type": "model-name"},
            ],
            "type": _concept(language, codes.ARTIFICIAL_INTELLIGENCE),
            "version": [{"value": report.software_version}],
            "note": [{"text": language.told(DISCLAIMER)}],
        },
        uid,
    )


def _imaging_study(report: Report, source: Dataset, subject: _Json, language: Language) -> _Json:
    accession = {
        "type": _concept(language, codes.ACCESSION_ID),
        "value": text_of(source, "AccessionNumber"),
    }
    analysed = report.analysed_series
    ct = _coding(codes.CT_MODALITY)
    number = analysed.series_number if analysed else None
    series = analysed and {
        "uid": report.series_instance_uid,
        # DICOM takes one below 0, FHIR does not.
        "number": number if number is not None and 0 <= number < 2**31 else None,
        "description": analysed.series_description,
        "modality": ct,
    }
    return _entry(
        {
            "resourceType": "ImagingStudy",
            "identifier": [_identifier(report.study_instance_uid), *([accession] if source.AccessionNumber else [])],
            "status": "available",
            "subject": subject,
            "started": _study_time(source),
            "modality": [ct],
            "description": text_of(source, "StudyDescription") or None,
            "series": [series],
        },
        report.study_instance_uid,
        is_ours=False,
    )


def _observation_uid(finding: ReportedFinding, report: Report) -> str:
    """What the answers of all revisions to this question have in common."""
    return derive_uid(report.study_instance_uid, "observation", finding.kind, str(finding.lesion or ""))


def _observation(finding: ReportedFinding, report: Report, context: _Json, edition: Edition) -> _Json:
    language = edition.language
    uid = _observation_uid(finding, report)
    members = [f for f in report.findings if f.kind == finding.kind and f.lesion is not None]
    site = codes.KIND_CODES[FindingKind(finding.kind)].site
    resource = {
        "resourceType": "Observation",
        "identifier": [_identifier(uid), _identifier(finding.tracking_uid)],
        "status": _status(report),
        "category": [_concept(language, codes.IMAGING)],
        "code": _finding_code(finding, edition),
        **context,
        **_performer(finding, report, language),
        **_answer(finding, language),
        "bodySite": _concept(language, site, text=place(finding, language) or language.say(site.meaning)),
        "method": {"text": language.told(finding.method)},
        "note": [{"text": language.told(finding.reason)}] if finding.reason else [],
        "hasMember": []
        if finding.lesion is not None
        else [{"reference": _full_url("Observation", _observation_uid(member, report))} for member in members],
        "component": _components(finding, language),
    }
    return _entry(resource, uid)


def _finding_code(finding: ReportedFinding, edition: Edition) -> _Json:
    kind = FindingKind(finding.kind)
    title = finding_title(finding, edition.language)
    return _concept(edition.language, edition.finding_code(kind), kind_code(kind), text=title)


def _answer(finding: ReportedFinding, language: Language) -> _Json:
    answer = codes.PRESENCE_CODES[Presence(finding.presence)]
    if finding.presence == "not_assessed":
        text = language.say(answer.meaning)
        if finding.reason:
            text = language.say("{answer}: {reason}", answer=text, reason=language.told(finding.reason))
        return {"dataAbsentReason": _concept(language, codes.NOT_PERFORMED, answer, text=text)}
    interpretation = codes.INTERPRETATION_CODES[Presence(finding.presence)]
    return {
        "valueCodeableConcept": _concept(language, answer),
        "interpretation": [_concept(language, interpretation)],
    }


def _components(finding: ReportedFinding, language: Language) -> list[_Json]:
    components = [_measurement(measurement, language) for measurement in finding.measurements]
    if finding.probability is not None:
        percent = _quantity(Decimal(percentage(finding.probability)), "%", language)
        components.insert(0, {"code": _concept(language, codes.CERTAINTY_OF_FINDING), "valueQuantity": percent})
    if finding.laterality is not None:
        side = codes.LATERALITY_CODES[Laterality(finding.laterality)]
        components.append(
            {"code": _concept(language, codes.LATERALITY), "valueCodeableConcept": _concept(language, side)}
        )
    if finding.evidence_grade is not None:
        grade = codes.EVIDENCE_CODES[EvidenceGrade(finding.evidence_grade)]
        components.append(
            {"code": _concept(language, codes.EVIDENCE_GRADE), "valueCodeableConcept": _concept(language, grade)}
        )
    if finding.verdict is not None:
        verdict = _concept(language, codes.VERDICT_CODES[finding.verdict.decision])
        components.append({"code": _concept(language, codes.VERDICT), "valueCodeableConcept": verdict})
    if finding.key_sop_instance_uid is not None:
        key_image = f"urn:oid:{finding.key_sop_instance_uid}"
        components.append({"code": _concept(language, codes.BEST_ILLUSTRATION), "valueString": key_image})
    return components


def _measurement(measurement: ReportedMeasurement, language: Language) -> _Json:
    name = codes.QUANTITY_CODES[Quantity(measurement.quantity)].name
    told = measurement_code(measurement, language).meaning
    value = Decimal(f"{measurement.value:.{decimals(measurement.unit, measurement.value)}f}")
    return {
        "code": _concept(language, name, measurement_code(measurement), text=told),
        "valueQuantity": _quantity(value, measurement.unit, language),
    }


def _quantity(value: Decimal, unit: str, language: Language) -> _Json:
    entry = {str(known): entry for known, entry in codes.UNIT_CODES.items()}[unit]
    return {"value": value, "unit": language.say(entry.meaning), "system": _SYSTEMS[entry.scheme], "code": entry.value}


def _no_longer_reported(report: Report, earlier: Sequence[Report]) -> list[ReportedFinding]:
    reported = {(f.kind, f.lesion) for f in report.findings}
    before = {(f.kind, f.lesion): f for revision in earlier for f in revision.findings}
    return [finding for key, finding in before.items() if key not in reported]


def _cancelled(finding: ReportedFinding, report: Report, context: _Json, edition: Edition) -> _Json:
    language = edition.language
    uid = _observation_uid(finding, report)
    revision = revision_in_words(report, language)
    words = language.say("Not in the report any more: {revision}", revision=revision) + language.stop
    resource = {
        "resourceType": "Observation",
        "identifier": [_identifier(uid)],
        "status": "cancelled",
        "category": [_concept(language, codes.IMAGING)],
        "code": _finding_code(finding, edition),
        **context,
        "dataAbsentReason": _concept(language, codes.NOT_APPLICABLE, text=words),
    }
    return _entry(resource, uid)


def _diagnostic_report(result: StoredResult, shared: _Json, study: _Json) -> _Json:
    report, language = result.report, result.edition.language
    uid = derive_uid(report.study_instance_uid, "diagnostic-report")
    revision = revision_in_words(report, language) + language.stop
    sentences = [*headline(report, language), *commented(report, language), revision, language.told(report.disclaimer)]
    paragraphs = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    spoken = f'lang="{language.tag}" xml:lang="{language.tag}"'
    resource = {
        "resourceType": "DiagnosticReport",
        "text": {"status": "generated", "div": f"<div {_XHTML} {spoken}>{paragraphs}</div>"},
        # The second is that of the structured report of the same revision and edition.
        "identifier": [_identifier(uid), _identifier(object_uid(report, "sop", "SR", "1", edition=result.edition))],
        "status": _status(report),
        "category": [_concept(language, codes.RADIOLOGY), _concept(language, codes.CT_SCAN)],
        "code": _concept(language, codes.CT_CHEST),
        **shared,
        "resultsInterpreter": [_interpreter(report.verification, language)] if report.verification else [],
        "result": [{"reference": _full_url("Observation", _observation_uid(f, report))} for f in report.findings],
        "imagingStudy": [{"reference": study["fullUrl"]}],
        "conclusion": "\n".join(sentences),
    }
    return _entry(resource, uid)


def _status(report: Report) -> str:
    """Final when a person has verified it, amended where it takes the place of one that was."""
    if report.verification is None:
        return "preliminary"
    return "amended" if report.supersedes is not None and report.supersedes.verified else "final"


def _performer(finding: ReportedFinding, report: Report, language: Language) -> _Json:
    """The person whose answer it is, in place of the device if that measured nothing."""
    if report.verification is None or not finding.is_by_a_person:
        return {}
    performer = {"performer": [_interpreter(report.verification, language)]}
    return performer if finding.measurements else performer | {"device": None}


def _interpreter(verification: Verification, language: Language) -> _Json:
    name = language.listed((person_name(verification.observer_name, language), verification.organization))
    return {"type": "Practitioner", "display": name}


def _instant(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _study_time(source: Dataset) -> str | None:
    """A FHIR dateTime: to the second where the source states its zone, else the date alone."""
    if not source.StudyDate:
        return None
    day = datetime.strptime(source.StudyDate, "%Y%m%d").date()  # noqa: DTZ007 - a DICOM date has no zone
    offset, time = source.get("TimezoneOffsetFromUTC"), source.StudyTime.partition(".")[0]
    if not offset or len(time) < 4:
        return day.isoformat()
    minutes = int(offset[1:3]) * 60 + int(offset[3:5])
    zone = timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))
    hour, minute, second = int(time[:2]), int(time[2:4]), int(time[4:6] or 0)
    return datetime(day.year, day.month, day.day, hour, minute, second, tzinfo=zone).isoformat()
