"""Whether the patient lies as the headers say: spine behind, liver below the lungs and on the right, heart on the left.

Orientation and positions can agree with each other and still be wrong. No header shows it; the anatomy does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from imaging.blocks import block_means
from imaging.geometry import FloatArray
from imaging.lungs import Lungs
from imaging.morphology import Mask, depth_in, distance_to
from imaging.volume import Volume

_WORKING_SPACING_MM = 4.0
_LOOKED_AT_HU = (-200.0, 1500.0)
# A brain, too, is deep and solid.
_AROUND_CHEST_MM = 80.0
# Twice: the lower one sees a spine that has lost calcium, the higher one less of enhanced blood.
_BONE_HU = (250.0, 350.0)
# What is bright and thicker than bone is enhanced blood, and goes with its rim.
_BLOOD_DEPTH_MM, _BLOOD_RIM_MM = 9.0, 14.0
_SOLID_HU = (20.0, 220.0)
# Nothing but the liver, and some of the heart, is solid so deep.
_DEPTH_MM = 22.0
_LIVER_LEAST_ML = 100.0
# Where one lung has lost more the heart has moved, and what fills its place may look like a liver.
SMALLER_LUNG_LEAST = 0.6
# Distances in planes alone: no other plane is near.
_FAR_MM = 1e4


@dataclass(frozen=True, slots=True, kw_only=True)
class Lie:
    """Where organs lie by the geometry, in mm; None where they could not be told.

    `spine_behind_mm` is that of the spine behind the middle of the body, `liver_below_mm` that of the liver below the
    middle of the lungs. `sides_mm` is that of the liver to the right of the bones, and twice that of the heart to their
    left.
    """

    spine_behind_mm: float | None
    liver_below_mm: float | None
    sides_mm: float | None


def find_lie(volume: Volume, lungs: Lungs) -> Lie:
    """Measure the organs of an axial chest, which has lungs, in the directions that its geometry names."""
    factors = tuple(max(1, round(_WORKING_SPACING_MM / mm)) for mm in volume.geometry.spacing_mm)
    to_patient = volume.geometry.affine[:3, :3] * np.array(factors)
    swapped = abs(to_patient[1, 2]) > abs(to_patient[1, 1])
    order = [0, 2, 1] if swapped else [0, 1, 2]
    spacing_mm = np.linalg.norm(to_patient, axis=0)[order]
    backwards = tuple(axis for axis in range(3) if to_patient[2 - axis, order[axis]] < 0)

    def as_named(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """In the order of a body: slices upwards, rows backwards, columns to the left."""
        return np.flip(values.swapaxes(1, 2) if swapped else values, axis=backwards)

    # The slices between are not needed, and cost time.
    hu = as_named(block_means(_thinned(volume.hu, (factors[0], 1, 1)), (1, *factors[1:]), *_LOOKED_AT_HU))
    body, left, right = (as_named(_thinned(mask, factors)) for mask in (lungs.body, lungs.left, lungs.right))
    chest = np.flatnonzero((left | right).any(axis=(1, 2)))
    around = round(_AROUND_CHEST_MM / spacing_mm[0])
    near = slice(max(0, chest[0] - around), chest[-1] + 1 + around)
    hu, body, left, right = (np.ascontiguousarray(values[near]) for values in (hu, body, left, right))
    inside = slice(chest[0] - near.start, chest[-1] + 1 - near.start)
    bones = [_bones(hu[inside], body[inside], above, spacing_mm) for above in _BONE_HU]
    liver = _deep_in_solid(hu, body, spacing_mm)
    lungs_mm = _centre_mm(left | right, spacing_mm)
    return Lie(
        spine_behind_mm=_spine_behind_mm(bones, body[inside], spacing_mm),
        liver_below_mm=float(lungs_mm[0] - _centre_mm(liver, spacing_mm)[0]) if _is_liver(liver, spacing_mm) else None,
        sides_mm=_sides_mm(bones[0], liver, left, right, spacing_mm),
    )


def _spine_behind_mm(bones: Sequence[Mask], body: Mask, spacing_mm: FloatArray) -> float | None:
    if not all(bone.any() for bone in bones):
        return None
    # A spine goes through all slices: to the third power it outweighs ribs, sternum and blood.
    spines_mm = [_centre_mm(bone.mean(axis=0, keepdims=True) ** 3, spacing_mm)[1] for bone in bones]
    return float(np.mean(spines_mm) - _centre_mm(body, spacing_mm)[1])


def _sides_mm(bones: Mask, deep: Mask, left: Mask, right: Mask, spacing_mm: FloatArray) -> float | None:
    smaller, larger = sorted((np.count_nonzero(left), np.count_nonzero(right)))
    slices = np.flatnonzero((left | right).any(axis=(1, 2)))
    centre_mm = _centre_mm(left | right, spacing_mm)
    # Higher up it would be the heart.
    liver = deep[: max(0, int(centre_mm[0] / spacing_mm[0] - len(slices) / 4))]
    if smaller < SMALLER_LUNG_LEAST * larger or not bones.any() or not _is_liver(liver, spacing_mm):
        return None
    # The heart is what lies between the lungs, in their lower and front halves.
    lower, front = (int(centre_mm[axis] / spacing_mm[axis]) for axis in (0, 1))
    left, right = left[:lower, :front], right[:lower, :front]
    both = left.any(axis=2) & right.any(axis=2)
    ends = left.shape[2] - 1 - right[both][:, ::-1].argmax(axis=1)
    begins = left[both].argmax(axis=1)
    widths = np.clip(begins - ends, 0, None)
    if not widths.any():
        return None
    middle_mm = _centre_mm(bones, spacing_mm)[2]
    heart_mm = float(np.average((begins + ends) / 2, weights=widths)) * spacing_mm[2]
    return float(middle_mm - _centre_mm(liver, spacing_mm)[2] + 2 * (heart_mm - middle_mm))


def _thinned(values: npt.NDArray[Any], factors: Sequence[int]) -> npt.NDArray[Any]:
    """The first voxel of each whole block."""
    slices, rows, columns = (slice(0, n // f * f, f) for n, f in zip(values.shape, factors, strict=True))
    return values[slices, rows, columns]


def _bones(hu: npt.NDArray[np.float32], body: Mask, above_hu: float, spacing_mm: FloatArray) -> Mask:
    in_plane_mm = (_FAR_MM, *spacing_mm[1:])
    bright = body & (hu > above_hu)
    blood = depth_in(bright, in_plane_mm) > _BLOOD_DEPTH_MM
    return bright & (distance_to(blood, in_plane_mm) > _BLOOD_RIM_MM)


def _deep_in_solid(hu: npt.NDArray[np.float32], body: Mask, spacing_mm: FloatArray) -> Mask:
    # A sharp kernel's noise would make holes.
    smooth = ndimage.uniform_filter(hu, (1, 3, 3))
    solid = body & (smooth > _SOLID_HU[0]) & (smooth < _SOLID_HU[1])
    return depth_in(solid, (_FAR_MM, *spacing_mm[1:])) > _DEPTH_MM


def _is_liver(deep: Mask, spacing_mm: FloatArray) -> bool:
    return bool(np.count_nonzero(deep) * np.prod(spacing_mm) / 1000 >= _LIVER_LEAST_ML)


def _centre_mm(weights: npt.NDArray[Any], spacing_mm: FloatArray) -> FloatArray:
    """Centre of mass along (slice, row, column), from the first voxel."""
    return np.array(ndimage.center_of_mass(weights)) * spacing_mm
