"""From a source to a training image: deformation, organs painted from a label map, and the scanner's part."""

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage as ndi

from models.findings import FindingKind
from models.training.labels import LABEL
from models.training.lesions import Array, bit, smooth_noise
from models.training.sources import OrganMap, Sample

Shape = tuple[int, int, int]


def _sampling_grid(shape: Shape, target: Shape, rng: np.random.Generator) -> torch.Tensor:
    """Where each voxel of `target` looks in `shape`, in grid_sample's coordinates: affine and elastic."""
    angles = np.deg2rad(rng.normal(0, (4, 4, 6)))
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [i for i in range(3) if i != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    scale = np.exp(rng.normal(0, 0.05) + rng.normal(0, 0.06, 3))
    free = [max(0.0, (n * s - t) / 2) for n, s, t in zip(shape, scale, target, strict=True)]
    shift = np.array([rng.uniform(-f, f) for f in free]) + rng.normal(0, (6, 4, 4))
    axes = np.meshgrid(*(np.arange(t, dtype=np.float32) - (t - 1) / 2 for t in target), indexing="ij")
    offset = np.stack([a + s for a, s in zip(axes, shift, strict=True)], axis=-1)
    matrix = (rotation / scale[:, None]).astype(np.float32)
    points = offset @ matrix.T
    for axis in range(3):
        points[..., axis] += rng.uniform(0.0, 3.0) * smooth_noise(target, rng.uniform(18, 45), rng)
    half = (np.array(shape, dtype=np.float32) - 1) / 2
    return torch.from_numpy(np.ascontiguousarray((points / half)[..., ::-1], dtype=np.float32))[None]


def _look_up(values: npt.NDArray[np.generic], grid: torch.Tensor, outside: float, mode: str) -> Array:
    source = torch.from_numpy(values.astype(np.float32) - outside)[None, None]
    found = torch.nn.functional.grid_sample(source, grid, mode=mode, padding_mode="zeros", align_corners=True)
    return found[0, 0].numpy() + np.float32(outside)


def deform(sample: Sample, target: Shape, rng: np.random.Generator) -> Sample:
    """The sample on a grid of shape `target`, moved, turned, scaled and bent by random amounts."""
    grid = _sampling_grid(sample.hu.shape, target, rng)
    nearest = {
        name: _look_up(getattr(sample, name), grid, 0.0, "nearest").astype(np.uint8)
        for name in ("anatomy", "lesions", "unknown")
    }
    return Sample(hu=_look_up(sample.hu, grid, -1024.0, "bilinear"), **nearest)


_ORGAN_HU: tuple[tuple[str, float, float], ...] = (
    # prefix, mean and spread of the unenhanced HU
    ("vertebrae_", 180.0, 60.0),
    ("rib_", 280.0, 90.0),
    ("sternum", 150.0, 60.0),
    ("clavicula", 300.0, 90.0),
    ("scapula", 300.0, 90.0),
    ("humerus", 300.0, 90.0),
    ("costal_cartilages", 120.0, 40.0),
    ("spinal_cord", 35.0, 8.0),
    ("liver", 55.0, 14.0),
    ("spleen", 48.0, 8.0),
    ("autochthon", 50.0, 12.0),
    ("stomach", 20.0, 30.0),
    ("colon", -100.0, 200.0),
    ("small_bowel", 20.0, 30.0),
    ("esophagus", 30.0, 15.0),
    ("kidney", 32.0, 6.0),
)
_BLOOD = ("heart", "aorta", "atrial", "pulmonary_vein", "brachiocephalic", "carotid", "subclavian", "superior", "inf")
_ENHANCING = ("liver", "spleen", "kidney", "portal")
# A fatty liver has the HU of fluid.
_FATTY_LIVER_SHARE = 0.25


def paint_organs(organs: OrganMap, lungs: Sample, target: Shape, rng: np.random.Generator) -> Sample:
    """A CT made from a deformed organ map: one random HU per organ, lungs textured with those of a real sample."""
    grid = _sampling_grid(organs.organ.shape, target, rng)
    organ = _look_up(organs.organ, grid, 0.0, "nearest").astype(np.uint8)
    anatomy = _look_up(organs.anatomy, grid, 0.0, "nearest").astype(np.uint8)
    _vary_outline(anatomy, organ, rng)
    values = np.zeros(256, np.float32)
    enhancement = rng.uniform(60, 300) if rng.random() < 0.5 else 0.0
    for label, name in organs.names.items():
        values[label] = _organ_hu(name, enhancement, rng)
    hu = values[organ]
    body = anatomy == LABEL["body"]
    muscle = smooth_noise(target, rng.uniform(3, 10), rng) + rng.normal(0, 0.7)
    unlabelled = body & (organ == 0)
    hu[unlabelled] = np.where(muscle > 0, rng.uniform(35, 65), rng.uniform(-115, -85))[unlabelled]
    inner = ndi.uniform_filter((anatomy != LABEL["background"]).astype(np.float32), 9) < 0.97
    hu[unlabelled & inner] = rng.uniform(-115, -85)
    hu[anatomy == LABEL["background"]] = -1000.0
    hu[anatomy == LABEL["airways"]] = rng.uniform(-1000, -960)
    _bone_cortex(hu, anatomy, rng)
    hu = ndi.gaussian_filter(hu + 8 * smooth_noise(target, 2.5, rng), rng.uniform(0.3, 0.7))
    for side in ("left", "right"):
        _paint_lung(hu, anatomy == LABEL[f"lung_{side}"], lungs, side, rng)
    zeros = np.zeros(target, np.uint8)
    return Sample(hu=hu.astype(np.float32), anatomy=anatomy, lesions=zeros, unknown=zeros.copy())


def _organ_hu(name: str, enhancement: float, rng: np.random.Generator) -> float:
    if name == "liver" and rng.random() < _FATTY_LIVER_SHARE:
        return float(rng.uniform(-10.0, 35.0))
    if name.startswith(_BLOOD):
        blood = 42.0 + enhancement * rng.uniform(0.5, 1.2)
        return blood + rng.normal(0, 6)
    mean, spread = next(((m, s) for prefix, m, s in _ORGAN_HU if name.startswith(prefix)), (40.0, 15.0))
    if name.startswith(_ENHANCING):
        mean += 0.3 * enhancement * rng.uniform(0.3, 1.2)
    return mean + spread * rng.normal()


def _vary_outline(anatomy: npt.NDArray[np.uint8], organ: npt.NDArray[np.uint8], rng: np.random.Generator) -> None:
    """More or less fat around the trunk; holes that vessels left in the lung labels are closed."""
    body = anatomy != LABEL["background"]
    thicker = ndi.binary_dilation(body, iterations=int(rng.integers(1, 8)))
    anatomy[thicker & ~body] = LABEL["body"]
    for side in ("left", "right"):
        lung = anatomy == LABEL[f"lung_{side}"]
        holes = ndi.binary_closing(lung, iterations=1) & (anatomy == LABEL["body"]) & (organ == 0)
        anatomy[holes] = LABEL[f"lung_{side}"]


def _bone_cortex(hu: Array, anatomy: npt.NDArray[np.uint8], rng: np.random.Generator) -> None:
    bones = np.isin(anatomy, (LABEL["vertebrae"], LABEL["ribs"], LABEL["sternum"]))
    cortex = bones & ~ndi.binary_erosion(bones)
    hu[cortex] += rng.uniform(50, 350)


def _paint_lung(hu: Array, lung: npt.NDArray[np.bool_], texture: Sample, side: str, rng: np.random.Generator) -> None:
    """Fill a lung with a real lung's HU, box stretched onto box; bare parenchyma where that one ends."""
    sure = texture.anatomy == LABEL[f"lung_{side}"]
    boxes, real = ndi.find_objects(lung.astype(np.uint8)), ndi.find_objects(sure.astype(np.uint8))
    if not boxes or not real:
        return
    box = boxes[0]
    shape = tuple(s.stop - s.start for s in box)
    source = np.where(sure, texture.hu, np.nan)[real[0]]
    index = [
        np.clip(np.round(np.linspace(0, m - 1, n)).astype(int), 0, m - 1)
        for m, n in zip(source.shape, shape, strict=True)
    ]
    found = source[np.ix_(*index)]
    base = rng.uniform(-880, -800) + 15 * smooth_noise(shape, 2.0, rng)
    base += rng.uniform(0, 60) * np.linspace(-0.5, 0.5, shape[1], dtype=np.float32)[None, :, None]
    part = lung[box]
    hu[box][part] = np.where(np.isnan(found), base, found)[part]


def _breathed_out(sample: Sample, rng: np.random.Generator) -> Array:
    """Less or more air in all of the lungs, below in the patient more so; no finding, whatever it looks like."""
    lungs = np.isin(sample.anatomy, (LABEL["lung_left"], LABEL["lung_right"]))
    rows = np.nonzero(lungs.any(axis=(0, 2)))[0]
    if not rows.size:
        return sample.hu
    height = (np.arange(sample.hu.shape[1], dtype=np.float32) - rows[0]) / max(1, rows[-1] - rows[0])
    # lungs at rest hold half the air of a full breath: the density of -690 HU instead of -850 is 0.18 more; who reads
    # the answer leaves ground glass open there, so that faint ground glass in full lungs may be learned
    filled = rng.uniform(-0.05, 0.12) + max(0.0, rng.normal(0.0, 0.06)) * (height - 0.3)
    filled = np.clip(filled, -0.06, 0.2).astype(np.float32)[None, :, None]
    aerated = lungs & (sample.lesions & bit(FindingKind.PNEUMOTHORAX) == 0)
    changed: Array = sample.hu + filled * aerated * np.maximum(40.0 - sample.hu, 0.0)
    return changed


def scan(sample: Sample, rng: np.random.Generator) -> Sample:
    """What scanner and patient add: inspiration, contrast of the window, slice thickness, kernel, noise, offsets."""
    hu = _breathed_out(sample, rng) if rng.random() < 0.3 else sample.hu
    hu = hu * rng.normal(1.0, 0.015) + rng.normal(0, 8)
    if rng.random() < 0.5:
        thick = rng.uniform(0.4, 1.0)
        hu = ndi.gaussian_filter1d(hu, thick, axis=0)
    if rng.random() < 0.35:
        hu = ndi.gaussian_filter(hu, (0.0, *[rng.uniform(0.3, 0.8)] * 2))
    elif rng.random() < 0.4:  # a sharp kernel overshoots at edges
        hu = hu + rng.uniform(0.1, 0.6) * (hu - ndi.gaussian_filter(hu, 0.8))
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    sigma = float(np.exp(rng.uniform(np.log(3), np.log(55))))
    if rng.random() < 0.5:
        noise = 1.8 * ndi.gaussian_filter(noise, 0.5)
    hu = np.clip(hu + sigma * noise, -1024.0, 3071.0).astype(np.float32)
    return Sample(hu=hu, anatomy=sample.anatomy, lesions=sample.lesions, unknown=sample.unknown)
