"""Bones of the phantom: vertebrae, ribs, sternum, clavicles and scapulae, each a cortex around trabecular bone."""

import itertools

import numpy as np
import numpy.typing as npt

from imaging.phantom_anatomy import Organs, Patient, Space, cage_section, spine_y
from imaging.phantom_shapes import F32, Axes, Box, Canvas, capsules, smooth_path

FloatArray = npt.NDArray[np.float64]

VERTEBRAE = 14
FRACTURE_LEVELS = (8, 9, 10, 11)
_CORTEX_HU = 620.0
_BEHIND_HU = 20.0


def vertebra_heights() -> list[tuple[float, float]]:
    """Canonical centre height and body height (mm) of each vertebra from T1 (index 0) down."""
    heights, z = [], 92.0
    for index in range(VERTEBRAE):
        pitch = 20.0 + 0.75 * index
        heights.append((z, pitch * 0.79))
        z -= pitch + 0.375
    return heights


def draw_bones(canvas: Canvas, space: Space, organs: Organs, patient: Patient, labels: dict[str, int]) -> None:
    """Draw the skeleton over what is there; `labels` gives the label values of vertebrae, ribs and sternum."""
    for index in range(VERTEBRAE):
        _draw_vertebra(canvas, space, patient, index, labels["vertebrae"])
    _draw_ribs(canvas, space, patient, labels)
    _draw_sternum(canvas, space, patient, labels["sternum"])
    _draw_shoulder(canvas, space, organs, patient)


def local_position(canvas: Canvas, space: Space, box: Box) -> Axes:
    """Canonical (x, y, z) of the voxels of a box."""
    x, y, z = (canvas.sample(p, box) for p in space.position)
    return x, y, z


def box_near(canvas: Canvas, space: Space, points: npt.ArrayLike, margin_mm: float) -> Box | None:
    """Voxel box around canonical points."""
    patient = space.to_patient(points)
    return canvas.grid.box_around(patient.min(axis=0).tolist(), patient.max(axis=0).tolist(), margin_mm)


def vertebra_shape(index: int, patient: Patient, position: Axes) -> tuple[F32, F32]:
    """Signed distances of body and of arch with processes, at canonical `position`."""
    z0, height = vertebra_heights()[index]
    x, y, z = position
    yc = float(spine_y(z0))
    width, depth = 13.5 + 0.55 * index, 11.5 + 0.42 * index
    tilt = float(spine_y(z0 + 12) - spine_y(z0 - 12)) / 24
    up = (z - z0) + np.float32(tilt) * (y - yc)
    forward = np.clip((yc + depth - y) / (2 * depth), 0, 1)
    loss = patient.vertebra_loss / 100 if index == patient.vertebra_level else 0.0
    top = height / 2 - height * loss * np.clip(forward * 1.25, 0, 1)
    waist = 1 - 0.10 * np.cos(np.clip(up / (height / 2), -1, 1) * np.pi / 2)
    radial = np.sqrt((x / (width * waist)) ** 2 + ((y - yc) / (depth * waist)) ** 2)
    ring = (radial - 1) * np.float32(0.9 * depth)
    dish = 1.3 * np.clip(1 - radial, 0, 1)
    ends = np.maximum(up - (top - dish), -up - (height / 2 - dish))
    body = np.maximum(ring, ends) + np.maximum(0, np.minimum(ring, ends) + 2) * np.float32(0.3)
    return np.asarray(body, np.float32), _arch(index, patient, (x, y, up), yc, depth, height)


def _arch(index: int, patient: Patient, position: Axes, yc: float, depth: float, height: float) -> F32:
    x, y, up = position
    canal_y = yc + depth + 8.0
    canal = np.sqrt(x**2 + (y - canal_y) ** 2)
    lamina = np.maximum(np.abs(canal - 10.5) - 2.4, np.abs(up + 2) - height * 0.42)
    lamina = np.maximum(lamina, (yc + depth - 2) - y)
    spine_drop = up + 0.75 * (y - canal_y - 10) + 3
    spinous = np.maximum(np.abs(x) - 2.6, np.abs(spine_drop) - 6.5)
    spinous = np.maximum(spinous, np.maximum(canal_y + 9 - y, y - canal_y - 34))
    side = np.abs(x)
    ends = np.array([[11, canal_y - 2, 2]]), np.array([[33 - 0.7 * index, canal_y + 10, 4]])
    (process,) = capsules(*ends, np.array([4.8]), np.array([4.2]))
    transverse = process.distance((up, y, side))
    shape = np.minimum(np.minimum(lamina, spinous), transverse)
    return np.asarray(shape, np.float32)


