"""Frames of stored images (PS3.18 section 10.4), read from their place in the file and never decoded."""

import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.encaps import parse_basic_offsets
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.tag import Tag
from pydicom.uid import UID, RLELossless

from dicom_gateway.store.files import data_set_offset

OCTET_STREAM = "application/octet-stream"
# PS3.18 Table 8.7.3-5
_MEDIA_TYPES = {
    "1.2.840.10008.1.2.5": "image/dicom-rle",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
}
_PIXEL_DATA = 0x7FE00010
_READ = [Tag(name) for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames")]
_ITEM, _ITEM_HEAD_BYTES = b"\xfe\xff\x00\xe0", 8
# Of JPEG, JPEG-LS and JPEG 2000 alike; a byte of padding may follow.
_END_OF_IMAGE, _ENDING_BYTES = b"\xff\xd9", 10

Piece = tuple[int, int]
"""Where bytes of a file begin, and how many they are."""


class NoFrames(Exception):
    """The file has no frames that can be served as they are stored."""


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of one file: the pieces of each where it is encapsulated, else where the first one begins."""

    path: Path
    transfer_syntax: str
    media_type: str
    count: int
    offset: int = 0
    frame_bytes: int = 0
    pieces: Sequence[Sequence[Piece]] | None = None

    def has(self, number: int) -> bool:
        """Whether all of a frame is in the file; the first one is number 1."""
        return 1 <= number <= self.count and (self.pieces is None or bool(self.pieces[number - 1]))

    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """Frames by their numbers, which the file has."""
        with self.path.open("rb") as file:
            for number in numbers:
                yield b"".join(_read(file, piece) for piece in self._pieces_of(number))

    def _pieces_of(self, number: int) -> Sequence[Piece]:
        if self.pieces is not None:
            return self.pieces[number - 1]
        return ((self.offset + (number - 1) * self.frame_bytes, self.frame_bytes),)


def open_frames(path: Path) -> Frames:
    """Raises NoFrames for a file without pixel data, a deflated one, and frames that do not begin at a byte."""
    try:
        syntax = UID(read_file_meta_info(path).TransferSyntaxUID)
        with path.open("rb") as file:
            header, offset, value_bytes = _before_pixels(file, syntax)
            count = int(header.get("NumberOfFrames") or 1)
            pieces = _whole_frames(file, count, syntax)[:count] if syntax in _MEDIA_TYPES else []
        frame_bits = header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated
        whole = value_bytes * 8 // frame_bits
    except Exception as error:
        raise NoFrames("the file cannot be read") from error
    if syntax in _MEDIA_TYPES:
        return Frames(path, str(syntax), _MEDIA_TYPES[syntax], len(pieces), pieces=pieces)
    if syntax.is_encapsulated or syntax.is_deflated or frame_bits % 8:
        raise NoFrames("its frames cannot be served as they are stored")
    # Little endian pixels are the same bytes with implicit VR.
    return Frames(path, "1.2.840.10008.1.2.1", OCTET_STREAM, min(count, whole), offset, frame_bits // 8)


def _before_pixels(file: BinaryIO, syntax: UID) -> tuple[Dataset, int, int]:
    """The header, where the value of Pixel Data begins, and how many bytes of it are in the file."""
    file.seek(data_set_offset(file))
    implicit_vr = bool(syntax.is_implicit_VR)
    header = read_dataset(
        file, implicit_vr, True, stop_when=lambda tag, _vr, _length: tag >= _PIXEL_DATA, specific_tags=_READ
    )
    element = file.read(8 if implicit_vr else 12)
    if element[:4] != b"\xe0\x7f\x10\x00":
        raise ValueError("no Pixel Data")
    offset = file.tell()
    return header, offset, min(int.from_bytes(element[-4:], "little"), os.fstat(file.fileno()).st_size - offset)


def _whole_frames(file: BinaryIO, count: int, syntax: UID) -> list[Sequence[Piece]]:
    """The fragments of each frame; none for one that is not all in the file."""
    size_bytes = os.fstat(file.fileno()).st_size
    frames = _frames(file, count, syntax)
    return [pieces if all(sum(piece) <= size_bytes for piece in pieces) else () for pieces in frames]


def _frames(file: BinaryIO, count: int, syntax: UID) -> list[Sequence[Piece]]:
    """The fragments of each frame of encapsulated pixel data (PS3.5 A.4)."""
    starts = parse_basic_offsets(file)
    begin = file.tell()
    fragments = _fragments(file)
    if starts:
        return _by_offset([begin + start for start in starts], fragments)
    # PS3.5 A.4.2: a frame of RLE is one fragment.
    if syntax == RLELossless or len(fragments) in (1, count):
        return [(fragment,) for fragment in fragments]
    return [fragments] if count == 1 else _by_ending(file, fragments, count)


def _fragments(file: BinaryIO) -> list[Piece]:
    """The fragments from here on; the last one may be cut off."""
    fragments = []
    while file.read(4) == _ITEM:
        length = int.from_bytes(file.read(4).ljust(4, b"\xff"), "little")
        fragments.append((file.tell(), length))
        file.seek(length, os.SEEK_CUR)
    return fragments


def _by_offset(starts: Sequence[int], fragments: Sequence[Piece]) -> list[Sequence[Piece]]:
    """As the Basic Offset Table says, which has the place of each frame's first item."""
    items = [offset - _ITEM_HEAD_BYTES for offset, _ in fragments]
    ends = [*starts[1:], sum(fragments[-1]) if fragments else 0]
    frames: list[Sequence[Piece]] = []
    for start, end in zip(starts, ends, strict=True):
        pieces = fragments[bisect_left(items, start) : bisect_left(items, end)]
        is_whole = bool(pieces) and pieces[0][0] - _ITEM_HEAD_BYTES == start and sum(pieces[-1]) == end
        frames.append(pieces if is_whole else ())
    return frames


def _by_ending(file: BinaryIO, fragments: Sequence[Piece], count: int) -> list[Sequence[Piece]]:
    """By what frames end with; the last of `count` frames may lack it."""
    frames: list[Sequence[Piece]] = []
    pieces: list[Piece] = []
    for offset, length in fragments:
        pieces.append((offset, length))
        ending = min(length, _ENDING_BYTES)
        if _END_OF_IMAGE in _read(file, (offset + length - ending, ending)):
            frames.append(pieces)
            pieces = []
    return [*frames, pieces] if pieces and len(frames) + 1 == count else frames


def _read(file: BinaryIO, piece: Piece) -> bytes:
    offset, length = piece
    file.seek(offset)
    return file.read(length)
