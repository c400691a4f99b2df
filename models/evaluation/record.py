"""One study's findings beside its truth: what is kept of a study, and what every figure is made of."""

import enum
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from imaging.volume import Volume
from models.evaluation.truth import KindTruth, KnownPresence, StudyTruth, TrueLesion, TrueMeasurement, units_of
from models.findings import (
    LARGEST_NODULE_MM,
    Finding,
    FindingKind,
    Laterality,
    Measurement,
    Presence,
    Quantity,
    Unit,
)

# A description hits a lesion when its centre lies within the lesion's radius (Setio et al., Med Image Anal 2017;42:1);
# a radius below this is less than the grid of a thick series can tell.
_SMALLEST_RADIUS_MM = 4.0
_RADIUS_OF_UNKNOWN_SIZE_MM = 15.0
_SMALLEST_NODULE_MM = 6.0

# What a kind without a probability is ranked by for ROC curves; -1 where low values speak for the finding.
RANKED_BY: Mapping[FindingKind, tuple[Quantity, float]] = {
    FindingKind.CORONARY_ARTERY_CALCIFICATION: (Quantity.AGATSTON_SCORE, 1.0),
    FindingKind.EMPHYSEMA: (Quantity.LOW_ATTENUATION_AREA_950, 1.0),
    FindingKind.AORTIC_DILATATION: (Quantity.MAXIMUM_DIAMETER, 1.0),
    FindingKind.CARDIOMEGALY: (Quantity.CARDIOTHORACIC_RATIO, 1.0),
    FindingKind.PULMONARY_ARTERY_ENLARGEMENT: (Quantity.PULMONARY_TRUNK_DIAMETER, 1.0),
    FindingKind.LOW_BONE_DENSITY: (Quantity.MEAN_ATTENUATION, -1.0),
    FindingKind.HEPATIC_STEATOSIS: (Quantity.MEAN_ATTENUATION, -1.0),
    FindingKind.ARTERIAL_WALL_CALCIFICATION: (Quantity.CALCIUM_VOLUME, 1.0),
}


class SizeClass(enum.StrEnum):
    """What the lesions of a kind are sorted by: the mean of their axial axes, in truth and answer alike.

    A mass is what the report calls one. Below 6 mm a solid nodule needs no follow-up (Fleischner Society, Radiology
    2017;284:228) and belongs to neither.
    """

    NODULE = "nodule of 6 to 30 mm"
    MASS = "mass above 30 mm"


SORTED_BY_SIZE = FindingKind.PULMONARY_NODULE

Match = tuple[Finding, TrueLesion | None]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pair(_Record):
    """A known number and the one that was measured."""

    quantity: Quantity
    unit: str
    true: float
    measured: float
    laterality: Laterality | None = None


class Description(_Record):
    """A lesion that was described: its score, and whether it hit a true one no better one had hit."""

    score: float
    hit: bool


class SliceCounts(_Record):
    """Slices through the lungs: with the finding, those of them that were outlined; without it, those left alone."""

    positive: int
    found: int
    negative: int
    clean: int


class Answer(_Record):
    """What was said about one kind of one study beside what is true; with `size` about its lesions of that size.

    `probability` is calibrated, None where no network stands behind the answer; `score` ranks studies, None where the
    answer has neither a probability nor a measurement to rank by. `dice` where a mask is known; `key_slice_right`
    and `slices` where the positive slices are. `lesions` counts the true lesions, None where they are not known.

    By size, the truth is whether there is a lesion of that size. The answer is present where one of that size was
    described as present, indeterminate where one was described as doubtful or the study was left open without any
    description, else absent; `score` is the highest probability of a described one, 0 without one. `descriptions`
    are those that hit a lesion of that size, whatever size they gave it, and all that hit no lesion at all.
    """

    kind: FindingKind
    size: SizeClass | None = None
    truth: KnownPresence
    presence: Presence
    probability: float | None
    score: float | None
    reason: str | None
    pairs: tuple[Pair, ...] = ()
    dice: float | None = None
    key_slice_right: bool | None = None
    slices: SliceCounts | None = None
    lesions: int | None = None
    descriptions: tuple[Description, ...] = ()


