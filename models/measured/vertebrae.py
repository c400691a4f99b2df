"""The vertebral bodies told apart: the spine straightened along its centre line, cut at its discs.

The network's outline only says where the spine runs; discs, end plates and walls are found in the source's HU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from numpy.polynomial import Polynomial
from scipy import ndimage

from imaging.geometry import FloatArray
from models.anatomy import Anatomy

Floats = npt.NDArray[np.float32]

_STEP_MM = (0.5, 0.75, 1.5)
_HALF_DEPTH_MM, _HALF_WIDTH_MM = 30.0, 9.0
_MINIMUM_BODY_RADIUS_MM = 7.0
_MINIMUM_LENGTH_MM = 60.0
_BEYOND_OUTLINE_MM = 12.0
_HALF_BODY_MM = 14.0
_BACK_WALL_MM = (-8.0, 20.0)
_BONE_WINDOW_HU = (-100.0, 350.0)
_PITCH_MM = (14.0, 42.0)
_UNEVEN_COST = 3.0
_DISC_COST = 0.8
_LEAST_END_DISC = 0.3
_MINIMUM_EDGE_HU = 25.0
# Parts of the depth where heights are measured: nearer the walls the rims of two bodies run into each other, in front
# above all.
_COLUMNS = (0.25, 0.5, 0.8)
# Both end plates do not bulge outwards: a body higher in its middle was measured wrongly in front or behind.
_LARGEST_BULGE = 0.1
# Parts of the distance between two discs. A crushed body keeps most of its back wall; the middle of a sound one, which
# is measured best, is 0.8 or more of it, in phantoms that lost 70 to 90 % in front 0.35 to 0.45.
_LEAST_HEIGHT, _LEAST_BACK, _SUNKEN = 0.15, 0.5, 0.6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StraightSpine:
    """HU along the spine: (along, to posterior, to the left) in steps of `step_mm`, its centre line in the middle.

    `points_mm` (n, 3) is the centre line in LPS from below up, `posterior` and `left` (n, 3) the unit axes there.
    """

    hu: Floats
    step_mm: tuple[float, float, float]
    points_mm: FloatArray
    posterior: FloatArray
    left: FloatArray


def straighten(anatomy: Anatomy) -> StraightSpine | None:
    """The spine along the centre line of its bodies, or None where no plausible one is outlined."""
    points = _centre_line(anatomy)
    if points is None:
        return None
    spine = _along(points, anatomy)
    back_wall_mm = _back_wall_mm(spine)
    return _along(spine.points_mm + (back_wall_mm - _HALF_BODY_MM) * spine.posterior, anatomy)


def _along(points: FloatArray, anatomy: Anatomy) -> StraightSpine:
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    steps = np.arange(0.0, along[-1], _STEP_MM[0])
    points = np.stack([np.interp(steps, along, axis) for axis in points.T], axis=1)
    tangent = np.gradient(points, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    back = np.array([0.0, 1.0, 0.0]) - tangent[:, 1:2] * tangent
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    left = np.cross(back, tangent)
    depth = np.arange(-_HALF_DEPTH_MM, _HALF_DEPTH_MM + 0.01, _STEP_MM[1])
    width = np.arange(-_HALF_WIDTH_MM, _HALF_WIDTH_MM + 0.01, _STEP_MM[2])
    where = (
        points[:, None, None]
        + depth[None, :, None, None] * back[:, None, None]
        + width[None, None, :, None] * left[:, None, None]
    )
    index = np.moveaxis(anatomy.volume.geometry.patient_to_index(where), -1, 0)
    hu = ndimage.map_coordinates(anatomy.volume.hu, index, order=1, output=np.float32, mode="nearest")
    return StraightSpine(hu=hu, step_mm=_STEP_MM, points_mm=points, posterior=back, left=left)


def _back_wall_mm(spine: StraightSpine) -> float:
    """How far behind the line the bodies end: bone before it, the canal behind it.

    An outline that takes in arches and processes leads the line behind the middle of the bodies.
    """
    middle = np.clip(spine.hu[:, :, _within(spine, 2, -5.0, 5.0)], *_BONE_WINDOW_HU).mean(axis=2)
    profile = np.median(middle, axis=0)
    offsets = _offsets_mm(spine, 1)
    walls = offsets[(offsets >= _BACK_WALL_MM[0]) & (offsets <= _BACK_WALL_MM[1])]
    falls = [
        profile[_within(spine, 1, wall - 16.0, wall - 2.0)].mean()
        - profile[_within(spine, 1, wall + 1.5, wall + 9.0)].mean()
        for wall in walls
    ]
    return float(walls[int(np.argmax(falls))])


def _centre_line(anatomy: Anatomy) -> FloatArray | None:
    """(n, 3) LPS mm from below up: a smooth curve through the widest place of the outline in each slice."""
    outline = anatomy.mask("vertebrae")
    spacing = anatomy.grid.geometry.spacing_mm[0]
    # Discs, and bone that is dark inside, leave holes in the outline.
    closed = ndimage.binary_closing(outline, np.ones((5, 1, 1), bool)) if outline.any() else outline
    seen = []
    for z in np.flatnonzero(closed.any(axis=(1, 2))):
        inside = ndimage.distance_transform_edt(ndimage.binary_closing(closed[z], iterations=2)) * spacing
        widest = float(inside.max())
        if widest >= _MINIMUM_BODY_RADIUS_MM:
            y, x = ndimage.center_of_mass(np.where(inside > 0.8 * widest, inside, 0))
            seen.append((float(z), y, x))
    if len(seen) * spacing < _MINIMUM_LENGTH_MM:
        return None
    x_mm, y_mm, z_mm = anatomy.grid.geometry.index_to_patient(np.array(seen)).T
    kept = (np.abs(x_mm - np.median(x_mm)) < 25) & (np.abs(y_mm - np.median(y_mm)) < 45)
    for limit_mm in (12.0, 7.0, 7.0):
        if kept.sum() * spacing < _MINIMUM_LENGTH_MM:
            return None
        fits = [Polynomial.fit(z_mm[kept], axis[kept], 4) for axis in (x_mm, y_mm)]
        off = np.hypot(x_mm - fits[0](z_mm), y_mm - fits[1](z_mm))
        kept = off < limit_mm
    if kept.mean() < 0.6:
        return None
    # The outline of the lowest and the highest body is ragged where the scan ends.
    low, high = float(z_mm[kept].min()), float(z_mm[kept].max())
    low = max(low - _BEYOND_OUTLINE_MM, anatomy.scan_z_mm(fits[0](low), fits[1](low))[0])
    high = min(high + _BEYOND_OUTLINE_MM, anatomy.scan_z_mm(fits[0](high), fits[1](high))[1])
    heights = np.arange(low, high, 0.5)
    return np.stack([fits[0](heights), fits[1](heights), heights], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vertebra:
    """One body: its discs as indices along the straight spine, its walls in mm from the centre line, its heights.

    `heights_mm` is (anterior, middle, posterior) between the outer borders of the end plates, None where an end
    plate could not be told from its disc; `may_be_collapsed` where its middle could, and is too low for a sound body;
    `trabecular_hu` is the mean inside.
    """

    below: int
    above: int
    front_mm: float
    back_mm: float
    heights_mm: tuple[float, float, float] | None
    may_be_collapsed: bool
    trabecular_hu: float


def find_vertebrae(spine: StraightSpine) -> tuple[Vertebra, ...]:
    """The whole bodies between two discs, from below up."""
    discs = _discs(spine)
    pairs = list(pairwise(discs))
    walls = _walls(spine, pairs)
    return tuple(
        _vertebra(spine, below, above, front, back) for (below, above), (front, back) in zip(pairs, walls, strict=True)
    )


def _vertebra(spine: StraightSpine, below: int, above: int, front: float, back: float) -> Vertebra:
    measured = [_height(spine, below, above, front + part * (back - front)) for part in _COLUMNS]
    pitch_mm = (above - below) * spine.step_mm[0]
    heights = _plausible(measured, pitch_mm)
    middle = measured[1]
    return Vertebra(
        below=below,
        above=above,
        front_mm=front,
        back_mm=back,
        heights_mm=heights,
        may_be_collapsed=heights is None and middle is not None and middle < _SUNKEN * pitch_mm,
        trabecular_hu=_trabecular_hu(spine, below, above, front, back),
    )


def bodies_beyond(spine: StraightSpine, bodies: Sequence[Vertebra]) -> int:
    """How many whole bodies the line still has room for below and above those that were told apart."""
    low, high = bodies[0], bodies[-1]
    room_below, room_above = low.below, len(spine.points_mm) - 1 - high.above
    return room_below // (low.above - low.below) + room_above // (high.above - high.below)


def _discs(spine: StraightSpine) -> tuple[int, ...]:
    """Where end plates are bright on both sides and the disc between them is dark, at the pitch of vertebrae.

    The best chain by dynamic programming: each disc adds its score, an uneven pitch costs.
    """
    thinning = 2
    score = _disc_score(spine)[::thinning]
    step = thinning * spine.step_mm[0]
    pitches = np.arange(round(_PITCH_MM[0] / step), round(_PITCH_MM[1] / step))
    change = _UNEVEN_COST * np.abs(np.log(pitches[:, None] / pitches[None, :]))
    best = np.full((len(score), len(pitches)), -np.inf)
    came = np.full(best.shape, -1)
    for at in range(len(score)):
        for n, pitch in enumerate(pitches[pitches <= at]):
            before = best[at - pitch] - change[:, n]
            previous = int(np.argmax(before))
            longer = before[previous] > 0
            # The longer pitch counts more: else the chain would have a link in the middle of each body too.
            gain = (score[at] + score[at - pitch]) * (pitch / pitches[0]) ** 0.6
            best[at, n] = gain + (before[previous] if longer else 0)
            came[at, n] = previous if longer else -1
    at, n = (int(i) for i in np.unravel_index(int(np.argmax(best)), best.shape))
    chain = [at]
    while n >= 0:
        at, n = at - int(pitches[n]), int(came[at, n])
        chain.append(at)
    typical = float(np.median(score[chain]))
    while chain and score[chain[0]] < _LEAST_END_DISC * typical:
        chain.pop(0)
    while chain and score[chain[-1]] < _LEAST_END_DISC * typical:
        chain.pop()
    return tuple(thinning * at for at in reversed(chain))


def _disc_score(spine: StraightSpine) -> FloatArray:
    step = spine.step_mm[0]
    core = spine.hu[:, _within(spine, 1, -8.0, 8.0), _within(spine, 2, -9.0, 9.0)]
    profile = ndimage.gaussian_filter1d(np.minimum(core, 600).mean(axis=(1, 2)).astype(np.float64), 1.0 / step)
    profile /= max(1.48 * float(np.median(np.abs(profile - np.median(profile)))), 10.0)

    def beside(mm: float) -> FloatArray:
        shift = round(mm / step)
        padded = np.pad(profile, shift, mode="edge")
        return (padded[: len(profile)] + padded[2 * shift :][: len(profile)]) / 2

    scores = []
    for gap_mm in (0.0, 2.0, 4.0, 6.0, 8.0):
        plates = beside(gap_mm / 2)
        # The brightest of several depths of the bodies, so that the middle of a body never looks like a disc.
        bodies = np.max([beside(gap_mm / 2 + depth_mm) for depth_mm in (5.0, 7.0, 9.0)], axis=0)
        scores.append(plates - bodies + 1.5 * np.maximum(plates - profile, 0))
    score = np.max(scores, axis=0) - _DISC_COST
    # Too near the ends of the line to see both neighbours.
    blind = round(6.0 / step)
    score[:blind] = score[-blind:] = -1.0
    return np.asarray(score)


def _walls(spine: StraightSpine, pairs: list[tuple[int, int]]) -> list[tuple[float, float]]:
    """Front and back of each body at its middle; they change evenly along the spine."""
    found = []
    for below, above in pairs:
        quarter = (above - below) // 4
        waist = spine.hu[below + quarter : above - quarter, :, _within(spine, 2, -6.0, 6.0)].mean(axis=(0, 2))
        waist = ndimage.gaussian_filter1d(np.clip(waist, -150, 500).astype(np.float64), 0.75 / spine.step_mm[1])
        rise = np.gradient(waist)
        u = _offsets_mm(spine, 1)
        front, back = (u > -24) & (u < -8), (u > 6) & (u < 22)
        found.append((u[front][np.argmax(rise[front])], u[back][np.argmin(rise[back])]))
    if len(found) < 3:
        return [(float(f), float(b)) for f, b in found]
    order = np.arange(len(found))
    even = []
    for wall in np.array(found).T:
        slope = np.median([np.median((wall[i] - wall[order != i]) / (i - order[order != i])) for i in order])
        line = np.median(wall - slope * order) + slope * order
        even.append(np.where(np.abs(wall - line) < 3.0, wall, line))
    return [(float(f), float(b)) for f, b in zip(*even, strict=True)]


def _height(spine: StraightSpine, below: int, above: int, u: float) -> float | None:
    ends = _end_plates(spine, below, above, u)
    if ends is None:
        return None
    bottom, top = (point_on(spine, at, u) for at in ends)
    return float(np.linalg.norm(top - bottom))


def _plausible(measured: Sequence[float | None], pitch_mm: float) -> tuple[float, float, float] | None:
    """The heights of a body in front, in the middle and at the back; None where they cannot be all of one."""
    heights = [height for height in measured if height is not None]
    if len(heights) < len(measured) or max(heights) > pitch_mm:
        return None
    if min(heights) < _LEAST_HEIGHT * pitch_mm or heights[2] < _LEAST_BACK * pitch_mm:
        return None
    if heights[1] - (heights[0] + heights[2]) / 2 > _LARGEST_BULGE * heights[2]:
        return None
    # A tenth of the depth further out, as a reader's marks lie, along a straight line.
    outward = 0.1 * (heights[0] - heights[2]) / (_COLUMNS[2] - _COLUMNS[0])
    return heights[0] + outward, heights[1], heights[2] - outward


def _end_plates(spine: StraightSpine, below: int, above: int, u: float) -> tuple[float, float] | None:
    """Fractional indices of the outer borders of both end plates at `u` mm from the centre line."""
    step = spine.step_mm[0]
    column = spine.hu[:, _within(spine, 1, u - 1.6, u + 1.6), _within(spine, 2, -6.0, 6.0)].mean(axis=(1, 2))
    column = ndimage.gaussian_filter1d(column.astype(np.float64), 0.6 / step)
    middle = (below + above) / 2
    reach = round(4.0 / step)
    ends = []
    for disc in (below, above):
        low, high = max(0, disc - reach), min(len(column), disc + reach + 1)
        centre = low + int(np.argmin(column[low:high]))
        inner = round(middle - 0.1 * (disc - middle))
        path = np.arange(inner, centre + (1 if centre > inner else -1), 1 if centre > inner else -1)
        if len(path) < 6:
            return None
        fall = -np.gradient(column[path])
        # The outermost of the steep falls: an end plate pressed inwards has one on its inner side too.
        steep = np.flatnonzero(_peaks(fall) & (fall >= 0.6 * fall.max()))
        if fall.max() <= 0 or not len(steep):
            return None
        steepest = int(steep[-1])
        edge = path[max(0, steepest - round(2.0 / step)) : steepest + round(2.0 / step) + 1]
        if np.ptp(column[edge]) < _MINIMUM_EDGE_HU:
            return None
        half = (column[edge].max() + column[edge].min()) / 2
        across = int(np.flatnonzero(column[edge] >= half)[-1])
        nearer, farther = edge[across], edge[min(across + 1, len(edge) - 1)]
        drop = column[nearer] - column[farther]
        share = (column[nearer] - half) / drop if drop > 0 else 0.0
        ends.append(float(nearer + share * (farther - nearer)))
    return ends[0], ends[1]


def _peaks(values: FloatArray) -> npt.NDArray[np.bool_]:
    return np.asarray(values >= ndimage.maximum_filter1d(values, 3))


def _trabecular_hu(spine: StraightSpine, below: int, above: int, front: float, back: float) -> float:
    """Mean HU of the front two thirds at mid-height, clear of cortex, end plates and the basivertebral vein."""
    depth, margin = back - front, round(0.3 * (above - below))
    inside = spine.hu[
        below + margin : above - margin + 1,
        _within(spine, 1, front + 0.25 * depth, front + 0.65 * depth),
        _within(spine, 2, -7.0, 7.0),
    ]
    return float(inside.mean())


def point_on(spine: StraightSpine, at: float, u: float) -> FloatArray:
    """LPS point in mm at a fractional index along the spine, `u` mm behind its centre line."""
    whole = np.arange(len(spine.points_mm))
    line = [np.interp(at, whole, axis) for axis in spine.points_mm.T]
    back = [np.interp(at, whole, axis) for axis in spine.posterior.T]
    return np.array(line) + u * np.array(back)


def axes_at(spine: StraightSpine, at: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Unit vectors up along the spine, to posterior and to the left."""
    back, left = spine.posterior[at], spine.left[at]
    up = spine.points_mm[min(at + 1, len(spine.points_mm) - 1)] - spine.points_mm[max(at - 1, 0)]
    return up / np.linalg.norm(up), back, left


def _offsets_mm(spine: StraightSpine, axis: int) -> FloatArray:
    count = spine.hu.shape[axis]
    return (np.arange(count) - (count - 1) / 2) * spine.step_mm[axis]


def _within(spine: StraightSpine, axis: int, low_mm: float, high_mm: float) -> slice:
    offsets = _offsets_mm(spine, axis)
    inside = np.flatnonzero((offsets >= low_mm) & (offsets <= high_mm))
    return slice(int(inside[0]), int(inside[-1]) + 1)
