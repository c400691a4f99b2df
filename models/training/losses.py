"""Losses for labels of which only a part is known."""

import torch
from torch import Tensor

from models.findings import FindingKind
from models.training.labels import ALLOWED
from models.training.network import LESIONS

# nodules are a few voxels of a million, and what is rare must still weigh something
_WEIGHTS = {
    FindingKind.PULMONARY_NODULE: 10.0,
    FindingKind.PERICARDIAL_EFFUSION: 4.0,
    FindingKind.CONSOLIDATION: 3.0,
    FindingKind.GROUND_GLASS_OPACITY: 3.0,
    FindingKind.ATELECTASIS: 3.0,
    FindingKind.INTERSTITIAL_ABNORMALITY: 5.0,
}
_POSITIVE_WEIGHT = torch.tensor([_WEIGHTS.get(kind, 2.0) for kind in LESIONS])
_ENTROPY_WEIGHT = 20.0
_SMOOTH = 5.0


def anatomy_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy and Dice of (N, A, D, H, W) logits with labels uint8 (N, D, H, W) that may be partial.

    A partial label asks that the probability lies within its set of classes; Dice counts the full labels only.
    """
    classes = logits.shape[1]
    probabilities = torch.softmax(logits, dim=1).movedim(1, -1).reshape(-1, classes)
    flat = labels.reshape(-1).long()
    allowed = torch.from_numpy(ALLOWED).to(probabilities)[flat]
    within = (probabilities * allowed).sum(dim=1)
    entropy = -torch.log(within + 1e-6).mean()
    known = (allowed.sum(dim=1) == 1).to(probabilities.dtype)[:, None]
    hit = (probabilities * allowed * known).sum(dim=0)
    total = ((probabilities + allowed) * known).sum(dim=0)
    there = (allowed * known).sum(dim=0) > 0
    dice = 1 - (2 * hit + _SMOOTH) / (total + _SMOOTH)
    return entropy + _mean_where(dice, there)


def lesion_loss(logits: Tensor, bits: Tensor, unknown: Tensor) -> Tensor:
    """Binary cross-entropy and Dice of (N, L, D, H, W) logits with bit masks uint8 (N, D, H, W).

    Voxels of unknown truth count for nothing; Dice is taken per kind over the batch where the kind is there.
    """
    shifts = torch.arange(logits.shape[1], dtype=torch.uint8, device=logits.device).view(1, -1, 1, 1, 1)
    target = ((bits[:, None] >> shifts) & 1).to(logits.dtype)
    known = 1 - ((unknown[:, None] >> shifts) & 1).to(logits.dtype)
    weight = _POSITIVE_WEIGHT.to(logits.device).view(1, -1, 1, 1, 1)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, known, pos_weight=weight)
    probabilities = torch.sigmoid(logits) * known
    hit = (probabilities * target).sum(dim=(0, 2, 3, 4))
    total = (probabilities + target * known).sum(dim=(0, 2, 3, 4))
    there = (target * known).sum(dim=(0, 2, 3, 4)) > 0
    dice = 1 - (2 * hit + _SMOOTH) / (total + _SMOOTH)
    return _ENTROPY_WEIGHT * entropy + _mean_where(dice, there)


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the masked values, 0 where the mask is empty."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