class Acquisition(_Record):
    """How the series was made, as far as headers and voxels tell."""

    slice_spacing_mm: float | None = None
    sharp_kernel: bool | None = None
    contrast: bool | None = None
    manufacturer: str | None = None


class Record(_Record):
    """One study of an evaluation. `key` says of which truth, model and software; `problem` why there are no answers."""

    key: str
    name: str
    source: str
    simulated: bool
    trained_on: bool
    outcome: Literal["evaluated", "refused", "failed"]
    problem: str | None = None
    acquisition: Acquisition = Acquisition()
    seconds: float = 0.0
    answers: tuple[Answer, ...] = ()


def read_answers(
    truth: StudyTruth,
    findings: Sequence[Finding],
    volume: Volume,
    masks: Mapping[FindingKind, npt.NDArray[np.bool_]],
    lung_slices: npt.NDArray[np.bool_],
) -> tuple[Answer, ...]:
    """One answer per kind, then nodules by size. `masks` are true outlines on the volume's grid, (slice, row, column).

    `lung_slices` says of each slice whether it shows lung: others cannot be wrong and are not counted.
    """
    of_kind = {kind: [f for f in findings if f.kind is kind] for kind in FindingKind}
    return (
        *(_answer(k, truth.of(k), found, volume, masks.get(k), lung_slices) for k, found in of_kind.items()),
        *(_answer_by_size(size, truth.of(SORTED_BY_SIZE), of_kind[SORTED_BY_SIZE]) for size in SizeClass),
    )


def _answer(
    kind: FindingKind,
    truth: KindTruth,
    found: Sequence[Finding],
    volume: Volume,
    mask: npt.NDArray[np.bool_] | None,
    lung_slices: npt.NDArray[np.bool_],
) -> Answer:
    study = next(f for f in found if f.lesion is None)
    parts = [f for f in found if f.lesion is not None]
    lesions = None
    if truth.lesions or truth.presence == "absent":
        lesions = sum(lesion.counts for lesion in truth.lesions)
    matches = _matches(parts, truth.lesions) if lesions is not None else []
    matches = [(part, lesion) for part, lesion in matches if lesion is None or lesion.counts]
    right = slices = None
    if truth.positive_slices and study.region is not None:
        right = _from_feet(study.region.key_slice, volume) in truth.positive_slices
    if truth.positive_slices and study.presence is not Presence.NOT_ASSESSED:
        slices = _slices(parts or [study], truth.positive_slices, volume, lung_slices)
    known = truth.measurements
    if mask is not None and not any(m.quantity is Quantity.VOLUME for m in known):
        outlined_ml = float(mask.sum()) * volume.geometry.voxel_volume_mm3 / 1000
        known = (*known, TrueMeasurement(quantity=Quantity.VOLUME, value=outlined_ml, unit="ml"))
    return Answer(
        kind=kind,
        truth=truth.presence,
        presence=study.presence,
        probability=study.probability,
        score=_score(study),
        reason=study.reason,
        pairs=(*_pairs(study, parts, known), *_axes(matches)),
        dice=None if mask is None else _dice(parts or [study], mask),
        key_slice_right=right,
        slices=slices,
        lesions=lesions,
        descriptions=_descriptions(matches),
    )


