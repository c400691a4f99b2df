"""Raw head outputs to candidates in voxel space: connected components of one lesion channel."""

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.findings import Laterality

Box = tuple[slice, slice, slice]
_SOFT_TISSUE_HU = -100.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """One connected component of a lesion channel on the network grid.

    `box` bounds it, `mask` is its content of the box, `peak` the highest probability in it.
    """

    box: Box
    mask: npt.NDArray[np.bool_]
    volume_ml: float
    peak: float

    @property
    def voxels(self) -> npt.NDArray[np.intp]:
        """(n, 3) indices into the network grid."""
        return np.argwhere(self.mask) + [part.start for part in self.box]


def lesion_candidates(
    probability: npt.NDArray[np.float32], threshold: float, voxel_volume_mm3: float, minimum_volume_ml: float
) -> tuple[Candidate, ...]:
    """Components of `probability` (D, H, W) at or above `threshold`, the largest first, specks left out."""
    labels = cc3d.connected_components(probability >= threshold, connectivity=26)
    statistics = cc3d.statistics(labels)
    found = []
    for label in range(1, int(labels.max()) + 1):
        volume_ml = float(statistics["voxel_counts"][label]) * voxel_volume_mm3 / 1000
        if volume_ml < minimum_volume_ml:
            continue
        z, y, x = statistics["bounding_boxes"][label]
        mask = labels[z, y, x] == label
        peak = float(probability[z, y, x][mask].max())
        found.append(Candidate(box=(z, y, x), mask=mask, volume_ml=volume_ml, peak=peak))
    return tuple(sorted(found, key=lambda c: -c.volume_ml))


def side_of(
    voxels: npt.NDArray[np.intp], anatomy: npt.NDArray[np.uint8], left_label: int, right_label: int
) -> Laterality:
    """The patient's side of (n, 3) indices into `anatomy` (D, H, W; x to left).

    The lung space most of them lie in, which holds whatever replaced lung, else the side of the midline.
    """
    inside = anatomy[tuple(voxels.T)]
    left, right = int((inside == left_label).sum()), int((inside == right_label).sum())
    if left != right:
        return Laterality.LEFT if left > right else Laterality.RIGHT
    lungs = np.flatnonzero(((anatomy == left_label) | (anatomy == right_label)).any(axis=(0, 1)))
    middle = float(lungs[0] + lungs[-1]) / 2 if len(lungs) else (anatomy.shape[2] - 1) / 2
    return Laterality.LEFT if float(voxels[:, 2].mean()) > middle else Laterality.RIGHT


def not_lining(
    candidates: Sequence[Candidate], fluid: npt.NDArray[np.bool_], reach: int, share: float
) -> tuple[Candidate, ...]:
    """Without the rims of `fluid` (D, H, W): `share` or more within `reach` voxels of it, and nowhere deeper."""
    near = ndimage.distance_transform_cdt(~fluid, "chessboard") <= reach if fluid.any() else fluid
    return tuple(c for c in candidates if near[c.box][c.mask].mean() < share or _depth(c) > reach)


def soft_tissue_radius_mm(
    candidate: Candidate, hu: npt.NDArray[np.float32], spacing_mm: tuple[float, float, float], brightest_hu: float
) -> float:
    """Of the largest ball in a candidate, or one voxel around it, that is all between -100 HU and `brightest_hu`."""
    box = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in candidate.box)
    inside = np.pad(candidate.mask, [(part.start - cut.start, 1) for part, cut in zip(candidate.box, box, strict=True)])
    tissue = hu[box]
    inside = ndimage.binary_dilation(inside)[tuple(slice(0, n) for n in tissue.shape)]
    inside &= (tissue > _SOFT_TISSUE_HU) & (tissue < brightest_hu)
    return float(ndimage.distance_transform_edt(np.pad(inside, 1), spacing_mm).max())


def _depth(candidate: Candidate) -> float:
    """Largest distance of a voxel to the outside, in voxels."""
    return float(ndimage.distance_transform_edt(np.pad(candidate.mask, 1)).max())


def joined_mask(candidates: Sequence[Candidate], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """All candidates in one mask of the network grid."""
    mask = np.zeros(shape, dtype=bool)
    for candidate in candidates:
        mask[candidate.box] |= candidate.mask
    return mask
