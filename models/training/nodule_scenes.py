"""Lungs with nodules put into them, as a scanner would show them, on the 1 mm grid of `models.nodules`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

from imaging.lungs import segment_lungs
from imaging.phantom import LesionRequest, make_phantom
from models.nodules.grid import lung_grid
from models.training.lesions import Array, Mask, smooth_noise, soft_edge
from models.training.network import SPACING_MM
from models.training.nodule_shapes import draw_body, ellipse_axes_mm
from models.training.sources import body_mask, lung_labels, read_ct, to_grid

_MARGIN = 12
_BACKGROUND_HU = -850.0
SMALLEST_MM = 4.0
_DRAWN_MM = (3.5, 30.0)
# Masses are drawn on purpose: otherwise nearly all that is large and dense in a scene is consolidation.
_MASS_MM = (12.0, 45.0)
_MASS_SHARE = 0.25
# A nodule put into a vessel or the wall would be one in name only.
_LEAST_AERATED = 0.5
_PHANTOM_GRIDS_MM = ((1.5, 1.0), (2.5, 1.2), (2.5, 1.0), (4.0, 1.2))


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """The lungs of one patient at 1 mm (z superior, y posterior, x left): HU float32 and the aerated lungs."""

    name: str
    hu: Array
    lung: Mask


@dataclass(frozen=True, slots=True)
class Inserted:
    """A nodule of a scene: centre as index (z, y, x), diameter of the ball of its volume, axial axes, type."""

    centre: tuple[float, float, float]
    diameter_mm: float
    long_axis_mm: float
    short_axis_mm: float
    type: str

    @property
    def axial_mm(self) -> float:
        """The mean of both axes."""
        return (self.long_axis_mm + self.short_axis_mm) / 2


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One host, or one lung of it, with nodules; arrays as in `Host`."""

    hu: Array
    lung: Mask
    nodules: tuple[Inserted, ...]


def read_host(path: Path) -> Host:
    """A real CT of the whole thorax; its lungs by thresholds, which also work where the field of view cuts the body."""
    image = read_ct(path)
    coarse = to_grid(image, -1024.0)
    left, right, _ = lung_labels(coarse.values, body_mask(coarse.values))
    lung = sitk.GetImageFromArray((left | right).astype(np.uint8))
    lung.SetOrigin(coarse.origin_mm)
    lung.SetSpacing([SPACING_MM] * 3)
    size = [int(n * SPACING_MM) for n in lung.GetSize()]
    place = (size, sitk.Transform())
    to = (lung.GetOrigin(), [1.0] * 3, np.eye(3).ravel().tolist())
    hu = sitk.GetArrayFromImage(sitk.Resample(image, *place, sitk.sitkLinear, *to, -1024.0, sitk.sitkFloat32))
    inside = sitk.GetArrayFromImage(sitk.Resample(lung, *place, sitk.sitkNearestNeighbor, *to, 0)).astype(bool)
    inside &= hu < -400
    box = _box(inside)
    return Host(path.name.split(".")[0], hu[box].copy(), inside[box].copy())


def phantom_host(seed: int) -> Host:
    """A phantom with every other lesion that could be taken for a nodule, and none itself; half of them enhanced."""
    sizes = {"consolidation": 60.0, "ground_glass_opacity": 80.0, "emphysema": 15.0, "atelectasis": 40.0}
    chosen = [LesionRequest(kind=kind, size=size) for n, (kind, size) in enumerate(sizes.items()) if (seed >> n) % 2]
    slice_mm, pixel_mm = _PHANTOM_GRIDS_MM[seed % len(_PHANTOM_GRIDS_MM)]
    phantom = make_phantom(
        seed,
        chosen,
        spacing_mm=(slice_mm, pixel_mm, pixel_mm),
        contrast=seed % 2 == 0,
        kernel="sharp" if seed % 3 == 0 else "soft",
    )
    grid = lung_grid(phantom.volume, segment_lungs(phantom.volume))
    if grid is None:
        raise ValueError(f"the phantom of seed {seed} has no lungs")
    return Host(f"phantom {seed}", grid.hu, grid.lung)


def one_lung(host: Host, rng: np.random.Generator) -> Host:
    """Either lung of a host with the tissue around it."""
    middle = int(np.nonzero(host.lung.any(axis=(0, 1)))[0].mean())
    half = host.lung.copy()
    if rng.random() < 0.5:
        half[:, :, :middle] = False
    else:
        half[:, :, middle:] = False
    box = _box(half)
    return Host(host.name, host.hu[box], half[box])


def make_scene(
    host: Host, shapes: Sequence[Array], count: int, rng: np.random.Generator, *, as_scanned: bool = False
) -> Scene:
    """`count` nodules of 3.5 to 45 mm in the host; other lesions, slice thickness, kernel and noise drawn at random.

    With `as_scanned` the host keeps its own resolution and noise and gets no other lesion.
    """
    hu = host.hu.copy()
    if not as_scanned:
        if rng.random() < 0.35:
            _infiltrate(hu, host.lung, rng)
        if rng.random() < 0.35:
            _scars(hu, host.lung, rng)
    nodules = _insert(hu, host.lung, shapes, count, rng)
    if not as_scanned:
        hu = _scanned(hu, rng)
    return Scene(hu, host.lung, nodules)


