"""Measurements against shapes whose size is known by formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.geometry import Geometry
from models.findings import Laterality, Quantity
from models.measure import (
    attenuation,
    axial_axes_mm,
    emphysema_indices,
    lung_zone,
    maximum_thickness_mm,
    region_of,
    shared_voxels,
    volume_mm3,
)

SHAPE = (40, 80, 80)


def _geometry(spacing) -> Geometry:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing, 1.0
    affine[:3, 3] = (-100.0, -50.0, 20.0)
    return Geometry(affine, SHAPE)


def _offsets_mm(spacing) -> np.ndarray:
    centre = (np.array(SHAPE) - 1) / 2
    index = np.moveaxis(np.indices(SHAPE), 0, -1)
    return (index - centre) * np.array(spacing)


def _whole(mask, geometry):
    return region_of(mask, tuple(slice(0, n) for n in SHAPE), geometry)


@settings(deadline=None, max_examples=15)
@given(
    semi_axes=st.tuples(*[st.floats(6.0, 12.0)] * 3),
    angle=st.floats(0, np.pi),
    spacing=st.tuples(st.floats(0.7, 1.5), *[st.floats(0.5, 0.9)] * 2),
)
def test_an_ellipsoid_has_its_volume_and_axes(semi_axes, angle, spacing) -> None:
    """Volume within 5 %, axes within two pixels, in any in-plane rotation."""
    z, y, x = np.moveaxis(_offsets_mm(spacing), -1, 0)
    u, v = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    mask = (z / semi_axes[0]) ** 2 + (v / semi_axes[1]) ** 2 + (u / semi_axes[2]) ** 2 <= 1
    geometry = _geometry(spacing)
    region = _whole(mask, geometry)
    assert volume_mm3(region, geometry) == pytest.approx(4 / 3 * np.pi * np.prod(semi_axes), rel=0.05)
    long_mm, short_mm = axial_axes_mm(region, geometry)
    pixels = 2 * max(spacing[1:])
    assert long_mm == pytest.approx(2 * max(semi_axes[1:]), abs=pixels)
    assert short_mm == pytest.approx(2 * min(semi_axes[1:]), abs=pixels)
    # The ball is one around a voxel's centre, which may be half a diagonal of a voxel off the middle.
    assert maximum_thickness_mm(region, geometry) == pytest.approx(2 * min(semi_axes), abs=2.75 * max(spacing))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_layer_is_as_thick_in_thick_slices(axis: int) -> None:
    spacing = (5.0, 0.9, 0.9)
    geometry = _geometry(spacing)
    mask = np.zeros(SHAPE, bool)
    mask[10:30, 10:70, 10:70] = True
    layer = [slice(None)] * 3
    count = (5, 20, 20)[axis]
    layer[axis] = slice(15, 15 + count)
    thin = np.zeros(SHAPE, bool)
    thin[tuple(layer)] = mask[tuple(layer)]
    assert maximum_thickness_mm(_whole(thin, geometry), geometry) == pytest.approx(count * spacing[axis], abs=1.0)


def test_a_region_knows_where_it_is() -> None:
    geometry = _geometry((2.0, 0.5, 0.8))
    mask = np.zeros(SHAPE, bool)
    mask[10:13, 20:25, 30:37] = True
    mask[11, 20:29, 30:37] = True
    region = _whole(mask, geometry)
    assert region.box == (slice(10, 13), slice(20, 29), slice(30, 37))
    assert region.mask.sum() == mask.sum()
    assert region.key_slice == 11
    index = np.rint(geometry.patient_to_index(region.centre_mm)).astype(int)
    assert mask[tuple(index)]


def test_the_centre_of_a_crescent_lies_inside_it() -> None:
    z, y, x = np.moveaxis(_offsets_mm((1, 1, 1)), -1, 0)
    shell = (np.hypot(x, y) > 20) & (np.hypot(x, y) < 25) & (y > 0) & (abs(z) < 5)
    region = _whole(shell, _geometry((1.0, 1.0, 1.0)))
    index = np.rint(_geometry((1.0, 1.0, 1.0)).patient_to_index(region.centre_mm)).astype(int)
    assert shell[tuple(index)]


def test_an_empty_mask_has_no_region() -> None:
    with pytest.raises(ValueError, match="empty"):
        _whole(np.zeros(SHAPE, bool), _geometry((1, 1, 1)))


@given(st.floats(0, 100), st.integers(0, 2**31))
@settings(deadline=None, max_examples=10)
def test_emphysema_indices_count_voxels(percent, seed) -> None:
    """LAA-950 is the share of lung voxels below -950 HU; -950 itself does not count."""
    left, right = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    right[:, :, 5:35], left[:, :, 45:75] = True, True
    hu = np.full(SHAPE, 40, np.int16)
    hu[left | right] = -950
    inside = np.flatnonzero(left)
    low = np.random.default_rng(seed).choice(inside, round(percent / 100 * len(inside)), replace=False)
    hu.reshape(-1)[low] = -951
    found = {(m.quantity, m.laterality): m.value for m in emphysema_indices(hu, left, right, _geometry((2, 0.7, 0.7)))}
    assert found[Quantity.LOW_ATTENUATION_AREA_950, Laterality.LEFT] == pytest.approx(100 * len(low) / len(inside))
    assert found[Quantity.LOW_ATTENUATION_AREA_950, Laterality.RIGHT] == 0
    assert found[Quantity.LOW_ATTENUATION_AREA_950, None] == pytest.approx(50 * len(low) / len(inside))
    assert found[Quantity.LUNG_VOLUME, Laterality.LEFT] == pytest.approx(len(inside) * 2 * 0.7 * 0.7 / 1000)


def test_no_lung_has_no_emphysema_index() -> None:
    none = np.zeros(SHAPE, bool)
    assert emphysema_indices(np.zeros(SHAPE, np.int16), none, none, _geometry((1, 1, 1))) == ()


def test_attenuation_is_of_the_mask_alone() -> None:
    hu = np.full(SHAPE, -1000, np.int16)
    mask = np.zeros(SHAPE, bool)
    mask[5:7, 5:9, 5:9] = True
    hu[5, 5:9, 5:9], hu[6, 5:9, 5:9] = 10, 30
    mean, deviation = attenuation(hu, _whole(mask, _geometry((1, 1, 1))))
    assert (mean.value, deviation.value) == (20.0, 10.0)


@pytest.mark.parametrize(("z", "zone"), [(-290.0, "lower zone"), (-150.0, "middle zone"), (-10.0, "upper zone")])
def test_zones_are_thirds_of_the_height(z, zone) -> None:
    assert lung_zone((0.0, 0.0, z), (-300.0, 0.0)) == zone


def test_voxels_that_two_boxed_masks_share() -> None:
    geometry = _geometry((1.0, 1.0, 1.0))
    first, second, apart = (np.zeros(SHAPE, np.bool_) for _ in range(3))
    first[5:10, 20:30, 30:40] = second[8:12, 25:50, 0:33] = apart[20:30, 60:70, 60:70] = True
    first[9, 26, 31] = False
    a, b, c = (_whole(mask, geometry) for mask in (first, second, apart))
    assert shared_voxels(a, b) == shared_voxels(b, a) == 2 * 5 * 3 - 1
    assert shared_voxels(a, c) == 0
