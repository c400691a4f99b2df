"""Source volume to the network's grid with MONAI, and the network's answers back to the source grid."""

import threading
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from imaging.blocks import block_means
from imaging.geometry import FloatArray, Geometry
from imaging.lungs import Lungs, Mask
from imaging.morphology import bounds
from imaging.volume import Volume

_MARGIN_ABOVE_AND_BELOW_LUNGS_MM = 40.0
_MARGIN_AROUND_BODY_MM = 5.0
_MAXIMUM_EXTENT_MM = 480.0
# Voxels of the one grid that a step along an axis of the other may go sideways and still be along an axis.
_OBLIQUE = 1e-6

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True, eq=False)
class ModelInput:
    """What the network sees: HU float32 (1, 1, z, y, x) on an axis-aligned LPS grid, z to superior, y to
    posterior, x to the patient's left; and the two geometries that lead back."""

    hu: npt.NDArray[np.float32]
    geometry: Geometry
    source: Geometry

    def to_source(self, values: npt.NDArray[np.generic], box: Box) -> npt.NDArray[np.float32]:
        """Values of the network grid (z, y, x) at the voxels of `box` of the source grid, interpolated linearly."""
        return _sampled(values, self.geometry, self.source, box, order=1).astype(np.float32, copy=False)

    def from_source(self, mask: Mask) -> Mask:
        """A mask of the source grid at the voxels of the network grid, the nearest voxel's value."""
        whole = tuple(slice(0, n) for n in self.geometry.shape)
        return _sampled(mask, self.source, self.geometry, (whole[0], whole[1], whole[2]), order=0).astype(np.bool_)

    def source_box(self, box: Box) -> Box:
        """The part of the source grid that holds `box` of the network grid, clipped, one voxel wider."""
        corners = np.array([[axis.start - 1, axis.stop] for axis in box], dtype=np.float64)
        points = np.stack(np.meshgrid(*corners, indexing="ij"), axis=-1).reshape(-1, 3)
        indices = self.source.patient_to_index(self.geometry.index_to_patient(points))
        low = np.clip(np.floor(indices.min(axis=0)).astype(int), 0, np.array(self.source.shape) - 1)
        high = np.clip(np.ceil(indices.max(axis=0)).astype(int) + 1, low + 1, self.source.shape)
        z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        return z, y, x


def prepare(
    volume: Volume, lungs: Lungs, *, spacing_mm: float, multiple_of: int, minimum_hu: float, maximum_hu: float
) -> ModelInput:
    """Resample the body around the lungs to an isotropic grid whose sides are multiples of `multiple_of` voxels.

    HU are clipped to the given range, and outside the source lies `minimum_hu`. Voxels are averaged before they
    are thinned out, so that noise and small structures keep their mean HU.
    """
    grid = _network_grid(volume, lungs, spacing_mm, multiple_of)
    factors = tuple(max(1, int(spacing_mm / mm)) for mm in volume.geometry.spacing_mm)
    # Zero is the minimum here, so that what lies outside the source is filled with it.
    above_minimum = block_means(volume.hu, factors, minimum_hu, maximum_hu) - np.float32(minimum_hu)
    from imaging.resample import resampled  # here, not above: see `preload`

    hu = resampled(above_minimum, _shrunk_affine(volume.geometry.affine, factors), grid)
    hu += np.float32(minimum_hu)
    return ModelInput(hu[None, None], grid, volume.geometry)


def preload() -> None:
    """Begin to load MONAI in a thread, which `prepare` would otherwise wait for: seconds, beside the reading."""
    threading.Thread(target=import_module, args=["imaging.resample"], name="preload", daemon=True).start()