def _box(lung: Mask) -> tuple[slice, slice, slice]:
    low = [max(0, int(np.flatnonzero(lung.any(axis=o))[0]) - _MARGIN) for o in ((1, 2), (0, 2), (0, 1))]
    high = [int(np.flatnonzero(lung.any(axis=o))[-1]) + _MARGIN + 1 for o in ((1, 2), (0, 2), (0, 1))]
    z, y, x = (slice(a, b) for a, b in zip(low, high, strict=True))
    return z, y, x


def _insert(
    hu: Array, lung: Mask, shapes: Sequence[Array], count: int, rng: np.random.Generator
) -> tuple[Inserted, ...]:
    closed = ndimage.binary_closing(np.pad(lung[::3, ::3, ::3], 5), iterations=4)[5:-5, 5:-5, 5:-5]
    depth_mm = 3.0 * ndimage.distance_transform_edt(closed)
    inside = np.argwhere(closed)
    depths = depth_mm[closed]
    bright = hu[::3, ::3, ::3][closed] > -550
    placed: list[Inserted] = []
    for _ in range(20 * count):
        if len(placed) == count:
            break
        diameter = _diameter_mm(rng)
        kind = rng.random()
        if kind < 0.35:
            allowed = (depths < 0.35 * diameter + 3) & (depths > 0.15 * diameter)
        elif kind < 0.6:
            allowed = bright & (depths > 6)
        else:
            allowed = depths > 0.5 * diameter
        if not allowed.any():
            continue
        centre = inside[rng.choice(np.flatnonzero(allowed))] * 3 + rng.integers(0, 3, 3)
        apart = [np.linalg.norm(centre - p.centre) - (diameter + p.diameter_mm) / 2 for p in placed]
        if apart and min(apart) < 14:
            continue
        nodule = _paint(hu, closed, draw_body(shapes, diameter, rng), centre, rng)
        if nodule is not None:
            placed.append(nodule)
    return tuple(placed)


def _diameter_mm(rng: np.random.Generator) -> float:
    if rng.random() < _MASS_SHARE:
        return float(rng.uniform(*_MASS_MM))
    return max(_DRAWN_MM[0], float(np.exp(rng.uniform(*np.log(_DRAWN_MM)) - abs(rng.normal(0, 0.35)))))


