"""What every DICOM result of one report shares: identifiers, equipment, clock, and the marks "AI" and "unverified"."""

from datetime import datetime, timedelta, timezone
from typing import Any

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicom_gateway.report.codes import (
    PRIVATE_SCHEME,
    PRIVATE_SCHEME_NAME,
    PRIVATE_SCHEME_UID,
    PRIVATE_SCHEME_VERSION,
)
from dicom_gateway.report.content import Report, SupersededReport, Verification
from dicom_gateway.report.edition import PLAIN, Edition
from dicom_gateway.report.language import ENGLISH, Language
from dicom_gateway.report.source_headers import CHARACTER_SET, SourceHeaders
from dicom_gateway.report.stored import StoredResult
from imaging.uids import derive_uid

MANUFACTURER = "OneScan project"
DEVICE_NAME = "OneScan"

_LONG_STRING = 64


def object_uid(report: Report | SupersededReport, *parts: str, edition: Edition = PLAIN) -> str:
    """UID of a part of a result: another report, by whatever it differs, and another edition of it give others.

    The seconds that the analysis took are no part of it: no result holds them.
    """
    return derive_uid(report.report_uid, report.content_sha256, *parts, *edition.uid_parts)


def findings_kind(result: StoredResult, kind: str) -> str:
    """`kind` of a findings SR as a part of its UIDs, which another document must not have: one without segments.

    Whether there are segments to refer to does not count, so that a document's predecessor is where it goes.
    """
    return kind if result.beside_segmentations else f"{kind}-ALONE"


def predecessors(result: StoredResult, sop_class_uid: str, *kind: str) -> list[Dataset]:
    """The document that an SR of this class and kind supersedes (PS3.3 C.17.2), as highdicom takes it; or none.

    It is that of the same edition. `kind` is what follows "sop" in the UID of the document.
    """
    report, edition = result.report, result.edition
    earlier = report.supersedes
    if earlier is None:
        return []
    ds = Dataset()
    ds.SOPClassUID = sop_class_uid
    ds.SOPInstanceUID = object_uid(earlier, "sop", *kind, edition=edition)
    ds.StudyInstanceUID = report.study_instance_uid
    ds.SeriesInstanceUID = object_uid(earlier, "series", kind[0], edition=edition)
    return [ds]


def instance_arguments(result: StoredResult, kind: str, series_number: int, instance_number: int = 1) -> dict[str, Any]:
    """Arguments that all highdicom SOP classes take alike; `kind` ("SR", "SC") makes the UIDs of one result its own.

    One series for each result and revision: some viewers show only the last instance of an SR series.
    """
    report = result.report
    created = local_time(report, result.headers)
    return {
        "series_instance_uid": object_uid(report, "series", kind, edition=result.edition),
        "sop_instance_uid": object_uid(report, "sop", kind, str(instance_number), edition=result.edition),
        "series_number": series_number,
        "instance_number": instance_number,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": report.model.name[:_LONG_STRING],
        "software_versions": [report.software_version, report.model.version],
        "device_serial_number": report.model.sha256[:_LONG_STRING],
        "content_date": created.date(),
        "content_time": created.time().replace(microsecond=0),
        "series_date": created.date(),
        "series_time": created.time().replace(microsecond=0),
        "content_qualification": "RESEARCH",
        "specific_character_set": CHARACTER_SET,
    }


def private_coding_scheme() -> CodingSchemeIdentificationItem:
    """Declares 99ONESCAN in the Coding Scheme Identification Sequence (PS3.3 C.12.1.1.4)."""
    item = CodingSchemeIdentificationItem(
        designator=PRIVATE_SCHEME,
        name=PRIVATE_SCHEME_NAME,
        version=PRIVATE_SCHEME_VERSION,
        responsible_organization=MANUFACTURER,
    )
    # highdicom writes it only beside a registry, in which ours is not.
    item.CodingSchemeUID = PRIVATE_SCHEME_UID
    return item


