"""The tables of the DICOM conformance statement, written from the code: `python -m dicom_gateway.conformance`."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydicom.datadict import dictionary_description, dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, BasicTextSRStorage, ComprehensiveSRStorage, EnhancedSRStorage
from pynetdicom import AE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification

from dicom_gateway.deliver import attempt, dimse
from dicom_gateway.deliver.profile import SOP_CLASSES, proposed_contexts, ways_of_sending
from dicom_gateway.errors import PeerRefused, PeerUnreachable
from dicom_gateway.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_gateway.receive import admission, commitment, connection, performed
from dicom_gateway.receive.statuses import StoreStatus
from dicom_gateway.report import (
    codes,
    key_image_objects,
    key_objects,
    marks,
    pdf,
    presentation,
    segmentation,
    sr,
    sr_fallbacks,
    summary,
)
from dicom_gateway.report.codes import CodeEntry, CodeStatus
from dicom_gateway.report.instance import described
from dicom_gateway.report.language import ENGLISH
from dicom_gateway.report.wording import KIND_NAMES, QUANTITY_NAMES
from dicom_gateway.settings import Destination, ResultObject, Settings, StowDestination, TransferSyntax
from dicom_gateway.web import dicomweb, dicomweb_holdings, dicomweb_store

STATEMENT = Path(__file__).with_name("CONFORMANCE.md")
_BEGIN = "<!-- begin {name}: written by dicom_gateway.conformance -->"
_END = "<!-- end {name} -->"

_STORE_STATUSES = {
    StoreStatus.SUCCESS: "The bytes and their index row are on disk. Also for an instance that is there already, with "
    "the same bytes.",
    StoreStatus.PROCESSING_FAILURE: "An error that has no other status. Nothing was kept.",
    StoreStatus.DUPLICATE_SOP_INSTANCE: "The SOP Instance UID is there already, with other bytes. The first stay.",
    StoreStatus.INVALID_SOP_INSTANCE: "A Study, Series or SOP Instance UID is not valid (PS3.5 section 9.1).",
    StoreStatus.REFUSED_SOP_CLASS_NOT_SUPPORTED: "The SOP class is not that of the presentation context.",
    StoreStatus.REFUSED_OUT_OF_RESOURCES: "Less space is free than `minimum_free_space_mb`. Send again later.",
    StoreStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS: "SOP Class or Instance UID differ between command and data set.",
    StoreStatus.CANNOT_UNDERSTAND: "The data set cannot be parsed, lacks identity or Pixel Data, or is cut off.",
}
_COMMITMENT_STATUSES = {
    StoreStatus.SUCCESS: "The request is taken; N-EVENT-REPORT: the result is noted.",
    StoreStatus.PROCESSING_FAILURE: "An error that has no other status.",
    StoreStatus.NO_SUCH_SOP_INSTANCE: "Another instance than 1.2.840.10008.1.20.1.1; N-EVENT-REPORT: a transaction of "
    "which we know nothing, or another AE title than that of the destination that was asked.",
    StoreStatus.INVALID_ARGUMENT_VALUE: "The data set cannot be parsed, or a UID is missing or not valid.",
    StoreStatus.NO_SUCH_ACTION: "Another Action Type ID than 1.",
    StoreStatus.UNRECOGNIZED_OPERATION: "Another operation, or this one in the context of another SOP class.",
}
_STEP_STATUSES = {
    StoreStatus.SUCCESS: "What is told of the step is kept.",
    StoreStatus.INVALID_ATTRIBUTE_VALUE: "A UID is missing or not valid, another status than the three, a step that "
    "does not begin IN PROGRESS, or one of more than 100 studies.",
    StoreStatus.PROCESSING_FAILURE: "The step is over and may no longer be updated, the data set cannot be parsed, or "
    "an error that has no other status.",
    StoreStatus.DUPLICATE_SOP_INSTANCE: "N-CREATE: the step is known already.",
    StoreStatus.NO_SUCH_SOP_INSTANCE: "N-SET: a step that this calling AE title has not begun.",
    StoreStatus.INVALID_SOP_INSTANCE: "The SOP Instance UID of the command is missing or not valid.",
    StoreStatus.MISSING_ATTRIBUTE: "N-CREATE without a status or a study.",
    StoreStatus.UNRECOGNIZED_OPERATION: "Another operation, N-GET for one.",
    StoreStatus.RESOURCE_LIMITATION: "N-CREATE: 10,000 steps are known of the last week.",
}
# One status of each group of PS3.4 Table B.2-1 and PS3.7 Annex C.
_ANSWERS = {
    "Success": (0x0000, 0x0000),
    "Warning": (0xB000, 0xBFFF),
    "Duplicate SOP instance": (0x0111, 0x0111),
    "Refused: out of resources": (0xA700, 0xA7FF),
    "Refused: not authorized": (0x0124, 0x0124),
    "Error: data set does not match SOP class": (0xA900, 0xA9FF),
    "Error: cannot understand": (0xC000, 0xCFFF),
    "Processing failure": (0x0110, 0x0110),
}
_DICOM_SETTINGS = (
    "ae_title",
    "dicom_host",
    "dicom_port",
    "calling_ae_titles",
    "stat_calling_ae_titles",
    "quiet_period_s",
    "quiet_period_single_image_s",
    "sources",
    "missing_images_wait_s",
    "urgent_kinds",
    "calling_networks",
    "calling_ae_networks",
    "dicom_passcodes_file",
    "dicom_tls_certificate_file",
    "dicom_tls_key_file",
    "dicom_tls_ca_file",
    "maximum_associations",
    "maximum_associations_per_address",
    "maximum_mb_per_s_per_address",
    "maximum_instance_mb",
    "stow_networks",
    "minimum_free_space_mb",
    "rules",
    "delivery_attempts",
    "delivery_backoff_s",
)
# Name in settings -> series number, description, root template, when there is none.
OBJECTS: dict[ResultObject, tuple[int, str, str, str]] = {
    "sr": (sr.SERIES_NUMBER, described(sr.SERIES_DESCRIPTION, None, ENGLISH), "TID 1500", "never"),
    "seg": (
        segmentation.BINARY.series_number,
        described(segmentation.BINARY.series_description, None, ENGLISH),
        "-",
        "nothing is outlined, or the source has no frame of reference",
    ),
    "seg_labelmap": (
        segmentation.LABELMAP.series_number,
        described(segmentation.LABELMAP.series_description, None, ENGLISH),
        "-",
        "nothing is outlined, or the source has no frame of reference",
    ),
    "sc": (summary.SERIES_NUMBER, described(summary.SERIES_DESCRIPTION, None, ENGLISH), "-", "never"),
    "marks": (
        marks.SERIES_NUMBER,
        described(marks.SERIES_DESCRIPTION, None, ENGLISH),
        "TID 1500",
        "nothing is outlined",
    ),
    "key_images": (
        key_image_objects.SERIES_NUMBER,
        described(key_image_objects.SERIES_DESCRIPTION, None, ENGLISH),
        "-",
        "no finding has a key image",
    ),
    "ko": (
        key_objects.SERIES_NUMBER,
        described(key_objects.SERIES_DESCRIPTION, None, ENGLISH),
        "TID 2010",
        "no finding has a key slice",
    ),
    "gsps": (
        presentation.SERIES_NUMBER,
        described(presentation.SERIES_DESCRIPTION, None, ENGLISH),
        "-",
        "nothing is outlined",
    ),
    "pdf": (pdf.SERIES_NUMBER, described(pdf.SERIES_DESCRIPTION, None, ENGLISH), "-", "never"),
    "sr_comprehensive": (
        sr_fallbacks.SERIES_NUMBERS[ComprehensiveSRStorage],
        described(sr.SERIES_DESCRIPTION, None, ENGLISH),
        "TID 1500",
        "never",
    ),
    "sr_enhanced": (
        sr_fallbacks.SERIES_NUMBERS[EnhancedSRStorage],
        described(sr.SERIES_DESCRIPTION, None, ENGLISH),
        "TID 1500",
        "never",
    ),
    "sr_text": (
        sr_fallbacks.SERIES_NUMBERS[BasicTextSRStorage],
        described(sr.SERIES_DESCRIPTION, None, ENGLISH),
        "TID 2000",
        "never",
    ),
}

_SR: tuple[ResultObject, ...] = ("sr", "sr_comprehensive", "sr_enhanced", "sr_text", "marks")
_DOCUMENTS: tuple[ResultObject, ...] = (*_SR, "ko")
_PICTURES: tuple[ResultObject, ...] = ("sc", "key_images")
_SEGMENTATIONS: tuple[ResultObject, ...] = ("seg", "seg_labelmap")
_IMAGES: tuple[ResultObject, ...] = (*_PICTURES, *_SEGMENTATIONS)
_ALL: tuple[ResultObject, ...] = tuple(OBJECTS)


def _all_but(*names: ResultObject) -> tuple[ResultObject, ...]:
    return tuple(name for name in _ALL if name not in names)


_COPIED = "source, if valid there; else empty"
_IF_THERE = "source; absent where the source has none"
_CREATED = "when the report was made"
# (keywords, objects, value) of the elements at the top level of each data set.
ATTRIBUTES: tuple[tuple[str, tuple[ResultObject, ...], str], ...] = (
    ("SpecificCharacterSet", _ALL, "`ISO_IR 192`; `GB18030` where the destination's profile says so"),
    ("SOPClassUID", _ALL, "table A-1"),
    ("SOPInstanceUID SeriesInstanceUID", _ALL, "`2.25.`, derived from the report's content"),
    ("StudyInstanceUID", _ALL, "source"),
    ("PatientName PatientID PatientBirthDate PatientSex", _ALL, _COPIED),
    ("AccessionNumber StudyID StudyDate StudyTime ReferringPhysicianName", _ALL, _COPIED),
    ("PatientAge StudyDescription IssuerOfPatientID TimezoneOffsetFromUTC", _ALL, _IF_THERE),
    ("Modality", _ALL, "SR, SEG, OT (pictures), KO, PR, DOC"),
    ("SeriesNumber", _ALL, "table A-1"),
    (
        "SeriesDescription",
        _ALL,
        'table A-1, "(verified)" for "(unverified)" where a person has verified the report; before it "URGENT " where '
        'it is urgent (`urgent_kinds`); after it ", revision N" from the second revision on',
    ),
    ("SeriesDate SeriesTime InstanceCreationDate InstanceCreationTime", _ALL, _CREATED),
    ("InstanceNumber", _ALL, "1, 2, ..."),
    ("Manufacturer", _ALL, "`OneScan project`"),
    ("ManufacturerModelName", _ALL, "name of the model"),
    ("SoftwareVersions", _ALL, "of the software and of the model"),
    ("DeviceSerialNumber", _ALL, "SHA-256 of the model's weights"),
    ("ContentQualification", _ALL, "`RESEARCH`"),
    ("ContributingEquipmentSequence", _all_but("pdf"), "the library that encodes"),
    ("ContentDate ContentTime", _all_but("gsps"), _CREATED),
    ("PresentationCreationDate PresentationCreationTime", ("gsps",), _CREATED),
    ("CodingSchemeIdentificationSequence", (*_SR, *_SEGMENTATIONS), "declares 99ONESCAN"),
    (
        "PredecessorDocumentsSequence",
        _SR,
        "of an amended or verified report: the same object of the revision it supersedes",
    ),
    ("CompletionFlag", _SR, "`COMPLETE`"),
    ("PreliminaryFlag", _SR, "`PRELIMINARY`; `FINAL` of a verified report"),
    ("VerificationFlag", (*_SR, "pdf"), "`UNVERIFIED`; `VERIFIED` of a verified report"),
    ("VerifyingObserverSequence", _SR, "of a verified report: name, organisation and time"),
    ("PerformedProcedureCodeSequence", _SR, "empty"),
    ("ReferencedPerformedProcedureStepSequence", _DOCUMENTS, "empty"),
    ("CurrentRequestedProcedureEvidenceSequence", _DOCUMENTS, "the analysed images (and the SEG); KO: those it names"),
    ("ValueType ContinuityOfContent ContentTemplateSequence ContentSequence", _DOCUMENTS, "the root of the tree"),
    ("ConceptNameCodeSequence", (*_DOCUMENTS, "gsps", "pdf"), "title, annex B"),
    ("Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation SamplesPerPixel", _IMAGES, "of the picture"),
    ("PhotometricInterpretation", _IMAGES, "`RGB`; SEG `MONOCHROME2`"),
    ("PlanarConfiguration", _PICTURES, "0"),
    ("PixelData", _IMAGES, "8 bit; BINARY SEG 1 bit"),
    ("ImageType", _IMAGES, "`DERIVED\\SECONDARY\\OTHER`; SEG `DERIVED\\PRIMARY`"),
    ("LossyImageCompression", _IMAGES, "`00`; `01` of a source that is"),
    ("PatientOrientation", _PICTURES, "`L\\P`"),
    ("ConversionType", (*_PICTURES, "pdf"), "`DI`; PDF `SYN`"),
    ("DateOfSecondaryCapture TimeOfSecondaryCapture", _PICTURES, _CREATED),
    ("DerivationDescription", _PICTURES, "the disclaimer"),
    ("BurnedInAnnotation", (*_PICTURES, "pdf"), "`YES`; key images `NO`"),
    ("BodyPartExamined", (*_PICTURES, "gsps"), "`CHEST`"),
    ("ImageComments", ("key_images",), "the finding"),
    ("SourceImageSequence", ("key_images", *_SEGMENTATIONS), "the image shown; SEG: the analysed images"),
    ("FrameOfReferenceUID", _SEGMENTATIONS, "source"),
    ("PositionReferenceIndicator", _SEGMENTATIONS, "empty"),
    (
        "NumberOfFrames SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence",
        _SEGMENTATIONS,
        "by segment, by slice",
    ),
    ("DimensionOrganizationSequence DimensionIndexSequence", _SEGMENTATIONS, "segment number, position"),
    ("SegmentationType", _SEGMENTATIONS, "`BINARY`; label map `LABELMAP`"),
    ("SegmentsOverlap", _SEGMENTATIONS, "`YES` or `NO`, as it is; label map `NO`"),
    (
        "SegmentSequence",
        _SEGMENTATIONS,
        "one a lesion or measured organ, algorithm type AUTOMATIC, with tracking UID; label map: 0 is the background",
    ),
    ("DimensionOrganizationType", ("seg_labelmap",), "`3D` where the frames are evenly spaced; else absent"),
    ("PixelPaddingValue", ("seg_labelmap",), "0"),
    ("ContentLabel", (*_SEGMENTATIONS, "gsps"), "`AI_FINDINGS`"),
    ("ContentDescription", (*_SEGMENTATIONS, "gsps"), "as the series description"),
    ("ReferencedSeriesSequence", (*_SEGMENTATIONS, "gsps"), "the analysed images; those shown"),
    ("ContentCreatorName", ("gsps",), "empty"),
    ("PresentationLUTShape", ("gsps", "seg", "seg_labelmap"), "`IDENTITY`"),
    ("RescaleSlope RescaleIntercept", ("gsps",), "source"),
    ("RescaleType", ("gsps",), "`HU`"),
    ("SoftcopyVOILUTSequence", ("gsps",), "a window a slice, by the kind of finding"),
    ("DisplayedAreaSelectionSequence", ("gsps",), "the whole image"),
    ("GraphicLayerSequence GraphicAnnotationSequence", ("gsps",), "outlines and a line of text, in pixels"),
    ("AcquisitionDateTime", ("pdf",), "empty"),
    ("DocumentTitle", ("pdf",), 'ends in "(AI, unverified)" or "(AI, verified)"'),
    ("MIMETypeOfEncapsulatedDocument", ("pdf",), "`application/pdf`"),
    ("SourceInstanceSequence", ("pdf",), "the analysed images"),
    ("EncapsulatedDocument", ("pdf",), "PDF 1.4"),
    ("EncapsulatedDocumentLength", ("pdf",), "without the padding byte"),
)


def write_tables(statement: Path) -> None:
    """Replace what stands between the marks of each table. Raises ValueError when a mark is missing or there twice."""
    text = statement.read_text(encoding="utf-8")
    for name, table in tables().items():
        begin, end = _BEGIN.format(name=name), _END.format(name=name)
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{statement.name} does not hold the marks {begin} and {end} once each")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
    statement.write_text(text, encoding="utf-8")


def tables() -> dict[str, str]:
    """Markdown of each table by its name in the statement's marks."""
    return {
        "services": _services(),
        "accepted contexts": _accepted_contexts(),
        "store statuses": _table(
            ("status", "name", "when"),
            ((_hexadecimal(status), status.name, when) for status, when in _STORE_STATUSES.items()),
        ),
        "commitment statuses": _table(
            ("status", "name", "when"),
            ((_hexadecimal(status), status.name, when) for status, when in _COMMITMENT_STATUSES.items()),
        ),
        "step statuses": _table(
            ("status", "name", "when"),
            ((_hexadecimal(status), status.name, when) for status, when in _STEP_STATUSES.items()),
        ),
        "proposed contexts": _proposed_contexts(),
        "peer statuses": _peer_statuses(),
        "dicomweb resources": _dicomweb_resources(),
        "dicomweb attributes": _dicomweb_attributes(),
        "dicomweb failures": _dicomweb_failures(),
        "dicomweb client": _dicomweb_client(),
        "association policies": _policies(),
        "settings": _settings(),
        "objects": _objects(),
        "attributes": _table(("tag", "attribute", "VR", "objects", "value"), _attributes()),
        "finding codes": _finding_codes(),
        "quantity codes": _quantity_codes(),
        "codes": _table(
            ("value", "scheme", "meaning", "status", "source"),
            ((f"`{e.value}`", e.scheme, e.meaning, e.status, e.source) for e in _by_scheme(private=False)),
        ),
        "private codes": _table(("value", "meaning"), ((f"`{e.value}`", e.meaning) for e in _by_scheme(private=True))),
        "local codes": _table(
            ("value", "meaning"),
            [(f"`{kind.value}`", name) for kind, name in KIND_NAMES.items()]
            + [(f"`{quantity.value}`", name) for quantity, name in QUANTITY_NAMES.items()],
        ),
    }


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _hexadecimal(status: int) -> str:
    return f"0x{status:04X}"


