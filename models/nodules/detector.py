"""From a volume to its nodules: candidates, the network's judgement, outlines and measurements."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from imaging.geometry import Point
from imaging.lungs import Lungs
from imaging.volume import Volume
from models.findings import Region
from models.manifest import NoduleNetwork
from models.measure import axial_axes_mm, region_of
from models.nodules.candidates import cut_patches, find_candidates
from models.nodules.grid import lung_grid
from models.nodules.outline import NoduleType, is_vessel, outline

# A blob of a Gaussian scale sigma is a ball of this many sigma across (LoG maximum, radius sqrt(3) sigma).
_DIAMETER_OF_SIGMA = 2 * 3**0.5


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Candidates in the patient: centres (n, 3) LPS mm, rough diameters (n,) mm, calibrated probabilities (n,)."""

    centres_mm: npt.NDArray[np.float64]
    diameters_mm: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nodule:
    """One outlined nodule; axes are axial, in mm."""

    region: Region
    probability: float
    type: NoduleType
    long_axis_mm: float
    short_axis_mm: float

    @property
    def mean_diameter_mm(self) -> float:
        """Of long and short axis, as Lung-RADS v2022 takes it."""
        return (self.long_axis_mm + self.short_axis_mm) / 2


class Judge(Protocol):
    """Logits (n,) of "nodule" for uint8 patches (n, 2, 24, 24, 24), as `models.session.ModelSession` gives them."""

    def judge(self, patches: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]: ...


def judge_candidates(judge: Judge, network: NoduleNetwork, volume: Volume, lungs: Lungs) -> Judged:
    """Every candidate of a volume with its probability of being a nodule."""
    grid = lung_grid(volume, lungs)
    if grid is None:
        return Judged(np.zeros((0, 3)), np.zeros(0), np.zeros(0))
    found = find_candidates(grid.hu, grid.lung)
    logits = judge.judge(cut_patches(grid.hu, found.indices)).astype(np.float64)
    probabilities = 1.0 / (1.0 + np.exp(-np.clip((logits + network.bias) / network.temperature, -60.0, 60.0)))
    return Judged(grid.geometry.index_to_patient(found.indices), found.sigmas_mm * _DIAMETER_OF_SIGMA, probabilities)


def outline_nodules(
    volume: Volume, lungs: Lungs, judged: Judged, least_probability: float, minimum_diameter_mm: float
) -> tuple[Nodule, ...]:
    """The candidates at or above a probability that have the body of a nodule, the largest first; each once."""
    nodules: list[Nodule] = []
    taken = np.zeros(len(judged.probabilities), bool)
    for n in np.argsort(-judged.probabilities, kind="stable"):
        if judged.probabilities[n] < least_probability or taken[n]:
            continue
        nodule = _outlined(volume, lungs, tuple(judged.centres_mm[n]), judged, int(n))
        if nodule is None or nodule.mean_diameter_mm < minimum_diameter_mm:
            continue
        middle = np.array(nodule.region.centre_mm)
        if any(np.linalg.norm(middle - o.region.centre_mm) < o.long_axis_mm / 2 for o in nodules):
            continue
        taken |= np.linalg.norm(judged.centres_mm - middle, axis=1) < nodule.long_axis_mm / 2
        nodules.append(nodule)
    return tuple(sorted(nodules, key=lambda nodule: -nodule.mean_diameter_mm))


def _outlined(volume: Volume, lungs: Lungs, centre_mm: Point, judged: Judged, number: int) -> Nodule | None:
    found = outline(volume, lungs, centre_mm, float(judged.diameters_mm[number]))
    if found is None or is_vessel(found):
        return None
    region = region_of(found.mask, found.box, volume.geometry)
    return described(volume, region, float(judged.probabilities[number]), found.type)


def described(volume: Volume, region: Region, probability: float, kind: NoduleType) -> Nodule:
    """A nodule or mass whose outline is known, with its axes."""
    long_mm, short_mm = axial_axes_mm(region, volume.geometry)
    return Nodule(region=region, probability=probability, type=kind, long_axis_mm=long_mm, short_axis_mm=short_mm)
