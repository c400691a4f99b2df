"""Resizing is what torch's `interpolate` and pooling do, with which the network for nodules was trained."""

import numpy as np
import pytest
import torch

from models.nodules.resize import halved, linear, mostly

SHAPE = (13, 20, 31)


@pytest.mark.parametrize("wanted", [(9, 13, 21), (20, 41, 50)])
def test_linear_is_trilinear(wanted: tuple[int, int, int]) -> None:
    values = np.random.default_rng(1).normal(-500, 400, SHAPE).astype(np.float32)
    source = torch.from_numpy(values)[None, None].clamp(-1000, 150)
    expected = torch.nn.functional.interpolate(source, size=wanted, mode="trilinear", align_corners=False)[0, 0]
    assert linear(values, wanted, -1000.0, 150.0) == pytest.approx(expected.numpy(), abs=1e-2)


@pytest.mark.parametrize("wanted", [(6, 10, 15), (4, 7, 10), (13, 19, 31)])
def test_mostly_is_more_than_half_of_the_area(wanted: tuple[int, int, int]) -> None:
    mask = np.random.default_rng(2).random(SHAPE) < 0.5
    expected = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None].float(), size=wanted, mode="area")
    assert (mostly(mask, wanted) == (expected[0, 0].numpy() > 0.5)).all()


def test_halved_is_mean_pooling() -> None:
    values = np.random.default_rng(3).normal(-500, 400, SHAPE).astype(np.float32)
    expected = torch.nn.functional.avg_pool3d(torch.from_numpy(values)[None, None], 2)[0, 0]
    assert halved(values) == pytest.approx(expected.numpy(), abs=1e-3)
