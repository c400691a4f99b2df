"""Phantoms as training samples, kept as files because one takes seconds to make.

`python -m models.training.phantoms FOLDER FIRST_SEED COUNT` fills a folder beforehand.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage as ndi

from imaging.phantom import LesionRequest, Phantom, make_phantom
from models.findings import FindingKind
from models.training.lesions import bit
from models.training.network import LESIONS, SPACING_MM
from models.training.sources import Sample

# chance, then smallest and largest size in the phantom's unit, drawn log-uniformly
_CHANCES: dict[FindingKind, tuple[float, float, float]] = {
    FindingKind.PULMONARY_NODULE: (0.5, 6.0, 30.0),
    FindingKind.PLEURAL_EFFUSION: (0.4, 30.0, 1200.0),
    FindingKind.PNEUMOTHORAX: (0.35, 40.0, 1500.0),
    FindingKind.CONSOLIDATION: (0.35, 8.0, 400.0),
    FindingKind.GROUND_GLASS_OPACITY: (0.35, 15.0, 600.0),
    FindingKind.PERICARDIAL_EFFUSION: (0.35, 40.0, 600.0),
    FindingKind.ATELECTASIS: (0.35, 8.0, 300.0),
    FindingKind.EMPHYSEMA: (0.15, 3.0, 40.0),
    FindingKind.INTERSTITIAL_ABNORMALITY: (0.1, 3.0, 25.0),
    FindingKind.LYMPHADENOPATHY: (0.1, 10.0, 25.0),
    FindingKind.BRONCHIECTASIS: (0.1, 2.0, 8.0),
    FindingKind.CARDIOMEGALY: (0.15, 0.5, 0.62),
    FindingKind.AORTIC_DILATATION: (0.15, 40.0, 60.0),
    FindingKind.HIATAL_HERNIA: (0.1, 25.0, 60.0),
    FindingKind.MEDICAL_DEVICE: (0.1, 1.0, 2.0),
    FindingKind.CORONARY_ARTERY_CALCIFICATION: (0.15, 30.0, 1500.0),
    FindingKind.ARTERIAL_WALL_CALCIFICATION: (0.15, 100.0, 5000.0),
    FindingKind.PULMONARY_ARTERY_ENLARGEMENT: (0.15, 31.0, 42.0),
    FindingKind.VERTEBRAL_COMPRESSION_FRACTURE: (0.15, 20.0, 60.0),
    FindingKind.LOW_BONE_DENSITY: (0.15, 30.0, 100.0),
    FindingKind.HEPATIC_STEATOSIS: (0.2, 1.0, 35.0),
}
_PRESSED_LUNG_MM = 12.5


def random_requests(rng: np.random.Generator, healthy: float) -> list[LesionRequest]:
    """A random set of findings; none at all with probability `healthy`."""
    if rng.random() < healthy:
        return []
    requests = []
    for kind, (chance, low, high) in _CHANCES.items():
        count = int(rng.integers(1, 4)) if kind is FindingKind.PULMONARY_NODULE else 1
        if rng.random() < chance:
            sizes = np.exp(rng.uniform(np.log(low), np.log(high), count))
            requests += [LesionRequest(kind=kind.value, size=float(size)) for size in sizes]
    return requests


def phantom_sample(phantom: Phantom) -> Sample:
    """The phantom's truth as labels; what HU cannot tell apart is left open."""
    lesions = np.zeros(phantom.anatomy.shape, np.uint8)
    unknown = np.zeros(phantom.anatomy.shape, np.uint8)
    for kind in LESIONS:
        if kind.value in phantom.lesions:
            lesions[phantom.lesions[kind.value]] |= bit(kind)
    if FindingKind.INTERSTITIAL_ABNORMALITY.value in phantom.lesions:
        parenchyma = bit(FindingKind.CONSOLIDATION) | bit(FindingKind.GROUND_GLASS_OPACITY)
        unknown[phantom.lesions[FindingKind.INTERSTITIAL_ABNORMALITY.value]] |= parenchyma
    if FindingKind.PLEURAL_EFFUSION.value in phantom.lesions:
        # fluid presses the lung beside it, which nobody outlined
        fluid = phantom.lesions[FindingKind.PLEURAL_EFFUSION.value]
        near = ndi.binary_dilation(fluid, iterations=round(_PRESSED_LUNG_MM / SPACING_MM))
        unknown[near & ~fluid] |= bit(FindingKind.ATELECTASIS)
    unknown &= ~lesions
    return Sample(
        hu=phantom.volume.hu.astype(np.float32),
        anatomy=phantom.anatomy.astype(np.uint8),
        lesions=lesions,
        unknown=unknown,
    )


def random_phantom(seed: int, healthy: float = 0.12) -> Phantom:
    """Phantom `seed` with random findings at the network's spacing; findings that do not fit are dropped."""
    rng = np.random.default_rng((seed, 77))
    requests = random_requests(rng, healthy)
    contrast = bool(rng.random() < 0.4)
    kernel = "sharp" if rng.random() < 0.3 else "soft"
    while True:
        try:
            return make_phantom(
                seed, requests, spacing_mm=(SPACING_MM,) * 3, contrast=contrast, kernel=kernel, noise_hu=6.0
            )
        except ValueError:
            if not requests:
                raise
            requests.pop(int(rng.integers(len(requests))))


def load_phantoms(folder: Path, first_seed: int, count: int) -> tuple[Sample, ...]:
    """The samples of `count` consecutive seeds, made where the folder does not hold them yet."""
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(_load(folder / f"{seed}.npz", seed) for seed in range(first_seed, first_seed + count))


def _load(path: Path, seed: int) -> Sample:
    if not path.exists():
        sample = phantom_sample(random_phantom(seed))
        unfinished = path.with_suffix(".part.npz")
        np.savez_compressed(
            unfinished,
            hu=sample.hu.astype(np.int16),
            anatomy=sample.anatomy,
            lesions=sample.lesions,
            unknown=sample.unknown,
        )
        unfinished.replace(path)
    with np.load(path) as stored:
        return Sample(
            hu=stored["hu"].astype(np.float32),
            anatomy=stored["anatomy"],
            lesions=stored["lesions"],
            unknown=stored["unknown"],
        )


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("first_seed", type=int)
    parser.add_argument("count", type=int)
    arguments = parser.parse_args()
    samples = load_phantoms(arguments.folder, arguments.first_seed, arguments.count)
    for index, kind in enumerate(LESIONS):
        print(kind.value, sum(bool((sample.lesions >> index & 1).any()) for sample in samples))


if __name__ == "__main__":
    main()
