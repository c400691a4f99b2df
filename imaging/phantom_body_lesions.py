"""Findings of heart, vessels, bones and abdomen: some shape the patient before painting, others are drawn over it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from imaging.phantom_anatomy import Patient, Space, heart_field, vessel_paths
from imaging.phantom_body import LABEL, coronary_paths
from imaging.phantom_bones import (
    FRACTURE_LEVELS,
    box_near,
    local_position,
    rib_break_index,
    rib_points,
    vertebra_heights,
    vertebra_shape,
)
from imaging.phantom_lesions import LesionRequest, Placed, Placer, Scene, choose_side, place_volume
from imaging.phantom_shapes import F32, Box, Canvas, Mask, ellipsoid, lattice_noise, smooth_path

FloatArray = npt.NDArray[np.float64]

_CALCIUM_HU = 750.0
_METAL_HU = 3000.0
# Canonical centres of stations 4R, 7, 4L, 2R, 5 and 10R, in that order.
_NODE_STATIONS = ((-17, -12, 16), (6, 9, -17), (12, 6, 12), (-14, -16, 44), (30, -10, 16), (-34, -6, -4))
_LEAD = (
    (48.0, -96.0, 66.0), (60.0, -60.0, 82.0), (44.0, -36.0, 74.0), (20.0, -41.0, 52.0), (-16.0, -32.0, 42.0),
    (-25.0, -28.0, 10.0), (-26.0, -26.0, -30.0), (-18.0, -36.0, -66.0), (14.0, -54.0, -78.0), (34.0, -62.0, -82.0),
)  # fmt: skip
_GENERATOR = ((34.0, -102.0, 62.0), (62.0, -98.0, 66.0))


def shape_patient(patient: Patient, requests: Sequence[LesionRequest], canvas: Canvas, space: Space) -> Patient:
    """The patient with everything that changes an organ's size or substance."""
    rng = np.random.default_rng([patient.seed, 5])
    simple: dict[str, Callable[[float], Patient]] = {
        "aortic_dilatation": lambda size: replace(patient, ascending_mm=size),
        "pulmonary_artery_enlargement": lambda size: replace(patient, trunk_mm=size),
        "low_bone_density": lambda size: replace(patient, trabecular_hu=size),
        "hepatic_steatosis": lambda size: replace(patient, liver_hu=size),
        "hiatal_hernia": lambda size: replace(patient, hernia_mm=size),
        "vertebral_compression_fracture": lambda size: replace(
            patient, vertebra_loss=size, vertebra_level=int(rng.choice(FRACTURE_LEVELS))
        ),
    }
    for request in requests:
        if request.kind in simple:
            patient = simple[request.kind](request.size)
        elif request.kind == "rib_fracture":
            side = -1 if choose_side(request, rng) == "right" else 1
            ribs = rng.choice(np.arange(2, 9), int(request.size), replace=False)
            patient = replace(patient, broken_ribs=tuple((int(rib), side) for rib in ribs))
        elif request.kind == "cardiomegaly":
            patient = _with_heart(patient, request.size, canvas, space)
    for request in requests:
        if request.kind == "pericardial_effusion":
            patient = replace(patient, pericardium_mm=_pericardial_gap_mm(patient, request.size, space))
    return patient


def _with_heart(patient: Patient, ratio: float, canvas: Canvas, space: Space) -> Patient:
    x = canvas.working.axes[2]
    step = float(x[1] - x[0])
    for _ in range(4):
        heart = heart_field(space, patient)
        width = max(_extent(plane.min(axis=0)) for plane in heart) * step
        chest = float(2 * 129.5 * patient.scale[0])
        patient = replace(patient, heart=patient.heart * ratio / max(width / chest, 0.1))
    return patient


def _extent(profile: F32) -> float:
    """Width in samples where `profile` is negative, its ends interpolated."""
    hits = np.flatnonzero(profile < 0)
    if len(hits) == 0 or hits[0] == 0 or hits[-1] == len(profile) - 1:
        return float(len(hits))
    first, last = int(hits[0]), int(hits[-1])
    left = profile[first] / (profile[first] - profile[first - 1])
    right = profile[last] / (profile[last] - profile[last + 1])
    return float(last - first + left + right)


def _pericardial_gap_mm(patient: Patient, ml: float, space: Space) -> float:
    heart = heart_field(space, patient)
    gaps = np.sort(heart[(heart > 0) & (heart < 55)])
    # Part of the shell is taken by vessels, spine and diaphragm, hence the excess.
    wanted = int(1.75 * ml * 1000 / 27)
    if wanted >= len(gaps):
        raise ValueError(f"pericardial_effusion: {ml:g} ml does not fit the field of view")
    return float(gaps[wanted])


