"""What one run of the network knows about the anatomy of one volume: what the measured kinds are measured on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, TypeVarTuple, cast

import numpy as np
import numpy.typing as npt

from imaging.geometry import Geometry
from imaging.lungs import Lungs
from imaging.preprocess import Box, ModelInput
from imaging.uids import derive_uid
from imaging.volume import Volume
from models.contrast import BloodPool
from models.findings import FindingKind

Mask = npt.NDArray[np.bool_]
Wanted = TypeVarTuple("Wanted")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Anatomy:
    """A volume with the organs that the network outlined on its own grid.

    `labels` is uint8 (z, y, x) on `grid` (isotropic; z to superior, y to posterior, x to the patient's left), an
    index into `names`. `sharp_kernel` is true where the kernel may be sharp, see `imaging.kernel`.
    """

    volume: Volume
    lungs: Lungs
    grid: ModelInput
    labels: npt.NDArray[np.uint8]
    names: tuple[str, ...]
    blood_pool: BloodPool
    sharp_kernel: bool
    model_sha256: str
    _made: dict[tuple[object, ...], object] = field(default_factory=dict, init=False, repr=False)

    def once(self, make: Callable[["Anatomy", *Wanted], Made], *args: *Wanted) -> Made:
        """What `make` gives for this anatomy: computed once, however many rules ask for it."""
        if (make, *args) not in self._made:
            self._made[make, *args] = make(self, *args)
        return cast(Made, self._made[make, *args])

    def scan_z_mm(self, x_mm: float, y_mm: float) -> tuple[float, float]:
        """LPS z in mm of the lowest and of the highest slice of the volume at x and y: slices may be oblique."""
        geometry = self.volume.geometry
        x, y, z, first = np.linalg.inv(geometry.affine)[0]
        low, high = sorted(float(n - first - x * x_mm - y * y_mm) / float(z) for n in (0, geometry.shape[0] - 1))
        return low, high

    def mask(self, *names: str) -> Mask:
        """Where any of the named classes is, on the network's grid. Raises ValueError for an unknown name."""
        return np.isin(self.labels, [self.names.index(name) for name in names])

    def on_source(self, mask: Mask, box: Box) -> Mask:
        """A mask of the network's grid at the voxels of `box` of the source grid, its border interpolated."""
        return self.grid.to_source(mask, box) >= 0.5

    def tracking_uid(self, kind: FindingKind, *parts: str) -> str:
        """The same for the same series, model and lesion, so that a re-run names the same finding."""
        return derive_uid("tracking", self.volume.series_instance_uid, self.model_sha256, kind.value, *parts)


def lung_ends_mm(anatomy: Anatomy) -> tuple[float, float] | None:
    """`lung_z_mm` of an anatomy; to be asked for by `Anatomy.once`, as several rules want it."""
    return lung_z_mm(anatomy.lungs, anatomy.volume.geometry)


def lung_z_mm(lungs: Lungs, geometry: Geometry) -> tuple[float, float] | None:
    """LPS z in mm of the lowest and of the highest voxel of the lungs, in slices oblique or not; None without lungs."""
    along_slices, along_rows, along_columns, first = geometry.affine[2]
    rows, columns = np.ogrid[: geometry.shape[1], : geometry.shape[2]]
    in_plane = along_rows * rows + along_columns * columns
    ends: list[float] = []
    for n in lungs.slices:
        z_mm = first + along_slices * n + in_plane[lungs.left[n] | lungs.right[n]]
        ends += (float(z_mm.min()), float(z_mm.max()))
    return (min(ends), max(ends)) if ends else None
