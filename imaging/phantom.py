"""Seeded chest phantoms: a CT volume that looks like one, with chosen findings and the truth about them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from imaging.geometry import Geometry, Point
from imaging.phantom_anatomy import build_organs, make_space, sample_patient
from imaging.phantom_body import (
    ANATOMY,
    LABEL,
    grow_trees,
    paint_abdomen,
    paint_lungs,
    paint_mediastinum,
    paint_trees,
    paint_wall,
)
from imaging.phantom_body_lesions import OVER_BODY, heart_and_thorax_mm, shape_patient
from imaging.phantom_bones import draw_bones
from imaging.phantom_lesions import (
    SIZE_UNITS,
    LesionRequest,
    Placed,
    PlacedFinding,
    Placer,
    Scene,
    axial_axes_mm,
    central_voxel,
    check_request,
)
from imaging.phantom_lung_lesions import OVER_TREES, UNDER_TREES
from imaging.phantom_shapes import F32, Canvas, make_canvas, soften
from imaging.uids import derive_uid
from imaging.volume import Volume

__all__ = [
    "ANATOMY",
    "SIZE_UNITS",
    "LesionRequest",
    "Phantom",
    "PlacedFinding",
    "make_phantom",
    "phantom_uid",
    "truth_document",
]

FIELD_MM: Point = (310.0, 358.4, 358.4)
CENTRE_MM: Point = (0.0, 10.0, -40.0)
# In-plane blur and noise grain, and how much louder the noise is, of the two reconstruction kernels.
_KERNELS: Mapping[str, tuple[float, float, float]] = {"soft": (0.65, 0.75, 1.0), "sharp": (0.35, 0.3, 2.2)}
_AXES_KINDS = frozenset({"pulmonary_nodule", "lymphadenopathy", "hiatal_hernia"})


@dataclass(frozen=True, slots=True, eq=False)
class Phantom:
    """A phantom CT and everything that is true about it.

    The volume is axis-aligned: slices go up (+z), rows to posterior (+y), columns to the patient's left (+x).
    `anatomy` holds indices of `ANATOMY`; lung_left and lung_right are the whole pleural spaces with all that is
    in them. `lesions` maps each placed kind to the mask of all its lesions. `lung_volume_ml` has "left" and "right".
    `cardiothoracic_ratio` is None where the field of view cuts heart or lungs off.
    """

    volume: Volume
    anatomy: npt.NDArray[np.uint8]
    lesions: Mapping[str, npt.NDArray[np.bool_]]
    truth: tuple[PlacedFinding, ...]
    lung_volume_ml: Mapping[str, float]
    cardiothoracic_ratio: float | None
    seed: int
    contrast: bool
    kernel: str


def make_phantom(
    seed: int,
    lesions: Sequence[LesionRequest] = (),
    *,
    spacing_mm: Point = (2.0, 0.7, 0.7),
    shape: tuple[int, int, int] | None = None,
    contrast: bool = False,
    kernel: str = "soft",
    noise_hu: float = 12.0,
) -> Phantom:
    """A phantom of one patient; the same arguments give the same voxels, and one seed one patient at any voxel size.

    `spacing_mm` and `shape` are along (slice, row, column); without a shape the grid covers the thorax (`FIELD_MM`).
    `kernel` is "soft" or "sharp"; `noise_hu` is the standard deviation in the body of the soft kernel.
    Raises ValueError for a finding, size, kernel, spacing or field of view that cannot be made.
    """
    _check(seed, spacing_mm, kernel, noise_hu)
    for request in lesions:
        check_request(request)
    z, y, x = (max(8, round(extent / step)) for extent, step in zip(FIELD_MM, spacing_mm, strict=True))
    canvas = make_canvas(shape or (z, y, x), spacing_mm, CENTRE_MM)
    placed = _paint(canvas, seed, lesions, contrast)
    _scan(canvas, kernel, seed)
    truth = tuple(_measure(canvas, p) for p in placed)
    _add_noise(canvas, seed, kernel, noise_hu)
    spaces = {side: int(np.count_nonzero(canvas.anatomy == LABEL[f"lung_{side}"])) for side in ("left", "right")}
    return Phantom(
        volume=_volume(canvas, seed),
        anatomy=canvas.anatomy,
        lesions=_masks(canvas, placed),
        truth=truth,
        lung_volume_ml={side: count * canvas.grid.voxel_ml for side, count in spaces.items()},
        cardiothoracic_ratio=_cardiothoracic_ratio(canvas),
        seed=seed,
        contrast=contrast,
        kernel=kernel,
    )


def truth_document(phantom: Phantom) -> dict[str, object]:
    """The truth as JSON-able values: seed, contrast, lung volumes (ml), cardiothoracic ratio and placed findings."""
    return {
        "seed": phantom.seed,
        "contrast": phantom.contrast,
        "kernel": phantom.kernel,
        "lung_volume_ml": dict(phantom.lung_volume_ml),
        "cardiothoracic_ratio": phantom.cardiothoracic_ratio,
        "findings": [asdict(finding) for finding in phantom.truth],
    }


def phantom_uid(seed: int, study_tag: str, *parts: str) -> str:
    """UID of a thing of the phantom study `study_tag`; the volume's own UIDs have the empty tag."""
    return derive_uid("phantom", str(seed), study_tag, *parts)


def _check(seed: int, spacing_mm: Point, kernel: str, noise_hu: float) -> None:
    if seed < 0:
        raise ValueError("seed must not be negative")
    if kernel not in _KERNELS:
        raise ValueError(f"kernel is {' or '.join(_KERNELS)}, not {kernel!r}")
    if not all(0.3 <= step <= 10 for step in spacing_mm):
        raise ValueError(f"spacing must be 0.3 to 10 mm, not {spacing_mm}")
    if not 0 <= noise_hu <= 200:
        raise ValueError(f"noise_hu must be 0 to 200, not {noise_hu:g}")


