"""Figures to grades: what an evaluation says about a model, and which answers its evidence forbids."""

from collections.abc import Iterable, Mapping, Sequence

from models.evaluation.record import Record, SizeClass
from models.evaluation.summary import REAL_UNSEEN, group_of, trial
from models.findings import EvidenceGrade, FindingKind
from models.manifest import Evidence, ModelManifest, Trial
from models.measured import RULES

GRADE_A_STUDIES = 10
# Below these, pooled over all trials, an answer would mislead more than it helps. What is left open misleads nobody,
# but an answer that mostly leaves open is none.
_LEAST_SENSITIVITY = 0.5
_LEAST_FOUND = 1 / 3
_LEAST_SPECIFICITY = 0.8
_LEAST_POSITIVES = 3


def grade(trials: Sequence[Trial]) -> EvidenceGrade:
    """A: ten labelled real studies with and ten without the finding, none trained on; B: one of each; else C."""
    real = [t for t in trials if not t.simulated and t.data == REAL_UNSEEN]
    fewest = min(sum(t.positive for t in real), sum(t.negative for t in real))
    if fewest >= GRADE_A_STUDIES:
        return EvidenceGrade.A
    return EvidenceGrade.B if fewest else EvidenceGrade.C


def withheld(evidence: Mapping[FindingKind, Evidence]) -> dict[FindingKind, str]:
    """The kinds whose own evidence forbids an answer, each with the figures as its reason.

    Real studies also count by themselves where there are enough. Where they were tried with and without the finding
    (grade A or B) they alone decide: simulation does not outvote them.
    """
    reasons = {}
    for kind, one in evidence.items():
        positive = sum(t.positive for t in one.trials)
        if positive < _LEAST_POSITIVES:
            reasons[kind] = f"this model was tried on {positive} {'study' if positive == 1 else 'studies'} with it only"
            continue
        real = tuple(t for t in one.trials if not t.simulated)
        simulation = _against(one.trials, "") if one.grade is EvidenceGrade.C else None
        reason = simulation or _against(real, "real ")
        if reason is not None:
            reasons[kind] = reason
    return reasons


def _against(trials: Sequence[Trial], which: str) -> str | None:
    """What the pooled counts of `trials` say against an answer; None where nothing does or they are too few."""
    positive = sum(t.positive for t in trials)
    negative = sum(t.negative for t in trials)
    found = round(sum(t.positive * (t.sensitivity or 0.0) for t in trials))
    cleared = round(sum(t.negative * (t.specificity or 0.0) for t in trials))
    decided = positive - sum(t.indeterminate_positive for t in trials)
    too_few = found < _LEAST_SENSITIVITY * decided or found < _LEAST_FOUND * positive
    if positive >= _LEAST_POSITIVES and too_few:
        return f"this model found it in {found} of {positive} {which}studies with it: too few to answer"
    if (not which or negative >= _LEAST_POSITIVES) and cleared < _LEAST_SPECIFICITY * negative:
        return f"this model named it in {negative - cleared} of {negative} {which}studies without it"
    return None


def evidence_of(records: Sequence[Record]) -> dict[FindingKind, Evidence]:
    """The measured rows of every kind that was answered at least once, and the grades that follow from them.

    Rows by size stand beside them: grades and what is withheld follow from the kind as a whole.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(group_of(record), []).append(record)
    found = {}
    for kind in FindingKind:
        trials = _trials(kind, groups, None)
        if trials:
            by_size = {size.value: rows for size in SizeClass if (rows := _trials(kind, groups, size))}
            found[kind] = Evidence(grade=grade(trials), trials=trials, by_size=by_size)
    return found


def _trials(kind: FindingKind, groups: Mapping[str, Sequence[Record]], size: SizeClass | None) -> tuple[Trial, ...]:
    return tuple(t for data, group in groups.items() if (t := trial(kind, data, group, size)) is not None)


def with_evidence(manifest: ModelManifest, records: Sequence[Record]) -> ModelManifest:
    """The manifest with the evidence, grades and withheld kinds that follow from `records`, and nothing older.

    A kind that was not tried is withheld, those that are measured by rule too: their outlines are this model's.
    """
    evidence = completed(manifest.lesions, evidence_of(records))
    return ModelManifest.model_validate(
        manifest.model_dump() | {"evidence": evidence, "withheld": withheld(evidence)},
    )


def completed(lesions: Iterable[FindingKind], evidence: Mapping[FindingKind, Evidence]) -> dict[FindingKind, Evidence]:
    """The evidence, and that there is none of the other kinds that a model with these lesions could answer."""
    answered = {*lesions, FindingKind.EMPHYSEMA, *RULES, *evidence}
    nothing = Evidence(grade=EvidenceGrade.C, trials=())
    return {kind: evidence.get(kind, nothing) for kind in FindingKind if kind in answered}