def _class_name(uid: str) -> str:
    # pydicom's dictionary does not have it yet.
    return "Label Map Segmentation Storage" if uid == SOP_CLASSES["seg_labelmap"] else UID(uid).name


def _services() -> str:
    rows = [(str(Verification), Verification.name, "yes", "yes")]
    rows += [(str(uid), UID(uid).name, "no", "yes") for uid in admission.SOP_CLASSES]
    rows += [
        (uid, _class_name(uid), "yes", "no")
        for uid in dict.fromkeys((*SOP_CLASSES.values(), str(StudyRootQueryRetrieveInformationModelFind)))
    ]
    rows.append((commitment.SOP_CLASS_UID, UID(commitment.SOP_CLASS_UID).name, "yes", "yes"))
    rows.append((performed.SOP_CLASS_UID, UID(performed.SOP_CLASS_UID).name, "no", "yes"))
    return _table(("SOP class UID", "SOP class", "SCU", "SCP"), rows)


def _accepted_contexts() -> str:
    messages = ", ".join(UID(uid).name for uid in admission.MESSAGE_SOP_CLASSES)
    rows = [(messages, UID(uid).name, str(uid)) for uid in admission.MESSAGE_SYNTAXES]
    stored = ", ".join(UID(sop_class).name for sop_class in admission.SOP_CLASSES)
    rows += [(stored, UID(uid).name, str(uid)) for uid in admission.TRANSFER_SYNTAXES]
    return _table(("abstract syntax", "transfer syntax", "UID"), rows)


