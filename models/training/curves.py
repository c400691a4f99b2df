"""The course of a training run as a picture: `progress.csv` to `progress.svg`."""

import csv
from dataclasses import dataclass
from pathlib import Path

from models.evaluation.plots import Layer, chart

PROGRESS_NAME, CURVES_NAME = "progress.csv", "progress.svg"


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of `progress.csv`: mean losses of the steps since the line before; seconds since the last start."""

    step: int
    seconds: float
    anatomy: float
    lesions: float


def read_progress(run: Path) -> tuple[Progress, ...]:
    """In order of steps; where a resumed run repeated steps, what it wrote last."""
    path = run / PROGRESS_NAME
    if not path.exists():
        return ()
    with path.open(newline="", encoding="utf-8") as lines:
        found = {int(row[0]): Progress(int(row[0]), *map(float, row[1:])) for row in csv.reader(lines) if row}
    return tuple(found[step] for step in sorted(found))


def write_curves(run: Path) -> None:
    """Write `progress.svg` beside `progress.csv`; nothing before there are two lines."""
    progress = read_progress(run)
    if len(progress) < 2:
        return
    highest = max(max(line.anatomy, line.lesions) for line in progress)
    picture = chart(
        f"Loss to step {progress[-1].step}",
        [
            Layer(points=[(line.step, line.anatomy) for line in progress], name="anatomy"),
            Layer(points=[(line.step, line.lesions) for line in progress], name="lesions"),
        ],
        x_label="step",
        y_label="loss",
        x_range=(0.0, float(progress[-1].step)),
        y_range=(0.0, highest * 1.05),
    )
    part = run / f".{CURVES_NAME}.part"
    part.write_text(picture.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1), encoding="utf-8")
    part.replace(run / CURVES_NAME)
