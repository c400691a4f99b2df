"""New operating points for a model as it is, without training: `model.json` changes, the weights do not.

`python -m models.training.recalibrate MODEL_FOLDER CONFIG.toml INDEX.toml --version 0.1.1 [--studies 24]`

The evidence of the old cuts is dropped, so that every kind is withheld until `onescan evaluate --write-evidence` has
measured the new ones.
"""

import argparse
from pathlib import Path

from models.errors import ManifestMismatch
from models.evaluation.evidence import with_evidence
from models.manifest import MANIFEST_NAME, ModelManifest, load_manifest
from models.session import ModelSession
from models.training.bundle import fitting_studies
from models.training.calibrate import operating_point
from models.training.dataset import Config, read_backgrounds, read_config
from models.training.evaluate import Answer, run_studies
from models.training.network import LESIONS
from models.training.studies import real_studies


def recalibrate(folder: Path, config: Config, index: Path, version: str, count: int) -> ModelManifest:
    """Fit operating points to what the network of `folder` says about simulated studies, and write them.

    `config` says what is simulated, `index` names labelled real studies that the points keep clean. Raises
    ManifestMismatch, OSError or ValueError naming what cannot be read, before anything is written.
    """
    manifest = load_manifest(folder)
    if manifest.lesions != LESIONS:
        raise ValueError(f"{folder} answers about other kinds than the training simulates")
    session = ModelSession.open(folder)
    # Real studies first: what is wrong with them is said before minutes of simulation.
    answered = run_studies(session, real_studies(index))
    answered += run_studies(session, fitting_studies(read_backgrounds(config), config, count))
    logits = {id(answer): logit for answer, logit in answered}

    def logit_of(answer: Answer) -> float:
        return logits[id(answer)]

    found = [answer for answer, _ in answered]
    points = {kind: operating_point(logit_of, found, kind) for kind in LESIONS}
    changed = with_evidence(manifest.model_copy(update={"operating_points": points, "version": version}), ())
    (folder / MANIFEST_NAME).write_text(changed.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return changed


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("checks", type=Path)
    parser.add_argument("--version", required=True)
    parser.add_argument("--studies", type=int, default=24, help="simulated studies; half as many phantoms")
    arguments = parser.parse_args()
    try:
        before = load_manifest(arguments.model).operating_points
        config = read_config(arguments.config)
        manifest = recalibrate(arguments.model, config, arguments.checks, arguments.version, arguments.studies)
    except (ManifestMismatch, OSError, ValueError) as error:
        parser.error(str(error))
    for kind, point in manifest.operating_points.items():
        old = before[kind]
        print(
            f"{kind.value:24} outlines at {old.voxel_threshold:.2f} -> {point.voxel_threshold:.2f}, "
            f"present from {old.present_probability:.2f} -> {point.present_probability:.2f}, "
            f"absent below {old.absent_probability:.2f} -> {point.absent_probability:.2f}"
        )


if __name__ == "__main__":
    main()
