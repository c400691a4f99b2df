"""The network: one small 3D U-Net over the whole thorax with an anatomy, a lesion and a study head.

The grid is fine (2.5 mm) for the size of the context wanted, so the finest level is kept thin and the capacity
sits at 5 to 20 mm, where effusion, pneumothorax and consolidation are told apart.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from imaging import phantom
from models.findings import FindingKind

ANATOMY = phantom.ANATOMY

LESIONS = (
    FindingKind.PULMONARY_NODULE,
    FindingKind.PLEURAL_EFFUSION,
    FindingKind.PNEUMOTHORAX,
    FindingKind.CONSOLIDATION,
    FindingKind.GROUND_GLASS_OPACITY,
    FindingKind.PERICARDIAL_EFFUSION,
    FindingKind.ATELECTASIS,
    FindingKind.INTERSTITIAL_ABNORMALITY,
)

_IN_LUNG_SPACE = frozenset(LESIONS) - {FindingKind.PERICARDIAL_EFFUSION}
_EXCLUSIVE = _IN_LUNG_SPACE - {FindingKind.PULMONARY_NODULE}
_LUNG_LEFT, _LUNG_RIGHT = ANATOMY.index("lung_left"), ANATOMY.index("lung_right")

SPACING_MM = 2.5
MULTIPLE_OF = 16
MINIMUM_HU, MAXIMUM_HU = -1024.0, 3071.0
VOXEL_ML = SPACING_MM**3 / 1000.0

# (lower, upper) HU of the input channels: lung, soft tissue, everything
WINDOWS_HU = ((-1050.0, -450.0), (-160.0, 240.0), (-1024.0, 1200.0))


class Windows(nn.Module):
    """(N, 1, D, H, W) HU to one channel in [-1, 1] per window."""

    def __init__(self) -> None:
        super().__init__()
        lower, upper = (torch.tensor(edge).view(1, -1, 1, 1, 1) for edge in zip(*WINDOWS_HU, strict=True))
        self.register_buffer("centre", (lower + upper) / 2)
        self.register_buffer("half_width", (upper - lower) / 2)

    def forward(self, hu: Tensor) -> Tensor:
        return torch.clamp((hu - self.centre) / self.half_width, -1.0, 1.0)


class Block(nn.Sequential):
    """Convolution 3 x 3 x 3, batch normalisation (which folds away in the export), ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm3d(outputs, momentum=0.05),
            nn.ReLU(inplace=True),
        )


class Up(nn.Module):
    """Twice the resolution, joined with the encoder's features of that resolution."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(inputs, outputs, 2, stride=2)
        self.join = Block(outputs + skip, outputs)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        joined: Tensor = self.join(torch.cat([self.up(coarse), fine], dim=1))
        return joined


class ChestNet(nn.Module):
    """HU (N, 1, D, H, W), axes multiples of 16, to logits: anatomy (N, A, D, H, W), lesions (N, L, D, H, W)."""

    def __init__(self, features: tuple[int, ...] = (16, 24, 48, 96, 112)) -> None:
        super().__init__()
        self.summary_channels = features[-1]
        self.windows = Windows()
        self.stem = Block(len(WINDOWS_HU), features[0])
        self.down = nn.ModuleList()
        for inputs, outputs in pairwise(features):
            self.down.append(nn.Sequential(Block(inputs, outputs, stride=2), Block(outputs, outputs)))
        self.up = nn.ModuleList(Up(inputs, outputs, outputs) for outputs, inputs in pairwise(features))
        self.anatomy = nn.Conv3d(features[0], len(ANATOMY), 1)
        self.lesions = nn.Conv3d(features[0], len(LESIONS), 1)
        nn.init.constant_(self.lesions.bias, -4.0)  # lesions are rare: start from "none"

    def forward(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        anatomy, lesions, _ = self.with_summary(hu)
        return anatomy, lesions

    def with_summary(self, hu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, and the mean (N, C) of the coarsest features: what the network makes of the whole image."""
        levels = self._encode(hu)
        features = levels.pop()
        summary = features.mean(dim=(2, 3, 4))
        for up in reversed(self.up):
            features = up(features, levels.pop())
        return self.anatomy(features), self.lesions(features), summary

    def summary(self, hu: Tensor) -> Tensor:
        """The summary of `with_summary` alone."""
        return self._encode(hu)[-1].mean(dim=(2, 3, 4))

    def _encode(self, hu: Tensor) -> list[Tensor]:
        levels = [self.stem(self.windows(hu))]
        for down in self.down:
            levels.append(down(levels[-1]))
        return levels


