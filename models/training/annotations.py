"""Organs outlined by hand on a real CT: centrelines with a radius and stacks of polygons, in LPS mm.

One TOML file a volume, `annotations/<name>.toml`:

    [[tubes]]
    structure = "aorta"                        # a key of the result
    points = [[x, y, z, radius], ...]          # along the centreline, two or more

    [[outlines]]
    structure = "heart"
    z_mm = -99.0
    points = [[x, y], ...]                     # a closed polygon on that plane

Outlines of one structure are interpolated between their planes and end at the first and the last one.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage as ndi
from scipy.spatial import KDTree

from models.training.network import SPACING_MM
from models.training.sources import Grid

_STEP_MM = 0.5
_SUBPIXELS = 5

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tube:
    """A centreline `points` (n, 4) of x, y, z, radius in mm; it ends flat at the first and the last point."""

    structure: str
    points: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outline:
    """A closed polygon `points` (n, 2) of x, y in mm on the plane `z_mm`."""

    structure: str
    z_mm: float
    points: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotations:
    """What was drawn on one volume."""

    tubes: tuple[Tube, ...]
    outlines: tuple[Outline, ...]


def read_annotations(path: Path) -> Annotations:
    """Raises TypeError where a key is missing or unknown, ValueError where points have the wrong length."""
    table: dict[str, Any] = tomllib.loads(path.read_text())
    return Annotations(
        tubes=tuple(
            Tube(**{**tube, "points": _points(tube["points"], least=2, width=4)}) for tube in table.pop("tubes", [])
        ),
        outlines=tuple(
            Outline(**{**outline, "points": _points(outline["points"], least=3, width=2)})
            for outline in table.pop("outlines", [])
        ),
        **table,
    )


def rasterise(annotations: Annotations, grid: Grid) -> dict[str, Mask]:
    """A mask (z, y, x) on the grid for each structure drawn."""
    masks: dict[str, Mask] = {}
    for tube in annotations.tubes:
        mask = masks.setdefault(tube.structure, np.zeros(grid.values.shape, np.bool_))
        mask |= _tube_mask(tube, grid)
    for structure in {outline.structure for outline in annotations.outlines}:
        stack = sorted((o for o in annotations.outlines if o.structure == structure), key=lambda o: o.z_mm)
        mask = masks.setdefault(structure, np.zeros(grid.values.shape, np.bool_))
        mask |= _stack_mask(stack, grid)
    return masks


def _points(rows: Sequence[Sequence[float]], *, least: int, width: int) -> Floats:
    points = np.array(rows, np.float64)
    if points.ndim != 2 or points.shape[0] < least or points.shape[1] != width:
        raise ValueError(f"need {least} or more points of {width} numbers, not {points.shape}")
    return points


def _tube_mask(tube: Tube, grid: Grid) -> Mask:
    line = _resample(tube.points)
    low = (line[:, :3] - line[:, 3:]).min(axis=0)
    high = (line[:, :3] + line[:, 3:]).max(axis=0)
    start = np.floor(grid.indices(low)).astype(int).clip(0, grid.values.shape)
    stop = (np.ceil(grid.indices(high)).astype(int) + 1).clip(0, grid.values.shape)
    z, y, x = np.meshgrid(*(np.arange(a, b) for a, b in zip(start, stop, strict=True)), indexing="ij")
    centres = np.stack([x, y, z], axis=-1) * SPACING_MM + np.array(grid.origin_mm)
    distance, nearest = KDTree(line[:, :3]).query(centres)
    inside = distance <= line[nearest, 3]
    for end, beside in ((0, 1), (len(line) - 1, len(line) - 2)):
        outwards = line[end, :3] - line[beside, :3]
        inside &= (nearest != end) | ((centres - line[end, :3]) @ outwards <= 0)
    mask = np.zeros(grid.values.shape, np.bool_)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = inside
    return mask


def _resample(points: Floats) -> Floats:
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1))])
    at = np.linspace(0.0, along[-1], max(3, round(along[-1] / _STEP_MM) + 1))
    return np.stack([np.interp(at, along, column) for column in points.T], axis=1)


def _stack_mask(stack: Sequence[Outline], grid: Grid) -> Mask:
    planes_mm = np.array([outline.z_mm for outline in stack])
    signed = np.stack([_signed_distance(_polygon_mask(outline.points, grid)) for outline in stack])
    mask = np.zeros(grid.values.shape, np.bool_)
    for k, plane in enumerate(mask):
        z_mm = grid.origin_mm[2] + k * SPACING_MM
        if not planes_mm[0] <= z_mm <= planes_mm[-1]:
            continue
        above = min(int(np.searchsorted(planes_mm, z_mm, side="right")), len(stack) - 1)
        below = max(above - 1, 0)
        gap = planes_mm[above] - planes_mm[below]
        share = (z_mm - planes_mm[below]) / gap if gap else 0.0
        plane[:] = (1 - share) * signed[below] + share * signed[above] > 0
    return mask


def _polygon_mask(points: Floats, grid: Grid) -> Mask:
    """Pixels at least half of which lie in the polygon."""
    rows, columns = grid.values.shape[1:]
    image = Image.new("1", (columns * _SUBPIXELS, rows * _SUBPIXELS))
    at = ((points - np.array(grid.origin_mm[:2])) / SPACING_MM + 0.5) * _SUBPIXELS - 0.5
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in at], fill=1)
    fine = np.asarray(image, np.float64).reshape(rows, _SUBPIXELS, columns, _SUBPIXELS)
    mask: Mask = fine.mean(axis=(1, 3)) >= 0.5
    return mask


def _signed_distance(mask: Mask) -> Floats:
    inside: Floats = ndi.distance_transform_edt(mask)
    outside: Floats = ndi.distance_transform_edt(~mask)
    return inside - outside