def local_time(report: Report, headers: SourceHeaders) -> datetime:
    """`report.created` in the source's own zone where the source declares one, else as it was given."""
    offset = headers.first.get("TimezoneOffsetFromUTC")
    if offset is None:
        return report.created
    sign = -1 if offset[0] == "-" else 1
    delta = timedelta(hours=int(offset[1:3]), minutes=int(offset[3:5]))
    return report.created.astimezone(timezone(sign * delta))


def described(description: str, verification: Verification | None, language: Language) -> str:
    """What a series is, and whether somebody verified it."""
    status = "{description} (unverified)" if verification is None else "{description} (verified)"
    return language.say(status, description=language.say(description))


def state_verification(sr: Dataset, result: StoredResult) -> None:
    """The state of an SR document (PS3.3 C.17.2): who verified it and when, or that nobody has."""
    verification = result.report.verification
    if verification is None:
        return
    observer = Dataset()
    observer.VerifyingObserverName = verification.observer_name
    observer.VerifyingObserverIdentificationCodeSequence = []
    observer.VerifyingOrganization = verification.organization
    observer.VerificationDateTime = local_time(result.report, result.headers).strftime("%Y%m%d%H%M%S%z")
    sr.PreliminaryFlag, sr.VerificationFlag = "FINAL", "VERIFIED"
    sr.VerifyingObserverSequence = [observer]


def finish(ds: Dataset, result: StoredResult, description: str) -> Dataset:
    """Freezes every time stamp at `report.created`, names persons and series; `ds` is changed and returned.

    Meanings of codes, which highdicom writes as well, come into the language of the edition (PS3.16 TID 1204).

    highdicom writes the wall clock into several elements, which would make a re-run differ under the same UID. It
    warns with a person's name in the text if that has one component, so the names are given here and not to it.
    """
    report, headers, language = result.report, result.headers, result.edition.language
    created = local_time(report, headers)
    date, time = created.strftime("%Y%m%d"), created.strftime("%H%M%S")
    ds.InstanceCreationDate, ds.InstanceCreationTime = date, time
    if "DateOfSecondaryCapture" in ds:
        ds.DateOfSecondaryCapture, ds.TimeOfSecondaryCapture = date, time
    if "PresentationCreationDate" in ds:
        ds.PresentationCreationDate, ds.PresentationCreationTime = date, time
    for equipment in ds.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in equipment:
            equipment.ContributionDateTime = created.strftime("%Y%m%d%H%M%S%z")
    if "LossyImageCompression" in ds:
        ds.update(headers.lossy_compression)
    # Without it in the source, its study times are local to an unknown zone: none may be declared for them here.
    for keyword in ("TimezoneOffsetFromUTC", "StudyDescription", "PatientAge", "IssuerOfPatientID"):
        if keyword in headers.first:
            setattr(ds, keyword, headers.first.get(keyword))
    ds.PatientName = headers.first.PatientName
    ds.ReferringPhysicianName = headers.first.ReferringPhysicianName
    words = described(description, report.verification, language)
    if report.urgent:
        words = language.say("URGENT {description}", description=words)
    if report.revision > 1:
        words = language.say("{description}, revision {n}", description=words, n=report.revision)
    ds.SeriesDescription = words
    if language is not ENGLISH:
        for translated in _translated_elements(ds, language):
            ds[translated.tag] = translated
    return ds


def _translated_elements(ds: Dataset, language: Language) -> list[DataElement]:
    """Elements of `ds` that hold meanings of codes, at any depth, with these in the language; `ds` is not changed.

    highdicom gives several objects the same items, some of them for as long as the process lives.
    """
    translated = []
    for element in ds:
        if element.keyword == "CodeMeaning":
            translated.append(DataElement(element.tag, element.VR, language.say(element.value)))
        elif element.VR == "SQ":
            items = [_translated(item, language) for item in element.value]
            if any(new is not old for new, old in zip(items, element.value, strict=True)):
                translated.append(DataElement(element.tag, "SQ", items))
    return translated


def _translated(item: Dataset, language: Language) -> Dataset:
    translated = {element.tag: element for element in _translated_elements(item, language)}
    if not translated:
        return item
    changed = Dataset()
    for element in item:
        changed.add(translated.get(element.tag, element))
    return changed
