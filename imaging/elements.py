"""The top-level elements of an encoded little-endian data set, and where it begins in its file, found by hand.

pydicom builds an object an element, which costs ten times as much: too slow where only a dozen values of each image are
wanted. This scanner is strict. What it refuses may still be readable by a tolerant parser.
"""

from collections import deque
from collections.abc import Set
from dataclasses import dataclass, replace
from struct import Struct

import numpy as np
import numpy.typing as npt
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

from imaging.errors import BrokenDataSet

UNDEFINED_LENGTH = 0xFFFFFFFF
FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA, PIXEL_DATA = 0x7FE00008, 0x7FE00009, 0x7FE00010
MAXIMUM_NESTING = 32
# Values of even lengths that differ among the slices of a series make half a dozen.
_LAYOUTS_KNOWN, _LONGEST_LAYOUT = 8, 4096

_PIXELS = frozenset({FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA, PIXEL_DATA})
_ITEM_GROUP, _ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
# Groups 0000 to 0003 are those of command sets and file meta information (PS3.5 section 7.1).
_FIRST_TAG = 0x00040000
# Tag, VR and length together (PS3.5 section 7.1.2).
_LEAD_BYTES = {vr.encode(): 8 for vr in EXPLICIT_VR_LENGTH_16} | {vr.encode(): 12 for vr in EXPLICIT_VR_LENGTH_32}
_PREAMBLE_BYTES = 128
_MAY_BE_UNDEFINED = frozenset((b"SQ", b"UN", b"OB", b"OW"))

_implicit_element = Struct("<HHI").unpack_from
_explicit_element = Struct("<HH2sH").unpack_from
_long = Struct("<I").unpack_from


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedElements:
    """Raw values of the wanted elements, and where the pixel data are; offsets count from the start of the buffer.

    `vrs` holds the VR that each value was written with, in an explicit data set.

    `pixel_data_offset` is that of the value, `pixel_data_length` may be UNDEFINED_LENGTH; all three are None where the
    buffer ended first. Then `cut` says that it ended inside an element; else it ended between two, and a buffer that
    was the whole data set has no pixel data. A value of undefined length holds its delimiter.

    `end` is the offset of the first element that was not scanned: beyond the buffer where an element that nobody
    wanted is longer than the rest of it, and that of the pixel data's value where these were reached.
    """

    values: dict[int, bytes]
    vrs: dict[int, bytes]
    pixel_data_tag: int | None = None
    pixel_data_offset: int | None = None
    pixel_data_length: int | None = None
    cut: bool = False
    end: int


def scan_elements(head: bytes | memoryview, *, implicit_vr: bool, wanted: Set[int]) -> ScannedElements:
    """Elements of `head`, the beginning of an encoded data set (PS3.5 section 7), up to its pixel data.

    Takes time linear in the length of `head`. Raises BrokenDataSet for what is no data set of that encoding, for one
    nested deeper than MAXIMUM_NESTING, and where a wanted element stands twice. Decreasing tags are let pass: senders
    write them, and they change no meaning.
    """
    return _scan(head, implicit_vr, wanted, None)


@dataclass(frozen=True, slots=True)
class _Layout:
    """One scan: where the bytes lie that led through it and what they are, and where the wanted values lie."""

    implicit_vr: bool
    positions: npt.NDArray[np.intp]
    decisive: bytes
    places: tuple[tuple[int, int, int], ...]
    scanned: ScannedElements

    def scan(self, head: bytes, implicit_vr: bool) -> ScannedElements | None:
        """What scanning `head` gives, where it would be led the same way."""
        if implicit_vr != self.implicit_vr or len(head) < self.scanned.end:
            return None
        if np.frombuffer(head, np.uint8).take(self.positions).tobytes() != self.decisive:
            return None
        return replace(self.scanned, values={tag: head[start:end] for tag, start, end in self.places})


class ElementScanner:
    """`scan_elements` for data sets that are much alike, as those of a series: their elements lie in few layouts."""

    def __init__(self, wanted: Set[int]) -> None:
        self._wanted = wanted
        self._layouts: deque[_Layout] = deque(maxlen=_LAYOUTS_KNOWN)

    def scan(self, head: bytes, *, implicit_vr: bool) -> ScannedElements:
        """As `scan_elements`."""
        for layout in tuple(self._layouts):
            if scanned := layout.scan(head, implicit_vr):
                return scanned
        trace = _Trace([], [])
        scanned = _scan(head, implicit_vr, self._wanted, trace)
        if scanned.pixel_data_offset is not None and len(trace.steps) <= _LONGEST_LAYOUT:
            positions = np.concatenate([np.arange(at, start) for at, start in trace.steps])
            decisive = np.frombuffer(head, np.uint8).take(positions).tobytes()
            self._layouts.appendleft(_Layout(implicit_vr, positions, decisive, tuple(trace.places), scanned))
        return scanned


