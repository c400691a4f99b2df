"""Diameters of the thoracic aorta, perpendicular to its centreline."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from imaging.morphology import depth_in
from models.anatomy import Anatomy, lung_ends_mm
from models.findings import Finding, FindingKind, Measurement, Presence, Quantity
from models.measured.answer import answer, not_assessed
from models.measured.outline import Outline, opened, outline_of, slice_region
from models.measured.tube import Sections, Skeleton, measure_sections

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# 40 mm: dilated in an adult; 45, 50, 55 mm: the steps of follow-up and repair
# (2022 ACC/AHA guideline for aortic disease, Circulation 2022;146:e334).
DILATED_MM = 40.0
_BANDS_MM = (55.0, 50.0, 45.0, 40.0)
_REPEATABILITY_MM = 2.0
_LEAST_ML = 40.0
_LARGEST_OTHER_PIECES = 0.15
# A centreline this much inside the organ starts and ends in its middle, not in a corner or a branch.
_DEEP_MM = 5.0
_BRANCH_SHARE = 0.65
_ROOT_MM = 25.0
_END_MM = 8.0
_ARCH_SLOPE = 0.7
_DIAMETERS_MM = (12.0, 90.0)
# The aorta is nearly round; an outline that takes in a neighbour, as the pulmonary trunk, is not.
_LARGEST_ELLIPTICITY = 1.25
_LARGEST_JUMP = 0.35
_LEAST_STATIONS = 4
_LEAST_MEASURED = 0.6

SEGMENTS = {
    "ascending aorta": Quantity.ASCENDING_AORTA_DIAMETER,
    "aortic arch": Quantity.AORTIC_ARCH_DIAMETER,
    "descending aorta": Quantity.DESCENDING_AORTA_DIAMETER,
}


@dataclass(frozen=True, slots=True, eq=False)
class Widest:
    """The greatest diameter of a segment in mm and the middle of that section (LPS mm)."""

    diameter_mm: float
    centre_mm: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class AorticDiameters:
    """What could be measured: the widest section by segment, why a segment was not, and the ascending sections.

    `ascending_mm` is (n, 2): z in LPS mm and diameter in mm.
    """

    mask: Mask
    segments: dict[str, Widest]
    missing: dict[str, str]
    ascending_mm: FloatArray


def aortic_dilatation(anatomy: Anatomy) -> tuple[Finding, ...]:
    """Greatest diameters of ascending aorta (above the root), arch and descending aorta.

    40 mm is dilated; what differs from it by no more than the error of the measurement is left open.
    """
    kind = FindingKind.AORTIC_DILATATION
    found = anatomy.once(measure_aorta)
    if isinstance(found, str):
        return (not_assessed(anatomy, kind, found),)
    missing = "; ".join(f"{name}: {reason}" for name, reason in found.missing.items())
    if len(found.missing) > 1:
        return (not_assessed(anatomy, kind, missing),)
    site, widest = max(found.segments.items(), key=lambda item: item[1].diameter_mm)
    presence, reason = _presence(widest.diameter_mm, missing)
    return (
        answer(
            anatomy,
            kind,
            presence,
            method="mean of greatest and least width perpendicular to the centreline of the network's outline, border "
            f"by attenuation, without the root; present from {DILATED_MM + _REPEATABILITY_MM:g} mm",
            reason=reason,
            site=site,
            measurements=(
                Measurement(quantity=Quantity.MAXIMUM_DIAMETER, value=widest.diameter_mm, unit="mm"),
                *(
                    Measurement(quantity=SEGMENTS[name], value=one.diameter_mm, unit="mm")
                    for name, one in found.segments.items()
                ),
            ),
            region=slice_region(anatomy, found.mask, widest.centre_mm, 0.75 * widest.diameter_mm),
        ),
    )


def _presence(diameter_mm: float, missing: str) -> tuple[Presence, str | None]:
    if diameter_mm >= DILATED_MM + _REPEATABILITY_MM:
        band = next(band for band in _BANDS_MM if diameter_mm >= band)
        return Presence.PRESENT, "; ".join(filter(None, (f"{band:g} mm or more", missing)))
    reasons = []
    if diameter_mm >= DILATED_MM - _REPEATABILITY_MM:
        reasons.append(f"within {_REPEATABILITY_MM:g} mm, the error of the measurement, of {DILATED_MM:g} mm")
    if missing:
        reasons.append(missing)
    return (Presence.INDETERMINATE, "; ".join(reasons)) if reasons else (Presence.ABSENT, None)


def outline_fault(outline: Outline) -> str | None:
    """Why the aorta's outline cannot be used, in plain words; None when it can."""
    if outline.ml < _LEAST_ML:
        return f"only {outline.ml:.0f} ml of the aorta were outlined, too little to be the whole of it"
    if outline.other_pieces_ml > _LARGEST_OTHER_PIECES * outline.ml:
        return "the outline of the aorta is in several pieces"
    return None


