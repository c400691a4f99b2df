"""The findings SR for a destination that refuses Comprehensive 3D SR: the same tree in older classes, or plain text.

Each is made from the encoded SR, so that patient, study, equipment, observer, evidence and dates are those of the SR.
"""

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, BasicTextSRStorage, ComprehensiveSRStorage, EnhancedSRStorage

from dicom_gateway.report import codes
from dicom_gateway.report.codes import CodeEntry
from dicom_gateway.report.content import ReportedFinding
from dicom_gateway.report.instance import findings_kind, object_uid, predecessors
from dicom_gateway.report.language import Language
from dicom_gateway.report.sr import encode_sr
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.report.wording import finding_in_words

SERIES_NUMBERS = {ComprehensiveSRStorage: 9011, EnhancedSRStorage: 9012, BasicTextSRStorage: 9013}
_KINDS = {ComprehensiveSRStorage: "SR-COMPREHENSIVE", EnhancedSRStorage: "SR-ENHANCED", BasicTextSRStorage: "SR-TEXT"}


def encode_comprehensive_sr(result: StoredResult) -> tuple[Dataset, ...]:
    """Comprehensive SR (PS3.3 A.35.3): the tree of the Comprehensive 3D SR without its SCOORD3D items."""
    return tuple(_in_class(sr, result, ComprehensiveSRStorage) for sr in encode_sr(result))


def encode_enhanced_sr(result: StoredResult) -> tuple[Dataset, ...]:
    """Enhanced SR (PS3.3 A.35.2): as the Comprehensive SR; nothing in our tree is by reference, which it forbids."""
    return tuple(_in_class(sr, result, EnhancedSRStorage) for sr in encode_sr(result))


def encode_basic_text_sr(result: StoredResult) -> tuple[Dataset, ...]:
    """Basic Text SR (PS3.3 A.35.1) after TID 2000: impressions, a paragraph for each answer, what was analysed.

    A paragraph whose finding has a key image refers to it as its best illustration (CID 7003).
    """
    return tuple(_as_text(sr, result) for sr in encode_sr(result))


def _as_text(sr: Dataset, result: StoredResult) -> Dataset:
    language = result.edition.language
    ds = _in_class(sr, result, BasicTextSRStorage)
    by_uid = {
        str(item.ReferencedSOPInstanceUID): item
        for study in ds.get("CurrentRequestedProcedureEvidenceSequence", ())
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    kept = [
        item
        for item in ds.ContentSequence
        if item.RelationshipType != "CONTAINS" or _name(item) in (codes.IMPRESSIONS.value, codes.STUDY_RECORD.value)
    ]
    paragraphs = [_paragraph(finding, by_uid, language) for finding in result.report.findings]
    findings = _container(codes.FINDINGS, paragraphs, language)
    record = next(i for i, item in enumerate(kept) if _name(item) == codes.STUDY_RECORD.value)
    kept.insert(record, findings)
    ds.ContentSequence = Sequence(kept)
    ds.ConceptNameCodeSequence = _code(codes.DIAGNOSTIC_IMAGING_REPORT, language)
    ds.ContentTemplateSequence[0].TemplateIdentifier = "2000"
    return ds


def _in_class(ds: Dataset, result: StoredResult, sop_class: UID) -> Dataset:
    """`ds`, an encoded SR, made into one of another class in place."""
    report, kind = result.report, findings_kind(result, _KINDS[sop_class])
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = object_uid(report, "sop", kind, edition=result.edition)
    ds.SeriesInstanceUID = object_uid(report, "series", kind, edition=result.edition)
    ds.SeriesNumber = SERIES_NUMBERS[sop_class]
    ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    _name_predecessor(ds, result)
    _drop_coordinates_in_space(ds)
    return ds


def _name_predecessor(ds: Dataset, result: StoredResult) -> None:
    """The earlier report in the class of `ds` in place of the earlier SR."""
    for earlier in predecessors(result, ds.SOPClassUID, findings_kind(result, _KINDS[ds.SOPClassUID])):
        (series,) = ds.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
        series.SeriesInstanceUID = earlier.SeriesInstanceUID
        (document,) = series.ReferencedSOPSequence
        document.ReferencedSOPClassUID = earlier.SOPClassUID
        document.ReferencedSOPInstanceUID = earlier.SOPInstanceUID


def _drop_coordinates_in_space(item: Dataset) -> None:
    if "ContentSequence" not in item:
        return
    kept = [child for child in item.ContentSequence if child.ValueType != "SCOORD3D"]
    for child in kept:
        _drop_coordinates_in_space(child)
    if kept:
        item.ContentSequence = Sequence(kept)
    else:
        del item.ContentSequence


def _paragraph(finding: ReportedFinding, by_uid: dict[str, Dataset], language: Language) -> Dataset:
    item = Dataset()
    item.RelationshipType = "CONTAINS"
    item.ValueType = "TEXT"
    item.ConceptNameCodeSequence = _code(codes.FINDING, language)
    item.TextValue = finding_in_words(finding, language)
    source = by_uid.get(finding.key_sop_instance_uid or "")
    if source is not None:
        item.ContentSequence = Sequence([_illustration(source, finding.key_frame_number, language)])
    return item


def _illustration(source: Dataset, frame_number: int | None, language: Language) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.ReferencedSOPClassUID
    reference.ReferencedSOPInstanceUID = source.ReferencedSOPInstanceUID
    if frame_number is not None:
        reference.ReferencedFrameNumber = frame_number
    item = Dataset()
    item.RelationshipType = "INFERRED FROM"
    item.ValueType = "IMAGE"
    item.ConceptNameCodeSequence = _code(codes.BEST_ILLUSTRATION, language)
    item.ReferencedSOPSequence = Sequence([reference])
    return item


def _container(name: CodeEntry, items: list[Dataset], language: Language) -> Dataset:
    container = Dataset()
    container.RelationshipType = "CONTAINS"
    container.ValueType = "CONTAINER"
    container.ConceptNameCodeSequence = _code(name, language)
    container.ContinuityOfContent = "SEPARATE"
    container.ContentSequence = Sequence(items)
    return container


def _code(entry: CodeEntry, language: Language) -> Sequence:
    item = Dataset()
    item.CodeValue = entry.value
    item.CodingSchemeDesignator = entry.scheme
    item.CodeMeaning = language.say(entry.meaning)
    return Sequence([item])


def _name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)
