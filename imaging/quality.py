"""The quality gate, twice: on headers before pixels are decoded, on voxels after.

A REJECT means that no finding may be drawn from the series. A volume is geometrically right or it is refused.
"""

import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from imaging.geometry import slice_normal
from imaging.headers import Series, Slice
from imaging.lungs import Lungs
from imaging.volume import Volume, order_slices


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
MAXIMUM_NOISE_HU = 60.0
# DICOM positions are often rounded to 0.1 mm, so that equal steps differ by up to twice the rounding error.
_STEP_TOLERANCE_MM = 0.11
_STEP_TOLERANCE_FRACTION = 0.1
_AIR_HU = (-1100.0, -900.0)
_LUNG_HU = (-950.0, -550.0)
_SOFT_TISSUE_HU = (-150.0, 130.0)


def is_rejected(issues: Sequence[QualityIssue]) -> bool:
    return any(issue.verdict is Verdict.REJECT for issue in issues)


def check_headers(series: Series) -> tuple[QualityIssue, ...]:
    """Whether the planes of `series` form one regular, untilted axial stack, and how thick it is.

    The first group of problems (something missing or mixed) hides the ones that would follow from it.
    """
    slices = series.slices
    for group in (_missing, _mixed, _stack):
        issues = tuple(group(slices))
        if is_rejected(issues):
            return issues
    return (*issues, *_thickness(slices), *_left_out(series))


def _missing(slices: Sequence[Slice]) -> Iterator[QualityIssue]:
    required = {
        "ImagePositionPatient": [s.image_position_patient is None for s in slices],
        "ImageOrientationPatient": [s.image_orientation_patient is None for s in slices],
        "PixelSpacing": [s.pixel_spacing_mm is None or min(s.pixel_spacing_mm) <= 0 for s in slices],
        "Rows and Columns": [s.rows <= 0 or s.columns <= 0 for s in slices],
        "RescaleSlope and RescaleIntercept": [not s.rescale_slope or s.rescale_intercept is None for s in slices],
    }
    for keyword, missing in required.items():
        if any(missing):
            yield _reject("headers", f"{keyword} missing or invalid in {sum(missing)} of {len(slices)} images")
    if not any(required["ImagePositionPatient"]) and not _all_finite(slices):
        yield _reject("headers", "a position or orientation is not a finite number")


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
    if not len(irregular):
        yield QualityIssue(check="slice_gaps", verdict=Verdict.PASS, message="no gaps", measured=step)


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


def _left_out(series: Series) -> Iterator[QualityIssue]:
    if series.left_out_localizers:
        count = series.left_out_localizers
        yield _warn("localizer", f"{count} localizer images among the axial ones were left out", float(count), 0.0)


def _ordered_positions_mm(slices: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) image positions ordered along the slice normal, and that unit normal (3,)."""
    positions = np.array([s.image_position_patient for s in order_slices(slices)], dtype=np.float64)
    return positions, slice_normal(slices[0].image_orientation_patient or ())


def check_voxels(volume: Volume, lungs: Lungs) -> tuple[QualityIssue, ...]:
    """Whether the voxels are a chest in plausible HU with both lungs inside the volume, and how noisy they are."""
    lung_volume_ml = {
        "left": float(np.count_nonzero(lungs.left)) * volume.geometry.voxel_volume_mm3 / 1000,
        "right": float(np.count_nonzero(lungs.right)) * volume.geometry.voxel_volume_mm3 / 1000,
    }
    total_ml = sum(lung_volume_ml.values())
    if total_ml < MINIMUM_LUNG_VOLUME_ML:
        message = f"only {total_ml:.0f} ml of aerated lung found: this is not a chest CT, or the HU are wrong"
        return (_reject("lungs", message, total_ml, MINIMUM_LUNG_VOLUME_ML),)
    return (
        *_both_lungs(lung_volume_ml),
        *_coverage(volume, lungs),
        *_hu_plausible(volume, lungs),
        *_noise(volume, lungs),
    )


def _both_lungs(lung_volume_ml: dict[str, float]) -> Iterator[QualityIssue]:
    for side, ml in lung_volume_ml.items():
        if ml < 100.0:
            yield _warn("lungs", f"hardly any aerated lung on the {side} ({ml:.0f} ml)", ml, 100.0)


def _coverage(volume: Volume, lungs: Lungs) -> Iterator[QualityIssue]:
    """A lung that still has a large cross-section in the outermost slice goes on outside the volume."""
    voxels = np.array([np.count_nonzero(left | right) for left, right in zip(lungs.left, lungs.right, strict=True)])
    area_mm2 = voxels * float(np.prod(volume.geometry.spacing_mm[1:]))
    superior_last = volume.geometry.affine[2, 0] > 0
    ends = (
        {"bases": area_mm2[0], "apices": area_mm2[-1]}
        if superior_last
        else {"apices": area_mm2[0], "bases": area_mm2[-1]}
    )
    for part, cut_mm2 in ends.items():
        share = float(cut_mm2 / area_mm2.max())
        if share > 0.6:
            yield _reject("coverage", f"the lung {part} lie outside the images: half a thorax", share, 0.6)
        elif cut_mm2 > 400.0:
            yield _warn("coverage", f"the lung {part} are cut off; findings there are not seen", float(cut_mm2), 400.0)
        else:
            yield QualityIssue(check="coverage", verdict=Verdict.PASS, message=f"lung {part} covered")


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
