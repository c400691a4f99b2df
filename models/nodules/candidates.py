"""Places in the lungs that could be nodules: round bright blobs of 4 to 45 mm at several scales."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from imaging.lungs import Mask
from imaging.morphology import distance_to, filled_planes, labelled_planes, reached_from
from models.nodules.grid import GRID_MM
from models.nodules.resize import halved, linear, mostly

Hu = npt.NDArray[np.float32]

MAXIMUM_CANDIDATES = 300
PATCH_VOXELS = 24
COARSE_STEP = 2
WINDOW_HU = (-1000.0, 400.0)
_SEARCH_MM = 1.5
# A Laplacian of Gaussian answers most to a ball of radius sqrt(3) sigma: diameters of about 4 to 45 mm.
_FINE_SIGMAS_MM = (1.2, 1.8, 2.7)
_COARSE_SIGMAS_MM = (4.0, 6.0, 9.0, 13.0)
_CLIP_HU = (-1000.0, 150.0)
_LUNG_HU = -850.0
_CLOSING_MM = 10.0
_GROWN_MM = 3.0
_LARGEST_HOLE_MM2 = 1500.0
_LEAST_RESPONSE_HU = 30.0
_LEAST_ROUNDNESS = 0.12
# Vessels make many small blobs and few large ones. Of 61 solid nodules from 4 mm up in 8 simulated scans this power of
# the scale keeps 2 more among the best 300; a higher one loses small nodules to larger blobs of vessels beside them.
_LARGER_FIRST = 0.3
_SAME_PLACE_MM = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """(n, 3) indices (z, y, x) on the 1 mm grid, the Gaussian scale each was found at, its rank score; best first."""

    indices: npt.NDArray[np.float64]
    sigmas_mm: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]


def find_candidates(hu: Hu, lung: Mask, most: int = MAXIMUM_CANDIDATES) -> Candidates:
    """The roundest blobs in and at the lungs of a 1 mm grid (z, y, x).

    Maxima of the scale-normalised Laplacian of Gaussian (Lindeberg, IJCV 1998;30:79), judged by the eigenvalues of
    the Hessian there: a vessel has one that is nearly 0, the pleura two (Li, Sone, Doi, Med Phys 2003;30:2040).
    """
    search = tuple(max(2, round(n * GRID_MM / _SEARCH_MM)) for n in hu.shape)
    steps = np.array(hu.shape) / np.array(search)
    fine = linear(hu, search, *_CLIP_HU)
    region, within = _regions(lung, search)
    coarse = halved(np.where(within, fine, np.float32(_LUNG_HU)))
    coarse_region = region[::2, ::2, ::2][tuple(slice(0, n) for n in coarse.shape)]
    tasks = [(fine, region, _SEARCH_MM, s, 0.0) for s in _FINE_SIGMAS_MM]
    tasks += [(coarse, coarse_region, 2 * _SEARCH_MM, s, 0.5) for s in _COARSE_SIGMAS_MM]
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = list(pool.map(lambda task: _blobs(*task), tasks))
    indices = np.concatenate([index for index, _ in found])
    scores = np.concatenate([score for _, score in found])
    sigmas = np.concatenate([np.full(len(s), t[3]) for t, (_, s) in zip(tasks, found, strict=True)])
    # Centres of the search grid's voxels in indices of the 1 mm grid.
    placed = (indices + 0.5) * steps - 0.5
    keep = _apart(placed, scores, sigmas)[:most]
    return Candidates(placed[keep], sigmas[keep], scores[keep])


def _regions(lung: Mask, shape: Sequence[int]) -> tuple[Mask, Mask]:
    """(where a centre may lie, the lungs with the nodules at their border) on the search grid; closed by 10 mm."""
    mm = 2 * _SEARCH_MM
    pad = int(_CLOSING_MM / mm) + 2
    coarse = mostly(lung, [max(2, n // 2) for n in shape])
    inside = np.pad(_without_small_holes(coarse, mm), pad)
    grown = reached_from(inside, (mm, mm, mm), _CLOSING_MM)
    depth_mm = distance_to(~grown, (mm, mm, mm)) - np.float32(_CLOSING_MM)
    closed_mm = linear(depth_mm[pad:-pad, pad:-pad, pad:-pad], shape)
    return closed_mm > -_GROWN_MM + 1.5, closed_mm > 0.0


def _without_small_holes(lung: Mask, mm: float) -> Mask:
    """The slices of the lungs with the masses in them; the mediastinum, where the lungs surround it, stays open."""
    labels, count = labelled_planes(filled_planes(lung) & ~lung)
    areas_mm2 = np.bincount(labels.ravel(), minlength=count + 1) * mm**2
    areas_mm2[0] = np.inf
    return lung | (areas_mm2 < _LARGEST_HOLE_MM2)[labels]


def _blobs(
    hu: Hu, region: Mask, voxel_mm: float, sigma_mm: float, shift: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """((n, 3) indices on the search grid, scores) of the blobs at one scale; a coarse voxel holds two of the grid."""
    sigma = sigma_mm / voxel_mm
    smooth = ndimage.gaussian_filter(hu, sigma, truncate=3.0)
    response = _curvature(smooth)
    response *= sigma**2
    voxels = _maxima(response, region)
    if not len(voxels):
        return np.zeros((0, 3)), np.zeros(0)
    bends = -np.linalg.eigvalsh(_hessians(smooth, voxels)) * sigma**2
    least, most = bends[:, 2], bends[:, 0]
    roundness = np.maximum(least, 0.0) / np.maximum(most, 1e-6)
    keep = roundness > _LEAST_ROUNDNESS
    z, y, x = voxels[keep].T
    factor = 2.0 if shift else 1.0
    return voxels[keep] * factor + shift, np.sqrt(response[z, y, x]) * roundness[keep] * sigma_mm**_LARGER_FIRST


def _curvature(values: Hu) -> Hu:
    """Minus the Laplacian; 0 at the edges, where it is not defined."""
    inner = (slice(1, -1),) * 3
    result = np.zeros_like(values)
    result[inner] = 6 * values[inner]
    for axis in range(3):
        for side in (slice(0, -2), slice(2, None)):
            result[inner] -= values[tuple(side if n == axis else slice(1, -1) for n in range(3))]
    return result


def _maxima(response: Hu, region: Mask) -> npt.NDArray[np.intp]:
    """(n, 3) inner voxels of the region above the least response that no neighbour exceeds."""
    voxels = np.argwhere((response > _LEAST_RESPONSE_HU) & region)
    for offset in np.ndindex(3, 3, 3):
        here, there = response[tuple(voxels.T)], response[tuple((voxels + offset - 1).T)]
        voxels = voxels[here >= there]
    return voxels


def _hessians(values: Hu, voxels: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """(n, 3, 3) second differences at inner voxels."""

    def at(*offset: int) -> npt.NDArray[np.float64]:
        z, y, x = (voxels + np.array(offset)).T
        return values[z, y, x].astype(np.float64)

    hessians = np.empty((len(voxels), 3, 3))
    unit = np.eye(3, dtype=int)
    for i in range(3):
        hessians[:, i, i] = at(*unit[i]) + at(*-unit[i]) - 2 * at(0, 0, 0)
        for j in range(i):
            mixed = at(*(unit[i] + unit[j])) + at(*(-unit[i] - unit[j]))
            mixed -= at(*(unit[i] - unit[j])) + at(*(unit[j] - unit[i]))
            hessians[:, i, j] = hessians[:, j, i] = mixed / 4
    return hessians


def _apart(
    indices: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], sigmas_mm: npt.NDArray[np.float64]
) -> npt.NDArray[np.intp]:
    """Places in order of score without those close to a better one: within 3 mm, or inside a larger blob's core."""
    order = np.argsort(-scores, kind="stable")
    if not len(order):
        return order
    reach = np.maximum(_SAME_PLACE_MM, sigmas_mm) / GRID_MM
    tree = cKDTree(indices)
    dropped = np.zeros(len(order), bool)
    kept = []
    for n in order:
        if dropped[n]:
            continue
        kept.append(n)
        dropped[tree.query_ball_point(indices[n], reach[n])] = True
    return np.array(kept)


def cut_patches(hu: Hu, indices: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """(n, 2, 24, 24, 24) patches around (n, 3) indices: 1 mm, then 2 mm for context; the window's HU as 0 to 255."""
    low, high = WINDOW_HU
    scaled = np.clip(hu, low, high)
    scaled -= np.float32(low)
    scaled *= np.float32(255 / (high - low))
    coarse = np.rint(halved(scaled)).astype(np.uint8)
    fine = np.rint(scaled, out=scaled).astype(np.uint8)
    patches = np.empty((len(indices), 2, *(PATCH_VOXELS,) * 3), np.uint8)
    for channel, (values, step) in enumerate(((fine, 1), (coarse, COARSE_STEP))):
        padded = np.pad(values, PATCH_VOXELS // 2, mode="edge")
        # The centre of the first coarse voxel lies between the first two fine ones.
        starts = np.rint((indices - (step - 1) / 2) / step).astype(int).clip(0, np.array(values.shape) - 1)
        for patch, (z, y, x) in zip(patches, starts, strict=True):
            patch[channel] = padded[z : z + PATCH_VOXELS, y : y + PATCH_VOXELS, x : x + PATCH_VOXELS]
    return patches
