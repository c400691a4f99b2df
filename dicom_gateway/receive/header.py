"""What must be known of a received data set before it is kept: its identity, and that it came whole.

No pydicom object is built of an image whose text another image had already: a sender repeats it 300 times a study.
"""

import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO

from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from dicom_gateway.receive.statuses import StoreRefused, StoreStatus
from dicom_gateway.store.ledger import InstanceHeader
from imaging.elements import FLOAT_PIXEL_DATA, PIXEL_DATA, UNDEFINED_LENGTH, ScannedElements, scan_elements
from imaging.errors import BrokenDataSet
from imaging.files import most_unpacked_bytes
from imaging.source_text import decode_text
from imaging.uids import is_safe_uid

# `read(offset, count)`: up to `count` bytes of the encoded data set.
Read = Callable[[int, int], bytes]

MAXIMUM_HEADER_BYTES = 16 << 20
_FIRST_READ_BYTES = 32 << 10
_MAXIMUM_INFLATED_BYTES = 1 << 30
_INFLATED_AT_ONCE_BYTES = 1 << 20
_MAXIMUM_FRAGMENTS = 1_000_000
# pydicom takes seconds for a few megabytes of small elements, and other images wait.
_MAXIMUM_TOLERANT_BYTES = 4 << 20
# Far above what PS3.5 section 6.2 allows; an element of implicit VR may be as long as the header.
_MAXIMUM_TEXT_BYTES = 1024
_ITEM = b"\xfe\xff\x00\xe0"
_SEQUENCE_DELIMITER = b"\xfe\xff\xdd\xe0"


def _tag(keyword: str) -> int:
    return int(Tag(keyword))


_SOP_CLASS_UID, _SOP_INSTANCE_UID = _tag("SOPClassUID"), _tag("SOPInstanceUID")
_STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID = _tag("StudyInstanceUID"), _tag("SeriesInstanceUID")
_BITS_ALLOCATED, _NUMBER_OF_FRAMES = _tag("BitsAllocated"), _tag("NumberOfFrames")
_ROWS, _COLUMNS, _SAMPLES_PER_PIXEL = _tag("Rows"), _tag("Columns"), _tag("SamplesPerPixel")
# In the order of their tags.
_TEXT = (
    "SpecificCharacterSet",
    "StudyDate",
    "AccessionNumber",
    "StudyDescription",
    "PatientName",
    "PatientID",
)
_TEXT_TAGS = tuple(map(_tag, _TEXT))
_WANTED = frozenset(
    {_SOP_CLASS_UID, _SOP_INSTANCE_UID, _STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID, _BITS_ALLOCATED, _NUMBER_OF_FRAMES}
    | {_ROWS, _COLUMNS, _SAMPLES_PER_PIXEL, *_TEXT_TAGS}
)


def read_header(
    read: Read, size_bytes: int, *, transfer_syntax: UID, sop_class_uid: str, sop_instance_uid: str
) -> InstanceHeader:
    """Header of an encoded data set of `size_bytes`, checked against what the C-STORE command says of it.

    Raises StoreRefused with the status of PS3.4 Table B.2-1 for bytes that are no data set, wrong UIDs and incomplete
    pixel data.
    """
    if transfer_syntax == DeflatedExplicitVRLittleEndian:
        read, size_bytes = _inflated(read, size_bytes)
    implicit_vr = bool(transfer_syntax.is_implicit_VR)
    try:
        elements = _scan(read, size_bytes, implicit_vr)
        values = elements.values
        study_instance_uid, series_instance_uid = _uid(values, _STUDY_INSTANCE_UID), _uid(values, _SERIES_INSTANCE_UID)
        _require_matching(values, sop_class_uid, sop_instance_uid)
        _require_whole_pixel_data(elements, read, size_bytes)
        text = _text(tuple(values[tag][:_MAXIMUM_TEXT_BYTES] if tag in values else None for tag in _TEXT_TAGS))
    except StoreRefused:
        raise
    except Exception as error:
        # The tolerant parser fails in many ways on damaged bytes, and its messages may quote them.
        raise StoreRefused(StoreStatus.CANNOT_UNDERSTAND, "Not a data set of the agreed syntax") from error
    return InstanceHeader(
        sop_instance_uid=sop_instance_uid,
        series_instance_uid=series_instance_uid,
        study_instance_uid=study_instance_uid,
        patient_name=text["PatientName"],
        patient_id=text["PatientID"],
        study_date=text["StudyDate"][:8],
        description=text["StudyDescription"],
        accession_number=text["AccessionNumber"],
    )


def _scan(read: Read, size_bytes: int, implicit_vr: bool) -> ScannedElements:
    """Wanted elements up to the pixel data, reading as little as that takes."""
    count = _FIRST_READ_BYTES
    while True:
        head = read(0, min(count, size_bytes))
        try:
            elements = scan_elements(head, implicit_vr=implicit_vr, wanted=_WANTED)
        except BrokenDataSet:
            return _scan_tolerantly(read(0, min(_MAXIMUM_TOLERANT_BYTES, size_bytes)), implicit_vr)
        if elements.pixel_data_tag is not None or len(head) >= min(size_bytes, MAXIMUM_HEADER_BYTES):
            return elements
        count *= 8


