"""Frames of stored images (PS3.18 section 10.4), read from their place in the file and never decoded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.tag import Tag
from pydicom.uid import UID

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


class NoFrames(Exception):
    """The file has no frames that can be served as they are stored."""


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of one file: where its pixel data begin, and how each is found there."""

    path: Path
    transfer_syntax: str
    media_type: str
    count: int
    offset: int
    frame_bytes: int | None

    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """Frames by their numbers, from 1."""
        with self.path.open("rb") as file:
            for number in numbers:
                if self.frame_bytes is None:
                    file.seek(self.offset)
                    yield get_frame(file, number - 1, number_of_frames=self.count)
                else:
                    file.seek(self.offset + (number - 1) * self.frame_bytes)
                    yield file.read(self.frame_bytes)


def open_frames(path: Path) -> Frames:
    """Raises NoFrames for a file without pixel data, a deflated one, and frames that do not begin at a byte."""
    try:
        syntax = UID(read_file_meta_info(path).TransferSyntaxUID)
        with path.open("rb") as file:
            header, offset = _before_pixels(file, syntax)
        count = int(header.get("NumberOfFrames") or 1)
        frame_bits = header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated
    except Exception as error:
        raise NoFrames("the file cannot be read") from error
    if syntax.is_encapsulated and syntax in _MEDIA_TYPES:
        return Frames(path, str(syntax), _MEDIA_TYPES[syntax], count, offset, None)
    if syntax.is_encapsulated or syntax.is_deflated or frame_bits % 8:
        raise NoFrames("its frames cannot be served as they are stored")
    # Little endian pixels are the same bytes with implicit VR.
    return Frames(path, "1.2.840.10008.1.2.1", OCTET_STREAM, count, offset, frame_bits // 8)


def _before_pixels(file: BinaryIO, syntax: UID) -> tuple[Dataset, int]:
    """The header, and where the value of Pixel Data begins."""
    file.seek(data_set_offset(file))
    implicit_vr = bool(syntax.is_implicit_VR)
    header = read_dataset(
        file, implicit_vr, True, stop_when=lambda tag, _vr, _length: tag >= _PIXEL_DATA, specific_tags=_READ
    )
    element = file.read(8 if implicit_vr else 12)
    if element[:4] != b"\xe0\x7f\x10\x00":
        raise ValueError("no Pixel Data")
    return header, file.tell()
