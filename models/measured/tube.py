"""Diameters of a tube-like organ perpendicular to its centreline, from its outline and the HU around its border."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from imaging.geometry import Geometry
from imaging.morphology import depth_in
from imaging.volume import Volume

Mask = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

_STEP_MM = 4.0
_STRIDE = 2
_PATH_SMOOTHING_MM = 8.0
_SECTION_SMOOTHING_MM = 6.0
_RAYS = 48
_RADIAL_STEP_MM = 0.5
_LONGEST_RADIUS_MM = 50.0
_MASK_SMOOTHING_VOXELS = 0.6
# How far inside and outside the outline its border is sought in the HU.
_SEARCH_INSIDE_MM = 6.0
_SEARCH_OUTSIDE_MM = 4.0
_SLAB_MM = 3.0
# Between these shares of the radius nothing but blood is looked for.
_BLOOD = (0.4, 0.7)
_BLOOD_SAMPLES = 6
# An edge is this wide after the blur of the scanner.
_EDGE_MM = 1.5
_CLEAR_DROP, _NOISE_SIGMAS = 0.3, 2.5
_FAT_HU = -100.0
_SOFT_TISSUE_HU = 50.0
_ENHANCED_HU = 90.0
# Border found in the HU that lies this much off what the other directions say belongs to a neighbour.
_BORDER_TOLERANCE_MM = 1.5
_LARGEST_CORRECTION_MM = 4.0
_LEAST_RAYS = 0.6
# Share of the directions in which a border must be seen to correct the outline at all, and to trust it fully.
_LEAST_BORDER, _FULL_BORDER = 0.15, 0.4
_BRANCH_RATIO = 1.6
_HARMONICS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Sections:
    """Cross sections along a centreline, `_STEP_MM` apart, from its start to its end.

    `position_mm` (n,) along the line, `centre_mm` (n, 3) and unit `direction` (n, 3) in LPS, `long_mm` and `short_mm`
    (n,) the greatest and least width of the section, nan where no closed plausible section was found; `bordered` (n,)
    where enough of its border was seen in the HU.
    """

    position_mm: FloatArray
    centre_mm: FloatArray
    direction: FloatArray
    long_mm: FloatArray
    short_mm: FloatArray
    bordered: Mask


class Skeleton:
    """Ways through one mask on an isotropic grid, over every other voxel of it. Distances in mm.

    `voxels` (n, 3) are the indices of the nodes in the mask, `depth_mm` (n,) their distances to its border.
    """

    def __init__(self, mask: Mask, spacing_mm: float) -> None:
        bounds = ndimage.find_objects(mask.astype(np.int8))[0]
        depth = depth_in(mask[bounds], (1.0, 1.0, 1.0))
        thinned = depth[::_STRIDE, ::_STRIDE, ::_STRIDE]
        self._nodes = np.argwhere(thinned > 0)
        self.depth_mm = thinned[thinned > 0] * spacing_mm
        self.voxels = self._nodes * _STRIDE + [part.start for part in bounds]
        self._number = np.full(thinned.shape, -1, np.int32)
        self._number[thinned > 0] = np.arange(len(self._nodes))
        self._step_mm = _STRIDE * spacing_mm

    def distance_mm(self, start: int) -> FloatArray:
        """Length of the shortest way inside the mask from node `start` to each node, inf where there is none."""
        return np.asarray(dijkstra(self._graph(0.0), directed=False, indices=start))

    def path(self, start: int, end: int) -> npt.NDArray[np.intp]:
        """Numbers of the nodes on a way from `start` to `end` that keeps to the middle."""
        _, before = dijkstra(self._graph(3.0), directed=False, indices=start, return_predecessors=True)
        found = [end]
        while found[-1] != start:
            found.append(int(before[found[-1]]))
        return np.array(found[::-1])

    def _graph(self, power: float) -> csr_array:
        """Steps to the 26 neighbours, dearer near the border by `power`."""
        rows, columns, costs = [], [], []
        for offset in np.ndindex(3, 3, 3):
            step = np.array(offset) - 1
            if tuple(step) <= (0, 0, 0):
                continue
            there = self._nodes + step
            inside = np.flatnonzero(((there >= 0) & (there < self._number.shape)).all(axis=1))
            neighbour = self._number[tuple(there[inside].T)]
            here, neighbour = inside[neighbour >= 0], neighbour[neighbour >= 0]
            rows.append(here)
            columns.append(neighbour)
            middle = (self.depth_mm[here] + self.depth_mm[neighbour]) / 2
            costs.append(np.linalg.norm(step) * self._step_mm / middle**power)
        count = len(self._nodes)
        cost, row, column = (np.concatenate(part) for part in (costs, rows, columns))
        return csr_array((cost, (row, column)), shape=(count, count))


def measure_sections(mask: Mask, grid: Geometry, path_mm: FloatArray, volume: Volume) -> Sections:
    """Cross sections of `mask` (on `grid`) along a way (n, 3) in LPS mm through it.

    The outline is corrected by where the HU fall from blood to fat or lung (halfway), direction by direction; where the
    tube touches soft tissue the outline counts, moved by what the other directions were moved. A section is the
    closed curve of circle and ellipse terms through the border; its widths are between parallel tangents.
    """
    field = _Field(mask, grid)
    centre = _resampled(path_mm)
    for _ in range(2):
        direction = _directions(centre)
        radius = field.radii_mm(centre, direction)
        centre = _smoothed(centre + _offsets(radius, direction))
    direction = _directions(centre)
    radius = field.radii_mm(centre, direction)
    radius, bordered = _corrected(radius, volume, centre, direction)
    long_mm, short_mm = _widths(radius)
    steps = np.linalg.norm(np.diff(centre, axis=0), axis=1)
    return Sections(np.concatenate([[0.0], np.cumsum(steps)]), centre, direction, long_mm, short_mm, bordered)


class _Field:
    """A mask as a smooth function whose level 0.5 is its border."""

    def __init__(self, mask: Mask, grid: Geometry) -> None:
        bounds = ndimage.find_objects(mask.astype(np.int8))[0]
        box = tuple(slice(max(0, b.start - 4), min(n, b.stop + 4)) for b, n in zip(bounds, mask.shape, strict=True))
        self._values = ndimage.gaussian_filter(mask[box].astype(np.float32), _MASK_SMOOTHING_VOXELS)
        self._start = np.array([part.start for part in box])
        self._grid = grid

    def radii_mm(self, centre: FloatArray, direction: FloatArray) -> FloatArray:
        """(stations, rays) distance from the centre to the border; nan where it is too far or the centre outside."""
        reach = np.arange(0.0, _LONGEST_RADIUS_MM, _RADIAL_STEP_MM)
        points = _ray_points(centre, direction, reach[None, None, :])
        index = self._grid.patient_to_index(points) - self._start
        values = ndimage.map_coordinates(self._values, np.moveaxis(index, -1, 0), order=1, output=np.float32)
        return _first_crossing(values, 0.5) * _RADIAL_STEP_MM


def _first_crossing(values: npt.NDArray[Any], level: float | FloatArray) -> FloatArray:
    """Sample (with fraction) along the last axis where values first fall below `level`; nan where they never do."""
    below = values < np.asarray(level)
    after = np.argmax(below, axis=-1)
    before = np.maximum(after - 1, 0)
    high = np.take_along_axis(values, before[..., None], -1)[..., 0]
    low = np.take_along_axis(values, after[..., None], -1)[..., 0]
    limit = np.squeeze(np.asarray(level), axis=-1) if np.ndim(level) else level
    fraction = (high - limit) / np.maximum(high - low, 1e-6)
    return np.asarray(np.where(below.any(axis=-1) & (after > 0), before + fraction, np.nan), np.float64)


def _angles() -> FloatArray:
    return np.arange(_RAYS, dtype=np.float64) * (2 * np.pi / _RAYS)


def _plane(direction: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Two unit vectors (n, 3) that span the plane perpendicular to each direction, turning as little as they can."""
    first = np.empty_like(direction)
    before = np.eye(3)[np.argmin(np.abs(direction[0]))]
    for n, along in enumerate(direction):
        across = before - (before @ along) * along
        before = first[n] = across / np.linalg.norm(across)
    return first, np.asarray(np.cross(direction, first), np.float64)