def _proposed_contexts() -> str:
    every: tuple[TransferSyntax, ...] = ("ExplicitVRLittleEndian", "ImplicitVRLittleEndian", "RLELossless")
    rows = []
    for name in _ALL:
        sop_class = SOP_CLASSES[name]
        profile = Destination(
            name="any", ae_title="ANY", host="any", port=104, objects=(name,), transfer_syntaxes=every
        )
        offered = ", ".join(proposed_contexts(profile)[sop_class])
        instead = ", ".join(f"`{way}`" for way in ways_of_sending(name)[1:])
        rows.append((f"`{name}`", _class_name(sop_class), offered, instead or "left out"))
    default = Destination.model_fields
    sent = ", ".join(f"`{name}`" for name in default["objects"].default)
    syntaxes = ", ".join(default["transfer_syntaxes"].default)
    table = _table(("object", "SOP class", "can be offered as", "where the class is refused"), rows)
    return f"{table}\n\nBy default {sent} are sent, and {syntaxes} are offered, in this order."


def _peer_statuses() -> str:
    rows = []
    for name, (first, last) in _ANSWERS.items():
        whole = _hexadecimal(first) if first == last else f"{_hexadecimal(first)}-{_hexadecimal(last)}"
        outcomes = {_outcome(status) for status in (first, last)}
        rows.append((whole, name, " / ".join(sorted(outcomes))))
    refused = "the presentation context was refused: the next object of the table above, or left out"
    rows.append((_hexadecimal(attempt.SOP_CLASS_NOT_SUPPORTED), "Refused: SOP class not supported", f"as if {refused}"))
    return _table(("status", "meaning", "what we do"), rows)


