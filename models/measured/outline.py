"""Organ outlines of the network before they are measured: whole, in one piece, and on the source grid."""

from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from imaging.geometry import Geometry
from imaging.morphology import distance_to, reached_from, widened
from models.anatomy import Anatomy
from models.findings import Region
from models.measure import region_of

Mask = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Box = tuple[slice, slice, slice]

# Gaps that the network leaves between parts of one organ are narrower than twice this.
_CLOSING_VOXELS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """The largest piece of an organ on the network's grid, gaps closed and holes filled, and the volumes in ml."""

    mask: Mask
    ml: float
    other_pieces_ml: float


def outline_of(anatomy: Anatomy, name: str) -> Outline:
    """The outline of one class; an empty one has 0 ml."""
    labelled = anatomy.mask(name)
    empty = Outline(np.zeros_like(labelled), 0.0, 0.0)
    bounds = ndimage.find_objects(labelled.astype(np.int8))
    if not bounds:
        return empty
    box = widened(bounds[0], (_CLOSING_VOXELS + 1,) * 3, labelled.shape)
    # Closing would eat into a mask at the border of its array.
    part = np.pad(labelled[box], _CLOSING_VOXELS, mode="edge")
    inner = tuple(slice(_CLOSING_VOXELS, -_CLOSING_VOXELS) for _ in range(3))
    closed = ndimage.binary_fill_holes(ndimage.binary_closing(part, iterations=_CLOSING_VOXELS)[inner] | labelled[box])
    pieces = cc3d.connected_components(closed, connectivity=6)
    sizes = np.bincount(pieces.ravel())[1:]
    mask = empty.mask
    mask[box] = pieces == int(np.argmax(sizes)) + 1
    ml = sizes * anatomy.grid.geometry.voxel_volume_mm3 / 1000
    return Outline(mask, float(ml.max()), float(ml.sum() - ml.max()))


def opened(mask: Mask, spacing_mm: float, radius_mm: float) -> Mask:
    """The largest piece of `mask` (isotropic grid) that a ball of this radius can reach; all of it where none fits."""
    bounds = ndimage.find_objects(mask.astype(np.int8))
    if not bounds:
        return mask
    part = np.pad(mask[bounds[0]], 1)
    core = distance_to(~part, (spacing_mm,) * 3) > radius_mm
    if not core.any():
        return mask
    reached = part & reached_from(core, (spacing_mm,) * 3, radius_mm)
    pieces = cc3d.connected_components(reached, connectivity=6)
    largest = int(np.argmax(np.bincount(pieces.ravel())[1:])) + 1
    result = np.zeros_like(mask)
    result[bounds[0]] = (pieces == largest)[1:-1, 1:-1, 1:-1]
    return result


def slice_region(anatomy: Anatomy, mask: Mask, centre_mm: FloatArray, radius_mm: float) -> Region | None:
    """The part of `mask` within `radius_mm` of a point (LPS), in the source slice through the point; None if empty."""
    source = anatomy.volume.geometry
    at = source.patient_to_index(centre_mm)
    reach = radius_mm / np.array(source.spacing_mm)
    reach[0] = 0.0
    low = np.clip(np.rint(at - reach).astype(int), 0, np.array(source.shape) - 1)
    high = np.clip(np.rint(at + reach).astype(int) + 1, low + 1, source.shape)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    inside = anatomy.on_source(mask, (z, y, x)) & _within(source, (z, y, x), centre_mm, radius_mm)
    return region_of(inside, (z, y, x), source) if inside.any() else None


def _within(geometry: Geometry, box: Box, centre_mm: FloatArray, radius_mm: float) -> Mask:
    index = np.stack(np.meshgrid(*(np.arange(part.start, part.stop) for part in box), indexing="ij"), axis=-1)
    return np.asarray(np.linalg.norm(geometry.index_to_patient(index) - centre_mm, axis=-1) <= radius_mm)
