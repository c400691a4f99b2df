"""Lungs of bodies that thresholds and morphology easily lose."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from imaging.files import find_files
from imaging.geometry import Geometry
from imaging.headers import read_studies
from imaging.lungs import Lungs, segment_lungs
from imaging.phantom import make_phantom
from imaging.quality import check_voxels
from imaging.volume import AIR_HU, Volume, load_volume

REAL_CT = Path(__file__).parents[3] / "shared" / "ct"
SPACING_MM = 2.0
EXPECTED_ML = 4 / 3 * np.pi * 55 * 70 * 100 / 1000


def lungs_of(wall_mm: float, width: int) -> tuple[Lungs, float]:
    """Two ellipsoid lungs in a trunk whose sides are `wall_mm` thick, on an image of `width` columns; voxel in ml."""
    shape = (120, 130, width)
    z, y, x = ((np.arange(n) - (n - 1) / 2) * SPACING_MM for n in shape)
    pz, py, px = np.meshgrid(z, y, x, indexing="ij")
    hu = np.full(shape, -1000, np.int16)
    for side in (-70.0, 70.0):
        outer = ((px - side) / (55 + wall_mm)) ** 2 + (py / 90) ** 2 + (pz / 120) ** 2 < 1
        hu[outer] = 40
    hu[(np.abs(px) < 25) & (np.abs(py) < 60)] = 40
    for side in (-70.0, 70.0):
        hu[((px - side) / 55) ** 2 + (py / 70) ** 2 + (pz / 100) ** 2 < 1] = -850
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = SPACING_MM
    affine[:3, 3] = (x[0], y[0], z[0])
    affine[3, 3] = 1.0
    uids = tuple(f"1.2.{i + 1}" for i in range(shape[0]))
    lungs = segment_lungs(Volume(hu, Geometry(affine, shape), "1.2", uids, (None,) * shape[0]))
    return lungs, SPACING_MM**3 / 1000


@pytest.mark.parametrize(("wall_mm", "width"), [(20.0, 180), (6.0, 180), (20.0, 122)])
def test_lungs_are_found_behind_a_thin_wall_and_an_image_that_cuts_the_body(wall_mm: float, width: int) -> None:
    """Within 4 %: with a thick wall, one of 6 mm as in a wasted patient, and the lungs' sides at the image's edge."""
    lungs, voxel_ml = lungs_of(wall_mm, width)
    assert lungs.left.sum() * voxel_ml == pytest.approx(EXPECTED_ML, rel=0.04)
    assert lungs.right.sum() * voxel_ml == pytest.approx(EXPECTED_ML, rel=0.04)


@pytest.mark.parametrize("opaque", ["left", "right"])
def test_a_lung_alone_is_one_lung_on_its_side(opaque: str) -> None:
    """Its vessels and fissures let it fall apart; the pieces are not the two lungs."""
    phantom = make_phantom(3, (), spacing_mm=(3.0, 1.5, 1.5))
    both = segment_lungs(phantom.volume)
    aerated, replaced = (both.right, both.left) if opaque == "left" else (both.left, both.right)
    hu = np.where(ndimage.binary_dilation(replaced, iterations=2), 30, phantom.volume.hu).astype(np.int16)
    lungs = segment_lungs(replace(phantom.volume, hu=hu))
    alone, gone = (lungs.right, lungs.left) if opaque == "left" else (lungs.left, lungs.right)
    assert alone.sum() == pytest.approx(aerated.sum(), rel=0.02)
    assert not gone.any()


@pytest.mark.parametrize("beyond_mm", [12.0, 0.0])
def test_the_rim_of_a_round_field_of_view_closes_the_lungs(beyond_mm: float) -> None:
    """What lies beyond it is given as the lowest HU, as air outside the body may be."""
    phantom = make_phantom(3, (), spacing_mm=(4.0, 1.5, 1.5))
    volume = phantom.volume
    whole = segment_lungs(volume)
    seen = np.argwhere((whole.left | whole.right).any(axis=0))
    low, high = seen.min(axis=0), seen.max(axis=0)
    row, column = (low + high) / 2
    radius = (high - low)[1] / 2 + beyond_mm / 1.5
    rows, columns = np.ogrid[: volume.hu.shape[1], : volume.hu.shape[2]]
    inside = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    cut = replace(volume, hu=np.where(inside, volume.hu, AIR_HU).astype(np.int16))
    found = segment_lungs(cut)
    for lung, before in ((found.left, whole.left), (found.right, whole.right)):
        assert lung.sum() == pytest.approx((before & inside).sum(), rel=0.03)
    warned = "cut off at the edges" in " ".join(i.message for i in check_voxels(cut, found) if i.verdict != "pass")
    assert warned is (beyond_mm == 0.0)


@pytest.mark.real_ct
@pytest.mark.skipif(not REAL_CT.exists(), reason="no real CT beside the project (../shared/ct)")
@pytest.mark.parametrize(
    ("name", "opaque"), [("covid_p001", "left"), ("contrast_c3n_00249", "left"), ("nodules_lidc_0063", "right")]
)
def test_a_real_lung_alone_is_one_lung_on_its_side(name: str, opaque: str) -> None:
    (study,), _ = read_studies(find_files([REAL_CT / name], Path("unused")).files)
    volume = load_volume(study.series[0])
    both = segment_lungs(volume)
    aerated, replaced = (both.right, both.left) if opaque == "left" else (both.left, both.right)
    hu = np.where(ndimage.binary_dilation(replaced, iterations=3), 30, volume.hu).astype(np.int16)
    lungs = segment_lungs(replace(volume, hu=hu))
    alone, gone = (lungs.right, lungs.left) if opaque == "left" else (lungs.left, lungs.right)
    assert alone.sum() == pytest.approx(aerated.sum(), rel=0.05)
    assert not gone.any()