@dataclass(frozen=True, slots=True)
class _Trace:
    """Of a scan: begin and end of all that was looked at to go on; tag, begin and end of each wanted value."""

    steps: list[tuple[int, int]]
    places: list[tuple[int, int, int]]


def _scan(head: bytes | memoryview, implicit_vr: bool, wanted: Set[int], trace: _Trace | None) -> ScannedElements:
    if implicit_vr and _looks_explicit(head, 0):
        raise BrokenDataSet("explicit VR in a data set that should be implicit")
    size = len(head)
    values: dict[int, bytes] = {}
    vrs: dict[int, bytes] = {}
    at = end = 0
    tag, vr, start = outermost = 0, b"", 0
    # Only sequences and items of undefined length are entered. One entry a level: the encoding around the sequence.
    sequences: list[bool] = []
    between_items = False
    while at + 8 <= size:
        if between_items:
            group, element, length = _implicit_element(head, at)
            tag = group << 16 | element
            if trace is not None:
                trace.steps.append((at, at + 8))
            at += 8
            if tag == _ITEM:
                if length == UNDEFINED_LENGTH:
                    between_items = False
                    # What was UN to its writer is implicit inside an explicit data set (PS3.5 section 6.2.2).
                    implicit_vr = sequences[-1] or not _looks_explicit(head, at)
                else:
                    at += length
                continue
            if tag != _SEQUENCE_END:
                raise BrokenDataSet(f"no item at byte {at - 8} of the data set")
            between_items = False
            implicit_vr = sequences.pop()
            if sequences:
                continue
            tag, vr, start = outermost
        else:
            if implicit_vr:
                group, element, length = _implicit_element(head, at)
                start = at + 8
            else:
                group, element, vr, length = _explicit_element(head, at)
                start = at + _LEAD_BYTES.get(vr, 0)
                if start - at == 12:
                    if start > size:
                        break
                    (length,) = _long(head, at + 8)
                    if length == UNDEFINED_LENGTH and vr not in _MAY_BE_UNDEFINED:
                        raise BrokenDataSet(f"undefined length at byte {at} of the data set")
                elif start == at and group != _ITEM_GROUP:
                    raise BrokenDataSet(f"no VR at byte {at + 4} of the data set")
            tag = group << 16 | element
            if trace is not None:
                trace.steps.append((at, max(start, at + 8)))
            if not _FIRST_TAG <= tag < FLOAT_PIXEL_DATA:
                if tag == _ITEM_END and sequences:
                    between_items = True
                    at += 8
                    continue
                if group == _ITEM_GROUP:
                    raise BrokenDataSet(f"no element at byte {at} of the data set")
                if not sequences:
                    if tag < _FIRST_TAG:
                        raise BrokenDataSet(f"no element of a data set at its byte {at}")
                    if tag in _PIXELS:
                        return ScannedElements(
                            values=values,
                            vrs=vrs,
                            pixel_data_tag=tag,
                            pixel_data_offset=start,
                            pixel_data_length=length,
                            end=start,
                        )
            if length == UNDEFINED_LENGTH:
                if not sequences:
                    outermost = tag, vr, start
                elif len(sequences) == MAXIMUM_NESTING:
                    raise BrokenDataSet(f"sequences are nested deeper than {MAXIMUM_NESTING}")
                sequences.append(implicit_vr)
                between_items = True
                at = start
                continue
            at = start + length
            if sequences:
                continue
        if tag in wanted:
            if tag in values:
                raise BrokenDataSet(f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) stands twice")
            if at > size:
                break
            values[tag] = bytes(head[start:at])
            if trace is not None:
                trace.places.append((tag, start, at))
            if not implicit_vr:
                vrs[tag] = vr
        end = at
    return ScannedElements(values=values, vrs=vrs, cut=end != size, end=end)


def scan_file_meta(head: bytes) -> tuple[str, int]:
    """Transfer syntax of a DICOM file that begins with `head`, and where its data set begins (PS3.10 section 7.1).

    Raises BrokenDataSet where `head` is no beginning of such a file, or ends before the data set.
    """
    transfer_syntax_uid = b""
    at = _PREAMBLE_BYTES + 4
    while head[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == b"DICM" and at + 12 <= len(head):
        group, element, vr, length = _explicit_element(head, at)
        if group != 2:
            return transfer_syntax_uid.rstrip(b"\0 ").decode("ascii", "replace"), at
        start = at + _LEAD_BYTES.get(vr, 0)
        if start == at:
            break
        if start - at == 12:
            (length,) = _long(head, at + 8)
        at = start + length
        if element == 0x0010:
            transfer_syntax_uid = head[start:at]
    raise BrokenDataSet("no file meta information")


def _looks_explicit(head: bytes | memoryview, at: int) -> bool:
    """Whether a VR follows the tag at `at`, which as a length would be 16 KiB or more."""
    return bytes(head[at + 4 : at + 6]) in _LEAD_BYTES