def _outcome(status: int) -> str:
    response = Dataset()
    response.Status = status
    try:
        dimse.require_success(response)
    except PeerUnreachable:
        return "another attempt later, with growing pauses"
    except PeerRefused:
        return "the other objects are sent, then the delivery is parked for the operator"
    return "delivered"


def _dicomweb_resources() -> str:
    rows = []
    for router in (dicomweb.router, dicomweb_store.router):
        for route in router.routes:
            assert isinstance(route, APIRoute)
            content = [media for answer in route.responses.values() for media in answer.get("content", ())]
            told = ", ".join(f"`{media}`" for media in dict.fromkeys(content))
            rows.append((", ".join(sorted(route.methods or ())), f"`{route.path}`", str(route.summary), told))
    return _table(("method", "resource", "service", "answer"), rows)


def _dicomweb_attributes() -> str:
    counted = {
        "study": "ModalitiesInStudy NumberOfStudyRelatedSeries NumberOfStudyRelatedInstances InstanceAvailability",
        "series": "NumberOfSeriesRelatedInstances",
        "instance": "InstanceAvailability",
    }
    always = {
        "study": dicomweb_holdings.STUDY_ATTRIBUTES,
        "series": dicomweb_holdings.SERIES_ATTRIBUTES,
        "instance": dicomweb_holdings.INSTANCE_ATTRIBUTES,
    }
    rows = [
        (
            level,
            ", ".join([*keywords, *counted[level].split(), "RetrieveURL"]),
            ", ".join(dicomweb_holdings.MORE_ATTRIBUTES[level]),
        )
        for level, keywords in always.items()
    ]
    return _table(("level", "always told, where the header has it", "with `includefield=all`, too"), rows)