def measure_aorta(anatomy: Anatomy) -> AorticDiameters | str:
    """The diameters by segment, or why none can be measured."""
    outline = anatomy.once(outline_of, "aorta")
    fault = outline_fault(outline)
    if fault:
        return fault
    mask = _without_branches(outline.mask, float(anatomy.grid.geometry.spacing_mm[0]))
    path = _centreline(anatomy, mask)
    if path is None:
        return "the outline of the aorta has no ascending and descending part"
    sections = measure_sections(mask, anatomy.grid.geometry, path, anatomy.volume)
    segments: dict[str, Widest] = {}
    missing: dict[str, str] = {}
    parts = _segments(sections, anatomy)
    usable = _usable(sections)
    for name, part in parts.items():
        widest = _widest(sections, part, usable)
        if isinstance(widest, str):
            missing[name] = widest
        else:
            segments[name] = widest
    rising = parts["ascending aorta"] & usable
    ascending = np.stack([sections.centre_mm[rising, 2], _diameter_mm(sections)[rising]], axis=1)
    return AorticDiameters(mask, segments, missing, ascending)


def _without_branches(mask: Mask, spacing_mm: float) -> Mask:
    """Opened by a ball that fits the lower end of the aorta but not the vessels that rise from the arch."""
    bounds = ndimage.find_objects(mask.astype(np.int8))[0]
    depth = depth_in(mask[bounds], (spacing_mm,) * 3)
    low = depth[: max(1, (len(depth) + 2) // 3)]
    radius = _BRANCH_SHARE * float(np.percentile(low[low > 0], 95)) if (low > 0).any() else 0.0
    return opened(mask, spacing_mm, radius)


def _centreline(anatomy: Anatomy, mask: Mask) -> FloatArray | None:
    """(n, 3) LPS mm from the root over the arch to the lower end; None where the mask is not such a hook.

    The root is where the way from the lower end is longest for what it gains in height: neither the vessels that
    rise from the arch nor the arch itself can win that.
    """
    step = float(anatomy.grid.geometry.spacing_mm[0])
    skeleton = Skeleton(mask, step)
    depth = skeleton.depth_mm
    deep = np.flatnonzero(depth >= _DEEP_MM)
    if not len(deep):
        return None
    z = skeleton.voxels[:, 0] * step
    lowest = deep[z[deep] <= z[deep].min() + 4 * step]
    start = int(lowest[np.argmax(depth[lowest])])
    way = skeleton.distance_mm(start)
    gain = (way - 2 * np.abs(z - z[start]))[deep]
    end = int(deep[np.argmax(gain)])
    path = skeleton.path(start, end)
    hook = z[path].max() - max(z[start], z[end])
    if hook < _ROOT_MM or gain.max() <= 0:
        return None
    points = anatomy.grid.geometry.index_to_patient(skeleton.voxels[path])
    # The ascending aorta lies in front of the descending one.
    return points if points[0, 1] < points[-1, 1] else points[::-1]


def _segments(sections: Sections, anatomy: Anatomy) -> dict[str, Mask]:
    """Which stations belong to which segment; root, the lower end and what lies below the lungs to none."""
    slope = np.abs(sections.direction[:, 2])
    top = int(np.argmax(sections.centre_mm[:, 2]))
    first = top
    while first > 0 and slope[first - 1] < _ARCH_SLOPE:
        first -= 1
    last = top
    while last < len(slope) - 1 and slope[last + 1] < _ARCH_SLOPE:
        last += 1
    number = np.arange(len(slope))
    position = sections.position_mm
    thoracic = sections.centre_mm[:, 2] >= _lowest_lung_mm(anatomy)
    return {
        "ascending aorta": (number < first) & (position >= _ROOT_MM),
        "aortic arch": (number >= first) & (number <= last),
        "descending aorta": (number > last) & (position <= position[-1] - _END_MM) & thoracic,
    }


def _lowest_lung_mm(anatomy: Anatomy) -> float:
    ends = anatomy.once(lung_ends_mm)
    return ends[0] if ends else -np.inf


def _usable(sections: Sections) -> Mask:
    low, high = _DIAMETERS_MM
    # Comparisons with nan are False: what has no section is not usable.
    return (
        (sections.short_mm >= low)
        & (sections.long_mm <= high)
        & (sections.long_mm <= _LARGEST_ELLIPTICITY * sections.short_mm)
    )


def _diameter_mm(sections: Sections) -> FloatArray:
    """Mean of greatest and least width: the greatest alone counts every bulge of the outline into a neighbour."""
    return (sections.long_mm + sections.short_mm) / 2


def _widest(sections: Sections, part: Mask, usable: Mask) -> Widest | str:
    """The widest section of a segment, single outliers smoothed away; or why the segment cannot be measured."""
    chosen = np.flatnonzero(part & usable)
    if part.sum() < _LEAST_STATIONS:
        return "not or hardly outlined"
    if len(chosen) < max(_LEAST_STATIONS, _LEAST_MEASURED * part.sum()):
        return "its border could not be followed"
    diameter = ndimage.median_filter(_diameter_mm(sections)[chosen], 3, mode="nearest")
    if (np.abs(np.diff(diameter)) > _LARGEST_JUMP * np.median(diameter)).any():
        return "its diameter jumps along the outline"
    at = int(np.argmax(diameter))
    return Widest(float(diameter[at]), sections.centre_mm[chosen[at]])
