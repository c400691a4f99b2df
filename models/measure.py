"""Measurements from masks and HU on the source grid: physics, not network output."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy.spatial import ConvexHull, QhullError

from imaging.geometry import Geometry, Point
from models.findings import Laterality, Measurement, Quantity, Region

Mask = npt.NDArray[np.bool_]
Hu = npt.NDArray[np.int16]

EMPHYSEMA_HU = -950


class Boxed(Protocol):
    """A mask that is the content of a box of its grid."""

    @property
    def box(self) -> tuple[slice, slice, slice]: ...

    @property
    def mask(self) -> Mask: ...


def region_of(mask: Mask, box: tuple[slice, slice, slice], geometry: Geometry) -> Region:
    """Region of a non-empty `mask` (the content of `box`), cut to its bounds.

    The centre is the voxel of the mask nearest its centroid, so that it lies inside a crescent too; the key
    slice is the one with the largest area. Raises ValueError for an empty mask.
    """
    voxels = np.argwhere(mask)
    if not len(voxels):
        raise ValueError("the mask is empty")
    low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
    start = np.array([axis.start for axis in box])
    nearest = voxels[np.argmin(((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1))]
    x, y, z = geometry.index_to_patient(nearest + start)
    tight = tuple(slice(int(a), int(b)) for a, b in zip(low + start, high + start, strict=True))
    return Region(
        centre_mm=(float(x), float(y), float(z)),
        box=(tight[0], tight[1], tight[2]),
        mask=mask[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))].copy(),
        key_slice=int(np.argmax(mask.sum(axis=(1, 2)))) + box[0].start,
    )


def shared_voxels(a: Boxed, b: Boxed) -> int:
    """How many voxels two masks of one grid have in common."""
    common = [slice(max(s.start, t.start), min(s.stop, t.stop)) for s, t in zip(a.box, b.box, strict=True)]
    if any(part.start >= part.stop for part in common):
        return 0
    inside = [
        one.mask[tuple(slice(s.start - t.start, s.stop - t.start) for s, t in zip(common, one.box, strict=True))]
        for one in (a, b)
    ]
    return int(np.count_nonzero(inside[0] & inside[1]))


def volume_mm3(region: Region, geometry: Geometry) -> float:
    return float(region.mask.sum()) * geometry.voxel_volume_mm3


def attenuation(hu: Hu, region: Region) -> tuple[Measurement, Measurement]:
    """Mean and standard deviation of the HU inside the region."""
    inside = hu[region.box][region.mask]
    return (
        Measurement(quantity=Quantity.MEAN_ATTENUATION, value=float(inside.mean()), unit="[hnsf'U]"),
        Measurement(quantity=Quantity.STANDARD_DEVIATION_OF_ATTENUATION, value=float(inside.std()), unit="[hnsf'U]"),
    )


def axial_axes_mm(region: Region, geometry: Geometry) -> tuple[float, float]:
    """Long axis in the slice where it is longest, and the greatest width perpendicular to it in that slice, in mm.

    Lengths between pixel borders, as a reader measures them (RECIST 1.1; Lung-RADS v2022 takes their mean).
    """
    best = (0.0, 0.0)
    for plane in region.mask:
        if plane.any():
            best = max(best, _axes_mm(plane, geometry))
    return best


def _axes_mm(plane: Mask, geometry: Geometry) -> tuple[float, float]:
    corners = _pixel_corners(plane) * np.array(geometry.spacing_mm[1:])
    try:
        hull = corners[ConvexHull(corners).vertices]
    except QhullError:
        hull = corners
    differences = hull[:, None] - hull[None]
    lengths = np.linalg.norm(differences, axis=-1)
    i, j = np.unravel_index(int(np.argmax(lengths)), lengths.shape)
    long_mm = float(lengths[i, j])
    direction = differences[i, j] / long_mm
    across = hull @ np.array([-direction[1], direction[0]])
    return long_mm, float(across.max() - across.min())


def _pixel_corners(plane: Mask) -> npt.NDArray[np.float64]:
    """(n, 2) midpoints of the border pixels' sides: half a pixel beyond the centres, corners not overcounted."""
    centres = np.argwhere(plane).astype(np.float64)
    sides = np.array([(0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5)])
    return (centres[:, None] + sides[None]).reshape(-1, 2)


def maximum_thickness_mm(region: Region, geometry: Geometry) -> float:
    """Diameter in mm of the largest ball inside the region."""
    finest = min(geometry.spacing_mm)
    parts = [max(1, round(mm / finest)) for mm in geometry.spacing_mm]
    # Thick slices in parts about as thick as the others are wide, so that all borders are equally near to the centres.
    mask = region.mask.repeat(parts[0], axis=0).repeat(parts[1], axis=1).repeat(parts[2], axis=2)
    outside = sitk.GetImageFromArray(np.pad(~mask, 1, constant_values=True).astype(np.uint8))
    outside.SetSpacing(tuple(mm / n for mm, n in zip(reversed(geometry.spacing_mm), reversed(parts), strict=True)))
    distance = sitk.SignedMaurerDistanceMap(outside, squaredDistance=False, useImageSpacing=True)
    # The map counts to the centre of the nearest voxel outside; the border lies half a voxel before it.
    return 2 * float(sitk.GetArrayFromImage(distance).max()) - float(finest)


def emphysema_indices(hu: Hu, left: Mask, right: Mask, geometry: Geometry) -> tuple[Measurement, ...]:
    """LAA-950 in % and the 15th percentile in HU of both lungs, LAA-950 and volume of each lung.

    Low attenuation area below -950 HU after Gevenois et al., AJRCCM 1996;154:187. Sides without lung are left out.
    """
    sides = {Laterality.LEFT: hu[left], Laterality.RIGHT: hu[right]}
    both = np.concatenate(list(sides.values()))
    if not both.size:
        return ()
    found = [
        Measurement(quantity=Quantity.LOW_ATTENUATION_AREA_950, value=_laa_percent(both), unit="%"),
        Measurement(
            quantity=Quantity.PERCENTILE_15_OF_ATTENUATION, value=float(np.percentile(both, 15)), unit="[hnsf'U]"
        ),
    ]
    for side, lung in sides.items():
        if lung.size:
            ml = float(lung.size) * geometry.voxel_volume_mm3 / 1000
            found += [
                Measurement(
                    quantity=Quantity.LOW_ATTENUATION_AREA_950, value=_laa_percent(lung), unit="%", laterality=side
                ),
                Measurement(quantity=Quantity.LUNG_VOLUME, value=ml, unit="ml", laterality=side),
            ]
    return tuple(found)


def _laa_percent(lung: Hu) -> float:
    return 100.0 * float(np.count_nonzero(lung < EMPHYSEMA_HU)) / float(lung.size)


def emphysema_slice(hu: Hu, lung: Mask) -> int:
    """Index of the slice with the most emphysema voxels."""
    return int(np.argmax([np.count_nonzero((h < EMPHYSEMA_HU) & inside) for h, inside in zip(hu, lung, strict=True)]))


def lung_zone(centre_mm: Point, lung_z_mm: Sequence[float]) -> str:
    """Upper, middle or lower third of the lungs' height; `lung_z_mm` is (lowest, highest)."""
    low, high = lung_z_mm
    height = (centre_mm[2] - low) / (high - low) if high > low else 0.5
    return "upper zone" if height > 2 / 3 else "lower zone" if height < 1 / 3 else "middle zone"
