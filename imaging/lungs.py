"""Body, airway and lung masks by thresholds and morphology.

Topology is found on a grid shrunk to about 2 mm, borders on the source grid. The approach follows the classical
scheme of Hu, Hoffman, Reinhardt, IEEE TMI 2001;20:490 (threshold, airways, separation, smoothing).
"""

from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

from imaging.blocks import block_means, enlarged
from imaging.geometry import FloatArray
from imaging.morphology import (
    IN_PLANE,
    Mask,
    dilated,
    distance_to,
    filled_body,
    filled_planes,
    labelled_planes,
    opened_planes,
    reached_from,
)
from imaging.volume import AIR_HU, Volume

__all__ = ["Lungs", "Mask", "segment_lungs"]

_WORKING_SPACING_MM = 2.0
_BODY_HU = -300
_LUNG_HU = -400
_GAS_HU = -975
_THINNEST_LUNG_HU = -960
_CLOSING_MM = 8.0
_WALL_MM = 60.0
_TRACHEA_AREA_MM2 = (40.0, 900.0)
_TRACHEA_MINIMUM_LENGTH_MM = 20.0
_AIRWAY_MAXIMUM_ML = 140.0
_AIRWAY_LEAK_ML = 25.0
_MINIMUM_LUNG_ML = 80.0
# The middles of two lungs lie about 65 mm from the midline, those of a child's half as far.
_OFF_MIDLINE_MM = 15.0


@dataclass(frozen=True, slots=True, eq=False)
class Lungs:
    """Masks on the volume's grid. `left` and `right` are the patient's; the central airways belong to neither.

    What is dense inside a lung (consolidation, effusion, mass) may be missing from it: it is the aerated lung
    with its vessels and small nodules closed.
    """

    body: Mask
    airways: Mask
    left: Mask
    right: Mask

    @property
    def slices(self) -> npt.NDArray[np.intp]:
        """Indices of the slices that show lung."""
        return np.flatnonzero(self.left.any(axis=(1, 2)) | self.right.any(axis=(1, 2)))

    @property
    def voxels_by_slice(self) -> npt.NDArray[np.intp]:
        """How many voxels of each slice are lung."""
        return np.array([np.count_nonzero(left | right) for left, right in zip(self.left, self.right, strict=True)])


def segment_lungs(volume: Volume) -> Lungs:
    """Masks of an axial chest CT; lungs and airways are empty where none are found."""
    factors = tuple(max(1, round(_WORKING_SPACING_MM / mm)) for mm in volume.geometry.spacing_mm)
    small = np.floor(block_means(volume.hu, factors) + 0.5).astype(np.int16)
    spacing = tuple(mm * f for mm, f in zip(volume.geometry.spacing_mm, factors, strict=True))
    body = _body(small, min(spacing[1:]))
    air = body & (small < _LUNG_HU)
    to_left = volume.geometry.affine[0, :3] * np.array(factors)
    superior_last = volume.geometry.affine[2, 0] > 0
    middle_mm = _midline_mm(body, to_left)
    airways = _airways(small, air, spacing, to_left, middle_mm, superior_last)
    left, right = _two_lungs(small, air & ~dilated(airways), spacing, to_left, middle_mm)
    left, right = (_closed(lung, spacing) & body for lung in (left, right))
    right &= ~left
    lungs = Lungs(
        body=enlarged(body, factors, volume.hu.shape),
        airways=np.zeros(volume.hu.shape, np.bool_),
        left=_refined(left, volume.hu, factors),
        right=_refined(right, volume.hu, factors),
    )
    if airways.any():
        box = _source_box(airways, factors, volume.hu.shape)
        inside = enlarged(airways, factors, *_extent(box)) & (volume.hu[box] < _LUNG_HU)
        lungs.airways[box] = inside
        lungs.left[box] &= ~inside
        lungs.right[box] &= ~inside
    return lungs


