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

from imaging.geometry import FloatArray
from imaging.volume import AIR_HU, Volume

Mask = npt.NDArray[np.bool_]

_WORKING_SPACING_MM = 2.0
_BODY_HU = -300
_LUNG_HU = -400
_GAS_HU = -975
_CLOSING_MM = 8.0
_WALL_MM = 60.0
_IN_PLANE = ndimage.generate_binary_structure(2, 1)[None]
_TRACHEA_AREA_MM2 = (40.0, 900.0)
_TRACHEA_MINIMUM_LENGTH_MM = 20.0
_AIRWAY_MAXIMUM_ML = 140.0
_AIRWAY_LEAK_ML = 25.0
_MINIMUM_LUNG_ML = 80.0


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


def segment_lungs(volume: Volume) -> Lungs:
    """Masks of an axial chest CT; lungs and airways are empty where none are found."""
    factors = tuple(max(1, round(_WORKING_SPACING_MM / mm)) for mm in volume.geometry.spacing_mm)
    small = _shrunk(volume.hu, factors)
    spacing = tuple(mm * f for mm, f in zip(volume.geometry.spacing_mm, factors, strict=True))
    body = _body(small, min(spacing[1:]))
    air = body & (small < _LUNG_HU)
    to_left = volume.geometry.affine[0, :3] * np.array(factors)
    superior_last = volume.geometry.affine[2, 0] > 0
    airways = _airways(small, body, air, spacing, to_left, superior_last)
    left, right = _two_lungs(small, air & ~_dilated(airways, 1), spacing, to_left)
    left, right = (_closed(lung, spacing) & body for lung in (left, right))
    right &= ~left
    full = volume.hu.shape
    full_airways = _enlarged(airways, factors, full) & (volume.hu < _LUNG_HU)
    return Lungs(
        body=_enlarged(body, factors, full),
        airways=full_airways,
        left=_refined(left, volume.hu, factors) & ~full_airways,
        right=_refined(right, volume.hu, factors) & ~full_airways,
    )


def _shrunk(hu: npt.NDArray[np.int16], factors: tuple[int, ...]) -> npt.NDArray[np.int16]:
    """Block means; the last, incomplete block of an axis is dropped."""
    image = sitk.BinShrink(sitk.GetImageFromArray(hu), [int(f) for f in reversed(factors)])
    return sitk.GetArrayFromImage(image).astype(np.int16)


def _body(hu: npt.NDArray[np.int16], in_plane_mm: float) -> Mask:
    """The patient without table and clothes, air inside filled slice by slice."""
    solid = hu > _BODY_HU
    opened = sitk.BinaryMorphologicalOpening(sitk.GetImageFromArray(solid.astype(np.uint8)), [2, 2, 0])
    largest = _largest(sitk.GetArrayViewFromImage(opened).astype(bool))
    if not largest.any():
        return largest
    # The opening also takes a thin chest wall away, and with it what closes the lung: it comes back around the air.
    wall = ndimage.binary_dilation(largest, _IN_PLANE, iterations=round(_WALL_MM / in_plane_mm), mask=solid)
    inside = np.stack([_filled(plane) for plane in wall]) & ~wall
    return largest | inside | (ndimage.binary_dilation(inside, _IN_PLANE, iterations=3) & wall)


def _filled(plane: Mask) -> Mask:
    """The holes of one slice filled. An edge of the image that cuts the body is part of its outline."""
    framed = np.pad(plane, 1)
    framed[0], framed[-1] = plane[0].any(), plane[-1].any()
    framed[:, 0], framed[:, -1] = plane[:, 0].any(), plane[:, -1].any()
    filled: Mask = ndimage.binary_fill_holes(framed)[1:-1, 1:-1]
    return filled


def _airways(
    hu: npt.NDArray[np.int16],
    body: Mask,
    air: Mask,
    spacing: tuple[float, ...],
    to_left: FloatArray,
    superior_last: bool,
) -> Mask:
    """Trachea and central bronchi by region growing whose threshold stops before it leaks into a lung."""
    seed = _trachea_seed(body, air, spacing, to_left, superior_last)
    empty = np.zeros_like(air)
    if seed is None:
        return empty
    voxel_ml = float(np.prod(spacing)) / 1000
    image = sitk.GetImageFromArray(hu)
    best, previous_ml = empty, 0.0
    for threshold in range(-980, -800, 20):
        grown = sitk.ConnectedThreshold(image, [seed[::-1]], lower=AIR_HU - 1, upper=threshold)
        mask = sitk.GetArrayViewFromImage(grown).astype(bool)
        volume_ml = float(mask.sum()) * voxel_ml
        if volume_ml > _AIRWAY_MAXIMUM_ML or (previous_ml > 5.0 and volume_ml > previous_ml + _AIRWAY_LEAK_ML):
            break
        best, previous_ml = mask, volume_ml
    return best & air