def _sampled(
    values: npt.NDArray[np.generic], grid: Geometry, target: Geometry, box: Box, order: int
) -> npt.NDArray[np.generic]:
    """`values` on `grid` at the voxels of `box` of `target`; 0 outside."""
    matrix = np.linalg.inv(grid.affine) @ target.affine
    start = np.array([axis.start for axis in box], dtype=np.float64)
    size = tuple(axis.stop - axis.start for axis in box)
    offset = matrix[:3, :3] @ start + matrix[:3, 3]
    steps = np.diag(matrix[:3, :3])
    if np.abs(matrix[:3, :3] - np.diag(steps)).max() > _OBLIQUE:
        return ndimage.affine_transform(
            values.astype(np.float32), matrix[:3, :3], offset, output_shape=size, order=order, mode="grid-constant"
        )
    # Along the axes of both grids one axis can follow the other, twenty times as fast.
    for axis in np.argsort(np.array(size) / values.shape):
        places = offset[axis] + steps[axis] * np.arange(size[axis])
        values = _nearest(values, axis, places) if order == 0 else _interpolated(values, axis, places)
    return values


def _nearest(values: npt.NDArray[np.generic], axis: int, places: FloatArray) -> npt.NDArray[np.generic]:
    index = np.floor(places + 0.5).astype(int)
    inside = (index >= 0) & (index < values.shape[axis])
    found = np.take(values, np.where(inside, index, 0), axis)
    found[tuple(~inside if n == axis else slice(None) for n in range(3))] = 0
    return found


def _interpolated(values: npt.NDArray[np.generic], axis: int, places: FloatArray) -> npt.NDArray[np.float32]:
    low = np.floor(places).astype(int)

    def weighted(index: npt.NDArray[np.intp], share: FloatArray) -> npt.NDArray[np.float32]:
        inside = (index >= 0) & (index < values.shape[axis])
        part = np.take(values, np.where(inside, index, 0), axis).astype(np.float32, copy=False)
        part *= np.where(inside, share, 0.0).astype(np.float32).reshape([-1 if n == axis else 1 for n in range(3)])
        return part

    total = weighted(low, 1 - (places - low))
    total += weighted(low + 1, places - low)
    return total


def _shrunk_affine(affine: npt.NDArray[np.float64], factors: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Affine of block means: larger steps, and the first centre in the middle of the first block."""
    scale = np.diag([*map(float, factors), 1.0])
    scale[:3, 3] = [(f - 1) / 2 for f in factors]
    return affine @ scale


def _network_grid(volume: Volume, lungs: Lungs, spacing_mm: float, multiple_of: int) -> Geometry:
    body_low, body_high = _extent_mm(bounds(lungs.body), volume.geometry)
    lung_low, lung_high = _extent_mm(bounds(lungs.left, lungs.right), volume.geometry)
    low = body_low - _MARGIN_AROUND_BODY_MM
    high = body_high + _MARGIN_AROUND_BODY_MM
    low[2] = max(body_low[2], lung_low[2] - _MARGIN_ABOVE_AND_BELOW_LUNGS_MM)
    high[2] = min(body_high[2], lung_high[2] + _MARGIN_ABOVE_AND_BELOW_LUNGS_MM)
    centre, extent = (low + high) / 2, np.minimum(high - low, _MAXIMUM_EXTENT_MM)
    voxels_xyz = np.ceil(extent / spacing_mm / multiple_of).astype(int) * multiple_of
    origin = centre - (voxels_xyz - 1) / 2 * spacing_mm
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = spacing_mm
    affine[:3, 3] = origin
    affine[3, 3] = 1.0
    shape = (int(voxels_xyz[2]), int(voxels_xyz[1]), int(voxels_xyz[0]))
    return Geometry(affine, shape, volume.geometry.frame_of_reference_uid)


def _extent_mm(box: Box | None, geometry: Geometry) -> tuple[FloatArray, FloatArray]:
    """Lowest and highest (x, y, z) of the voxel centres of a box; of the whole grid without one."""
    ranges = [(part.start, part.stop - 1) for part in box] if box else [(0, n - 1) for n in geometry.shape]
    corners = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    points = geometry.index_to_patient(corners)
    return points.min(axis=0), points.max(axis=0)