def _answer_by_size(size: SizeClass, truth: KindTruth, found: Sequence[Finding]) -> Answer:
    study = next(f for f in found if f.lesion is None)
    parts = [f for f in found if f.lesion is not None]
    matches = _matches(parts, truth.lesions)
    beside = [part for part, lesion in matches if lesion is not None and not lesion.counts]
    parts = [part for part in parts if part not in beside]
    described = [f for f in parts if _size_class(_mean_diameter_mm(f)) is size]
    presence = study.presence
    if parts or presence is Presence.PRESENT:
        said = {f.presence for f in described}
        presence = next((p for p in (Presence.PRESENT, Presence.INDETERMINATE) if p in said), Presence.ABSENT)
    score = max((f.probability or 0.0 for f in described), default=0.0)
    wanted = [l for l in truth.lesions if l.counts and _size_class(l.mean_diameter_mm) is size]
    lesions = None
    if truth.presence == "absent" or (truth.lesions and all(l.mean_diameter_mm for l in truth.lesions)):
        lesions = len(wanted)
    matches = [match for match in matches if lesions is not None and (match[1] is None or match[1] in wanted)]
    return Answer(
        kind=study.kind,
        size=size,
        truth=_truth_by_size(size, truth),
        presence=presence,
        probability=None,
        score=None if presence is Presence.NOT_ASSESSED else score,
        reason=study.reason,
        pairs=_axes(matches),
        lesions=lesions,
        descriptions=_descriptions(matches),
    )


def _truth_by_size(size: SizeClass, truth: KindTruth) -> KnownPresence:
    """Unknown where no lesion is named and none ruled out, or one that may be of this size does not count."""
    if truth.presence == "absent" or _is_ruled_out(size, truth.none_above_mm):
        return "absent"
    if any(l.counts and _size_class(l.mean_diameter_mm) is size for l in truth.lesions):
        return "present"
    return "unknown" if not truth.lesions or any(_may_be(size, l) for l in truth.lesions) else "absent"


def _is_ruled_out(size: SizeClass, none_above_mm: float | None) -> bool:
    if none_above_mm is None:
        return False
    largest = _size_class(none_above_mm)
    return largest is None or (size is SizeClass.MASS and largest is SizeClass.NODULE)


def _may_be(size: SizeClass, lesion: TrueLesion) -> bool:
    mean_mm = lesion.mean_diameter_mm
    if mean_mm is None or _size_class(mean_mm) is size:
        return True
    return size is SizeClass.NODULE and mean_mm < _SMALLEST_NODULE_MM


def _size_class(mean_mm: float | None) -> SizeClass | None:
    if mean_mm is None or mean_mm < _SMALLEST_NODULE_MM:
        return None
    return SizeClass.MASS if mean_mm > LARGEST_NODULE_MM else SizeClass.NODULE


def _mean_diameter_mm(part: Finding) -> float | None:
    axes = [m.value for m in part.measurements if m.quantity in (Quantity.LONG_AXIS, Quantity.SHORT_AXIS)]
    return sum(axes) / len(axes) if axes else None


def _score(study: Finding) -> float | None:
    if study.probability is not None:
        return study.probability
    if study.kind not in RANKED_BY:
        return None
    quantity, sign = RANKED_BY[study.kind]
    values = [sign * m.value for m in study.measurements if m.quantity is quantity and m.laterality in _WHOLE]
    return max(values, default=None)


_WHOLE = (None, Laterality.BILATERAL)


def _pairs(study: Finding, parts: Sequence[Finding], known: Sequence[TrueMeasurement]) -> list[Pair]:
    """Known numbers that were measured, whatever was concluded; a lesion that was not outlined is missed, not 0."""
    pairs = []
    for true in known if study.presence is not Presence.NOT_ASSESSED else ():
        measured = _measured(true, study, parts)
        if measured is not None:
            value, unit = measured
            pairs.append(
                Pair(
                    quantity=true.quantity,
                    unit=unit,
                    true=true.value_in(unit),
                    measured=value,
                    laterality=true.laterality,
                )
            )
    return pairs


