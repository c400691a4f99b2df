"""Calcium of the coronary arteries and of the aortic wall on scans without contrast medium."""

from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from imaging.morphology import depth_in, widened
from models.anatomy import Anatomy
from models.findings import Finding, FindingKind, Measurement, Presence, Quantity, Region
from models.measure import region_of
from models.measured.answer import answer, not_assessed
from models.measured.aorta import outline_fault
from models.measured.heart import heart_fault
from models.measured.outline import Box, outline_of

Mask = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

# Agatston et al., JACC 1990;15:827: from 130 HU and 1 mm2 on, in slices of 3 mm.
CALCIUM_HU = 130
_LEAST_AREA_MM2 = 1.0
_AGATSTON_SLICE_MM = 3.0
_THICKEST_SLICE_MM = 5.5
# CAC-DRS (Hecht et al., J Cardiovasc Comput Tomogr 2018;12:185).
_CAC_DRS = ((300.0, "A3"), (100.0, "A2"), (1.0, "A1"))
_LEAST_SURE_SCORE = 10.0
_LEAST_SURE_WALL_MM3 = 50.0
_LEAST_WALL_MM3 = 10.0
_METAL_HU = 2000
# 130 HU is four times this above blood of 35 HU.
_LARGEST_NOISE_HU = 25.0
# Density counts up to here (Agatston et al., JACC 1990;15:827), and any bone reaches it.
_LEAST_BRIGHTEST_HU = 400
_NOISE_SIGMAS = 5.0
# Standard deviation of the smoothing in the slice of a noisier scan, about what a soft kernel would have left out.
_SMOOTHING_MM = 0.8
# Every so many voxels along (slice, row, column) are enough to measure noise.
_SPARSE = (2, 3, 3)
# In voxels of the network's grid: how far outside the outline calcium may lie, and how near to bone it counts as bone.
_HEART_MARGIN = 2
_TRUNK_MARGIN = 6
_AORTA_MARGIN = 1
_BONE_MARGIN = 1
# Calcified lymph nodes lie beside the bronchi, the coronary arteries do not.
_AIRWAY_MARGIN = 4
# Coronary arteries run on the surface of the heart; calcium this deep inside is of a valve.
_DEEPEST_MM = 20.0
_BONES = ("vertebrae", "ribs", "sternum")


@dataclass(frozen=True, slots=True, eq=False)
class Calcium:
    """Voxels of calcium in a box of the source grid, in slices of `slice_mm`: `averaged` source slices make one."""

    box: Box
    mask: Mask
    hu: npt.NDArray[np.int16]
    slice_mm: float
    averaged: int


def coronary_artery_calcification(anatomy: Anatomy) -> tuple[Finding, ...]:
    """Agatston score of what is dense on the surface of the heart; an estimate, as the scan is not ECG-gated."""
    kind = FindingKind.CORONARY_ARTERY_CALCIFICATION
    heart = anatomy.once(outline_of, "heart")
    # Without the aorta's outline its calcium would be counted.
    fault = _scan_fault(anatomy) or heart_fault(anatomy, heart) or outline_fault(anatomy.once(outline_of, "aorta"))
    if fault:
        return (not_assessed(anatomy, kind, fault),)
    others = _dilated(anatomy.mask("aorta"), _AORTA_MARGIN) | _dilated(anatomy.mask(*_BONES), _BONE_MARGIN)
    others |= _dilated(anatomy.mask("airways"), _AIRWAY_MARGIN)
    # The left main artery and the start of its branches run beside the pulmonary trunk.
    beside = _dilated(anatomy.mask("pulmonary_trunk"), 1) & _dilated(heart.mask, _TRUNK_MARGIN)
    region = (_dilated(heart.mask, _HEART_MARGIN) | beside) & ~others & ~_deep(heart.mask, anatomy)
    calcium = find_calcium(anatomy, region, heart.mask)
    if isinstance(calcium, str):
        return (not_assessed(anatomy, kind, calcium),)
    score = agatston_score(calcium, anatomy)
    presence, reason = _coronary_presence(score)
    return (
        answer(
            anatomy,
            kind,
            presence,
            method=f"Agatston score from {CALCIUM_HU} HU in the outlined heart without the aorta, scaled to 3 mm slices"
            "; an estimate without ECG gating",
            reason=reason,
            site="coronary arteries",
            measurements=(
                Measurement(quantity=Quantity.AGATSTON_SCORE, value=score, unit="1"),
                Measurement(quantity=Quantity.CALCIUM_VOLUME, value=_volume_mm3(calcium, anatomy), unit="mm3"),
            ),
            region=_region(calcium, anatomy) if presence is not Presence.ABSENT else None,
        ),
    )


