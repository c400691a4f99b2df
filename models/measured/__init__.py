"""Kinds that are measured by rule on the anatomy instead of being outlined by the network's lesion head.

Each module owns one organ. A rule takes the `Anatomy` and gives the answer about the study first (`lesion` None), then
one finding per lesion. It answers NOT_ASSESSED with the reason where it cannot measure; the detector fills in the
evidence grade.
"""

from collections.abc import Callable, Mapping

from models.anatomy import Anatomy
from models.findings import Finding, FindingKind
from models.measured.aorta import aortic_dilatation
from models.measured.calcium import arterial_wall_calcification, coronary_artery_calcification
from models.measured.device import medical_device
from models.measured.heart import cardiomegaly
from models.measured.liver import hepatic_steatosis
from models.measured.pulmonary_artery import pulmonary_artery_enlargement
from models.measured.spine import low_bone_density, vertebral_compression_fracture

Rule = Callable[[Anatomy], tuple[Finding, ...]]

RULES: Mapping[FindingKind, Rule] = {
    FindingKind.CORONARY_ARTERY_CALCIFICATION: coronary_artery_calcification,
    FindingKind.AORTIC_DILATATION: aortic_dilatation,
    FindingKind.VERTEBRAL_COMPRESSION_FRACTURE: vertebral_compression_fracture,
    FindingKind.CARDIOMEGALY: cardiomegaly,
    FindingKind.PULMONARY_ARTERY_ENLARGEMENT: pulmonary_artery_enlargement,
    FindingKind.LOW_BONE_DENSITY: low_bone_density,
    FindingKind.HEPATIC_STEATOSIS: hepatic_steatosis,
    FindingKind.ARTERIAL_WALL_CALCIFICATION: arterial_wall_calcification,
    FindingKind.MEDICAL_DEVICE: medical_device,
}
