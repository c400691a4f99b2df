"""Bodies of nodules: real outlines turned and scaled, and made ones (round, lobulated, spiculated)."""

from collections.abc import Sequence
from pathlib import Path

import cc3d
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from models.training.lesions import Array, smooth_noise, soft_edge

_NODULE_LABEL = 2
_REAL_VOXELS = (40, 8000)
_REAL_SHARE = 0.5
# Sigma of the Gaussian that smooths an outline, and what its edge spans then, both in its voxels.
_BLUR, _BLUR_SPANS = 0.7, 1.7


def read_shapes(folder: Path) -> tuple[Array, ...]:
    """Outlines of the nodules (label 2) of every mask in a folder: isotropic, smoothed, 0.5 at the border.

    Pieces of 40 to 8000 voxels of 1.5 mm: smaller ones have no shape left, larger ones are masses.
    """
    shapes: list[Array] = []
    for path in sorted(folder.glob("*.nii.gz")):
        labels = cc3d.connected_components(sitk.GetArrayFromImage(sitk.ReadImage(str(path))) == _NODULE_LABEL)
        counts = cc3d.statistics(labels)
        for label in range(1, int(labels.max()) + 1):
            if _REAL_VOXELS[0] <= counts["voxel_counts"][label] <= _REAL_VOXELS[1]:
                piece = labels[counts["bounding_boxes"][label]] == label
                shapes.append(ndimage.gaussian_filter(np.pad(piece, 3).astype(np.float32), _BLUR))
    return tuple(shapes)


def draw_body(shapes: Sequence[Array], diameter_mm: float, rng: np.random.Generator) -> Array:
    """How much of each 1 mm voxel the nodule fills (0 to 1), a cube; its volume is about that of the ball."""
    if shapes and rng.random() < _REAL_SHARE:
        return _turned(shapes[int(rng.integers(len(shapes)))], diameter_mm, rng)
    return _made(diameter_mm, rng)


def _turned(shape: Array, diameter_mm: float, rng: np.random.Generator) -> Array:
    solid = shape >= 0.5
    scale = (6 * solid.sum() / np.pi) ** (1 / 3) / diameter_mm
    stretch = np.diag(np.exp(rng.normal(0.0, 0.08, 3)))
    matrix = Rotation.random(random_state=rng).as_matrix() @ stretch * scale
    side = 2 * int(np.ceil(0.9 * max(solid.shape) / scale / 2 + 2)) + 1
    centre = np.array(ndimage.center_of_mass(solid))
    # The outline's own blur spans about 1.7 of its voxels: one voxel of the new grid is to be left of it.
    if scale > _BLUR_SPANS:
        more = _BLUR * np.sqrt((scale / _BLUR_SPANS) ** 2 - 1)
        margin = int(np.ceil(3 * more))
        shape, centre = ndimage.gaussian_filter(np.pad(shape, margin), more), centre + margin
    offset = centre - matrix @ (np.full(3, side // 2) + rng.uniform(-0.5, 0.5, 3))
    turned = ndimage.affine_transform(shape, matrix, offset, (side,) * 3, order=1)
    return np.clip((turned - 0.5) * np.clip(_BLUR_SPANS / scale, 1.0, 2.5) + 0.5, 0.0, 1.0)


def _made(diameter_mm: float, rng: np.random.Generator) -> Array:
    radius = diameter_mm / 2
    half = int(np.ceil(1.7 * radius + 2))
    axes = np.ogrid[tuple(slice(-half, half + 1) for _ in range(3))]
    ratio = np.exp(rng.normal(0.0, 0.13, 3))
    ratio /= np.prod(ratio) ** (1 / 3)
    shift = rng.uniform(-0.5, 0.5, 3)
    distance = np.sqrt(sum(((a - s) / r) ** 2 for a, s, r in zip(axes, shift, ratio, strict=True)))
    bumps = smooth_noise(distance.shape, max(2.0, rng.uniform(0.5, 1.0) * radius), rng)
    level = radius * (1 + rng.choice([0.0, 0.12, 0.25]) * bumps) - distance
    body = soft_edge(level.astype(np.float32), 1.0)
    if diameter_mm > 8 and rng.random() < 0.3:
        body = np.maximum(body, _spicules(distance.shape, radius, rng))
    return body


def _spicules(shape: tuple[int, ...], radius: float, rng: np.random.Generator) -> Array:
    points = np.indices(shape, dtype=np.float32).reshape(3, -1).T - (shape[0] // 2)
    filled = np.zeros(len(points), np.float32)
    for direction in rng.standard_normal((int(rng.integers(5, 14)), 3)):
        direction /= np.linalg.norm(direction)
        along = points @ direction
        across = np.sqrt(np.maximum((points**2).sum(axis=1) - along**2, 0.0))
        width = 0.9 * np.clip(1 - along / (1.6 * radius), 0.0, 1.0)
        filled = np.maximum(filled, np.where(along > 0, np.clip(width - across + 0.5, 0.0, 1.0), 0.0))
    return filled.reshape(shape).astype(np.float32)


def ellipse_axes_mm(body: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Long and short axis of the largest slice, in mm, as if it were an ellipse of its second moments."""
    plane = body[int(np.argmax(body.sum(axis=(1, 2))))]
    y, x = np.nonzero(plane >= 0.5)
    if len(y) < 3:
        diameter = float(2 * np.sqrt(plane.sum() / np.pi))
        return diameter, diameter
    widths = np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov(np.stack([y, x])) + np.eye(2) / 12), 0.0))
    return float(4 * widths[1]), float(4 * widths[0])
