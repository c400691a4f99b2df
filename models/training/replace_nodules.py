"""Another network for nodules in a model as it is: `model.json` and `nodules.onnx` change, the U-Net does not.

`python -m models.training.replace_nodules MODEL_FOLDER NODULES --version 0.1.1`

NODULES is a folder that `models.training.nodules_evaluate` wrote, or another model folder. The evidence of the old
network is dropped, so that every kind is withheld until `onescan evaluate --write-evidence` has measured the new one.
"""

import argparse
import shutil
from pathlib import Path

from models.errors import ManifestMismatch
from models.evaluation.evidence import with_evidence
from models.manifest import MANIFEST_NAME, ModelManifest, load_manifest
from models.training.bundle import nodule_network


def replace_nodules(folder: Path, nodules: Path, version: str) -> ModelManifest:
    """Raises ManifestMismatch, OSError or ValueError naming what cannot be read, before anything is written."""
    manifest, network = load_manifest(folder), nodule_network(nodules)
    changed = with_evidence(manifest.model_copy(update={"nodules": network, "version": version}), ())
    shutil.copyfile(nodules / network.weights, folder / network.weights)
    (folder / MANIFEST_NAME).write_text(changed.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return changed


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("nodules", type=Path)
    parser.add_argument("--version", required=True)
    arguments = parser.parse_args()
    try:
        replace_nodules(arguments.model, arguments.nodules, arguments.version)
    except (ManifestMismatch, OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
