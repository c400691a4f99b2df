"""The network's grid is what MONAI's transforms make of the volume; the way back is a linear interpolation."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRange, SpatialResample
from scipy import ndimage

from imaging.geometry import Geometry
from imaging.lungs import Lungs
from imaging.preprocess import ModelInput, prepare
from imaging.volume import Volume

MINIMUM_HU, MAXIMUM_HU = -1024.0, 3071.0


def _affine(turn_deg: float, descending: bool) -> np.ndarray:
    """Slices of 1.2 mm, pixels of 0.8 mm, turned about z."""
    turn = np.radians(turn_deg)
    affine = np.eye(4)
    affine[:3, 0] = (0, 0, -1.2 if descending else 1.2)
    affine[:3, 1] = 0.8 * np.array((-np.sin(turn), np.cos(turn), 0))
    affine[:3, 2] = 0.8 * np.array((np.cos(turn), np.sin(turn), 0))
    affine[:3, 3] = (-30, -20, 15)
    return affine


def _volume(affine: np.ndarray) -> Volume:
    shape = (40, 60, 70)
    hu = np.random.default_rng(5).integers(-1100, 3300, shape).astype(np.int16)
    uids = tuple(f"1.2.{n}" for n in range(shape[0]))
    return Volume(hu, Geometry(affine, shape), "1.2", uids, (None,) * shape[0])


def _prepared(volume: Volume) -> ModelInput:
    whole = np.ones(volume.hu.shape, np.bool_)
    lungs = Lungs(body=whole, airways=~whole, left=whole, right=~whole)
    return prepare(volume, lungs, spacing_mm=2.5, multiple_of=8, minimum_hu=MINIMUM_HU, maximum_hu=MAXIMUM_HU)


@pytest.mark.parametrize(("turn_deg", "descending"), [(0.0, False), (0.0, True), (7.0, False)])
def test_the_grid_is_that_of_monai(turn_deg: float, descending: bool) -> None:
    volume = _volume(_affine(turn_deg, descending))
    grid = _prepared(volume)
    scaled = ScaleIntensityRange(MINIMUM_HU, MAXIMUM_HU, 0.0, MAXIMUM_HU - MINIMUM_HU, clip=True)(
        torch.from_numpy(volume.hu.astype(np.float32))[None]
    )
    factors = (2, 3, 3)
    means = torch.nn.functional.avg_pool3d(scaled.as_tensor()[None], factors)[0]
    blocks = np.diag([*map(float, factors), 1.0])
    blocks[:3, 3] = [(f - 1) / 2 for f in factors]
    image = MetaTensor(means, affine=torch.from_numpy(volume.geometry.affine @ blocks))
    resample = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=False)
    expected = resample(
        image, dst_affine=torch.from_numpy(grid.geometry.affine.copy()), spatial_size=grid.geometry.shape
    )
    assert grid.hu.dtype == np.float32
    assert grid.hu[0, 0] == pytest.approx(expected.numpy()[0] + MINIMUM_HU, abs=1e-2)


@pytest.mark.parametrize(("turn_deg", "descending"), [(0.0, False), (0.0, True), (7.0, False)])
def test_values_come_back_to_the_source(turn_deg: float, descending: bool) -> None:
    volume = _volume(_affine(turn_deg, descending))
    grid = _prepared(volume)
    values = np.random.default_rng(6).random(grid.geometry.shape).astype(np.float32)
    box = (slice(3, 30), slice(10, 60), slice(0, 31))
    index = np.stack(np.meshgrid(*(np.arange(part.start, part.stop) for part in box), indexing="ij"), axis=-1)
    places = grid.geometry.patient_to_index(volume.geometry.index_to_patient(index))
    expected = ndimage.map_coordinates(values, np.moveaxis(places, -1, 0), order=1, mode="grid-constant")
    assert grid.to_source(values, box) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("turn_deg", [0.0, 7.0])
def test_a_mask_comes_to_the_grid_by_the_nearest_voxel(turn_deg: float) -> None:
    volume = _volume(_affine(turn_deg, descending=True))
    grid = _prepared(volume)
    index = np.moveaxis(np.indices(grid.geometry.shape), 0, -1)
    places = volume.geometry.patient_to_index(grid.geometry.index_to_patient(index))
    mask = volume.hu > 1000
    expected = ndimage.map_coordinates(mask.astype(np.uint8), np.moveaxis(places, -1, 0), order=0, mode="grid-constant")
    between = np.abs(places - np.floor(places) - 0.5).min(axis=-1) < 1e-6
    assert ((grid.from_source(mask) == expected) | between).all()
