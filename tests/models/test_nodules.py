"""Nodules at 1 mm on made volumes: where they are sought, how they are outlined, what is no nodule."""

import numpy as np
import pytest

from imaging.geometry import Geometry
from imaging.lungs import Lungs
from imaging.volume import Volume
from models.manifest import NoduleNetwork
from models.measure import axial_axes_mm, region_of, volume_mm3
from models.nodules.candidates import MAXIMUM_CANDIDATES, cut_patches, find_candidates
from models.nodules.detector import judge_candidates, outline_nodules
from models.nodules.grid import lung_grid
from models.nodules.outline import NoduleType, is_vessel, outline

CENTRE_MM = (0.3, -0.2, 0.4)
LUNG_HU, SOLID_HU = -860, 30


def a_volume(
    slice_mm: float,
    *balls: tuple[tuple[float, float, float], float, float],
    vessel_radius_mm: float = 0.0,
    wall: bool = False,
    extent_mm: float = 64.0,
) -> tuple[Volume, Lungs]:
    """Lung with balls (centre LPS mm, diameter mm, HU), a tube along y through the middle, a wall at x > 15 mm."""
    fine = 3
    shape = (round(extent_mm / slice_mm), round(extent_mm / 0.8), round(extent_mm / 0.8))
    z, y, x = (
        ((np.arange(n * fine) - (n * fine - 1) / 2) * mm / fine).reshape([-1 if i == k else 1 for i in range(3)])
        for k, (n, mm) in enumerate(zip(shape, (slice_mm, 0.8, 0.8), strict=True))
    )
    hu = np.full(tuple(n * fine for n in shape), LUNG_HU, np.float32)
    for (cx, cy, cz), diameter, value in balls:
        hu[(z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 <= (diameter / 2) ** 2] = value
    if vessel_radius_mm:
        hu[np.broadcast_to(z**2 + x**2 <= vessel_radius_mm**2, hu.shape)] = 40
    outside = np.broadcast_to(x > 15, hu.shape) & wall
    hu[outside] = 50
    blocks = [n for size in shape for n in (size, fine)]
    hu = hu.reshape(blocks).mean(axis=(1, 3, 5))
    tissue = outside.reshape(blocks).mean(axis=(1, 3, 5)) > 0.5
    hu += np.random.default_rng(0).normal(0, 15, hu.shape)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = slice_mm, 0.8, 0.8, 1.0
    affine[:3, 3] = [-(n - 1) / 2 * mm for n, mm in zip(shape[::-1], (0.8, 0.8, slice_mm), strict=True)]
    count = shape[0]
    volume = Volume(
        np.rint(hu).astype(np.int16), Geometry(affine, shape), "1", tuple(map(str, range(count))), (None,) * count
    )
    lung, nothing = ~tissue & (hu < -500), np.zeros(shape, bool)
    return volume, Lungs(body=~nothing, airways=nothing, left=lung, right=nothing)


@pytest.mark.parametrize("slice_mm", [1.0, 2.5, 5.0])
@pytest.mark.parametrize(("diameter_mm", "hu"), [(6.0, SOLID_HU), (12.0, SOLID_HU), (12.0, -550), (26.0, SOLID_HU)])
def test_a_ball_is_among_the_first_candidates(slice_mm: float, diameter_mm: float, hu: float) -> None:
    volume, lungs = a_volume(slice_mm, (CENTRE_MM, diameter_mm, hu))
    grid = lung_grid(volume, lungs)
    assert grid is not None
    found = find_candidates(grid.hu, grid.lung)
    off = np.linalg.norm(grid.geometry.index_to_patient(found.indices) - CENTRE_MM, axis=1)
    assert len(found.indices) <= MAXIMUM_CANDIDATES
    assert off[:3].min() < max(2.0, 0.2 * diameter_mm)


def test_a_tube_is_a_worse_candidate_than_a_ball() -> None:
    volume, lungs = a_volume(1.0, ((20.0, 0.0, 0.0), 7.0, SOLID_HU), vessel_radius_mm=3.5)
    grid = lung_grid(volume, lungs)
    assert grid is not None
    found = find_candidates(grid.hu, grid.lung)
    off = np.linalg.norm(grid.geometry.index_to_patient(found.indices) - (20.0, 0.0, 0.0), axis=1)
    assert off[0] < 2.0


def test_no_lungs_no_grid() -> None:
    volume, lungs = a_volume(2.5)
    nothing = np.zeros(volume.hu.shape, bool)
    assert lung_grid(volume, Lungs(lungs.body, nothing, nothing, nothing)) is None


@pytest.mark.parametrize("slice_mm", [1.0, 2.5])
@pytest.mark.parametrize("diameter_mm", [5.0, 10.0, 18.0, 25.0])
@pytest.mark.parametrize("vessel_radius_mm", [0.0, 1.2])
def test_diameter_within_1_mm(slice_mm: float, diameter_mm: float, vessel_radius_mm: float) -> None:
    volume, lungs = a_volume(slice_mm, (CENTRE_MM, diameter_mm, SOLID_HU), vessel_radius_mm=vessel_radius_mm)
    found = outline(volume, lungs, (0.0, 0.0, 0.0), 1.15 * diameter_mm)
    assert found is not None
    region = region_of(found.mask, found.box, volume.geometry)
    assert np.mean(axial_axes_mm(region, volume.geometry)) == pytest.approx(diameter_mm, abs=1.0)
    assert found.type is NoduleType.SOLID
    if diameter_mm >= 10:
        assert volume_mm3(region, volume.geometry) == pytest.approx(np.pi / 6 * diameter_mm**3, rel=0.15)


@pytest.mark.parametrize("slice_mm", [1.0, 2.5])
@pytest.mark.parametrize(("diameter_mm", "centre_mm"), [(12.0, 11.0), (28.0, 3.0), (36.0, 0.0)])
def test_a_nodule_at_the_wall_ends_at_the_wall(slice_mm: float, diameter_mm: float, centre_mm: float) -> None:
    ball = ((centre_mm, 0.0, 0.0), diameter_mm, SOLID_HU)
    volume, lungs = a_volume(slice_mm, ball, wall=True, extent_mm=max(64.0, 3 * diameter_mm))
    found = outline(volume, lungs, ball[0], diameter_mm)
    assert found is not None
    region = region_of(found.mask, found.box, volume.geometry)
    depth_mm = diameter_mm / 2 + 15.0 - centre_mm
    long_mm, short_mm = axial_axes_mm(region, volume.geometry)
    assert (long_mm, short_mm) == (pytest.approx(diameter_mm, abs=1.5), pytest.approx(depth_mm, abs=3.0))


@pytest.mark.parametrize(
    ("hu", "expected"),
    [(-600, NoduleType.GROUND_GLASS), (SOLID_HU, NoduleType.SOLID), (500, NoduleType.CALCIFIED)],
)
def test_type_by_attenuation(hu: float, expected: NoduleType) -> None:
    volume, lungs = a_volume(1.0, (CENTRE_MM, 12.0, hu))
    found = outline(volume, lungs, CENTRE_MM, 12.0)
    assert found is not None
    assert found.type is expected


def test_a_solid_core_in_ground_glass_is_part_solid() -> None:
    volume, lungs = a_volume(1.0, (CENTRE_MM, 18.0, -600), (CENTRE_MM, 9.0, SOLID_HU))
    found = outline(volume, lungs, CENTRE_MM, 18.0)
    assert found is not None
    assert found.type is NoduleType.PART_SOLID


@pytest.mark.parametrize("radius_mm", [1.5, 3.0])
def test_a_vessel_is_no_nodule(radius_mm: float) -> None:
    volume, lungs = a_volume(1.0, vessel_radius_mm=radius_mm)
    found = outline(volume, lungs, (0.0, 0.0, 0.0), 2 * radius_mm)
    assert found is None or is_vessel(found)


def test_plain_lung_has_no_outline() -> None:
    volume, lungs = a_volume(2.5)
    assert outline(volume, lungs, (0.0, 0.0, 0.0), 8.0) is None


class _BrightMiddle:
    """Says "nodule" where the middle of the fine patch is dense."""

    def judge(self, patches: np.ndarray) -> np.ndarray:
        return patches[:, 0, 11:13, 11:13, 11:13].mean(axis=(1, 2, 3)).astype(np.float32) - 128


NETWORK = NoduleNetwork(
    weights="nodules.onnx",
    sha256="0" * 64,
    input="patches",
    minimum_diameter_mm=4.0,
    present_probability=0.5,
    absent_probability=0.1,
    temperature=1.0,
    bias=0.0,
    chosen_on="nothing",
)


def test_each_nodule_is_described_once_the_largest_first() -> None:
    places = {(-16.0, 0.0, 0.0): 14.0, (16.0, 5.0, 3.0): 8.0}
    volume, lungs = a_volume(1.5, *((place, diameter, SOLID_HU) for place, diameter in places.items()))
    judged = judge_candidates(_BrightMiddle(), NETWORK, volume, lungs)
    nodules = outline_nodules(volume, lungs, judged, NETWORK.present_probability, NETWORK.minimum_diameter_mm)
    assert len(nodules) == len(places)
    for nodule, (place, diameter) in zip(nodules, places.items(), strict=True):
        assert nodule.region.centre_mm == pytest.approx(place, abs=1.5)
        assert nodule.mean_diameter_mm == pytest.approx(diameter, abs=1.0)


def test_patches_show_the_place_at_two_scales() -> None:
    hu = np.full((40, 40, 40), -1000.0, np.float32)
    hu[20, 18, 22] = 400.0
    patches = cut_patches(hu, np.array([[20.0, 18.0, 22.0]]))
    assert patches[0, 0, 12, 12, 12] == 255
    assert patches[0, 0].sum() == 255
    assert patches[0, 1, 12, 12, 12] == 32
