"""Size of the heart against the chest on axial slices."""

import numpy as np
import numpy.typing as npt

from imaging.geometry import Point
from models.anatomy import Anatomy
from models.findings import Finding, FindingKind, Measurement, Presence, Quantity, Region
from models.measure import region_of
from models.measured.answer import answer, not_assessed
from models.measured.outline import Box, Outline, opened, outline_of

Mask = npt.NDArray[np.bool_]

# The ratio of the chest radiograph, taken on axial CT: above 0.5 is enlarged (Danzer, Am J Med Sci 1919;157:513).
ENLARGED_RATIO = 0.5
_REPEATABILITY = 0.02
_HEART_ML = (150.0, 2500.0)
_LARGEST_OTHER_PIECES = 0.15
_HEART_WIDTH_MM = (70.0, 260.0)
_THORAX_WIDTH_MM = (150.0, 400.0)
_LEAST_LUNG_ML = 500.0
_LEAST_OUTLINED = 0.8
# A border this thin in a slice is a stray of the outline, not the organ.
_LEAST_DEPTH_MM = 7.5
_LARGEST_CUT = 0.35
# The outline follows vessels into the hila, above all with contrast; none of them holds a ball of this radius.
_VESSEL_RADIUS_MM = 12.0


def cardiomegaly(anatomy: Anatomy) -> tuple[Finding, ...]:
    """Greatest width of the heart in one slice over the greatest inner width of the thorax; 0.5 is enlarged."""
    kind = FindingKind.CARDIOMEGALY
    heart = anatomy.once(outline_of, "heart")
    fault = heart_fault(anatomy, heart)
    if fault:
        return (not_assessed(anatomy, kind, fault),)
    body = opened(heart.mask, anatomy.grid.geometry.spacing_mm[0], _VESSEL_RADIUS_MM)
    key, heart_mm = _widest(body, anatomy.grid.geometry.spacing_mm)
    _, thorax_mm = _widest(anatomy.mask("lung_left", "lung_right"), anatomy.grid.geometry.spacing_mm)
    fault = _lung_fault(anatomy) or _width_fault(heart_mm, thorax_mm)
    if fault:
        return (not_assessed(anatomy, kind, fault),)
    ratio = heart_mm / thorax_mm
    presence, reason = _presence(ratio)
    return (
        answer(
            anatomy,
            kind,
            presence,
            method="greatest transverse width of the network's heart outline, without its vessels, in one axial slice "
            f"over that of the inner thorax; present from {ENLARGED_RATIO:g}",
            reason=reason,
            site="heart",
            measurements=(
                Measurement(quantity=Quantity.CARDIOTHORACIC_RATIO, value=ratio, unit="{ratio}"),
                Measurement(quantity=Quantity.HEART_WIDTH, value=heart_mm, unit="mm"),
                Measurement(quantity=Quantity.THORAX_WIDTH, value=thorax_mm, unit="mm"),
                Measurement(quantity=Quantity.VOLUME, value=heart.ml, unit="ml"),
            ),
            region=_region(anatomy, body, key),
        ),
    )


def _presence(ratio: float) -> tuple[Presence, str | None]:
    if ratio >= ENLARGED_RATIO:
        return Presence.PRESENT, None
    if ratio >= ENLARGED_RATIO - _REPEATABILITY:
        return Presence.INDETERMINATE, f"the ratio is within {_REPEATABILITY:g}, its error, of {ENLARGED_RATIO:g}"
    return Presence.ABSENT, None


def heart_fault(anatomy: Anatomy, heart: Outline) -> str | None:
    """Why the heart's outline cannot be used, in plain words; None when it can."""
    low, high = _HEART_ML
    if not low <= heart.ml <= high:
        return f"{heart.ml:.0f} ml were outlined as heart, which no whole heart measures"
    if heart.other_pieces_ml > _LARGEST_OTHER_PIECES * heart.ml:
        return "the outline of the heart is in several pieces"
    if _is_cut_off(anatomy, heart.mask):
        return "the heart is not wholly within the scan"
    return None


def _is_cut_off(anatomy: Anatomy, mask: Mask) -> bool:
    """Whether the outline is still wide where the source volume ends, in layers along its slices, oblique or not."""
    source, grid = anatomy.volume.geometry, anatomy.grid.geometry
    slice_mm, step_mm = source.spacing_mm[0], grid.spacing_mm[0]
    above_mm = source.patient_to_index(grid.index_to_patient(np.argwhere(mask)))[:, 0] * slice_mm
    area = np.bincount(np.rint((above_mm - above_mm.min()) / step_mm).astype(int))
    layer_mm = above_mm.min() + step_mm * np.arange(len(area))
    margin = 1.5 * step_mm
    outermost = (layer_mm <= margin) | (layer_mm >= (source.shape[0] - 1) * slice_mm - margin)
    return bool(area[outermost].max(initial=0) > _LARGEST_CUT * area.max())


def _width_fault(heart_mm: float, thorax_mm: float) -> str | None:
    for what, value, (low, high) in (
        ("the heart's outline", heart_mm, _HEART_WIDTH_MM),
        ("the inner thorax", thorax_mm, _THORAX_WIDTH_MM),
    ):
        if not low <= value <= high:
            return f"{what} measures {value:.0f} mm across, which is not plausible"
    return None


def _lung_fault(anatomy: Anatomy) -> str | None:
    """Why the outlines of the pleural spaces do not show the inner thorax; None when they do."""
    for lung, side in ((anatomy.lungs.left, "left"), (anatomy.lungs.right, "right")):
        outlined_ml = anatomy.mask(f"lung_{side}").sum() * anatomy.grid.geometry.voxel_volume_mm3 / 1000
        aerated_ml = np.count_nonzero(lung) * anatomy.volume.geometry.voxel_volume_mm3 / 1000
        if outlined_ml < max(_LEAST_LUNG_ML, _LEAST_OUTLINED * aerated_ml):
            return f"the {side} side of the inner thorax is not wholly outlined"
    return None


def _widest(mask: Mask, spacing_mm: Point) -> tuple[int, float]:
    """The slice in which the mask extends farthest from left to right, and that width in mm."""
    _, row_mm, column_mm = spacing_mm
    solid = mask.sum(axis=1) * row_mm >= _LEAST_DEPTH_MM
    best = (0, 0.0)
    for z in np.flatnonzero(solid.any(axis=1)):
        columns = np.flatnonzero(solid[z])
        best = max(best, (int(z), float(columns[-1] - columns[0] + 1) * column_mm), key=lambda one: one[1])
    return best


def _region(anatomy: Anatomy, mask: Mask, key: int) -> Region | None:
    rows, columns = mask.shape[1:]
    plane: Box = (slice(key, key + 1), slice(0, rows), slice(0, columns))
    box = anatomy.grid.source_box(plane)
    middle = (box[0].start + box[0].stop) // 2
    box = (slice(middle, middle + 1), box[1], box[2])
    inside = anatomy.on_source(mask, box)
    return region_of(inside, box, anatomy.volume.geometry) if inside.any() else None
