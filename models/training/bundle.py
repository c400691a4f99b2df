"""From a checkpoint to the released folder: weights, manifest and the model card's table.

`python -m models.training.bundle CONFIG.toml INDEX.toml RUN_FOLDER OUT_FOLDER --version 0.1.0 [--card MODEL_CARD.md]`

Runs the network over held-out simulation, phantoms and the real series, fits study head and operating points on one
part of the simulation, measures on another, and writes what it measured.
"""

import argparse
import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnxruntime
import torch

from imaging.volume import AIR_HU
from models.evaluation.card import write_tables
from models.evaluation.evidence import completed, grade, withheld
from models.evaluation.summary import REAL_SEEN, REAL_UNSEEN
from models.findings import FindingKind
from models.manifest import (
    MANIFEST_NAME,
    Evidence,
    InputSpecification,
    ModelManifest,
    NoduleNetwork,
    OperatingPoint,
    TrainingSource,
    Trial,
    load_manifest,
)
from models.session import checked_weights
from models.training.calibrate import METHOD, fit_head, operating_point, study_logit
from models.training.dataset import FIRST_UNSEEN_SEED, Config, Sources, read_backgrounds, read_config
from models.training.evaluate import Answer, answers, trial
from models.training.export import INPUT_NAME, compare, export, trained_network, unfitted
from models.training.familiarity import familiarity, summaries
from models.training.labelled import read_labels
from models.training.network import ANATOMY, LESIONS, MULTIPLE_OF, SPACING_MM, StudyHead
from models.training.nodules_evaluate import FIGURES_NAME, read_network
from models.training.studies import Study, held_out_studies, phantom_studies, real_studies, simulated_studies
from models.training.train import CHECKPOINT, STARTED_FROM

WEIGHTS_NAME = "model.onnx"
_MAXIMUM_HU = 3071.0
_CALIBRATION_SEED = 0
_EVALUATION_SEED = 100_000
_PHANTOM_EVALUATION_SEED = 6_000

_NOT_ASSESSED: dict[FindingKind, str] = {
    FindingKind.EMPHYSEMA: "the network has no emphysema class; it is measured by attenuation",
    FindingKind.CORONARY_ARTERY_CALCIFICATION: "the network does not outline the coronary arteries",
    FindingKind.AORTIC_DILATATION: "the aorta's outline is not accurate enough yet to measure a diameter",
    FindingKind.VERTEBRAL_COMPRESSION_FRACTURE: "vertebrae are not told apart yet",
    FindingKind.CARDIOMEGALY: "the heart's outline is not checked on real CT yet",
    FindingKind.LYMPHADENOPATHY: "the network was not trained for lymph nodes",
    FindingKind.INTERSTITIAL_ABNORMALITY: "the network was not trained for interstitial patterns",
    FindingKind.BRONCHIECTASIS: "the grid of 2.5 mm is too coarse for bronchi",
    FindingKind.PULMONARY_ARTERY_ENLARGEMENT: "the pulmonary trunk's outline is not accurate enough yet",
    FindingKind.LOW_BONE_DENSITY: "vertebral bodies are not outlined accurately enough yet",
    FindingKind.HEPATIC_STEATOSIS: "liver and spleen are not outlined accurately enough yet",
    FindingKind.RIB_FRACTURE: "the grid of 2.5 mm is too coarse for rib fractures",
    FindingKind.HIATAL_HERNIA: "the network was not trained for it",
    FindingKind.ARTERIAL_WALL_CALCIFICATION: "the aorta's outline is not accurate enough yet",
    FindingKind.MEDICAL_DEVICE: "the network was not trained for it",
}

_NODULE_SHAPES = TrainingSource(
    name="shapes of lungs and nodules of 60 patients (nodule network)", licence="CC BY 4.0", use="training"
)


class Runner:
    """Lesion probabilities from exported weights, before there is a manifest."""

    def __init__(self, weights: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])

    def answers(self, studies: Iterable[Study]) -> list[Answer]:
        found = []
        for study in studies:
            (lesions,) = self._session.run(["lesions"], {INPUT_NAME: study.hu})
            found += answers(study, lesions[0])
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Studies:
    """Simulation for calibration, simulation of other seeds for evaluation, and the real series."""

    fitting: tuple[Study, ...]
    testing: tuple[Study, ...]
    real: tuple[Study, ...]


