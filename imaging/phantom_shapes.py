"""Implicit shapes, smooth noise and the anti-aliased painting of both on a voxel grid.

Shapes are signed distances in mm, negative inside. Smooth organs are evaluated on a coarse working grid and brought
to the voxel grid by cubic convolution (Keys, IEEE ASSP 29(6), 1981), so that one patient looks the same at every voxel
size; thin structures are drawn directly on the voxel grid. Arrays are (slice, row, column), points (x, y, z) LPS in mm.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.interpolate import CubicSpline

from imaging.geometry import Point

F32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
Box = tuple[slice, slice, slice]
Axes = tuple[F32, F32, F32]

WORKING_SPACING_MM = 3.0
FAR_MM = 60.0
_SLAB = 16


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Axis-aligned voxel grid: `axes` are the voxel centres along (slice, row, column), i.e. z, y and x in mm."""

    axes: Axes
    spacing_mm: Point

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = self.axes
        return len(z), len(y), len(x)

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing_mm)) / 1000.0

    def box_around(self, low: Sequence[float], high: Sequence[float], margin_mm: float) -> Box | None:
        """Index box of the points from `low` to `high` (x, y, z) with a margin; None when it is off the grid."""
        (box,) = self.boxes_around(np.array([low]), np.array([high]), np.array([margin_mm]))
        return box

    def boxes_around(self, low: Floats, high: Floats, margin_mm: Floats) -> list[Box | None]:
        """`box_around` for (n, 3) and (n, 3) points and (n,) margins."""
        first = np.array([float(axis[0]) for axis in self.axes])
        step, margin = np.array(self.spacing_mm), margin_mm[:, None]
        starts = np.maximum(0, np.floor((low[:, ::-1] - margin - first) / step)).astype(int)
        stops = np.minimum(self.shape, np.ceil((high[:, ::-1] + margin - first) / step).astype(int) + 1)
        off = (stops <= starts).any(axis=1).tolist()
        return [
            None if is_off else (slice(z, z1), slice(y, y1), slice(x, x1))
            for is_off, (z, y, x), (z1, y1, x1) in zip(off, starts.tolist(), stops.tolist(), strict=True)
        ]

    def point(self, index: Sequence[float]) -> Point:
        """Voxel index (slice, row, column) to (x, y, z) in mm."""
        z, y, x = (float(axis[0]) + i * step for axis, i, step in zip(self.axes, index, self.spacing_mm, strict=True))
        return x, y, z


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """The picture being painted: HU as float32 and anatomy labels on `grid`, and the `working` grid of the fields."""

    grid: Grid
    working: Grid
    weights: tuple[F32, F32, F32]
    hu: F32
    anatomy: npt.NDArray[np.uint8]

    def sample(self, field: F32, box: Box) -> F32:
        """A field of the working grid at the voxels of `box`."""
        wz, wy, wx = (weights[part] for weights, part in zip(self.weights, box, strict=True))
        used_z, used_y, used_x = (np.flatnonzero(w.any(axis=0)) for w in (wz, wy, wx))
        part = field[used_z[0] : used_z[-1] + 1, used_y[0] : used_y[-1] + 1, used_x[0] : used_x[-1] + 1]
        wz, wy, wx = (w[:, u[0] : u[-1] + 1] for w, u in zip((wz, wy, wx), (used_z, used_y, used_x), strict=True))
        rows = wz @ part.reshape(part.shape[0], -1)
        return np.asarray((wy @ rows.reshape(-1, *part.shape[1:])) @ wx.T, dtype=np.float32)

    def box_of(self, field: F32, below_mm: float = 2.0) -> Box | None:
        """Voxel box that holds every place where `field` is below `below_mm`."""
        inside = field < below_mm
        low, high = [], []
        for axis in range(3):
            hits = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
            if len(hits) == 0:
                return None
            low.append(float(self.working.axes[axis][hits[0]]))
            high.append(float(self.working.axes[axis][hits[-1]]))
        return self.grid.box_around(low[::-1], high[::-1], WORKING_SPACING_MM)

    def coordinates(self, box: Box) -> Axes:
        """Voxel centres of `box` as broadcastable z, y and x in mm."""
        z, y, x = (axis[part] for axis, part in zip(self.grid.axes, box, strict=True))
        return z[:, None, None], y[None, :, None], x[None, None, :]

    def coverage(self, distance: Floats, edge_mm: float | None = None) -> F32:
        """Part of each voxel inside a surface, 0 to 1, from its signed distance in mm."""
        width = edge_mm or max(self.grid.spacing_mm[1], 0.5)
        part = np.float32(0.5) - np.asarray(distance, np.float32) / np.float32(width)
        return np.clip(part, 0, 1, out=part)

    def paint(self, field: F32, hu: float | F32, label: int | None = None, edge_mm: float | None = None) -> None:
        """Fill the inside of a working-grid distance field; `hu` may itself be a working-grid field."""
        box = self.box_of(field)
        for part in slabs(box):
            distance = self.sample(field, part)
            value = hu if isinstance(hu, float) else self.sample(hu, part)
            self.blend(part, self.coverage(distance, edge_mm), value)
            if label is not None:
                self.anatomy[part][distance < 0] = label

    def blend(self, box: Box, coverage: F32, value: float | F32) -> None:
        self.hu[box] += coverage * (value - self.hu[box])

    def draw_tube(
        self,
        points: npt.NDArray[np.float64],
        radii: npt.NDArray[np.float64],
        hu: float,
        behind_hu: float,
        label: int | None = None,
        flatten: float = 1.0,
        label_over: int | None = None,
    ) -> None:
        """Draw a tapered tube (n points, n radii in mm) against `behind_hu`: brighter or darker wins.

        `flatten` < 1 stretches the section along z. A tube thinner than a voxel fades as its section does.
        Only voxels labelled `label_over`, when that is given, get the label.
        """
        pieces = capsules(points[:-1], points[1:], radii[:-1], radii[1:], flatten)
        self.draw_capsules(pieces, hu, behind_hu, label, label_over)

    def draw_capsules(
        self, pieces: Sequence["Capsule"], hu: float, behind_hu: float, label: int | None = None,
        label_over: int | None = None,
    ) -> None:  # fmt: skip
        """Draw tapered segments one after the other, as `draw_tube` does."""
        if not pieces:
            return
        width = float(np.cbrt(np.prod(self.grid.spacing_mm)))
        combine = np.maximum if hu > behind_hu else np.minimum
        low, high = map(np.array, zip(*(piece.extent_mm for piece in pieces), strict=True))
        boxes = self.grid.boxes_around(low, high, np.array([piece.reach_mm + width for piece in pieces]))
        for piece, box in zip(pieces, boxes, strict=True):
            if box is None:
                continue
            distance = piece.distance(self.coordinates(box))
            fade = min(1.0, (2.0 * piece.narrowest_mm / width) ** 2)
            coverage = (0.5 - distance / width).clip(0, 1) * fade
            drawn = behind_hu + coverage * np.float32(hu - behind_hu)
            combine(self.hu[box], drawn, out=self.hu[box], where=coverage > 0)
            if label is not None:
                here = self.anatomy[box]
                here[(distance < 0) & (True if label_over is None else here == label_over)] = label


