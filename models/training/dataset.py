"""The stream of training samples: deterministic by seed and index, whatever process makes them."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from models.training.annotations import rasterise, read_annotations
from models.training.labelled import find_labelled, labelled_sample
from models.training.lesions import insert_lesions
from models.training.phantoms import load_phantoms
from models.training.sources import OrganMap, Sample, read_ct, read_organ_map, real_sample, to_grid
from models.training.synthesis import Shape, deform, paint_organs, scan


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A real CT of the data root: `path` in it, its licence, and what it holds that is not outlined.

    `nodules` are (x, y, z, diameter) in mm, LPS. `annotations` is a file of outlined organs.
    """

    path: str
    name: str
    licence: str
    unlabelled_pneumonia: bool = False
    nodules: tuple[tuple[float, ...], ...] = ()
    annotations: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """How often a sample is a real volume, a painted organ map or a phantom; the three add up to 1."""

    real: float
    painted: float
    phantom: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One training run, as its TOML file says it.

    Paths of data are relative to `data_root`; `annotations`, the phantom folder and `labelled_folder` are relative to
    the TOML file. The folders of `labelled_folder` are volumes of one's own, described in `models.training.labelled`.
    """

    data_root: Path
    seed: int
    steps: int
    batch: int
    precision: Literal["bfloat16", "float32"]
    crop: Shape
    learning_rate: float
    features: tuple[int, ...]
    healthy: float
    mix: Mix
    volumes: tuple[Volume, ...]
    held_out: tuple[Volume, ...]
    labelled: tuple[Path, ...]
    organ_map: str | None
    organ_map_licence: str
    phantom_folder: Path
    phantom_first_seed: int
    phantoms: int


def read_config(path: Path) -> Config:
    """Raises TypeError where a key is missing or unknown, ValueError where a value is none of those allowed."""
    table: dict[str, Any] = tomllib.loads(path.read_text())
    if table["precision"] not in ("bfloat16", "float32"):
        raise ValueError(f"precision is {table['precision']!r}, not bfloat16 or float32")
    crop = tuple(table.pop("crop"))
    if len(crop) != 3:
        raise TypeError("crop has three axes")
    return Config(
        data_root=(path.parent / table.pop("data_root", ".")).resolve(),
        mix=Mix(**table.pop("mix")),
        volumes=tuple(_volume(volume, path.parent) for volume in table.pop("volumes", ())),
        held_out=tuple(_volume(volume, path.parent) for volume in table.pop("held_out", ())),
        organ_map=table.pop("organ_map", None),
        organ_map_licence=table.pop("organ_map_licence", ""),
        labelled=find_labelled(path.parent / table.pop("labelled_folder")) if "labelled_folder" in table else (),
        features=tuple(table.pop("features")),
        phantom_folder=(path.parent / table.pop("phantom_folder")).resolve(),
        crop=crop,
        **table,
    )


def _volume(table: dict[str, Any], folder: Path) -> Volume:
    annotations = table.pop("annotations", None)
    return Volume(**table, annotations=None if annotations is None else (folder / annotations).resolve())


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """Everything that is read once before training."""

    real: tuple[Sample, ...]
    organs: OrganMap | None
    phantoms: tuple[Sample, ...]


def read_sources(config: Config) -> Sources:
    """Read and label the real volumes and the organ map, and make the phantoms.

    Raises ValueError where the mix asks for what the configuration does not name.
    """
    real = (
        *(read_host(config.data_root, volume) for volume in config.volumes),
        *(labelled_sample(folder) for folder in config.labelled),
    )
    phantoms = load_phantoms(config.phantom_folder, config.phantom_first_seed, config.phantoms)
    organs = read_organ_map(config.data_root / config.organ_map) if config.organ_map else None
    mix = config.mix
    unnamed = (
        not real and mix.real + mix.painted > 0,
        organs is None and mix.painted > 0,
        not phantoms and mix.phantom > 0,
    )
    if any(unnamed):
        raise ValueError("the mix asks for volumes, an organ map or phantoms that the configuration does not name")
    return Sources(real, organs, phantoms)


def read_host(data_root: Path, volume: Volume) -> Sample:
    """A real volume on the network's grid with what is known of it."""
    grid = to_grid(read_ct(data_root / volume.path), -1024.0)
    return real_sample(
        grid,
        unlabelled_pneumonia=volume.unlabelled_pneumonia,
        nodules=volume.nodules,
        structures=None if volume.annotations is None else rasterise(read_annotations(volume.annotations), grid),
    )


def make_sample(sources: Sources, config: Config, index: int) -> Sample:
    """Sample `index` of the run."""
    rng = np.random.default_rng((config.seed, index))
    host = sources.real[rng.integers(len(sources.real))] if sources.real else None
    kind = rng.random()
    if host is None or kind < config.mix.phantom:
        return scan(deform(sources.phantoms[rng.integers(len(sources.phantoms))], config.crop, rng), rng)
    if sources.organs is not None and kind < config.mix.phantom + config.mix.painted:
        sample = paint_organs(sources.organs, host, config.crop, rng)
    else:
        sample = deform(host, config.crop, rng)
    insert_lesions(sample, rng, config.healthy)
    return scan(sample, rng)


class Samples(Dataset[dict[str, Tensor]]):
    """Samples `start` to `stop` of a run as tensors; a worker process may hold it."""

    def __init__(self, sources: Sources, config: Config, start: int, stop: int) -> None:
        self._sources = sources
        self._config = config
        self._start = start
        self._stop = stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        sample = make_sample(self._sources, self._config, self._start + item)
        return {
            "hu": torch.from_numpy(sample.hu)[None],
            "anatomy": torch.from_numpy(sample.anatomy),
            "lesions": torch.from_numpy(sample.lesions),
            "unknown": torch.from_numpy(sample.unknown),
        }

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[item] for item in range(len(self)))
