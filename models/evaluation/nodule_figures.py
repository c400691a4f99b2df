"""The figures of `models.training.nodules_evaluate` in the model card.

`python -m models.evaluation.nodule_figures nodules.json --card CARD.md`
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.evaluation.card import with_interval, write_between
from models.evaluation.statistics import wilson

_BEGIN = "<!-- begin: written by models.evaluation.nodule_figures -->"
_END = "<!-- end: written by models.evaluation.nodule_figures -->"
_MOST_FALSE_PER_SCAN = (2.0, 1.0, 0.5, 0.25, 0.125)


def table(figures: Mapping[str, Any]) -> str:
    """The figures of `nodules.json` as Markdown: nodules of 6 mm and more, by probability and by type."""
    network = figures["network"]
    lines = [
        f"Network SHA-256 `{network['sha256']}`; described as present from {network['present_probability']:g} up.",
        "",
        "| nodules of 6 mm and more | described from | found | sensitivity | false ones a scan |",
        "|---|--:|--:|--:|--:|",
        *_curve(figures),
        "",
        "| type, described as present | found | sensitivity |",
        "|---|--:|--:|",
    ]
    lines += [f"| {kind.replace('_', ' ')} | {_found(one)} |" for kind, one in figures["by_type"].items()]
    diameter = figures["diameter_mm"]
    lines += [
        "",
        f"Mean axial diameter, measured minus true, n = {diameter['n']}: {diameter['bias']:+.2f} mm, standard "
        f"deviation {diameter['standard_deviation']:.2f} mm; {100 * diameter['within_2_mm']:.0f} % within 2 mm.",
    ]
    return "\n".join(lines) + "\n"


def _curve(figures: Mapping[str, Any]) -> Iterator[str]:
    """The most that is found with no more false ones a scan than each of the limits, then what is called present."""
    for most in _MOST_FALSE_PER_SCAN:
        reached = [point for point in figures["simulation"] if point["false_per_scan"] <= most]
        if reached:
            yield _point(f"at most {most:g} false ones a scan", max(reached, key=lambda point: point["found"]))
    yield _point("described as present", figures["operating_point"]["from_6_mm"])


def _point(name: str, point: Mapping[str, Any]) -> str:
    return f"| {name} | {point['least_probability']:g} | {_found(point)} | {point['false_per_scan']:g} |"


def _found(one: Mapping[str, Any]) -> str:
    found, nodules = one["found"], one["nodules"]
    rate = found / nodules if nodules else None
    return f"{found} of {nodules} | {with_interval(rate, wilson(found, nodules))}"


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--card", type=Path, help="model card whose table is to be written")
    arguments = parser.parse_args()
    written = table(json.loads(arguments.figures.read_text()))
    print(written, end="")
    if arguments.card:
        write_between(_BEGIN, _END, written, arguments.card)


if __name__ == "__main__":
    main()
