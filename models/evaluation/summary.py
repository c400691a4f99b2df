"""Records to figures: one `Trial` for each kind and group of studies, and the data behind the plots."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from models.evaluation.record import Answer, Record, SizeClass
from models.evaluation.statistics import (
    Calibration,
    Froc,
    auroc,
    auroc_interval,
    bland_altman,
    calibration,
    froc,
    roc_points,
    wilson,
)
from models.findings import FindingKind, Presence
from models.manifest import Agreement, CalibrationTrial, LesionTrial, OutlineTrial, SliceTrial, Trial

REAL_UNSEEN = "real CT, not trained on"
REAL_SEEN = "real CT, trained on as background"


def group_of(record: Record) -> str:
    """The row of evidence a study belongs to."""
    if record.simulated:
        return record.source
    return REAL_SEEN if record.trained_on else REAL_UNSEEN


# What a study is grouped by in the tables of subgroups, and how the group is called.
SUBGROUPS: Mapping[str, Callable[[Record], str]] = {
    "slice spacing": lambda r: _thickness(r.acquisition.slice_spacing_mm),
    "kernel": lambda r: {True: "sharp", False: "soft", None: "unknown"}[r.acquisition.sharp_kernel],
    "contrast": lambda r: {True: "with contrast", False: "without", None: "unknown"}[r.acquisition.contrast],
    "manufacturer": lambda r: r.acquisition.manufacturer or "unknown",
}


def _thickness(spacing_mm: float | None) -> str:
    if spacing_mm is None:
        return "unknown"
    # A mean of steps of exactly 1.5 mm may be 1.5000000000000002 mm.
    rounded_mm = round(spacing_mm, 2)
    if rounded_mm <= 1.5:
        return "up to 1.5 mm"
    return "over 1.5 to 3 mm" if rounded_mm <= 3.0 else "over 3 mm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Scores of the answered studies with and without a finding."""

    positive: tuple[float, ...]
    negative: tuple[float, ...]


def known_answers(kind: FindingKind, records: Iterable[Record], size: SizeClass | None = None) -> list[Answer]:
    """The answers about `kind`, or its lesions of one size, where the truth is known; assessed or not."""
    return [a for r in records for a in r.answers if a.kind is kind and a.size is size and a.truth != "unknown"]


def trial(kind: FindingKind, data: str, records: Sequence[Record], size: SizeClass | None = None) -> Trial | None:
    """The figures of one kind over one group of studies; None where no study with known truth got an answer.

    With `size`, of its lesions of that size (see `Answer`).

    Sensitivity is the share of positives that were called present, specificity the share of negatives that were not:
    an indeterminate answer is neither a find nor a false alarm.
    """
    known = known_answers(kind, records, size)
    given = [a for a in known if a.presence is not Presence.NOT_ASSESSED]
    if not given:
        return None
    positive = [a for a in given if a.truth == "present"]
    negative = [a for a in given if a.truth == "absent"]
    hits = sum(a.presence is Presence.PRESENT for a in positive)
    clean = sum(a.presence is not Presence.PRESENT for a in negative)
    scored = scores(kind, records, size)
    area = auroc(scored.positive, scored.negative)
    return Trial(
        data=data,
        simulated=all(r.simulated for r in records),
        positive=len(positive),
        negative=len(negative),
        sensitivity=hits / len(positive) if positive else None,
        specificity=clean / len(negative) if negative else None,
        auroc=area,
        sensitivity_interval=wilson(hits, len(positive)),
        specificity_interval=wilson(clean, len(negative)),
        auroc_interval=None if area is None else auroc_interval(area, len(scored.positive), len(scored.negative)),
        indeterminate=sum(a.presence is Presence.INDETERMINATE for a in given),
        indeterminate_positive=sum(a.presence is Presence.INDETERMINATE for a in positive),
        not_assessed=len(known) - len(given),
        agreement=agreements(given),
        lesions=_lesion_trial(given),
        outlines=_outline_trial(given),
        slices=_slice_trial(given),
        calibration=None if size else _calibration_trial(kind, records),
        note=_named(kind, records, size),
    )


def scores(kind: FindingKind, records: Iterable[Record], size: SizeClass | None = None) -> Scored:
    """What ranks the studies: probability or measurement where every answer has one, else the answer itself."""
    given = [a for a in known_answers(kind, records, size) if a.presence is not Presence.NOT_ASSESSED]
    numeric = all(a.score is not None for a in given)
    order = {Presence.ABSENT: 0.0, Presence.INDETERMINATE: 0.5, Presence.PRESENT: 1.0}
    ranked = [(a.truth, a.score if numeric and a.score is not None else order[a.presence]) for a in given]
    return Scored(
        positive=tuple(score for truth, score in ranked if truth == "present"),
        negative=tuple(score for truth, score in ranked if truth == "absent"),
    )