def place_pericardial_effusion(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """Fluid in the widened sac, more of it where it is dependent."""
    canvas = scene.canvas
    box = _box(scene, scene.organs.pericardium)
    heart, sac, y = (
        canvas.sample(f, box) for f in (scene.organs.heart, scene.organs.pericardium, scene.space.position[1])
    )
    allowed = (heart > 0) & (sac < 4) & (canvas.anatomy[box] == LABEL["body"]) & (canvas.hu[box] < 90)
    allowed &= canvas.sample(scene.organs.diaphragm, box) > 0
    score = np.asarray(heart - 0.04 * y, np.float32)
    mask, edge = place_volume(scene, request, score, allowed, request.size)
    coverage = np.where(allowed, canvas.coverage(score - edge, 1.0), 0)
    canvas.blend(box, np.asarray(np.where(mask, np.maximum(coverage, 0.6), coverage), np.float32), 14.0)
    thickness = 2 * float(ndimage.distance_transform_edt(mask, canvas.grid.spacing_mm).max())
    return _placed(request, box, mask, _ml(scene, mask), maximum_thickness_mm=thickness)


def place_cardiomegaly(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    box = _box(scene, scene.organs.heart)
    mask = scene.canvas.anatomy[box] == LABEL["heart"]
    heart_mm, chest_mm = heart_and_thorax_mm(scene.canvas)
    return _placed(request, box, mask, heart_mm / chest_mm, heart_width_mm=heart_mm, thorax_width_mm=chest_mm)


def heart_and_thorax_mm(canvas: Canvas) -> tuple[float, float]:
    """Greatest width of the heart in one slice, and that of both pleural spaces: their ratio is the cardiothoracic."""
    lungs = np.isin(canvas.anatomy, [LABEL["lung_left"], LABEL["lung_right"]])
    column_mm = canvas.grid.spacing_mm[2]
    return _widest(canvas.anatomy == LABEL["heart"]) * column_mm, _widest(lungs) * column_mm


def _widest(mask: Mask) -> float:
    """Greatest left-right extent of the mask in one slice, in voxels."""
    slices, columns = np.nonzero(np.asarray(mask.any(axis=1)))
    starts = np.unique(slices, return_index=True)[1]
    return float((np.maximum.reduceat(columns, starts) - np.minimum.reduceat(columns, starts)).max() + 1)


def place_aortic_dilatation(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """The ascending aorta, from above the root to the arch."""
    return _tube_part(scene, request, "aorta", slice(2, 4), LABEL["aorta"], scene.patient.ascending_mm)


def place_trunk(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    return _tube_part(scene, request, "trunk", slice(1, 4), LABEL["pulmonary_trunk"], scene.patient.trunk_mm)


def _tube_part(scene: Scene, request: LesionRequest, name: str, part: slice, label: int, diameter: float) -> Placed:
    points = [p[:3] for p in vessel_paths(scene.patient)[name][part]]
    box = box_near(scene.canvas, scene.space, points, diameter * 0.5)
    if box is None:
        raise ValueError(f"{request.kind}: the vessel is outside the field of view")
    mask = scene.canvas.anatomy[box] == label
    return _placed(request, box, mask, diameter, diameter_mm=diameter)


def place_vertebral_fracture(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """A wedge fracture: the front of the body lost `size` percent of its height."""
    index = scene.patient.vertebra_level
    z0, height = vertebra_heights()[index]
    box = box_near(scene.canvas, scene.space, [[-28, 10, z0 - 22], [28, 75, z0 + 22]], 0.0)
    if box is None:
        raise ValueError("vertebral_compression_fracture: the vertebra is outside the field of view")
    body, _ = vertebra_shape(index, scene.patient, local_position(scene.canvas, scene.space, box))
    mask = (body < 0) & (scene.canvas.anatomy[box] == LABEL["vertebrae"])
    scale = scene.patient.scale[2]
    front = height * scale * (1 - request.size / 100)
    measured = {"anterior_mm": front, "posterior_mm": height * scale, "level_thoracic": float(index + 1)}
    return _placed(request, box, mask, request.size, **measured)


def place_bone_density(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """Trabecular part of the three lowest vertebrae that are whole in the field of view."""
    canvas = scene.canvas
    mask = np.zeros(canvas.grid.shape, bool)
    used = 0
    for index in range(len(vertebra_heights()) - 1, -1, -1):
        z0 = vertebra_heights()[index][0]
        box = box_near(canvas, scene.space, [[-28, 10, z0 - 22], [28, 75, z0 + 22]], 0.0)
        if box is None or box[0].start == 0 or used == 3:
            continue
        body, _ = vertebra_shape(index, scene.patient, local_position(canvas, scene.space, box))
        mask[box] |= body < -5
        used += 1
    return _placed(request, _whole(scene), mask, scene.patient.trabecular_hu)


def place_steatosis(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    mask = scene.canvas.anatomy == LABEL["liver"]
    return _placed(request, _whole(scene), mask, scene.patient.liver_hu)


def place_rib_fracture(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    mask = np.zeros(scene.canvas.grid.shape, bool)
    side = "left"
    for index, sign in scene.patient.broken_ribs:
        side = "right" if sign < 0 else "left"
        points = rib_points(scene.space, index, sign)
        at = points[rib_break_index(points)]
        box = scene.canvas.grid.box_around(at.tolist(), at.tolist(), 12.0)
        if box is not None:
            mask[box] |= scene.canvas.anatomy[box] == LABEL["ribs"]
    return Placed(
        request=request, box=_whole(scene), mask=mask, size=float(len(scene.patient.broken_ribs)), laterality=side
    )


def place_hernia(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """Stomach in the chest, behind the heart, with an air bubble."""
    r = request.size / 2
    field = ellipsoid(scene.space.position, (8, 14, -86), (r, r * 0.9, r * 0.9))
    box = _box(scene, field)
    distance = scene.canvas.sample(field, box)
    mask = (distance < 0) & (scene.canvas.anatomy[box] == LABEL["oesophagus"])
    scene.canvas.blend(box, scene.canvas.coverage(distance + 5) * mask, 18.0)
    y = scene.canvas.sample(scene.space.position[1], box)
    air = scene.canvas.coverage(np.maximum(distance + 5, y - 10).astype(np.float32))
    scene.canvas.blend(box, air * mask, -980.0)
    return _placed(request, box, mask, request.size, diameter_mm=request.size)


def place_lymph_node(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """An enlarged mediastinal node; the seed chooses the station."""
    x, y, z = (float(v) for v in _NODE_STATIONS[int(rng.integers(len(_NODE_STATIONS)))])
    half = request.size / 2
    field = ellipsoid(scene.space.position, (x, y, z), (half * 1.25, half, half * 1.5))
    box = _box(scene, field)
    distance = scene.canvas.sample(field, box)
    free = np.isin(scene.canvas.anatomy[box], [LABEL["body"], LABEL["lung_left"], LABEL["lung_right"]])
    mask = (distance < 0) & free
    if not mask.any():
        raise ValueError("lymphadenopathy: the station is outside the field of view")
    value = 75.0 if scene.patient.contrast else 44.0
    scene.canvas.blend(box, scene.canvas.coverage(distance) * free, value)
    scene.canvas.anatomy[box][mask] = LABEL["body"]
    return _placed(request, box, mask, request.size, short_axis_mm=request.size)


def place_coronary_calcium(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """Plaques along the coronary arteries, sized until their Agatston score is the one asked for."""
    canvas = scene.canvas
    pieces = _plaques(scene, rng, int(np.clip(2 + request.size / 90, 1, 14)))
    ends = np.concatenate([points for points, _ in pieces])
    box = canvas.grid.box_around(ends.min(axis=0).tolist(), ends.max(axis=0).tolist(), 9.0)
    if box is None:
        raise ValueError("coronary_artery_calcification: the heart is outside the field of view")
    clean = canvas.hu[box].copy()
    low, high = 0.02, 4.0
    score, mask = 0.0, np.zeros(clean.shape, bool)
    for _ in range(12):
        factor = float(np.sqrt(low * high))
        canvas.hu[box] = clean
        for points, radius in pieces:
            canvas.draw_tube(points, np.full(len(points), radius * factor), _CALCIUM_HU, -100.0)
        mask = (canvas.hu[box] >= 130) & (canvas.hu[box] > clean + 60)
        score = agatston(canvas.hu[box], mask, canvas.grid.spacing_mm)
        if abs(score - request.size) < 0.01 * request.size:
            break
        low, high = (factor, high) if score < request.size else (low, factor)
    if not mask.any():
        raise ValueError("coronary_artery_calcification: the plaques are too small for these voxels")
    return _placed(request, box, mask, score, agatston=score, volume_mm3=_ml(scene, mask) * 1000)


def _plaques(scene: Scene, rng: np.random.Generator, count: int) -> list[tuple[np.ndarray, float]]:
    paths = list(coronary_paths(scene.canvas, scene.space, scene.organs).values())
    pieces = []
    for _ in range(count):
        path = paths[int(rng.choice(3, p=(0.5, 0.2, 0.3)))]
        at = int(rng.integers(1, max(2, int(len(path) * 0.6))))
        a, b = path[at], path[min(at + 1, len(path) - 1)]
        pieces.append((np.stack([a, a + (b - a) * rng.uniform(0.4, 1.0)]), float(rng.uniform(0.8, 1.6))))
    return pieces


def agatston(hu: F32, mask: Mask, spacing_mm: tuple[float, float, float]) -> float:
    """Agatston score of the masked lesions: area x peak weight a slice, scaled to 3 mm slices (JACC 1990;15:827)."""
    pixel = spacing_mm[1] * spacing_mm[2]
    total = 0.0
    for plane, inside in zip(hu, mask & (hu >= 130), strict=True):
        labels, count = ndimage.label(inside, structure=np.ones((3, 3)))
        for lesion in range(1, count + 1):
            own = labels == lesion
            area = np.count_nonzero(own) * pixel
            if area >= 1.0:
                total += area * min(4, int(plane[own].max() // 100))
    return total * spacing_mm[0] / 3.0


def place_wall_calcium(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """Plates in the wall of arch and descending aorta."""
    box = _box(scene, scene.organs.aorta)
    noise = lattice_noise(scene.canvas.working, int(rng.integers(2**31)), 9.0)
    wall, patch = (scene.canvas.sample(f, box) for f in (scene.organs.aorta, noise))
    z, y = (scene.canvas.sample(scene.space.position[i], box) for i in (2, 1))
    shell = max(1.3, 0.6 * max(scene.canvas.grid.spacing_mm[1:]))
    allowed = (
        (np.abs(wall + 0.8) < shell) & (scene.canvas.anatomy[box] == LABEL["aorta"]) & ((z > 14) | (y > 5)) & (z < 42)
    )
    score = np.asarray(np.abs(wall + 0.8) * 0.35 - patch, np.float32)
    mask, edge = place_volume(scene, request, score, allowed, request.size / 1000)
    coverage = np.where(allowed, np.clip(0.75 - (score - edge) / 0.3, 0, 1), 0)
    scene.canvas.blend(box, np.asarray(coverage, np.float32), _CALCIUM_HU)
    return _placed(request, box, mask, _ml(scene, mask) * 1000)


def place_device(scene: Scene, request: LesionRequest, rng: np.random.Generator) -> Placed:
    """A pacemaker under the left clavicle with one or two leads through the superior vena cava."""
    canvas, space = scene.canvas, scene.space
    before = canvas.anatomy.copy()
    leads: list[Sequence[tuple[float, float, float]]] = [_LEAD]
    if request.size >= 2:
        leads.append([*_LEAD[:6], (-27, -27, -24), (-30, -34, -40), (-32, -40, -28)])
    for lead in leads:
        path = space.to_patient(smooth_path(lead, 4.0)[0])
        canvas.draw_tube(path, np.full(len(path), 1.1), _METAL_HU, -1000.0, 255)
    case = _under_skin(scene, space.to_patient(_GENERATOR))
    canvas.draw_tube(case, np.array([6.0, 6.0]), _METAL_HU, -1000.0, 255, flatten=0.3)
    mask = canvas.anatomy == 255
    canvas.anatomy[...] = before
    if not mask.any():
        raise ValueError("medical_device: its place is outside the field of view")
    return _placed(request, _whole(scene), mask, float(len(leads)))


def _under_skin(scene: Scene, points: FloatArray) -> FloatArray:
    """Points (LPS mm) moved along y until they lie 15 mm below the skin of the chest."""
    z, y, x = scene.canvas.working.axes
    moved = points.copy()
    for point in moved:
        column = scene.organs.body[int(np.argmin(np.abs(z - point[2]))), :, int(np.argmin(np.abs(x - point[0])))]
        deep = np.flatnonzero(column < -15)
        if len(deep):
            point[1] = float(y[deep[0]])
    return moved


def _placed(request: LesionRequest, box: Box, mask: Mask, size: float, **measurements: float) -> Placed:
    return Placed(request=request, box=box, mask=mask, size=size, laterality=None, measurements=measurements)


def _box(scene: Scene, field: F32) -> Box:
    box = scene.canvas.box_of(field, 3.0)
    if box is None:
        raise ValueError("the field of view does not hold the organ of this finding")
    return box


def _whole(scene: Scene) -> Box:
    z, y, x = scene.canvas.grid.shape
    return slice(0, z), slice(0, y), slice(0, x)


def _ml(scene: Scene, mask: Mask) -> float:
    return float(np.count_nonzero(mask) * scene.canvas.grid.voxel_ml)


# In this order: what is drawn later lies over what was drawn before.
OVER_BODY: dict[str, Placer] = {
    "pericardial_effusion": place_pericardial_effusion,
    "hiatal_hernia": place_hernia,
    "lymphadenopathy": place_lymph_node,
    "cardiomegaly": place_cardiomegaly,
    "aortic_dilatation": place_aortic_dilatation,
    "pulmonary_artery_enlargement": place_trunk,
    "vertebral_compression_fracture": place_vertebral_fracture,
    "low_bone_density": place_bone_density,
    "hepatic_steatosis": place_steatosis,
    "rib_fracture": place_rib_fracture,
    "arterial_wall_calcification": place_wall_calcium,
    "coronary_artery_calcification": place_coronary_calcium,
    "medical_device": place_device,
}
