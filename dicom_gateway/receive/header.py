"""What must be known of a received data set before it is kept: its identity, and that it came whole."""

import zlib
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from dicom_gateway.receive.statuses import StoreRefused, StoreStatus
from dicom_gateway.store.ledger import InstanceHeader
from imaging.uids import is_safe_uid

_PIXEL_DATA = 0x7FE00010
_FIRST_PIXEL_ELEMENT = 0x7FE00008
_ITEM = b"\xfe\xff\x00\xe0"
_SEQUENCE_DELIMITER = b"\xfe\xff\xdd\xe0"
_UNDEFINED_LENGTH = 0xFFFFFFFF
_MAXIMUM_INFLATED_BYTES = 1 << 30
_KEYWORDS = (
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientName",
    "PatientID",
    "StudyDate",
    "StudyDescription",
    "AccessionNumber",
    "Rows",
    "Columns",
    "BitsAllocated",
    "SamplesPerPixel",
    "NumberOfFrames",
)
_READ = [Tag(keyword) for keyword in _KEYWORDS]


def read_header(data_set: bytes, *, transfer_syntax: UID, sop_class_uid: str, sop_instance_uid: str) -> InstanceHeader:
    """Header of an encoded data set, checked against what the C-STORE command says of it.

    Raises StoreRefused with the status of PS3.4 Table B.2-1 for wrong UIDs and incomplete pixel data; whatever
    pydicom raises for bytes that are no data set.
    """
    encoded = _inflate(data_set) if transfer_syntax == DeflatedExplicitVRLittleEndian else data_set
    stream = BytesIO(encoded)
    implicit_vr = bool(transfer_syntax.is_implicit_VR)
    header = read_dataset(stream, implicit_vr, True, stop_when=_is_pixel_element, specific_tags=_READ)
    _require_matching(header, sop_class_uid, sop_instance_uid)
    _require_whole_pixel_data(header, encoded, stream.tell(), implicit_vr)
    return InstanceHeader(
        sop_instance_uid=sop_instance_uid,
        series_instance_uid=_text(header, "SeriesInstanceUID"),
        study_instance_uid=_text(header, "StudyInstanceUID"),
        patient_name=_text(header, "PatientName"),
        patient_id=_text(header, "PatientID"),
        study_date=_text(header, "StudyDate")[:8],
        description=_text(header, "StudyDescription"),
        accession_number=_text(header, "AccessionNumber"),
    )


def _is_pixel_element(tag: int, _vr: str | None, _length: int) -> bool:
    return tag >= _FIRST_PIXEL_ELEMENT


def _inflate(data_set: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    encoded = inflater.decompress(data_set, _MAXIMUM_INFLATED_BYTES)
    if not inflater.eof:
        raise StoreRefused(StoreStatus.CANNOT_UNDERSTAND, "Deflated data set is truncated or too large")
    return encoded


def _text(header: Dataset, keyword: str) -> str:
    # Control characters mean nothing in these elements, and PostgreSQL takes no NUL.
    text = "".join(c for c in str(header.get(keyword) or "") if c.isprintable())
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def _require_matching(header: Dataset, sop_class_uid: str, sop_instance_uid: str) -> None:
    study_and_series = (_text(header, "StudyInstanceUID"), _text(header, "SeriesInstanceUID"))
    if not all(study_and_series):
        raise StoreRefused(StoreStatus.CANNOT_UNDERSTAND, "No Study or Series Instance UID")
    if not all(map(is_safe_uid, (*study_and_series, sop_instance_uid))):
        raise StoreRefused(StoreStatus.INVALID_SOP_INSTANCE, "A UID is not valid (PS3.5 section 9.1)")
    if _text(header, "SOPInstanceUID") != sop_instance_uid:
        raise StoreRefused(StoreStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "SOP Instance UID differs from command")
    if _text(header, "SOPClassUID") != sop_class_uid:
        raise StoreRefused(StoreStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "SOP Class UID differs from command")


def _require_whole_pixel_data(header: Dataset, encoded: bytes, at: int, implicit_vr: bool) -> None:
    lead = 8 if implicit_vr else 12
    tag = int.from_bytes(encoded[at : at + 2], "little") << 16 | int.from_bytes(encoded[at + 2 : at + 4], "little")
    if tag != _PIXEL_DATA or at + lead > len(encoded):
        raise StoreRefused(StoreStatus.CANNOT_UNDERSTAND, "No Pixel Data")
    length = int.from_bytes(encoded[at + lead - 4 : at + lead], "little")
    start = at + lead
    if length == _UNDEFINED_LENGTH:
        whole = _ends_with_delimiter(encoded, start)
    else:
        whole = start + length <= len(encoded) and length >= _native_size_bytes(header)
    if not whole:
        raise StoreRefused(StoreStatus.CANNOT_UNDERSTAND, "Pixel Data is truncated")


def _ends_with_delimiter(encoded: bytes, at: int) -> bool:
    while encoded[at : at + 4] == _ITEM:
        at += 8 + int.from_bytes(encoded[at + 4 : at + 8], "little")
    return encoded[at : at + 4] == _SEQUENCE_DELIMITER


def _native_size_bytes(header: Dataset) -> int:
    size_bits = _number(header, "BitsAllocated", 16)
    for keyword, default in (("Rows", 0), ("Columns", 0), ("SamplesPerPixel", 1), ("NumberOfFrames", 1)):
        size_bits *= _number(header, keyword, default)
    return size_bits // 8


def _number(header: Dataset, keyword: str, default: int) -> int:
    return int(header.get(keyword) or default)
