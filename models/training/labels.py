"""Labels of the anatomy head when only part of the truth is known.

A real volume labelled by thresholds says "lung" or "bone" but not which bone. Such a voxel gets a partial label: the
set of classes it may be. The loss then asks only that the probability lies within the set.
"""

import numpy as np

from models.training.network import ANATOMY

_SOFT_TISSUE = (
    "body",
    "heart",
    "aorta",
    "pulmonary_trunk",
    "oesophagus",
    "vertebrae",
    "ribs",
    "sternum",
    "liver",
    "spleen",
)

PARTIAL: dict[str, tuple[str, ...]] = {
    "soft_tissue": _SOFT_TISSUE,
    "bone": ("body", "vertebrae", "ribs", "sternum"),
    "blood": ("body", "heart", "aorta", "pulmonary_trunk"),
    "heart_or_great_vessel": ("heart", "aorta", "pulmonary_trunk", "liver"),
    "spine": ("vertebrae", "ribs"),
    "left_or_soft": ("lung_left", *_SOFT_TISSUE),
    "right_or_soft": ("lung_right", *_SOFT_TISSUE),
    "inside": ANATOMY[1:],
    "anything": ANATOMY,
    "elsewhere": ("body", "oesophagus", "vertebrae", "ribs", "sternum", "liver", "spleen"),
}

LABEL = {name: index for index, name in enumerate((*ANATOMY, *PARTIAL))}

ALLOWED = np.array(
    [[name == only for name in ANATOMY] for only in ANATOMY]
    + [[name in names for name in ANATOMY] for names in PARTIAL.values()]
)
"""bool (labels, classes): which classes a label leaves open."""