def _scan_tolerantly(head: bytes, implicit_vr: bool) -> ScannedElements:
    """The same by pydicom, which forgives more: unknown VRs, a header of the other encoding."""
    stream = BytesIO(head)
    header = read_dataset(
        stream, implicit_vr, True, stop_when=lambda tag, _vr, _length: tag >= FLOAT_PIXEL_DATA, specific_tags=[*_WANTED]
    )
    values = {int(raw.tag): bytes(raw.value or b"") for raw in map(header.get_item, header.keys())}
    at = stream.tell()
    lead = 8 if implicit_vr else 12
    if at + lead > len(head):
        return ScannedElements(values=values, vrs={}, end=at)
    group, element = struct.unpack_from("<HH", head, at)
    (length,) = struct.unpack_from("<I", head, at + lead - 4)
    return ScannedElements(
        values=values,
        vrs={},
        pixel_data_tag=group << 16 | element,
        pixel_data_offset=at + lead,
        pixel_data_length=length,
        end=at + lead,
    )


def _inflated(read: Read, size_bytes: int) -> tuple[Read, int]:
    """The inflated header, and the size of all that is inflated, without ever holding all of it."""
    # pydicom inflates all of a stored file whenever one of its values is wanted.
    limit_bytes = min(_MAXIMUM_INFLATED_BYTES, most_unpacked_bytes(size_bytes))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    head, inflated_bytes, at, pending = bytearray(), 0, 0, b""
    try:
        while not inflater.eof and inflated_bytes <= limit_bytes:
            if not pending:
                pending = read(at, _INFLATED_AT_ONCE_BYTES)
                at += len(pending)
            if not pending:
                break
            inflated = inflater.decompress(pending, _INFLATED_AT_ONCE_BYTES)
            pending = inflater.unconsumed_tail
            inflated_bytes += len(inflated)
            head += inflated[: MAXIMUM_HEADER_BYTES - len(head)]
    except zlib.error as error:
        raise StoreRefused(StoreStatus.CANNOT_UNDERSTAND, "Not a deflated data set") from error
    if not inflater.eof:
        raise StoreRefused(StoreStatus.CANNOT_UNDERSTAND, "Deflated data set is truncated or too large")
    return lambda offset, count: bytes(head[offset : offset + count]), inflated_bytes


def _uid(values: dict[int, bytes], tag: int) -> str:
    return values.get(tag, b"").decode("ascii", "replace").strip("\0 ")


def _require_matching(values: dict[int, bytes], sop_class_uid: str, sop_instance_uid: str) -> None:
    study_and_series = (_uid(values, _STUDY_INSTANCE_UID), _uid(values, _SERIES_INSTANCE_UID))
    if not all(study_and_series):
        raise StoreRefused(StoreStatus.CANNOT_UNDERSTAND, "No Study or Series Instance UID")
    if not all(map(is_safe_uid, (*study_and_series, sop_instance_uid))):
        raise StoreRefused(StoreStatus.INVALID_SOP_INSTANCE, "A UID is not valid (PS3.5 section 9.1)")
    if _uid(values, _SOP_INSTANCE_UID) != sop_instance_uid:
        raise StoreRefused(StoreStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "SOP Instance UID differs from command")
    if _uid(values, _SOP_CLASS_UID) != sop_class_uid:
        raise StoreRefused(StoreStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "SOP Class UID differs from command")


def _require_whole_pixel_data(elements: ScannedElements, read: Read, size_bytes: int) -> None:
    start, length = elements.pixel_data_offset, elements.pixel_data_length
    if elements.pixel_data_tag != PIXEL_DATA or start is None or length is None:
        raise StoreRefused(StoreStatus.CANNOT_UNDERSTAND, "No Pixel Data")
    if length == UNDEFINED_LENGTH:
        whole = _ends_with_delimiter(read, start)
    else:
        whole = start + length <= size_bytes and length >= _native_size_bytes(elements.values)
    if not whole:
        raise StoreRefused(StoreStatus.CANNOT_UNDERSTAND, "Pixel Data is truncated")


def _ends_with_delimiter(read: Read, at: int) -> bool:
    """Whether encapsulated pixel data (PS3.5 A.4) go on to their end."""
    for _ in range(_MAXIMUM_FRAGMENTS):
        item = read(at, 8)
        if item[:4] != _ITEM or len(item) < 8:
            return item[:4] == _SEQUENCE_DELIMITER and len(item) == 8
        at += 8 + int.from_bytes(item[4:], "little")
    return False


def _native_size_bytes(values: dict[int, bytes]) -> int:
    size_bits = _short(values, _BITS_ALLOCATED, 16) * _short(values, _SAMPLES_PER_PIXEL, 1)
    size_bits *= _short(values, _ROWS, 0) * _short(values, _COLUMNS, 0)
    return size_bits * int(values.get(_NUMBER_OF_FRAMES, b"").strip(b"\0 ") or 1) // 8


def _short(values: dict[int, bytes], tag: int, default: int) -> int:
    return int.from_bytes(values.get(tag, b"")[:2], "little") or default


@lru_cache(maxsize=64)
def _text(raw: tuple[bytes | None, ...]) -> dict[str, str]:
    """Decoded text of the raw values of _TEXT_TAGS, by the character set that is the first of them."""
    values = [value or b"" for value in raw]
    declared = tuple(part.strip() for part in values[0].decode("ascii", "replace").strip("\0 ").split("\\"))
    text = {keyword: _printable(decode_text(value, declared)) for keyword, value in zip(_TEXT, values, strict=True)}
    # Component groups at the end that are empty (PS3.5 6.2.1).
    return text | {"PatientName": text["PatientName"].rstrip("=")}


def _printable(text: str) -> str:
    # Control characters mean nothing in these elements, and PostgreSQL takes no NUL.
    return "".join(c for c in text if c.isprintable()).encode("utf-8", "replace").decode("utf-8").strip()
