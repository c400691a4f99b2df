"""What the network says about studies with known truth, and how often it is right.

`python -m models.training.evaluate MODEL_FOLDER INDEX.toml` prints the answers about real series.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cc3d
import numpy as np
import numpy.typing as npt
import torch

from models.evaluation.statistics import auroc, auroc_interval, wilson
from models.findings import FindingKind
from models.manifest import OperatingPoint, Trial
from models.session import HeadOutputs, ModelSession
from models.training.network import LESIONS, VOXEL_ML, study_evidence
from models.training.studies import SMALLEST_ML, Study, real_studies

THRESHOLDS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the lesion head said about one kind in one study.

    `present` is the truth, None where unknown; `evidence` what the study head sees; `found_ml[i]` the volume at
    `THRESHOLDS[i]`: of the largest component for nodules, of the side with more of it else. `true_ml`, all that is
    `outlined_ml` at `THRESHOLDS[i]` and `dice` (at one half) where an outline is known; what is left open counts in
    neither.
    """

    study: str
    source: str
    simulated: bool
    trained_on: bool
    kind: FindingKind
    present: bool | None
    evidence: tuple[float, float]
    found_ml: tuple[float, ...]
    true_ml: float | None
    outlined_ml: tuple[float, ...] | None
    dice: float | None

    def found_at(self, threshold: float) -> float:
        return self.found_ml[THRESHOLDS.index(threshold)]


def answers(study: Study, lesions: npt.NDArray[np.float32]) -> list[Answer]:
    """One answer per lesion kind from the probabilities (L, D, H, W) of a study."""
    evidence = study_evidence(torch.from_numpy(lesions)[None])[0].numpy()
    found = []
    for index, kind in enumerate(LESIONS):
        probability = lesions[index]
        mask, known = study.masks.get(kind), ~study.unknown.get(kind, np.zeros((), np.bool_))
        true_ml = None if mask is None else float(mask.sum()) * VOXEL_ML
        present = study.present.get(kind)
        if present and true_ml is not None and true_ml < SMALLEST_ML[kind]:
            present = None
        found.append(
            Answer(
                study=study.name,
                source=study.source,
                simulated=study.simulated,
                trained_on=study.trained_on,
                kind=kind,
                present=present,
                evidence=(float(evidence[index, 0]), float(evidence[index, 1])),
                found_ml=tuple(_volume_ml(kind, probability >= threshold) for threshold in THRESHOLDS),
                true_ml=true_ml,
                outlined_ml=None if mask is None else _outlined_ml(np.where(known, probability, 0.0)),
                dice=None if mask is None else _dice(mask, probability >= 0.5),
            )
        )
    return found


def _outlined_ml(probability: npt.NDArray[np.float32]) -> tuple[float, ...]:
    return tuple(float((probability >= threshold).sum()) * VOXEL_ML for threshold in THRESHOLDS)


def _volume_ml(kind: FindingKind, mask: npt.NDArray[np.bool_]) -> float:
    if kind is FindingKind.PULMONARY_NODULE and mask.any():
        labels = cc3d.connected_components(mask, connectivity=26)
        return float(np.bincount(labels.ravel())[1:].max()) * VOXEL_ML
    middle = mask.shape[2] // 2  # the grid is centred on the body; the product counts each side for itself
    return float(max(mask[:, :, :middle].sum(), mask[:, :, middle:].sum())) * VOXEL_ML


def _dice(truth: npt.NDArray[np.bool_], found: npt.NDArray[np.bool_]) -> float | None:
    total = float(truth.sum() + found.sum())
    return 2.0 * float((truth & found).sum()) / total if total else None


def is_present(answer: Answer, logit: float, point: OperatingPoint) -> bool:
    """The product's rule: the calibrated score and an outlined lesion of the smallest size must agree."""
    outlined = answer.found_at(point.sure_threshold) >= point.minimum_volume_ml
    return outlined and point.probability(logit) >= point.present_probability


def trial(data: str, found: Iterable[tuple[Answer, float]], point: OperatingPoint, note: str = "") -> Trial:
    """One row of evidence from answers of one kind with their study logits; unknown truth is left out."""
    known = [(answer, logit) for answer, logit in found if answer.present is not None]
    positive = [(a, l) for a, l in known if a.present]
    negative = [(a, l) for a, l in known if not a.present]
    hits = [is_present(a, l, point) for a, l in positive]
    clean = [not is_present(a, l, point) for a, l in negative]
    area = auroc([l for _, l in positive], [l for _, l in negative])
    return Trial(
        data=data,
        simulated=all(a.simulated for a, _ in known),
        positive=len(positive),
        negative=len(negative),
        sensitivity=float(np.mean(hits)) if hits else None,
        specificity=float(np.mean(clean)) if clean else None,
        auroc=area,
        note=note,
        sensitivity_interval=wilson(sum(hits), len(hits)),
        specificity_interval=wilson(sum(clean), len(clean)),
        auroc_interval=None if area is None else auroc_interval(area, len(positive), len(negative)),
    )


def run_studies(session: ModelSession, studies: Iterable[Study]) -> list[tuple[Answer, float]]:
    """Answers with their study logits."""
    found = []
    for study in studies:
        outputs: HeadOutputs = session.run(study.hu)
        logits = outputs.study_logits
        found += [(a, float(logit)) for a, logit in zip(answers(study, outputs.lesions), logits, strict=True)]
    return found


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("checks", type=Path)
    arguments = parser.parse_args()
    session = ModelSession.open(arguments.model)
    for answer, logit in run_studies(session, real_studies(arguments.checks)):
        point = session.manifest.operating_points[answer.kind]
        truth = {None: "unknown", True: "present", False: "absent"}[answer.present]
        said = "present" if is_present(answer, logit, point) else "-"
        print(
            f"{answer.study:20} {answer.kind.value:22} truth {truth:8} said {said:8} "
            f"probability {point.probability(logit):.2f} found {answer.found_at(point.voxel_threshold):.1f} ml"
            + ("" if answer.true_ml is None else f" of {answer.true_ml:.1f} ml, Dice {answer.dice or 0.0:.2f}")
        )


if __name__ == "__main__":
    main()