def slabs(box: Box | None) -> Iterator[Box]:
    """`box` in pieces of few slices, so that temporary arrays stay small."""
    if box is None:
        return
    for start in range(box[0].start, box[0].stop, _SLAB):
        yield slice(start, min(start + _SLAB, box[0].stop)), box[1], box[2]


def make_canvas(shape: tuple[int, int, int], spacing_mm: Point, centre_mm: Point) -> Canvas:
    """Empty canvas (air, no labels) whose centre is at `centre_mm` (x, y, z)."""
    axes, working, weights = [], [], []
    for count, step, centre in zip(shape, spacing_mm, centre_mm[::-1], strict=True):
        axis = (centre + (np.arange(count) - (count - 1) / 2) * step).astype(np.float32)
        # Whole multiples of the working spacing: the same lattice, hence the same patient, for every voxel grid.
        first = int(np.floor(axis[0] / WORKING_SPACING_MM)) - 2
        last = int(np.ceil(axis[-1] / WORKING_SPACING_MM)) + 2
        nodes = (np.arange(first, last + 1) * WORKING_SPACING_MM).astype(np.float32)
        axes.append(axis)
        working.append(nodes)
        weights.append(_cubic_weights((axis - nodes[0]) / WORKING_SPACING_MM, len(nodes)))
    grid = Grid((axes[0], axes[1], axes[2]), spacing_mm)
    coarse = Grid((working[0], working[1], working[2]), (WORKING_SPACING_MM,) * 3)
    return Canvas(
        grid=grid,
        working=coarse,
        weights=(weights[0], weights[1], weights[2]),
        hu=np.full(shape, -1000, np.float32),
        anatomy=np.zeros(shape, np.uint8),
    )


