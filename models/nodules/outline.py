"""The outline of one nodule on the source grid: its border by HU, freed from vessels and pleura, and its type."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from imaging.geometry import Point
from imaging.lungs import Lungs, Mask
from imaging.morphology import bounds, depth_in, distance_to, filled_planes, reached_from, widened
from imaging.volume import Volume

Box = tuple[slice, slice, slice]

_LUNG_HU = -850.0
_SOFT_TISSUE_HU = 60.0
_SOLID_HU = -300.0
_SMALL_SOLID_HU = -450.0
_CALCIFIED_HU = 200.0
# The border of ground glass is halfway, too; below this it is the lung's own texture.
_FAINTEST_BORDER_HU = -720.0
_HALO_ABOVE_LUNG_HU = 130.0
# Shares of the depth by which the body is opened until it reaches no further than this many depths from its middle.
_OPENINGS = (0.45, 0.6, 0.75, 0.9)
_REACH_OF_DEPTH = 2.5
_SMALLEST_PART_SOLID_MM = 6.0
_LEAST_CLOSING_MM = 8.0
_LONGEST = 3.2


class NoduleType(enum.StrEnum):
    """By attenuation, as Lung-RADS and Fleischner name them."""

    SOLID = "solid"
    PART_SOLID = "part-solid"
    GROUND_GLASS = "ground-glass"
    CALCIFIED = "calcified"


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """`mask` is the content of `box` on the source grid; `elongation` is its longest over its second axis."""

    box: Box
    mask: Mask
    type: NoduleType
    elongation: float


def outline(volume: Volume, lungs: Lungs, centre_mm: Point, diameter_mm: float) -> Outline | None:
    """The body of HU around a centre; None where there is none that stands out from the lung.

    Its border is where HU are halfway between the lung around and its core. The largest ball inside, near the centre,
    gives the depth; necks thinner than about half of it (vessels, a pleural base) are cut off by opening (after Kuhnigk
    et al., IEEE TMI 2006;25:417). `diameter_mm` is a first guess and sizes the box.
    """
    reach_mm = 1.0 * diameter_mm + 9.0
    box, centre = _box(volume, centre_mm, reach_mm)
    hu = volume.hu[box].astype(np.float32)
    spacing = np.array(volume.geometry.spacing_mm)
    distance_mm = _from_mm(hu.shape, tuple(centre), spacing)
    smooth = ndimage.gaussian_filter(hu, 0.5 / spacing)
    core_hu = _core_hu(smooth, distance_mm, diameter_mm)
    lung = lungs.left[box] | lungs.right[box]
    around = hu[lung & (distance_mm > 0.6 * diameter_mm) & (hu < -600)]
    lung_hu = float(np.median(around)) if around.size > 20 else _LUNG_HU
    border_hu = max((lung_hu + min(core_hu, _SOFT_TISSUE_HU)) / 2, _FAINTEST_BORDER_HU, lung_hu + 80)
    if core_hu <= border_hu:
        return None
    ground_glass = core_hu < _SOLID_HU
    dense = (ndimage.gaussian_filter(hu, 0.8 / spacing) if ground_glass else hu) > border_hu
    space = _pleural_space(lung, spacing, diameter_mm)
    body = _body(dense & space, distance_mm, diameter_mm, spacing)
    if body is None:
        return None
    if not ground_glass:
        halo_hu = _halo_hu(hu, body, space, spacing)
        if halo_hu is not None and halo_hu > lung_hu + _HALO_ABOVE_LUNG_HU:
            faint = ndimage.gaussian_filter(hu, 0.8 / spacing) > max((lung_hu + halo_hu) / 2, _FAINTEST_BORDER_HU)
            whole = _body(faint & space, distance_mm, diameter_mm, spacing)
            body = whole if whole is not None and whole.sum() > body.sum() else body
    return Outline(box, body, _type(smooth, body, spacing), _elongation(body, spacing))


def _box(volume: Volume, centre_mm: Point, reach_mm: float) -> tuple[Box, npt.NDArray[np.float64]]:
    index = volume.geometry.patient_to_index(centre_mm)
    reach = np.ceil(reach_mm / np.array(volume.geometry.spacing_mm))
    low = np.clip(np.floor(index - reach), 0, np.array(volume.hu.shape) - 1).astype(int)
    high = np.clip(np.ceil(index + reach) + 1, low + 1, volume.hu.shape).astype(int)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return (z, y, x), index - low


def _core_hu(smooth: npt.NDArray[np.float32], distance_mm: npt.NDArray[np.float64], diameter_mm: float) -> float:
    """HU of the inside: the upper quarter of the middle, which partial volume with lung does not reach."""
    middle = smooth[distance_mm <= max(1.5, 0.3 * diameter_mm)]
    if middle.size < 3:
        middle = np.sort(smooth.ravel()[np.argsort(distance_mm.ravel())[:5]])
    return float(np.percentile(middle, 75))


def _pleural_space(lung: Mask, spacing: npt.NDArray[np.float64], diameter_mm: float) -> Mask:
    """The lung of the box with what is dense in it or at its border, wider by the 1 mm of the mask's own rim.

    Closed by a ball as large as half a sphere of the expected size needs at the wall, on a grid that is coarser for a
    larger ball: most of the time of an outline would go into this.
    """
    radius_mm = max(_LEAST_CLOSING_MM, 0.6 * diameter_mm)
    # The finest axes are thinned, so that the grid comes nearer to voxels that are as long as wide.
    steps = np.maximum(1, (radius_mm / _LEAST_CLOSING_MM * spacing.min() / spacing).astype(int))
    z, y, x = (slice(step // 2, None, step) for step in steps)
    coarse, mm = lung[z, y, x], spacing * steps
    pad = np.ceil(radius_mm / mm).astype(int) + 1
    padded = np.pad(coarse, [(p, p) for p in pad], mode="edge")
    grown = reached_from(padded, mm, radius_mm)
    closed = distance_to(~grown, mm) > radius_mm - 1.0
    inner = filled_planes(closed[tuple(slice(p, -p) for p in pad)])
    sizes = zip(lung.shape, inner.shape, steps, strict=True)
    nearest = (np.minimum(np.arange(n) // step, m - 1) for n, m, step in sizes)
    return inner[np.ix_(*nearest)]


def _body(
    dense: Mask, distance_mm: npt.NDArray[np.float64], diameter_mm: float, spacing: npt.NDArray[np.float64]
) -> Mask | None:
    """The piece at the centre, opened by a growing share of its own depth until it ends; None where it never does."""
    half = float(spacing.min()) / 2
    depth_mm = depth_in(dense, spacing)
    near = distance_mm <= max(0.4 * diameter_mm, 2.5)
    if not (dense & near).any():
        return None
    deepest = float(depth_mm[near].max()) - half
    seed = np.unravel_index(int(np.argmax(np.where(near, depth_mm, 0.0))), dense.shape)
    reach_mm = _REACH_OF_DEPTH * deepest + half + float(spacing.max()) / 2
    far = _from_mm(dense.shape, seed, spacing) > reach_mm
    for share in _OPENINGS:
        cut_mm = share * deepest
        cores = cc3d.connected_components(depth_mm - half > cut_mm, connectivity=26)
        opened = dense & reached_from(cores == cores[seed], spacing, cut_mm + half)
        pieces = cc3d.connected_components(opened, connectivity=26)
        body: Mask = pieces == pieces[seed]
        if not (body & far).any():
            return filled_planes(body)
    return None


def _halo_hu(hu: npt.NDArray[np.float32], body: Mask, space: Mask, spacing: npt.NDArray[np.float64]) -> float | None:
    """Median HU 2 to 4 mm beside a solid body in its own slices, where a part-solid nodule has its ground glass."""
    box = bounds(body)
    if box is None:
        return None
    near = widened(box, [0, *(int(4.0 / mm) + 1 for mm in spacing[1:])], body.shape)
    beside_mm = distance_to(body[near], (1e3, *spacing[1:]))
    ring = hu[near][(beside_mm >= 2.0) & (beside_mm <= 4.0) & space[near] & (hu[near] < _SOLID_HU)]
    return float(np.median(ring)) if ring.size > 20 else None


def _from_mm(
    shape: tuple[int, ...], index: Sequence[float | np.intp], spacing: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Distance of every voxel to an index."""
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    return np.sqrt(sum(((axis - i) * mm) ** 2 for axis, i, mm in zip(axes, index, spacing, strict=True)))


