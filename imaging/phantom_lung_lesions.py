"""Findings of lung and pleura."""

from collections.abc import Sequence

import numpy as np

from imaging.phantom_lesions import LesionRequest, Placed, Placer, Scene, choose_side, place_volume
from imaging.phantom_shapes import F32, Box, Mask, lattice_noise

_FLUID_HU = 10.0
_AIR_HU = -996.0
_LARGEST_NODULE_MM = 30.0


def _noise(scene: Scene, rng: np.random.Generator, scale_mm: float) -> F32:
    return lattice_noise(scene.canvas.working, int(rng.integers(2**31)), scale_mm)


def _sampled(scene: Scene, box: Box, *fields: F32) -> list[F32]:
    return [scene.canvas.sample(f, box) for f in fields]


def place_effusion(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """Free fluid: lies posterior and climbs the pleura as a meniscus; the lung above it is compressed."""
    side = choose_side(request, rng)
    box = scene.lung_box(side)
    _, y, z = scene.space.position
    lung = scene.lung(side)
    field = 0.16 * z - y - 13 * np.exp(np.clip(lung, -60, 0) / 6) + 1.5 * _noise(scene, rng, 24.0)
    (score,) = _sampled(scene, box, np.asarray(field, np.float32))
    allowed = scene.lung_mask(side, box)
    mask, edge = place_volume(scene, request, score, allowed, request.size)
    hu = scene.canvas.hu[box]
    pressed = 330 * np.exp(-np.maximum(score - edge, 0) / 9)
    hu += np.where(allowed & (hu < -400), pressed, 0).astype(np.float32)
    _fill(scene, box, mask, score - edge, allowed, _FLUID_HU + float(rng.normal(0, 4)))
    return Placed(
        request=request, box=box, mask=mask, size=_ml(scene, mask), laterality=side,
        measurements={"depth_mm": _depth_mm(scene, mask)},
    )  # fmt: skip


def place_pneumothorax(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """Pleural air, anterior and apical, without lung markings; the visceral pleura is a line, the lung denser."""
    side = choose_side(request, rng)
    box = scene.lung_box(side)
    _, y, z = scene.space.position
    field = y - 0.42 * z - 20 * np.exp(np.clip(scene.lung(side), -60, 0) / 9) + 2 * _noise(scene, rng, 36.0)
    (score,) = _sampled(scene, box, np.asarray(field, np.float32))
    allowed = scene.lung_mask(side, box)
    mask, edge = place_volume(scene, request, score, allowed, request.size)
    left_over = 1 - np.count_nonzero(mask) / np.count_nonzero(allowed)
    hu = scene.canvas.hu[box]
    collapsed = (hu + 1000) / np.float32(max(left_over, 0.35)) - 1000
    np.copyto(hu, collapsed, where=allowed & (hu < -500))
    distance = score - edge
    _fill(scene, box, mask, distance, allowed, _AIR_HU)
    line = np.clip(1.1 - np.abs(distance - 0.6), 0, 1) * allowed
    scene.canvas.blend(box, np.asarray(line * 0.7, np.float32), -420.0)
    return Placed(
        request=request, box=box, mask=mask, size=_ml(scene, mask), laterality=side,
        measurements={"depth_mm": _depth_mm(scene, mask)},
    )  # fmt: skip


def place_consolidation(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """Dense lung around a bronchus; the bronchi, drawn later, stay open in it."""
    side = choose_side(request, rng)
    box = scene.lung_box(side)
    tree = scene.trees.bronchi[0 if side == "left" else 1]
    radius = (request.size * 1000 * 0.75 / np.pi) ** (1 / 3)
    nodes = tree.nodes[tree.radii > 1.5]
    low = scene.space.to_canonical(nodes)
    nodes = nodes[(low[:, 2] < -10) & (np.abs(low[:, 0]) > 45)] if len(nodes) else nodes
    centre = _pick(scene, side, nodes, rng, min(radius * 0.4, 18.0))
    warp = 1 + 0.22 * _noise(scene, rng, 24.0) + 0.1 * _noise(scene, rng, 9.0)
    gap = _distance_from(scene, centre)
    (score,) = _sampled(scene, box, np.asarray(gap * np.clip(warp, 0.4, 1.7), np.float32))
    allowed = scene.lung_mask(side, box)
    mask, edge = place_volume(scene, request, score, allowed, request.size)
    texture = _sampled(scene, box, np.asarray(38 + 6 * _noise(scene, rng, 6.0), np.float32))[0]
    halo = np.clip(1 - (score - edge) / 7, 0, 1) * allowed * (score > edge)
    scene.canvas.hu[box] += np.asarray(halo * 170, np.float32)
    _fill(scene, box, mask, (score - edge) * 0.6, allowed, texture)
    return Placed(request=request, box=box, mask=mask, size=_ml(scene, mask), laterality=side)


def place_atelectasis(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """Collapsed lung at the base beside the spine: airless, sharply bounded, without open bronchi."""
    side = choose_side(request, rng)
    box = scene.lung_box(side)
    x, y, _ = scene.space.position
    lung, base = scene.lung(side), scene.organs.diaphragm
    field = 0.75 * np.abs(x) - 0.8 * y + 0.35 * base + 0.25 * lung + 1.5 * _noise(scene, rng, 45.0)
    (score,) = _sampled(scene, box, np.asarray(field, np.float32))
    allowed = scene.lung_mask(side, box)
    mask, edge = place_volume(scene, request, score, allowed, request.size)
    _fill(scene, box, mask, score - edge, allowed, 48.0 + (35.0 if scene.patient.contrast else 0.0))
    return Placed(request=request, box=box, mask=mask, size=_ml(scene, mask), laterality=side)


def place_ground_glass(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """Hazy patches, mostly peripheral and posterior, that leave vessels visible."""
    sides, box, allowed = _both(scene, request)
    lung = np.minimum(*(scene.lung(side) for side in ("left", "right")))
    _, y, _ = scene.space.position
    patches = 14 * _noise(scene, rng, 33.0) + 5 * _noise(scene, rng, 9.0)
    field = patches - 0.45 * np.clip(lung, -30, 0) - 0.08 * y
    (score,) = _sampled(scene, box, np.asarray(field, np.float32))
    mask, edge = place_volume(scene, request, score, allowed, request.size)
    gain = float(rng.uniform(240, 380))
    haze = np.clip(0.5 - (score - edge) / 6, 0, 1) * allowed
    texture = np.clip(1 + 0.12 * _sampled(scene, box, _noise(scene, rng, 6.0))[0], 0.6, 1.4)
    scene.canvas.hu[box] += np.asarray(haze * texture * gain, np.float32)
    return Placed(request=request, box=box, mask=mask, size=_ml(scene, mask), laterality=_name(sides))


def place_emphysema(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """Centrilobular holes below -950 HU, denser in the upper lungs; `size` is percent of both lungs."""
    sides, box, allowed = _both(scene, request)
    _, _, z = scene.space.position
    field = -(_noise(scene, rng, 6.0) + 0.7 * _noise(scene, rng, 12.0) + 0.5 * _noise(scene, rng, 45.0) + z / 75)
    (score,) = _sampled(scene, box, np.asarray(field, np.float32))
    lungs = sum(np.count_nonzero(scene.lung_mask(side, box)) for side in ("left", "right"))
    ml = request.size / 100 * lungs * scene.canvas.grid.voxel_ml
    mask, edge = place_volume(scene, request, score, allowed, ml)
    hole = np.clip(1.1 - (score - edge) / 0.3, 0, 1) * allowed
    scene.canvas.blend(box, np.asarray(hole, np.float32), -982.0)
    percent = 100 * np.count_nonzero(mask) / lungs
    return Placed(request=request, box=box, mask=mask, size=percent, laterality=_name(sides))


def place_interstitial(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """Subpleural, basal reticulation with honeycomb cells; `size` is percent of both lungs."""
    sides, box, allowed = _both(scene, request)
    _, y, z = scene.space.position
    lung = np.minimum(*(scene.lung(side) for side in ("left", "right")))
    field = 0.14 * z - 0.10 * y - 1.0 * lung + 4 * _noise(scene, rng, 21.0)
    (score,) = _sampled(scene, box, np.asarray(field, np.float32))
    lungs = sum(np.count_nonzero(scene.lung_mask(side, box)) for side in ("left", "right"))
    mask, edge = place_volume(scene, request, score, allowed, request.size / 100 * lungs * scene.canvas.grid.voxel_ml)
    mesh = np.abs(_sampled(scene, box, _noise(scene, rng, 3.0))[0])
    wall = np.clip(1.6 - mesh * 3.2, 0, 1)
    weight = np.clip(0.5 - (score - edge) / 5, 0, 1) * allowed
    cell = np.where(mesh > 1.2, np.float32(-915), np.float32(-700))
    scene.canvas.blend(box, np.asarray(weight, np.float32), np.asarray(cell + wall * 560, np.float32))
    percent = 100 * np.count_nonzero(mask) / lungs
    return Placed(request=request, box=box, mask=mask, size=percent, laterality=_name(sides))


def place_nodule(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """A solid, slightly lobulated nodule of the volume of a sphere of diameter `size`, clear of the pleura.

    Above 30 mm it is a mass: lobulated, around the vessels of its place, and free to lie at the pleura.
    """
    side = choose_side(request, rng)
    if request.size > _LARGEST_NODULE_MM:
        return _place_mass(scene, request, side, rng)
    scene.lung_box(side)
    radius = request.size / 2
    inside = np.argwhere((scene.lung(side) < -(radius + 5)) & (scene.organs.trunk > radius + 12))
    if len(inside) == 0:
        raise ValueError(f"pulmonary_nodule: the {side} lung has no room for {request.size:g} mm")
    nodes = inside[:, ::-1] * 3.0 + np.array([float(axis[0]) for axis in scene.canvas.working.axes])[::-1]
    grid = scene.canvas.grid
    order = rng.permutation(len(nodes))
    centre = next((nodes[i] for i in order[:400] if _clear(scene, side, nodes[i], radius)), None)
    if centre is None:
        raise ValueError(f"pulmonary_nodule: no free place of {request.size:g} mm is left in the {side} lung")
    box = grid.box_around(centre.tolist(), centre.tolist(), radius * 1.7 + 4)
    if box is None:
        raise ValueError("pulmonary_nodule: the place is outside the field of view")
    stretch = rng.uniform(0.9, 1.12, 3)
    z, y, x = (c - p for c, p in zip(scene.canvas.coordinates(box), centre[::-1], strict=True))
    gap = np.sqrt((x / stretch[0]) ** 2 + (y / stretch[1]) ** 2 + (z / stretch[2]) ** 2)
    bumps = scene.canvas.sample(_noise(scene, rng, max(6.0, radius)), box)
    score = np.asarray(gap * (1 + 0.06 * np.clip(bumps, -2, 2)), np.float32)
    mask, edge = place_volume(scene, request, score, scene.lung_mask(side, box), np.pi / 6 * request.size**3 / 1000)
    hu = float(rng.uniform(20, 60)) + (40 if scene.patient.contrast else 0)
    width = float(np.cbrt(np.prod(grid.spacing_mm)))
    scene.canvas.blend(box, np.clip(0.5 - (score - edge) / width, 0, 1, dtype=np.float32), hu)
    return _placed_body(scene, request, box, mask, side)


def _place_mass(scene: Scene, request: LesionRequest, side: str, rng: np.random.Generator) -> Placed:
    radius = request.size / 2
    scene.lung_box(side)
    inside = np.argwhere((scene.lung(side) < -radius / 2) & (scene.organs.trunk > radius + 12))
    nodes = inside[:, ::-1] * 3.0 + np.array([float(axis[0]) for axis in scene.canvas.working.axes])[::-1]
    order = rng.permutation(len(nodes))
    clear = (nodes[i] for i in order[:400] if _clear(scene, side, nodes[i], radius, outside=0.3, dense=0.2))
    centre = next(clear, None)
    box = None if centre is None else scene.canvas.grid.box_around(centre.tolist(), centre.tolist(), radius * 2.2 + 4)
    if centre is None or box is None:
        raise ValueError(f"pulmonary_nodule: the {side} lung has no room for {request.size:g} mm")
    stretch = rng.uniform(0.88, 1.14, 3)
    z, y, x = (c - p for c, p in zip(scene.canvas.coordinates(box), centre[::-1], strict=True))
    gap = np.sqrt((x / stretch[0]) ** 2 + (y / stretch[1]) ** 2 + (z / stretch[2]) ** 2)
    lobes, knobs = _sampled(scene, box, _noise(scene, rng, 0.8 * radius), _noise(scene, rng, 6.0))
    score = np.asarray(gap * (1 + np.clip(0.16 * lobes + 0.05 * knobs, -0.35, 0.35)), np.float32)
    allowed = scene.lung_mask(side, box)
    mask, edge = place_volume(scene, request, score, allowed, np.pi / 6 * request.size**3 / 1000)
    hu = float(rng.uniform(20, 60)) + (40 if scene.patient.contrast else 0)
    (texture,) = _sampled(scene, box, np.asarray(hu + 6 * _noise(scene, rng, 9.0), np.float32))
    _fill(scene, box, mask, score - edge, allowed, texture)
    return _placed_body(scene, request, box, mask, side)


def _placed_body(scene: Scene, request: LesionRequest, box: Box, mask: Mask, side: str) -> Placed:
    diameter = (6 * _ml(scene, mask) * 1000 / np.pi) ** (1 / 3)
    return Placed(
        request=request, box=box, mask=mask, size=diameter, laterality=side, measurements={"diameter_mm": diameter}
    )


def _clear(
    scene: Scene, side: str, centre: np.ndarray, radius: float, *, outside: float = 0.0, dense: float = 0.06
) -> bool:
    """Whether the cube of a ball is in the field of view and in lung, but for the share `outside`.

    Of it no more than the share `dense` may be denser than aerated lung with small vessels.
    """
    grid = scene.canvas.grid
    box = grid.box_around(centre.tolist(), centre.tolist(), radius)
    if box is None:
        return False
    wanted = [int(2 * radius / step) for step in grid.spacing_mm]
    whole = all(part.stop - part.start >= n for part, n in zip(box, wanted, strict=True))
    hu = scene.canvas.hu[box]
    return (
        whole
        and float(np.mean(~scene.lung_mask(side, box))) <= outside
        and float(np.mean(hu > -500)) < outside + dense
        and float(np.mean(hu < -960)) < 0.3
    )


def place_bronchiectasis(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """Dilated, thick-walled bronchi, wider than the artery beside them."""
    side = choose_side(request, rng)
    box = scene.lung_box(side)
    tree = scene.trees.bronchi[0 if side == "left" else 1]
    starts = np.flatnonzero((tree.radii > 0.9) & (tree.radii < 2.6))
    inside = scene.space.to_canonical(tree.nodes[starts])
    starts = starts[(np.abs(inside[:, 0]) > 48) & (inside[:, 2] < -20)]
    if len(starts) < request.size:
        raise ValueError(f"bronchiectasis: only {len(starts)} bronchi can be dilated here")
    mask = np.zeros(scene.lung_mask(side, box).shape, bool)
    paths = [tree.nodes[[tree.parents[n], n]] for n in rng.choice(starts, int(request.size), replace=False)]
    before = scene.canvas.anatomy[box].copy()
    for path in paths:
        middle = path.mean(axis=0)
        path = middle + (path - middle) * 2.2
        radius = np.array([4.2, 5.0]) * rng.uniform(0.8, 1.2)
        scene.canvas.draw_tube(path, radius + 1.7, 15.0, scene.patient.lung_hu, 255)
        scene.canvas.draw_tube(path, radius, -985.0, 15.0)
        beside = path + np.array([0, -9.0, 2.0])
        scene.canvas.draw_tube(
            beside, np.array([2.6, 2.2]), scene.patient.pulmonary_enhancement_hu, scene.patient.lung_hu
        )
    mask |= (scene.canvas.anatomy[box] == 255) & np.isin(before, [2, 3])
    scene.canvas.anatomy[box] = before
    return Placed(request=request, box=box, mask=mask, size=float(len(paths)), laterality=side)


def _both(scene: Scene, request: LesionRequest) -> tuple[list[str], Box, Mask]:
    sides = [request.laterality] if request.laterality else ["left", "right"]
    boxes = [scene.lung_box(side) for side in ("left", "right")]
    box = tuple(slice(min(b[a].start for b in boxes), max(b[a].stop for b in boxes)) for a in range(3))
    whole = (box[0], box[1], box[2])
    allowed = np.logical_or.reduce([scene.lung_mask(side, whole) for side in sides])
    return sides, whole, allowed


def _name(sides: Sequence[str]) -> str:
    return sides[0] if len(sides) == 1 else "bilateral"


def _fill(scene: Scene, box: Box, mask: Mask, distance: F32, allowed: Mask, hu: float | F32) -> None:
    """Blend `hu` into the region whose edge is where `distance` (about mm) is zero, within the pleural space."""
    coverage = np.where(allowed, scene.canvas.coverage(distance, 1.2), 0)
    scene.canvas.blend(box, np.asarray(np.where(mask, np.maximum(coverage, 0.5), coverage), np.float32), hu)


def _ml(scene: Scene, mask: Mask) -> float:
    return float(np.count_nonzero(mask) * scene.canvas.grid.voxel_ml)


def _depth_mm(scene: Scene, mask: Mask) -> float:
    """Greatest anterior-posterior extent of the region in one column of one slice."""
    return float(mask.sum(axis=1).max() * scene.canvas.grid.spacing_mm[1])


def _pick(scene: Scene, side: str, nodes: np.ndarray, rng: np.random.Generator, depth_mm: float) -> np.ndarray:
    """One of `nodes` that lies in the lung, deep enough if any does; else any place deep in the lung."""
    origin = np.array([float(axis[0]) for axis in scene.canvas.working.axes])
    inside = np.argwhere(scene.lung(side) < -depth_mm)
    places = inside[:, ::-1] * 3.0 + origin[::-1]
    if len(places) == 0:
        places = np.argwhere(scene.lung(side) < 0)[:, ::-1] * 3.0 + origin[::-1]
    if len(nodes):
        place = nodes[int(rng.integers(len(nodes)))]
        return np.asarray(places[int(np.argmin(np.linalg.norm(places - place, axis=1)))])
    return np.asarray(places[int(rng.integers(len(places)))])


def _distance_from(scene: Scene, centre: np.ndarray) -> F32:
    z, y, x = scene.canvas.working.axes
    return np.asarray(
        np.sqrt(
            (x[None, None, :] - centre[0]) ** 2
            + (y[None, :, None] - centre[1]) ** 2
            + (z[:, None, None] - centre[2]) ** 2
        ),
        np.float32,
    )


# Painted before vessels and bronchi are drawn over the lung.
UNDER_TREES: dict[str, Placer] = {
    "emphysema": place_emphysema,
    "interstitial_abnormality": place_interstitial,
    "ground_glass_opacity": place_ground_glass,
    "consolidation": place_consolidation,
}
OVER_TREES: dict[str, Placer] = {
    "bronchiectasis": place_bronchiectasis,
    "atelectasis": place_atelectasis,
    "pulmonary_nodule": place_nodule,
    "pneumothorax": place_pneumothorax,
    "pleural_effusion": place_effusion,
}
