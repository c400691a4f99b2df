"""The quality gate, twice: on headers before pixels are decoded, on voxels after.

A REJECT means that no finding may be drawn from the series. A volume is geometrically right or it is refused.
"""

import enum
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

from imaging.geometry import slice_normal
from imaging.headers import Series, Slice
from imaging.lungs import Lungs, padding
from imaging.orientation import SMALLER_LUNG_LEAST, find_lie
from imaging.patients import agree
from imaging.volume import Volume, order_slices
from imaging.witnesses import contradictions


class Verdict(enum.StrEnum):
    PASS = "pass"
    WARN = "warn"
    REJECT = "reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityIssue:
    """One check: what was measured, the limit it was held against, and the message for a person."""

    check: str
    verdict: Verdict
    message: str
    measured: float | None = None
    limit: float | None = None


MAXIMUM_TILT_DEG = 0.5
MAXIMUM_SLICE_SPACING_MM = 5.5
THICK_SLICE_MM = 3.0
MINIMUM_LENGTH_MM = 120.0
MINIMUM_LUNG_VOLUME_ML = 300.0
# Above the total lung capacity of anybody: 9 l for a man of 2 m (Stocks and Quanjer, Eur Respir J 1995;8:492).
MAXIMUM_LUNG_VOLUME_ML = 14000.0
# Wider than the opening of any scanner.
MAXIMUM_FIELD_OF_VIEW_MM = 1000.0
MAXIMUM_NOISE_HU = 60.0
# Twice the width of usual pixels; and twice the slices of the grid on which lungs are analysed.
COARSE_PIXEL_MM, MAXIMUM_PIXEL_MM = 1.5, 4.0
COARSE_STEP_HU = 4.0
# 120 kV, at which calcium is scored (Agatston et al., JACC 1990;15:827), and its neighbours.
USUAL_KVP = (100.0, 140.0)
# DICOM positions are often rounded to 0.1 mm, so that equal steps differ by up to twice the rounding error.
_STEP_TOLERANCE_MM = 0.11
_STEP_TOLERANCE_FRACTION = 0.1
# Of numbers in no order, half of the steps lead backwards.
_NO_ORDER = 0.3
# A plane that differs more from both neighbours than these from each other. In five real series (1.5 to 3 mm) these
# differ by at least 1.57 times as much; of noise alone they would differ as much.
_OUTLIER_RATIO = 0.8
_OUTLIER_HU = 5.0
_COMPARED_EVERY_PIXELS, _COMPARED_BLOCKS = 4, 16
# In nine real series the spine lies 16 to 65 mm behind, the liver 69 to 119 mm below, and sides measure 52 to 116 mm;
# as much below zero where that axis is turned.
_SPINE_BEHIND_MM, _LIVER_BELOW_MM, _SIDES_MM = -10.0, -30.0, -30.0
# With so little height of lung at one end, and more of the body beyond it, the scan is of another region. Lungs are
# 200 to 300 mm high, and a chest CT goes on for some 50 mm below them.
_ONLY_ONE_END_MM, _OTHER_REGION_MM = 100.0, 100.0
# Lung area at the edges of the images over the lungs' largest cross-section. Nine real series measure 0 with the field
# of view cut 3 mm beside the lungs, 0.01 to 0.05 right at them, 0.05 to 0.3 2 mm within, 0.3 to 1.4 20 mm within on the
# left and right.
_CUT_AT_EDGES = 0.1
# As near to a round field of view no lung is outlined, and no chest wall is so thin.
_RIM_MM = 5.0
# Medians of soft tissue in neighbouring images differ by up to 17 HU in seven real series, 56 HU in phantoms.
_LARGEST_STEP_HU = 75.0
_BODY_HU = (-250, 400)
_LEAST_BODY_PIXELS = 500
_LUNG_HU = (-950.0, -550.0)
_SOFT_TISSUE_HU = (-150.0, 130.0)


def is_rejected(issues: Sequence[QualityIssue]) -> bool:
    return any(issue.verdict is Verdict.REJECT for issue in issues)