def _ray_points(centre: FloatArray, direction: FloatArray, reach_mm: FloatArray) -> FloatArray:
    """(stations, rays, samples, 3) points at `reach_mm`, broadcast to (stations, rays, samples)."""
    first, second = _plane(direction)
    angle = _angles()[None, :, None]
    outward = np.cos(angle) * first[:, None, :] + np.sin(angle) * second[:, None, :]
    return centre[:, None, None, :] + reach_mm[..., None] * outward[:, :, None, :]


def _offsets(radius: FloatArray, direction: FloatArray) -> FloatArray:
    """From each centre to the middle of its section (n, 3)."""
    first, second = _plane(direction)
    shape = _fitted(radius)
    # First harmonic of the radius: how far the centre is off.
    along = (shape * np.cos(_angles())).mean(axis=1) * 2
    across = (shape * np.sin(_angles())).mean(axis=1) * 2
    offset = np.where(np.isfinite(along), along, 0.0)[:, None] * first
    return offset + np.where(np.isfinite(across), across, 0.0)[:, None] * second


def _corrected(
    radius: FloatArray, volume: Volume, centre: FloatArray, direction: FloatArray
) -> tuple[FloatArray, Mask]:
    """Radii moved to the border in the HU, and where it was seen; nan for a station where outline and HU disagree."""
    known = _unbranched(radius)
    usual = np.where(known, radius, 0.0)
    start = np.maximum(usual - _SEARCH_INSIDE_MM, _BLOOD[0] * usual)
    reach = np.arange(0.0, _SEARCH_INSIDE_MM + _SEARCH_OUTSIDE_MM + 0.01, _RADIAL_STEP_MM)
    blood = usual[..., None] * np.linspace(*_BLOOD, _BLOOD_SAMPLES)
    samples = np.concatenate([blood, start[..., None] + reach], axis=-1)
    shifts = (-_SLAB_MM / 2, 0.0, _SLAB_MM / 2)
    hu = np.mean([_sampled_hu(volume, centre + shift * direction, direction, samples) for shift in shifts], axis=0)
    inner, hu = np.where(known[..., None], hu[..., :_BLOOD_SAMPLES], np.nan), hu[..., _BLOOD_SAMPLES:]
    border = start + _border_sample(hu, inner.reshape(len(inner), -1)) * _RADIAL_STEP_MM
    border = np.where(known & (border < radius + _SEARCH_OUTSIDE_MM - _RADIAL_STEP_MM), border, np.nan)
    moved = border - radius
    found = np.isfinite(moved)
    share = found.mean(axis=1)
    # The few borders of a tube amid soft tissue are as likely those of its neighbours.
    trust = np.clip((share - _LEAST_BORDER) / (_FULL_BORDER - _LEAST_BORDER), 0.0, 1.0)[:, None]
    usual_move = _median(moved)[:, None]
    trusted = found & (np.abs(moved - usual_move) <= _BORDER_TOLERANCE_MM)
    move = np.where(trusted, moved, usual_move)
    corrected = np.where(known, radius + trust * np.where(trust > 0, move, 0.0), np.nan)
    corrected[(trust * np.abs(usual_move) > _LARGEST_CORRECTION_MM)[:, 0]] = np.nan
    return corrected, share >= _FULL_BORDER


