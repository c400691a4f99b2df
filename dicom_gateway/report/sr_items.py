"""Content items that the structured reports of one result share."""

from collections.abc import Sequence
from copy import deepcopy

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    ImageContentItem,
    LanguageOfContentItemAndDescendants,
    ObservationContext,
    ObserverContext,
    PersonObserverIdentifyingAttributes,
    QualitativeEvaluation,
    RelationshipTypeValues,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as standard

from dicom_gateway.report import codes
from dicom_gateway.report.codes import CodeEntry
from dicom_gateway.report.content import Report, ReportedFinding, Verification
from dicom_gateway.report.instance import DEVICE_NAME, MANUFACTURER
from dicom_gateway.report.language import Language
from dicom_gateway.report.source_headers import SourceHeaders
from imaging.uids import derive_uid
from models.findings import EvidenceGrade, FindingKind, Laterality, Presence


def concept(entry: CodeEntry) -> CodedConcept:
    """The code as a coded concept of highdicom."""
    return CodedConcept(entry.value, entry.scheme, entry.meaning)


def observation_context(report: Report) -> ObservationContext:
    """Who observed (TID 1001): a device, and the person who verified it if any."""
    person = None if report.verification is None else _person_observer(report.verification)
    return ObservationContext(observer_person_context=person, observer_device_context=device_observer(report))


def _person_observer(verification: Verification) -> ObserverContext:
    """TID 1003."""
    # highdicom warns with the name in the text if that has one component.
    attributes = PersonObserverIdentifyingAttributes(name="^", organization_name=verification.organization)
    attributes[0].PersonName = verification.observer_name
    return ObserverContext(observer_type=standard.DCM.Person, observer_identifying_attributes=attributes)


def device_observer(report: Report) -> ObserverContext:
    """TID 1004: the software with the model, whose UID is that of both together."""
    attributes = DeviceObserverIdentifyingAttributes(
        uid=derive_uid("device", report.model.sha256, report.software_version),
        name=f"{DEVICE_NAME} {report.software_version}",
        manufacturer_name=MANUFACTURER,
        model_name=f"{report.model.name} {report.model.version}",
        serial_number=report.model.sha256,
    )
    return ObserverContext(observer_type=standard.DCM.Device, observer_identifying_attributes=attributes)


def finding_site(kind: FindingKind, laterality: str | None) -> FindingSite:
    """The anatomy in which the kind is sought, with its side."""
    side = None if laterality is None else concept(codes.LATERALITY_CODES[Laterality(laterality)])
    return FindingSite(anatomic_location=concept(codes.KIND_CODES[kind].site), laterality=side)


def algorithm_identification(
    finding: ReportedFinding, report: Report, language: Language
) -> AlgorithmIdentification | None:
    """TID 4019: the model, its version and ours, and what the answer was held against; none where a person answered
    and the model measured nothing."""
    if finding.is_by_a_person and not finding.measurements:
        return None
    parameters = [f"sha256: {report.model.sha256[:12]}"]
    if finding.operating_point is not None:
        parameters.append(language.say("operating point: {n}", n=f"{finding.operating_point:g}"))
    return AlgorithmIdentification(
        name=report.model.name,
        version=f"{report.model.version} / {report.software_version}",
        family=concept(codes.ARTIFICIAL_INTELLIGENCE),
        manufacturer=MANUFACTURER,
        parameters=parameters,
    )


def evaluations(finding: ReportedFinding) -> list[QualitativeEvaluation]:
    """The answer (CID 240, or ours for what was not assessed), the grade of its evidence and a person's verdict."""
    answer = codes.PRESENCE_CODES[Presence(finding.presence)]
    evaluations = [QualitativeEvaluation(concept(codes.PRESENCE_OF_PROPERTY), concept(answer))]
    if finding.evidence_grade is not None:
        grade = codes.EVIDENCE_CODES[EvidenceGrade(finding.evidence_grade)]
        evaluations.append(QualitativeEvaluation(concept(codes.EVIDENCE_GRADE), concept(grade)))
    if finding.verdict is not None:
        verdict = codes.VERDICT_CODES[finding.verdict.decision]
        evaluations.append(QualitativeEvaluation(concept(codes.VERDICT), concept(verdict)))
    return evaluations


def language_of(language: Language) -> LanguageOfContentItemAndDescendants:
    """TID 1204: what our sentences and the meanings of codes are written in."""
    return LanguageOfContentItemAndDescendants(concept(language.entry))


def nameless(headers: SourceHeaders) -> tuple[Dataset, ...]:
    """The headers as highdicom shall see them: it copies the names from the first and warns with one in the text if it
    has one component. `instance.finish` names the persons."""
    first = deepcopy(headers.first)
    first.PatientName = first.ReferringPhysicianName = ""
    return (first, *headers.instances[1:])


def container(name: CodeEntry, items: Sequence[ContentItem]) -> ContainerContentItem:
    """A section of the tree."""
    section = ContainerContentItem(name=concept(name), relationship_type=RelationshipTypeValues.CONTAINS)
    section.ContentSequence = ContentSequence(items)
    return section


def image_library(sources: Sequence[Dataset]) -> ContainerContentItem:
    """TID 1600 of these images, without the optional descriptors, which repeat each image's own header."""
    images = [
        ImageContentItem(
            name=concept(codes.SOURCE),
            referenced_sop_class_uid=source.SOPClassUID,
            referenced_sop_instance_uid=source.SOPInstanceUID,
            relationship_type=RelationshipTypeValues.CONTAINS,
        )
        for source in sources
    ]
    return container(codes.IMAGE_LIBRARY, [container(codes.IMAGE_LIBRARY_GROUP, images)])


def insert_before_measurements(root: ContentSequence, sections: Sequence[ContentItem]) -> None:
    """Puts sections where TID 1500 has its image library."""
    at = next(i for i, item in enumerate(root) if item.ConceptNameCodeSequence[0] == standard.DCM.ImagingMeasurements)
    for offset, section in enumerate(sections):
        root.insert(at + offset, section)