def _paint(canvas: Canvas, seed: int, lesions: Sequence[LesionRequest], contrast: bool) -> list[Placed]:
    patient = sample_patient(seed, contrast)
    space = make_space(canvas, patient)
    patient = shape_patient(patient, lesions, canvas, space)
    organs = build_organs(canvas, space, patient)
    trees = grow_trees(canvas, space, organs, patient)
    scene = Scene(canvas, space, organs, patient, trees)
    paint_wall(canvas, space, organs, patient)
    paint_lungs(canvas, space, organs, patient)
    placed = _place(scene, lesions, UNDER_TREES)
    paint_trees(canvas, trees, patient)
    placed += _place(scene, lesions, OVER_TREES)
    paint_mediastinum(canvas, space, organs, patient)
    paint_abdomen(canvas, organs, space, patient)
    draw_bones(canvas, space, organs, patient, LABEL)
    return placed + _place(scene, lesions, OVER_BODY)


def _place(scene: Scene, lesions: Sequence[LesionRequest], placers: Mapping[str, Placer]) -> list[Placed]:
    placed = []
    for kind, placer in placers.items():
        for number, request in enumerate(lesions):
            if request.kind == kind:
                placed.append(placer(scene, request, np.random.default_rng([scene.patient.seed, 11, number])))
    return placed


def _scan(canvas: Canvas, kernel: str, seed: int) -> None:
    """Blur of the scanner: the kernel's in the plane, the slice profile across."""
    blur = _KERNELS[kernel][0]
    soften(canvas.hu, canvas.grid.spacing_mm, (0.3 * canvas.grid.spacing_mm[0], blur, blur))


def _add_noise(canvas: Canvas, seed: int, kernel: str, noise_hu: float) -> None:
    """Noise with the kernel's grain, stronger deep in the body and at the shoulders, slice by slice."""
    _, grain, gain = _KERNELS[kernel]
    rng = np.random.default_rng([seed, 4])
    steps = canvas.grid.spacing_mm
    level = noise_hu * gain
    if level == 0:
        return
    z, y, x = canvas.working.axes
    centre = np.exp(-((x[None, None, :] / 150) ** 2) - ((y[None, :, None] - 10) / 120) ** 2)
    wide = 1 + 0.35 * np.clip((z[:, None, None] - 40) / 50, 0, 1)
    strength = np.asarray((0.55 + 0.55 * centre) * wide, np.float32)
    for index, plane in enumerate(canvas.hu):
        white: F32 = rng.standard_normal((1, *plane.shape), dtype=np.float32)
        soften(white, steps, (0.0, grain, grain))
        box = (slice(index, index + 1), slice(0, plane.shape[0]), slice(0, plane.shape[1]))
        plane += (white * canvas.sample(strength, box))[0] * np.float32(level / float(white.std()))


def _measure(canvas: Canvas, placed: Placed) -> PlacedFinding:
    z, y, x = central_voxel(placed.mask)
    start = [part.start for part in placed.box]
    kind = placed.request.kind
    inside = canvas.hu[placed.box][placed.mask]
    measurements = dict(placed.measurements)
    long_mm = None
    if kind in _AXES_KINDS:
        long_mm, short_mm = axial_axes_mm(placed.mask, canvas.grid.spacing_mm)
        measurements.setdefault("short_axis_mm", short_mm)
    if kind == "emphysema":
        lungs = np.isin(canvas.anatomy, [LABEL["lung_left"], LABEL["lung_right"]])
        measurements["laa_950_percent"] = 100 * float(np.mean(canvas.hu[lungs] < -950))
    return PlacedFinding(
        kind=kind,
        size=placed.size,
        size_unit=SIZE_UNITS[kind],
        laterality=placed.laterality,
        centre_mm=canvas.grid.point((z + start[0], y + start[1], x + start[2])),
        volume_ml=float(len(inside) * canvas.grid.voxel_ml),
        long_axis_mm=long_mm,
        mean_hu=float(inside.mean()),
        measurements=measurements,
    )


def _cardiothoracic_ratio(canvas: Canvas) -> float | None:
    heart, *lungs = (canvas.anatomy == LABEL[name] for name in ("heart", "lung_left", "lung_right"))
    organs = np.logical_or.reduce([heart, *lungs])
    cut_off = organs[[0, -1]].any() or organs[:, :, [0, -1]].any()
    if cut_off or not heart.any():
        return None
    heart_mm, thorax_mm = heart_and_thorax_mm(canvas)
    return heart_mm / thorax_mm


def _masks(canvas: Canvas, placed: Sequence[Placed]) -> dict[str, npt.NDArray[np.bool_]]:
    masks: dict[str, npt.NDArray[np.bool_]] = {}
    for p in placed:
        masks.setdefault(p.request.kind, np.zeros(canvas.grid.shape, bool))[p.box] |= p.mask
    return masks


def _volume(canvas: Canvas, seed: int) -> Volume:
    slice_mm, row_mm, column_mm = canvas.grid.spacing_mm
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = slice_mm, row_mm, column_mm, 1.0
    affine[:3, 3] = canvas.grid.point((0, 0, 0))
    count = canvas.grid.shape[0]
    return Volume(
        hu=np.clip(np.rint(canvas.hu), -1024, 3071).astype(np.int16),
        geometry=Geometry(affine, canvas.grid.shape, phantom_uid(seed, "", "frame of reference")),
        series_instance_uid=phantom_uid(seed, "", "series"),
        sop_instance_uids=tuple(phantom_uid(seed, "", "instance", str(index)) for index in range(count)),
        frame_numbers=(None,) * count,
    )
