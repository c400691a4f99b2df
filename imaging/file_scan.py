"""The wanted elements of a CT file and the place of its pixels, from no more of it than its head."""

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
)

from imaging.elements import PIXEL_DATA, UNDEFINED_LENGTH, ElementScanner, scan_file_meta
from imaging.errors import BrokenDataSet, UnreadableInstance
from imaging.odd_pixels import CODECS
from imaging.pixels import Codec

_SOP_CLASS_UID = 0x00080016
_CT_CLASSES = frozenset(
    uid.encode() for uid in (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
)
# Most headers; those of some thousand frames of an Enhanced CT.
_HEAD_BYTES, _LONGEST_HEAD_BYTES = 1 << 14, 1 << 23
_MAXIMUM_INFLATED_BYTES = 1 << 30
_COPY_BYTES = 1 << 20
_TRAILING_PADDING_GROUP = b"\xfc\xff"


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelPlace:
    """Where the value of PixelData lies in its file; `length` is None for encapsulated ones."""

    codec: Codec
    offset: int
    length: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedFile:
    """Raw values as `ScannedElements` has them; `place` is None where the pixels are not written in a usual way."""

    implicit_vr: bool
    values: dict[int, bytes]
    vrs: dict[int, bytes]
    place: PixelPlace | None


def scan_file(file: Path, scanner: ElementScanner) -> ScannedFile | None:
    """The head of `file`; None where it is no CT, or so odd that only pydicom may know.

    `scanner` must want SOP Class UID. Raises UnreadableInstance for a deflated file that inflates beyond all measure.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            return _scan(descriptor, scanner)
        finally:
            os.close(descriptor)
    except (OSError, zlib.error, BrokenDataSet):
        return None


def _scan(descriptor: int, scanner: ElementScanner) -> ScannedFile | None:
    file_bytes = os.fstat(descriptor).st_size
    head_bytes = _HEAD_BYTES
    while True:
        head = os.pread(descriptor, head_bytes, 0)
        syntax, start = scan_file_meta(head)
        if syntax == DeflatedExplicitVRLittleEndian:
            _require_bounded(descriptor, start)
        codec = CODECS.get(syntax)
        if codec is None:
            return None
        implicit_vr = syntax == ImplicitVRLittleEndian
        scanned = scanner.scan(head[start:], implicit_vr=implicit_vr)
        if scanned.values.get(_SOP_CLASS_UID, b"").rstrip(b"\0 ") not in _CT_CLASSES:
            return None
        if scanned.pixel_data_offset is not None:
            break
        if len(head) == file_bytes or head_bytes >= _LONGEST_HEAD_BYTES:
            return None
        head_bytes *= 8
    offset = start + scanned.pixel_data_offset
    length = scanned.pixel_data_length or 0
    place = None
    if scanned.pixel_data_tag == PIXEL_DATA and (length == UNDEFINED_LENGTH) == (codec is not Codec.NATIVE):
        native = codec is Codec.NATIVE
        if not native or _is_last(descriptor, offset + length, file_bytes):
            place = PixelPlace(codec=codec, offset=offset, length=length if native else None)
    return ScannedFile(implicit_vr=implicit_vr, values=scanned.values, vrs=scanned.vrs, place=place)


def _is_last(descriptor: int, end: int, file_bytes: int) -> bool:
    """Whether nothing follows the pixels, or only padding (PS3.10 section 7.2)."""
    return end == file_bytes or os.pread(descriptor, 2, end) == _TRAILING_PADDING_GROUP


def _require_bounded(descriptor: int, start: int) -> None:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated_bytes = 0
    at = start
    while not inflater.eof and (block := inflater.unconsumed_tail or os.pread(descriptor, _COPY_BYTES, at)):
        at += 0 if inflater.unconsumed_tail else len(block)
        inflated_bytes += len(inflater.decompress(block, _COPY_BYTES))
        if inflated_bytes > _MAXIMUM_INFLATED_BYTES:
            raise UnreadableInstance(f"it inflates to more than {_MAXIMUM_INFLATED_BYTES >> 20} MiB")
