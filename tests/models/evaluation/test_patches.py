"""The emphysema rule on labelled patches: classes in the file's order, their share below the threshold."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from models.evaluation.patches import CLASSES, low_attenuation_percent, separation


def test_patches_of_each_class_are_separated_from_normal_ones(tmp_path: Path) -> None:
    """Class k has k tenths of its voxels below -950 HU, the last the same as normal ones."""
    patches = np.empty((1, 6), object)
    for k in range(6):
        hu = np.full((10, 10, 4), -900)
        hu[: k % 5] = -960
        patches[0, k] = hu
    savemat(tmp_path / "patches.mat", {"EmphyPatch": patches})
    percent = low_attenuation_percent(tmp_path / "patches.mat")
    assert {name: values.tolist() for name, values in percent.items()} == {
        name: [10.0 * (k % 5)] * 4 for k, name in enumerate(CLASSES)
    }
    areas = separation(percent)
    assert areas["paraseptal"][0] == 1.0
    assert areas["centrilobular severe"][0] == pytest.approx(0.5)
