"""What was outlined, voxel by voxel on the analysed series' grid: kept beside report.json as `outlines.npz`.

The file is numpy's own archive of plain arrays: any tool can read it, the same outlines give the same bytes, and
nothing in it is executed when it is read.
"""

import io
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

import numpy as np
import numpy.typing as npt

from imaging.geometry import Geometry, geometry_of_stack
from imaging.headers import Slice
from imaging.lungs import Mask
from imaging.volume import order_slices
from models.findings import Finding

Box = tuple[slice, slice, slice]

_UID_LENGTH = 64
_MOST_SLICES = 20_000
_MOST_OUTLINES = 10_000
_MOST_MEMBER_BYTES = 1 << 30
# What zipfile and numpy raise, besides ValueError, for bytes that are not theirs (RuntimeError: an encrypted member).
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    LookupError,
    TypeError,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    MemoryError,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SliceGrid:
    """The analysed slices in the order of the volume, with the geometry that their own headers state.

    `positions_mm` is (n, 3), ImagePositionPatient, LPS; `rescale` (n, 2) slope and intercept to HU; `frame_numbers`
    are None but for an Enhanced CT (1-based).
    """

    sop_instance_uids: tuple[str, ...]
    frame_numbers: tuple[int | None, ...]
    positions_mm: npt.NDArray[np.float64]
    rescale: npt.NDArray[np.float64]
    image_orientation_patient: tuple[float, ...]
    pixel_spacing_mm: tuple[float, float]
    slice_thickness_mm: float | None
    rows: int
    columns: int
    frame_of_reference_uid: str | None

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.sop_instance_uids), self.rows, self.columns

    @property
    def geometry(self) -> Geometry:
        return geometry_of_stack(
            self.positions_mm,
            self.image_orientation_patient,
            self.pixel_spacing_mm,
            self.rows,
            self.columns,
            self.frame_of_reference_uid,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Outlined:
    """The voxels of one finding: `mask` is the content of `box` on the grid, (slice, row, column), never empty."""

    box: Box
    mask: Mask

    def plane(self, index: int, shape: tuple[int, int]) -> Mask:
        """The whole slice `index` of the grid as (rows, columns)."""
        whole = np.zeros(shape, np.bool_)
        if self.box[0].start <= index < self.box[0].stop:
            whole[self.box[1:]] = self.mask[index - self.box[0].start]
        return whole


@dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """The outlined findings of one analysis by tracking UID, in the order of the report; no grid, no outlines."""

    grid: SliceGrid | None = None
    by_tracking_uid: Mapping[str, Outlined] = field(default_factory=dict)

    @property
    def analysed_instances(self) -> frozenset[str] | None:
        """SOP Instance UIDs of the slices that were analysed; None where none were."""
        return None if self.grid is None else frozenset(self.grid.sop_instance_uids)


def outlines_of(findings: Sequence[Finding], slices: Sequence[Slice]) -> Outlines:
    """The regions of `findings`, which were found in the volume made of `slices` (in any order).

    Raises InconsistentSeries for slices that make no volume.
    """
    ordered = order_slices(slices)
    first = ordered[0]
    grid = SliceGrid(
        sop_instance_uids=tuple(s.sop_instance_uid for s in ordered),
        frame_numbers=tuple(s.frame_number for s in ordered),
        positions_mm=np.array([s.image_position_patient for s in ordered], np.float64),
        rescale=np.array([(s.rescale_slope or 1.0, s.rescale_intercept or 0.0) for s in ordered], np.float64),
        image_orientation_patient=tuple(first.image_orientation_patient or ()),
        pixel_spacing_mm=first.pixel_spacing_mm or (0.0, 0.0),
        slice_thickness_mm=first.slice_thickness_mm,
        rows=first.rows,
        columns=first.columns,
        frame_of_reference_uid=first.frame_of_reference_uid,
    )
    return Outlines(
        grid,
        {
            f.tracking_uid: Outlined(_whole_numbers(f.region.box, grid.shape), f.region.mask)
            for f in findings
            if f.region is not None
        },
    )


def _whole_numbers(box: Box, shape: tuple[int, int, int]) -> Box:
    (a, b, _), (c, d, _), (e, f, _) = (s.indices(n) for s, n in zip(box, shape, strict=True))
    return slice(a, b), slice(c, d), slice(e, f)


def write_outlines(outlines: Outlines) -> bytes:
    """The content of `outlines.npz`; the same outlines give the same bytes."""
    outlined = outlines.by_tracking_uid.values()
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "tracking_uids": np.array(list(outlines.by_tracking_uid), f"S{_UID_LENGTH}"),
        "boxes": np.array([[(s.start, s.stop) for s in o.box] for o in outlined], np.int32).reshape(-1, 3, 2),
        "voxels": np.concatenate([np.packbits(o.mask) for o in outlined] or [np.zeros(0, np.uint8)]),
    }
    if (grid := outlines.grid) is not None:
        arrays |= {
            "sop_instance_uids": np.array(grid.sop_instance_uids, f"S{_UID_LENGTH}"),
            "frame_numbers": np.array([n or 0 for n in grid.frame_numbers], np.int32),
            "positions_mm": grid.positions_mm,
            "rescale": grid.rescale,
            "image_orientation_patient": np.array(grid.image_orientation_patient, np.float64),
            "pixel_spacing_mm": np.array(grid.pixel_spacing_mm, np.float64),
            "slice_thickness_mm": np.array(math.nan if grid.slice_thickness_mm is None else grid.slice_thickness_mm),
            "size": np.array([grid.rows, grid.columns], np.int32),
            "frame_of_reference_uid": np.array(grid.frame_of_reference_uid or "", f"S{_UID_LENGTH}"),
        }
    target = io.BytesIO()
    np.savez_compressed(target, allow_pickle=False, **arrays)
    return target.getvalue()


