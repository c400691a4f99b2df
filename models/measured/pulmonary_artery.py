"""Diameter of the pulmonary trunk, and its ratio to the ascending aorta."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.anatomy import Anatomy
from models.findings import Finding, FindingKind, Measurement, Presence, Quantity
from models.measured.answer import answer, not_assessed
from models.measured.aorta import measure_aorta
from models.measured.outline import outline_of, slice_region
from models.measured.tube import Sections, Skeleton, measure_sections

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# 90th percentile of the healthy of the Framingham Heart Study; the ratio's is 0.91, above 1 points to pulmonary
# hypertension (Truong et al., Circ Cardiovasc Imaging 2012;5:147; Ng et al., J Thorac Imaging 1999;14:270).
LIMIT_MEN_MM = 29.0
LIMIT_WOMEN_MM = 27.0
LARGEST_RATIO = 1.0
# The network's outlines are off by some millimetres: the model card has the limits of agreement.
_REPEATABILITY_MM = 3.0
_LEAST_ML = 12.0
_LARGEST_OTHER_PIECES = 0.3
_DEEP_MM = 5.0
_DIAMETERS_MM = (14.0, 70.0)
_LARGEST_ELLIPTICITY = 1.6
_LEAST_STATIONS = 3
# From the valve to the fork the trunk is about 50 mm long; its ends are neither round nor free.
_VALVE_MM = 8.0
_TRUNK_MM = 50.0
_SAME_LEVEL_MM = 15.0


@dataclass(frozen=True, slots=True, eq=False)
class Trunk:
    """The pulmonary trunk's diameter in mm, the middle of that section (LPS mm) and the outline it is from."""

    diameter_mm: float
    centre_mm: FloatArray
    mask: Mask


def pulmonary_artery_enlargement(anatomy: Anatomy) -> tuple[Finding, ...]:
    """Diameter of the trunk before its fork; above 29 mm enlarged in anyone, from 27 mm in a woman.

    What exceeds 29 mm by no more than the error of the measurement is left open.
    """
    kind = FindingKind.PULMONARY_ARTERY_ENLARGEMENT
    trunk = measure_trunk(anatomy)
    if isinstance(trunk, str):
        return (not_assessed(anatomy, kind, trunk),)
    aorta_mm = _ascending_mm(anatomy, float(trunk.centre_mm[2]))
    ratio = None if aorta_mm is None else trunk.diameter_mm / aorta_mm
    presence, reason = _presence(trunk.diameter_mm, ratio)
    measurements = [Measurement(quantity=Quantity.PULMONARY_TRUNK_DIAMETER, value=trunk.diameter_mm, unit="mm")]
    if ratio is not None:
        measurements.append(Measurement(quantity=Quantity.PULMONARY_TRUNK_TO_AORTA_RATIO, value=ratio, unit="{ratio}"))
    return (
        answer(
            anatomy,
            kind,
            presence,
            method="diameter perpendicular to the centreline of the network's outline, border by attenuation; "
            f"present from {LIMIT_MEN_MM + _REPEATABILITY_MM:g} mm",
            reason=reason,
            site="pulmonary trunk",
            measurements=tuple(measurements),
            region=slice_region(anatomy, trunk.mask, trunk.centre_mm, 0.75 * trunk.diameter_mm),
        ),
    )


def _presence(diameter_mm: float, ratio: float | None) -> tuple[Presence, str | None]:
    if diameter_mm >= LIMIT_MEN_MM + _REPEATABILITY_MM:
        return Presence.PRESENT, None
    if diameter_mm >= LIMIT_MEN_MM:
        reason = f"within {_REPEATABILITY_MM:g} mm, the error of the measurement, of {LIMIT_MEN_MM:g} mm"
        return Presence.INDETERMINATE, reason
    if diameter_mm >= LIMIT_WOMEN_MM:
        limits = f"{LIMIT_WOMEN_MM:g} mm, the limit for women, and {LIMIT_MEN_MM:g} mm, that for men"
        return Presence.INDETERMINATE, f"the diameter lies between {limits}"
    if ratio is not None and ratio > LARGEST_RATIO:
        return Presence.INDETERMINATE, "of normal diameter, but wider than the ascending aorta"
    return Presence.ABSENT, None if ratio is not None else "the ascending aorta could not be measured to compare with"


def measure_trunk(anatomy: Anatomy) -> Trunk | str:
    """The trunk's diameter, or why it cannot be measured."""
    outline = outline_of(anatomy, "pulmonary_trunk")
    if outline.ml < _LEAST_ML:
        return f"only {outline.ml:.0f} ml of the pulmonary trunk were outlined, too little to be the whole of it"
    if outline.other_pieces_ml > _LARGEST_OTHER_PIECES * outline.ml:
        return "the outline of the pulmonary trunk is in several pieces"
    path = _centreline(anatomy, outline.mask)
    if path is None:
        return "the outline of the pulmonary trunk has no course from the valve to the fork"
    sections = measure_sections(outline.mask, anatomy.grid.geometry, path, anatomy.volume)
    low, high = _DIAMETERS_MM
    usable = (
        (sections.short_mm >= low)
        & (sections.long_mm <= high)
        & (sections.long_mm <= _LARGEST_ELLIPTICITY * sections.short_mm)
        & _trunk(sections)
    )
    if usable.sum() < _LEAST_STATIONS:
        return "the border of the pulmonary trunk could not be followed"
    # The aorta dents it and the fork widens it: neither of the two widths alone is the trunk's.
    width = np.sqrt(sections.long_mm[usable] * sections.short_mm[usable])
    at = np.flatnonzero(usable)[int(np.argmin(np.abs(width - np.median(width))))]
    return Trunk(float(np.median(width)), sections.centre_mm[at], outline.mask)


def _trunk(sections: Sections) -> Mask:
    return (sections.position_mm >= _VALVE_MM) & (sections.position_mm <= _TRUNK_MM)


def _centreline(anatomy: Anatomy, mask: Mask) -> FloatArray | None:
    """(n, 3) LPS mm from the valve, the foremost end, as far as the ways to the left and right lung are one."""
    skeleton = Skeleton(mask, float(anatomy.grid.geometry.spacing_mm[0]))
    points = anatomy.grid.geometry.index_to_patient(skeleton.voxels)
    deep = np.flatnonzero(skeleton.depth_mm >= _DEEP_MM)
    if not len(deep):
        return None
    valve = int(deep[np.argmin(points[deep, 1])])
    reached = np.flatnonzero(np.isfinite(skeleton.distance_mm(valve)))
    left = skeleton.path(valve, int(reached[np.argmax(points[reached, 0])]))
    right = skeleton.path(valve, int(reached[np.argmin(points[reached, 0])]))
    shared = 0
    while shared < min(len(left), len(right)) and left[shared] == right[shared]:
        shared += 1
    path = points[left[:shared]]
    return path if shared >= 3 else None


def _ascending_mm(anatomy: Anatomy, z_mm: float) -> float | None:
    """Diameter of the ascending aorta about the height of the trunk, None where it could not be measured."""
    aorta = anatomy.once(measure_aorta)
    if isinstance(aorta, str) or "ascending aorta" in aorta.missing:
        return None
    near = np.abs(aorta.ascending_mm[:, 0] - z_mm) <= _SAME_LEVEL_MM
    return float(np.median(aorta.ascending_mm[near, 1])) if near.any() else None