def _trachea_seed(
    body: Mask, air: Mask, spacing: tuple[float, ...], to_left: FloatArray, superior_last: bool
) -> tuple[int, int, int] | None:
    """A voxel of the trachea: the longest run of small round lumens near the midline, its upper part."""
    lumens = np.stack([_round_lumens(plane, spacing) for plane in air])
    labels = cc3d.connected_components(lumens, connectivity=26)
    middle_mm = float(np.median(np.argwhere(body) @ to_left)) if body.any() else 0.0
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


def _round_lumens(plane: Mask, spacing: tuple[float, ...]) -> Mask:
    """The air pockets of one slice that have the size and roundness of a trachea."""
    labels, _ = ndimage.label(plane)
    keep = np.zeros_like(plane)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        lumen = labels[box] == label
        height, width = lumen.shape[0] * spacing[1], lumen.shape[1] * spacing[2]
        area_mm2 = float(lumen.sum()) * spacing[1] * spacing[2]
        is_round = max(height, width) < 2.5 * min(height, width) and area_mm2 > 0.5 * height * width
        if _TRACHEA_AREA_MM2[0] <= area_mm2 <= _TRACHEA_AREA_MM2[1] and is_round:
            keep[box] |= lumen
    return keep


def _two_lungs(
    hu: npt.NDArray[np.int16], air: Mask, spacing: tuple[float, ...], to_left: FloatArray
) -> tuple[Mask, Mask]:
    """Left and right lung from the air inside the body without the airways.

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
        parts = _split(main, spacing)
    else:
        parts = [main, labels == large[1]]
    lefts_mm = [float(np.argwhere(part).mean(axis=0) @ to_left) for part in parts]
    middle_mm = float(np.mean(lefts_mm)) if len(parts) == 2 else float((np.array(air.shape) - 1) / 2 @ to_left)
    left, right = empty, empty
    for part, left_mm in zip(parts, lefts_mm, strict=True):
        if left_mm > middle_mm:
            left = left | part
        else:
            right = right | part
    return left, right


def _split(joined: Mask, spacing: tuple[float, ...]) -> list[Mask]:
    """Two lungs that touch (anterior junction line) separated by a watershed from their eroded cores."""
    inside = sitk.GetImageFromArray(joined.astype(np.uint8))
    inside.SetSpacing(tuple(reversed(spacing)))
    distance = sitk.SignedMaurerDistanceMap(inside, insideIsPositive=True, squaredDistance=False, useImageSpacing=True)
    depth = sitk.GetArrayViewFromImage(distance)
    for radius_mm in (3.0, 5.0, 7.0, 10.0, 13.0):
        labels = cc3d.connected_components(depth > radius_mm, connectivity=6)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        first, second = (int(label) for label in np.argsort(sizes)[::-1][:2]) if len(sizes) > 2 else (0, 0)
        if second and sizes[second] > 0.25 * sizes[first]:
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
    grown = _distance_mm(padded, spacing) <= _CLOSING_MM
    closed = _distance_mm(~grown, spacing) > _CLOSING_MM
    inner = tuple(slice(m, m + n) for m, n in zip(margin, lung[box].shape, strict=True))
    result = lung.copy()
    result[box] |= np.stack([ndimage.binary_fill_holes(plane) for plane in closed[inner]])
    return result


def _distance_mm(mask: Mask, spacing: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Distance of every voxel to the mask, 0 or less inside."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(tuple(reversed(spacing)))
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return sitk.GetArrayFromImage(distance)


def _refined(lung: Mask, hu: npt.NDArray[np.int16], factors: tuple[int, ...]) -> Mask:
    """The mask on the source grid: its core whole, its rim only where the voxels are lung."""
    core = _enlarged(~_dilated(~lung, 1), factors, hu.shape)
    rim = _enlarged(_dilated(lung, 1), factors, hu.shape) & (hu < -500)
    return core | rim


def _enlarged(mask: Mask, factors: tuple[int, ...], shape: tuple[int, ...]) -> Mask:
    for axis, factor in enumerate(factors):
        mask = np.repeat(mask, factor, axis=axis) if factor > 1 else mask
    return np.pad(mask, [(0, n - m) for n, m in zip(shape, mask.shape, strict=True)], mode="edge")


def _dilated(mask: Mask, iterations: int) -> Mask:
    return ndimage.binary_dilation(mask, iterations=iterations)


def _largest(mask: Mask) -> Mask:
    return cc3d.largest_k(mask, k=1, connectivity=6).astype(bool) if mask.any() else mask


def _like(array: npt.NDArray[np.uint8], image: sitk.Image) -> sitk.Image:
    other = sitk.GetImageFromArray(array)
    other.CopyInformation(image)
    return other