def read_outlines(content: bytes) -> Outlines:
    """What `write_outlines` wrote. Raises ValueError for anything else, however it was made."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            arrays = {member.filename.removesuffix(".npy"): _array(archive, member) for member in archive.infolist()}
        grid = _grid(arrays) if "sop_instance_uids" in arrays else None
        return Outlines(grid, _outlined(arrays, grid))
    except _DAMAGED as error:
        raise ValueError("not the outlines of an analysis") from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> npt.NDArray[np.generic]:
    """One array, whose header may not ask for more memory than the archive holds for it."""
    if member.file_size > _MOST_MEMBER_BYTES:
        raise ValueError("an array of the outlines is too large")
    with archive.open(member) as source:
        shape, dtype = _npy_header(source)
        wanted = math.prod(shape) * dtype.itemsize
        values = source.read()
    if dtype.hasobject or len(values) != wanted:
        raise ValueError("an array of the outlines is not what its header says")
    return np.frombuffer(values, dtype).reshape(shape)


def _npy_header(source: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    if np.lib.format.read_magic(source) != (1, 0):
        raise ValueError("an array of the outlines has another format")
    shape, is_fortran_order, dtype = np.lib.format.read_array_header_1_0(source)
    if is_fortran_order and len(shape) > 1:
        raise ValueError("an array of the outlines has another order")
    return shape, dtype


def _grid(arrays: Mapping[str, npt.NDArray[np.generic]]) -> SliceGrid:
    uids = _texts(arrays["sop_instance_uids"])
    count = len(uids)
    if not 2 <= count <= _MOST_SLICES:
        raise ValueError("the outlines' grid has too few or too many slices")
    rows, columns = (int(n) for n in _numbers(arrays["size"], (2,)))
    thickness = float(_numbers(arrays["slice_thickness_mm"], ()))
    row_mm, column_mm = map(float, _numbers(arrays["pixel_spacing_mm"], (2,)))
    grid = SliceGrid(
        sop_instance_uids=uids,
        frame_numbers=tuple(int(n) or None for n in _numbers(arrays["frame_numbers"], (count,))),
        positions_mm=_numbers(arrays["positions_mm"], (count, 3)),
        rescale=_numbers(arrays["rescale"], (count, 2)),
        image_orientation_patient=tuple(map(float, _numbers(arrays["image_orientation_patient"], (6,)))),
        pixel_spacing_mm=(row_mm, column_mm),
        slice_thickness_mm=None if math.isnan(thickness) else thickness,
        rows=rows,
        columns=columns,
        frame_of_reference_uid=_texts(arrays["frame_of_reference_uid"].reshape(1))[0] or None,
    )
    if rows < 1 or columns < 1:
        raise ValueError("the outlines' grid is empty")
    return grid


def _outlined(arrays: Mapping[str, npt.NDArray[np.generic]], grid: SliceGrid | None) -> dict[str, Outlined]:
    uids = _texts(arrays["tracking_uids"])
    if len(uids) > _MOST_OUTLINES or (uids and grid is None):
        raise ValueError("outlines without a grid, or too many of them")
    boxes = _numbers(arrays["boxes"], (len(uids), 3, 2)).astype(np.int64)
    voxels = arrays["voxels"]
    if voxels.dtype != np.uint8 or voxels.ndim != 1:
        raise ValueError("the outlines' voxels are not packed bits")
    found, taken = {}, 0
    for uid, box in zip(uids, boxes, strict=True):
        if grid is None or (box[:, 0] < 0).any() or (box[:, 1] <= box[:, 0]).any() or (box[:, 1] > grid.shape).any():
            raise ValueError("an outline lies outside its grid")
        shape = tuple(int(n) for n in box[:, 1] - box[:, 0])
        length = -(-math.prod(shape) // 8)
        bits = np.unpackbits(voxels[taken : taken + length].view(np.uint8), count=math.prod(shape))
        taken += length
        z, y, x = (slice(int(a), int(b)) for a, b in box)
        found[uid] = Outlined((z, y, x), bits.reshape(shape).astype(np.bool_))
    if taken != len(voxels):
        raise ValueError("the outlines' voxels do not fit their boxes")
    return found


def _numbers(values: npt.NDArray[np.generic], shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    if values.shape != shape or values.dtype.kind not in "if":
        raise ValueError("an array of the outlines has another shape or type")
    return values.astype(np.float64)


def _texts(values: npt.NDArray[np.generic]) -> tuple[str, ...]:
    if values.ndim != 1 or values.dtype.kind != "S":
        raise ValueError("an array of the outlines is no list of UIDs")
    return tuple(bytes(value).decode("ascii", errors="replace") for value in values)
