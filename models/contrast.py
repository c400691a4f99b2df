"""Whether intravenous contrast was given, from the HU of the blood."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

# Unenhanced blood is 30 to 60 HU; every vascular phase of a chest CT lies above 90 HU in the heart and aorta.
UNENHANCED_BELOW_HU = 70.0
ENHANCED_ABOVE_HU = 90.0
# Even of thin blood; what measures less was scanned, or stored, on a shifted scale.
LEAST_BLOOD_HU = 25.0
# Seven patients measure -117 to -97 HU, with contrast or without; what measures more was stored on a shifted scale.
MOST_FAT_HU = -75.0
_FAT_RANGE_HU = (-220.0, -20.0)
# Fat whose neighbours are no more than this apart, so that none of it is half lung or half muscle.
_EVEN_HU = 60.0
_LEAST_FAT_VOXELS = 2000
_MINIMUM_AORTA_ML = 30.0
_NOT_BLOOD_HU = 600.0
_FAT_HU = -20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BloodPool:
    """Attenuation of blood and fat in HU and what follows; `contrast` is None between the limits or where unknown."""

    hu: float | None
    contrast: bool | None
    evidence: str
    fat_hu: float | None = None

    @property
    def is_scale_in_doubt(self) -> bool:
        """Whether blood measures less, or fat more, than any does, so that no other HU can be relied on."""
        return self.is_fat_too_dense or (self.hu is not None and self.hu < LEAST_BLOOD_HU)

    @property
    def is_fat_too_dense(self) -> bool:
        """Whether fat, which takes up no contrast medium, measures more than any fat does."""
        return self.fat_hu is not None and self.fat_hu > MOST_FAT_HU


def measure_blood_pool(
    hu: npt.NDArray[np.float32], left_lung: npt.NDArray[np.bool_], right_lung: npt.NDArray[np.bool_]
) -> BloodPool:
    """Blood in the anterior mediastinum: the bright half of the soft tissue between the lungs, before the spine.

    All arrays (z, y, x) on the network grid (y to posterior, x to the left).
    """
    fat_hu = _fat_hu(hu)
    blood = _blood(hu, left_lung, right_lung)
    if not replace(blood, fat_hu=fat_hu).is_fat_too_dense:
        return replace(blood, fat_hu=fat_hu)
    evidence = f"fat measures {fat_hu:.0f} HU, more than any fat does: the scale of HU is in doubt"
    return replace(blood, fat_hu=fat_hu, contrast=None, evidence=evidence)


def _fat_hu(hu: npt.NDArray[np.float32]) -> float | None:
    """Median of what is evenly as dense as fat; None where there is hardly any."""
    low, high = _FAT_RANGE_HU
    even = ndimage.maximum_filter(hu, 3) - ndimage.minimum_filter(hu, 3) < _EVEN_HU
    fat = hu[even & (hu > low) & (hu < high)]
    return float(np.median(fat)) if fat.size >= _LEAST_FAT_VOXELS else None


def _blood(
    hu: npt.NDArray[np.float32], left_lung: npt.NDArray[np.bool_], right_lung: npt.NDArray[np.bool_]
) -> BloodPool:
    region = _anterior_mediastinum(left_lung, right_lung)
    smooth = ndimage.uniform_filter(hu, 3)
    tissue = smooth[region & (smooth > _FAT_HU) & (smooth < _NOT_BLOOD_HU)]
    if tissue.size < 500:
        return BloodPool(hu=None, contrast=None, evidence="no mediastinum was found to measure the blood in")
    blood_hu = float(np.percentile(tissue, 75))
    if blood_hu < LEAST_BLOOD_HU:
        evidence = (
            f"blood in the mediastinum measures {blood_hu:.0f} HU, "
            "less than any blood does: the scale of HU is in doubt"
        )
        return BloodPool(hu=blood_hu, contrast=None, evidence=evidence)
    contrast = True if blood_hu > ENHANCED_ABOVE_HU else False if blood_hu < UNENHANCED_BELOW_HU else None
    return BloodPool(hu=blood_hu, contrast=contrast, evidence=f"blood in the mediastinum measures {blood_hu:.0f} HU")


def _anterior_mediastinum(left_lung: npt.NDArray[np.bool_], right_lung: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Row by row what lies between the two lungs, in front of their middle, in the middle half of their height."""
    region = np.zeros_like(left_lung)
    both = left_lung.any(axis=(1, 2)) & right_lung.any(axis=(1, 2))
    slices = np.flatnonzero(both)
    if len(slices) < 8:
        return region
    columns = np.arange(left_lung.shape[2])
    for z in slices[len(slices) // 4 : len(slices) * 3 // 4]:
        rows = np.flatnonzero(left_lung[z].any(axis=1) & right_lung[z].any(axis=1))
        for y in rows[: len(rows) * 6 // 10]:
            inner_right = np.flatnonzero(right_lung[z, y]).max()
            inner_left = np.flatnonzero(left_lung[z, y]).min()
            region[z, y] = (columns > inner_right + 1) & (columns < inner_left - 1)
    return region