def _cubic_weights(position: F32, nodes: int) -> F32:
    index = np.floor(position).astype(int)
    t = position - index
    cubic = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3)
    weights = np.zeros((len(position), nodes), np.float32)
    for offset, weight in zip((-1, 0, 1, 2), cubic, strict=True):
        weights[np.arange(len(position)), np.clip(index + offset, 0, nodes - 1)] += weight / 2
    return weights


@dataclass(frozen=True, slots=True)
class Capsule:
    """A tapered segment: z is compressed by `flatten` before distances are taken. All lengths in mm.

    `start`, `along` and `unit` (along over its squared length) are (x, y, z) after that, as float32 holds them.
    """

    extent_mm: tuple[list[float], list[float]]
    start: tuple[float, ...]
    along: tuple[float, ...]
    unit: tuple[float, ...]
    radius_mm: float
    growth_mm: float
    narrowest_mm: float
    reach_mm: float
    flatten: float

    def distance(self, coordinates: Axes) -> F32:
        """Signed distance in mm at voxel centres, broadcastable z, y and x."""
        z, y, x = coordinates
        ax, ay, az = self.start
        ux, uy, uz = self.unit
        lx, ly, lz = self.along
        dz, dy, dx = z * np.float32(self.flatten) - np.float32(az), y - np.float32(ay), x - np.float32(ax)
        t = (dx * ux + dy * uy + dz * uz).clip(0, 1)
        distance = np.sqrt((dx - t * lx) ** 2 + (dy - t * ly) ** 2 + (dz - t * lz) ** 2)
        return np.asarray(distance - (self.radius_mm + t * self.growth_mm), dtype=np.float32)


def capsules(starts: Floats, ends: Floats, r0: Floats, r1: Floats, flatten: float = 1.0) -> list[Capsule]:
    """Segments from (n, 3) to (n, 3) points (x, y, z) with (n,) radii at either end."""
    stretch = np.array([1.0, 1.0, flatten])
    a = starts * stretch
    along = ends * stretch - a
    unit = along / np.maximum((along**2).sum(axis=1), 1e-6)[:, None]
    rows = (
        np.minimum(starts, ends),
        np.maximum(starts, ends),
        *(values.astype(np.float32) for values in (a, along, unit, r0, r1 - r0)),
        np.minimum(r0, r1),
        np.maximum(r0, r1) / flatten,
    )
    return [
        Capsule((low, high), tuple(start), tuple(way), tuple(one), radius, growth, narrowest, reach, flatten)
        for low, high, start, way, one, radius, growth, narrowest, reach in zip(
            *(values.tolist() for values in rows), strict=True
        )
    ]


def tube_field(
    grid: Grid, points: npt.NDArray[np.float64], radii: npt.NDArray[np.float64], reach_mm: float = 15.0
) -> F32:
    """Signed distance to a tube on a grid, exact within `reach_mm` of it and FAR_MM beyond."""
    field = np.full(grid.shape, FAR_MM, np.float32)
    z, y, x = grid.axes
    for piece in capsules(points[:-1], points[1:], radii[:-1], radii[1:]):
        box = grid.box_around(*piece.extent_mm, piece.reach_mm + reach_mm)
        if box is not None:
            here = (z[box[0], None, None], y[None, box[1], None], x[None, None, box[2]])
            np.minimum(field[box], piece.distance(here), out=field[box])
    return field


def smooth_path(points: Sequence[Sequence[float]], step_mm: float = 6.0) -> tuple[npt.NDArray[np.float64], ...]:
    """Spline through control points (x, y, z[, radius]): (n, 3) points about `step_mm` apart and (n,) radii."""
    knots = np.asarray(points, float)
    position = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(knots[:, :3], axis=0), axis=1))])
    samples = np.linspace(0, position[-1], max(3, int(position[-1] / step_mm) + 1))
    curve = CubicSpline(position, knots)(samples)
    return curve[:, :3], np.interp(samples, position, knots[:, 3]) if knots.shape[1] > 3 else np.ones(len(samples))


