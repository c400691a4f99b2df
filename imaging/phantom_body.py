"""Painting of the patient without findings: table, body wall, lungs with their trees, mediastinum, abdomen."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from imaging.phantom_anatomy import Organs, Patient, Space, vessel_paths
from imaging.phantom_shapes import F32, WORKING_SPACING_MM, Canvas, blend_min, ellipsoid, lattice_noise, smooth_path
from imaging.phantom_trees import Tree, draw_tree, grow_tree

ANATOMY: tuple[str, ...] = (
    "background", "body", "lung_left", "lung_right", "airways", "heart", "aorta", "pulmonary_trunk", "oesophagus",
    "vertebrae", "ribs", "sternum", "liver", "spleen",
)  # fmt: skip
LABEL = {name: value for value, name in enumerate(ANATOMY)}

_TARGETS = 750
_BRONCHI = 150
_CORONARIES = {
    "left_anterior_descending": ((12, -44, -18), (28, -66, -30), (40, -74, -48), (54, -68, -68), (62, -58, -84)),
    "circumflex": ((12, -34, -16), (40, -8, -30), (60, -8, -46), (68, -14, -64)),
    "right": ((-4, -56, -20), (-24, -58, -36), (-34, -48, -56), (-26, -38, -76), (-2, -30, -90)),
}


@dataclass(frozen=True, slots=True, eq=False)
class Trees:
    """The trees of both lungs."""

    arteries: tuple[Tree, Tree]
    veins: tuple[Tree, Tree]
    bronchi: tuple[Tree, Tree]


def paint_wall(canvas: Canvas, space: Space, organs: Organs, patient: Patient) -> None:
    """Table, subcutaneous fat with skin, breast tissue, muscles with fat planes, and the fat inside the cage."""
    _paint_table(canvas, space, patient)
    noise = lattice_noise(canvas.working, patient.seed + 101, 6.0)
    fat = np.float32(patient.fat_hu) + 7 * lattice_noise(canvas.working, patient.seed + 102, 9.0)
    canvas.paint(organs.body, 15.0, LABEL["body"])
    canvas.paint(organs.body + np.float32(1.8), np.asarray(fat + 10 * np.maximum(noise - 1.2, 0), np.float32))
    if patient.breast_mm > 0:
        _paint_glands(canvas, space, organs, patient, noise)
    streaks = lattice_noise(canvas.working, patient.seed + 103, 15.0)
    marbling = np.clip(np.abs(streaks) * 9 - 0.9, -1, 1)
    muscle = np.asarray(patient.muscle_hu + 3 * noise, np.float32)
    canvas.paint(organs.muscle, muscle)
    depth = organs.cage - 12 - 4 * lattice_noise(canvas.working, patient.seed + 104, 45.0)
    planes = np.minimum(np.abs(depth) - 0.7, np.maximum(marbling * 3.0, 13 - organs.cage))
    canvas.paint(np.maximum(planes, organs.muscle + 2).astype(np.float32), np.asarray(fat + 25, np.float32))
    canvas.paint(organs.cage + np.float32(2.2), np.asarray(fat + 6, np.float32))
    canvas.paint(np.maximum(organs.cage, np.abs(organs.diaphragm) - 1.6), patient.muscle_hu)


def _paint_table(canvas: Canvas, space: Space, patient: Patient) -> None:
    z, y, x = canvas.working.axes
    lowest = 120 + 0.35 * patient.fat_mm
    back = space.to_patient([[-60, lowest, -50], [0, lowest - 4, -50], [60, lowest, -50]])[:, 1].max() + 5
    wide = x[None, None, :] * np.ones((len(z), len(y), 1), np.float32)
    deep = y[None, :, None] - np.float32(back) + wide**2 / 900
    under = np.maximum(np.abs(wide) - 210, np.abs(deep - 14) - 14)
    canvas.paint(np.asarray(under, np.float32), -180.0)
    canvas.paint(np.asarray(under + 1.6, np.float32), -930.0)


def _paint_glands(canvas: Canvas, space: Space, organs: Organs, patient: Patient, noise: F32) -> None:
    texture = lattice_noise(canvas.working, patient.seed + 105, 12.0) + 0.6 * noise
    for side in (-1, 1):
        gland = ellipsoid(space.position, (side * 78, -98 - patient.fat_mm * 0.8, -50), (42, 8 + patient.breast_mm, 36))
        inside = np.maximum(np.maximum(gland, organs.body + 7), -organs.muscle + 3)
        canvas.paint(np.asarray(np.maximum(inside, 3 - 4 * texture), np.float32), 8.0)


def paint_lungs(canvas: Canvas, space: Space, organs: Organs, patient: Patient) -> None:
    """Aerated lung: gravity gradient, mottle and fissures."""
    x, y, z = space.position
    hu = patient.lung_hu + 0.22 * y + 0.03 * (-z)
    hu = hu + 9 * lattice_noise(canvas.working, patient.seed + 111, 14.0)
    hu = hu + 7 * lattice_noise(canvas.working, patient.seed + 112, 3.0)
    major = (z - 1.3 * y + 26 + 0.0016 * x**2) / 1.64 + 1.5 * lattice_noise(canvas.working, patient.seed + 113, 60.0)
    minor = np.maximum(np.abs(z + 22 + 0.06 * x + 0.002 * (y + 30) ** 2) - 0.3, -major - 0.3)
    hu = np.clip(hu, -925, None).astype(np.float32)
    for name, lung in (("lung_left", organs.lung_left), ("lung_right", organs.lung_right)):
        canvas.paint(lung, hu, LABEL[name], edge_mm=1.2)
        canvas.paint(np.maximum(lung, np.abs(major) - 0.45).astype(np.float32), -690.0, edge_mm=1.2)
    canvas.paint(np.maximum(np.maximum(organs.lung_right, minor), x).astype(np.float32), -730.0, edge_mm=1.2)


def grow_trees(canvas: Canvas, space: Space, organs: Organs, patient: Patient) -> Trees:
    """Arteries, veins and bronchi of the left and right lung."""
    grown: dict[str, list[Tree]] = {"arteries": [], "veins": [], "bronchi": []}
    paths = vessel_paths(patient)
    for side, lung in (("left", organs.lung_left), ("right", organs.lung_right)):
        rng = np.random.default_rng([patient.seed, 2 if side == "left" else 3])
        inner = _targets(canvas, lung, rng, _BRONCHI, 14.0)
        outer = _targets(canvas, lung, rng, _TARGETS, 4.0)
        bronchus, artery = paths[f"{side}_bronchus"], paths[f"{side}_pulmonary"]
        vein = paths["left_lower_veins" if side == "left" else "lower_veins"]
        roots = {
            "bronchi": (bronchus[1:], inner, 0.95, bronchus[-1][3]),
            "arteries": (artery[1:], np.concatenate([inner + rng.normal(0, 2.0, inner.shape), outer]), 0.55, 6.0),
            "veins": (vein, _targets(canvas, lung, rng, _TARGETS, 4.0), 0.5, 5.0),
        }
        for kind, (path, targets, leaf, root) in roots.items():
            start = space.to_patient(smooth_path(path, 7.0)[0])
            grown[kind].append(grow_tree(start, targets, leaf, root))
    pairs = {kind: (trees[0], trees[1]) for kind, trees in grown.items()}
    return Trees(arteries=pairs["arteries"], veins=pairs["veins"], bronchi=pairs["bronchi"])


def _targets(
    canvas: Canvas, lung: F32, rng: np.random.Generator, count: int, depth_mm: float
) -> npt.NDArray[np.float64]:
    inside = np.argwhere(lung < -depth_mm)
    if len(inside) == 0:
        return np.empty((0, 3))
    chosen = inside[rng.integers(len(inside), size=count)] + rng.uniform(-0.5, 0.5, (count, 3))
    z0, y0, x0 = (float(axis[0]) for axis in canvas.working.axes)
    return np.asarray(chosen[:, ::-1] * 3.0 + np.array([x0, y0, z0]))


def paint_trees(canvas: Canvas, trees: Trees, patient: Patient) -> None:
    """Vessels over lung, then bronchi with walls and air; an airway inside dense lung becomes an air bronchogram."""
    artery_hu, vein_hu = patient.pulmonary_enhancement_hu, patient.aortic_enhancement_hu
    for tree in trees.arteries:
        draw_tree(canvas, tree, artery_hu, patient.lung_hu)
    for tree in trees.veins:
        draw_tree(canvas, tree, vein_hu, patient.lung_hu)
    for tree in trees.bronchi:
        draw_tree(canvas, tree, 10.0, patient.lung_hu, wall_mm=0.8, at_least_mm=0.9)
        draw_tree(canvas, tree, -990.0, 30.0)


def paint_mediastinum(canvas: Canvas, space: Space, organs: Organs, patient: Patient) -> None:
    """Heart in its fat, great vessels, oesophagus, trachea with the main bronchi."""
    outside = np.minimum(organs.lung_left, organs.lung_right)
    noise = lattice_noise(canvas.working, patient.seed + 121, 12.0)
    if patient.pericardium_mm > 0:
        canvas.paint(np.maximum(organs.pericardium, -outside - 1), 12.0)
    canvas.paint(organs.heart, np.asarray(patient.blood_hu + 4 + 2 * noise, np.float32), LABEL["heart"])
    if patient.contrast:
        _paint_chambers(canvas, space, organs, patient)
    for path in coronary_paths(canvas, space, organs).values():
        canvas.draw_tube(path, np.linspace(5.0, 3.2, len(path)), patient.fat_hu + 10, patient.blood_hu)
        canvas.draw_tube(path, np.linspace(1.9, 1.1, len(path)), patient.aortic_enhancement_hu, patient.fat_hu)
    canvas.paint(organs.veins, patient.blood_hu + (90.0 if patient.contrast else 0.0))
    canvas.paint(organs.trunk, patient.pulmonary_enhancement_hu, LABEL["pulmonary_trunk"])
    canvas.paint(organs.aorta, patient.aortic_enhancement_hu, LABEL["aorta"])
    canvas.paint(organs.oesophagus, 36.0, LABEL["oesophagus"])
    canvas.paint(organs.oesophagus + np.float32(4.6), -350.0)
    canvas.paint(organs.trachea - np.float32(1.6), 25.0)
    canvas.paint(organs.trachea, -998.0, LABEL["airways"])


def coronary_paths(canvas: Canvas, space: Space, organs: Organs) -> dict[str, npt.NDArray[np.float64]]:
    """Centre lines (LPS mm) of the three coronary arteries, laid on the surface of the heart."""
    origin = np.array([float(axis[0]) for axis in canvas.working.axes])
    slope = np.gradient(organs.heart, WORKING_SPACING_MM)
    paths = {}
    for name, points in _CORONARIES.items():
        path = space.to_patient(smooth_path(points, 5.0)[0])
        for _ in range(6):
            index = ((path[:, ::-1] - origin) / WORKING_SPACING_MM).T
            depth = ndimage.map_coordinates(organs.heart, index, order=1, mode="nearest") + 2.0
            normal = np.stack([ndimage.map_coordinates(g, index, order=1, mode="nearest") for g in slope], axis=1)
            normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-3)
            path = path - 0.8 * depth[:, None] * normal[:, ::-1]
        paths[name] = path
    return paths


def _paint_chambers(canvas: Canvas, space: Space, organs: Organs, patient: Patient) -> None:
    k = patient.heart
    canvas.paint(organs.heart + 3, 105.0)
    left = blend_min(
        ellipsoid(space.position, (44, -35, -59), (26 * k, 24 * k, 23 * k)),
        ellipsoid(space.position, (6, 2, -33), (29 * k, 17 * k, 19 * k)), 6.0,
    )  # fmt: skip
    right = blend_min(
        ellipsoid(space.position, (12, -54, -60), (30 * k, 20 * k, 26 * k)),
        ellipsoid(space.position, (-26, -28, -48), (22 * k, 26 * k, 29 * k)), 8.0,
    )  # fmt: skip
    canvas.paint(np.maximum(right, organs.heart + 4), patient.pulmonary_enhancement_hu * 0.9)
    canvas.paint(np.maximum(left, organs.heart + 4), patient.aortic_enhancement_hu)


def paint_abdomen(canvas: Canvas, organs: Organs, space: Space, patient: Patient) -> None:
    """Liver with vessels, spleen, and a stomach with its bubble under the left dome."""
    noise = lattice_noise(canvas.working, patient.seed + 131, 6.0)
    vessels = np.abs(lattice_noise(canvas.working, patient.seed + 132, 30.0)) * 14 - 1.6
    vessels = np.maximum(vessels, np.abs(lattice_noise(canvas.working, patient.seed + 133, 30.0)) * 14 - 1.6)
    canvas.paint(organs.liver, np.asarray(patient.liver_hu + 2 * noise, np.float32), LABEL["liver"])
    inner = np.maximum(vessels, organs.liver + 8).astype(np.float32)
    canvas.paint(inner, 150.0 if patient.contrast else min(patient.blood_hu, patient.liver_hu + 25))
    canvas.paint(organs.spleen, 118.0 if patient.contrast else 49.0, LABEL["spleen"])
    canvas.paint(organs.stomach, 42.0)
    canvas.paint(organs.stomach + np.float32(4.5), np.asarray(22 + 9 * noise, np.float32))
    bubble = np.maximum(organs.stomach + 4.5, space.position[1] + 22).astype(np.float32)
    canvas.paint(bubble, -985.0)