def _body(hu: npt.NDArray[np.int16], in_plane_mm: float) -> Mask:
    """The patient without table and clothes, air inside filled slice by slice."""
    solid = hu > _BODY_HU
    largest = _largest(opened_planes(solid))
    if not largest.any():
        return largest
    # The opening also takes a thin chest wall away, and with it what closes the lung: it comes back around the air.
    wall = ndimage.binary_dilation(largest, IN_PLANE, iterations=round(_WALL_MM / in_plane_mm), mask=solid)
    inside = filled_body(wall) & ~wall
    inside |= _open_to_padding(hu, wall, inside)
    around = inside
    for _ in range(3):
        around = dilated(around, axes=(1, 2))
    return largest | inside | (around & wall)


def padding(hu: npt.NDArray[np.int16]) -> Mask:
    """(rows, columns) beyond a round field of view: the lowest HU in every slice, and joined to a corner.

    Air that a scanner gives as the lowest HU belongs to it, too.
    """
    corners = hu[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    if (corners != AIR_HU).any(axis=0).all():
        return np.zeros(hu.shape[1:], np.bool_)
    empty = np.ones(hu.shape[1:], np.bool_)
    for plane in hu:
        empty &= plane == AIR_HU
    labels, _ = ndimage.label(empty)
    return np.isin(labels, np.setdiff1d(labels[[0, 0, -1, -1], [0, -1, 0, -1]], 0))


def _open_to_padding(hu: npt.NDArray[np.int16], wall: Mask, inside: Mask) -> Mask:
    """What nothing but the end of a round field of view closes, slice by slice, and is no air around the body.

    Most of it has the body on at least three of four sides, which air beside the body has not.
    """
    beyond = padding(hu)
    if not beyond.any():
        return np.zeros_like(wall)
    # Blocks of pixels that are padding in part are neither.
    closed = wall | ndimage.binary_dilation(beyond, iterations=2)
    sides = np.zeros(wall.shape, np.uint8)
    for axis in (1, 2):
        sides += np.maximum.accumulate(wall, axis)
        sides += np.flip(np.maximum.accumulate(np.flip(wall, axis), axis), axis)
    labels, count = labelled_planes(~closed & ~inside)
    voxels = np.bincount(labels.ravel(), minlength=count + 1)
    enclosed = np.bincount(labels.ravel(), weights=(sides >= 3).ravel(), minlength=count + 1)
    hu_sums = np.bincount(labels.ravel(), weights=hu.ravel(), minlength=count + 1)
    is_lung = (enclosed > voxels / 2) & (hu_sums > _THINNEST_LUNG_HU * voxels)
    is_lung[0] = False
    return is_lung[labels]


def _midline_mm(body: Mask, to_left: FloatArray) -> float:
    """Where half of the body lies to either side, in mm to the patient's left of the first voxel."""
    offsets_mm = sum(axis * mm for axis, mm in zip(np.ogrid[tuple(map(slice, body.shape))], to_left, strict=True))
    return float(np.median(offsets_mm[body])) if body.any() else 0.0


def _airways(
    hu: npt.NDArray[np.int16],
    air: Mask,
    spacing: tuple[float, ...],
    to_left: FloatArray,
    middle_mm: float,
    superior_last: bool,
) -> Mask:
    """Trachea and central bronchi by region growing whose threshold stops before it leaks into a lung."""
    seed = _trachea_seed(air, spacing, to_left, middle_mm, superior_last)
    empty = np.zeros_like(air)
    if seed is None:
        return empty
    voxel_ml = float(np.prod(spacing)) / 1000
    best, previous_ml = empty, 0.0
    for threshold in range(-980, -800, 20):
        labels = cc3d.connected_components((hu <= threshold) & (hu >= AIR_HU - 1), connectivity=6)
        mask = labels == labels[seed] if labels[seed] else empty
        volume_ml = float(mask.sum()) * voxel_ml
        if volume_ml > _AIRWAY_MAXIMUM_ML or (previous_ml > 5.0 and volume_ml > previous_ml + _AIRWAY_LEAK_ML):
            break
        best, previous_ml = mask, volume_ml
    return best & air


def _trachea_seed(
    air: Mask, spacing: tuple[float, ...], to_left: FloatArray, middle_mm: float, superior_last: bool
) -> tuple[int, int, int] | None:
    """A voxel of the trachea: the longest run of small round lumens near the midline, its upper part."""
    labels = cc3d.connected_components(_round_lumens(air, spacing), connectivity=26)
    best_mm, best = _TRACHEA_MINIMUM_LENGTH_MM, 0
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        length_mm = (box[0].stop - box[0].start) * spacing[0]
        off_midline_mm = abs(float(np.array([a.start + a.stop for a in box]) / 2 @ to_left) - middle_mm)
        if length_mm > best_mm and off_midline_mm < 40.0:
            best_mm, best = length_mm, label
    if not best:
        return None
    voxels = np.argwhere(labels == best)
    ordered = voxels if superior_last else voxels[::-1]
    index = int(ordered[len(ordered) * 2 // 3][0])
    plane = ndimage.distance_transform_edt(labels[index] == best)
    row, column = np.unravel_index(int(np.argmax(plane)), plane.shape)
    return index, int(row), int(column)


def _round_lumens(air: Mask, spacing: tuple[float, ...]) -> Mask:
    """The air pockets of each slice that have the size and roundness of a trachea."""
    labels, count = labelled_planes(air)
    areas_mm2 = np.bincount(labels.ravel(), minlength=count + 1) * spacing[1] * spacing[2]
    boxes = ndimage.find_objects(labels)
    is_lumen = np.zeros(count + 1, np.bool_)
    low, high = _TRACHEA_AREA_MM2
    for label in np.flatnonzero((areas_mm2[1:] >= low) & (areas_mm2[1:] <= high)) + 1:
        _, rows, columns = boxes[label - 1]
        height, width = (rows.stop - rows.start) * spacing[1], (columns.stop - columns.start) * spacing[2]
        slender = max(height, width) >= 2.5 * min(height, width)
        is_lumen[label] = not slender and areas_mm2[label] > 0.5 * height * width
    return is_lumen[labels]


def _two_lungs(
    hu: npt.NDArray[np.int16], air: Mask, spacing: tuple[float, ...], to_left: FloatArray, middle_mm: float
) -> tuple[Mask, Mask]:
    """Left and right lung from the air inside the body without the airways; one is empty where the other is alone.

    `to_left` (3,) is how far, in mm, a step along each axis goes to the patient's left.
    """
    voxel_ml = float(np.prod(spacing)) / 1000
    labels = cc3d.connected_components(air, connectivity=6)
    sizes_ml = np.bincount(labels.ravel()) * voxel_ml
    sizes_ml[0] = 0.0
    by_size = [int(label) for label in np.argsort(sizes_ml)[::-1][:6] if sizes_ml[label] >= _MINIMUM_LUNG_ML]
    # Gas of stomach and bowel is as dark as air; lung, even with emphysema, has tissue in it.
    large = [label for label in by_size if np.median(hu[labels == label]) > _GAS_HU]
    empty = np.zeros_like(air)
    if not large:
        return empty, empty
    main = labels == large[0]
    if len(large) == 1 or sizes_ml[large[1]] < 0.15 * sizes_ml[large[0]]:
        parts = _split(main, spacing, to_left, middle_mm)
    else:
        parts = [main, labels == large[1]]
    left, right = empty, empty
    for part in parts:
        if _to_left_mm(part, to_left) > middle_mm:
            left = left | part
        else:
            right = right | part
    return left, right


def _to_left_mm(mask: Mask, to_left: FloatArray) -> float:
    return float(np.argwhere(mask).mean(axis=0) @ to_left)


def _split(joined: Mask, spacing: tuple[float, ...], to_left: FloatArray, middle_mm: float) -> list[Mask]:
    """Two lungs that touch (anterior junction line) separated by a watershed from their eroded cores.

    Cores on one side of the midline are of one lung, which falls apart at its hilum and fissures, too: it stays whole.
    """
    inside = sitk.GetImageFromArray(joined.astype(np.uint8))
    inside.SetSpacing(tuple(reversed(spacing)))
    distance = sitk.SignedMaurerDistanceMap(inside, insideIsPositive=True, squaredDistance=False, useImageSpacing=True)
    depth = sitk.GetArrayViewFromImage(distance)
    for radius_mm in (3.0, 5.0, 7.0, 10.0, 13.0):
        labels = cc3d.connected_components(depth > radius_mm, connectivity=6)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        first, second = (int(label) for label in np.argsort(sizes)[::-1][:2]) if len(sizes) > 2 else (0, 0)
        if not second or sizes[second] <= 0.25 * sizes[first]:
            continue
        offsets_mm = [_to_left_mm(labels == core, to_left) - middle_mm for core in (first, second)]
        if min(offsets_mm) < -_OFF_MIDLINE_MM and max(offsets_mm) > _OFF_MIDLINE_MM:
            markers = np.where(labels == first, 1, np.where(labels == second, 2, 0)).astype(np.uint8)
            flooded = sitk.MorphologicalWatershedFromMarkers(
                -distance, _like(markers, distance), markWatershedLine=False
            )
            basins = sitk.GetArrayViewFromImage(flooded)
            return [joined & (basins == 1), joined & (basins == 2)]
    return [joined]


def _closed(lung: Mask, spacing: tuple[float, ...]) -> Mask:
    """Morphological closing with a ball of 8 mm by two distance maps, holes filled."""
    if not lung.any():
        return lung
    box = ndimage.find_objects(lung.astype(np.uint8))[0]
    margin = [int(np.ceil(_CLOSING_MM / mm)) + 1 for mm in spacing]
    padded = np.pad(lung[box], [(m, m) for m in margin])
    grown = reached_from(padded, spacing, _CLOSING_MM)
    closed = distance_to(~grown, spacing) > _CLOSING_MM
    inner = tuple(slice(m, m + n) for m, n in zip(margin, lung[box].shape, strict=True))
    result = lung.copy()
    result[box] |= filled_planes(closed[inner])
    return result


def _refined(lung: Mask, hu: npt.NDArray[np.int16], factors: tuple[int, ...]) -> Mask:
    """The mask on the source grid: its core whole, its rim only where the voxels are lung."""
    refined = np.zeros(hu.shape, np.bool_)
    wider = dilated(lung)
    if wider.any():
        box = _source_box(wider, factors, hu.shape)
        rim = enlarged(wider, factors, *_extent(box)) & (hu[box] < -500)
        refined[box] = enlarged(~dilated(~lung), factors, *_extent(box)) | rim
    return refined


def _source_box(mask: Mask, factors: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The voxels of the source grid that a non-empty mask of the working grid bounds."""
    bounds = ndimage.find_objects(mask.view(np.uint8))[0]
    return tuple(
        slice(part.start * factor, whole if part.stop == small else part.stop * factor)
        for part, factor, small, whole in zip(bounds, factors, mask.shape, shape, strict=True)
    )


def _extent(box: tuple[slice, ...]) -> tuple[list[int], list[int]]:
    """Shape and start of a box."""
    return [part.stop - part.start for part in box], [part.start for part in box]


def _largest(mask: Mask) -> Mask:
    return cc3d.largest_k(mask, k=1, connectivity=6).astype(bool) if mask.any() else mask


def _like(array: npt.NDArray[np.uint8], image: sitk.Image) -> sitk.Image:
    other = sitk.GetImageFromArray(array)
    other.CopyInformation(image)
    return other
