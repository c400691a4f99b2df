"""Pixels as pydicom reads them: every encoding that is not the usual one of `StoredPixels`, slowly."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import (
    JPEG2000,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from imaging.codecs import decode_jpeg
from imaging.pixels import Codec

CODECS: dict[str, Codec] = {
    ExplicitVRLittleEndian: Codec.NATIVE,
    ImplicitVRLittleEndian: Codec.NATIVE,
    RLELossless: Codec.RLE,
    JPEGLossless: Codec.JPEG,
    JPEGLosslessSV1: Codec.JPEG,
    JPEGLSLossless: Codec.JPEG_LS,
    JPEGLSNearLossless: Codec.JPEG_LS,
    JPEG2000Lossless: Codec.JPEG_2000,
    JPEG2000: Codec.JPEG_2000,
}
_MAX_SIGNED = np.iinfo(np.int16).max


def decode_file(path: Path) -> tuple[npt.NDArray[np.integer], tuple[int, int] | None]:
    """Stored values (frame, row, column) of one file, and which of them are padding.

    Raises whatever pydicom and the codecs raise for damaged bytes.
    """
    ds = pydicom.dcmread(path)
    codec = CODECS.get(ds.file_meta.TransferSyntaxUID, Codec.NATIVE)
    if codec in (Codec.NATIVE, Codec.RLE):
        frames = np.asarray(ds.pixel_array)
        frames = frames if frames.ndim == 3 else frames[None]
        if codec is Codec.NATIVE and len(ds.PixelData) >= frames.nbytes + frames[0, 0].nbytes:
            # pydicom takes for padding what is at least another row: Rows or Columns are wrong.
            raise ValueError("more pixels than Rows and Columns say")
    else:
        count = int(ds.get("NumberOfFrames") or 1)
        signed = bool(ds.PixelRepresentation)
        encoded = generate_frames(ds.PixelData, number_of_frames=count)
        frames = np.stack([decode_jpeg(frame, codec, int(ds.BitsStored), signed=signed) for frame in encoded])
    return frames, padding_range(ds)


def padding_range(ds: Dataset) -> tuple[int, int] | None:
    """Stored values that are padding, inclusive (PS3.3 C.7.5.1.1.2)."""
    value = ds.get("PixelPaddingValue")
    if value is None:
        return None
    limit = ds.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    if ds.PixelRepresentation and high > _MAX_SIGNED:
        # Written as US in a signed image, e.g. 63536 for -2000.
        low, high = sorted((low - 65536 if low > _MAX_SIGNED else low, high - 65536))
    return low, high
