"""Lesions put into the lungs of a sample by what they do to CT numbers.

Ground glass and consolidation replace air by fluid (HU move towards soft tissue by the filled fraction, vessels stay);
effusion and pneumothorax fill the lung space from the dependent or non-dependent side with a meniscus along the wall;
nodules are smooth-edged bodies with partial volume. Each function changes the sample's arrays in place.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage as ndi

from models.findings import FindingKind
from models.training.labels import LABEL
from models.training.network import LESIONS, SPACING_MM, VOXEL_ML
from models.training.sources import Sample

# three voxels: what is smaller is the business of the nodule detector, on a finer grid
_SEEN_NODULE_MM = 3 * SPACING_MM
_THICK_VOXELS = round(10.0 / SPACING_MM)

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Box = tuple[slice, slice, slice]


def bit(kind: FindingKind) -> np.uint8:
    """The bit of a kind in `Sample.lesions` and `Sample.unknown`."""
    return np.uint8(1 << LESIONS.index(kind))


def smooth_noise(shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> Array:
    """Standard normal noise with a correlation length of about `scale` voxels."""
    coarse = [max(2, int(np.ceil(n / scale)) + 1) for n in shape]
    noise = torch.from_numpy(rng.standard_normal(coarse).astype(np.float32))[None, None]
    smooth = torch.nn.functional.interpolate(noise, size=shape, mode="trilinear", align_corners=True)
    return smooth[0, 0].numpy()


def soft_edge(level: Array, width: float) -> Array:
    """0 to 1 over `width` units of `level` around 0: the partial volume of a boundary."""
    return np.clip(level / width + 0.5, 0.0, 1.0).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Cavity:
    """One lung space of a sample, cut to its box. `box` cuts sample arrays; `depth` is 0 at the wall, 1 inside.

    `reach` is one voxel wider than `space`: the wall's partial-volume voxels, which change with what touches them.
    """

    box: Box
    space: Mask
    reach: Mask
    depth: Array
    z: Array
    y: Array
    x: Array


def cavity(sample: Sample, side: str) -> Cavity | None:
    """The lung space of a side ("left", "right"), or None where the sample has none to speak of.

    z, y and x run from 0 to 1 over the box: to superior, posterior and lateral.
    """
    sure = sample.anatomy == LABEL[f"lung_{side}"]
    if sure.sum() * VOXEL_ML < 300:
        return None
    box = ndi.find_objects(sure.astype(np.uint8))[0]
    box = tuple(slice(max(0, a.start - 3), a.stop + 3) for a in box)
    labels = sample.anatomy[box]
    space = (labels == LABEL[f"lung_{side}"]) | (
        (labels == LABEL[f"{side}_or_soft"]) & (ndi.uniform_filter(sure[box].astype(np.float32), 5) > 0.55)
    )
    depth = np.clip(2.0 * ndi.gaussian_filter(space.astype(np.float32), 4.0) - 1.0, 0.0, 1.0)
    z, y, x = (
        np.linspace(0, 1, n, dtype=np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
        for axis, n in enumerate(space.shape)
    )
    return Cavity(box, space, ndi.binary_dilation(space), depth, z, y, x if side == "left" else 1 - x)


def _threshold(level: Array, within: Mask, volume_ml: float) -> float:
    """The level above which `within` holds about `volume_ml`."""
    values = level[within]
    count = min(values.size - 1, max(1, round(volume_ml / VOXEL_ML)))
    return float(np.partition(values, values.size - count)[values.size - count])


def _soft_tissue_hu(sample: Sample) -> float:
    """HU of blood in this image, which tells contrast: a high percentile of what is dense but not bone."""
    dense = sample.hu[(sample.hu > 10) & (sample.hu < 300) & (sample.anatomy != LABEL["bone"])]
    return float(np.percentile(dense[::97], 60)) if dense.size > 9700 else 45.0


def _gravity_level(space: Cavity, rng: np.random.Generator, sign: float, elsewhere: float = 0.12) -> Array:
    """A height that rises towards the dependent (sign 1) or non-dependent (-1) side of a supine patient.

    With probability `elsewhere` it is loculated, or the patient does not lie on the back.
    """
    posterior = rng.uniform(0.7, 1.2) * sign
    lateral = rng.normal(0, 0.1)
    axial = -sign * rng.uniform(0.1, 0.9) if rng.random() < 0.85 else rng.uniform(-0.2, 0.5)
    if sign < 0:
        axial = rng.uniform(-0.1, 0.7)
    if rng.random() < elsewhere:
        posterior, lateral, axial = (float(v) for v in rng.normal(0, 0.7, 3))
    plane = posterior * space.y + lateral * space.x + axial * space.z
    meniscus = rng.uniform(0.03, 0.45) * (1.0 - space.depth) ** 2
    waves = 0.06 * smooth_noise(space.space.shape, rng.uniform(8, 25), rng)
    return (plane + meniscus + waves).astype(np.float32)


def add_effusion(sample: Sample, space: Cavity, rng: np.random.Generator) -> None:
    """Pleural fluid of 10 to 2000 ml, with compressed lung beside it."""
    hu, lesions = sample.hu[space.box], sample.lesions[space.box]
    capacity = float(space.space.sum()) * VOXEL_ML
    volume_ml = min(float(np.exp(rng.uniform(np.log(15), np.log(1800)))), 0.8 * capacity)
    level = _gravity_level(space, rng, 1.0)
    edge = ndi.gaussian_filter(level, 0.7) - _threshold(level, space.space, volume_ml)
    fluid = space.space & (edge > 0)
    fluid_hu = rng.uniform(-5, 35) + rng.uniform(2, 8) * smooth_noise(hu.shape, 5, rng)
    collapse = rng.uniform(0.0, 0.3) * (volume_ml / (volume_ml + 200))
    near = soft_edge(edge + collapse + 0.05 * smooth_noise(hu.shape, 6, rng), 0.04) * space.reach
    tissue_hu = _soft_tissue_hu(sample) + rng.uniform(-30, 25)
    # lung pressed together, denser towards the fluid, is hazy without being ground glass
    pressed = np.exp(-np.clip(-edge - collapse, 0.0, None) / rng.uniform(0.02, 0.12))
    hu += rng.uniform(0.0, 0.4) * pressed.astype(np.float32) * space.space * np.maximum(tissue_hu - hu, 0.0)
    if collapse > 0.02:
        filled = near * rng.uniform(0.7, 1.0)
        hu += filled * np.maximum(tissue_hu - hu, 0.0)
        collapsed = (near > 0.5) & ~fluid & space.space
        lesions[collapsed] &= ~bit(FindingKind.GROUND_GLASS_OPACITY)
        lesions[collapsed] |= bit(FindingKind.ATELECTASIS)
    _fill(hu, space.reach * soft_edge(edge, 0.025), fluid_hu)
    _relabel(sample, space.box, fluid, FindingKind.PLEURAL_EFFUSION)


def add_pneumothorax(sample: Sample, space: Cavity, rng: np.random.Generator) -> None:
    """Air without vessels on the non-dependent side, the lung behind it a little denser."""
    hu = sample.hu[space.box]
    capacity = float(space.space.sum()) * VOXEL_ML
    volume_ml = min(float(np.exp(rng.uniform(np.log(25), np.log(2500)))), 0.75 * capacity)
    level = _gravity_level(space, rng, -1.0)
    edge = ndi.gaussian_filter(level, 0.8) - _threshold(level, space.space, volume_ml)
    air = space.space & (edge > 0)
    rest = space.space & ~air
    hu[rest] += np.float32(rng.uniform(0.0, 0.35) * volume_ml / capacity) * (40.0 - hu[rest])
    pleura = soft_edge(edge + 0.03, 0.03) * (1 - soft_edge(edge - 0.005, 0.03)) * space.space
    hu += pleura * rng.uniform(30, 250)
    _replace(hu, space.space * soft_edge(edge, 0.025), rng.uniform(-1010, -975))
    _relabel(sample, space.box, air, FindingKind.PNEUMOTHORAX)


def _replace(hu: Array, alpha: Array, value: Array | float) -> None:
    hu *= 1.0 - alpha
    hu += alpha * value


def _fill(hu: Array, alpha: Array, fluid_hu: Array) -> None:
    """Fluid in place of air and vessels; the wall beyond keeps its own HU."""
    hu += alpha * np.where(hu < 0, fluid_hu - hu, np.clip(fluid_hu - hu, -200.0, 0.0) * (alpha > 0.9))


def _relabel(sample: Sample, box: Box, mask: Mask, kind: FindingKind) -> None:
    """`kind` takes the place of every other lesion in `mask`, and what is there is known."""
    lesions, unknown = sample.lesions[box], sample.unknown[box]
    lesions[mask] = bit(kind)
    unknown[mask] = 0
    anatomy = sample.anatomy[box]
    for side in ("left", "right"):
        anatomy[mask & (anatomy == LABEL[f"{side}_or_soft"])] = LABEL[f"lung_{side}"]


def _patches(space: Cavity, rng: np.random.Generator) -> tuple[Array, float]:
    """A noise level whose upper part makes patches, and a volume for them: focal, lobar, peripheral or diffuse."""
    shape = space.space.shape
    level = smooth_noise(shape, float(np.exp(rng.uniform(np.log(5), np.log(28)))), rng)
    level = level + 0.35 * smooth_noise(shape, 3.5, rng)
    level = level + rng.uniform(-0.6, 1.6) * (space.y - 0.5) - rng.uniform(-0.5, 1.6) * (space.z - 0.5)
    level = level - rng.uniform(-0.5, 1.8) * (space.depth - 0.5)
    if rng.random() < 0.6:  # one focus
        centre = rng.uniform(0.1, 0.9, 3)
        distance = (space.z - centre[0]) ** 2 + (space.y - centre[1]) ** 2 + (space.x - centre[2]) ** 2
        level = level - rng.uniform(4, 30) * distance
    if rng.random() < 0.3:  # a fissure ends it
        normal = rng.normal(size=3)
        point = rng.uniform(0.3, 0.7, 3)
        side = sum(n * (a - p) for n, a, p in zip(normal, (space.z, space.y, space.x), point, strict=True))
        level = level - 6.0 * (side > 0)
    volume_ml = float(np.exp(rng.uniform(np.log(3), np.log(900))))
    return level.astype(np.float32), min(volume_ml, 0.7 * float(space.space.sum()) * VOXEL_ML)


def add_ground_glass(sample: Sample, space: Cavity, rng: np.random.Generator) -> None:
    """Part of the air replaced by fluid: hazy, vessels still seen."""
    hu = sample.hu[space.box]
    level, volume_ml = _patches(space, rng)
    edge = level - _threshold(level, space.space, volume_ml)
    ramp = soft_edge(edge, rng.uniform(0.1, 0.8)) * space.reach
    filled = np.clip((0.15 + 0.45 * rng.random() ** 1.5) * ramp * (1 + 0.25 * smooth_noise(hu.shape, 3, rng)), 0, 0.75)
    hu += filled * np.maximum(30.0 - hu, 0.0)
    _mark(sample, space, filled > 0.12, (filled > 0.05) & (filled < 0.14), FindingKind.GROUND_GLASS_OPACITY)


def add_consolidation(sample: Sample, space: Cavity, rng: np.random.Generator) -> None:
    """Air replaced by fluid or cells up to soft tissue, bronchi may stay open, often with a hazy rim."""
    hu = sample.hu[space.box]
    level, volume_ml = _patches(space, rng)
    edge = level - _threshold(level, space.space, volume_ml)
    ramp = soft_edge(edge, rng.uniform(0.1, 0.5)) * space.reach
    tissue_hu = rng.uniform(0, 65) if rng.random() < 0.7 else _soft_tissue_hu(sample) + rng.uniform(-40, 20)
    rim = soft_edge(edge + rng.uniform(0.1, 0.8), 0.7) * space.reach * rng.uniform(0.0, 0.5)
    bronchi = ndi.gaussian_filter(hu, 0.4) < -960 if rng.random() < 0.5 else np.zeros(hu.shape, bool)
    filled = np.maximum(ramp * rng.uniform(0.88, 1.0) * (1 - 0.6 * bronchi), rim)
    hu += filled * np.maximum(tissue_hu + 6 * smooth_noise(hu.shape, 4, rng) - hu, 0.0)
    _mark(sample, space, (filled > 0.13) & (ramp < 0.6), filled < 0.0, FindingKind.GROUND_GLASS_OPACITY)
    thick = _thick((ramp >= 0.6) & space.space)
    _mark(sample, space, thick, (ramp > 0.3) & (ramp < 0.75), FindingKind.CONSOLIDATION)
    _leave_open(sample, space, (ramp >= 0.6) & ~thick)


def add_atelectasis(sample: Sample, space: Cavity, rng: np.random.Generator) -> None:
    """Dependent, plate-like or lobar collapse without fluid.

    Where only lung that lies below is airless, it may as well be consolidation, which is left open.
    """
    hu = sample.hu[space.box]
    form = rng.random()
    dependent = 0.25 <= form < 0.6
    if form < 0.25:  # a lobe collapsed towards the hilum
        reach = (space.z - rng.uniform(0.25, 0.75)) ** 2 * rng.uniform(1, 6)
        reach = reach + (space.y - rng.uniform(0.3, 0.8)) ** 2 * rng.uniform(1, 8) + space.x * rng.uniform(0.3, 1.2)
        level = (0.04 * smooth_noise(hu.shape, 8, rng) - reach).astype(np.float32)
        volume_ml = float(np.exp(rng.uniform(np.log(20), np.log(300))))
        ramp = soft_edge(level - _threshold(level, space.space, volume_ml), 0.04)
    elif dependent:
        level = _gravity_level(space, rng, 1.0)
        edge = level - _threshold(level, space.space, float(rng.uniform(5, 150)))
        ramp = soft_edge(edge, 0.05)
    else:
        normal = np.array([1.0, rng.normal(0, 0.5), rng.normal(0, 0.5)])
        plane = normal[0] * (space.z - rng.uniform(0.05, 0.4)) + normal[1] * space.y + normal[2] * space.x
        plane = plane - np.median(plane) * 0.5 + 0.03 * smooth_noise(hu.shape, 10, rng)
        extent = smooth_noise(hu.shape, 14, rng) > rng.uniform(0.3, 1.2)
        ramp = soft_edge(rng.uniform(0.015, 0.04) - np.abs(plane).astype(np.float32), 0.02) * extent
    ramp = (ramp * space.reach).astype(np.float32)
    hu += ramp * np.maximum(_soft_tissue_hu(sample) + rng.uniform(-40, 10) - hu, 0.0)
    plate = form >= 0.6
    mask = ramp > 0.5 if plate else _thick((ramp > 0.5) & space.space)
    _mark(sample, space, mask, (ramp > 0.2) & (ramp < 0.7), FindingKind.ATELECTASIS)
    if not plate:
        _leave_open(sample, space, (ramp > 0.5) & ~mask)
    opacity = bit(FindingKind.CONSOLIDATION) | bit(FindingKind.GROUND_GLASS_OPACITY)
    sample.unknown[space.box][ramp > 0.2 if dependent else (ramp > 0.2) & ~mask] |= opacity


def _thick(airless: Mask) -> Mask:
    """What is at least 10 mm thick: a thinner layer may as well be pleura, fluid or the wall."""
    core = ndi.grey_opening(airless.astype(np.uint8), size=(_THICK_VOXELS,) * 3) > 0
    return ndi.binary_dilation(core) & airless


def _leave_open(sample: Sample, space: Cavity, layer: Mask) -> None:
    unknown = sample.unknown[space.box]
    for kind in (FindingKind.CONSOLIDATION, FindingKind.ATELECTASIS, FindingKind.PLEURAL_EFFUSION):
        unknown[layer & space.space] |= bit(kind)


def add_emphysema(sample: Sample, space: Cavity, rng: np.random.Generator) -> None:
    """Holes in the lung, up to bullae at its surface: no class of its own (HU measure it), but none of the others."""
    hu = sample.hu[space.box]
    bullous = rng.random() < 0.3
    level = smooth_noise(hu.shape, rng.uniform(7.0, 18.0) if bullous else rng.uniform(2.0, 7.0), rng)
    level = level + rng.uniform(-0.8, 1.5) * (space.z - 0.5)
    if bullous:
        level = level - rng.uniform(0.5, 2.5) * (space.depth - 0.5)
    edge = (level - np.quantile(level[space.space], rng.uniform(0.5, 0.95))).astype(np.float32)
    width = rng.uniform(0.1, 0.3) if bullous else 0.5
    _replace(hu, soft_edge(edge, width) * (space.space & (hu < -600)) * rng.uniform(0.4, 1.0), rng.uniform(-1000, -960))


def add_interstitial(sample: Sample, space: Cavity, rng: np.random.Generator) -> None:
    """Reticulation and honeycombing: a net of dense walls about as fine as the grid, mostly under the pleura."""
    hu = sample.hu[space.box]
    level = smooth_noise(hu.shape, rng.uniform(8, 25), rng) * 0.5 - rng.uniform(1.0, 4.0) * space.depth
    level = level - rng.uniform(-0.5, 3.0) * (space.z - 0.3) + rng.uniform(-0.3, 1.0) * (space.y - 0.5)
    level = level.astype(np.float32)
    volume_ml = float(np.exp(rng.uniform(np.log(40), np.log(900))))
    edge = level - _threshold(level, space.space, min(volume_ml, 0.5 * float(space.space.sum()) * VOXEL_ML))
    extent = soft_edge(edge, rng.uniform(0.1, 0.5)) * space.space
    net = np.abs(smooth_noise(hu.shape, rng.uniform(1.2, 2.8), rng))
    walls = np.clip(1.0 - net / rng.uniform(0.25, 0.6), 0.0, 1.0)
    filled = extent * np.clip(walls * rng.uniform(0.3, 0.8) + rng.uniform(0.0, 0.12), 0.0, 0.9)
    hu += filled * np.maximum(20.0 - hu, 0.0)
    if rng.random() < 0.4:  # honeycombing: air in the cells
        cells = extent * np.clip((net - 0.8) / 0.4, 0.0, 1.0) * rng.uniform(0.4, 1.0)
        hu += cells * np.minimum(-980.0 - hu, 0.0)
    _mark(sample, space, extent > 0.5, (extent > 0.2) & (extent < 0.75), FindingKind.INTERSTITIAL_ABNORMALITY)
    sample.unknown[space.box][extent > 0.2] |= bit(FindingKind.CONSOLIDATION) | bit(FindingKind.GROUND_GLASS_OPACITY)


def add_dependent_haze(sample: Sample, space: Cavity, rng: np.random.Generator) -> None:
    """The density of lung that lies below in a patient on the back: no finding, though it looks like ground glass.

    It is nowhere else, and grows little by little: what is as faint but has a border is ground glass.
    """
    hu = sample.hu[space.box]
    level = _gravity_level(space, rng, 1.0, elsewhere=0.0)
    edge = level - np.float32(np.quantile(level[space.space], rng.uniform(0.6, 0.95)))
    filled = np.clip(edge, 0.0, None) * rng.uniform(0.2, 1.0)
    filled = np.clip(filled, 0.0, rng.uniform(0.06, 0.25)) * space.space
    hu += filled * np.maximum(20.0 - hu, 0.0)
    sample.unknown[space.box][filled > 0.14] |= bit(FindingKind.GROUND_GLASS_OPACITY) | bit(FindingKind.ATELECTASIS)


def add_pericardial_effusion(sample: Sample, rng: np.random.Generator) -> None:
    """Fluid of 3 to 30 mm around an outlined heart, more of it below; nothing where no heart is outlined."""
    heart = sample.anatomy == LABEL["heart"]
    if heart.sum() * VOXEL_ML < 200:
        return
    box = ndi.find_objects(heart.astype(np.uint8))[0]
    box = tuple(slice(max(0, a.start - 14), a.stop + 14) for a in box)
    vessels = np.isin(sample.anatomy[box], [LABEL[n] for n in ("aorta", "pulmonary_trunk", "blood")])
    # the sac holds the roots of the vessels, too, and no fluid lies between them and the heart
    inside = ndi.binary_fill_holes(ndi.binary_closing(heart[box] | vessels, iterations=4)) | heart[box]
    inside = ndi.binary_dilation(inside)  # the outline's own border is open, and fat lies under the sac
    hu = sample.hu[box]
    distance = np.maximum(ndi.distance_transform_edt(~inside), 0.7 * ndi.distance_transform_edt(~heart[box]))
    distance = distance.astype(np.float32) * SPACING_MM
    y = np.linspace(-0.5, 0.5, hu.shape[1], dtype=np.float32)[None, :, None]
    z = np.linspace(-0.5, 0.5, hu.shape[0], dtype=np.float32)[:, None, None]
    thickness_mm = float(np.exp(rng.uniform(np.log(4), np.log(30))))
    local_mm = thickness_mm * (1.0 + rng.uniform(0, 1.2) * y - rng.uniform(0, 1.0) * z)
    local_mm = local_mm * (1.0 + 0.2 * smooth_noise(hu.shape, 10, rng))
    movable = np.isin(sample.anatomy[box], [LABEL[n] for n in ("body", "soft_tissue", "lung_left", "lung_right")])
    movable |= np.isin(sample.anatomy[box], [LABEL[n] for n in ("left_or_soft", "right_or_soft", "elsewhere")])
    movable &= hu < 250
    ring = soft_edge(local_mm - distance, SPACING_MM) * (~inside & movable)
    fluid_hu = min(rng.uniform(-5, 30), _soft_tissue_hu(sample) - 12)
    hu += ring * (fluid_hu + 3 * smooth_noise(hu.shape, 4, rng) - hu)
    fluid = ring > 0.5
    sample.lesions[box][fluid] = bit(FindingKind.PERICARDIAL_EFFUSION)
    sample.unknown[box][fluid] = 0
    sample.unknown[box][(ring > 0.2) & ~fluid] |= bit(FindingKind.PERICARDIAL_EFFUSION)
    sample.anatomy[box][fluid] = LABEL["body"]


def _mark(sample: Sample, space: Cavity, mask: Mask, doubt: Mask, kind: FindingKind) -> None:
    """Add `kind` where nothing fills the pleura, and leave the answer open on its hazy edge."""
    lesions, unknown = sample.lesions[space.box], sample.unknown[space.box]
    pleura = bit(FindingKind.PLEURAL_EFFUSION) | bit(FindingKind.PNEUMOTHORAX)
    free = space.space & ((lesions & pleura) == 0)
    if kind is FindingKind.CONSOLIDATION:
        lesions[mask & free] &= ~bit(FindingKind.GROUND_GLASS_OPACITY)
    elif kind is FindingKind.GROUND_GLASS_OPACITY:
        free &= (lesions & bit(FindingKind.CONSOLIDATION)) == 0
    lesions[mask & free] |= bit(kind)
    unknown[mask & free] &= ~bit(kind)
    unknown[doubt & free] |= bit(kind)


def add_nodules(sample: Sample, space: Cavity, rng: np.random.Generator) -> None:
    """One to five nodules or a mass: solid, part-solid, ground glass or calcified; round to spiculated."""
    pleura = bit(FindingKind.PLEURAL_EFFUSION) | bit(FindingKind.PNEUMOTHORAX)
    inner = space.space & ((sample.lesions[space.box] & pleura) == 0)
    sites = np.argwhere(inner)
    if len(sites) < 1000:
        return
    for _ in range(int(rng.integers(1, 6))):
        diameter_mm = float(np.exp(rng.uniform(np.log(5), np.log(18)))) if rng.random() < 0.8 else rng.uniform(18, 80)
        _add_nodule(sample, space, sites[rng.integers(len(sites))], diameter_mm, rng)


def _add_nodule(
    sample: Sample, space: Cavity, site: npt.NDArray[np.intp], diameter_mm: float, rng: np.random.Generator
) -> None:
    radius = diameter_mm / 2 / SPACING_MM
    reach = int(np.ceil(radius * 1.6)) + 2
    local = tuple(slice(max(0, int(c) - reach), int(c) + reach + 1) for c in site)
    hu = sample.hu[space.box][local]
    within = space.space[local]
    centre = site + rng.uniform(-0.5, 0.5, 3)
    grid = np.meshgrid(
        *(np.arange(s.start, s.start + n) - c for s, n, c in zip(local, hu.shape, centre, strict=True)), indexing="ij"
    )
    stretch = rng.uniform(0.75, 1.25, 3)
    distance = np.sqrt(sum((g / s) ** 2 for g, s in zip(grid, stretch, strict=True))).astype(np.float32)
    lobes = rng.uniform(0.0, 0.2) * radius * smooth_noise(hu.shape, max(2.0, radius * 0.8), rng)
    inside = soft_edge(radius - distance + lobes, 1.0) * within
    texture = rng.choice(["solid", "ground_glass", "part_solid", "calcified"], p=[0.72, 0.14, 0.08, 0.06])
    tissue_hu = rng.uniform(-40, 90) + (rng.uniform(100, 500) if texture == "calcified" else 0.0)
    filled = inside * (rng.uniform(0.3, 0.65) if texture in ("ground_glass", "part_solid") else 1.0)
    if texture == "part_solid":
        filled = np.maximum(filled, soft_edge(rng.uniform(0.3, 0.7) * radius - distance, 1.0) * within)
    hu += filled * np.maximum(tissue_hu - hu, 0.0)
    nodule = inside > 0.45
    lesions, unknown = sample.lesions[space.box][local], sample.unknown[space.box][local]
    lesions[nodule] |= bit(FindingKind.PULMONARY_NODULE)
    unknown[nodule] &= ~bit(FindingKind.PULMONARY_NODULE)
    if diameter_mm < _SEEN_NODULE_MM:
        unknown[inside > 0.2] |= bit(FindingKind.PULMONARY_NODULE)
    # a nodule in consolidation cannot be seen, and a mass is neither consolidation nor free of it
    unknown[nodule & (lesions & bit(FindingKind.CONSOLIDATION) > 0)] |= bit(FindingKind.PULMONARY_NODULE)
    if diameter_mm > 25 or texture in ("ground_glass", "part_solid"):
        unknown[inside > 0.2] |= bit(FindingKind.CONSOLIDATION) | bit(FindingKind.GROUND_GLASS_OPACITY)
    else:
        lesions[nodule] &= ~(bit(FindingKind.GROUND_GLASS_OPACITY) | bit(FindingKind.CONSOLIDATION))


Insertion = Callable[[Sample, Cavity, np.random.Generator], None]

# in the order in which they are put in: what replaces the lung's air first, what displaces the lung last
INSERTIONS: tuple[tuple[Insertion, float], ...] = (
    (add_emphysema, 0.18),
    (add_dependent_haze, 0.3),
    (add_interstitial, 0.22),
    (add_ground_glass, 0.3),
    (add_consolidation, 0.25),
    (add_atelectasis, 0.22),
    (add_nodules, 0.35),
    (add_pneumothorax, 0.17),
    (add_effusion, 0.30),
)

_PERICARDIAL_EFFUSION_CHANCE = 0.15


def insert_lesions(sample: Sample, rng: np.random.Generator, healthy: float) -> None:
    """Put a random set of lesions into each lung, in place; with probability `healthy` none at all."""
    if rng.random() < healthy:
        return
    if rng.random() < _PERICARDIAL_EFFUSION_CHANCE:
        add_pericardial_effusion(sample, rng)
    for side in ("left", "right"):
        space = cavity(sample, side)
        if space is None or rng.random() < 0.25:
            continue
        for insert, chance in INSERTIONS:
            if rng.random() < chance:
                insert(sample, space, rng)
