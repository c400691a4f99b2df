"""Whether an answer holds when the image changes by what no reader would notice.

The network sees the image twice, the second time moved by one voxel, a little smoother and a few HU brighter (test-time
augmentation: Wang et al., Neurocomputing 2019;338:34). A whole voxel moves all coarser levels of the network by a part
of theirs, and can be undone exactly. The mean of both is the answer, their difference its uncertainty.
"""

import numpy as np
import numpy.typing as npt

from models.session import HeadOutputs

_AXES = (2, 3, 4)
_BRIGHTER_HU = 8.0
# Two probabilities further apart than this are no answer.
MAXIMUM_SPREAD = 0.3


def perturbed(hu: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The grid (1, 1, D, H, W) moved by one voxel along each axis, smoothed by half a voxel and brightened."""
    smooth = hu
    for axis in _AXES:
        smooth = 0.75 * smooth + 0.125 * (np.roll(smooth, 1, axis=axis) + np.roll(smooth, -1, axis=axis))
    return (np.roll(smooth, (1, 1, 1), axis=_AXES) + np.float32(_BRIGHTER_HU)).astype(np.float32)


def averaged(first: HeadOutputs, second: HeadOutputs) -> HeadOutputs:
    """The mean of a look and that at the perturbed image, moved back; anatomy and strangeness are the first's."""
    lesions = np.roll(second.lesions, (-1, -1, -1), axis=(1, 2, 3))
    lesions += first.lesions
    lesions *= 0.5
    return HeadOutputs(
        anatomy=first.anatomy,
        lesions=lesions,
        study_logits=0.5 * (first.study_logits + second.study_logits),
        strangeness=first.strangeness,
    )