def check_headers(series: Series) -> tuple[QualityIssue, ...]:
    """Whether the planes of `series` form one regular, untilted axial stack of one patient, and how thick it is.

    The first group of problems (something missing or mixed) hides the ones that would follow from it.
    """
    slices = series.slices
    if not agree(series.patients):
        return (_reject("patient", "the images of the series name more than one patient"),)
    issues: tuple[QualityIssue, ...] = ()
    for group in (_missing, _mixed, _stack, _witnesses):
        issues = (*issues, *group(slices))
        if is_rejected(issues):
            return issues
    return (*issues, *_thickness(slices), *_sampling(slices), *_left_out(series))


def _missing(slices: Sequence[Slice]) -> Iterator[QualityIssue]:
    required = {
        "ImagePositionPatient": [s.image_position_patient is None for s in slices],
        "ImageOrientationPatient": [s.image_orientation_patient is None for s in slices],
        "PixelSpacing": [not _all_positive(s.pixel_spacing_mm) for s in slices],
        "Rows and Columns": [s.rows <= 0 or s.columns <= 0 for s in slices],
        "RescaleSlope and RescaleIntercept": [not _is_rescaled(s) for s in slices],
    }
    for keyword, missing in required.items():
        if any(missing):
            yield _reject("headers", f"{keyword} missing or invalid in {sum(missing)} of {len(slices)} images")
    if not any(required["ImagePositionPatient"]) and not _all_finite(slices):
        yield _reject("headers", "a position or orientation is not a finite number")


def _all_positive(pixel_spacing_mm: tuple[float, float] | None) -> bool:
    return pixel_spacing_mm is not None and all(math.isfinite(mm) and mm > 0 for mm in pixel_spacing_mm)


def _is_rescaled(plane: Slice) -> bool:
    slope, intercept = plane.rescale_slope, plane.rescale_intercept
    return slope is not None and intercept is not None and slope != 0 and math.isfinite(slope + intercept)


def _all_finite(slices: Sequence[Slice]) -> bool:
    numbers = [(*(s.image_position_patient or ()), *(s.image_orientation_patient or ())) for s in slices]
    return all(np.all(np.isfinite(n)) for n in numbers)


def _mixed(slices: Sequence[Slice]) -> Iterator[QualityIssue]:
    orientations = np.array([s.image_orientation_patient for s in slices])
    try:
        slice_normal(orientations[0])
    except ValueError as error:
        yield _reject("orientation", str(error))
    if np.abs(orientations - np.median(orientations, axis=0)).max() > 0.002:
        yield _reject("orientation", "the images do not share one orientation")
    for what, values in (
        ("image sizes", {(s.rows, s.columns) for s in slices}),
        ("pixel spacings", {tuple(round(mm, 4) for mm in s.pixel_spacing_mm or ()) for s in slices}),
        ("frames of reference", {s.frame_of_reference_uid for s in slices}),
    ):
        if len(values) > 1:
            yield _reject("mixed_images", f"the series mixes {len(values)} {what}", float(len(values)), 1.0)
    first = slices[0]
    width_mm = float(np.max(np.multiply((first.rows, first.columns), first.pixel_spacing_mm or (0.0, 0.0))))
    if width_mm > MAXIMUM_FIELD_OF_VIEW_MM:
        message = f"by PixelSpacing the images are {width_mm:.0f} mm wide"
        yield _reject("pixel_spacing", message, width_mm, MAXIMUM_FIELD_OF_VIEW_MM)
    repeated = Counter((s.sop_instance_uid, s.frame_number) for s in slices)
    if len(repeated) < len(slices):
        yield _reject("sop_instance_uid", "several images share one SOP Instance UID, so none can be referenced")
    acquisitions = Counter(s.acquisition_number for s in slices)
    # Some scanners count every rotation; a few large blocks are separate acquisitions.
    if 1 < len(acquisitions) <= len(slices) / 3:
        yield _reject(
            "acquisition", f"the series mixes {len(acquisitions)} acquisitions", float(len(acquisitions)), 1.0
        )


