"""Candidates of a lesion channel: what counts as one, what is only the rim of an effusion, what may be vessels."""

import numpy as np

from models.findings import Laterality
from models.heads import lesion_candidates, not_lining, side_of, soft_tissue_radius_mm


def test_the_rim_of_an_effusion_is_no_opacity_and_what_stands_free_is_one() -> None:
    """Fluid behind y = 20: a rim of three voxels before it, a free block, and a lobe that reaches from the rim on."""
    fluid = np.zeros((12, 32, 40), bool)
    fluid[:, 20:] = True
    opacity = np.zeros(fluid.shape, np.float32)
    opacity[:, 17:20, 2:12] = 0.9
    opacity[2:8, 4:9, 14:20] = 0.9
    opacity[2:8, 2:20, 26:36] = 0.9
    candidates = lesion_candidates(opacity, 0.5, 15.6, 0.1)
    assert len(candidates) == 3
    kept = not_lining(candidates, fluid, 4, 0.7)
    assert sorted(c.box[2].start for c in kept) == [14, 26]
    assert not_lining(candidates, np.zeros_like(fluid), 4, 0.7) == candidates


def test_vessels_side_by_side_hold_less_soft_tissue_than_a_mass() -> None:
    """A ball of 18 mm beside a bundle of vessels of 7.5 mm, seen without and with contrast medium in them."""
    hu = np.full((24, 24, 48), -800.0, np.float32)
    z, y, x = np.ogrid[:24, :24, :48]
    hu[(z - 12) ** 2 + (y - 12) ** 2 + (x - 10) ** 2 <= 3.6**2] = 40.0
    vessels = ((y % 5 < 3) & (x % 5 < 3)) & (x >= 30) & (x < 43) & (y >= 5) & (y < 18) & (z >= 5) & (z < 18)
    hu[vessels] = 220.0
    probability = np.zeros(hu.shape, np.float32)
    probability[8:17, 8:17, 6:15] = 0.9
    probability[5:18, 5:18, 30:43] = 0.9
    vessel_bundle, mass = lesion_candidates(probability, 0.5, 15.6, 0.1)
    spacing = (2.5, 2.5, 2.5)
    assert soft_tissue_radius_mm(mass, hu, spacing, np.inf) > 8
    assert soft_tissue_radius_mm(vessel_bundle, hu, spacing, np.inf) < soft_tissue_radius_mm(mass, hu, spacing, np.inf)
    assert soft_tissue_radius_mm(vessel_bundle, hu, spacing, 130.0) == 0.0
    assert soft_tissue_radius_mm(mass, hu, spacing, 130.0) > 8


def test_a_side_is_that_of_the_lung_space_and_else_of_the_midline() -> None:
    """Lung spaces from 10 to 20 and from 24 to 34: what lies in neither has the side of their middle, at 22."""
    anatomy = np.zeros((4, 4, 60), np.uint8)
    anatomy[..., 10:20], anatomy[..., 24:34] = 2, 1

    def side(*columns: int) -> Laterality:
        return side_of(np.array([(1, 1, x) for x in columns]), anatomy, 1, 2)

    assert (side(18, 19, 20, 21), side(24, 20, 21, 22)) == (Laterality.RIGHT, Laterality.LEFT)
    assert (side(0, 1), side(40), side(20, 21), side(22, 23)) == (
        Laterality.RIGHT,
        Laterality.LEFT,
        Laterality.RIGHT,
        Laterality.LEFT,
    )
