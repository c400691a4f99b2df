"""The tables of the model card, written from the manifest: `python -m models.evaluation.card MODEL_FOLDER CARD.md`."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from models.findings import FindingKind
from models.manifest import Interval, ModelManifest, Trial, load_manifest

_BEGIN = "<!-- begin: written by models.evaluation.card -->"
_END = "<!-- end: written by models.evaluation.card -->"


def write_tables(manifest: ModelManifest, card: Path) -> None:
    """Replace what stands between the two marks of the card. Raises ValueError when the marks are missing."""
    write_between(_BEGIN, _END, tables(manifest), card)


def check_marks(card: Path) -> None:
    """Raises OSError when the card cannot be read, ValueError when it does not hold the marks."""
    _around(_BEGIN, _END, card)


def write_between(begin: str, end: str, written: str, card: Path) -> None:
    """Replace what stands between two marks of a file. Raises ValueError when it does not hold them once each."""
    before, after = _around(begin, end, card)
    card.write_text(f"{before}{begin}\n\n{written}\n{end}{after}")


def _around(begin: str, end: str, card: Path) -> tuple[str, str]:
    text = card.read_text()
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{card.name} does not hold the marks {begin} and {end} once each")
    return text.partition(begin)[0], text.partition(end)[2]


def tables(manifest: ModelManifest) -> str:
    """Evidence, operating points and training data as Markdown."""
    lines = [
        f"Model `{manifest.name}` version {manifest.version}, SHA-256 `{manifest.sha256}`.",
        "",
        "| kind | grade | measured on | positive | negative | sensitivity | specificity | AUROC | undecided "
        "| not assessed | studies |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for kind, evidence in manifest.evidence.items():
        lines += [
            f"| {_titled(kind, size)} | {'-' if size else evidence.grade.value} | {_row(trial)} |"
            for size, trial in evidence.rows
        ]
    lines += _agreement_table(manifest) + _lesion_table(manifest) + _outline_table(manifest) + _slice_table(manifest)
    lines += _calibration_table(manifest)
    lines += [
        "",
        "| kind | voxel threshold | smallest volume (ml) | present from | absent below | temperature | bias |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for kind, point in manifest.operating_points.items():
        lines.append(
            f"| {kind.value} | {point.voxel_threshold:g} | {point.minimum_volume_ml:g} | "
            f"{point.present_probability:.2f} | {point.absent_probability:.2f} | {point.temperature:.2f} | "
            f"{point.bias:.2f} |"
        )
    if manifest.nodules is not None:
        one = manifest.nodules
        lines += [
            "",
            f"The network for nodules: {FindingKind.PULMONARY_NODULE.value} present from {one.present_probability:g}, "
            f"doubtful from {one.absent_probability:g}, from {one.minimum_diameter_mm:g} mm; temperature "
            f"{one.temperature:.2f}, bias {one.bias:.2f}.",
        ]
    lines += ["", "Answers withheld (reported as not assessed), by the figures above:", ""]
    lines += [f"- {kind.value}: {reason}" for kind, reason in manifest.withheld.items()] or ["- none"]
    lines += ["", "| data | licence | use |", "|---|---|---|"]
    lines += [f"| {source.name} | {source.licence} | {source.use} |" for source in manifest.training_data]
    return "\n".join(lines) + "\n"


def _row(trial: Trial) -> str:
    shown = " | ".join(
        with_interval(rate, interval)
        for rate, interval in (
            (trial.sensitivity, trial.sensitivity_interval),
            (trial.specificity, trial.specificity_interval),
            (trial.auroc, trial.auroc_interval),
        )
    )
    counts = f"{trial.positive} | {trial.negative}"
    return f"{trial.data} | {counts} | {shown} | {trial.indeterminate} | {trial.not_assessed} | {trial.note or '-'}"


def with_interval(rate: float | None, interval: Interval | None) -> str:
    """A rate with its 95 % interval, as "0.83 (0.61-0.94)"; "-" where nothing was counted."""
    if rate is None:
        return "-"
    return f"{rate:.2f}" if interval is None else f"{rate:.2f} ({interval[0]:.2f}-{interval[1]:.2f})"


def _titled(kind: FindingKind, size: str) -> str:
    return f"{kind.value}: {size}" if size else kind.value


def _trials(manifest: ModelManifest) -> Iterator[tuple[str, Trial]]:
    for kind, evidence in manifest.evidence.items():
        for size, trial in evidence.rows:
            yield _titled(kind, size), trial


def _table(header: str, alignment: str, rows: list[str]) -> list[str]:
    return ["", header, alignment, *rows] if rows else []


def _agreement_table(manifest: ModelManifest) -> list[str]:
    rows = [
        f"| {name} | {trial.data} | {one.quantity.replace('_', ' ')} ({one.unit}) | {one.n} | {one.bias:+.3g} "
        f"| {one.lower:.3g} to {one.upper:.3g} |"
        for name, trial in _trials(manifest)
        for one in trial.agreement
    ]
    header = "| kind | measured on | measured minus true | n | mean | limits of agreement |"
    return _table(header, "|---|---|---|--:|--:|---|", rows)


def _lesion_table(manifest: ModelManifest) -> list[str]:
    rows = [
        f"| {name} | {trial.data} | {one.found} of {one.lesions} | {one.false_per_study:.2f} | "
        f"{with_interval(one.competition_metric, None)} | {with_interval(one.sensitivity_at_two, None)} |"
        for name, trial in _trials(manifest)
        if (one := trial.lesions) is not None
    ]
    header = (
        "| kind | measured on | lesions found | false ones a study | mean sensitivity at 1/8 to 8 false ones "
        "| sensitivity at 2 |"
    )
    return _table(header, "|---|---|--:|--:|--:|--:|", rows)


def _outline_table(manifest: ModelManifest) -> list[str]:
    rows = [
        f"| {name} | {trial.data} | {one.n} | {one.mean_dice:.2f} | {one.least_dice:.2f} |"
        for name, trial in _trials(manifest)
        if (one := trial.outlines) is not None
    ]
    header = "| kind | measured on | outlines | mean Dice | least Dice |"
    return _table(header, "|---|---|--:|--:|--:|", rows)


def _slice_table(manifest: ModelManifest) -> list[str]:
    rows = [
        f"| {name} | {trial.data} | {one.positive} | {one.negative} | {with_interval(one.sensitivity, None)} "
        f"| {with_interval(one.specificity, None)} |"
        for name, trial in _trials(manifest)
        if (one := trial.slices) is not None
    ]
    header = "| kind | measured on | slices with | slices without | sensitivity | specificity |"
    return _table(header, "|---|---|--:|--:|--:|--:|", rows)


def _calibration_table(manifest: ModelManifest) -> list[str]:
    rows = [
        f"| {name} | {trial.data} | {one.n} | {one.expected_error:.2f} | {one.brier:.3f} |"
        for name, trial in _trials(manifest)
        if (one := trial.calibration) is not None
    ]
    header = "| kind | measured on | studies | expected calibration error | Brier score |"
    return _table(header, "|---|---|--:|--:|--:|", rows)


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("card", type=Path)
    arguments = parser.parse_args()
    write_tables(load_manifest(arguments.model), arguments.card)


if __name__ == "__main__":
    main()
