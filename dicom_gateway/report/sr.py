"""The report as a Comprehensive 3D SR: TID 1500 with a group for each answer, TID 1411 if segmented, else 1501."""

import numpy as np
from highdicom.sr import (
    Comprehensive3DSR,
    ContentSequence,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ReferencedSegment,
    RelationshipTypeValues,
    Scoord3DContentItem,
    SourceImageForMeasurementGroup,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as standard
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian, SegmentationStorage

from dicom_gateway.report import codes
from dicom_gateway.report.codes import CodeEntry
from dicom_gateway.report.content import Report, ReportedFinding, ReportedMeasurement, ReportedQuality
from dicom_gateway.report.edition import Edition
from dicom_gateway.report.headline import commented, headline
from dicom_gateway.report.instance import (
    findings_kind,
    finish,
    instance_arguments,
    object_uid,
    predecessors,
    private_coding_scheme,
    state_verification,
)
from dicom_gateway.report.language import Language
from dicom_gateway.report.segmentation import (
    Segment,
    segments_by_tracking_uid,
    tracking_identifier,
)
from dicom_gateway.report.sr_items import (
    algorithm_identification,
    concept,
    container,
    evaluations,
    finding_site,
    image_library,
    insert_before_measurements,
    language_of,
    nameless,
    observation_context,
)
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.report.wording import decimals, describe_series, finding_title, place, revision_in_words
from models.findings import FindingKind, Quantity

SERIES_NUMBER = 9001
SERIES_DESCRIPTION = "AI chest CT findings"

_CONTAINS = RelationshipTypeValues.CONTAINS


def encode_sr(result: StoredResult) -> tuple[Dataset]:
    """Comprehensive 3D SR of the whole report, refused or not; the same result gives the same bytes.

    Evidence is every instance of `headers`, the image library only those shown by a finding. A kind that was not
    assessed has a group too, answered with a code of its own and the reason, so that nobody reads it as absent.

    An amended report names the SR of the revision it supersedes in the Predecessor Documents Sequence (PS3.3 C.17.2).
    """
    kind = findings_kind(result, "SR")
    sr = Comprehensive3DSR(
        evidence=[*nameless(result.headers), *_segmentations(result)],
        content=findings_content(result),
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=predecessors(result, Comprehensive3DSRStorage, kind, "1") or None,
        coding_schemes=[private_coding_scheme()],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **instance_arguments(result, kind, SERIES_NUMBER),
    )
    state_verification(sr, result)
    return (finish(sr, result, SERIES_DESCRIPTION),)


def findings_content(result: StoredResult) -> MeasurementReport:
    """The content tree of the Findings SR (TID 1500), as each SR class that can hold it takes it."""
    report, language = result.report, result.edition.language
    by_uid = {str(ds.SOPInstanceUID): ds for ds in result.headers.instances}
    segments = _segments_referred_to(result)
    content = MeasurementReport(
        observation_context=observation_context(report),
        procedure_reported=concept(codes.CT_CHEST),
        imaging_measurements=[
            _group(finding, report, by_uid, segments.get(finding.tracking_uid), result.edition)
            for finding in report.findings
        ],
        title=concept(codes.IMAGING_MEASUREMENT_REPORT),
        language_of_content_item_and_descendants=language_of(language),
    )
    _add_sections(content[0].ContentSequence, report, by_uid, language)
    _separate(content[0])
    return content


def _text(name: CodeEntry, value: str) -> TextContentItem:
    return TextContentItem(name=concept(name), value=value, relationship_type=_CONTAINS)


def _add_sections(root: ContentSequence, report: Report, by_uid: dict[str, Dataset], language: Language) -> None:
    """Impressions and image library before the groups, what was analysed after them; TID 1500 is extensible."""
    impressions = [_text(codes.IMPRESSION, sentence) for sentence in headline(report, language)]
    comments = (*commented(report, language), language.told(report.disclaimer))
    impressions += [_text(codes.COMMENT, words) for words in comments]
    sections = [container(codes.IMPRESSIONS, impressions)]
    key_uids = dict.fromkeys(f.key_sop_instance_uid for f in report.findings if f.key_sop_instance_uid)
    images = [by_uid[uid] for uid in key_uids if uid in by_uid]
    if images:
        sections.append(image_library(images))
    insert_before_measurements(root, sections)
    root.append(container(codes.STUDY_RECORD, _study_record(report, language)))


def _separate(item: Dataset) -> None:
    """Marks every container as a list of separate items; as continuous text a viewer drops the items' names."""
    if item.ValueType == "CONTAINER":
        item.ContinuityOfContent = "SEPARATE"
    for child in item.get("ContentSequence", ()):
        _separate(child)


def _study_record(report: Report, language: Language) -> list[TextContentItem]:
    items = [_text(codes.REVISION, revision_in_words(report, language))]
    if report.refusal is not None:
        items.append(_text(codes.REFUSAL, language.told(report.refusal)))
    if report.analysed_series is not None:
        items.append(_text(codes.ANALYSED_SERIES, describe_series(report, language)))
    for issue in report.quality:
        items.append(_text(codes.QUALITY_CHECK, _quality_check(issue, language)))
    for series in report.rejected_series:
        number = series.series_number
        words = language.say(
            "series {number}, {modality}, {n} instances: {reason}",
            number=language.say("without number") if number is None else number,
            modality=series.modality or language.say("unknown modality"),
            n=series.instance_count,
            reason=language.told(series.reason),
        )
        items.append(_text(codes.SERIES_NOT_ANALYSED, words))
    items.append(_text(codes.UNREADABLE_FILES, str(report.unreadable_file_count)))
    return items


def _quality_check(issue: ReportedQuality, language: Language) -> str:
    words = language.say(
        "{check}: {verdict}: {message}",
        check=language.say(issue.check),
        verdict=language.say(issue.verdict),
        message=language.told(issue.message),
    )
    if issue.measured is None:
        return words
    if issue.limit is None:
        return language.say("{words} (measured {n})", words=words, n=f"{issue.measured:.10g}")
    measured, limit = f"{issue.measured:.10g}", f"{issue.limit:.10g}"
    return language.say("{words} (measured {n}, limit {m})", words=words, n=measured, m=limit)


def _segments_referred_to(result: StoredResult) -> dict[str, Segment]:
    """The segments of lesions by tracking UID; none where the document goes without the Segmentations."""
    if not result.beside_segmentations:
        return {}
    return {uid: s for uid, s in segments_by_tracking_uid(result).items() if s.finding.lesion is not None}


def _segmentations(result: StoredResult) -> list[Dataset]:
    """What the evidence sequence needs of the Segmentations that groups point at."""
    pointed_at = []
    for uid in dict.fromkeys(segment.sop_instance_uid for segment in _segments_referred_to(result).values()):
        ds = Dataset()
        ds.StudyInstanceUID = result.report.study_instance_uid
        ds.SeriesInstanceUID = object_uid(result.report, "series", "SEG", edition=result.edition)
        ds.SOPClassUID = SegmentationStorage
        ds.SOPInstanceUID = uid
        pointed_at.append(ds)
    return pointed_at


def _group(
    finding: ReportedFinding,
    report: Report,
    by_uid: dict[str, Dataset],
    segment: Segment | None,
    edition: Edition,
) -> MeasurementsAndQualitativeEvaluations | VolumetricROIMeasurementsAndQualitativeEvaluations:
    """TID 1501 (1411 with a segment): what was asked, the answer, how sure, how large, where, by which algorithm."""
    kind, language = FindingKind(finding.kind), edition.language
    source = by_uid.get(finding.key_sop_instance_uid or "")
    image = None if source is None else _source_image(source, finding.key_frame_number)
    common = {
        "tracking_identifier": TrackingIdentifier(uid=finding.tracking_uid, identifier=tracking_identifier(finding)),
        "finding_type": concept(edition.finding_code(kind)),
        "finding_sites": [finding_site(kind, finding.laterality)],
        "algorithm_id": algorithm_identification(finding, report, language),
        "measurements": _measurements(finding),
        "qualitative_evaluations": evaluations(finding),
    }
    if segment is None:
        group = MeasurementsAndQualitativeEvaluations(**common, source_images=None if image is None else [image])
    else:
        group = VolumetricROIMeasurementsAndQualitativeEvaluations(
            **common, referenced_segment=_reference(segment, report)
        )
        if image is not None:
            group[0].ContentSequence.append(image)
    items = group[0].ContentSequence
    finding_item = next(i for i, item in enumerate(items) if item.ConceptNameCodeSequence[0] == standard.DCM.Finding)
    items.insert(finding_item + 1, _text(codes.FINDING_IN_WORDS, finding_title(finding, language)))
    items.append(_text(codes.METHOD, language.told(finding.method)))
    if finding.reason:
        is_unanswered = finding.presence == "not_assessed"
        name = codes.REASON_NOT_ASSESSED if is_unanswered else codes.REASON
        items.append(_text(name, language.told(finding.reason)))
    if where := place(finding, language):
        items.append(_text(codes.SITE_IN_WORDS, where))
    if finding.centre_mm is not None and source is not None and "FrameOfReferenceUID" in source:
        items.append(_centre(finding.centre_mm, source.FrameOfReferenceUID))
    return group


def _source_image(source: Dataset, frame_number: int | None) -> SourceImageForMeasurementGroup:
    return SourceImageForMeasurementGroup(
        source.SOPClassUID, source.SOPInstanceUID, None if frame_number is None else [frame_number]
    )


def _reference(segment: Segment, report: Report) -> ReferencedSegment:
    """By segment number alone (frame numbers beside it are forbidden, PS3.3 C.17.5.1)."""
    series_instance_uid = report.series_instance_uid
    if series_instance_uid is None:
        raise ValueError("a segment without an analysed series")
    return ReferencedSegment(
        SegmentationStorage,
        segment.sop_instance_uid,
        segment.number,
        source_series=SourceSeriesForSegmentation(series_instance_uid),
    )


def _centre(centre_mm: tuple[float, float, float], frame_of_reference_uid: str) -> Scoord3DContentItem:
    return Scoord3DContentItem(
        name=concept(codes.CENTER),
        graphic_type="POINT",
        graphic_data=np.array([centre_mm]),
        frame_of_reference_uid=frame_of_reference_uid,
        relationship_type=_CONTAINS,
    )


def _measurements(finding: ReportedFinding) -> list[Measurement]:
    kind = FindingKind(finding.kind)
    items = [_measurement(m, kind) for m in finding.measurements]
    if finding.probability is not None:
        percent = Measurement(
            name=concept(codes.CERTAINTY_OF_FINDING),
            value=round(finding.probability * 100, 1),
            unit=concept(codes.UNIT_CODES["%"]),
        )
        items.insert(0, percent)
    return items


def _measurement(measurement: ReportedMeasurement, kind: FindingKind) -> Measurement:
    quantity = codes.QUANTITY_CODES[Quantity(measurement.quantity)]
    sites = [finding_site(kind, measurement.laterality)] if measurement.laterality else None
    if quantity.site is not None:
        sites = [FindingSite(anatomic_location=concept(quantity.site))]
    units = {str(unit): entry for unit, entry in codes.UNIT_CODES.items()}
    return Measurement(
        name=concept(quantity.name),
        value=measurement.value if decimals(measurement.unit, measurement.value) else int(measurement.value),
        unit=concept(units[measurement.unit]),
        derivation=quantity.derivation and concept(quantity.derivation),
        method=quantity.method and concept(quantity.method),
        finding_sites=sites,
    )