def _draw_vertebra(canvas: Canvas, space: Space, patient: Patient, index: int, label: int) -> None:
    z0, height = vertebra_heights()[index]
    yc = float(spine_y(z0))
    box = box_near(canvas, space, [[-40, yc - 22, z0 - 30], [40, yc + 70, z0 + 18]], 3.0)
    if box is None:
        return
    x, y, z = position = local_position(canvas, space, box)
    body, arch = vertebra_shape(index, patient, position)
    depth = 11.5 + 0.42 * index
    canal = np.sqrt((x / 1.1) ** 2 + (y - (yc + depth + 8)) ** 2) - 7.6
    here = np.abs(z - z0) < height * 0.75
    canvas.blend(box, canvas.coverage(canal) * here, 22.0)
    cord = np.sqrt((x / 1.3) ** 2 + (y - (yc + depth + 8.5)) ** 2) - 3.6
    canvas.blend(box, canvas.coverage(cord) * here, 38.0)
    disc = np.maximum(
        np.sqrt((x / (13 + 0.55 * index)) ** 2 + ((y - yc) / depth) ** 2) * depth - depth,
        np.abs(z - z0) - height * 0.65,
    )
    canvas.blend(box, canvas.coverage(np.asarray(disc, np.float32)), 85.0)
    shape = np.minimum(body, arch)
    canvas.blend(box, canvas.coverage(shape), _CORTEX_HU)
    canvas.blend(box, canvas.coverage(body + 1.5), patient.trabecular_hu)
    canvas.blend(box, canvas.coverage(arch + 1.7), patient.trabecular_hu + 130)
    canvas.anatomy[box][shape < 0] = label


def rib_path(index: int, side: int) -> FloatArray:
    """Canonical centre line of a rib (0 is the first) from the vertebra forward; (n, 3) mm."""
    z0, height = vertebra_heights()[index]
    z0 += height * 0.35
    yc = float(spine_y(z0))
    reach = (0.62, 0.72, 0.78, 0.80, 0.80, 0.79, 0.77, 0.74, 0.70, 0.62, 0.45, 0.33)[index]
    drop = (26, 42, 58, 70, 78, 82, 84, 84, 80, 70, 44, 26)[index]
    angles = np.linspace(0.16, reach, 22) * np.pi
    path = [(side * 17.0, yc + 15, z0 - 1), (side * 30.0, yc + 24, z0 + 1)]
    for angle in angles:
        along = (angle / np.pi - 0.16) / 0.64
        z = z0 - drop * along**1.05
        width, front, back, depth = cage_section(z)
        s, c = np.sin(angle), np.cos(angle)
        radius = (abs(s) ** 2.35 + abs(c) ** 2.35) ** (-1 / 2.35)
        x = (width + 3.5) * s * radius
        if x > 32:
            path.append((side * x, (front + back) / 2 + (depth + 3.5) * c * radius, z))
    return np.array(path)


def rib_points(space: Space, index: int, side: int) -> FloatArray:
    """Centre line of an unbroken rib in the patient, LPS mm, about every 5 mm; side is -1 right, 1 left."""
    return space.to_patient(smooth_path(rib_path(index, side).tolist(), 5.0)[0])


def _draw_ribs(canvas: Canvas, space: Space, patient: Patient, labels: dict[str, int]) -> None:
    paths = []
    for index, side in itertools.product(range(12), (-1, 1)):
        points = rib_points(space, index, side)
        thick = np.full(len(points), 3.4 if 0 < index < 11 else 2.8)
        thick[-1] += 0.6
        if (index, side) in patient.broken_ribs:
            points = _break(points)
        paths.append((points, thick))
        if index < 10:
            _draw_cartilage(canvas, space, points[-1], index, side)
    for points, thick in paths:
        canvas.draw_tube(points, thick, _CORTEX_HU, _BEHIND_HU, labels["ribs"], flatten=0.58, label_over=labels["body"])
    for points, thick in paths:
        canvas.draw_tube(points, thick - 1.3, patient.trabecular_hu + 60, _CORTEX_HU, flatten=0.58)