def type_of(volume: Volume, box: Box, mask: Mask) -> NoduleType:
    """The type of a body that is outlined already; `mask` is the content of `box` on the source grid."""
    spacing = np.array(volume.geometry.spacing_mm)
    return _type(ndimage.gaussian_filter(volume.hu[box].astype(np.float32), 0.5 / spacing), mask, spacing)


def _type(smooth: npt.NDArray[np.float32], body: Mask, spacing: npt.NDArray[np.float64]) -> NoduleType:
    """By the HU of its inner half, since the rim is partial volume with lung."""
    box = bounds(body)
    if box is not None:
        body, smooth = body[box], smooth[box]
    depth_mm = depth_in(body, spacing)
    inner = smooth[depth_mm >= 0.4 * depth_mm.max()]
    if np.percentile(inner, 85) > _CALCIFIED_HU:
        return NoduleType.CALCIFIED
    solid = float((inner > _SOLID_HU).mean())
    if solid > 0.75:
        return NoduleType.SOLID
    if 2 * depth_mm.max() < _SMALLEST_PART_SOLID_MM:
        # Partial volume leaves a solid one of this size about half of its HU.
        return NoduleType.SOLID if np.percentile(inner, 75) > _SMALL_SOLID_HU else NoduleType.GROUND_GLASS
    return NoduleType.PART_SOLID if solid > 0.15 else NoduleType.GROUND_GLASS


def _elongation(body: Mask, spacing: npt.NDArray[np.float64]) -> float:
    """Longest over second principal axis, of voxels as boxes."""
    points = np.argwhere(body) * spacing
    spread = np.cov(points.T) if len(points) > 1 else np.zeros((3, 3))
    axes = np.sqrt(np.sort(np.linalg.eigvalsh(spread + np.diag(spacing**2) / 12))[::-1])
    return float(axes[0] / axes[1])


def is_vessel(found: Outline) -> bool:
    """Whether an outline is a tube: more than about three times as long as wide."""
    return found.elongation > _LONGEST
