"""What can be placed in a phantom, in which unit, and what the truth of a placed finding is.

`Scene` is one patient being painted; `place_volume` turns a field of preference into a region of an exact volume.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from imaging.geometry import Point
from imaging.phantom_anatomy import Organs, Patient, Space
from imaging.phantom_body import LABEL, Trees
from imaging.phantom_shapes import F32, Box, Canvas, Mask

# kind: (unit, smallest, largest). "1" is a count or the Agatston score.
_SIZES: Mapping[str, tuple[str, float, float]] = MappingProxyType(
    {
        "pulmonary_nodule": ("mm", 3.0, 60.0),  # equivalent sphere diameter, solid
        "coronary_artery_calcification": ("1", 1.0, 3000.0),  # Agatston score
        "emphysema": ("%", 1.0, 60.0),  # low attenuation part of both lungs
        "pleural_effusion": ("ml", 5.0, 2000.0),
        "aortic_dilatation": ("mm", 38.0, 75.0),  # ascending aorta
        "vertebral_compression_fracture": ("%", 15.0, 60.0),  # loss of anterior height
        "consolidation": ("ml", 2.0, 1200.0),
        "ground_glass_opacity": ("ml", 2.0, 2500.0),
        "pneumothorax": ("ml", 5.0, 2500.0),
        "pericardial_effusion": ("ml", 20.0, 900.0),
        "cardiomegaly": ("{ratio}", 0.5, 0.65),  # cardiothoracic ratio
        "atelectasis": ("ml", 2.0, 700.0),
        "lymphadenopathy": ("mm", 8.0, 40.0),  # short axis
        "interstitial_abnormality": ("%", 1.0, 50.0),  # part of both lungs
        "bronchiectasis": ("1", 1.0, 12.0),  # dilated bronchi
        "pulmonary_artery_enlargement": ("mm", 29.0, 45.0),  # pulmonary trunk
        "low_bone_density": ("[hnsf'U]", 20.0, 110.0),  # trabecular attenuation
        "hepatic_steatosis": ("[hnsf'U]", -20.0, 40.0),  # liver attenuation
        "rib_fracture": ("1", 1.0, 6.0),  # displaced fractures
        "hiatal_hernia": ("mm", 25.0, 70.0),
        "arterial_wall_calcification": ("mm3", 20.0, 8000.0),  # of the thoracic aorta
        "medical_device": ("1", 1.0, 2.0),  # leads of a pacemaker
    }
)
SIZE_UNITS: Mapping[str, str] = MappingProxyType({kind: unit for kind, (unit, _, _) in _SIZES.items()})

_LATERAL = frozenset(
    {
        "pulmonary_nodule", "emphysema", "pleural_effusion", "consolidation", "ground_glass_opacity", "pneumothorax",
        "atelectasis", "interstitial_abnormality", "bronchiectasis", "rib_fracture",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LesionRequest:
    """A lesion to place; `size` in the unit `SIZE_UNITS[kind]`; `laterality` "left", "right" or None for the seed's.

    Emphysema, ground glass and interstitial change lie in both lungs when no laterality is asked for.
    """

    kind: str
    size: float
    laterality: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedFinding:
    """The truth of one placed lesion, measured on the noise-free voxels of its mask; `centre_mm` (LPS) lies in it."""

    kind: str
    size: float
    size_unit: str
    laterality: str | None
    centre_mm: Point
    volume_ml: float | None
    long_axis_mm: float | None
    mean_hu: float | None
    measurements: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A lesion as painted: where it is and its exact size, before its attenuation can be measured."""

    request: LesionRequest
    box: Box
    mask: Mask
    size: float
    laterality: str | None
    measurements: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One patient on one canvas."""

    canvas: Canvas
    space: Space
    organs: Organs
    patient: Patient
    trees: Trees

    def lung(self, side: str) -> F32:
        return self.organs.lung_left if side == "left" else self.organs.lung_right

    def lung_box(self, side: str) -> Box:
        """Voxel box of one lung. Raises ValueError when it is outside the field of view."""
        box = self.canvas.box_of(self.lung(side), 0.0)
        if box is None or not self.lung_mask(side, box).any():
            raise ValueError(f"the field of view holds no {side} lung to place a lesion in")
        return box

    def lung_mask(self, side: str, box: Box) -> Mask:
        return np.asarray(self.canvas.anatomy[box] == LABEL[f"lung_{side}"])


Placer = Callable[[Scene, LesionRequest, np.random.Generator], Placed]


def check_request(request: LesionRequest) -> None:
    """Raises ValueError for an unknown kind, a size out of range or a side that makes no sense."""
    if request.kind not in _SIZES:
        raise ValueError(f"unknown finding {request.kind!r}; can place: {', '.join(sorted(_SIZES))}")
    unit, low, high = _SIZES[request.kind]
    if not low <= request.size <= high:
        raise ValueError(f"{request.kind} takes {low:g} to {high:g} {unit}, not {request.size:g}")
    if request.laterality not in (None, "left", "right"):
        raise ValueError(f"laterality is 'left', 'right' or None, not {request.laterality!r}")
    if request.laterality is not None and request.kind not in _LATERAL:
        raise ValueError(f"{request.kind} has no side; with a side: {', '.join(sorted(_LATERAL))}")


def choose_side(request: LesionRequest, rng: np.random.Generator) -> str:
    drawn = ("left", "right")[int(rng.integers(2))]
    return request.laterality or drawn


def place_volume(scene: Scene, request: LesionRequest, score: F32, allowed: Mask, ml: float) -> tuple[Mask, float]:
    """The voxels of lowest `score` among `allowed` that make up `ml`, and the score at their edge.

    Raises ValueError when there is no room.
    """
    count = round(ml / scene.canvas.grid.voxel_ml)
    room = int(np.count_nonzero(allowed))
    if not 0 < count <= 0.95 * room:
        raise ValueError(
            f"{request.kind}: {ml:.1f} ml does not fit; between {scene.canvas.grid.voxel_ml:.3f} ml (one voxel) "
            f"and {0.95 * room * scene.canvas.grid.voxel_ml:.0f} ml can be placed here"
        )
    # float64 breaks ties between equal scores less often than float32 would.
    edge = float(np.partition(score[allowed], count - 1)[count - 1])
    return np.asarray(allowed & (score <= edge)), edge


def central_voxel(mask: Mask) -> tuple[int, int, int]:
    """A voxel deep inside `mask`."""
    depth = ndimage.distance_transform_cdt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
    z, y, x = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return int(z), int(y), int(x)


def axial_axes_mm(mask: Mask, spacing_mm: Point) -> tuple[float, float]:
    """Greatest in-plane distance within the slice with the largest area, and the width across it (mm).

    Voxel edges are included.
    """
    plane = mask[int(np.argmax(mask.sum(axis=(1, 2))))]
    edge: npt.NDArray[np.bool_] = plane & ~ndimage.binary_erosion(plane)
    points = np.argwhere(edge) * np.array(spacing_mm[1:])
    points = points[:: max(1, len(points) // 800)]
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)
    start, end = np.unravel_index(int(np.argmax(gaps)), gaps.shape)
    row, column = points[end] - points[start]
    across = points @ np.array([-column, row]) / max(float(gaps.max()), 1e-6)
    edge_mm = (spacing_mm[1] + spacing_mm[2]) / 2
    return float(gaps.max()) + edge_mm, float(np.ptp(across)) + edge_mm
