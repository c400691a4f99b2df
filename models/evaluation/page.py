"""The page of an evaluation: tables and charts of every kind in one HTML file that needs nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from models.evaluation.card import with_interval
from models.evaluation.evidence import evidence_of, withheld
from models.evaluation.plots import Layer, chart, spread
from models.evaluation.record import Record
from models.evaluation.summary import (
    group_of,
    known_answers,
    lesion_curve,
    pairs_by_quantity,
    reliability,
    roc,
    trial,
)
from models.evaluation.tables import grouped
from models.findings import FindingKind
from models.manifest import Agreement, LesionTrial, ModelManifest, Trial

PAGE_NAME = "evaluation.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class KindSection:
    """What the page shows of one kind."""

    title: str
    grade: str
    withheld: str | None
    rows: tuple[tuple[str, Trial], ...]
    agreement: tuple[tuple[str, Agreement], ...]
    lesions: tuple[tuple[str, LesionTrial], ...]
    subgroups: tuple[tuple[str, Trial], ...]
    charts: tuple[str, ...]


def write_page(records: Sequence[Record], manifest: ModelManifest, out: Path) -> None:
    """Write `evaluation.html` into `out`."""
    evaluated = [r for r in records if r.outcome == "evaluated"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("page.html").render(
        model=manifest,
        studies=len(records),
        evaluated=len(evaluated),
        problems=[r for r in records if r.outcome != "evaluated"],
        kinds=_sections(evaluated),
        with_interval=with_interval,
    )
    (out / PAGE_NAME).write_text(page, encoding="utf-8")


def _sections(records: Sequence[Record]) -> list[KindSection]:
    evidence = evidence_of(records)
    reasons = withheld(evidence)
    sections = []
    for kind, one in evidence.items():
        subgroups = [
            (name, row)
            for data, name, group in grouped(records)
            if name and (row := trial(kind, data, group)) is not None and row.positive + row.negative
        ]
        rows = tuple((f"{size}, {row.data}" if size else row.data, row) for size, row in one.rows)
        sections.append(
            KindSection(
                title=kind.value.replace("_", " ").capitalize(),
                grade=one.grade.value,
                withheld=reasons.get(kind),
                rows=rows,
                agreement=tuple((name, agreement) for name, row in rows for agreement in row.agreement),
                lesions=tuple((name, row.lesions) for name, row in rows if row.lesions),
                subgroups=tuple(subgroups),
                charts=tuple(_charts(kind, records)),
            )
        )
    return sections


def _charts(kind: FindingKind, records: Sequence[Record]) -> list[str]:
    groups = {data: [r for r in records if group_of(r) == data] for data in dict.fromkeys(map(group_of, records))}
    charts = []
    curves = [Layer(points=points, name=data) for data, group in groups.items() if (points := roc(kind, group))]
    if curves:
        charts.append(
            chart(
                "ROC",
                curves,
                x_label="1 - specificity",
                y_label="sensitivity",
                x_range=(0, 1),
                y_range=(0, 1),
                diagonal=True,
            )
        )
    frocs = {data: lesion_curve(known_answers(kind, group)) for data, group in groups.items()}
    steps = [
        Layer(points=tuple(zip(c.false_per_scan, c.sensitivity, strict=True)), name=data, style="steps")
        for data, c in frocs.items()
        if c is not None and c.false_per_scan
    ]
    if steps:
        highest = max(x for layer in steps for x, _ in layer.points)
        charts.append(
            chart(
                "FROC",
                steps,
                x_label="false descriptions a study",
                y_label="lesions found",
                x_range=(0, max(highest * 1.05, 1)),
                y_range=(0, 1),
            )
        )
    found = reliability(kind, records)
    if found is not None:
        charts.append(
            chart(
                f"Calibration (ECE {found.expected_error:.2f})",
                [Layer(points=tuple(zip(found.predicted, found.observed, strict=True)), style="dots")],
                x_label="probability",
                y_label="share present",
                x_range=(0, 1),
                y_range=(0, 1),
                diagonal=True,
            )
        )
    return charts + _agreement_charts(kind, records)


def _agreement_charts(kind: FindingKind, records: Sequence[Record]) -> list[str]:
    answers = known_answers(kind, records)
    limits = {(t.quantity, t.unit): t for row in [trial(kind, "all", records)] if row for t in row.agreement}
    charts = []
    for (quantity, unit), pairs in pairs_by_quantity(answers).items():
        one = limits.get((quantity, unit))
        if one is None:
            continue
        points = [((true + measured) / 2, measured - true) for true, measured in pairs]
        charts.append(
            chart(
                f"{quantity.replace('_', ' ').capitalize()} ({unit})",
                [Layer(points=points, style="dots")],
                x_label="mean of true and measured",
                y_label="measured - true",
                x_range=spread([x for x, _ in points]),
                y_range=spread([one.lower, one.upper, *(y for _, y in points)]),
                levels=(one.lower, one.bias, one.upper),
            )
        )
    return charts