def _stack(slices: Sequence[Slice]) -> Iterator[QualityIssue]:
    positions, normal = _ordered_positions_mm(slices)
    offsets = positions @ normal
    steps = np.diff(offsets)
    step = float(np.median(steps))
    duplicates = int((steps < 0.01).sum())
    if duplicates:
        yield _reject(
            "duplicate_positions", f"{duplicates} images lie at the position of another", float(duplicates), 0.0
        )
        return
    tolerance = max(_STEP_TOLERANCE_MM, _STEP_TOLERANCE_FRACTION * step)
    irregular = np.flatnonzero(np.abs(steps - step) > tolerance)
    if len(irregular):
        largest = float(steps[irregular].max())
        missing = int(np.round(steps[irregular] / step - 1).clip(min=0).sum())
        what = f"{missing} images seem to be missing" if missing else "the slice spacing varies"
        yield _reject("slice_gaps", f"{what}: steps up to {largest:.2f} mm where {step:.2f} mm is usual", largest, step)
    elif np.abs(offsets - np.linspace(offsets[0], offsets[-1], len(offsets))).max() > max(0.3, 0.15 * step):
        yield _reject("slice_gaps", "the slice spacing drifts along the series")
    yield from _tilt(positions, normal, slices[0])
    yield from _numbering(slices)
    if not len(irregular):
        yield QualityIssue(check="slice_gaps", verdict=Verdict.PASS, message="no gaps", measured=step)


def _witnesses(slices: Sequence[Slice]) -> Iterator[QualityIssue]:
    for found in contradictions(slices):
        tell = _reject if found.is_certain else _warn
        yield tell(found.check, found.message, found.measured, found.told)


def _tilt(positions: np.ndarray, normal: np.ndarray, plane: Slice) -> Iterator[QualityIssue]:
    travel = positions[-1] - positions[0]
    cosine = float(travel @ normal / np.linalg.norm(travel))
    tilt_deg = float(np.degrees(np.arccos(min(1.0, cosine))))
    if tilt_deg > MAXIMUM_TILT_DEG:
        yield _reject("gantry_tilt", f"the stack is sheared by {tilt_deg:.1f} degrees", tilt_deg, MAXIMUM_TILT_DEG)
    line = positions[0] + np.linspace(0, 1, len(positions))[:, None] * travel
    sideways = (positions - line) - ((positions - line) @ normal)[:, None] * normal
    jump_mm, limit_mm = float(np.linalg.norm(sideways, axis=1).max()), max(plane.pixel_spacing_mm or (1.0,))
    if jump_mm > limit_mm:
        yield _reject("alignment", f"images are shifted sideways by up to {jump_mm:.1f} mm", jump_mm, limit_mm)


def _numbering(slices: Sequence[Slice]) -> Iterator[QualityIssue]:
    """Positions and InstanceNumber are two witnesses of one order; where numbers tell no order at all, only one is."""
    numbers = [s.instance_number for s in order_slices(slices) if s.instance_number is not None]
    if len(set(numbers)) < len(slices):
        return
    backwards = int((np.diff(numbers) < 0).sum())
    contradictions = min(backwards, len(slices) - 1 - backwards)
    if 0 < contradictions < _NO_ORDER * len(slices):
        message = f"positions and image numbers contradict each other in {contradictions} places"
        yield _reject("image_order", message, float(contradictions), 0.0)


