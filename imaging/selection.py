"""Which series of a study to analyse: the axial thin-slice reconstruction of the chest."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from imaging.geometry import Point, slice_normal
from imaging.headers import Series, Slice, Study
from imaging.patients import is_one_patient

_MINIMUM_SLICES = 20
_MAXIMUM_ANGLE_TO_AXIAL_DEG = 20.0
# A scan down to the pelvis (CAP, TAP) is often filed under the abdomen.
_CHEST = re.compile(r"chest|thora|lung|pulmo|胸|肺|torax|tórax|(?<![a-z])(?:[ct]ap|[ct]/a/p)(?![a-z])", re.IGNORECASE)
_OTHER_BODY_PART = re.compile(
    r"head|brain|skull|sinus|orbit|\bneck|c-?spine|l-?spine|lumbar|abdom|pelvi|liver|kidney|colon|knee|hip\b|"
    r"extremit|foot|hand|头|颅|腹|盆|颈",
    re.IGNORECASE,
)
# ImageType values (PS3.3 C.8.2.1.1.1 and vendors' own) of images that are not a plain reconstruction.
# Pages and pictures that stand among the slices of some series, where no position says what of the body they show.
_PAGES = frozenset({"SCREEN SAVE", "DOSE", "DOSE_INFO"})
# Units of voxels that are no HU (PS3.3 C.11.1.1.2).
_OTHER_UNITS = frozenset({"OD", "MGML", "Z_EFF", "ED", "EDW", "PCT"})
_NOT_A_RECONSTRUCTION = frozenset(
    {"MPR", "MIP", "MINIP", "VRT", "SSD", "REFORMATTED", "PROJECTION IMAGE", "MAX_IP", "MIN_IP", "CURVED", "RANGE",
     "SCREEN SAVE", "DOSE", "PERFUSION", "SUBTRACTION", "BONE SUBTRACTED"}
)  # fmt: skip
# Projections and renderings by any name in an ImageType value ("CT_SOM5 MIP") or a description. What is said to be for
# a MIP is what one is made from.
_PROJECTION = re.compile(r"(?<![a-z])(?<!for\s)(?:mips?|(?:min|max)[\s_-]?ip|vrt|ssd)(?![a-z])", re.IGNORECASE)
# After breathing out a lung is denser, and limits such as that of LAA-950 do not hold.
_EXPIRATION = re.compile(r"(?<![a-z])exs?p(?:ir[a-z]*)?(?![a-z])|呼气", re.IGNORECASE)
# In nine real series the lungs are 242 to 325 mm wide: narrower images mostly show a spine, a heart or one lung.
_NARROW_MM = 280.0
# Kernels for lung and bone by vendor: Siemens B/I/Br/Hr/Qr... from 50 up, Philips D, E, L and Y., Canon FC3x, FC5x
# and FC8x, GE and United Imaging by word. The soft ones have lower numbers, the first letters, or words of their own.
_SHARP_KERNEL = re.compile(
    r"^[bdihqu][a-z]?[5-9]\d|^(d|e|l|y[a-d])$|^fc[358]\d|lung|bone|edge|sharp|ultra", re.IGNORECASE
)
_SOFT_KERNEL = re.compile(r"^[bdihqu][a-z]?[1-4]\d|^[abc]$|^fc[012]\d|soft|smooth|stand", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A series that is not analysed, and why, in words for a person."""

    series_instance_uid: str
    series_number: int | None
    modality: str
    series_description: str | None
    instance_count: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The series to analyse, those that could replace it (best first), and those that never could."""

    chosen: Series | None
    alternatives: tuple[Series, ...]
    unsuitable: tuple[Rejection, ...]

    @property
    def rejected(self) -> tuple[Rejection, ...]:
        """Every series that is not the chosen one, each with its reason."""
        lost = [_rejection(s, _why_not_preferred(s, self.chosen)) for s in self.alternatives if self.chosen]
        return self.unsuitable + tuple(lost)


def select_series(study: Study) -> Selection:
    """Rank the series that could be a chest CT by their headers; reject the others, each with its reason.

    A study that names more than one patient has none: nobody could know of whom its report would be.
    """
    one_patient = is_one_patient({patient for series in study.series for patient in series.patients})
    suitable: list[Series] = []
    unsuitable: list[Rejection] = []
    for series in map(_without_localizers, study.series):
        reason = _why_unsuitable(series) if one_patient else "the images of the study name more than one patient"
        if reason is None:
            suitable.append(series)
        else:
            unsuitable.append(_rejection(series, reason))
    suitable.sort(key=_preference)
    return Selection(
        chosen=suitable[0] if suitable else None,
        alternatives=tuple(suitable[1:]),
        unsuitable=tuple(unsuitable),
    )


def next_selection(selection: Selection, reason: str) -> Selection:
    """The selection after the chosen series failed a gate for `reason`. Raises ValueError when none was chosen."""
    if selection.chosen is None:
        raise ValueError("no series was chosen")
    return Selection(
        chosen=selection.alternatives[0] if selection.alternatives else None,
        alternatives=selection.alternatives[1:],
        unsuitable=(*selection.unsuitable, _rejection(selection.chosen, reason)),
    )


def _rejection(series: Series, reason: str) -> Rejection:
    return Rejection(
        series_instance_uid=series.series_instance_uid,
        series_number=series.series_number,
        modality=series.modality,
        series_description=series.series_description,
        instance_count=series.instance_count,
        reason=reason,
    )


def slice_spacing_mm(slices: Sequence[Slice]) -> float | None:
    """Median distance between neighbouring planes along the normal, or the slice thickness, or None."""
    offsets = _offsets_mm(slices)
    if len(offsets) > 1:
        steps = np.diff(np.unique(np.round(offsets, 3)))
        if len(steps):
            return float(np.median(steps))
    return slices[0].slice_thickness_mm if slices else None


def _thickness_mm(slices: Sequence[Slice]) -> float | None:
    """How much of the body one slice stands for: the larger of spacing and median SliceThickness; None without both."""
    thicknesses = [s.slice_thickness_mm for s in slices if s.slice_thickness_mm and s.slice_thickness_mm > 0]
    known = [slice_spacing_mm(slices), float(np.median(thicknesses)) if thicknesses else None]
    return max((mm for mm in known if mm), default=None)


def _offsets_mm(slices: Sequence[Slice]) -> list[float]:
    oriented = [s for s in slices if _is_finite(s.image_position_patient) and s.image_orientation_patient]
    try:
        return [
            float(np.dot(slice_normal(s.image_orientation_patient or ()), s.image_position_patient or ()))
            for s in oriented
        ]
    except ValueError:
        return []


def _is_finite(position: Point | None) -> bool:
    return position is not None and all(map(math.isfinite, position))


def _without_localizers(series: Series) -> Series:
    axial = tuple(s for s in series.slices if not _is_localizer(s) and not _is_page(s))
    if not axial or len(axial) == len(series.slices):
        return series
    return replace(series, slices=axial, left_out_localizers=len(series.slices) - len(axial))


def _is_localizer(plane: Slice) -> bool:
    return any(value.upper() in {"LOCALIZER", "SCOUT"} for value in plane.image_type)


def _is_page(plane: Slice) -> bool:
    return plane.image_position_patient is None and any(value.upper() in _PAGES for value in plane.image_type)


def _why_unsuitable(series: Series) -> str | None:
    """The first reason that rules a series out by its headers, or None."""
    if series.modality != "CT":
        return f"modality {series.modality or 'unknown'} is not CT"
    if not series.slices:
        return "no CT images (a report, dose sheet or screen capture)"
    if all(_is_localizer(s) for s in series.slices):
        return "localizer (scout)"
    image_type = series.slices[0].image_type
    special = {v.upper() for v in image_type} & _NOT_A_RECONSTRUCTION
    special |= {v.upper() for text in (*image_type, series.series_description or "") for v in _PROJECTION.findall(text)}
    units = {(s.rescale_type or "").upper() for s in series.slices} & _OTHER_UNITS
    if units:
        return f"its voxels are no HU (RescaleType {', '.join(sorted(units))})"
    if special:
        return f"not a plain reconstruction ({', '.join(sorted(special))})"
    if len(series.slices) < _MINIMUM_SLICES:
        return f"only {len(series.slices)} images, at least {_MINIMUM_SLICES} are needed"
    return _why_wrong_plane(series) or _why_wrong_body_part(series)


def _why_wrong_plane(series: Series) -> str | None:
    orientation = series.slices[len(series.slices) // 2].image_orientation_patient
    if orientation is None:
        return "no ImageOrientationPatient: the position of the images in the patient is unknown"
    try:
        normal = np.abs(slice_normal(orientation))
    except ValueError as error:
        return str(error)
    if np.degrees(np.arccos(min(1.0, normal[2]))) > _MAXIMUM_ANGLE_TO_AXIAL_DEG:
        return f"not axial ({('sagittal', 'coronal', 'oblique')[int(np.argmax(normal))]} images)"
    return None


def _why_wrong_body_part(series: Series) -> str | None:
    """Only what the header says plainly; a wrong "CHEST" is caught by the voxel gate."""
    part = series.body_part_examined or ""
    if _OTHER_BODY_PART.search(part) and not _CHEST.search(_words(series)):
        return f"body part examined is {part}"
    if not part and _OTHER_BODY_PART.search(_words(series)) and not _CHEST.search(_words(series)):
        return "the series description names another body part"
    return None


def _words(series: Series) -> str:
    return " ".join(filter(None, (series.body_part_examined, series.series_description, series.protocol_name)))


def _preference(series: Series) -> tuple[float, ...]:
    """Smaller is better: chest named, wide, breathed in, thin, soft kernel (trusted HU), unenhanced, more slices."""
    thickness = _thickness_mm(series.slices) or 10.0
    return (
        0.0 if _CHEST.search(_words(series)) else 1.0,
        1.0 if _field_of_view_mm(series) < _NARROW_MM else 0.0,
        1.0 if _EXPIRATION.search(series.series_description or "") else 0.0,
        1.0 if is_derived(series) else 0.0,
        0.0 if thickness <= 1.5 else 1.0 if thickness <= 3.0 else 2.0,
        {True: 1.0, None: 0.5, False: 0.0}[is_sharp_kernel(series.convolution_kernel)],
        1.0 if series.contrast_bolus_agent else 0.0,
        thickness,
        -float(len(series.slices)),
        float(series.series_number or 0),
    )


def _field_of_view_mm(series: Series) -> float:
    """The smaller side of its images; infinite without PixelSpacing, as nothing says that they are narrow."""
    first = series.slices[0]
    return float(np.min(np.multiply((first.rows, first.columns), first.pixel_spacing_mm or (math.inf, math.inf))))


def is_derived(series: Series) -> bool:
    """Whether ImageType says that the images were made of others (PS3.3 C.7.6.1.1.2)."""
    return bool(series.slices[0].image_type) and series.slices[0].image_type[0].upper() == "DERIVED"


def is_sharp_kernel(name: str | None) -> bool | None:
    """Whether a kernel is one made for lung or bone, which sharpens noise and with it low HU; None if unknown."""
    stripped = (name or "").strip()
    if _SHARP_KERNEL.search(stripped):
        return True
    return False if _SOFT_KERNEL.search(stripped) else None


def _why_not_its_kernel(series: Series) -> str:
    if is_sharp_kernel(series.convolution_kernel):
        return f"sharp kernel ({series.convolution_kernel}); a softer one gives truer HU"
    return "a kernel that is not known; one that is known to be soft was preferred"


def _why_not_preferred(series: Series, chosen: Series | None) -> str:
    """The first criterion of `_preference` on which `series` lost against `chosen`."""
    if chosen is None:
        return "no series was analysed"
    thickness, best = _thickness_mm(series.slices), _thickness_mm(chosen.slices)
    thicker = f"thicker slices ({thickness or 0:.2f} mm) than the analysed series ({best or 0:.2f} mm)"
    reasons = (
        "the chest is not named as its body part",
        f"a field of view of {_field_of_view_mm(series):.0f} mm; a wider one was preferred",
        "taken after breathing out; one that was not was preferred",
        "derived images; an original reconstruction was preferred",
        thicker,
        _why_not_its_kernel(series),
        "contrast-enhanced; the unenhanced series was preferred",
        thicker,
        f"fewer images ({len(series.slices)}) than the analysed series ({len(chosen.slices)})",
        "equal to the analysed series; the lower series number was taken",
    )
    for reason, mine, theirs in zip(reasons, _preference(series), _preference(chosen), strict=True):
        if mine != theirs:
            return reason
    return reasons[-1]
