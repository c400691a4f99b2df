"""Kinds that are measured by rule on the anatomy instead of being outlined by the network's lesion head.

Each module owns one organ. A rule takes the `Anatomy` and gives the answer about the study first (`lesion` None), then
one finding per lesion. It answers NOT_ASSESSED with the reason where it cannot measure; the detector fills in the
evidence grade.
"""

from collections.abc import Callable, Mapping

from models.anatomy import Anatomy
from models.findings import Finding, FindingKind

Rule = Callable[[Anatomy], tuple[Finding, ...]]

RULES: Mapping[FindingKind, Rule] = {}