def study_evidence(probabilities: Tensor) -> Tensor:
    """What the study head sees of the lesion map (N, L, D, H, W): (N, L, 2).

    Natural logarithm of 1 + the volume in ml of voxels above one half, and the highest mean over 3 x 3 x 3 voxels.
    """
    clear = torch.clamp(2.0 * probabilities - 1.0, min=0.0)
    volume = torch.log1p(clear.sum(dim=(2, 3, 4)) * VOXEL_ML)
    peak = nn.functional.avg_pool3d(probabilities, 3, stride=1, padding=1).amax(dim=(2, 3, 4))
    return torch.stack([volume, peak], dim=-1)


class StudyHead(nn.Module):
    """One linear score per kind over `study_evidence`; its weights are fitted by `calibrate`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(len(LESIONS), 2))
        self.bias = nn.Parameter(torch.full((len(LESIONS),), -2.0))

    def forward(self, probabilities: Tensor) -> Tensor:
        scores: Tensor = (study_evidence(probabilities) * self.weight).sum(dim=-1) + self.bias
        return scores


class Strangeness(nn.Module):
    """How far a summary (N, C) lies from those of the studies it was fitted to: (N,), about 1 for one of them.

    The Mahalanobis distance over the square root of the number of channels (Lee et al., NeurIPS 2018).
    """

    def __init__(self, mean: Tensor, precision: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("precision", precision)

    def forward(self, summary: Tensor) -> Tensor:
        away = summary - self.mean
        squared = ((away @ self.precision) * away).mean(dim=1)
        return torch.sqrt(torch.clamp(squared, min=0.0))


class ExportedNet(nn.Module):
    """The graph that is exported: HU to anatomy uint8 (1, D, H, W), lesion probabilities, study logits, strangeness.

    Lesions of lung and pleura count only in the lung spaces of the anatomy head and one voxel around them. Of the kinds
    that exclude each other the likeliest keeps its voxel; the others fall below one half.
    """

    def __init__(self, net: ChestNet, study: StudyHead, strangeness: Strangeness) -> None:
        super().__init__()
        self.net = net
        self.study = study
        self.strangeness = strangeness
        anywhere = torch.tensor([float(kind not in _IN_LUNG_SPACE) for kind in LESIONS])
        self.register_buffer("anywhere", anywhere.view(1, -1, 1, 1, 1))
        exclusive = torch.tensor([float(kind in _EXCLUSIVE) for kind in LESIONS])
        self.register_buffer("exclusive", exclusive.view(1, -1, 1, 1, 1))

    def forward(self, hu: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        anatomy, lesions, summary = self.net.with_summary(hu)
        labels = anatomy.argmax(dim=1)
        lungs = ((labels == _LUNG_LEFT) | (labels == _LUNG_RIGHT)).to(lesions.dtype)[:, None]
        near = nn.functional.max_pool3d(lungs, 3, stride=1, padding=1)
        probabilities = torch.sigmoid(lesions) * torch.maximum(near, self.anywhere)
        likeliest = (probabilities * self.exclusive).amax(dim=1, keepdim=True)
        loses = self.exclusive * (probabilities < likeliest).to(probabilities.dtype)
        probabilities = probabilities * (1.0 - 0.5 * loses)
        return labels.to(torch.uint8), probabilities, self.study(probabilities), self.strangeness(summary)
