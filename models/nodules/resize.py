"""Arrays (slice, row, column) on a grid of another shape over the same field, as torch's `interpolate` makes them.

The centres of the first and last voxels do not coincide (`align_corners=False`). One plane after the other, so that
no other array of the size of the source is needed.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def linear(values: Floats, shape: Sequence[int], least: float = -np.inf, most: float = np.inf) -> Floats:
    """Interpolated linearly between voxels, clipped to `least` and `most` before; the edge's value beyond the edge."""
    (below, above, share), rows, columns = (_neighbours(n, m) for n, m in zip(values.shape, shape, strict=True))
    result = np.empty(tuple(shape), np.float32)
    for plane, (low, high, part) in enumerate(zip(below, above, share, strict=True)):
        mixed = np.clip(values[low], least, most)
        mixed *= 1 - part
        mixed += np.clip(values[high], least, most) * part
        mixed = mixed[rows[0]] * (1 - rows[2])[:, None] + mixed[rows[1]] * rows[2][:, None]
        result[plane] = mixed[:, columns[0]] * (1 - columns[2]) + mixed[:, columns[1]] * columns[2]
    return result


def _neighbours(length: int, wanted: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Floats]:
    """For each voxel of the wanted grid the voxels before and behind it, and the weight of the one behind."""
    place = np.clip((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0, length - 1)
    before = np.floor(place).astype(np.intp)
    return before, np.minimum(before + 1, length - 1), (place - before).astype(np.float32)


def mostly(mask: npt.NDArray[np.bool_], shape: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Where more than half of the voxels that a coarser voxel touches are in the mask (`mode="area"`)."""
    (starts, ends), rows, columns = (_windows(n, m) for n, m in zip(mask.shape, shape, strict=True))
    result = np.empty(tuple(shape), np.bool_)
    pixels = (rows[1] - rows[0])[:, None] * (columns[1] - columns[0])
    for plane, (start, end) in enumerate(zip(starts, ends, strict=True)):
        count = np.cumsum(mask[start:end].sum(axis=0, dtype=np.int32), axis=1)
        count = np.pad(np.cumsum(count, axis=0), ((1, 0), (1, 0)))
        count = count[rows[1]] - count[rows[0]]
        result[plane] = 2 * (count[:, columns[1]] - count[:, columns[0]]) > (end - start) * pixels
    return result


def _windows(length: int, wanted: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    index = np.arange(wanted)
    return index * length // wanted, -(-(index + 1) * length // wanted)


def halved(values: Floats) -> Floats:
    """Means of 2 x 2 x 2 voxels; what is left over at the far ends is left out."""
    z, y, x = (n // 2 for n in values.shape)
    result = np.empty((z, y, x), np.float32)
    for plane in range(z):
        total = values[2 * plane, : 2 * y, : 2 * x] + values[2 * plane + 1, : 2 * y, : 2 * x]
        total = total[::2] + total[1::2]
        result[plane] = (total[:, ::2] + total[:, 1::2]) / np.float32(8)
    return result
