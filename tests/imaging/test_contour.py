"""Polygons around masks: exactly their pixels, counted from the outer corner of the first one."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from scipy import ndimage

from imaging.contour import outer_polygons


def inside(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies in the polygon, by the parity of edges to the right of it."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]] + 0.5
    crossings = np.zeros(shape, int)
    for (x, y), (_, y_next) in pairwise(polygon):
        between = (np.minimum(y, y_next) < rows) & (rows < np.maximum(y, y_next))
        crossings += between & (x > columns)
    return crossings % 2 == 1


def test_one_pixel() -> None:
    mask = np.zeros((5, 7), bool)
    mask[2, 4] = True
    (polygon,) = outer_polygons(mask)
    assert polygon.tolist() == [[4, 2], [5, 2], [5, 3], [4, 3], [4, 2]]


def test_an_empty_mask_has_none() -> None:
    assert outer_polygons(np.zeros((4, 4), bool)) == ()


def test_holes_are_enclosed_and_small_parts_left_out() -> None:
    mask = np.zeros((20, 30), bool)
    mask[2:12, 3:13] = True
    mask[5:8, 6:9] = False
    mask[14:18, 20:28] = True
    mask[0, 29] = True
    first, second = outer_polygons(mask)
    assert inside(first, mask.shape).sum() == 100
    assert inside(second, mask.shape).sum() == 32


def test_pixels_that_touch_at_a_corner_stay_one_line_each() -> None:
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    (polygon,) = outer_polygons(mask)
    assert np.array_equal(inside(polygon, mask.shape), ndimage.binary_fill_holes(mask))


@settings(max_examples=200, deadline=None)
@given(arrays(bool, (9, 11), elements=st.booleans()))
def test_each_polygon_encloses_its_part(mask: np.ndarray) -> None:
    labels, count = ndimage.label(mask)
    polygons = outer_polygons(mask, at_most=99, least_share=0.0)
    assert len(polygons) == count
    parts = [ndimage.binary_fill_holes(labels == n) for n in range(1, count + 1)]
    found = [inside(polygon, mask.shape) for polygon in polygons]
    for polygon, pixels in zip(polygons, found, strict=True):
        assert polygon[0].tolist() == polygon[-1].tolist()
        assert any(np.array_equal(pixels, part) for part in parts)


def test_a_smooth_shape_has_the_length_of_its_pixels_edges() -> None:
    picture = Image.new("1", (64, 48))
    ImageDraw.Draw(picture).ellipse((10, 8, 50, 40), fill=1)
    mask = np.array(picture)
    (polygon,) = outer_polygons(mask)
    edges = sum(np.abs(np.diff(np.pad(mask, 1).astype(int), axis=axis)).sum() for axis in (0, 1))
    assert np.abs(np.diff(polygon, axis=0)).sum() == edges