def _paint(
    hu: Array, closed: Mask, body: Array, centre: npt.NDArray[np.integer], rng: np.random.Generator
) -> Inserted | None:
    """Blend one nodule into the host; None where it would leave the grid or the lung."""
    body = np.pad(body, 2)
    low = centre - body.shape[0] // 2
    if (low < 0).any() or (low + body.shape > hu.shape).any():
        return None
    box = tuple(slice(int(a), int(a) + n) for a, n in zip(low, body.shape, strict=True))
    where = tuple(np.clip((np.arange(b.start, b.stop)) // 3, 0, n - 1) for b, n in zip(box, closed.shape, strict=True))
    body = body * ndimage.gaussian_filter(closed[np.ix_(*where)].astype(np.float32), 1.0)
    aerated = float((body * (hu[box] < -500)).sum() / max(float(body.sum()), 1.0))
    if body.sum() < 15 or aerated < _LEAST_AERATED:
        return None
    diameter = float((6 * body.sum() / np.pi) ** (1 / 3))
    long_mm, short_mm = ellipse_axes_mm(body)
    middle = tuple(float(c) for c in np.array(ndimage.center_of_mass(body)) + low)
    filled = ndimage.gaussian_filter(body, rng.uniform(0.35, 0.8))
    grain = rng.uniform(8, 35) * smooth_noise(body.shape, rng.uniform(1.0, 2.5), rng)
    old = hu[box]
    draw = rng.random()
    if draw < 0.6 or diameter < 5:
        kind, value = "solid", rng.uniform(-40, 90)
        new = old + filled * (np.maximum(value + grain, old.clip(max=60)) - old)
    elif draw < 0.68:
        kind, value = "calcified", rng.uniform(200, 800)
        core = filled if rng.random() < 0.6 else filled * ndimage.gaussian_filter(_inner(body, 0.6), 0.6)
        new = old + filled * (30 + grain - old) * (old < 30)
        new = new + core * (value - new)
    else:
        kind, delta = "ground_glass", rng.uniform(170, 420)
        new = np.where(old < 0, np.minimum(old + filled * (delta + 1.5 * grain), 60.0), old)
        if draw > 0.86 and diameter > 7:
            kind = "part_solid"
            core = ndimage.gaussian_filter(_inner(body, rng.uniform(0.35, 0.75)), 0.6)
            new = new + core * (np.maximum(rng.uniform(-40, 60) + grain, new.clip(max=60)) - new)
    hu[box] = new
    return Inserted((middle[0], middle[1], middle[2]), diameter, long_mm, short_mm, kind)


def _inner(body: Array, share: float) -> Array:
    """The part of a body within `share` of its depth, as a fraction of each voxel."""
    depth = ndimage.distance_transform_edt(body >= 0.5).astype(np.float32)
    return body * soft_edge(depth - (1 - share) * float(depth.max()), 1.0)


def _infiltrate(hu: Array, lung: Mask, rng: np.random.Generator) -> None:
    """Cloudy ground glass or consolidation: negatives with edges and small separate patches."""
    cloud = smooth_noise(hu.shape, rng.uniform(8, 30), rng) + 0.4 * smooth_noise(hu.shape, rng.uniform(4, 8), rng)
    where = smooth_noise(hu.shape, 70.0, rng)
    share = soft_edge(cloud + where - rng.uniform(1.2, 2.4), rng.uniform(0.15, 0.8)) * lung
    hu += share * rng.uniform(0.15, 1.0) * (np.maximum(30.0, hu) - hu)


def _scars(hu: Array, lung: Mask, rng: np.random.Generator) -> None:
    """Bands and plates: flat opacities of 1 to 4 mm that no reader calls a nodule."""
    inside = np.argwhere(lung[::4, ::4, ::4]) * 4
    for _ in range(int(rng.integers(2, 10))):
        centre = inside[rng.integers(len(inside))]
        reach = int(rng.integers(10, 26))
        box = tuple(slice(max(0, c - reach), min(n, c + reach)) for c, n in zip(centre, hu.shape, strict=True))
        axes = [np.arange(b.start, b.stop, dtype=np.float32) - c for b, c in zip(box, centre, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        normal = rng.standard_normal(3)
        normal /= np.linalg.norm(normal)
        wave = 1.5 * smooth_noise(grid.shape[:3], 12.0, rng)
        flat = soft_edge(rng.uniform(0.7, 2.0) - np.abs(grid @ normal.astype(np.float32) + wave), 1.0)
        round_edge = soft_edge(reach - 3 - np.linalg.norm(grid, axis=-1), 4.0)
        width = rng.standard_normal(3)
        width -= (width @ normal) * normal
        width /= np.linalg.norm(width)
        band = soft_edge(rng.uniform(5, 25) - np.abs(grid @ width.astype(np.float32)), 2.0)
        share = flat * round_edge * band * lung[box] * rng.uniform(0.4, 1.0)
        hu[box] += share * (np.maximum(20.0, hu[box]) - hu[box])


def _scanned(hu: Array, rng: np.random.Generator) -> Array:
    """Another kernel, other noise, slices of 1 to 5 mm, and back to 1 mm by linear interpolation."""
    blur = rng.choice([0.0, 0.0, rng.uniform(0.3, 1.0)])
    if blur:
        hu = ndimage.gaussian_filter(hu, (0, blur, blur))
    elif rng.random() < 0.4:
        hu = hu + rng.uniform(0.3, 1.2) * (hu - ndimage.gaussian_filter(hu, (0, 1.0, 1.0)))
    if rng.random() < 0.7:
        noise = rng.standard_normal(hu.shape, dtype=np.float32)
        grain = rng.uniform(0.0, 1.0)
        if grain > 0.3:
            noise = ndimage.gaussian_filter(noise, (0, grain, grain))
            noise /= noise.std()
        hu = hu + np.float32(rng.uniform(3, 60)) * noise
    step_mm = float(rng.choice([0.0, 1.25, 2.0, 2.5, 3.0, 4.0, 5.0], p=[0.3, 0.1, 0.1, 0.2, 0.15, 0.05, 0.1]))
    return thick_slices(hu, step_mm, step_mm * rng.uniform(0.8, 1.2), rng.uniform(0, 1)) if step_mm else hu


def slice_weights(distances_mm: npt.NDArray[np.float64], thickness_mm: float) -> npt.NDArray[np.float64]:
    """How much each plane of the 1 mm grid, at these distances along the last axis, adds to a slice; their sum is 1."""
    weights = np.clip(thickness_mm / 2 + 0.5 - np.abs(distances_mm), 0.0, 1.0)
    return weights / weights.sum(axis=-1, keepdims=True)


def thick_slices(hu: Array, step_mm: float, thickness_mm: float, phase: float) -> Array:
    """What slices of a thickness, `step_mm` apart, leave of a 1 mm grid, brought back to it; `phase` is of a step."""
    depth = hu.shape[0]
    planes = np.arange(phase * step_mm, depth - 1, step_mm)
    z = np.arange(depth)
    weights = slice_weights(planes[:, None] - z[None], thickness_mm)
    place = np.clip((z - planes[0]) / step_mm, 0, len(planes) - 1)
    back = np.clip(1 - np.abs(place[:, None] - np.arange(len(planes))[None]), 0.0, 1.0)
    matrix = (back @ weights).astype(np.float32)
    return (matrix @ hu.reshape(depth, -1)).reshape(hu.shape)
