"""Single lesions of an outline that does not tell them apart."""

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from imaging.geometry import Geometry
from models.evaluation.truth import TrueLesion
from models.measure import axial_axes_mm, region_of, volume_mm3

Mask = npt.NDArray[np.bool_]


def outlined_lesions(mask: Mask, unknown: Mask, geometry: Geometry, smallest_ml: float) -> tuple[TrueLesion, ...]:
    """The connected pieces of an outline on the grid of `geometry`, (slice, row, column), each with its axial axes.

    A piece that mostly lies where the truth is `unknown`, or is smaller than `smallest_ml`, does not count.
    """
    labels = cc3d.connected_components(mask, connectivity=26)
    lesions = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[box] == number
        region = region_of(inside, box, geometry)
        long_mm, short_mm = axial_axes_mm(region, geometry)
        large = volume_mm3(region, geometry) >= 1000 * smallest_ml
        lesions.append(
            TrueLesion(
                centre_lps_mm=region.centre_mm,
                diameter_mm=long_mm,
                short_axis_mm=short_mm,
                counts=large and float(unknown[box][inside].mean()) <= 0.5,
            )
        )
    return tuple(lesions)
