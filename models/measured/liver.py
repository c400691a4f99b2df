"""Fat in the liver, from its attenuation on an unenhanced scan."""

from collections.abc import Sequence

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.anatomy import Anatomy
from models.findings import Finding, FindingKind, Measurement, Presence, Quantity, Region
from models.measure import region_of
from models.measured.answer import answer, not_assessed

Mask = npt.NDArray[np.bool_]

# Unenhanced liver below 40 HU holds about 30 % fat or more (Kodama et al., AJR 2007;188:1307).
STEATOSIS_HU = 40.0
# Below 48 HU every liver had 30 % fat or more, but nearly half of those that had it lay above (Pickhardt et al.,
# Eur Radiol 2012;22:1075): from 50 HU on, 2 HU being error, only severe fat is excluded.
NORMAL_LIVER_HU = 50.0
_DEPTH_MM = 10.0
_LEAST_LIVER_ML, _LEAST_SPLEEN_ML = 60.0, 8.0
_PLAUSIBLE_LIVER_HU = (-60.0, 100.0)
_PLAUSIBLE_SPLEEN_HU = (25.0, 70.0)
_LEAST_ALIKE = 0.8
_ALIKE_HU = 25.0


def hepatic_steatosis(anatomy: Anatomy) -> tuple[Finding, ...]:
    """Mean HU of the inside of liver and spleen without vessels; unenhanced scans only."""
    kind = FindingKind.HEPATIC_STEATOSIS
    if anatomy.blood_pool.is_scale_in_doubt:
        return (not_assessed(anatomy, kind, anatomy.blood_pool.evidence),)
    contrast = anatomy.blood_pool.contrast
    if contrast is not False:
        given = "contrast was given" if contrast else "contrast may have been given"
        return (not_assessed(anatomy, kind, f"{given}, which raises the attenuation of the liver"),)
    inside = _inside(anatomy, "liver", _LEAST_LIVER_ML)
    if inside is None:
        return (not_assessed(anatomy, kind, "too little of the liver was outlined"),)
    if not _on_the_right(anatomy, inside):
        return (not_assessed(anatomy, kind, "what was outlined as liver does not lie on the right"),)
    liver = _organ_hu(anatomy, inside)
    if liver is None or not _PLAUSIBLE_LIVER_HU[0] <= liver <= _PLAUSIBLE_LIVER_HU[1]:
        return (not_assessed(anatomy, kind, "what was outlined as liver is not of one attenuation"),)
    # What no spleen measures is no number to report, but speaks against the scale all the same.
    outlined = _spleen_hu(anatomy)
    presence, reasons = _presence(liver, outlined, anatomy.sharp_kernel)
    low, high = _PLAUSIBLE_SPLEEN_HU
    spleen = outlined if outlined is not None and low <= outlined <= high else None
    measurements = [Measurement(quantity=Quantity.MEAN_ATTENUATION, value=liver, unit="[hnsf'U]")]
    if spleen is not None:
        measurements += [
            Measurement(quantity=Quantity.SPLEEN_ATTENUATION, value=spleen, unit="[hnsf'U]"),
            Measurement(quantity=Quantity.LIVER_SPLEEN_DIFFERENCE, value=liver - spleen, unit="[hnsf'U]"),
        ]
    else:
        reasons = (*reasons, "the spleen could not be measured for comparison")
    return (
        answer(
            anatomy,
            kind,
            presence,
            method=f"attenuation of the liver {_DEPTH_MM:g} mm and more inside the network's outline; present below "
            f"{STEATOSIS_HU:g} HU, absent from {NORMAL_LIVER_HU:g} HU",
            reason="; ".join(reasons) or None,
            site="liver",
            measurements=tuple(measurements),
            region=_region(anatomy, inside),
        ),
    )


def _presence(liver: float, spleen: float | None, sharp_kernel: bool) -> tuple[Presence, Sequence[str]]:
    if sharp_kernel:
        return Presence.INDETERMINATE, ("a sharp kernel changes the attenuation near edges",)
    if liver < STEATOSIS_HU:
        if spleen is not None and liver > spleen:
            return Presence.INDETERMINATE, ("the spleen measures even lower, which speaks against the scale of HU",)
        return Presence.PRESENT, ()
    if liver < NORMAL_LIVER_HU:
        return Presence.INDETERMINATE, ("between 40 and 50 HU mild fat can be neither stated nor excluded",)
    return Presence.ABSENT, ("moderate fat is not excluded by attenuation alone",)


def _inside(anatomy: Anatomy, name: str, least_ml: float) -> Mask | None:
    """The largest piece of an organ's outline, well inside its border, on the network's grid; None if too small."""
    outline = anatomy.mask(name)
    bounds = ndimage.find_objects(outline.astype(np.uint8))
    if not bounds:
        return None
    box = bounds[0]
    voxels = round(_DEPTH_MM / anatomy.grid.geometry.spacing_mm[0])
    deep = ndimage.binary_erosion(np.pad(outline[box], 1), iterations=voxels)[1:-1, 1:-1, 1:-1]
    if not deep.any():
        return None
    inside = np.zeros_like(outline)
    inside[box] = cc3d.largest_k(deep, k=1, connectivity=6).astype(bool)
    ml = float(inside.sum()) * anatomy.grid.geometry.voxel_volume_mm3 / 1000
    return inside if ml >= least_ml else None


def _organ_hu(anatomy: Anatomy, inside: Mask) -> float | None:
    """Mean HU of the organ's tissue, None where the outline holds more than one tissue.

    The source voxels at the network's voxel centres; the network grid's means tell tissue from vessels and gaps.
    """
    smooth = ndimage.uniform_filter(anatomy.grid.hu[0, 0], 3)[inside]
    alike = np.abs(smooth - np.median(smooth)) < _ALIKE_HU
    if alike.mean() < _LEAST_ALIKE:
        return None
    source = anatomy.volume.geometry
    points = anatomy.grid.geometry.index_to_patient(np.argwhere(inside)[alike])
    index = np.rint(source.patient_to_index(points)).astype(int)
    seen = ((index >= 0) & (index < np.array(source.shape))).all(axis=1)
    z, y, x = index[seen].T
    return float(anatomy.volume.hu[z, y, x].mean()) if seen.any() else None


def _spleen_hu(anatomy: Anatomy) -> float | None:
    inside = _inside(anatomy, "spleen", _LEAST_SPLEEN_ML)
    return _organ_hu(anatomy, inside) if inside is not None else None


def _on_the_right(anatomy: Anatomy, inside: Mask) -> bool:
    """Whether the middle of the organ lies on the patient's right of the middle of the lungs."""
    lung = np.flatnonzero(anatomy.mask("lung_left", "lung_right").any(axis=(0, 1)))
    return bool(len(lung)) and float(np.argwhere(inside)[:, 2].mean()) < (lung[0] + lung[-1]) / 2


def _region(anatomy: Anatomy, inside: Mask) -> Region | None:
    """The measured part in the source slice where it is largest."""
    z = int(np.argmax(inside.sum(axis=(1, 2))))
    plane = np.argwhere(inside[z]).mean(axis=0)
    source = anatomy.volume.geometry
    at = source.patient_to_index(anatomy.grid.geometry.index_to_patient((z, *plane)))
    key = int(np.clip(round(float(at[0])), 0, source.shape[0] - 1))
    box = (slice(key, key + 1), slice(0, source.shape[1]), slice(0, source.shape[2]))
    mask = anatomy.on_source(inside, box)
    return region_of(mask, box, source) if mask.any() else None
