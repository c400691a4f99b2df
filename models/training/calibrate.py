"""The study head and the operating points, fitted to answers about studies with known truth.

The head's two weights per kind come from logistic regression on one half of the simulated studies, temperature and
bias from Platt scaling (Platt 1999) on the other half. Operating points put specificity first: no known-negative
real study and at most 10 % of the simulated negatives may be called present. Outlines end at the voxel probability at
which their volumes come nearest to the true ones: loss weights and kinds that share a voxel move it away from one half.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.findings import FindingKind
from models.manifest import OperatingPoint
from models.training.evaluate import THRESHOLDS, Answer
from models.training.network import LESIONS, StudyHead
from models.training.studies import SMALLEST_ML

METHOD = "logistic study head, Platt scaling (temperature and bias) on held-out simulation"
_FALSE_POSITIVE_RATE = 0.10
_MISS_RATE = 0.05
# Probabilities fitted to some sixty studies are too rough to insist on one half.
_LEAST_PRESENT = 0.3
_RIDGE = 0.02
_ONE_HALF = 0.5
_LEAST_OUTLINES = 3
# Mean biases of volume that differ by less than 5 % are alike.
_ALIKE = 0.05
# Their outlines are only where their borders are sought in the HU.
_BORDER_BY_HU = (FindingKind.PULMONARY_NODULE, FindingKind.PERICARDIAL_EFFUSION)


def fit_head(found: Sequence[Answer]) -> StudyHead:
    """Study head whose weights separate present from absent in the first half of the answers of each kind."""
    head = StudyHead()
    with torch.no_grad():
        for index, kind in enumerate(LESIONS):
            evidence, truth = _table(_half(found, kind, 0))
            if 0 < truth.sum() < len(truth):
                weight, bias = _logistic(evidence, truth)
                head.weight[index] = weight
                head.bias[index] = bias
    return head


def _half(found: Sequence[Answer], kind: FindingKind, which: int) -> list[Answer]:
    known = [a for a in found if a.kind is kind and a.simulated and a.present is not None]
    return known[which::2]


def _table(found: Sequence[Answer]) -> tuple[Tensor, Tensor]:
    evidence = torch.tensor([a.evidence for a in found]).reshape(-1, 2)
    return evidence, torch.tensor([float(bool(a.present)) for a in found])


def _logistic(columns: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge logistic regression with weights that cannot be negative: more lesion never lowers the score."""
    raw = torch.zeros(columns.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([raw, bias], max_iter=200, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        weight = torch.nn.functional.softplus(raw)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(columns @ weight + bias, truth)
        loss = loss + _RIDGE * (weight**2).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    return torch.nn.functional.softplus(raw).detach(), bias.detach()


def study_logit(head: StudyHead, answer: Answer) -> float:
    """What the head says about one answer."""
    index = LESIONS.index(answer.kind)
    weight, bias = head.weight[index].detach().numpy(), float(head.bias[index].detach())
    return float(np.dot(weight, answer.evidence)) + bias


def voxel_threshold(found: Sequence[Answer], kind: FindingKind) -> float:
    """Of `THRESHOLDS` one at which simulated lesions of a kind are outlined neither too large nor too small.

    The bias of a source is the median over its studies of log(outlined / true volume); sources weigh alike. Of the
    thresholds whose mean absolute bias is hardly larger than the least, the one nearest to one half, as few studies
    decide; one half, too, where too few outlines are known.
    """
    by_source: dict[str, list[npt.NDArray[np.float64]]] = {}
    for a in found:
        if a.kind is kind and a.simulated and a.present and a.true_ml and a.outlined_ml is not None:
            # One millilitre more on both sides: what is not outlined at all is far off, not infinitely.
            by_source.setdefault(a.source, []).append(np.log((np.array(a.outlined_ml) + 1) / (a.true_ml + 1)))
    if kind in _BORDER_BY_HU or sum(map(len, by_source.values())) < _LEAST_OUTLINES:
        return _ONE_HALF
    bias = np.mean([np.abs(np.median(of_source, axis=0)) for of_source in by_source.values()], axis=0)
    good = [threshold for threshold, one in zip(THRESHOLDS, bias, strict=True) if one <= bias.min() + _ALIKE]
    return min(good, key=lambda threshold: abs(threshold - _ONE_HALF))


def operating_point(logit: Callable[[Answer], float], found: Sequence[Answer], kind: FindingKind) -> OperatingPoint:
    """Calibration and cuts of one kind. `logit` is the network's score of a study for the kind of an answer."""
    of_kind = [a for a in found if a.kind is kind and a.present is not None]
    negative = [a for a in of_kind if not a.present]
    temperature, bias = _platt(logit, _half(found, kind, 1))
    threshold, minimum_ml = voxel_threshold(found, kind), SMALLEST_ML[kind] / 2
    point = OperatingPoint(
        voxel_threshold=threshold,
        minimum_volume_ml=minimum_ml,
        present_probability=1.0,
        absent_probability=0.0,
        temperature=temperature,
        bias=bias,
        chosen_on=_chosen_on(of_kind),
    )
    score = {id(a): point.probability(logit(a)) for a in of_kind}
    outlined = [a for a in negative if a.found_at(point.sure_threshold) >= minimum_ml]
    present = max([_LEAST_PRESENT, *(score[id(a)] + 0.02 for a in outlined if not a.simulated)])
    simulated = sorted(score[id(a)] for a in outlined if a.simulated)
    allowed = int(_FALSE_POSITIVE_RATE * sum(a.simulated for a in negative))
    if len(simulated) > allowed:
        present = max(present, simulated[len(simulated) - allowed - 1] + 1e-3)
    missed = np.quantile([score[id(a)] for a in of_kind if a.present] or [0.5], _MISS_RATE)
    present = min(present, 0.98)
    return point.model_copy(
        update={
            "present_probability": round(present, 3),
            "absent_probability": round(float(np.clip(missed, 0.05, min(present, 0.5))), 3),
        }
    )


def _platt(logit: Callable[[Answer], float], found: Sequence[Answer]) -> tuple[float, float]:
    """(temperature, bias) so that sigmoid((logit + bias) / temperature) fits; (1, 0) where nothing can be fitted."""
    logits = torch.tensor([[logit(a)] for a in found]).reshape(-1, 1)
    _, truth = _table(found)
    positives, count = float(truth.sum()), len(truth)
    if not 0 < positives < count:
        return 1.0, 0.0
    # Platt's targets: few studies cannot make sure of either answer.
    target = torch.where(truth > 0, (positives + 1) / (positives + 2), 1 / (count - positives + 2))
    slope, offset = _logistic(logits, target)
    temperature = 1.0 / max(float(slope), 0.1)
    return temperature, float(offset) * temperature


def _chosen_on(found: Sequence[Answer]) -> str:
    simulated = sum(a.simulated for a in found)
    real = ", ".join(sorted(a.study for a in found if not a.simulated and not a.present))
    return f"{simulated} simulated studies; negatives kept clean: {real or 'none real'}"
