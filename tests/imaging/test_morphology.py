"""The fast ways give what scipy and SimpleITK give."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from imaging.blocks import block_means, enlarged
from imaging.morphology import (
    depth_in,
    dilated,
    distance_to,
    filled_body,
    filled_planes,
    labelled_planes,
    opened_planes,
    reached_from,
)

SPACING_MM = (2.5, 0.7, 0.8)


def _blobs(seed: int, share: float = 0.5) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((9, 40, 50)), (0.5, 2.0, 2.0))
    return noise > np.quantile(noise, 1 - share)


@pytest.mark.parametrize("share", [0.002, 0.5, 0.98])
def test_distances_are_those_to_the_nearest_voxel(share: float) -> None:
    mask = _blobs(1, share)
    assert distance_to(mask, SPACING_MM) == pytest.approx(ndimage.distance_transform_edt(~mask, SPACING_MM), abs=1e-4)
    inside = ndimage.distance_transform_edt(np.pad(mask, 1), SPACING_MM)[1:-1, 1:-1, 1:-1]
    assert depth_in(mask, SPACING_MM) == pytest.approx(inside, abs=1e-4)


@pytest.mark.parametrize("share", [0.002, 0.5])
def test_what_a_ball_reaches(share: float) -> None:
    mask = _blobs(1, share)
    expected = ndimage.distance_transform_edt(~mask, SPACING_MM) <= 5.1
    assert (reached_from(mask, SPACING_MM, 5.1) == expected).all()


def test_nothing_is_near_an_empty_mask() -> None:
    empty = np.zeros((3, 4, 5), np.bool_)
    assert np.isinf(distance_to(empty, SPACING_MM)).all()
    assert not reached_from(empty, SPACING_MM, 5.0).any()


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_holes_and_pieces_of_each_slice(share: float) -> None:
    mask = _blobs(2, share)
    assert (filled_planes(mask) == [ndimage.binary_fill_holes(plane) for plane in mask]).all()
    labels, count = labelled_planes(mask)
    assert count == sum(ndimage.label(plane)[1] for plane in mask)
    assert ((labels > 0) == mask).all()
    assert not set(np.unique(labels[3])) & set(np.unique(labels[4])) - {0}


def test_a_body_cut_by_the_edge_of_the_image_keeps_its_lungs() -> None:
    body = np.zeros((1, 12, 12), np.bool_)
    body[0, 3:9, :2] = body[0, 3:9, 10:] = body[0, 3:5] = body[0, 7:9] = True
    body[0, 5:7, 0] = body[0, 5:7, 11] = False
    assert filled_body(body)[0, 3:9].all()
    assert not filled_planes(body)[0, 5, 0]


def test_opening_is_that_of_a_disc_of_five_voxels() -> None:
    mask = _blobs(3)
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    expected = sitk.GetArrayFromImage(sitk.BinaryMorphologicalOpening(image, [2, 2, 0])).astype(bool)
    assert (opened_planes(mask) == expected).all()


def test_blocks_are_averaged_clipped_and_enlarged() -> None:
    values = np.random.default_rng(4).integers(-1024, 3000, (7, 11, 12), np.int16)
    means = block_means(values, (2, 3, 3), -500.0, 500.0)
    assert means.shape == (3, 3, 4)
    assert means[1, 2, 3] == pytest.approx(np.clip(values[2:4, 6:9, 9:12].astype(float), -500, 500).mean(), abs=1e-4)
    large = enlarged(means > 0, (2, 3, 3), values.shape)
    assert (large[2:4, 6:9, 9:12] == (means[1, 2, 3] > 0)).all()
    assert (large[6] == large[5]).all()
    assert (enlarged(means > 0, (2, 3, 3), (4, 5, 6), (3, 1, 2)) == large[3:7, 1:6, 2:8]).all()


def test_dilation_takes_the_neighbours_along_the_axes() -> None:
    mask = _blobs(5, 0.1)
    assert (dilated(mask) == ndimage.binary_dilation(mask)).all()
    in_plane = ndimage.generate_binary_structure(2, 1)[None]
    assert (dilated(mask, axes=(1, 2)) == ndimage.binary_dilation(mask, in_plane)).all()