def read_studies(config: Config, index: Path, count: int) -> Studies:
    """Real studies first: what is wrong with them is said before minutes of simulation.

    Raises OSError or ValueError naming what cannot be read, and ValueError for an index without a study.
    """
    real = tuple(real_studies(index))
    if not real:
        raise ValueError(f"{index} names no study: how strange an image may be is told from real ones")
    sources = read_backgrounds(config)
    return Studies(
        fitting=tuple(fitting_studies(sources, config, count)),
        testing=(
            *simulated_studies(sources, config, _EVALUATION_SEED, count),
            *held_out_studies(config, _EVALUATION_SEED, count),
            *phantom_studies(config, _PHANTOM_EVALUATION_SEED, _phantoms(count)),
        ),
        real=real,
    )


def fitting_studies(sources: Sources, config: Config, count: int) -> Iterator[Study]:
    """The `count` simulated studies, and half as many phantoms, that operating points are fitted to."""
    yield from simulated_studies(sources, config, _CALIBRATION_SEED, count)
    yield from phantom_studies(config, FIRST_UNSEEN_SEED, _phantoms(count))


def _phantoms(count: int) -> int:
    return max(4, count // 2)


def evidence_of(
    kind: FindingKind, head: StudyHead, point: OperatingPoint, testing: Sequence[Answer], real: Sequence[Answer]
) -> Evidence:
    """The measured rows of one kind, and the grade that follows from what real studies there were."""
    rows: list[Trial] = []
    for source in dict.fromkeys(a.source for a in testing):
        rows.append(_trial(source, [a for a in testing if a.source == source and a.kind is kind], head, point))
    unseen = [a for a in real if a.kind is kind and not a.trained_on and a.present is not None]
    seen = [a for a in real if a.kind is kind and a.trained_on and a.present is not None]
    rows += [_trial(name, group, head, point) for name, group in ((REAL_UNSEEN, unseen), (REAL_SEEN, seen)) if group]
    return Evidence(grade=grade(rows), trials=tuple(rows))


def _trial(data: str, found: Sequence[Answer], head: StudyHead, point: OperatingPoint) -> Trial:
    names = ", ".join(f"{a.study} {'+' if a.present else '-'}" for a in found if not a.simulated)
    return trial(data, [(a, study_logit(head, a)) for a in found], point, names)


def write_bundle(
    config: Config, index: Path, run: Path, out: Path, version: str, count: int, nodules: Path | None = None
) -> ModelManifest:
    """Write `model.onnx` and `model.json` into `out`; prints the numerical comparison with torch.

    `index` names labelled real studies: operating points keep them clean, familiarity is fitted to them, too.
    `nodules` is a model folder or one of `models.training.nodules_evaluate`: its network goes into the bundle.
    Raises ManifestMismatch, OSError or ValueError naming what cannot be read. Whatever fails, `out` stays as it was.
    """
    for_nodules = None if nodules is None else nodule_network(nodules)
    before = _seen_before(run / STARTED_FROM)
    net = trained_network(config.features, run / CHECKPOINT)
    studies = read_studies(config, index, count)
    with _staged(out) as folder:
        weights = folder / WEIGHTS_NAME
        export(net, StudyHead(), unfitted(net), weights)
        runner = Runner(weights, torch.get_num_threads())
        fitting, testing, real = (runner.answers(part) for part in (studies.fitting, studies.testing, studies.real))
        head = fit_head(fitting)
        points = {kind: operating_point(partial(study_logit, head), [*fitting, *real], kind) for kind in LESIONS}
        strangeness, known = familiarity(summaries(net, studies.fitting), summaries(net, studies.real))
        export(net, head, strangeness, weights)
        print(compare(net, head, strangeness, weights, (64, 96, 112), seed=1))
        # What a network of their own answers about nodules was not tried here.
        tried = [kind for kind in LESIONS if kind is not FindingKind.PULMONARY_NODULE or for_nodules is None]
        evidence = completed(LESIONS, {kind: evidence_of(kind, head, points[kind], testing, real) for kind in tried})
        manifest = ModelManifest(
            name="onescan-chest",
            version=version,
            weights=WEIGHTS_NAME,
            sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
            input=InputSpecification(
                name=INPUT_NAME,
                spacing_mm=SPACING_MM,
                multiple_of=MULTIPLE_OF,
                minimum_hu=float(AIR_HU),
                maximum_hu=_MAXIMUM_HU,
            ),
            anatomy=ANATOMY,
            lesions=LESIONS,
            calibration=METHOD,
            operating_points=points,
            evidence=evidence,
            not_assessed={kind: reason for kind, reason in _NOT_ASSESSED.items() if kind not in LESIONS},
            withheld=withheld(evidence),
            familiarity=known,
            nodules=for_nodules,
            # What the network started from may have seen the same.
            training_data=tuple(
                dict.fromkeys((*_training_data(config, before, real), *(() if nodules is None else (_NODULE_SHAPES,))))
            ),
        )
        if for_nodules is not None and nodules is not None and nodules.resolve() != out.resolve():
            shutil.copyfile(nodules / for_nodules.weights, folder / for_nodules.weights)
        (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder whose files go into `out` when the block has ended well, the manifest last."""
    out.mkdir(parents=True, exist_ok=True)
    # In `out`, which may be a file system of its own: each file is in its place at once or not at all.
    with tempfile.TemporaryDirectory(prefix=".part-", dir=out) as part:
        yield Path(part)
        for file in sorted(Path(part).iterdir(), key=lambda file: file.name == MANIFEST_NAME):
            file.replace(out / file.name)


def nodule_network(folder: Path) -> NoduleNetwork:
    """The network for nodules of a model folder or of one that `models.training.nodules_evaluate` wrote.

    Raises ManifestMismatch, OSError or ValueError naming what cannot be read.
    """
    network = read_network(folder) if (folder / FIGURES_NAME).exists() else load_manifest(folder).nodules
    if network is None:
        raise ValueError(f"{folder} has no network for nodules")
    checked_weights(folder, network.weights, network.sha256)
    return network


def _seen_before(path: Path) -> tuple[TrainingSource, ...]:
    """What the model that a run started from was trained on."""
    if not path.exists():
        return ()
    sources = ModelManifest.model_validate_json(path.read_bytes()).training_data
    return tuple(source for source in sources if source.use == "training")


def _training_data(
    config: Config, before: Sequence[TrainingSource], real: Sequence[Answer]
) -> tuple[TrainingSource, ...]:
    trained = [*before]
    trained += [TrainingSource(name=v.name, licence=v.licence, use="training") for v in config.volumes]
    own = [read_labels(folder) for folder in config.labelled]
    trained += [TrainingSource(name=labels.name, licence=labels.licence, use="training") for labels in own]
    if config.organ_map:
        name = f"organ map {Path(config.organ_map).name}"
        trained.append(TrainingSource(name=name, licence=config.organ_map_licence, use="training"))
    if config.phantoms:
        name = f"{config.phantoms} phantoms of imaging.phantom"
        trained.append(TrainingSource(name=name, licence="Apache-2.0", use="training"))
    checked = {a.study: a.source for a in real if not a.trained_on}
    return (
        *trained,
        *(TrainingSource(name=name, licence=licence, use="validation") for name, licence in checked.items()),
    )


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("checks", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--version", required=True)
    parser.add_argument("--studies", type=int, default=24, help="simulated studies for each of fitting and testing")
    parser.add_argument("--nodules", type=Path, help="a model folder, or what models.training.nodules_evaluate wrote")
    parser.add_argument("--card", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = read_config(arguments.config)
    manifest = write_bundle(
        config,
        arguments.checks,
        arguments.run,
        arguments.out,
        arguments.version,
        arguments.studies,
        arguments.nodules,
    )
    if arguments.card:
        write_tables(manifest, arguments.card)


if __name__ == "__main__":
    main()