def arterial_wall_calcification(anatomy: Anatomy) -> tuple[Finding, ...]:
    """Volume of calcium in the wall of the thoracic aorta."""
    kind = FindingKind.ARTERIAL_WALL_CALCIFICATION
    aorta = anatomy.once(outline_of, "aorta")
    fault = _scan_fault(anatomy) or outline_fault(aorta)
    if fault:
        return (not_assessed(anatomy, kind, fault),)
    bones = _dilated(anatomy.mask(*_BONES), _BONE_MARGIN)
    calcium = find_calcium(anatomy, _dilated(aorta.mask, _AORTA_MARGIN) & ~bones, aorta.mask)
    if isinstance(calcium, str):
        return (not_assessed(anatomy, kind, calcium),)
    mm3 = _volume_mm3(calcium, anatomy)
    presence, reason = _wall_presence(mm3)
    return (
        answer(
            anatomy,
            kind,
            presence,
            method=f"volume from {CALCIUM_HU} HU in and next to the network's outline of the aorta",
            reason=reason,
            site="thoracic aorta",
            measurements=(Measurement(quantity=Quantity.CALCIUM_VOLUME, value=mm3, unit="mm3"),),
            region=_region(calcium, anatomy) if presence is not Presence.ABSENT else None,
        ),
    )


def _coronary_presence(score: float) -> tuple[Presence, str | None]:
    category = next((name for least, name in _CAC_DRS if score >= least), "A0")
    estimate = f"CAC-DRS {category} by an estimate without ECG gating"
    if category == "A0":
        return Presence.ABSENT, estimate
    if score < _LEAST_SURE_SCORE:
        return Presence.INDETERMINATE, f"{estimate}; so low a score may be noise or a valve"
    return Presence.PRESENT, estimate


def _wall_presence(mm3: float) -> tuple[Presence, str | None]:
    if mm3 < _LEAST_WALL_MM3:
        return Presence.ABSENT, None
    if mm3 < _LEAST_SURE_WALL_MM3:
        return Presence.INDETERMINATE, "so little calcium may be noise or neighbouring bone"
    return Presence.PRESENT, None


def _scan_fault(anatomy: Anatomy) -> str | None:
    """Why calcium cannot be told on this scan, in plain words; None when it can."""
    if anatomy.blood_pool.is_scale_in_doubt:
        return anatomy.blood_pool.evidence
    if anatomy.blood_pool.contrast is None:
        return f"it is not clear whether contrast medium was given ({anatomy.blood_pool.evidence})"
    if anatomy.blood_pool.contrast:
        return "contrast medium hides calcium"
    brightest = int(anatomy.volume.hu.max())
    if brightest < _LEAST_BRIGHTEST_HU:
        return f"no voxel measures more than {brightest} HU: calcium and metal were cut off"
    slice_mm = anatomy.volume.geometry.spacing_mm[0]
    if slice_mm > _THICKEST_SLICE_MM:
        return f"slices {slice_mm:g} mm apart are too thick to find calcium"
    return None


def find_calcium(anatomy: Anatomy, region: Mask, organ: Mask) -> Calcium | str:
    """What is denser than 130 HU and lies mostly in `region` (network grid); or why none can be told.

    Slices much thinner than 3 mm are averaged first, as their noise alone would reach 130 HU; a piece must rise above
    the noise of the `organ`. A noisier scan is smoothed in the slice, which takes the smallest ones away. Bone that
    reaches into the region is one large piece with most of it outside.
    """
    bounds = ndimage.find_objects(region.astype(np.int8))
    if not bounds:
        return "the outline leaves no place to look for calcium"
    box, hu, averaged = _in_slices(anatomy, anatomy.grid.source_box(widened(bounds[0], (1,) * 3, region.shape)))
    blood_hu, noise_hu = _tissue(anatomy, organ, hu, box, averaged)
    if noise_hu > _LARGEST_NOISE_HU:
        sigma = [0.0, *(_SMOOTHING_MM / mm for mm in anatomy.volume.geometry.spacing_mm[1:])]
        hu = np.rint(ndimage.gaussian_filter(hu.astype(np.float32), sigma)).astype(np.int16)
        blood_hu, noise_hu = _tissue(anatomy, organ, hu, box, averaged)
    if not noise_hu <= _LARGEST_NOISE_HU:
        return f"the noise of {noise_hu:.0f} HU is too high to find calcium"
    mask = hu >= CALCIUM_HU
    dense = np.argwhere(mask)
    inside = _at(anatomy, region, dense, box, averaged)
    values = hu[mask]
    if (values[inside] >= _METAL_HU).any():
        return "metal lies where calcium would be sought"
    number = cc3d.connected_components(mask, connectivity=26)[mask]
    peak = np.zeros(int(number.max(initial=0)) + 1)
    np.maximum.at(peak, number, values)
    within = np.bincount(number, weights=inside, minlength=len(peak))
    belongs = (within >= 0.5 * np.bincount(number, minlength=len(peak))) & (peak >= blood_hu + _NOISE_SIGMAS * noise_hu)
    mask[mask] = inside & belongs[number]
    return Calcium(box, mask, hu, anatomy.volume.geometry.spacing_mm[0] * averaged, averaged)


