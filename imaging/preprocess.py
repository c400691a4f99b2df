"""Source volume to the network's grid with MONAI, and the network's answers back to the source grid."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRange, SpatialResample
from scipy import ndimage

from imaging.geometry import Geometry
from imaging.lungs import Lungs, Mask
from imaging.volume import Volume

_MARGIN_ABOVE_AND_BELOW_LUNGS_MM = 40.0
_MARGIN_AROUND_BODY_MM = 5.0
_MAXIMUM_EXTENT_MM = 480.0

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
        return _sampled(values, self.geometry, self.source, box, order=1)

    def from_source(self, mask: Mask) -> Mask:
        """A mask of the source grid at the voxels of the network grid, the nearest voxel's value."""
        whole = tuple(slice(0, n) for n in self.geometry.shape)
        return _sampled(mask, self.source, self.geometry, (whole[0], whole[1], whole[2]), order=0) > 0.5

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
    clip = ScaleIntensityRange(a_min=minimum_hu, a_max=maximum_hu, b_min=0.0, b_max=maximum_hu - minimum_hu, clip=True)
    # Zero is the minimum here, so that what lies outside the source is filled with it.
    above_minimum = clip(torch.from_numpy(volume.hu.astype(np.float32))[None]).as_tensor()
    averaged = torch.nn.functional.avg_pool3d(above_minimum[None], factors, ceil_mode=False)[0]
    image = MetaTensor(averaged, affine=torch.from_numpy(_shrunk_affine(volume.geometry.affine, factors)))
    resample = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=False)
    resampled = resample(image, dst_affine=torch.from_numpy(grid.affine.copy()), spatial_size=grid.shape)
    hu = resampled.numpy().astype(np.float32) + np.float32(minimum_hu)
    return ModelInput(hu[None], grid, volume.geometry)


def _sampled(
    values: npt.NDArray[np.generic], grid: Geometry, target: Geometry, box: Box, order: int
) -> npt.NDArray[np.float32]:
    """`values` on `grid` at the voxels of `box` of `target`; 0 outside."""
    matrix = np.linalg.inv(grid.affine) @ target.affine
    start = np.array([axis.start for axis in box], dtype=np.float64)
    size = tuple(axis.stop - axis.start for axis in box)
    offset = matrix[:3, :3] @ start + matrix[:3, 3]
    return ndimage.affine_transform(
        values.astype(np.float32), matrix[:3, :3], offset, output_shape=size, order=order, mode="grid-constant"
    )


def _shrunk_affine(affine: npt.NDArray[np.float64], factors: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Affine of block means: larger steps, and the first centre in the middle of the first block."""
    scale = np.diag([*map(float, factors), 1.0])
    scale[:3, 3] = [(f - 1) / 2 for f in factors]
    return affine @ scale


def _network_grid(volume: Volume, lungs: Lungs, spacing_mm: float, multiple_of: int) -> Geometry:
    body_low, body_high = _extent_mm(lungs.body, volume.geometry)
    lung_low, lung_high = _extent_mm(lungs.left | lungs.right, volume.geometry)
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


def _extent_mm(mask: Mask, geometry: Geometry) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Lowest and highest (x, y, z) of the mask's bounding box; of the whole grid when the mask is empty."""
    ranges = []
    for axis in range(3):
        present = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        ranges.append((present[0], present[-1]) if len(present) else (0, mask.shape[axis] - 1))
    corners = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    points = geometry.index_to_patient(corners)
    return points.min(axis=0), points.max(axis=0)
