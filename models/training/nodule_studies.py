"""Scans of patients that training never saw, with nodules put into them on the grid they were scanned on."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from imaging.lungs import segment_lungs
from imaging.resample import resampled
from imaging.volume import Volume
from models.evaluation.truth import TrueLesion
from models.nodules.grid import LungGrid, lung_grid
from models.training.dataset import Config
from models.training.lesions import Array
from models.training.nodule_scenes import Host, Inserted, make_scene, slice_weights
from models.training.nodule_shapes import read_shapes
from models.training.nodules import SHAPES
from models.training.studies import read_volume

SOURCE = "nodules put into scans of patients not trained on"
# Smaller ones are there, but not asked for.
_COUNTED_MM = 4.0
_WITHOUT = 1 / 3
_MOST = 6


@dataclass(frozen=True, slots=True, eq=False)
class NoduleHosts:
    """The scans of `Config.held_out` with their lungs at 1 mm, and outlines of real nodules to draw from."""

    scans: tuple[tuple[Volume, LungGrid], ...]
    shapes: tuple[Array, ...]


@dataclass(frozen=True, slots=True, eq=False)
class NoduleStudy:
    """A scan and the nodules put into it."""

    name: str
    source: str
    volume: Volume
    nodules: tuple[TrueLesion, ...]


def nodule_hosts(config: Config) -> NoduleHosts:
    """Raises ImagingError, OSError or ValueError naming the volume that cannot be read or shows no lungs."""
    scans = []
    for held_out in config.held_out:
        volume = read_volume(config.data_root / held_out.path)
        grid = lung_grid(volume, segment_lungs(volume))
        if grid is None:
            raise ValueError(f"{held_out.path} shows no lungs")
        scans.append((volume, grid))
    return NoduleHosts(tuple(scans), read_shapes(config.data_root / SHAPES))


def nodule_study(hosts: NoduleHosts, config: Config, index: int) -> NoduleStudy:
    """Study `index`: none to six nodules in one of the hosts, whose resolution and noise stay as they are.

    The nodules are made at 1 mm. What they change is averaged over the host's slices and added to its own voxels.
    """
    rng = np.random.default_rng((config.seed + 1, index))
    volume, grid = hosts.scans[index % len(hosts.scans)]
    count = 0 if rng.random() < _WITHOUT else int(rng.integers(1, _MOST + 1))
    scene = make_scene(Host(str(index), grid.hu, grid.lung), hosts.shapes, count, rng, as_scanned=True)
    slice_mm = volume.geometry.spacing_mm[0]
    reach = math.ceil(slice_mm / 2)
    weights = slice_weights(np.arange(-reach, reach + 1.0), slice_mm)
    change = ndimage.convolve1d(scene.hu - grid.hu, weights.astype(np.float32), axis=0)
    hu = volume.hu + resampled(change, grid.geometry.affine, volume.geometry)
    return NoduleStudy(
        name=f"nodules {index}",
        source=SOURCE,
        volume=replace(volume, hu=np.clip(np.rint(hu), -1024, 3071).astype(np.int16)),
        nodules=tuple(_truth(nodule, grid) for nodule in scene.nodules),
    )


def _truth(nodule: Inserted, grid: LungGrid) -> TrueLesion:
    x, y, z = grid.geometry.index_to_patient(nodule.centre)
    return TrueLesion(
        centre_lps_mm=(float(x), float(y), float(z)),
        diameter_mm=nodule.long_axis_mm,
        short_axis_mm=nodule.short_axis_mm,
        counts=nodule.axial_mm >= _COUNTED_MM,
    )
