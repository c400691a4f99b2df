"""What a familiar image is, fitted to the network's summaries of images it should know."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.manifest import Familiarity
from models.training.network import ChestNet, Strangeness
from models.training.studies import Study

# A real chest CT may lie this much farther out than the farthest one at hand: a field of view that ends 3 mm beside
# the lungs lies up to 1.7 times as far out, the size of a small child 2.0 times, 150 HU too much 2.7 times.
_MARGIN = 1.8


def summaries(net: ChestNet, studies: Sequence[Study]) -> Tensor:
    """(N, C): the network's summary of each study."""
    with torch.no_grad():
        return torch.cat([net.summary(torch.from_numpy(study.hu)) for study in studies])


def fit_strangeness(found: Tensor) -> Strangeness:
    """Mean and inverse covariance of summaries (N, C), the covariance shrunk towards its mean variance.

    With fewer studies than channels the sample covariance has no inverse; the weight of the target is C / (N + C).
    """
    count, channels = found.shape
    covariance = torch.cov(found.double().T)
    target = torch.eye(channels, dtype=torch.float64) * covariance.diagonal().mean()
    weight = channels / (count + channels)
    precision = torch.linalg.inv((1 - weight) * covariance + weight * target)
    return Strangeness(found.mean(dim=0), precision.float())


def familiarity(simulated: Tensor, real: Tensor) -> tuple[Strangeness, Familiarity]:
    """Strangeness fitted to all; its limit from how far each real study lies from all the others."""
    away = []
    for index in range(len(real)):
        others = torch.cat([simulated, real[:index], real[index + 1 :]])
        away.append(float(fit_strangeness(others)(real[index : index + 1])))
    limit = _MARGIN * max(away)
    note = f"{len(simulated)} simulated and {len(real)} real studies; {_MARGIN:g} times the farthest real one left out"
    return fit_strangeness(torch.cat([simulated, real])), Familiarity(limit=round(limit, 3), fitted_on=note)
