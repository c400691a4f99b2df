"""Closed lines around the parts of a mask, along the edges of its pixels."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from imaging.lungs import Mask

Polygon = npt.NDArray[np.float64]

# A step along a pixel's edge as (column, row), its inside on the right hand: up the left side, along the top, ...
_STEPS = ((0, -1), (1, 0), (0, 1), (-1, 0))


def outer_polygons(mask: Mask, *, at_most: int = 8, least_share: float = 0.1) -> tuple[Polygon, ...]:
    """Around each part (4-connected) of a (rows, columns) mask a closed polygon, the largest part first.

    Points are (n, 2) (column, row) with (0, 0) at the outer corner of the first pixel, as DICOM counts graphics
    (PS3.3 C.10.5.1.2, C.18.6.1.1); the last point repeats the first. A polygon encloses the pixels of its part and
    of the part's holes, no others. Parts smaller than `least_share` of the largest are left out.
    """
    labels, count = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    largest = sorted(range(count), key=lambda part: (-int(areas[part]), part))[:at_most]
    boxes = ndimage.find_objects(labels)
    polygons = []
    for part in largest:
        if areas[part] < least_share * areas[largest[0]]:
            break
        rows, columns = boxes[part]
        filled = ndimage.binary_fill_holes(labels[boxes[part]] == part + 1)
        polygons.append(_border(filled) + np.array([columns.start, rows.start]))
    return tuple(polygons)


def _border(filled: Mask) -> Polygon:
    """Clockwise on the screen from the first pixel's left upper corner; only corners are kept."""
    inside = np.pad(filled, 1)
    row, column = (int(i) for i in np.argwhere(filled)[0])
    start = (column, row)
    x, y, heading = column, row, 1
    corners = [start]
    while True:
        x, y = x + _STEPS[heading][0], y + _STEPS[heading][1]
        turned = _next_heading(inside, x, y, heading)
        if turned != heading:
            corners.append((x, y))
        heading = turned
        if (x, y) == start and heading == 1:
            break
    if corners[-1] != start:
        corners.append(start)
    return np.array(corners, np.float64)


def _next_heading(inside: Mask, x: int, y: int, heading: int) -> int:
    """Where the line goes on from the corner (x, y): it keeps the mask on its right and cuts no diagonal neighbours.

    `inside` has one more pixel on each side, so that pixel (row, column) of the mask is inside[row + 1, column + 1].
    """
    along_column, along_row = _STEPS[heading]
    # The pixels ahead of the corner, to the right and to the left of the line.
    ahead_right = inside[y + 1 + _ahead(along_row, along_column), x + 1 + _ahead(along_column, -along_row)]
    ahead_left = inside[y + 1 + _ahead(along_row, -along_column), x + 1 + _ahead(along_column, along_row)]
    if not ahead_right:
        return (heading + 1) % 4
    return (heading - 1) % 4 if ahead_left else heading


def _ahead(forward: int, sideways: int) -> int:
    """Offset (-1 or 0) of the pixel beside a corner in the direction `forward`, else in the direction `sideways`."""
    return 0 if (forward or sideways) > 0 else -1
