"""Records and figures as CSV and JSON."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.evaluation.evidence import evidence_of, withheld
from models.evaluation.record import Answer, Record, SizeClass
from models.evaluation.summary import SUBGROUPS, group_of, reliability, trial
from models.findings import FindingKind
from models.manifest import Interval, ModelManifest, Trial

ANSWERS_NAME, FIGURES_NAME, LESIONS_NAME = "answers.csv", "figures.csv", "measurements.csv"
EVALUATION_NAME = "evaluation.json"

_FIGURE_COLUMNS = (
    *("kind", "size", "data", "subgroup", "positive", "negative", "indeterminate", "not_assessed"),
    *("sensitivity", "sensitivity_low", "sensitivity_high", "specificity", "specificity_low", "specificity_high"),
    *("auroc", "auroc_low", "auroc_high", "quantity", "unit", "pairs", "bias", "lower_limit", "upper_limit"),
    *("lesions", "lesions_found", "false_per_study", "competition_metric", "sensitivity_at_two"),
)


def grouped(records: Sequence[Record]) -> Iterator[tuple[str, str, list[Record]]]:
    """(data, subgroup, studies): each group of studies as a whole, then by how the series were made."""
    for data in dict.fromkeys(map(group_of, records)):
        of_data = [r for r in records if group_of(r) == data]
        yield data, "", of_data
        for name, of in SUBGROUPS.items():
            values = sorted({of(r) for r in of_data})
            if len(values) > 1:
                for value in values:
                    yield data, f"{name}: {value}", [r for r in of_data if of(r) == value]


def _rows(records: Sequence[Record]) -> Iterator[tuple[FindingKind, SizeClass | None, str, Trial]]:
    """(kind, size, subgroup, figures) of every group and subgroup."""
    for data, subgroup, group in grouped(records):
        for kind in FindingKind:
            for size in (None, *SizeClass):
                row = trial(kind, data, group, size)
                if row is not None:
                    yield kind, size, subgroup, row


def write_tables(records: Sequence[Record], manifest: ModelManifest, out: Path) -> None:
    """Answers (a row for study and kind), true and measured numbers, figures by group as CSV; all figures as JSON."""
    evaluated = [r for r in records if r.outcome == "evaluated"]
    with (out / ANSWERS_NAME).open("w", newline="", encoding="utf-8") as sink:
        table = csv.writer(sink)
        table.writerow(
            (
                *("study", "data", "outcome", "problem", "kind", "size", "truth", "presence", "probability", "score"),
                *("dice", "key_slice_right", "lesions", "lesions_found", "false_descriptions", "reason"),
            )
        )
        for record in records:
            start = (record.name, group_of(record), record.outcome, record.problem)
            table.writerows((*start, *_answer_row(answer)) for answer in record.answers)
            if not record.answers:
                table.writerow(start)
    with (out / LESIONS_NAME).open("w", newline="", encoding="utf-8") as sink:
        table = csv.writer(sink)
        table.writerow(("study", "data", "kind", "quantity", "unit", "side", "true", "measured"))
        for record in evaluated:
            for answer in record.answers:
                for pair in () if answer.size else answer.pairs:
                    table.writerow(
                        (
                            *(record.name, group_of(record), answer.kind.value, pair.quantity.value, pair.unit),
                            *(pair.laterality, pair.true, pair.measured),
                        )
                    )
    with (out / FIGURES_NAME).open("w", newline="", encoding="utf-8") as sink:
        table = csv.writer(sink)
        table.writerow(_FIGURE_COLUMNS)
        for kind, size, subgroup, row in _rows(evaluated):
            table.writerows(_figure_rows(kind, size, subgroup, row))
    (out / EVALUATION_NAME).write_text(json.dumps(_document(records, manifest), indent=1) + "\n", encoding="utf-8")


def _answer_row(answer: Answer) -> tuple[object, ...]:
    hits = sum(d.hit for d in answer.descriptions)
    counted = answer.lesions is not None
    return (
        *(answer.kind.value, answer.size, answer.truth, answer.presence.value, answer.probability, answer.score),
        *(answer.dice, answer.key_slice_right, answer.lesions, hits if counted else None),
        *(len(answer.descriptions) - hits if counted else None, answer.reason),
    )


def _figure_rows(kind: FindingKind, size: SizeClass | None, subgroup: str, row: Trial) -> Iterator[tuple[object, ...]]:
    start = (
        *(kind.value, size, row.data, subgroup, row.positive, row.negative, row.indeterminate, row.not_assessed),
        *(row.sensitivity, *_ends(row.sensitivity_interval), row.specificity, *_ends(row.specificity_interval)),
        *(row.auroc, *_ends(row.auroc_interval)),
    )
    lesions = row.lesions
    end: tuple[object, ...] = (None,) * 5
    if lesions:
        end = (
            *(lesions.lesions, lesions.found, lesions.false_per_study),
            *(lesions.competition_metric, lesions.sensitivity_at_two),
        )
    for one in row.agreement:
        yield (*start, one.quantity, one.unit, one.n, one.bias, one.lower, one.upper, *end)
    if not row.agreement:
        yield (*start, *(None,) * 6, *end)


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return interval or (None, None)


def _document(records: Sequence[Record], manifest: ModelManifest) -> dict[str, object]:
    evaluated = [r for r in records if r.outcome == "evaluated"]
    evidence = evidence_of(evaluated)
    figures = [
        {"kind": kind.value, "size": size, "subgroup": subgroup} | row.model_dump(mode="json")
        for kind, size, subgroup, row in _rows(evaluated)
    ]
    calibrated = {kind.value: reliability(kind, evaluated) for kind in FindingKind}
    return {
        "model": {"name": manifest.name, "version": manifest.version, "sha256": manifest.sha256},
        "studies": len(records),
        "not_evaluated": [
            {"study": r.name, "outcome": r.outcome, "problem": r.problem} for r in records if r.outcome != "evaluated"
        ],
        "grades": {kind.value: one.grade.value for kind, one in evidence.items()},
        "withheld_by_these_figures": {kind.value: reason for kind, reason in withheld(evidence).items()},
        "calibration": {
            kind: {"expected_error": one.expected_error, "brier": one.brier, "studies": sum(one.count)}
            for kind, one in calibrated.items()
            if one is not None
        },
        "figures": figures,
    }