def _thickness(slices: Sequence[Slice]) -> Iterator[QualityIssue]:
    positions, normal = _ordered_positions_mm(slices)
    offsets = positions @ normal
    step = float(np.median(np.diff(offsets)))
    thicknesses = [s.slice_thickness_mm for s in slices if s.slice_thickness_mm]
    thickness = float(np.median(thicknesses)) if thicknesses else step
    if step > MAXIMUM_SLICE_SPACING_MM:
        yield _reject("slice_spacing", f"slices are {step:.1f} mm apart", step, MAXIMUM_SLICE_SPACING_MM)
    elif max(thickness, step) > THICK_SLICE_MM:
        message = f"slices of {max(thickness, step):.1f} mm: small nodules may be missed"
        yield _warn("slice_thickness", message, max(thickness, step), THICK_SLICE_MM)
    if thicknesses and step > 1.5 * thickness:
        yield _warn("unimaged_gaps", f"{thickness:.1f} mm slices every {step:.1f} mm leave gaps", step, thickness)
    if not thicknesses:
        yield _warn("slice_thickness", "SliceThickness is absent; the slice spacing is used")
    length = float(offsets[-1] - offsets[0])
    if length < MINIMUM_LENGTH_MM:
        yield _reject("coverage", f"only {length:.0f} mm of the body are covered", length, MINIMUM_LENGTH_MM)


def _sampling(slices: Sequence[Slice]) -> Iterator[QualityIssue]:
    """How finely the body was sampled in plane and density, and at which voltage."""
    first = slices[0]
    pixel_mm, slope = max(first.pixel_spacing_mm or (0.0,)), abs(first.rescale_slope or 1.0)
    if pixel_mm > MAXIMUM_PIXEL_MM:
        yield _reject("pixel_spacing", f"pixels of {pixel_mm:.1f} mm", pixel_mm, MAXIMUM_PIXEL_MM)
    elif pixel_mm > COARSE_PIXEL_MM:
        message = f"pixels of {pixel_mm:.1f} mm: small nodules and calcium may be missed"
        yield _warn("pixel_spacing", message, pixel_mm, COARSE_PIXEL_MM)
    if slope > COARSE_STEP_HU:
        yield _warn("hu", f"stored in steps of {slope:.1f} HU: densities are coarse", slope, COARSE_STEP_HU)
    low, high = USUAL_KVP
    if first.kvp and not low <= first.kvp <= high:
        message = f"taken at {first.kvp:.0f} kV: calcium and contrast measure otherwise than at 120 kV"
        yield _warn("kvp", message, first.kvp, low if first.kvp < low else high)


def _left_out(series: Series) -> Iterator[QualityIssue]:
    if series.left_out_localizers:
        count = series.left_out_localizers
        yield _warn(
            "localizer", f"{count} images among the axial ones, localizers or pages, were left out", float(count), 0.0
        )


