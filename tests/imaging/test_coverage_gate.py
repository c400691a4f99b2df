"""How much of the lungs a volume must hold: a thorax cut at either end, and bodies that are no chest."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from imaging.geometry import Geometry
from imaging.lungs import Lungs
from imaging.quality import Verdict, check_voxels
from imaging.volume import Volume

SHAPE, SPACING_MM = (100, 90, 120), 3.0


def chest(first: int, last: int) -> tuple[Volume, Lungs]:
    """Slices `first` to `last` of an elliptic body whose two lungs reach from slice 10 to 90."""
    z, y, x = np.moveaxis(np.moveaxis(np.indices(SHAPE), 0, -1)[first:last] * SPACING_MM, -1, 0)
    body = ((x - 180) / 170) ** 2 + ((y - 135) / 125) ** 2 < 1
    left, right = (((x - at) / 60) ** 2 + ((y - 135) / 85) ** 2 + ((z - 150) / 120) ** 2 < 1 for at in (260, 100))
    hu = np.where(left | right, -850, np.where(body, 40, -1000)).astype(np.int16)
    geometry = Geometry(np.array([[0, 0, 3, 0], [0, 3, 0, 0], [3, 0, 0, 3.0 * first], [0, 0, 0, 1]], float), hu.shape)
    uids = tuple(map(str, range(len(hu))))
    return Volume(hu, geometry, "1.2.3", uids, (None,) * len(hu)), Lungs(body, np.zeros_like(body), left, right)


@pytest.mark.parametrize(
    ("slices", "verdict", "words"),
    [
        ((0, 100), Verdict.PASS, "covered"),
        ((16, 100), Verdict.WARN, "bases are cut off"),
        ((0, 84), Verdict.WARN, "apices are cut off"),
        ((50, 100), Verdict.REJECT, "bases lie outside"),
        ((0, 50), Verdict.REJECT, "apices lie outside"),
        ((0, 28), Verdict.REJECT, "apices lie outside"),  # an abdomen with lung bases
        ((72, 100), Verdict.REJECT, "bases lie outside"),  # a neck with lung apices
        ((0, 12), Verdict.REJECT, "not a chest"),
    ],
)
def test_what_is_cut_off_is_named_or_refused(slices: tuple[int, int], verdict: Verdict, words: str) -> None:
    issues = check_voxels(*chest(*slices))
    worst = max((i for i in issues if i.check in ("coverage", "lungs")), key=lambda i: list(Verdict).index(i.verdict))
    assert worst.verdict is verdict
    assert words in worst.message


@pytest.mark.parametrize(
    ("blank", "verdict"),
    [((0, 1, 99), Verdict.WARN), ((50,), Verdict.REJECT), ((0, 50), Verdict.REJECT), (range(100), Verdict.REJECT)],
)
def test_blank_images_are_padding_at_the_ends_only(blank: Sequence[int], verdict: Verdict) -> None:
    volume, lungs = chest(0, 100)
    hu = volume.hu.copy()
    hu[list(blank)] = -1024
    issues = check_voxels(replace(volume, hu=hu), lungs)
    assert {issue.verdict for issue in issues if issue.check == "blank_images"} == {verdict}
