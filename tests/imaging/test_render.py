import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from imaging.geometry import Geometry
from imaging.render import (
    LUNG_WINDOW,
    MEDIASTINUM_WINDOW,
    Crop,
    Outline,
    Window,
    line_around,
    render_slice,
    windowed,
)
from imaging.volume import Volume

RED = (255, 0, 0)
# Where a block towards (left, posterior) of an axial slice must appear, whatever the storage order.
LEFT_POSTERIOR = (slice(70, 90), slice(70, 90))
RIGHT_ANTERIOR = (slice(10, 30), slice(10, 30))


def make_volume(
    hu: np.ndarray, directions: np.ndarray, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Volume:
    """`directions` columns are the patient directions of slice, row and column index."""
    affine = np.eye(4)
    affine[:3, :3] = directions * np.array(spacing_mm)
    count = hu.shape[0]
    uids = tuple(f"1.2.{i + 1}" for i in range(count))
    return Volume(hu.astype(np.int16), Geometry(affine, hu.shape), "1.2", uids, (None,) * count)


AXIAL = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])


def patch(picture: np.ndarray, place: tuple[slice, slice]) -> float:
    """Mean grey in percent coordinates of the picture."""
    rows, columns = (
        slice(s.start * n // 100, s.stop * n // 100) for s, n in zip(place, picture.shape[:2], strict=True)
    )
    return float(picture[rows, columns].mean())


@pytest.mark.parametrize("flip_rows", [False, True])
@pytest.mark.parametrize("flip_columns", [False, True])
@pytest.mark.parametrize("swap", [False, True])
def test_patient_left_is_on_the_right_and_posterior_below(flip_rows: bool, flip_columns: bool, swap: bool) -> None:
    hu, directions = np.full((3, 100, 100), -1000), AXIAL.copy()
    hu[:, 70:90, 70:90] = 1000  # towards the patient's left and posterior in the plain axial order
    if flip_rows:
        hu, directions[:, 1] = hu[:, ::-1], -directions[:, 1]
    if flip_columns:
        hu, directions[:, 2] = hu[:, :, ::-1], -directions[:, 2]
    if swap:
        hu, directions = hu.transpose(0, 2, 1), directions[:, [0, 2, 1]]
    picture = render_slice(make_volume(hu, directions), 1, MEDIASTINUM_WINDOW)
    assert patch(picture, LEFT_POSTERIOR) > 200
    assert patch(picture, RIGHT_ANTERIOR) < 20


def test_superior_is_on_top_of_a_coronal_slice() -> None:
    hu = np.full((3, 100, 100), -1000)
    hu[:, 70:90, 70:90] = 1000
    coronal = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # the row index runs to superior
    picture = render_slice(make_volume(hu, coronal), 0, MEDIASTINUM_WINDOW)
    assert patch(picture, (slice(10, 30), slice(70, 90))) > 200


def test_pixels_are_square_on_the_patient() -> None:
    hu = np.zeros((2, 50, 100))
    picture = render_slice(make_volume(hu, AXIAL, (5.0, 3.0, 0.75)), 0, LUNG_WINDOW, size_px=300)
    assert picture.shape == (300, 150, 3)
    assert picture.dtype == np.uint8


@pytest.mark.parametrize(("hu", "grey"), [(-160, 0), (40, 128), (240, 255), (3000, 255), (-1024, 0)])
def test_a_window_is_linear_between_black_and_white(hu: int, grey: int) -> None:
    assert windowed(np.array([hu], dtype=np.int16), MEDIASTINUM_WINDOW)[0] == grey


def test_a_window_needs_a_width() -> None:
    with pytest.raises(ValueError, match="width"):
        Window(0.0, 0.0)


@given(mask=arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)))
@settings(max_examples=60, deadline=None)
def test_a_line_never_covers_what_it_surrounds(mask: np.ndarray) -> None:
    line = line_around(mask)
    assert not (line & mask).any()
    assert line.any() <= mask.any()


def test_an_outline_surrounds_the_finding_and_leaves_it_visible() -> None:
    hu = np.full((2, 100, 100), -800)
    hu[0, 40:60, 20:40] = 40
    mask = hu[0] == 40
    volume = make_volume(hu, AXIAL)
    plain = render_slice(volume, 0, LUNG_WINDOW, size_px=400)
    drawn = render_slice(volume, 0, LUNG_WINDOW, [Outline(mask, RED)], size_px=400)
    line = (drawn == RED).all(axis=2)
    enlarged = np.array(Image.fromarray(mask).resize((400, 400), Image.Resampling.NEAREST))
    rows, columns = np.nonzero(line)
    assert (rows.min(), rows.max()) == pytest.approx((160, 239), abs=6)
    assert (columns.min(), columns.max()) == pytest.approx((80, 159), abs=6)
    assert (drawn[enlarged] == plain[enlarged]).all()


def test_a_crop_beyond_the_edge_is_clipped() -> None:
    hu = np.zeros((1, 100, 100))
    picture = render_slice(make_volume(hu, AXIAL), 0, LUNG_WINDOW, crop=Crop((-50, 50), (50, 200)), size_px=200)
    assert picture.shape == (200, 200, 3)


@pytest.mark.parametrize("crop", [Crop((100, 120), (0, 10)), Crop((5, 5), (0, 10))])
def test_an_empty_crop_is_an_error(crop: Crop) -> None:
    with pytest.raises(ValueError, match="crop"):
        render_slice(make_volume(np.zeros((1, 100, 100)), AXIAL), 0, LUNG_WINDOW, crop=crop)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_slice_outside_the_volume_is_an_error(index: int) -> None:
    with pytest.raises(IndexError):
        render_slice(make_volume(np.zeros((2, 10, 10)), AXIAL), index, LUNG_WINDOW)


def test_a_mask_that_does_not_fit_is_an_error() -> None:
    outline = Outline(np.zeros((5, 5), dtype=np.bool_), RED)
    with pytest.raises(ValueError, match="mask"):
        render_slice(make_volume(np.zeros((2, 10, 10)), AXIAL), 0, LUNG_WINDOW, [outline])


@given(side=st.sampled_from([0, 1]), extra=st.integers(0, 3), size_px=st.integers(64, 300), spacing=st.floats(0.3, 2.0))
@settings(max_examples=20, deadline=None)
def test_mirrored_storage_gives_the_same_picture(side: int, extra: int, size_px: int, spacing: float) -> None:
    generator = np.random.default_rng(extra)
    hu = generator.integers(-1000, 400, (2, 32, 32))
    mirrored, directions = np.flip(hu, axis=side + 1), AXIAL.copy()
    directions[:, side + 1] *= -1
    a = render_slice(make_volume(hu, AXIAL, (1.0, spacing, spacing)), 0, LUNG_WINDOW, size_px=size_px)
    b = render_slice(make_volume(mirrored, directions, (1.0, spacing, spacing)), 0, LUNG_WINDOW, size_px=size_px)
    # The position written in the lower left corner depends on the origin, which mirroring moved within the plane only.
    assert np.array_equal(a, b)
