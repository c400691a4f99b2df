"""The voxel grid in the patient coordinate system, and the order and regularity of slices on it.

Everything is LPS (x to the patient's left, y to posterior, z to superior) in mm; arrays are (slice, row, column).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Point = tuple[float, float, float]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """Voxel grid in the patient coordinate system: LPS, mm (PS3.3 C.7.6.2.1.1).

    `affine` (4 x 4) maps a voxel-centre index (slice, row, column, 1) to (x, y, z, 1).
    Takes ownership of the array and makes it read-only.
    """

    affine: FloatArray
    shape: tuple[int, int, int]
    frame_of_reference_uid: str | None = None

    def __post_init__(self) -> None:
        if self.affine.shape != (4, 4):
            raise ValueError(f"affine must be 4 x 4, not {self.affine.shape}")
        if not np.all(np.isfinite(self.affine)) or abs(np.linalg.det(self.affine[:3, :3])) < 1e-9:
            raise ValueError("affine must be finite and invertible")
        self.affine.setflags(write=False)

    @property
    def spacing_mm(self) -> Point:
        """Distance between voxel centres along (slice, row, column)."""
        slice_mm, row_mm, column_mm = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(slice_mm), float(row_mm), float(column_mm)

    @property
    def voxel_volume_mm3(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def index_to_patient(self, index: npt.ArrayLike) -> FloatArray:
        """(..., 3) indices (slice, row, column), fractions allowed, to (..., 3) points (x, y, z) in mm."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def patient_to_index(self, point_mm: npt.ArrayLike) -> FloatArray:
        """(..., 3) points (x, y, z) in mm to fractional (..., 3) indices (slice, row, column)."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(point_mm, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]


def slice_normal(image_orientation_patient: Sequence[float]) -> FloatArray:
    """Unit normal of the image plane: row direction x column direction (PS3.3 C.7.6.2.1.1).

    Raises ValueError when the two directions are not orthogonal unit vectors, to 1 %.
    """
    row, column = directions = np.asarray(image_orientation_patient, dtype=np.float64).reshape(2, 3)
    if not np.all(np.abs(directions) < 1.01):
        raise ValueError("ImageOrientationPatient is not a pair of orthogonal unit vectors")
    deviations = (np.linalg.norm(row) - 1.0, np.linalg.norm(column) - 1.0, row @ column)
    if not np.all(np.abs(deviations) < 0.01):
        raise ValueError("ImageOrientationPatient is not a pair of orthogonal unit vectors")
    normal = np.cross(row, column)
    return normal / float(np.linalg.norm(normal))


def geometry_of_stack(
    positions_mm: FloatArray,
    image_orientation_patient: Sequence[float],
    pixel_spacing_mm: tuple[float, float],
    rows: int,
    columns: int,
    frame_of_reference_uid: str | None,
) -> Geometry:
    """Grid of a regular stack whose slices are already in order along the normal.

    `positions_mm` is (n, 3), n >= 2, ImagePositionPatient of each slice; `pixel_spacing_mm` is
    (row spacing, column spacing) as in PixelSpacing (PS3.3 10.7.1.3). The slice step is the mean one.
    """
    row_direction, column_direction = np.asarray(image_orientation_patient, dtype=np.float64).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0] = (positions_mm[-1] - positions_mm[0]) / (len(positions_mm) - 1)
    affine[:3, 1] = column_direction * pixel_spacing_mm[0]
    affine[:3, 2] = row_direction * pixel_spacing_mm[1]
    affine[:3, 3] = positions_mm[0]
    return Geometry(affine, (len(positions_mm), rows, columns), frame_of_reference_uid)
