"""A straight tube of known section has the same widths in every direction, through any grid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from imaging.geometry import Geometry
from imaging.volume import Volume
from models.measured.tube import Sections, Skeleton, measure_sections

HALF_LENGTH_MM = 45.0
BLOOD_HU, FAT_HU = 42.0, -100.0


def _grid(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Geometry:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing_mm, 1.0
    affine[:3, 3] = [-(n - 1) / 2 * mm for n, mm in zip(shape[::-1], spacing_mm[::-1], strict=True)]
    return Geometry(affine, shape)


SOURCE = _grid((64, 128, 128), (2.5, 1.0, 1.0))
NETWORK = _grid((64, 64, 64), (2.5, 2.5, 2.5))


def _depth_mm(grid: Geometry, direction: np.ndarray, long_mm: float, short_mm: float) -> np.ndarray:
    """How far inside the elliptic tube through the origin each voxel lies, about."""
    points = grid.index_to_patient(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1))
    first = np.cross(direction, np.eye(3)[np.argmin(np.abs(direction))])
    first /= np.linalg.norm(first)
    second = np.cross(direction, first)
    radius = np.hypot(points @ first / long_mm, points @ second / short_mm)
    return np.minimum((0.5 - radius) * short_mm, HALF_LENGTH_MM - np.abs(points @ direction))


def _measured(direction: tuple[float, float, float], long_mm: float, short_mm: float, eroded: int = 0) -> Sections:
    unit = np.array(direction) / np.linalg.norm(direction)
    inside = np.clip(0.5 + _depth_mm(SOURCE, unit, long_mm, short_mm), 0, 1)
    noise = np.random.default_rng(0).normal(0, 12, SOURCE.shape)
    hu = ndimage.gaussian_filter(FAT_HU + inside * (BLOOD_HU - FAT_HU), (0.3, 0.7, 0.7)) + noise
    volume = Volume(hu.astype(np.int16), SOURCE, "1.2.3", ("1.2.3.4",) * 64, (None,) * 64)
    mask = _depth_mm(NETWORK, unit, long_mm, short_mm) > 0
    if eroded:
        mask = ndimage.binary_erosion(mask, iterations=eroded)
    skeleton = Skeleton(mask, 2.5)
    along = NETWORK.index_to_patient(skeleton.voxels) @ unit
    deep = np.flatnonzero(skeleton.depth_mm >= 5)
    ends = deep[np.argmin(along[deep])], deep[np.argmax(along[deep])]
    return measure_sections(mask, NETWORK, NETWORK.index_to_patient(skeleton.voxels[skeleton.path(*ends)]), volume)


def _middle(widths: np.ndarray) -> np.ndarray:
    """Away from the ends, where sections are averaged with cut ones."""
    half = len(widths) // 2
    return widths[half - 4 : half + 5]


@settings(max_examples=12, deadline=None)
@given(
    direction=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda d: np.linalg.norm(d) > 0.3),
    diameter_mm=st.floats(18, 36),
)
def test_a_round_tube_has_its_diameter_in_any_direction(direction: tuple, diameter_mm: float) -> None:
    sections = _measured(direction, diameter_mm, diameter_mm)
    assert _middle(sections.long_mm) == pytest.approx(diameter_mm, abs=1.0)
    assert _middle(sections.short_mm) == pytest.approx(diameter_mm, abs=1.0)


def test_an_elliptic_tube_has_both_widths() -> None:
    sections = _measured((0.3, -0.2, 0.9), 36, 28)
    assert _middle(sections.long_mm) == pytest.approx(36, abs=1.0)
    assert _middle(sections.short_mm) == pytest.approx(28, abs=1.0)


def test_an_outline_one_voxel_too_small_is_mended_by_the_border_in_the_hu() -> None:
    sections = _measured((0.5, 0.2, 0.8), 30, 30, eroded=1)
    assert _middle(sections.long_mm) == pytest.approx(30, abs=1.0)
    assert _middle(sections.bordered).all()


@pytest.mark.parametrize("eroded", [0, 1])
def test_the_border_of_a_wide_tube_is_sought_in_the_hu_as_well(eroded: int) -> None:
    """The search starts 6 mm inside the outline, which from 20 mm of radius on is beyond where blood is sampled."""
    sections = _measured((0.1, 0.0, 1.0), 50, 50, eroded=eroded)
    assert _middle(sections.bordered).all()
    assert _middle(sections.long_mm) == pytest.approx(50, abs=1.5)
    assert _middle(sections.short_mm) == pytest.approx(50, abs=1.5)
