"""The soft anatomy of the phantom patient: who the patient is, and the distance fields of body, lungs and organs.

Written in a canonical space in mm: x to the left, y to posterior, z up, origin in the midline at the carina.
A seeded affine map and a smooth warp carry it to the patient (LPS mm). Proportions follow adult CT in inspiration.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from imaging.geometry import Point
from imaging.phantom_shapes import (
    F32,
    FAR_MM,
    Axes,
    Canvas,
    blend_min,
    ellipsoid,
    lattice_noise,
    smooth_path,
    to_distance,
    tube_field,
)

FloatArray = npt.NDArray[np.float64]

_LEVELS = np.array([115, 95, 85, 75, 59, 27, -3, -35, -65, -97, -127, -165, -200], float)[::-1]
_CAGE_HALF_WIDTH = np.array([22, 38, 52, 68, 88, 110, 121, 128, 131, 132, 132, 129, 124], float)[::-1]
_CAGE_FRONT = np.array([0, -10, -20, -32, -50, -60, -70, -81, -88, -91, -96, -101, -104], float)[::-1]
_CAGE_BACK = np.array([28, 32, 36, 42, 50, 66, 75, 82, 85, 86, 85, 80, 76], float)[::-1]
_BODY_HALF_WIDTH = np.array([184, 186, 186, 184, 180, 172, 166, 163, 161, 160, 159, 158, 157], float)[::-1]
_BODY_FRONT = np.array([-58, -68, -75, -81, -88, -96, -102, -107, -110, -114, -119, -126, -130], float)[::-1]
_BODY_BACK = np.array([92, 98, 102, 106, 111, 117, 119, 119, 118, 116, 114, 111, 108], float)[::-1]
_SPINE_LEVELS = np.array([-200, -165, -127, -65, -3, 27, 59, 85, 125], float)
_SPINE_Y = np.array([32, 36, 41, 47, 45, 41, 34, 20, 4], float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """What makes one patient: sizes in mm or as a factor of the average, attenuations in HU, angles in degrees."""

    seed: int
    contrast: bool
    scale: Point
    rotation_deg: float
    fat_mm: float
    muscle: float
    breast_mm: float
    inspiration_mm: float
    heart: float
    lung_hu: float
    blood_hu: float
    muscle_hu: float
    fat_hu: float
    liver_hu: float
    trabecular_hu: float
    ascending_mm: float
    trunk_mm: float
    pericardium_mm: float = 0.0
    hernia_mm: float = 0.0
    vertebra_loss: float = 0.0
    vertebra_level: int = 0
    broken_ribs: tuple[tuple[int, int], ...] = ()
    aortic_enhancement_hu: float = 40.0
    pulmonary_enhancement_hu: float = 40.0


def sample_patient(seed: int, contrast: bool) -> Patient:
    """An adult without findings."""
    rng = np.random.default_rng([seed, 1])
    size = rng.normal(1.0, 0.035)
    blood = rng.normal(42, 4)
    female = rng.random() < 0.45
    return Patient(
        seed=seed,
        contrast=contrast,
        scale=tuple(float(np.clip(size * rng.normal(1, 0.025), 0.9, 1.07)) for _ in range(3)),  # type: ignore[arg-type]
        rotation_deg=float(rng.normal(0, 2.5)),
        fat_mm=float(np.clip(rng.gamma(3.0, 4.0) - 8, -6, 18)),
        muscle=float(np.clip(rng.normal(0.9 if female else 1.1, 0.12), 0.7, 1.4)),
        breast_mm=float(rng.uniform(15, 34)) if female else 0.0,
        inspiration_mm=float(rng.normal(0, 9)),
        heart=float(np.clip(rng.normal(0.95, 0.05), 0.84, 1.05)),
        lung_hu=float(rng.normal(-858, 14)),
        blood_hu=float(blood),
        muscle_hu=float(rng.normal(54, 4)),
        fat_hu=float(rng.normal(-104, 4)),
        liver_hu=float(rng.normal(112 if contrast else 58, 4)),
        trabecular_hu=float(rng.normal(175, 22)),
        ascending_mm=float(np.clip(rng.normal(32, 2), 27, 36)),
        trunk_mm=float(np.clip(rng.normal(25, 1.2), 22, 27)),
        aortic_enhancement_hu=float(rng.uniform(240, 340)) if contrast else float(blood),
        pulmonary_enhancement_hu=float(rng.uniform(260, 380)) if contrast else float(blood),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """The map between canonical space and the patient; `position` is canonical (x, y, z) on the working grid."""

    position: Axes
    matrix: FloatArray
    warp: tuple[F32, F32, F32]
    origin_mm: Point

    def to_patient(self, points: npt.ArrayLike) -> FloatArray:
        """(n, 3) canonical points to LPS mm."""
        canonical = np.asarray(points, float)
        inverse = np.linalg.inv(self.matrix)
        patient = canonical @ inverse.T
        for _ in range(3):
            patient = (canonical - self._warp_at(patient)) @ inverse.T
        return np.asarray(patient, np.float64)

    def to_canonical(self, points: npt.ArrayLike) -> FloatArray:
        """(n, 3) LPS mm to canonical."""
        patient = np.asarray(points, float)
        return patient @ self.matrix.T + self._warp_at(patient)

    def _warp_at(self, patient: FloatArray) -> FloatArray:
        index = (patient[:, ::-1] - np.array(self.origin_mm)[::-1]) / 3.0
        return np.stack([ndimage.map_coordinates(w, index.T, order=1, mode="nearest") for w in self.warp], axis=1)


def make_space(canvas: Canvas, patient: Patient) -> Space:
    angle = np.deg2rad(patient.rotation_deg)
    turn = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = np.diag(1 / np.array(patient.scale)) @ turn
    z, y, x = canvas.working.axes
    flat = [x[None, None, :], y[None, :, None], z[:, None, None]]
    warp = [np.float32(2.0) * lattice_noise(canvas.working, patient.seed * 7 + axis, 75.0) for axis in range(3)]
    position = [
        np.asarray(sum(np.float32(matrix[i, j]) * flat[j] for j in range(3)) + warp[i], dtype=np.float32)
        for i in range(3)
    ]
    return Space(
        position=(position[0], position[1], position[2]),
        matrix=matrix,
        warp=(warp[0], warp[1], warp[2]),
        origin_mm=(float(x[0]), float(y[0]), float(z[0])),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Organs:
    """Signed distance fields (mm) on the working grid. Lungs are the whole pleural space of each side."""

    body: F32
    cage: F32
    muscle: F32
    diaphragm: F32
    lung_left: F32
    lung_right: F32
    heart: F32
    pericardium: F32
    aorta: F32
    trunk: F32
    veins: F32
    oesophagus: F32
    trachea: F32
    liver: F32
    spleen: F32
    stomach: F32


def level(z: F32, values: FloatArray) -> F32:
    """A per-height table of the canonical space at the heights `z`."""
    heights = np.arange(_LEVELS[0], _LEVELS[-1], 0.25)
    table = np.interp(heights, _LEVELS, values).astype(np.float32)
    index = np.clip((z - np.float32(heights[0])) * 4, 0, len(table) - 1).astype(np.int32)
    return np.asarray(table[index], np.float32)


def spine_y(z: npt.ArrayLike) -> FloatArray:
    return np.asarray(np.interp(np.asarray(z, float), _SPINE_LEVELS, _SPINE_Y))


def cage_section(z: float) -> tuple[float, float, float, float]:
    """Inner rib cage at canonical height `z`: half width, front y, back y, half depth (mm)."""
    width, front, back = (float(np.interp(z, _LEVELS, t)) for t in (_CAGE_HALF_WIDTH, _CAGE_FRONT, _CAGE_BACK))
    return width, front, back, (back - front) / 2


def _oval(position: Axes, half_width: F32, front: F32, back: F32, power: float) -> F32:
    x, y, _ = position
    depth = (back - front) / 2
    u = np.abs(x) / half_width
    v = np.abs(y - (front + back) / 2) / depth
    ratio = (u**power + v**power) ** np.float32(1 / power)
    return to_distance(ratio - 1)


def _outline(space: Space, patient: Patient) -> tuple[F32, F32]:
    x, y, z = space.position
    cage = _oval(space.position, level(z, _CAGE_HALF_WIDTH), level(z, _CAGE_FRONT), level(z, _CAGE_BACK), 2.35)
    fat = np.float32(patient.fat_mm)
    body = _oval(
        space.position,
        level(z, _BODY_HALF_WIDTH) + fat,
        level(z, _BODY_FRONT) - fat * np.float32(0.8),
        level(z, _BODY_BACK) + fat * np.float32(0.35),
        2.6,
    )
    groove = 5 * np.exp(-((x / 14) ** 2)) * (y > 60)
    body = body + np.asarray(groove, dtype=np.float32)
    if patient.breast_mm > 0:
        for side in (-1, 1):
            depth = patient.breast_mm
            breast = ellipsoid(space.position, (side * 76, float(-98 - fat * 0.8), -48), (58, 14 + depth, 52))
            body = blend_min(body, breast, 22.0)
    return body, cage


def _muscle(space: Space, cage: F32, body: F32, patient: Patient) -> F32:
    x, y, z = space.position
    side = np.abs(x)

    def bump(height: float, at: Point, width: Point) -> F32:
        q = ((side - at[0]) / width[0]) ** 2 + ((y - at[1]) / width[1]) ** 2 + ((z - at[2]) / width[2]) ** 2
        return np.asarray(np.float32(height) * np.exp(-q), dtype=np.float32)

    thickness = 11 + bump(27, (118, 52, 35), (42, 45, 55)) + bump(14, (140, 25, -40), (40, 50, 60))
    thickness += bump(15, (68, -65, 35), (42, 40, 45)) + bump(26, (28, 95, -60), (30, 40, 160))
    thickness += bump(12, (60, 75, 60), (60, 40, 50)) + bump(30, (0, 90, 110), (50, 60, 45))
    shell = cage - np.float32(patient.muscle) * thickness
    neck = ellipsoid(space.position, (0, 22, 128), (62, 52, 55))
    shoulder = np.minimum(
        ellipsoid(space.position, (-132, 22, 92), (52, 46, 52)), ellipsoid(space.position, (132, 22, 92), (52, 46, 52))
    )
    shell = blend_min(blend_min(shell, neck, 20.0), shoulder, 18.0)
    return np.asarray(np.maximum(shell, body + np.float32(5.0 + max(0.0, patient.fat_mm) * 0.3)), np.float32)


def _diaphragm(space: Space, patient: Patient) -> F32:
    """Distance below (negative) the two domes."""
    x, y, z = space.position
    height = np.full(x.shape, -400, np.float32)
    for side, top in ((-1, -79.0), (1, -91.0)):
        lateral = np.where(side * x > 68, 70, 115).astype(np.float32)
        q = ((x - side * 68) / lateral) ** 2 + ((y + 22) / 112) ** 2
        dome = top - patient.inspiration_mm - 106 * q ** np.float32(1.45)
        np.maximum(height, dome, out=height)
    return to_distance(z - height)


def heart_field(space: Space, patient: Patient) -> F32:
    """Distance field of the heart without its sac."""
    k = patient.heart
    centre = np.array([16, -30, -48])

    def at(point: Point, radii: Point) -> F32:
        x, y, z = (float(c + k * (p - c)) for p, c in zip(point, centre, strict=True))
        return ellipsoid(space.position, (x, y, z), (radii[0] * k, radii[1] * k, radii[2] * k))

    heart = blend_min(at((46, -34, -60), (38, 36, 35)), at((18, -54, -60), (44, 27, 33)), 14.0)
    heart = blend_min(heart, at((-27, -28, -48), (25, 29, 33)), 14.0)
    heart = blend_min(heart, at((6, 2, -32), (33, 20, 22)), 12.0)
    heart = blend_min(heart, at((4, -42, -26), (29, 25, 22)), 12.0)
    return heart


def vessel_paths(patient: Patient) -> dict[str, tuple[tuple[float, float, float, float], ...]]:
    """Centre lines in canonical space with radii in mm: (x, y, z, radius)."""
    a, t = patient.ascending_mm / 2, patient.trunk_mm / 2
    d = 11.5 + 0.25 * (a - 16)
    out = 0.5 * (a - 16)
    return {
        "aorta": (
            (2, -26, -42, a * 0.95), (-9 - out, -36, -22, a), (-13 - out, -38, -4, a), (-9, -34, 16, a * 0.97),
            (3, -18, 31, a * 0.88), (18, 6, 31, d + 1.5), (25, 25, 18, d + 0.5), (26, 34, -8, d), (24, 38, -60, d),
            (14, 28, -100, d - 0.5), (5, 16, -135, d - 1), (2, 12, -205, d - 2),
        ),
        "trunk": ((14, -60, -38, t), (17, -54, -24, t), (23, -40, -9, t), (28, -26, -4, t * 0.95)),
        "left_pulmonary": (
            (25, -32, -6, t * 0.85), (38, -8, 0, t * 0.82), (48, 10, -10, t * 0.7), (52, 16, -32, t * 0.5),
        ),
        "right_pulmonary": (
            (24, -32, -7, t * 0.85), (0, -13, -11, t * 0.8), (-26, -8, -14, t * 0.78), (-42, 0, -24, t * 0.62),
            (-50, 10, -44, t * 0.42),
        ),
        "superior_cava": ((-26, -26, -32, 9), (-25, -28, -8, 9), (-24, -28, 25, 8.5), (-22, -30, 42, 8)),
        "inferior_cava": ((-24, -14, -72, 11), (-25, -6, -95, 11), (-25, 2, -140, 11), (-24, 4, -205, 10)),
        "left_brachiocephalic": (
            (-20, -31, 38, 7), (0, -41, 42, 6.5), (24, -40, 54, 6.5), (36, -32, 72, 6), (44, -20, 118, 6),
        ),
        "right_brachiocephalic": ((-22, -31, 38, 7.5), (-30, -30, 60, 6.5), (-40, -18, 118, 6)),
        "brachiocephalic_artery": ((-3, -26, 30, 6.5), (-12, -22, 52, 6), (-20, -14, 76, 4.5), (-26, -4, 118, 3.5)),
        "left_carotid": ((6, -14, 34, 4), (13, -9, 60, 3.8), (20, -6, 90, 3.6), (26, -2, 118, 3.5)),
        "left_subclavian": ((16, 2, 34, 5), (22, 4, 62, 4.5), (32, 0, 86, 4.2), (70, -6, 98, 4)),
        "upper_veins": ((-8, 6, -28, 7), (-28, 4, -28, 6), (-44, 2, -30, 4.5)),
        "left_veins": ((18, 6, -28, 7), (34, 6, -30, 5.5), (46, 2, -28, 4.5)),
        "lower_veins": ((-10, 10, -42, 6.5), (-30, 16, -48, 5.5), (-44, 22, -56, 4)),
        "left_lower_veins": ((20, 12, -42, 6.5), (38, 18, -48, 5.5), (50, 22, -58, 4)),
        "oesophagus": (
            (2, 8, 118, 6.5), (4, 14, 60, 6.5), (7, 17, 20, 6.5), (4, 20, -20, 7), (5, 22, -65, 7), (14, 10, -98, 7.5),
            (32, 0, -116, 8),
        ),
        "trachea": ((0, -14, 122, 8.5), (-1, -7, 75, 8.8), (-2, -1, 40, 8.8), (-2, 4, 8, 8.8), (-2, 6, 2, 8)),
        "right_bronchus": ((-4, 6, 4, 7.2), (-16, 9, -8, 7), (-30, 10, -20, 6.2), (-38, 12, -32, 4.8)),
        "left_bronchus": ((1, 6, 4, 6.4), (16, 10, -9, 6), (34, 14, -20, 5.6), (44, 16, -30, 4.6)),
    }  # fmt: skip


def tubes(canvas: Canvas, space: Space, patient: Patient, *names: str) -> F32:
    """Distance field of some of the named centre lines together."""
    field = np.full(canvas.working.shape, FAR_MM, np.float32)
    paths = vessel_paths(patient)
    for name in names:
        points, radii = smooth_path(paths[name])
        np.minimum(field, tube_field(canvas.working, space.to_patient(points), radii), out=field)
    return field


def _mediastinum(space: Space, solid: F32) -> F32:
    x, y, z = space.position
    narrow = np.interp(z, [-200, -70, -10, 25, 60, 85, 115], [15, 13, 9, 14, 24, 30, 40]).astype(np.float32)
    back = np.interp(z, _SPINE_LEVELS, _SPINE_Y).astype(np.float32)
    septum = np.abs(x - 2) - narrow * (1 - np.float32(0.55) * np.exp(-(((y + 55) / 25) ** 2)))
    spine = np.sqrt((x / 1.15) ** 2 + (y - back - 8) ** 2) - 25
    gutter = np.sqrt((x / 1.5) ** 2 + (y - back - 30) ** 2) - 21
    return blend_min(blend_min(septum, blend_min(spine, gutter, 10.0), 12.0), solid, 12.0)


def _lung(space: Space, side: int, cage: F32, mediastinum: F32, diaphragm: F32) -> F32:
    x, y, z = space.position
    from_axis = (np.abs(x) - 47) ** 2 + (y - 4) ** 2 * np.float32(0.85)
    apex = (z + from_axis / 62 - 90) / np.sqrt(1 + from_axis * np.float32(4 / 62**2))
    own = -side * (x - 2)
    lung = -blend_min(-(cage + 2.5), -apex.astype(np.float32), 6.0)
    lung = np.maximum(lung, -mediastinum)
    lung = -blend_min(-lung, diaphragm - 2.0, 3.0)
    return np.maximum(lung, own)


def build_organs(canvas: Canvas, space: Space, patient: Patient) -> Organs:
    """All distance fields of one patient."""
    body, cage = _outline(space, patient)
    diaphragm = _diaphragm(space, patient)
    heart = heart_field(space, patient)
    aorta = tubes(canvas, space, patient, "aorta")
    trunk = tubes(canvas, space, patient, "trunk", "left_pulmonary", "right_pulmonary")
    veins = tubes(
        canvas, space, patient, "superior_cava", "inferior_cava", "left_brachiocephalic", "right_brachiocephalic"
    )
    arteries = tubes(canvas, space, patient, "brachiocephalic_artery", "left_carotid", "left_subclavian")
    trachea = tubes(canvas, space, patient, "trachea", "right_bronchus", "left_bronchus")
    oesophagus = tubes(canvas, space, patient, "oesophagus")
    if patient.hernia_mm > 0:
        r = patient.hernia_mm / 2
        oesophagus = np.minimum(oesophagus, ellipsoid(space.position, (8, 14, -86), (r, r * 0.9, r * 0.9)))
    pericardium = heart - np.float32(2.0 + patient.pericardium_mm)
    solid = blend_min(pericardium - 1, np.minimum(aorta, arteries) - np.float32(2.0), 8.0)
    solid = blend_min(solid, np.minimum(veins, trunk) - np.float32(1.5), 8.0)
    solid = blend_min(solid, np.minimum(trachea - 3, oesophagus - 2), 8.0)
    mediastinum = _mediastinum(space, solid)
    abdomen = np.maximum(cage + 2, diaphragm + 1.0)
    liver = blend_min(
        ellipsoid(space.position, (-66, -4, -132), (86, 92, 82)),
        ellipsoid(space.position, (8, -52, -122), (68, 40, 38)),
        18.0,
    )
    spleen = ellipsoid(space.position, (98, 46, -128), (30, 42, 46))
    stomach = ellipsoid(space.position, (66, -20, -128), (46, 46, 48))
    spleen = np.maximum(spleen, abdomen)
    gut = np.minimum(aorta, veins) - 0.6
    return Organs(
        body=body,
        cage=cage,
        muscle=_muscle(space, cage, body, patient),
        diaphragm=diaphragm,
        lung_left=_lung(space, 1, cage, mediastinum, diaphragm),
        lung_right=_lung(space, -1, cage, mediastinum, diaphragm),
        heart=heart,
        pericardium=pericardium,
        aorta=np.minimum(aorta, arteries),
        trunk=trunk,
        veins=veins,
        oesophagus=oesophagus,
        trachea=trachea,
        liver=np.maximum(np.maximum(liver, abdomen), -gut),
        spleen=spleen,
        stomach=np.maximum(np.maximum(np.maximum(stomach, abdomen + 1), 3 - liver), 4 - spleen),
    )
