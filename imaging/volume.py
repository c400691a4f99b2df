"""Pixels of a checked series as one volume in Hounsfield units."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imaging.geometry import Geometry


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """CT voxels in HU, int16, (slice, row, column), slices ordered along the slice normal; read-only.

    `sop_instance_uids[i]` (and `frame_numbers[i]`, 1-based, for an Enhanced CT) is where slice i came from.
    Takes ownership of the array.
    """

    hu: npt.NDArray[np.int16]
    geometry: Geometry
    series_instance_uid: str
    sop_instance_uids: tuple[str, ...]
    frame_numbers: tuple[int | None, ...]

    def __post_init__(self) -> None:
        if self.hu.shape != self.geometry.shape:
            raise ValueError(f"voxels {self.hu.shape} do not fit the grid {self.geometry.shape}")
        if self.hu.dtype != np.int16:
            raise ValueError(f"voxels must be int16 HU, not {self.hu.dtype}")
        if not len(self.sop_instance_uids) == len(self.frame_numbers) == self.hu.shape[0]:
            raise ValueError("one SOP Instance UID and frame number is needed for each slice")
        self.hu.setflags(write=False)