def _median(values: FloatArray) -> FloatArray:
    """Median of the finite values of each row, nan where there are none."""
    ordered = np.sort(values, axis=1)
    count = np.isfinite(values).sum(axis=1)
    rows = np.arange(len(values))
    middle = (
        ordered[rows, np.maximum(count - 1, 0) // 2] + ordered[rows, np.minimum(count // 2, values.shape[1] - 1)]
    ) / 2
    return np.where(count > 0, middle, np.nan)


def _border_sample(hu: FloatArray, inner: FloatArray) -> FloatArray:
    """Sample (with fraction) of each ray at which the HU leave the tube, whose own HU are `inner` (stations, n).

    Halfway to fat, or to soft tissue where the blood is enhanced. A line of fat thinner than a voxel does not darken
    that far: there it is where the HU first fall clearly, beyond the noise.
    """
    blood = _median(inner)
    noise = _median(np.abs(inner - blood[:, None])) / 0.6745
    drop = blood - np.where(blood > _ENHANCED_HU, _SOFT_TISSUE_HU, _FAT_HU)
    halfway = _first_crossing(hu, (blood - 0.5 * drop)[:, None, None])
    clear = np.maximum(_CLEAR_DROP * drop, _NOISE_SIGMAS * noise)
    first = _first_crossing(hu, (blood - clear)[:, None, None])
    is_line = ~(halfway - first <= _EDGE_MM / _RADIAL_STEP_MM) & (clear < 0.5 * drop)[:, None]
    return np.where(is_line, first, halfway)


def _sampled_hu(volume: Volume, centre: FloatArray, direction: FloatArray, reach_mm: FloatArray) -> FloatArray:
    index = volume.geometry.patient_to_index(_ray_points(centre, direction, reach_mm))
    return ndimage.map_coordinates(
        volume.hu, np.moveaxis(index, -1, 0), order=1, output=np.float32, mode="constant", cval=np.nan
    )


def _fitted(radius: FloatArray) -> FloatArray:
    """Closed smooth curves through the radii of each station (n, rays); nan where too few directions are known."""
    angle = _angles()
    terms = [np.ones(_RAYS)]
    for k in range(1, _HARMONICS + 1):
        terms += [np.cos(k * angle), np.sin(k * angle)]
    base = np.stack(terms, axis=1)
    known = _unbranched(radius)
    enough = known.sum(axis=1) >= _LEAST_RAYS * _RAYS
    weighted = base * known[enough, :, None]
    right = np.einsum("nrt,nr->nt", weighted, np.where(known, radius, 0.0)[enough])
    coefficients = np.linalg.solve(weighted.transpose(0, 2, 1) @ base, right[..., None])[..., 0]
    shapes = np.full(radius.shape, np.nan)
    shapes[enough] = coefficients @ base.T
    return shapes


def _unbranched(radius: FloatArray) -> Mask:
    """Which directions end at the wall and not in a branch."""
    usual = np.median(np.where(np.isfinite(radius), radius, _LONGEST_RADIUS_MM), axis=1, keepdims=True)
    return np.isfinite(radius) & (radius < _BRANCH_RATIO * usual)


def _widths(radius: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Greatest and least distance between two parallel tangents of each section."""
    shape, angle = _averaged(_fitted(radius)), _angles()
    x, y = shape * np.cos(angle), shape * np.sin(angle)
    towards = angle[: _RAYS // 2]
    along = x[:, :, None] * np.cos(towards) + y[:, :, None] * np.sin(towards)
    width = along.max(axis=1) - along.min(axis=1)
    return width.max(axis=1), width.min(axis=1)


def _averaged(shapes: FloatArray) -> FloatArray:
    """Each section with its neighbours along the tube, against the noise of a single one; nan stays nan."""
    known = np.isfinite(shapes)
    sigma = _SECTION_SMOOTHING_MM / _STEP_MM
    total = ndimage.gaussian_filter1d(np.where(known, shapes, 0.0), sigma, axis=0, mode="constant")
    share = ndimage.gaussian_filter1d(known.astype(float), sigma, axis=0, mode="constant")
    return np.where(known, total / np.where(known, share, 1.0), np.nan)


def _resampled(path_mm: FloatArray) -> FloatArray:
    position = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path_mm, axis=0), axis=1))])
    samples = np.linspace(0.0, position[-1], max(4, round(position[-1] / _STEP_MM) + 1))
    even = np.stack([np.interp(samples, position, path_mm[:, axis]) for axis in range(3)], axis=1)
    return _smoothed(even)


def _smoothed(line: FloatArray) -> FloatArray:
    """Ends kept in place: the line is mirrored through them."""
    sigma = _PATH_SMOOTHING_MM / _STEP_MM
    pad = min(len(line) - 1, round(3 * sigma))
    head = 2 * line[0] - line[pad:0:-1]
    tail = 2 * line[-1] - line[-2 : -pad - 2 : -1]
    return np.asarray(ndimage.gaussian_filter1d(np.concatenate([head, line, tail]), sigma, axis=0)[pad:-pad])


def _directions(line: FloatArray) -> FloatArray:
    slope = np.gradient(line, axis=0)
    return np.asarray(slope / np.linalg.norm(slope, axis=1, keepdims=True))
