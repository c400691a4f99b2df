"""What is known about each answer of a model, for the command line and the evidence page."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dicom_gateway.report.wording import KIND_NAMES, QUANTITY_NAMES
from models.evaluation.card import with_interval
from models.findings import FindingKind, Quantity
from models.manifest import Agreement, Evidence, LesionTrial, ModelManifest, SliceTrial, Trial

KindStatus = Literal["answered", "withheld", "not assessed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRow:
    """One trial with its rates in words; `data` says what was measured on, and of which size of lesions."""

    data: str
    trial: Trial
    sensitivity: str
    specificity: str
    auroc: str
    details: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKind:
    """One kind: whether the model answers it and why not, the grade of its evidence and the trials behind it."""

    kind: FindingKind
    title: str
    status: KindStatus
    grade: str | None
    reason: str | None
    rows: tuple[KnownRow, ...]


def known_about(manifest: ModelManifest) -> tuple[KnownKind, ...]:
    """Every kind in the order of the report. A kind that is measured by rule is answered once it was tried."""
    return tuple(_known(kind, manifest) for kind in FindingKind)


def _known(kind: FindingKind, manifest: ModelManifest) -> KnownKind:
    evidence = manifest.evidence.get(kind)
    reason = manifest.withheld.get(kind)
    status: KindStatus = "withheld" if reason else "answered"
    if evidence is None:
        status, reason = "not assessed", manifest.not_assessed.get(kind)
    return KnownKind(
        kind=kind,
        title=KIND_NAMES[kind],
        status=status,
        grade=_grade(evidence),
        reason=reason,
        rows=tuple(_row(size, trial) for size, trial in evidence.rows) if evidence else (),
    )


def _grade(evidence: Evidence | None) -> str | None:
    return evidence.grade.value if evidence else None


def _row(size: str, trial: Trial) -> KnownRow:
    return KnownRow(
        data=f"{size}, {trial.data}" if size else trial.data,
        trial=trial,
        sensitivity=with_interval(trial.sensitivity, trial.sensitivity_interval),
        specificity=with_interval(trial.specificity, trial.specificity_interval),
        auroc=with_interval(trial.auroc, trial.auroc_interval),
        details=tuple(_details(trial)),
    )


def _details(trial: Trial) -> Iterator[str]:
    yield from map(_agreement, trial.agreement)
    if trial.lesions:
        yield _lesions(trial.lesions)
    if trial.outlines:
        outlines = trial.outlines
        yield f"outlines: mean Dice {outlines.mean_dice:.2f}, least {outlines.least_dice:.2f}, n = {outlines.n}"
    if trial.slices:
        yield _slices(trial.slices)
    if trial.calibration:
        one = trial.calibration
        yield f"calibration: expected error {one.expected_error:.2f}, Brier score {one.brier:.3f}, n = {one.n}"


def _lesions(one: LesionTrial) -> str:
    found = f"{one.found} of {one.lesions} lesions found, {one.false_per_study:.1f} false ones a study"
    at_two = one.sensitivity_at_two
    return found if at_two is None else f"{found}, sensitivity {at_two:.2f} at 2 false ones"


def _slices(one: SliceTrial) -> str:
    sensitivity, specificity = (with_interval(rate, None) for rate in (one.sensitivity, one.specificity))
    counts = f"{one.positive} slices with and {one.negative} without"
    return f"{counts}: sensitivity {sensitivity}, specificity {specificity}"


def _agreement(one: Agreement) -> str:
    name = QUANTITY_NAMES[Quantity(one.quantity)] if one.quantity in list(Quantity) else one.quantity
    unit = {"[hnsf'U]": "HU", "{ratio}": "", "1": ""}.get(one.unit, one.unit)
    return f"{name}: {one.bias:+.3g} {unit} (limits {one.lower:.3g} to {one.upper:.3g}, n = {one.n})".replace("  ", " ")