def _measured(true: TrueMeasurement, study: Finding, parts: Sequence[Finding]) -> tuple[float, Unit] | None:
    """Value and unit of what was measured."""
    units = units_of(true.quantity)

    def wanted(finding: Finding, side: Laterality | None) -> list[Measurement]:
        return [
            m
            for m in finding.measurements
            if m.quantity is true.quantity and m.unit in units and (m.laterality or side) in sides
        ]

    of_a_side = true.laterality not in _WHOLE
    sides = (true.laterality,) if of_a_side else _WHOLE
    whole = wanted(study, None)
    if whole:
        return whole[0].value, whole[0].unit
    # What may be nothing is described beside what is something, and no part of it.
    sure = [part for part in parts if part.presence is Presence.PRESENT] or parts
    found = [m for part in sure for m in wanted(part, part.laterality if of_a_side else None)]
    if not found:
        return None
    values = [m.value for m in found if m.unit == found[0].unit]
    return sum(values) if true.quantity is Quantity.VOLUME else max(values), found[0].unit


def _matches(parts: Sequence[Finding], lesions: Sequence[TrueLesion]) -> list[Match]:
    """Each description with the lesion it hit, None where it hit nothing.

    From the surest on, each may take the nearest lesion left. A second hit counts for nothing and is left out.
    """
    left = list(range(len(lesions)))
    matches: list[Match] = []
    for part in sorted(parts, key=lambda p: -(p.probability or 0.0)):
        if part.region is None:
            continue
        centre = part.region.centre_mm
        reached = {
            index: distance
            for index, lesion in enumerate(lesions)
            if (distance := math.dist(centre, lesion.centre_lps_mm)) <= _radius_mm(lesion)
        }
        free = [index for index in sorted(reached, key=reached.__getitem__) if index in left]
        if reached and not free:
            continue
        if free:
            left.remove(free[0])
        matches.append((part, lesions[free[0]] if free else None))
    return matches


def _descriptions(matches: Sequence[Match]) -> tuple[Description, ...]:
    return tuple(Description(score=part.probability or 0.0, hit=lesion is not None) for part, lesion in matches)


def _axes(matches: Sequence[Match]) -> tuple[Pair, ...]:
    return tuple(pair for part, lesion in matches if lesion is not None for pair in _axis(part, lesion))


def _radius_mm(lesion: TrueLesion) -> float:
    if lesion.diameter_mm is None:
        return _RADIUS_OF_UNKNOWN_SIZE_MM
    return max(lesion.diameter_mm / 2, _SMALLEST_RADIUS_MM)


def _axis(part: Finding, lesion: TrueLesion) -> list[Pair]:
    if lesion.diameter_mm is None:
        return []
    return [
        Pair(quantity=m.quantity, unit=m.unit, true=lesion.diameter_mm, measured=m.value, laterality=lesion.laterality)
        for m in part.measurements
        if m.quantity is Quantity.LONG_AXIS
    ]


def _dice(parts: Sequence[Finding], mask: npt.NDArray[np.bool_]) -> float | None:
    found = np.zeros(mask.shape, dtype=bool)
    for part in parts:
        if part.region is not None:
            found[part.region.box] |= part.region.mask
    total = int(mask.sum()) + int(found.sum())
    return 2.0 * int((mask & found).sum()) / total if total else None


def _slices(
    parts: Sequence[Finding],
    positive_slices: Sequence[int],
    volume: Volume,
    lung_slices: npt.NDArray[np.bool_],
) -> SliceCounts:
    count = volume.hu.shape[0]
    outlined = np.zeros(count, dtype=bool)
    for part in parts:
        if part.region is not None:
            outlined[part.region.box[0]] |= part.region.mask.any(axis=(1, 2))
    positive = np.isin([_from_feet(n, volume) for n in range(count)], positive_slices)
    with_finding, without = positive & lung_slices, ~positive & lung_slices
    return SliceCounts(
        positive=int(with_finding.sum()),
        found=int((with_finding & outlined).sum()),
        negative=int(without.sum()),
        clean=int((without & ~outlined).sum()),
    )


def _from_feet(index: int, volume: Volume) -> int:
    """The slice's number counted from the lowest one."""
    last = volume.hu.shape[0] - 1
    low, high = (float(volume.geometry.index_to_patient((z, 0, 0))[2]) for z in (0, last))
    return index if low <= high else last - index
