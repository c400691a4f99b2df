"""The course of a training run as a picture: `progress.csv` to `progress.svg`."""

import os
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
    """In order of steps; where a resumed run repeated steps, what it wrote last. Torn lines are left out."""
    path = run / PROGRESS_NAME
    if not path.exists():
        return ()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    found = {line.step: line for line in map(_whole, lines) if line is not None}
    return tuple(found[step] for step in sorted(found))


def append_progress(run: Path, line: Progress) -> None:
    """Add a line to `progress.csv`, in the place of one that a run was stopped in."""
    path = run / PROGRESS_NAME
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line.step},{line.seconds:.0f},{line.anatomy:.4f},{line.lesions:.4f}\n")


def _whole(line: str) -> Progress | None:
    if not line.endswith("\n"):
        return None
    try:
        step, seconds, anatomy, lesions = line.split(",")
        return Progress(int(step), float(seconds), float(anatomy), float(lesions))
    except ValueError:
        return None


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
