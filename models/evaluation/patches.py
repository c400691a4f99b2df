"""The emphysema rule on labelled patches: `python -m models.evaluation.patches EmphysemaPatches.mat --card CARD.md`.

The file is that of the Chest Imaging Platform: `EmphyPatch[0, k]` holds patches of class k as (31, 31, n) HU.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.io import loadmat

from models.evaluation.card import with_interval, write_between
from models.evaluation.statistics import auroc, auroc_interval
from models.manifest import Interval
from models.measure import EMPHYSEMA_HU

CLASSES = ("normal", "paraseptal", "panlobular", "centrilobular mild", "centrilobular moderate", "centrilobular severe")
_NORMAL = CLASSES[0]
_BEGIN = "<!-- begin: written by models.evaluation.patches -->"
_END = "<!-- end: written by models.evaluation.patches -->"


def low_attenuation_percent(file: Path) -> Mapping[str, npt.NDArray[np.float64]]:
    """LAA-950 in % of each patch by class, by the product's threshold."""
    patches = loadmat(file)["EmphyPatch"]
    return {
        name: 100.0 * (np.asarray(patches[0, k]) < EMPHYSEMA_HU).mean(axis=(0, 1)) for k, name in enumerate(CLASSES)
    }


def separation(percent: Mapping[str, npt.NDArray[np.float64]]) -> Mapping[str, tuple[float, Interval]]:
    """AUROC of LAA-950 between normal patches and those of each other class, with its 95 % interval."""
    normal = tuple(percent[_NORMAL])
    areas = {}
    for name in CLASSES[1:]:
        area = auroc(tuple(percent[name]), normal)
        if area is not None:
            areas[name] = (area, auroc_interval(area, len(percent[name]), len(normal)))
    return areas


def table(percent: Mapping[str, npt.NDArray[np.float64]]) -> str:
    """The figures as Markdown."""
    areas = separation(percent)
    lines = ["| patches | n | median LAA-950 (%) | AUROC against normal |", "|---|--:|--:|--:|"]
    for name, values in percent.items():
        shown = with_interval(*areas.get(name, (None, None)))
        lines.append(f"| {name} | {len(values)} | {np.median(values):.1f} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--card", type=Path, help="model card whose table is to be written")
    arguments = parser.parse_args()
    written = table(low_attenuation_percent(arguments.file))
    print(written, end="")
    if arguments.card:
        write_between(_BEGIN, _END, written, arguments.card)


if __name__ == "__main__":
    main()
