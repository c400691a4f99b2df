"""The stream of training samples: deterministic by seed and index, whatever process makes them."""

import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic import dataclasses as checked
from torch import Tensor
from torch.utils.data import Dataset

from models import BUNDLED_MODEL_DIR
from models.training.annotations import rasterise, read_annotations
from models.training.labelled import find_labelled, labelled_sample
from models.training.lesions import insert_lesions
from models.training.network import MULTIPLE_OF
from models.training.phantoms import load_phantoms
from models.training.sources import OrganMap, Sample, read_ct, read_organ_map, real_sample, to_grid
from models.training.synthesis import deform, paint_organs, scan

# The coarsest level of the network has 1 / MULTIPLE_OF of the resolution, each level half of the one before.
_MOST_LEVELS = MULTIPLE_OF.bit_length()

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Some = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=MULTIPLE_OF, multiple_of=MULTIPLE_OF)]


@checked.dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
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


@checked.dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Mix:
    """How often a sample is a real volume, a painted organ map or a phantom; the three add up to 1."""

    real: Share
    painted: Share
    phantom: Share

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        total = self.real + self.painted + self.phantom
        if not math.isclose(total, 1.0):
            raise ValueError(f"real, painted and phantom add up to {total:g}, not to 1")
        return self


@checked.dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """One training run, as its TOML file says it.

    Paths of data are relative to `data_root`; `annotations`, the phantom folder and `labelled_folder` are relative to
    the TOML file, as is `start_from`, the folder of a model to start from ("bundled": the one that comes with OneScan).
    The folders of `labelled_folder` are volumes of one's own, described in `models.training.labelled`.
    """

    data_root: Path
    seed: Count
    steps: Some
    batch: Some
    precision: Literal["bfloat16", "float32"]
    crop: tuple[Side, Side, Side]
    learning_rate: Annotated[float, Field(gt=0.0)]
    features: Annotated[tuple[Some, ...], Field(min_length=2, max_length=_MOST_LEVELS)]
    healthy: Share
    mix: Mix
    volumes: tuple[Volume, ...] = ()
    held_out: tuple[Volume, ...] = ()
    labelled: tuple[Path, ...] = ()
    organ_map: str | None = None
    organ_map_licence: str = ""
    phantom_folder: Path
    phantom_first_seed: Count
    phantoms: Count
    start_from: Path | None = None


# Calibration and the comparisons of an export use phantoms of these seeds.
FIRST_UNSEEN_SEED = 5_000
_UNNAMED = "the mix asks for volumes, an organ map or phantoms that the configuration does not name"


def read_config(path: Path) -> Config:
    """Raises OSError where there is no such file, ValueError naming the file, the key and what is wrong with it."""
    folder = path.parent
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        for volume in (*table.get("volumes", ()), *table.get("held_out", ())):
            if "annotations" in volume:
                volume["annotations"] = (folder / volume["annotations"]).resolve()
        if "phantom_folder" in table:
            table["phantom_folder"] = (folder / table["phantom_folder"]).resolve()
        if isinstance(start := table.get("start_from"), str):
            table["start_from"] = BUNDLED_MODEL_DIR if start == "bundled" else (folder / start).resolve()
        config = Config(
            data_root=(folder / table.pop("data_root", ".")).resolve(),
            labelled=find_labelled(folder / table.pop("labelled_folder")) if "labelled_folder" in table else (),
            **table,
        )
        if config.phantom_first_seed + config.phantoms > FIRST_UNSEEN_SEED:
            raise ValueError(f"phantoms from seed {FIRST_UNSEEN_SEED} on are kept to check what was learnt")
        return config
    except ValidationError as error:
        raise ValueError(f"{path}: {_said(error)}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _said(error: ValidationError) -> str:
    keys = {"missing": "the key is missing", "unexpected_keyword_argument": "there is no such key"}
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {keys.get(one['type'], one['msg'])}" for one in error.errors())


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """Everything that is read once before training."""

    real: tuple[Sample, ...]
    organs: OrganMap | None
    phantoms: tuple[Sample, ...]


def read_sources(config: Config) -> Sources:
    """Read and label the real volumes and the organ map, and make the phantoms.

    Raises OSError or ValueError naming a volume that cannot be read, and ValueError where the mix asks for what the
    configuration does not name.
    """
    if not config.phantoms and config.mix.phantom > 0:
        raise ValueError(_UNNAMED)
    backgrounds = read_backgrounds(config)
    phantoms = load_phantoms(config.phantom_folder, config.phantom_first_seed, config.phantoms)
    return replace(backgrounds, phantoms=phantoms)


def read_backgrounds(config: Config) -> Sources:
    """What lesions are put into: the real volumes and the organ map, without phantoms. Raises as `read_sources`."""
    if not (config.volumes or config.labelled) and config.mix.real + config.mix.painted > 0:
        raise ValueError(_UNNAMED)
    if not config.organ_map and config.mix.painted > 0:
        raise ValueError(_UNNAMED)
    real = (
        *(read_host(config.data_root, volume) for volume in config.volumes),
        *(labelled_sample(folder) for folder in config.labelled),
    )
    organs = read_organ_map(config.data_root / config.organ_map) if config.organ_map else None
    return Sources(real, organs, ())


def read_host(data_root: Path, volume: Volume) -> Sample:
    """A real volume on the network's grid with what is known of it. Raises OSError or ValueError naming it."""
    grid = to_grid(read_ct(data_root / volume.path), -1024.0)
    try:
        return real_sample(
            grid,
            unlabelled_pneumonia=volume.unlabelled_pneumonia,
            nodules=volume.nodules,
            structures=None if volume.annotations is None else rasterise(read_annotations(volume.annotations), grid),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{volume.path} or its annotations: {error}") from error


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