def ellipsoid(position: Axes, centre: Point, radii: Point) -> F32:
    """Approximate signed distance to an axis-aligned ellipsoid; `position` is (x, y, z) fields."""
    scaled = [(p - np.float32(c)) / np.float32(r) for p, c, r in zip(position, centre, radii, strict=True)]
    k0 = np.sqrt(sum(s * s for s in scaled))
    k1 = np.sqrt(sum((s / np.float32(r)) ** 2 for s, r in zip(scaled, radii, strict=True)))
    return np.asarray(k0 * (k0 - 1) / np.maximum(k1, 1e-4), dtype=np.float32)


def blend_min(a: F32, b: F32, radius_mm: float) -> F32:
    """Union of two distance fields with a fillet (polynomial smooth minimum)."""
    h = np.maximum(np.float32(radius_mm) - np.abs(a - b), 0)
    return np.asarray(np.minimum(a, b) - h * h * np.float32(0.25 / radius_mm), dtype=np.float32)


def to_distance(implicit: Floats, spacing_mm: float = WORKING_SPACING_MM) -> F32:
    """First-order signed distance in mm of an implicit function on a cubic grid: f / |grad f|."""
    gradient = np.gradient(implicit, spacing_mm)
    steepness = np.sqrt(sum(np.square(g) for g in gradient))
    return np.asarray(np.clip(implicit / np.maximum(steepness, 1e-3), -FAR_MM, FAR_MM), dtype=np.float32)


def lattice_noise(grid: Grid, seed: int, scale_mm: float) -> F32:
    """Smooth noise, zero mean, unit variance, features of about `scale_mm`; the same value at the same point always."""
    step = [max(1, round(scale_mm / s)) for s in grid.spacing_mm]
    first = [int(np.floor(axis[0] / (s * k))) - 1 for axis, s, k in zip(grid.axes, grid.spacing_mm, step, strict=True)]
    last = [int(np.ceil(axis[-1] / (s * k))) + 2 for axis, s, k in zip(grid.axes, grid.spacing_mm, step, strict=True)]
    nodes = _hashed_normal(seed, first, last)
    weights = [
        _cubic_weights((axis / (s * k) - f).astype(np.float32), n)
        for axis, s, k, f, n in zip(grid.axes, grid.spacing_mm, step, first, nodes.shape, strict=True)
    ]
    field = weights[0] @ nodes.reshape(nodes.shape[0], -1)
    field = (weights[1] @ field.reshape(-1, *nodes.shape[1:])) @ weights[2].T
    return np.asarray(field / (0.78 if max(step) > 1 else 1.0), dtype=np.float32)


def _hashed_normal(seed: int, first: list[int], last: list[int]) -> F32:
    """Standard normal numbers that depend on the node's place only, not on the extent of the grid."""
    half = 512
    rng = np.random.default_rng(seed)
    tables = [rng.integers(0, 2**32, 2 * half, dtype=np.uint64) for _ in range(3)]
    zi, yi, xi = (t[np.arange(a, b + 1) + half] for t, a, b in zip(tables, first, last, strict=True))
    key = (zi[:, None, None] * np.uint64(0x9E3779B97F4A7C15)) ^ (yi[None, :, None] * np.uint64(0xC2B2AE3D27D4EB4F))
    key = key ^ (xi[None, None, :] * np.uint64(0x165667B19E3779F9))
    key = (key ^ (key >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    # The sum of four uniform numbers is near enough to normal for a texture.
    parts = sum(((key >> np.uint64(16 * k)) & np.uint64(0xFFFF)).astype(np.float32) for k in range(4))
    return np.asarray((parts / 65536.0 - 2.0) * np.float32(np.sqrt(3.0)), dtype=np.float32)


def soften(field: F32, spacing_mm: Point, sigma_mm: Point) -> F32:
    """Gaussian blur in mm along (slice, row, column); axes with less than 0.15 voxels are left alone."""
    for axis, (step, sigma) in enumerate(zip(spacing_mm, sigma_mm, strict=True)):
        if sigma / step > 0.15:
            ndimage.gaussian_filter1d(field, sigma / step, axis=axis, output=field, truncate=3.0)
    return field