def _dicomweb_failures() -> str:
    here = {
        StoreStatus.REFUSED_SOP_CLASS_NOT_SUPPORTED: "The SOP class is none of section 4.1.",
        StoreStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS: "SOP Class or Instance UID differ between file meta information "
        "and data set, or the instance is of another study than the resource.",
    }
    rows = [(s, here.get(s, when)) for s, when in _STORE_STATUSES.items() if s is not StoreStatus.SUCCESS]
    syntax = (dicomweb_store.TRANSFER_SYNTAX_NOT_SUPPORTED, "The transfer syntax is none of section 4.1.")
    return _table(("failure reason", "when"), ((_hexadecimal(reason), when) for reason, when in (*rows, syntax)))


def _dicomweb_client() -> str:
    rows = [
        (f"`{name}`", _default(StowDestination, name), _description(StowDestination, name))
        for name in StowDestination.model_fields
    ]
    return _table(("setting", "default", "meaning"), rows)


def _policies() -> str:
    requestor = AE()
    maximum = Settings.model_fields["maximum_associations"].default
    rows = [
        ("Application context name", "1.2.840.10008.3.1.1.1", "1.2.840.10008.3.1.1.1"),
        ("Implementation Class UID", IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_CLASS_UID),
        ("Implementation Version Name", IMPLEMENTATION_VERSION_NAME, IMPLEMENTATION_VERSION_NAME),
        ("Maximum PDU size (bytes)", str(admission.MAXIMUM_PDU_BYTES), str(requestor.maximum_pdu_size)),
        ("Associations at the same time", f"{maximum} by default (`maximum_associations`)", "1 a delivery"),
        ("Outstanding asynchronous operations", "1 (not negotiated)", "1 (not negotiated)"),
        (
            "Connection and ACSE timeout (s)",
            str(connection.HALF_OPEN_TIMEOUT_S),
            str(dimse.CONNECTION_TIMEOUT_S),
        ),
        (
            "DIMSE and network timeout (s)",
            f"{connection.IDLE_TIMEOUT_S}; {connection.IDLE_AFTER_AN_IMAGE_S} after an image",
            str(dimse.RESPONSE_TIMEOUT_S),
        ),
        ("Role selection", "granted for storage commitment", "SCP for N-EVENT-REPORT"),
        ("Extended negotiation", "none", "none"),
        ("User identity", "name and passcode, asked for where `dicom_passcodes_file` is set, and confirmed", "none"),
        (
            "TLS",
            "1.2 and 1.3, both sides show certificates, where the `dicom_tls_*` files are set",
            "1.2 and 1.3 towards peers with a `tls_ca_file`; ours is shown where `tls_certificate_file` is set",
        ),
    ]
    return _table(("", "acceptor (storage SCP)", "initiator (storage SCU)"), rows)


