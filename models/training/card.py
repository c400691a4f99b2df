"""The tables of the model card, written from the manifest: `python -m models.training.card MODEL_FOLDER CARD.md`."""

import argparse
from pathlib import Path

from models.manifest import ModelManifest, Trial, load_manifest

_BEGIN = "<!-- begin: written by models.training.card -->"
_END = "<!-- end: written by models.training.card -->"


def write_tables(manifest: ModelManifest, card: Path) -> None:
    """Replace what stands between the two marks of the card. Raises ValueError when the marks are missing."""
    text = card.read_text()
    if text.count(_BEGIN) != 1 or text.count(_END) != 1:
        raise ValueError(f"{card.name} does not hold the marks {_BEGIN} and {_END} once each")
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    card.write_text(f"{before}{_BEGIN}\n\n{tables(manifest)}\n{_END}{after}")


def tables(manifest: ModelManifest) -> str:
    """Evidence, operating points and training data as Markdown."""
    lines = [
        f"Model `{manifest.name}` version {manifest.version}, SHA-256 `{manifest.sha256}`.",
        "",
        "| kind | grade | measured on | positive | negative | sensitivity | specificity | AUROC | studies |",
        "|---|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for kind, evidence in manifest.evidence.items():
        lines += [f"| {kind.value} | {evidence.grade.value} | {_row(trial)} |" for trial in evidence.trials]
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
    lines += ["", "Answers withheld (reported as not assessed), by the figures above:", ""]
    lines += [f"- {kind.value}: {reason}" for kind, reason in manifest.withheld.items()] or ["- none"]
    lines += ["", "| data | licence | use |", "|---|---|---|"]
    lines += [f"| {source.name} | {source.licence} | {source.use} |" for source in manifest.training_data]
    return "\n".join(lines) + "\n"


def _row(trial: Trial) -> str:
    rates = (trial.sensitivity, trial.specificity, trial.auroc)
    shown = " | ".join("-" if rate is None else f"{rate:.2f}" for rate in rates)
    return f"{trial.data} | {trial.positive} | {trial.negative} | {shown} | {trial.note or '-'}"


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("card", type=Path)
    arguments = parser.parse_args()
    write_tables(load_manifest(arguments.model), arguments.card)


if __name__ == "__main__":
    main()
