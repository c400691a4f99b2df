"""The network that judges candidates for nodules."""

import torch
from torch import Tensor, nn


class NoduleNet(nn.Module):
    """Logit of "nodule" for patches (n, 2, 24, 24, 24) of 0 to 255: one tower a scale, joined before the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = _tower(), _tower()
        self.answer = nn.Sequential(nn.Linear(4 * 48, 48), nn.ReLU(), nn.Dropout(0.2), nn.Linear(48, 1))

    def forward(self, patches: Tensor) -> Tensor:
        scaled = patches / 127.5 - 1.0
        return self.answer(torch.cat([_pooled(self.fine(scaled[:, :1])), _pooled(self.coarse(scaled[:, 1:]))], 1))[:, 0]


def _tower() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 1
    for width in (12, 24, 40, 48):
        layers += [nn.Conv3d(channels, width, 3, padding=1, bias=False), nn.BatchNorm3d(width), nn.ReLU()]
        if width < 48:
            layers.append(nn.MaxPool3d(2))
        channels = width
    return nn.Sequential(*layers)


def _pooled(features: Tensor) -> Tensor:
    """Means over the patch and what lies in its middle, which is where the candidate is."""
    return torch.cat([features.mean(dim=(2, 3, 4)), features[:, :, 1, 1, 1]], 1)