def _settings() -> str:
    rows = [(f"`{name}`", _default(Settings, name), _description(Settings, name)) for name in _DICOM_SETTINGS]
    rows += [
        (f"`destinations.{name}`", _default(Destination, name), _description(Destination, name))
        for name in Destination.model_fields
    ]
    return _table(("setting", "default", "meaning"), rows)


def _default(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return "-"
    value = field.default
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)


def _description(model: type[BaseModel], name: str) -> str:
    return model.model_fields[name].description or ""


def _objects() -> str:
    rows = [
        (f"`{name}`", _class_name(SOP_CLASSES[name]), str(number), description, template, absent)
        for name, (number, description, template, absent) in OBJECTS.items()
    ]
    return _table(
        ("object", "SOP class", "series number", "series description", "root template", "not made when"), rows
    )


def _attributes() -> Iterator[tuple[str, ...]]:
    rows = [(keyword, objects, value) for keywords, objects, value in ATTRIBUTES for keyword in keywords.split()]
    for keyword, objects, value in sorted(rows, key=lambda row: tag_for_keyword(row[0]) or 0):
        tag = Tag(keyword)
        yield str(tag).replace(" ", ""), dictionary_description(tag), dictionary_VR(tag), _named(objects), value


def _named(objects: tuple[ResultObject, ...]) -> str:
    if set(objects) == set(_ALL):
        return "all"
    if len(objects) > len(_ALL) // 2 + 2:
        return f"all but {', '.join(name for name in _ALL if name not in objects)}"
    return ", ".join(name for name in _ALL if name in objects)