def _break(points: FloatArray) -> FloatArray:
    """A displaced fracture: the front part steps outward."""
    broken = points.copy()
    at = rib_break_index(points)
    outward = broken[at] - points[:, :].mean(axis=0)
    outward[2] = 0
    broken[at:] += outward / np.linalg.norm(outward) * 5.0
    return broken


def rib_break_index(points: FloatArray) -> int:
    return int(len(points) * 0.5)


def _draw_cartilage(canvas: Canvas, space: Space, end: FloatArray, index: int, side: int) -> None:
    z = max(-88.0, 45.0 - 20.0 * index)
    _, front, _, _ = cage_section(z)
    middle = space.to_canonical(end[None])[0]
    goal = np.array([side * (18.0 if index < 7 else 26.0), front - 8, z])
    bend = (middle + goal) / 2 + np.array([0, -6.0, -4.0])
    points = space.to_patient(smooth_path(np.stack([middle, bend, goal]).tolist(), 6.0)[0])
    canvas.draw_tube(points, np.full(len(points), 4.0), 105.0, -110.0, flatten=0.75)


def _draw_sternum(canvas: Canvas, space: Space, patient: Patient, label: int) -> None:
    front = [cage_section(z)[1] for z in (48, -100)]
    box = box_near(canvas, space, [[-34, min(front) - 20, -100], [34, max(front) + 6, 56]], 3.0)
    if box is None:
        return
    x, y, z = local_position(canvas, space, box)
    heights = np.array([-104, -88, -80, 5, 14, 22, 44, 52], float)
    half = np.interp(z, heights, [0, 5, 14, 15, 13, 22, 31, 26])
    centre = np.interp(z, [-120, -97, -65, -35, -3, 27, 59], [-99, -98, -96, -89, -78, -67, -56])
    shape = np.maximum(np.abs(x) - half, np.abs(y - centre - 0.006 * x**2) - 5.0)
    shape = np.maximum(shape, np.maximum(z - 50, -100 - z)).astype(np.float32)
    shape = np.maximum(shape, 1.3 - np.abs(z - 16))
    canvas.blend(box, canvas.coverage(shape), _CORTEX_HU * 0.8)
    canvas.blend(box, canvas.coverage(shape + 1.5), patient.trabecular_hu - 30)
    canvas.anatomy[box][shape < 0] = label


def _draw_shoulder(canvas: Canvas, space: Space, organs: Organs, patient: Patient) -> None:
    cores = []
    for side in (-1, 1):
        clavicle = smooth_path(
            [(side * 17, -54, 52), (side * 45, -58, 62), (side * 85, -34, 80), (side * 128, 2, 100)]
        )[0]
        spine = smooth_path([(side * 72, 84, 62), (side * 105, 74, 76), (side * 138, 40, 98)])[0]
        for points, radius in ((clavicle, 5.8), (spine, 4.6)):
            tube = space.to_patient(points)
            canvas.draw_tube(tube, np.full(len(tube), radius), _CORTEX_HU, _BEHIND_HU)
            cores.append((tube, radius - 1.6))
        head = space.to_patient([[side * 150, 20, 96], [side * 152, 20, 99]])
        canvas.draw_tube(head, np.array([23.0, 23.0]), 480.0, _BEHIND_HU)
        cores.append((head, 21.0))
        _draw_blade(canvas, space, organs, side)
    for tube, radius in cores:
        canvas.draw_tube(tube, np.full(len(tube), radius), patient.trabecular_hu + 20, _CORTEX_HU)


def _draw_blade(canvas: Canvas, space: Space, organs: Organs, side: int) -> None:
    box = box_near(canvas, space, [[side * 55, 0, -55], [side * 150, 110, 95]], 4.0)
    if box is None:
        return
    x, y, z = local_position(canvas, space, box)
    cage = canvas.sample(organs.cage, box)
    out = side * x
    lateral = 74 + 0.62 * (z + 50)
    plate = np.abs(cage - 19 - 0.05 * (z - 20)) - (1.5 + 0.04 * np.abs(out - 95))
    medial = 66 + 0.10 * np.abs(z - 20)
    shape = np.maximum(np.maximum(plate, medial - out), np.maximum(out - lateral, np.maximum(-48 - z, z - 80)))
    shape = np.maximum(shape, 18 - y).astype(np.float32)
    canvas.blend(box, canvas.coverage(shape), 520.0)
    canvas.blend(box, canvas.coverage(shape + 1.4), 240.0)
