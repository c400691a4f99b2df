"""Studies with known truth, on the network's grid: real series and held-out simulation.

Real series take the way the product takes: headers, selection, volume, lungs, `imaging.preprocess.prepare`.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imaging.errors import ImagingError
from imaging.files import find_files
from imaging.headers import read_studies
from imaging.lungs import segment_lungs
from imaging.preprocess import prepare
from imaging.selection import select_series
from imaging.volume import Volume
from models.evaluation.images import read_image, read_mask, read_masks
from models.evaluation.truth import LabelledStudy, find_labelled_studies
from models.findings import FindingKind
from models.training.dataset import Config, Sources, read_host
from models.training.lesions import bit, insert_lesions
from models.training.network import LESIONS, MAXIMUM_HU, MINIMUM_HU, MULTIPLE_OF, SPACING_MM, VOXEL_ML
from models.training.phantoms import load_phantoms
from models.training.sources import Sample, gated_volume
from models.training.synthesis import deform, paint_organs, scan

# A lesion below this size is no reason to call a study positive, nor a mistake when it is missed.
SMALLEST_ML: dict[FindingKind, float] = {
    FindingKind.PULMONARY_NODULE: 0.27,  # a sphere of 8 mm
    FindingKind.PLEURAL_EFFUSION: 50.0,
    FindingKind.PNEUMOTHORAX: 50.0,
    FindingKind.CONSOLIDATION: 10.0,
    FindingKind.GROUND_GLASS_OPACITY: 25.0,
    FindingKind.PERICARDIAL_EFFUSION: 80.0,
    FindingKind.ATELECTASIS: 15.0,
    FindingKind.INTERSTITIAL_ABNORMALITY: 40.0,
}


HELD_OUT_SOURCE = "lesions put into patients not trained on"
_SHAPE = (112, 112, 144)
_HEALTHY = 0.2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Study:
    """One study with what is known of it. `hu` is (1, 1, D, H, W); `masks` and `present` by kind, where known.

    `unknown` is where simulation leaves open whether there is any of a kind.
    """

    name: str
    source: str
    simulated: bool
    trained_on: bool
    hu: npt.NDArray[np.float32]
    present: Mapping[FindingKind, bool]
    masks: Mapping[FindingKind, npt.NDArray[np.bool_]] = field(default_factory=dict)
    unknown: Mapping[FindingKind, npt.NDArray[np.bool_]] = field(default_factory=dict)


def real_studies(index: Path) -> Iterator[Study]:
    """The studies of an index file of `models.evaluation.truth`, one after the other.

    Raises UnreadableTruth for the index, ValueError naming the study that cannot be read.
    """
    for labelled in find_labelled_studies([index]):
        try:
            yield _real_study(labelled)
        except (ImagingError, OSError, ValueError) as error:
            raise ValueError(f"{labelled.truth.name}: {error}") from error


def _real_study(labelled: LabelledStudy) -> Study:
    truth = labelled.truth
    volume = read_volume(labelled.data)
    # On the network's grid a small outline may have no voxel: whether it fits is seen on the image.
    outlined = read_masks(labelled, volume.geometry)
    grid = prepare(
        volume,
        segment_lungs(volume),
        spacing_mm=SPACING_MM,
        multiple_of=MULTIPLE_OF,
        minimum_hu=MINIMUM_HU,
        maximum_hu=MAXIMUM_HU,
    )
    known = {kind: truth.of(kind).presence for kind in FindingKind}
    masks = {kind: labelled.mask_path(kind) for kind in outlined}
    return Study(
        name=truth.name,
        source=f"{truth.licence} ({truth.source})",
        simulated=False,
        trained_on=truth.trained_on,
        hu=grid.hu,
        present={kind: presence == "present" for kind, presence in known.items() if presence != "unknown"},
        masks={kind: read_mask(path, grid.geometry) for kind, path in masks.items() if path is not None},
    )


def read_volume(path: Path) -> Volume:
    """The chest series of a DICOM folder, or a file that SimpleITK reads with HU in it.

    Raises ValueError where there is none or the gate on headers refuses it, ImagingError or OSError where it cannot
    be read.
    """
    if not path.is_dir():
        return read_image(path)
    with tempfile.TemporaryDirectory(prefix="onescan-") as unpacked:
        studies, _ = read_studies(find_files([path], Path(unpacked)).files)
        chosen = select_series(studies[0]).chosen if studies else None
        if chosen is None:
            raise ValueError(f"no chest series in {path.name}")
        return gated_volume(chosen)


def simulated_studies(sources: Sources, config: Config, first_seed: int, count: int) -> Iterator[Study]:
    """Lesions in whole thoraces of the training hosts and painted organ maps, with seeds training never saw.

    None where there are no hosts.
    """
    for index in range(first_seed, first_seed + count if sources.real else first_seed):
        rng = np.random.default_rng((config.seed + 1, index))
        host = sources.real[rng.integers(len(sources.real))]
        painted = rng.random() < 0.3
        organs = sources.organs if painted else None
        sample = deform(host, _SHAPE, rng) if organs is None else paint_organs(organs, host, _SHAPE, rng)
        insert_lesions(sample, rng, _HEALTHY)
        yield _of_sample(scan(sample, rng), f"simulated {index}", "lesions put into training hosts")


def held_out_studies(config: Config, first_seed: int, count: int) -> Iterator[Study]:
    """Lesions in the patients of `Config.held_out`; none where there are no such patients."""
    hosts = held_out_hosts(config)
    for index in range(first_seed, first_seed + count if hosts else first_seed):
        yield held_out_study(hosts, config, index)


def held_out_hosts(config: Config) -> tuple[Sample, ...]:
    """The patients of `Config.held_out` as they are."""
    return tuple(read_host(config.data_root, volume) for volume in config.held_out)


def held_out_study(hosts: Sequence[Sample], config: Config, index: int) -> Study:
    """Study `index`: lesions put into one of the hosts."""
    rng = np.random.default_rng((config.seed + 1, index))
    sample = deform(hosts[index % len(hosts)], _SHAPE, rng)
    insert_lesions(sample, rng, _HEALTHY)
    return _of_sample(scan(sample, rng), f"held out {index}", HELD_OUT_SOURCE)


def phantom_studies(config: Config, first_seed: int, count: int) -> Iterator[Study]:
    """Phantoms of seeds that training never saw, from the run's phantom folder."""
    for seed in range(first_seed, first_seed + count):
        (sample,) = load_phantoms(config.phantom_folder, seed, 1)
        yield _of_sample(sample, f"phantom {seed}", "phantoms")


def _of_sample(sample: Sample, name: str, source: str) -> Study:
    shape = [int(np.ceil(n / MULTIPLE_OF)) * MULTIPLE_OF for n in sample.hu.shape]
    fill = [(0, wanted - n) for wanted, n in zip(shape, sample.hu.shape, strict=True)]
    present: dict[FindingKind, bool] = {}
    masks, unknown = {}, {}
    for kind in LESIONS:
        mask = np.pad((sample.lesions & bit(kind)) > 0, fill)
        volume_ml = float(mask.sum()) * VOXEL_ML
        unknown[kind] = np.pad((sample.unknown & bit(kind)) > 0, fill)
        open_ml = float(unknown[kind].sum()) * VOXEL_ML
        masks[kind] = mask
        if volume_ml >= SMALLEST_ML[kind]:
            present[kind] = True
        elif volume_ml == 0 and open_ml < SMALLEST_ML[kind]:
            present[kind] = False
    return Study(
        name=name,
        source=source,
        simulated=True,
        trained_on=False,
        hu=np.pad(sample.hu, fill, constant_values=-1024.0)[None, None],
        present=present,
        masks=masks,
        unknown=unknown,
    )