def _in_slices(anatomy: Anatomy, box: Box) -> tuple[Box, npt.NDArray[np.int16], int]:
    """The voxels of a box, slices averaged to at most 3 mm, the box cut to whole ones, and how many make one."""
    count = max(1, int(_AGATSTON_SLICE_MM / anatomy.volume.geometry.spacing_mm[0] + 0.05))
    slices = (box[0].stop - box[0].start) // count
    if slices == 0:
        return box, anatomy.volume.hu[box], 1
    whole = (slice(box[0].start, box[0].start + slices * count), box[1], box[2])
    hu = anatomy.volume.hu[whole]
    if count == 1:
        return whole, hu, 1
    thick = hu.reshape(slices, count, *hu.shape[1:]).sum(axis=1, dtype=np.int32) // count
    return whole, thick.astype(np.int16), count


def _at(anatomy: Anatomy, mask: Mask, index: npt.NDArray[np.intp], box: Box, averaged: int) -> Mask:
    """Whether voxels (n, 3) of the averaged box lie in a mask of the network's grid."""
    source = index * [averaged, 1, 1] + [part.start for part in box] + [(averaged - 1) / 2, 0.0, 0.0]
    points = anatomy.volume.geometry.index_to_patient(source)
    there = np.rint(anatomy.grid.geometry.patient_to_index(points)).astype(int)
    valid = ((there >= 0) & (there < mask.shape)).all(axis=1)
    found = np.zeros(len(index), np.bool_)
    found[valid] = mask[tuple(there[valid].T)]
    return found


def _tissue(anatomy: Anatomy, organ: Mask, hu: npt.NDArray[np.int16], box: Box, averaged: int) -> tuple[float, float]:
    """Median and noise (standard deviation, from the median deviation) of the HU in an organ; nan where it is empty."""
    sparse = np.argwhere(np.ones([-(-n // step) for n, step in zip(hu.shape, _SPARSE, strict=True)])) * _SPARSE
    inside = sparse[_at(anatomy, organ, sparse, box, averaged)]
    values = hu[tuple(inside.T)].astype(np.float64)
    if not len(values):
        return float("nan"), float("nan")
    middle = float(np.median(values))
    # The median absolute deviation of normal noise is 0.6745 of its standard deviation.
    return middle, float(np.median(np.abs(values - middle))) / 0.6745


def _dilated(mask: Mask, voxels: int) -> Mask:
    bounds = ndimage.find_objects(mask.astype(np.int8))
    if not bounds:
        return mask
    box = widened(bounds[0], (voxels,) * 3, mask.shape)
    wider = np.zeros_like(mask)
    wider[box] = ndimage.binary_dilation(mask[box], iterations=voxels)
    return wider


def _deep(mask: Mask, anatomy: Anatomy) -> Mask:
    bounds = ndimage.find_objects(mask.astype(np.int8))[0]
    deep = np.zeros_like(mask)
    deep[bounds] = depth_in(mask[bounds], anatomy.grid.geometry.spacing_mm) > _DEEPEST_MM
    return deep


def agatston_score(calcium: Calcium, anatomy: Anatomy) -> float:
    """Sum over the lesions of each slice of area in mm2 times weight (1 to 4 by peak HU), scaled to 3 mm slices."""
    _, row_mm, column_mm = anatomy.volume.geometry.spacing_mm
    within_slice = np.zeros((3, 3, 3), np.bool_)
    within_slice[1] = True
    lesions, count = ndimage.label(calcium.mask, structure=within_slice)
    if not count:
        return 0.0
    area_mm2 = np.bincount(lesions[calcium.mask], minlength=count + 1)[1:] * row_mm * column_mm
    peak_hu = ndimage.maximum(calcium.hu, lesions, np.arange(1, count + 1))
    weight = np.minimum(np.asarray(peak_hu) // 100, 4)
    score = (area_mm2 * weight)[area_mm2 >= _LEAST_AREA_MM2].sum()
    return float(score * calcium.slice_mm / _AGATSTON_SLICE_MM)


def _volume_mm3(calcium: Calcium, anatomy: Anatomy) -> float:
    return float(calcium.mask.sum()) * calcium.averaged * anatomy.volume.geometry.voxel_volume_mm3


def _region(calcium: Calcium, anatomy: Anatomy) -> Region:
    return region_of(np.repeat(calcium.mask, calcium.averaged, axis=0), calcium.box, anatomy.volume.geometry)