def _finding_codes() -> str:
    rows = [
        (
            KIND_NAMES[kind],
            _code(entry.finding),
            entry.finding.status,
            _code(entry.site),
            _code(codes.SNOMED_CODES[kind]) if kind in codes.SNOMED_CODES else "the same",
        )
        for kind, entry in codes.KIND_CODES.items()
    ]
    head = ("finding", "finding type", "status", "finding site", 'finding type for `code_set = "snomed"`')
    return _table(head, rows)


def _quantity_codes() -> str:
    rows = []
    for quantity, entry in codes.QUANTITY_CODES.items():
        modifiers = [_code(code) for code in (entry.derivation, entry.method, entry.site) if code is not None]
        rows.append((QUANTITY_NAMES[quantity], _code(entry.name), entry.name.status, "; ".join(modifiers) or "-"))
    return _table(("quantity", "concept name", "status", "derivation, method, site"), rows)


def _code(entry: CodeEntry) -> str:
    return f'({entry.value}, {entry.scheme}, "{entry.meaning}")'


def _by_scheme(*, private: bool) -> list[CodeEntry]:
    chosen = [entry for entry in codes.every_code() if (entry.status is CodeStatus.PRIVATE) == private]
    return sorted(chosen, key=lambda entry: (entry.scheme, entry.value))


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("statement", type=Path, nargs="?", default=STATEMENT)
    write_tables(parser.parse_args().statement)


if __name__ == "__main__":
    main()
