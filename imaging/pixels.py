"""One file's stored pixels: where they lie, how they are written, and what they are in Hounsfield units."""

import enum
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

AIR_HU = -1024
_MAX_STORED_HU = np.iinfo(np.int16).max
# Stored values that are padding, first and last (PS3.3 C.7.5.1.1.2).
Padding = tuple[int, int] | None


class Codec(enum.Enum):
    """How the bytes of a frame become stored values."""

    NATIVE = "native"
    RLE = "rle"
    JPEG = "jpeg"
    JPEG_LS = "jpeg-ls"
    JPEG_2000 = "jpeg-2000"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPixels:
    """Place and encoding of the pixels of one file, for the usual kind: one sample of 16 bits, little endian.

    `offset` is that of the value of PixelData in the file.
    """

    codec: Codec
    offset: int
    number_of_frames: int
    bits_stored: int
    signed: bool
    padding: Padding

    @property
    def dtype(self) -> np.dtype[np.int16] | np.dtype[np.uint16]:
        return np.dtype("<i2") if self.signed else np.dtype("<u2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescale:
    """From stored values to HU (PS3.3 C.11.1.1.2)."""

    slope: float
    intercept: float


def clear_unused_bits(stored: npt.NDArray[np.integer], bits_stored: int) -> None:
    """Give the bits above `bits_stored` of 16-bit values the sign, or nothing, in place (PS3.5 section 8.1.1)."""
    limits = np.iinfo(stored.dtype)
    shift = 16 - bits_stored
    if shift and not limits.min >> shift <= stored.min() <= stored.max() <= limits.max >> shift:
        np.left_shift(stored, shift, out=stored)
        np.right_shift(stored, shift, out=stored)


def sign_extended(stored: npt.NDArray[np.integer], bits_stored: int) -> npt.NDArray[np.int16]:
    """JPEG codecs give the bits of a two's complement value as if it were unsigned."""
    signed = stored.astype(np.uint16).view(np.int16)
    clear_unused_bits(signed, bits_stored)
    return signed


def to_hu(stored: npt.NDArray[np.integer], rescale: Rescale, padding: Padding) -> npt.NDArray[np.int16]:
    """HU of stored values. Padding, and what no CT value can be (above 32767 HU), becomes air."""
    hu = stored.astype(np.float32) * rescale.slope + rescale.intercept
    outside = hu > _MAX_STORED_HU
    if padding is not None:
        outside |= (stored >= padding[0]) & (stored <= padding[1])
    hu[outside] = AIR_HU
    return np.rint(np.maximum(hu, AIR_HU)).astype(np.int16)


def to_hu_in_place(stored: npt.NDArray[np.integer], rescale: Rescale, padding: Padding) -> None:
    """What `to_hu` gives, written over the 16-bit stored values."""
    limits = np.iinfo(stored.dtype)
    raw = stored.view(np.uint16)
    air, top = AIR_HU - rescale.intercept, _MAX_STORED_HU - rescale.intercept
    if (
        rescale.slope == 1
        and rescale.intercept.is_integer()
        and limits.min <= air <= limits.max
        and (padding is None or padding[1] <= air)
        and (top >= limits.max or stored.max() <= top)
    ):
        if stored.min() < air:
            # numpy compares with a row ten times as fast as with a number.
            np.maximum(stored, np.full(stored.shape[-1], air, stored.dtype), out=stored)
        # Exact modulo 2^16, as every sum lies between air and the largest HU.
        raw += np.uint16(int(rescale.intercept) % 65536)
    else:
        raw[...] = np.take(_hu_table(rescale, padding, stored.dtype), raw)


@lru_cache(maxsize=16)
def _hu_table(rescale: Rescale, padding: Padding, dtype: np.dtype[np.integer]) -> npt.NDArray[np.uint16]:
    """The bits of the HU of each of the 65,536 stored values, by their bits."""
    return to_hu(np.arange(65536, dtype=np.uint16).view(dtype), rescale, padding).view(np.uint16)
