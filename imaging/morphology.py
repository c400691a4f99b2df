"""Masks grown, shrunk, filled and measured: what scipy does too, several times as fast and with less memory.

All masks are (slice, row, column).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

Mask = npt.NDArray[np.bool_]
Box = tuple[slice, slice, slice]

IN_PLANE = ndimage.generate_binary_structure(2, 1)[None]
_LABEL_IN_PLANE = np.zeros((3, 3, 3), np.bool_)
_LABEL_IN_PLANE[1:2] = IN_PLANE


def bounds(*masks: Mask) -> Box | None:
    """The smallest box around all voxels of masks of one shape; None where there are none."""
    planes = np.flatnonzero(np.any([mask.any(axis=(1, 2)) for mask in masks], axis=0))
    if not len(planes):
        return None
    shadow = np.any([mask.any(axis=0) for mask in masks], axis=0)
    rows, columns = np.flatnonzero(shadow.any(axis=1)), np.flatnonzero(shadow.any(axis=0))
    z, y, x = (slice(int(present[0]), int(present[-1]) + 1) for present in (planes, rows, columns))
    return z, y, x


def widened(box: Box, margins: Sequence[int], shape: Sequence[int]) -> Box:
    """`box` wider by some voxels on both sides of each axis, within `shape`."""
    z, y, x = (
        slice(max(0, part.start - margin), min(n, part.stop + margin))
        for part, margin, n in zip(box, margins, shape, strict=True)
    )
    return z, y, x


def distance_to(mask: Mask, spacing_mm: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Distance in mm of every voxel outside `mask` to the nearest voxel inside (centre to centre), 0 inside.

    Exact (Maurer, Qi, Raghavan, IEEE TPAMI 2003;25:265). Infinite everywhere for an empty mask.
    """
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    image = sitk.GetImageFromArray(mask.view(np.uint8))
    image.SetSpacing([float(mm) for mm in spacing_mm[::-1]])
    distance = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True))
    return np.maximum(distance, 0, out=distance)


def reached_from(mask: Mask, spacing_mm: Sequence[float] | npt.NDArray[np.float64], reach_mm: float) -> Mask:
    """The voxels at most `reach_mm` from `mask`, centre to centre: it grown by a ball."""
    reached = np.zeros(mask.shape, np.bool_)
    box = bounds(mask)
    if box is not None:
        near = widened(box, [int(reach_mm / mm) + 1 for mm in spacing_mm], mask.shape)
        reached[near] = distance_to(mask[near], spacing_mm) <= reach_mm
    return reached


def depth_in(mask: Mask, spacing_mm: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Distance in mm of every voxel inside `mask` to the nearest voxel outside (centre to centre), 0 outside.

    All that lies beyond the array is outside.
    """
    return distance_to(~np.pad(mask, 1), spacing_mm)[1:-1, 1:-1, 1:-1]


def labelled_planes(mask: Mask) -> tuple[npt.NDArray[np.int32], int]:
    """The pieces of each slice by itself (joined by edges), numbered from 1 through all slices, and their number."""
    labels, count = ndimage.label(mask, structure=_LABEL_IN_PLANE)
    return labels, count


def filled_planes(mask: Mask) -> Mask:
    """The holes of each slice filled: what no way of edges leads to from beyond the slice."""
    return ~_reached_from_border(~np.pad(mask, ((0, 0), (1, 1), (1, 1))))[:, 1:-1, 1:-1]


def filled_body(mask: Mask) -> Mask:
    """The holes of each slice filled. An edge of the image that cuts the body is part of its outline."""
    framed: Mask = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    for end in (0, -1):
        framed[:, end] = mask[:, end].any(axis=1, keepdims=True)
    for end in (0, -1):
        framed[:, :, end] = mask[:, :, end].any(axis=1, keepdims=True)
    return ~_reached_from_border(~framed)[:, 1:-1, 1:-1]


def _reached_from_border(open_: Mask) -> Mask:
    labels, count = labelled_planes(open_)
    reached = np.zeros(count + 1, np.bool_)
    for edge in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        reached[edge.ravel()] = True
    reached[0] = False
    return reached[labels]


def dilated(mask: Mask, axes: Sequence[int] = (0, 1, 2)) -> Mask:
    """Wider by the neighbours of every voxel along some axes."""
    result = mask.copy()
    for axis in axes:
        ahead, behind = ([slice(None)] * 3 for _ in range(2))
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        result[tuple(ahead)] |= mask[tuple(behind)]
        result[tuple(behind)] |= mask[tuple(ahead)]
    return result


def opened_planes(mask: Mask) -> Mask:
    """Each slice opened by a disc five voxels across; beyond the edge of the slice it goes on as it ends."""
    return ~_eroded(~_eroded(mask))


def _eroded(mask: Mask) -> Mask:
    """Eroded by 5 x 5 voxels without the corners, which is 3 x 5 and 5 x 3; solid beyond the edge."""
    padded = np.pad(mask, ((0, 0), (2, 2), (2, 2)), constant_values=True)
    high = padded[:, 1:-3] & padded[:, 2:-2] & padded[:, 3:-1]
    higher = high & padded[:, :-4] & padded[:, 4:]
    wide = higher[:, :, 1:-3] & higher[:, :, 2:-2] & higher[:, :, 3:-1]
    for columns in range(5):
        wide &= high[:, :, columns : columns + mask.shape[2]]
    return wide
