"""Pixels of a checked series as one volume in Hounsfield units."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from imaging.ahead import read_decoded
from imaging.decoding import StoredPlane, decode_into, plane_of
from imaging.errors import InconsistentSeries, UnreadableInstance
from imaging.geometry import Geometry, geometry_of_stack, slice_normal
from imaging.headers import Series, Slice
from imaging.odd_pixels import CODECS
from imaging.pixels import AIR_HU as AIR_HU
from imaging.pixels import Codec, clear_unused_bits, to_hu_in_place

_MAXIMUM_VOLUME_BYTES = 2 << 30
_READING_THREADS = 2
# Uncompressed ones first: the order in which a listener prefers them.
TRANSFER_SYNTAXES: tuple[str, ...] = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    *(syntax for syntax, codec in CODECS.items() if codec is not Codec.NATIVE),
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


def load_volume(series: Series, decoded: Path | None = None) -> Volume:
    """Decode a series that passed `quality.check_headers` into one volume.

    `decoded` is a folder that may have images of it which `ahead.decode_ahead` has decoded.
    Raises UnreadableInstance when pixels cannot be decoded and InconsistentSeries when they do not fit the headers.
    """
    slices = order_slices(series.slices)
    shape = (len(slices), slices[0].rows, slices[0].columns)
    if np.prod(shape, dtype=np.int64) * 2 > _MAXIMUM_VOLUME_BYTES:
        raise UnreadableInstance(f"{shape[0]} images of {shape[1]} x {shape[2]} pixels are too many to hold")
    if odd := [s for s in slices if (s.rows, s.columns) != shape[1:]]:
        raise InconsistentSeries(f"{len(odd)} of {len(slices)} images are not of {shape[1]} x {shape[2]} pixels")
    hu = np.empty(shape, np.int16)
    planes = [plane_of(index, image) for index, image in enumerate(slices)]
    native = [p for p in planes if p.pixels and p.pixels.codec is Codec.NATIVE]
    with ThreadPoolExecutor(_READING_THREADS) as pool:
        # Reading and arithmetic release the GIL; list() brings an exception of any file here.
        list(pool.map(lambda start: _read_into(hu, native[start::_READING_THREADS]), range(_READING_THREADS)))
    encoded = [p for p in planes if p.pixels is None or p.pixels.codec is not Codec.NATIVE]
    if decoded is not None:
        encoded = read_decoded(hu, encoded, decoded)
    if encoded:
        decode_into(hu, encoded)
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


def _read_into(hu: npt.NDArray[np.int16], planes: Sequence[StoredPlane]) -> None:
    """Read uncompressed planes into the memory of their slices, and make HU of them there."""
    for plane in planes:
        pixels, plane_hu = plane.pixels, hu[plane.index]
        assert pixels is not None
        number = plane.frame_number or 1
        if number > pixels.number_of_frames:
            raise UnreadableInstance("pixels cannot be read (fewer frames than the header says)")
        try:
            descriptor = os.open(plane.path, os.O_RDONLY)
            try:
                size = os.preadv(descriptor, [plane_hu.data], pixels.offset + (number - 1) * plane_hu.nbytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UnreadableInstance(f"pixels cannot be read ({type(error).__name__})") from error
        if size != plane_hu.nbytes:
            raise UnreadableInstance("pixels cannot be read (the file has changed)")
        stored = plane_hu.view(pixels.dtype)
        clear_unused_bits(stored, pixels.bits_stored)
        to_hu_in_place(stored, plane.rescale, pixels.padding)
