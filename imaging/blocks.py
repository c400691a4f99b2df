"""Blocks of voxels: their means on a coarser grid, and masks of the coarser grid enlarged to all voxels of theirs.

Slice by slice, since memory that is used for the first time costs more than the arithmetic.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def block_means(
    values: npt.NDArray[np.int16], factors: Sequence[int], least: float = -np.inf, most: float = np.inf
) -> npt.NDArray[np.float32]:
    """Means of whole blocks of `factors` voxels (slice, row, column), values clipped to `least` and `most` first."""
    slices, rows, columns = (n // f for n, f in zip(values.shape, factors, strict=True))
    deep, high, wide = factors
    info = np.iinfo(values.dtype)
    low, top = max(least, info.min), min(most, info.max)
    means = np.empty((slices, rows, columns), np.float32)
    for n in range(slices):
        block = values[n * deep : (n + 1) * deep, : rows * high, : columns * wide]
        total = np.clip(block, int(low), int(top)).sum(axis=0, dtype=np.int32)
        total = sum(total[offset::high] for offset in range(high))
        means[n] = sum(total[:, offset::wide] for offset in range(wide)) / np.float32(deep * high * wide)
    return means


def enlarged(
    mask: npt.NDArray[np.bool_], factors: Sequence[int], shape: Sequence[int], start: Sequence[int] = (0, 0, 0)
) -> npt.NDArray[np.bool_]:
    """Part of a mask of blocks at the voxels themselves: `shape` of them from voxel `start` on.

    Incomplete blocks at the far ends, which have no value of their own, take that of their neighbour.
    """
    index = [
        np.minimum(np.arange(first, first + length) // factor, count - 1)
        for first, length, factor, count in zip(start, shape, factors, mask.shape, strict=True)
    ]
    large = np.empty(tuple(shape), np.bool_)
    planes: dict[int, npt.NDArray[np.bool_]] = {}
    for n, source in enumerate(index[0].tolist()):
        if source not in planes:
            planes = {source: mask[source][:, index[2]][index[1]]}
        large[n] = planes[source]
    return large
