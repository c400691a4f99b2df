from pathlib import Path

import numpy as np
import pytest

from models.training.annotations import rasterise, read_annotations
from models.training.labels import LABEL
from models.training.network import SPACING_MM
from models.training.sources import Grid, real_sample

SHAPE = (48, 56, 72)
ORIGIN_MM = (-89.0, -70.0, -300.0)
VOXEL_ML = SPACING_MM**3 / 1000

TUBE = """
[[tubes]]
structure = "aorta"
points = [[10, 20, -280, {radius}], [10, 20, -230, {radius}], [10, 20, -200, {radius}]]
"""
OUTLINES = """
[[outlines]]
structure = "heart"
z_mm = {z}
points = {points}
"""


def empty_grid() -> Grid:
    return Grid(np.zeros(SHAPE, np.float32), ORIGIN_MM)


def ellipse(z_mm: float, half_x_mm: float, half_y_mm: float) -> str:
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    points = np.stack([-10 + half_x_mm * np.cos(angles), -5 + half_y_mm * np.sin(angles)], axis=1)
    return OUTLINES.format(z=z_mm, points=points.round(3).tolist())


def masks_of(text: str, folder: Path) -> dict[str, np.ndarray]:
    path = folder / "drawn.toml"
    path.write_text(text)
    return rasterise(read_annotations(path), empty_grid())


@pytest.mark.parametrize("radius_mm", [8.0, 15.0, 20.0])
def test_a_straight_tube_has_the_volume_and_place_of_its_cylinder(radius_mm: float, tmp_path: Path) -> None:
    aorta = masks_of(TUBE.format(radius=radius_mm), tmp_path)["aorta"]
    assert aorta.sum() * VOXEL_ML == pytest.approx(np.pi * radius_mm**2 * 80 / 1000, rel=0.06)
    z, y, x = (ORIGIN_MM[2 - axis] + SPACING_MM * np.nonzero(aorta)[axis].mean() for axis in range(3))
    assert (x, y, z) == pytest.approx((10, 20, -240), abs=1.3)


def test_a_stack_of_ellipses_is_interpolated_between_its_planes(tmp_path: Path) -> None:
    heart = masks_of(ellipse(-280, 30, 20) + ellipse(-220, 50, 40) + ellipse(-250, 40, 30), tmp_path)["heart"]
    heights_mm = np.arange(-280, -219, SPACING_MM)
    grown_mm = (heights_mm + 280) / 3
    expected_ml = np.pi * ((30 + grown_mm) * (20 + grown_mm)).sum() * SPACING_MM / 1000
    assert heart.sum() * VOXEL_ML == pytest.approx(expected_ml, rel=0.03)
    planes = np.nonzero(heart.any(axis=(1, 2)))[0]
    assert (planes[0], planes[-1]) == (8, 32)


def test_points_of_the_wrong_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 numbers"):
        masks_of('[[tubes]]\nstructure = "aorta"\npoints = [[0, 0, 0], [0, 0, 1]]', tmp_path)


def test_an_outlined_organ_gets_its_full_label_and_what_is_far_from_it_cannot_be_it(tmp_path: Path) -> None:
    hu = np.full((60, 80, 100), -1000.0, np.float32)
    hu[:, 10:70, 10:90] = 40.0
    hu[12:48, 18:60, 16:40] = hu[12:48, 18:60, 60:84] = -850.0
    grid = Grid(hu, (0.0, 0.0, 0.0))
    path = tmp_path / "drawn.toml"
    path.write_text('[[tubes]]\nstructure = "aorta"\npoints = [[125, 110, 20, 12], [125, 110, 130, 12]]')
    anatomy = real_sample(grid, unlabelled_pneumonia=False, structures=rasterise(read_annotations(path), grid)).anatomy
    row_of_aorta = anatomy[26, 44 - 6]
    assert row_of_aorta[50 - 6] == LABEL["aorta"]
    assert LABEL["heart_or_great_vessel"] not in anatomy
    assert anatomy[26, 12 - 6 + 1, 50 - 6] == LABEL["elsewhere"]
