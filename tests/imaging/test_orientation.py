"""Axes that are turned although the headers agree with each other are seen by the anatomy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imaging.files import find_files
from imaging.geometry import Geometry
from imaging.headers import read_studies
from imaging.lungs import Lungs, segment_lungs
from imaging.orientation import find_lie
from imaging.phantom import make_phantom
from imaging.phantom_lesions import LesionRequest
from imaging.quality import check_voxels
from imaging.volume import Volume, load_volume

REAL_CT = Path(__file__).parents[3] / "shared" / "ct"
LEFT_RIGHT, FRONT_BACK, HEAD_FEET = 0, 1, 2
SEEN_AS = {LEFT_RIGHT: "changed sides", FRONT_BACK: "spine", HEAD_FEET: "above the lungs"}


@pytest.fixture(scope="module")
def chest() -> tuple[Volume, Lungs]:
    volume = make_phantom(3, (), spacing_mm=(4, 3, 3)).volume
    return volume, segment_lungs(volume)


NOT_CHECKED = "one lung holds so little air that left and right could not be checked against the anatomy"


def told(volume: Volume, lungs: Lungs) -> list[str]:
    return [issue.message for issue in check_voxels(volume, lungs) if issue.check == "orientation"]


def warnings(volume: Volume, lungs: Lungs) -> list[str]:
    """What is said to be turned."""
    return [message for message in told(volume, lungs) if message != NOT_CHECKED]


def turned(volume: Volume, lungs: Lungs, axis: int) -> tuple[Volume, Lungs]:
    """The same voxels where one axis of the patient is said to point the other way."""
    affine = volume.geometry.affine.copy()
    affine[axis] *= -1
    if axis == LEFT_RIGHT:
        lungs = replace(lungs, left=lungs.right, right=lungs.left)
    return replace(volume, geometry=Geometry(affine, volume.geometry.shape)), lungs


def stored_otherwise(
    volume: Volume, lungs: Lungs, *, swapped: bool, backwards: tuple[int, ...]
) -> tuple[Volume, Lungs]:
    """The same patient where other corners of it come first, as of a prone scan, and the geometry says so."""
    order = (0, 2, 1) if swapped else (0, 1, 2)

    def other(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.flip(values.transpose(order), backwards))

    hu = other(volume.hu)
    affine = volume.geometry.affine.copy()
    affine[:, :3] = affine[:, :3][:, order]
    for axis in backwards:
        affine[:, 3] += (hu.shape[axis] - 1) * affine[:, axis]
        affine[:, axis] *= -1
    masks = {name: other(getattr(lungs, name)) for name in ("body", "airways", "left", "right")}
    return replace(volume, hu=hu, geometry=Geometry(affine, hu.shape)), replace(lungs, **masks)


def test_a_chest_that_lies_as_its_headers_say_is_not_warned_of(chest: tuple[Volume, Lungs]) -> None:
    assert not warnings(*chest)


@pytest.mark.parametrize("axis", SEEN_AS)
def test_a_turned_axis_is_named(chest: tuple[Volume, Lungs], axis: int) -> None:
    (message,) = warnings(*turned(*chest, axis))
    assert SEEN_AS[axis] in message


@pytest.mark.parametrize(
    ("swapped", "backwards"), [(False, (1, 2)), (False, (0, 2)), (False, (0,)), (True, ()), (True, (0, 1))]
)
def test_how_the_voxels_are_stored_does_not_matter(
    chest: tuple[Volume, Lungs], swapped: bool, backwards: tuple[int, ...]
) -> None:
    otherwise = stored_otherwise(*chest, swapped=swapped, backwards=backwards)
    expected, found = find_lie(*chest), find_lie(*otherwise)
    # The blocks of the coarser grid begin elsewhere.
    for name in ("spine_behind_mm", "liver_below_mm", "sides_mm"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=5.0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_effusion_is_not_taken_for_a_liver(side: str) -> None:
    request = LesionRequest(kind="pleural_effusion", size=900.0, laterality=side)
    volume = make_phantom(5, (request,), spacing_mm=(4, 3, 3)).volume
    assert told(volume, segment_lungs(volume)) == [NOT_CHECKED]


@pytest.mark.real_ct
@pytest.mark.skipif(not REAL_CT.exists(), reason="no real CT beside the project (../shared/ct)")
@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("contrast_c3n_00249", {LEFT_RIGHT, FRONT_BACK, HEAD_FEET}),
        ("covid_p001", {LEFT_RIGHT, FRONT_BACK, HEAD_FEET}),
        # One lung has lost half of its air: which side the heart belongs to is not judged.
        ("effusion_lung1_024", {FRONT_BACK, HEAD_FEET}),
        ("nodules_lidc_0063", {LEFT_RIGHT, FRONT_BACK, HEAD_FEET}),
        ("normal_001", {LEFT_RIGHT, FRONT_BACK, HEAD_FEET}),
    ],
)
def test_real_chests(name: str, seen: set[int]) -> None:
    (study,), _ = read_studies(find_files([REAL_CT / name], Path("unused")).files)
    volume = load_volume(study.series[0])
    lungs = segment_lungs(volume)
    assert told(volume, lungs) == ([] if LEFT_RIGHT in seen else [NOT_CHECKED])
    assert {axis for axis in SEEN_AS if warnings(*turned(volume, lungs, axis))} == seen
