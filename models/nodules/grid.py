"""The lungs of a volume on a grid of 1 mm, where nodules are sought."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from imaging.geometry import Geometry
from imaging.lungs import Lungs, Mask
from imaging.morphology import Box, bounds, widened
from imaging.volume import AIR_HU, Volume

GRID_MM = 1.0
_MARGIN_MM = 12.0


@dataclass(frozen=True, slots=True, eq=False)
class LungGrid:
    """HU float32 and the lung mask, both (z superior, y posterior, x left) at `GRID_MM`, axis-aligned LPS."""

    hu: npt.NDArray[np.float32]
    lung: Mask
    geometry: Geometry


def lung_grid(volume: Volume, lungs: Lungs) -> LungGrid | None:
    """The box around both lungs, 12 mm wider, interpolated linearly; None without lungs.

    Voxels at most half as large as the grid's are averaged first, so that thin slices do not bring their noise.
    """
    lung = bounds(lungs.left, lungs.right)
    if lung is None:
        return None
    box = _wider(lung, volume.geometry)
    source = _image(volume.hu[box], volume.geometry, box)
    mask = _image((lungs.left[box] | lungs.right[box]).view(np.uint8), volume.geometry, box)
    low, high = _extent_mm(volume.geometry, box)
    size = [int(n) for n in np.ceil((high - low) / GRID_MM) + 1]
    wanted = (size, sitk.Transform())
    place = ([float(v) for v in low], [GRID_MM] * 3, np.eye(3).ravel().tolist())
    factors = [max(1, int(GRID_MM / mm + 0.01)) for mm in source.GetSpacing()]
    if max(factors) > 1:
        source = sitk.BinShrink(source, factors)
    hu = sitk.Resample(source, *wanted, sitk.sitkLinear, *place, float(AIR_HU), sitk.sitkFloat32)
    inside = sitk.Resample(mask, *wanted, sitk.sitkNearestNeighbor, *place, 0)
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = GRID_MM
    affine[:3, 3] = (*low,)
    affine[3, 3] = 1.0
    geometry = Geometry(affine, (size[2], size[1], size[0]), volume.geometry.frame_of_reference_uid)
    return LungGrid(sitk.GetArrayFromImage(hu), sitk.GetArrayFromImage(inside).view(np.bool_), geometry)


def _wider(box: Box, geometry: Geometry) -> Box:
    return widened(box, [int(np.ceil(_MARGIN_MM / mm)) for mm in geometry.spacing_mm], geometry.shape)


def _extent_mm(geometry: Geometry, box: Box) -> tuple[npt.NDArray[np.float64], ...]:
    """Lowest and highest (x, y, z) of the voxel centres of a box."""
    ends = [(axis.start, axis.stop - 1) for axis in box]
    corners = geometry.index_to_patient(np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3))
    return corners.min(axis=0), corners.max(axis=0)


def _image(values: npt.NDArray[np.generic], geometry: Geometry, box: Box) -> sitk.Image:
    image = sitk.GetImageFromArray(values)
    spacing = np.array(geometry.spacing_mm)
    image.SetSpacing([float(mm) for mm in spacing[::-1]])
    image.SetDirection((geometry.affine[:3, :3] / spacing)[:, ::-1].ravel().tolist())
    image.SetOrigin([float(v) for v in geometry.index_to_patient([axis.start for axis in box])])
    return image
