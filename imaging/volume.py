"""Pixels of a checked series as one volume in Hounsfield units."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from imaging.errors import InconsistentSeries, UnreadableInstance
from imaging.geometry import Geometry, geometry_of_stack, slice_normal
from imaging.headers import Series, Slice

AIR_HU = -1024
_MAX_STORED_HU = np.iinfo(np.int16).max
_JPEG_DECODERS: dict[str, Callable[[bytes], npt.NDArray[np.integer]]] = {
    JPEGLossless: imagecodecs.jpeg8_decode,
    JPEGLosslessSV1: imagecodecs.jpeg8_decode,
    JPEGLSLossless: imagecodecs.jpegls_decode,
    JPEGLSNearLossless: imagecodecs.jpegls_decode,
    JPEG2000Lossless: imagecodecs.jpeg2k_decode,
    JPEG2000: imagecodecs.jpeg2k_decode,
}
# Uncompressed ones first: the order in which a listener prefers them.
TRANSFER_SYNTAXES: tuple[str, ...] = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    *_JPEG_DECODERS,
)


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """CT voxels in HU, int16, (slice, row, column), slices ordered along the slice normal; read-only.

    `sop_instance_uids[i]` (and `frame_numbers[i]`, 1-based, for an Enhanced CT) is where slice i came from.
    Takes ownership of the array.
    """

    hu: npt.NDArray[np.int16]
    geometry: Geometry
    series_instance_uid: str
    sop_instance_uids: tuple[str, ...]
    frame_numbers: tuple[int | None, ...]

    def __post_init__(self) -> None:
        if self.hu.shape != self.geometry.shape:
            raise ValueError(f"voxels {self.hu.shape} do not fit the grid {self.geometry.shape}")
        if self.hu.dtype != np.int16:
            raise ValueError(f"voxels must be int16 HU, not {self.hu.dtype}")
        if not len(self.sop_instance_uids) == len(self.frame_numbers) == self.hu.shape[0]:
            raise ValueError("one SOP Instance UID and frame number is needed for each slice")
        self.hu.setflags(write=False)


def load_volume(series: Series) -> Volume:
    """Decode a series that passed `quality.check_headers` into one volume.

    Raises UnreadableInstance when pixels cannot be decoded and InconsistentSeries when they do not fit the headers.
    """
    slices = order_slices(series.slices)
    hu = np.empty((len(slices), slices[0].rows, slices[0].columns), np.int16)
    by_path = {
        path: list(group)
        for path, group in groupby(sorted(enumerate(slices), key=lambda s: str(s[1].path)), lambda s: s[1].path)
    }

    def fill(path: Path) -> None:
        planes = by_path[path]
        for (index, _plane), stored in zip(planes, _stored_planes(path, [p for _, p in planes]), strict=True):
            if stored.shape != hu.shape[1:]:
                raise InconsistentSeries(f"image {index + 1} is {stored.shape} pixels, not {hu.shape[1:]}")
            hu[index] = stored

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        # The codecs release the GIL; list() brings an exception of any file here.
        list(pool.map(fill, by_path))
    positions = np.array([s.image_position_patient for s in slices], dtype=np.float64)
    first = slices[0]
    geometry = geometry_of_stack(
        positions,
        first.image_orientation_patient or (),
        first.pixel_spacing_mm or (0.0, 0.0),
        first.rows,
        first.columns,
        first.frame_of_reference_uid,
    )
    return Volume(
        hu,
        geometry,
        series.series_instance_uid,
        tuple(s.sop_instance_uid for s in slices),
        tuple(s.frame_number for s in slices),
    )


def order_slices(slices: Sequence[Slice]) -> tuple[Slice, ...]:
    """Slices in order along the normal of their common orientation. Raises InconsistentSeries without positions."""
    if len(slices) < 2 or any(s.image_position_patient is None or s.image_orientation_patient is None for s in slices):
        raise InconsistentSeries("a volume needs at least two images with position and orientation")
    normal = slice_normal(slices[0].image_orientation_patient or ())
    return tuple(sorted(slices, key=lambda s: float(np.dot(normal, s.image_position_patient or ()))))


def _stored_planes(path: Path, planes: Sequence[Slice]) -> list[npt.NDArray[np.int16]]:
    """HU of the given planes of one file."""
    try:
        ds = pydicom.dcmread(path)
        frames = _decode(ds)
        padding = _padding_range(ds)
        return [_to_hu(frames[(plane.frame_number or 1) - 1], plane, padding) for plane in planes]
    except Exception as error:  # codecs and parser fail in many ways on damaged bytes
        raise UnreadableInstance(f"pixels cannot be decoded ({type(error).__name__})") from error


def _decode(ds: Dataset) -> npt.NDArray[np.integer]:
    """Stored values (frame, row, column)."""
    decoder = _JPEG_DECODERS.get(ds.file_meta.TransferSyntaxUID)
    if decoder is None:
        frames = np.asarray(ds.pixel_array)
        return frames if frames.ndim == 3 else frames[None]
    count = int(ds.get("NumberOfFrames") or 1)
    frames = np.stack([decoder(frame) for frame in generate_frames(ds.PixelData, number_of_frames=count)])
    return _sign_extended(frames, int(ds.BitsStored)) if ds.PixelRepresentation else frames


def _sign_extended(frames: npt.NDArray[np.integer], bits_stored: int) -> npt.NDArray[np.int16]:
    """JPEG codecs give the bits of a two's complement value as if it were unsigned."""
    shift = 16 - bits_stored
    return np.left_shift(frames.astype(np.uint16), shift).view(np.int16) >> shift


def _padding_range(ds: Dataset) -> tuple[int, int] | None:
    """Stored values that are padding, inclusive (PS3.3 C.7.5.1.1.2)."""
    value = ds.get("PixelPaddingValue")
    if value is None:
        return None
    limit = ds.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    if ds.PixelRepresentation and high > _MAX_STORED_HU:
        # Written as US in a signed image, e.g. 63536 for -2000.
        low, high = sorted((low - 65536 if low > _MAX_STORED_HU else low, high - 65536))
    return low, high


def _to_hu(stored: npt.NDArray[np.integer], plane: Slice, padding: tuple[int, int] | None) -> npt.NDArray[np.int16]:
    """Stored values to HU. Padding, and what no CT value can be (above 32767 HU), becomes air."""
    hu = stored.astype(np.float32) * (plane.rescale_slope or 1.0) + (plane.rescale_intercept or 0.0)
    outside = hu > _MAX_STORED_HU
    if padding is not None:
        outside |= (stored >= padding[0]) & (stored <= padding[1])
    hu[outside] = AIR_HU
    return np.rint(np.maximum(hu, AIR_HU)).astype(np.int16)
