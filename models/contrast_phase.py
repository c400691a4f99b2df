"""In which phase after the injection of contrast medium the chest was scanned, from the HU of vessels and organs."""

import enum
from dataclasses import dataclass

import cc3d
import numpy as np
from scipy import ndimage

from imaging.morphology import bounds
from models.anatomy import Anatomy

# Right heart and pulmonary arteries enhance first, then the aorta; later both sides are alike, and liver and spleen
# follow (Bae, Radiology 2010;256:32). The limits are our own, between what four real series measure: aorta over
# trunk 0.97 and 1.05 in two venous ones, 1.58 and 1.67 in two arterial ones; liver over aorta 0.68 and 0.83 against
# 0.35 and 0.37; spleen over aorta 0.84 and 0.98 against 0.54 and 0.60.
ALIKE_RATIO, UNLIKE_RATIO = 1.2, 1.35
ARTERIAL_HU = 180.0
ARTERIAL_SHARE = {"liver": 0.5, "spleen": 0.65}
VENOUS_SHARE = {"liver": 0.6, "spleen": 0.75}
_ENHANCED_HU = 90.0
# What is brighter is metal, or contrast medium that no blood has diluted.
_BLOOD_HU = 800.0
_DEPTH_MM = {"aorta": 5.0, "pulmonary_trunk": 5.0, "liver": 10.0, "spleen": 7.5}
_LEAST_ML = {"aorta": 20.0, "pulmonary_trunk": 4.0, "liver": 60.0, "spleen": 8.0}
# How far the quartiles of one organ may lie apart, of its median: 0.06 to 0.14 in those series.
_LARGEST_SPREAD = 0.25


class ContrastPhase(enum.StrEnum):
    """ARTERIAL is both sides of the circulation at once; VENOUS is the portal venous phase or later."""

    PULMONARY_ARTERIAL = "pulmonary_arterial"
    SYSTEMIC_ARTERIAL = "systemic_arterial"
    ARTERIAL = "arterial"
    VENOUS = "venous"
    NOT_TOLD = "not_told"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enhancement:
    """The phase of an enhanced scan, and the HU it was read from in words, empty where no organ could be read."""

    phase: ContrastPhase
    evidence: str


def contrast_phase(anatomy: Anatomy) -> Enhancement | None:
    """From the medians of vessels and organs well inside their outlines; None unless contrast medium was given."""
    if not anatomy.blood_pool.contrast:
        return None
    read = {name: _median_hu(anatomy, name) for name in _DEPTH_MM}
    measured = {name: hu for name, hu in read.items() if hu is not None}
    evidence = (f"{name.replace('_', ' ')} {hu:.0f} HU" for name, hu in measured.items())
    return Enhancement(phase=_phase(measured), evidence="; ".join(evidence))


def _phase(hu: dict[str, float]) -> ContrastPhase:
    if "aorta" not in hu or "pulmonary_trunk" not in hu:
        return ContrastPhase.NOT_TOLD
    aorta, trunk = hu["aorta"], hu["pulmonary_trunk"]
    lower, higher = sorted((aorta, trunk))
    if higher >= ARTERIAL_HU and higher > UNLIKE_RATIO * lower:
        return ContrastPhase.SYSTEMIC_ARTERIAL if aorta > trunk else ContrastPhase.PULMONARY_ARTERIAL
    shares = {organ: hu[organ] / aorta for organ in VENOUS_SHARE if organ in hu}
    if "liver" not in shares or lower < _ENHANCED_HU or higher > ALIKE_RATIO * lower:
        return ContrastPhase.NOT_TOLD
    if all(share >= VENOUS_SHARE[organ] for organ, share in shares.items()):
        return ContrastPhase.VENOUS
    if lower >= ARTERIAL_HU and all(share <= ARTERIAL_SHARE[organ] for organ, share in shares.items()):
        return ContrastPhase.ARTERIAL
    return ContrastPhase.NOT_TOLD


def _median_hu(anatomy: Anatomy, name: str) -> float | None:
    """Of the largest piece of an organ well inside its outline; None where that is small or not of one attenuation."""
    geometry = anatomy.grid.geometry
    outline = anatomy.mask(name)
    box = bounds(outline)
    if box is None:
        return None
    steps = round(_DEPTH_MM[name] / geometry.spacing_mm[0])
    deep = ndimage.binary_erosion(np.pad(outline[box], 1), iterations=steps)[1:-1, 1:-1, 1:-1]
    deep = cc3d.largest_k(deep, k=1, connectivity=6).astype(bool)
    if deep.sum() * geometry.voxel_volume_mm3 / 1000 < _LEAST_ML[name]:
        return None
    # A sharp kernel's noise would widen the spread.
    smooth = ndimage.uniform_filter(anatomy.grid.hu[0, 0][box], 3)
    hu = smooth[deep]
    low, median, high = np.percentile(hu, [25, 50, 75])
    return float(median) if median < _BLOOD_HU and high - low <= _LARGEST_SPREAD * median else None