def _ordered_positions_mm(slices: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) image positions ordered along the slice normal, and that unit normal (3,)."""
    positions = np.array([s.image_position_patient for s in order_slices(slices)], dtype=np.float64)
    return positions, slice_normal(slices[0].image_orientation_patient or ())


def check_voxels(volume: Volume, lungs: Lungs) -> tuple[QualityIssue, ...]:
    """Whether the voxels are a chest in plausible HU, lying as the headers say, with both lungs inside the volume."""
    lung_volume_ml = {
        "left": float(np.count_nonzero(lungs.left)) * volume.geometry.voxel_volume_mm3 / 1000,
        "right": float(np.count_nonzero(lungs.right)) * volume.geometry.voxel_volume_mm3 / 1000,
    }
    total_ml = sum(lung_volume_ml.values())
    if total_ml < MINIMUM_LUNG_VOLUME_ML:
        message = f"only {total_ml:.0f} ml of aerated lung found: this is not a chest CT, or the HU are wrong"
        return (_reject("lungs", message, total_ml, MINIMUM_LUNG_VOLUME_ML),)
    if total_ml > MAXIMUM_LUNG_VOLUME_ML:
        message = f"{total_ml / 1000:.0f} l of lung are more than anybody has: the size of the voxels is wrong"
        return (_reject("lungs", message, total_ml, MAXIMUM_LUNG_VOLUME_ML),)
    blank = _blank_planes(volume)
    return (
        *_planes(volume, blank),
        *_both_lungs(lung_volume_ml),
        *_orientation(volume, lungs, lung_volume_ml),
        *_coverage(volume, lungs, blank),
        *_edges(lungs, volume),
        *_hu_plausible(volume, lungs),
        *_scale_steps(volume, lungs),
        *_noise(volume, lungs),
    )


def _blank_planes(volume: Volume) -> list[int]:
    """Indices of the planes whose pixels are all the same."""
    thinned = volume.hu[:, ::_COMPARED_EVERY_PIXELS, ::_COMPARED_EVERY_PIXELS]
    return [i for i, plane in enumerate(thinned) if plane.min() == plane.max() and not np.ptp(volume.hu[i])]


def _planes(volume: Volume, blank: Sequence[int]) -> Iterator[QualityIssue]:
    """Planes that are empty, stand twice, or lie where their neighbours would fit each other without them."""
    thinned = volume.hu[:, ::_COMPARED_EVERY_PIXELS, ::_COMPARED_EVERY_PIXELS]
    if blank:
        filled = np.setdiff1d(np.arange(len(thinned)), blank)
        padded = bool(len(filled)) and len(filled) == filled[-1] - filled[0] + 1
        # Reformatting pads at the ends; between images that are not blank, something is missing.
        tell = _warn if padded else _reject
        yield tell("blank_images", f"{len(blank)} images are blank", float(len(blank)), 0.0)
    alike: defaultdict[bytes, list[int]] = defaultdict(list)
    for index, plane in enumerate(thinned):
        if index not in blank:
            alike[plane.tobytes()].append(index)
    repeated = sum(
        np.array_equal(volume.hu[first], volume.hu[other]) for first, *others in alike.values() for other in others
    )
    if repeated:
        yield _reject("repeated_images", f"{repeated} images have the pixels of another", float(repeated), 0.0)
    outliers = 0 if blank else _outlying_planes(thinned)
    if outliers:
        message = f"{outliers} images do not fit between their neighbours, which fit each other"
        yield _reject("image_order", message, float(outliers), 0.0)


def _outlying_planes(thinned: npt.NDArray[np.int16]) -> int:
    """Number of planes much less like either neighbour than the neighbours are like each other."""
    size = [max(1, extent // _COMPARED_BLOCKS) for extent in thinned.shape[1:]]
    rows, columns = (extent // step * step for extent, step in zip(thinned.shape[1:], size, strict=True))
    blocks = np.clip(thinned[:, :rows, :columns], -1000, 300).astype(np.float32)
    blocks = blocks.reshape(len(thinned), rows // size[0], size[0], columns // size[1], size[1]).mean(axis=(2, 4))
    to_next = np.abs(blocks[1:] - blocks[:-1]).mean(axis=(1, 2))
    over_next = np.abs(blocks[2:] - blocks[:-2]).mean(axis=(1, 2))
    nearer = np.minimum(to_next[1:], to_next[:-1])
    return int(np.count_nonzero((nearer > _OUTLIER_HU) & (over_next < _OUTLIER_RATIO * nearer)))


def _both_lungs(lung_volume_ml: dict[str, float]) -> Iterator[QualityIssue]:
    for side, ml in lung_volume_ml.items():
        if ml < 100.0:
            yield _warn("lungs", f"hardly any aerated lung on the {side} ({ml:.0f} ml)", ml, 100.0)


def _orientation(volume: Volume, lungs: Lungs, lung_volume_ml: dict[str, float]) -> Iterator[QualityIssue]:
    """Only a warning: an organ may be where it should not be."""
    lie = find_lie(volume, lungs)
    share = min(lung_volume_ml.values()) / max(lung_volume_ml.values())
    if lie.sides_mm is None and share < SMALLER_LUNG_LEAST:
        message = "one lung holds so little air that left and right could not be checked against the anatomy"
        yield _warn("orientation", message, share, SMALLER_LUNG_LEAST)
    for measured, limit, message in (
        (
            lie.spine_behind_mm,
            _SPINE_BEHIND_MM,
            "by the headers the spine lies in front: their orientation may be wrong, and sides with it",
        ),
        (
            lie.liver_below_mm,
            _LIVER_BELOW_MM,
            "by the headers the liver lies above the lungs: their positions may be wrong, and sides with it",
        ),
        (
            lie.sides_mm,
            _SIDES_MM,
            "by the headers liver and heart have changed sides: sides may be exchanged, or the situs is inverse",
        ),
    ):
        if measured is not None and measured < limit:
            yield _warn("orientation", message, measured, limit)


def _coverage(volume: Volume, lungs: Lungs, blank: Sequence[int]) -> Iterator[QualityIssue]:
    """A lung that still has a large cross-section in the outermost slice that is not blank goes on outside."""
    filled = np.setdiff1d(np.arange(len(volume.hu)), blank)
    if not len(filled):
        return
    imaged = slice(filled[0], filled[-1] + 1)
    upwards = slice(None, None, 1 if volume.geometry.affine[2, 0] > 0 else -1)
    area_mm2 = lungs.voxels_by_slice[imaged][upwards] * float(np.prod(volume.geometry.spacing_mm[1:]))
    seen = np.flatnonzero(area_mm2)
    body = np.flatnonzero([plane.any() for plane in lungs.body[imaged][upwards]])
    slice_mm = volume.geometry.spacing_mm[0]
    lung_mm, below_mm, above_mm = (
        float(slices * slice_mm) for slices in (seen[-1] - seen[0] + 1, seen[0] - body[0], body[-1] - seen[-1])
    )
    for part, cut_mm2, other, beyond_mm, region in (
        ("bases", area_mm2[0], "apices", above_mm, "above them: a neck"),
        ("apices", area_mm2[-1], "bases", below_mm, "below them: an abdomen"),
    ):
        share = float(cut_mm2 / area_mm2.max())
        if share > 0.6 and lung_mm <= _ONLY_ONE_END_MM and beyond_mm >= max(lung_mm, _OTHER_REGION_MM):
            message = f"of the lungs only the {other} are in the images, with {beyond_mm:.0f} mm of the body {region}"
            yield _reject("coverage", message, share, 0.6)
        elif share > 0.6:
            yield _reject("coverage", f"the lung {part} lie outside the images: half a thorax", share, 0.6)
        elif cut_mm2 > 400.0:
            yield _warn("coverage", f"the lung {part} are cut off; findings there are not seen", float(cut_mm2), 400.0)
        else:
            yield QualityIssue(check="coverage", verdict=Verdict.PASS, message=f"lung {part} covered")


def _edges(lungs: Lungs, volume: Volume) -> Iterator[QualityIssue]:
    """Lung in the outermost rows and columns, or at the rim of a round field of view, goes on outside it."""
    slice_mm, row_mm, column_mm = volume.geometry.spacing_mm
    rows = [lung[:, end] for lung in (lungs.left, lungs.right) for end in (0, -1)]
    columns = [lung[:, :, end] for lung in (lungs.left, lungs.right) for end in (0, -1)]
    cut_mm2 = slice_mm * (column_mm * np.count_nonzero(rows) + row_mm * np.count_nonzero(columns))
    both = zip(lungs.left, lungs.right, strict=True)
    beyond = padding(volume.hu)
    if beyond.any():
        depth_mm = ndimage.distance_transform_edt(~beyond, sampling=(row_mm, column_mm))
        rim = (depth_mm > _RIM_MM) & (depth_mm <= _RIM_MM + row_mm)
        cut_mm2 += slice_mm * row_mm * sum(np.count_nonzero((left | right) & rim) for left, right in both)
    if not cut_mm2:
        return
    share = cut_mm2 / float(lungs.voxels_by_slice.max() * row_mm * column_mm)
    if share > _CUT_AT_EDGES:
        message = "the lungs are cut off at the edges of the images; findings there are not seen"
        yield _warn("coverage", message, share, _CUT_AT_EDGES)


def _hu_plausible(volume: Volume, lungs: Lungs) -> Iterator[QualityIssue]:
    lung_median = _median_hu(volume, (left | right for left, right in zip(lungs.left, lungs.right, strict=True)))
    solid = (body & (plane > -250) for body, plane in zip(lungs.body, volume.hu, strict=True))
    tissue_median = _median_hu(volume, solid)
    for what, value, (low, high) in (
        ("lung", lung_median, _LUNG_HU),
        ("soft tissue", tissue_median, _SOFT_TISSUE_HU),
    ):
        if not low <= value <= high:
            limit = low if value < low else high
            yield _reject("hu", f"median of {what} is {value:.0f} HU, not within {low:.0f} to {high:.0f}", value, limit)
        else:
            yield QualityIssue(check="hu", verdict=Verdict.PASS, message=f"{what} {value:.0f} HU", measured=value)


def _scale_steps(volume: Volume, lungs: Lungs) -> Iterator[QualityIssue]:
    """From one image to the next a body changes little, whatever is in it: a step is one of the scale."""
    every = (slice(None, None, 2), slice(None, None, 2))
    medians = []
    for plane, body in zip(volume.hu, lungs.body, strict=True):
        inside = plane[every][body[every]]
        tissue = inside[(inside > _BODY_HU[0]) & (inside < _BODY_HU[1])]
        medians.append(float(np.median(tissue)) if tissue.size >= _LEAST_BODY_PIXELS else np.nan)
    steps = np.abs(np.diff(medians))
    largest = float(np.nanmax(steps)) if np.isfinite(steps).any() else 0.0
    if largest > _LARGEST_STEP_HU:
        message = f"from one image to the next soft tissue changes by {largest:.0f} HU: two scales are mixed"
        yield _reject("hu", message, largest, _LARGEST_STEP_HU)


def _median_hu(volume: Volume, masks: Iterable[npt.NDArray[np.bool_]]) -> float:
    """Median of the voxels in one mask a slice, nan without any; counted slice by slice to need no copy of them."""
    count = np.zeros(1 << 16, np.int64)
    for plane, mask in zip(volume.hu, masks, strict=True):
        count += np.bincount(plane[mask].view(np.uint16) ^ 0x8000, minlength=count.size)
    total = int(count.sum())
    if not total:
        return float("nan")
    middle = np.searchsorted(count.cumsum(), [(total + 1) // 2, total // 2 + 1])
    return float(middle.mean()) - 0x8000


def _noise(volume: Volume, lungs: Lungs) -> Iterator[QualityIssue]:
    noise_hu = measure_noise_hu(volume, lungs)
    if noise_hu > MAXIMUM_NOISE_HU:
        yield _warn("noise", f"noise of {noise_hu:.0f} HU: faint findings may be missed", noise_hu, MAXIMUM_NOISE_HU)
    else:
        message = f"noise {noise_hu:.0f} HU in soft tissue"
        yield QualityIssue(check="noise", verdict=Verdict.PASS, message=message, measured=noise_hu)


def measure_noise_hu(volume: Volume, lungs: Lungs) -> float:
    """Noise in HU: the mode of the local standard deviation in soft tissue of the middle slice.

    After the global noise level of Christianson et al., AJR 2015;205:W93 (7 x 7 pixels here).
    """
    middle = volume.hu.shape[0] // 2
    plane = sitk.GetImageFromArray(volume.hu[middle].astype(np.float32))
    deviation = sitk.GetArrayFromImage(sitk.Noise(plane, [3, 3]))
    tissue = lungs.body[middle] & (volume.hu[middle] > -20) & (volume.hu[middle] < 120)
    if tissue.sum() < 100:
        return 0.0
    counts, edges = np.histogram(deviation[tissue], bins=200, range=(0, 200))
    return float(edges[int(np.argmax(counts))] + 0.5)


def _reject(check: str, message: str, measured: float | None = None, limit: float | None = None) -> QualityIssue:
    return QualityIssue(check=check, verdict=Verdict.REJECT, message=message, measured=measured, limit=limit)


def _warn(check: str, message: str, measured: float | None = None, limit: float | None = None) -> QualityIssue:
    return QualityIssue(check=check, verdict=Verdict.WARN, message=message, measured=measured, limit=limit)