def roc(kind: FindingKind, records: Sequence[Record]) -> list[tuple[float, float]]:
    """Points of the ROC curve; empty where it has none."""
    scored = scores(kind, records)
    return roc_points(scored.positive, scored.negative) if scored.positive and scored.negative else []


def reliability(kind: FindingKind, records: Sequence[Record]) -> Calibration | None:
    """Calibration of the probabilities; None where the kind has none."""
    known = known_answers(kind, records)
    given = [a for a in known if a.probability is not None and a.presence is not Presence.NOT_ASSESSED]
    return calibration([a.probability or 0.0 for a in given], [a.truth == "present" for a in given])


def agreements(answers: Iterable[Answer]) -> tuple[Agreement, ...]:
    """Bland-Altman figures of every quantity that was both known and measured in at least two studies or lesions."""
    found = []
    for (quantity, unit), pairs in pairs_by_quantity(answers).items():
        figures = bland_altman(*zip(*pairs, strict=True))
        if figures is not None:
            found.append(
                Agreement(
                    quantity=quantity,
                    unit=unit,
                    n=figures.n,
                    bias=figures.bias,
                    lower=figures.lower,
                    upper=figures.upper,
                )
            )
    return tuple(found)


def pairs_by_quantity(answers: Iterable[Answer]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(true, measured) values by quantity and unit."""
    grouped: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for answer in answers:
        for pair in answer.pairs:
            grouped.setdefault((pair.quantity.value, pair.unit), []).append((pair.true, pair.measured))
    return grouped


def lesion_curve(answers: Iterable[Answer]) -> Froc | None:
    """FROC over the studies whose lesions are all known; None without a lesion in them."""
    known = [a for a in answers if a.lesions is not None and a.presence is not Presence.NOT_ASSESSED]
    lesions = sum(a.lesions or 0 for a in known)
    if not lesions:
        return None
    described = [d for a in known for d in a.descriptions]
    return froc([d.score for d in described if d.hit], [d.score for d in described if not d.hit], lesions, len(known))


def _lesion_trial(answers: Sequence[Answer]) -> LesionTrial | None:
    curve = lesion_curve(answers)
    if curve is None:
        return None
    known = [a for a in answers if a.lesions is not None]
    described = [d for a in known for d in a.descriptions]
    return LesionTrial(
        lesions=sum(a.lesions or 0 for a in known),
        found=sum(d.hit for d in described),
        false_per_study=sum(not d.hit for d in described) / len(known),
        competition_metric=curve.competition_metric,
        sensitivity_at_two=curve.sensitivity_at(2.0),
    )


def _outline_trial(answers: Iterable[Answer]) -> OutlineTrial | None:
    dice = [a.dice for a in answers if a.dice is not None and a.truth == "present"]
    return OutlineTrial(n=len(dice), mean_dice=sum(dice) / len(dice), least_dice=min(dice)) if dice else None


def _slice_trial(answers: Iterable[Answer]) -> SliceTrial | None:
    counted = [a.slices for a in answers if a.slices is not None]
    if not counted:
        return None
    positive, negative = sum(c.positive for c in counted), sum(c.negative for c in counted)
    return SliceTrial(
        positive=positive,
        negative=negative,
        sensitivity=sum(c.found for c in counted) / positive if positive else None,
        specificity=sum(c.clean for c in counted) / negative if negative else None,
    )


def _calibration_trial(kind: FindingKind, records: Sequence[Record]) -> CalibrationTrial | None:
    figures = reliability(kind, records)
    if figures is None:
        return None
    return CalibrationTrial(n=sum(figures.count), expected_error=figures.expected_error, brier=figures.brier)


def _named(kind: FindingKind, records: Iterable[Record], size: SizeClass | None) -> str:
    """Which real studies stand behind the row; simulated ones are too many to name."""
    marks = {"present": "+", "absent": "-"}
    return ", ".join(
        f"{r.name} {marks[a.truth]}"
        for r in records
        if not r.simulated
        for a in r.answers
        if a.kind is kind and a.size is size and a.truth in marks and a.presence is not Presence.NOT_ASSESSED
    )
