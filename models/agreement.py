"""Whether an answer holds when the image changes by what no reader would notice.

The network sees the image twice, the second time moved by half a voxel and a few HU brighter (test-time augmentation:
Wang et al., Neurocomputing 2019;338:34). The mean of both is the answer, their difference its uncertainty.
"""

import numpy as np
import numpy.typing as npt

from models.session import HeadOutputs

_BRIGHTER_HU = 8.0
# Two probabilities further apart than this are no answer.
MAXIMUM_SPREAD = 0.3


def perturbed(hu: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The grid (1, 1, D, H, W) moved by half a voxel along each axis, which also smooths it, and brightened."""
    moved = hu
    for axis in (2, 3, 4):
        moved = 0.5 * (moved + np.roll(moved, 1, axis=axis))
    return (moved + np.float32(_BRIGHTER_HU)).astype(np.float32)


def averaged(first: HeadOutputs, second: HeadOutputs) -> HeadOutputs:
    """The mean of two looks at one image; anatomy and strangeness are those of the first."""
    return HeadOutputs(
        anatomy=first.anatomy,
        lesions=0.5 * (first.lesions + second.lesions),
        study_logits=0.5 * (first.study_logits + second.study_logits),
        strangeness=first.strangeness,
    )
