"""Candidates of a lesion channel: what counts as one, and what is only the rim of an effusion."""

import numpy as np

from models.heads import lesion_candidates, not_lining


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
