"""Compressed frames to stored values, by imagecodecs."""

from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

from imaging.pixels import Codec, StoredPixels, clear_unused_bits, sign_extended

_JPEG_DECODERS: dict[Codec, Callable[[bytes], npt.NDArray[Any]]] = {
    Codec.JPEG: imagecodecs.jpeg8_decode,
    Codec.JPEG_LS: imagecodecs.jpegls_decode,
    Codec.JPEG_2000: imagecodecs.jpeg2k_decode,
}
_END_OF_IMAGE = b"\xff\xd9"


def decode_frame(frame: bytes, pixels: StoredPixels, shape: tuple[int, int]) -> npt.NDArray[np.integer]:
    """Stored values (row, column) of one encoded frame; writable.

    RLE frames have the `shape` of the header and raise ValueError where they do not fill it; JPEG ones have their own.
    """
    if pixels.codec is Codec.RLE:
        values = np.frombuffer(bytearray(imagecodecs.dicomrle_decode(frame, pixels.dtype)), pixels.dtype)
        stored = values.reshape(shape)
        clear_unused_bits(stored, pixels.bits_stored)
        return stored
    return decode_jpeg(frame, pixels.codec, pixels.bits_stored, signed=pixels.signed)


def decode_jpeg(frame: bytes, codec: Codec, bits_stored: int, *, signed: bool) -> npt.NDArray[np.integer]:
    """Stored values (row, column) of one JPEG, JPEG-LS or JPEG 2000 stream, without overlays in unused bits.

    Raises what the codec raises, and ValueError for a JPEG or JPEG-LS stream without an end: libjpeg would fill up what
    is missing, CharLS look for it for seconds.
    """
    if codec is not Codec.JPEG_2000 and not frame.rstrip(b"\0").endswith(_END_OF_IMAGE):
        raise ValueError("stream without an end")
    stored = _JPEG_DECODERS[codec](frame)
    if signed:
        return sign_extended(stored, bits_stored)
    if stored.dtype == np.uint16:
        clear_unused_bits(stored, bits_stored)
    return stored
