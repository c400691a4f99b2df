"""A slice of a volume as a picture: windowed, in radiological orientation, with outlines around what is to be seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from imaging.geometry import FloatArray
from imaging.lungs import Mask
from imaging.volume import Volume

Rgb = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

_TEXT: Colour = (235, 235, 235)
_GAP_PX = 2
_LINE_PX = 2
_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))
# Towards which end of each patient axis (x, y, z) a picture runs, rightwards or downwards: the patient's left on the
# right, posterior below (or right, in a sagittal slice), inferior below.
_DIRECTION = (1.0, 1.0, -1.0)


@dataclass(frozen=True, slots=True)
class Window:
    """VOI window in HU: `centre` becomes mid-grey, `width` spans black to white (PS3.3 C.11.2.1.2)."""

    centre_hu: float
    width_hu: float

    def __post_init__(self) -> None:
        if self.width_hu <= 0:
            raise ValueError("a window needs a positive width")


LUNG_WINDOW = Window(-600.0, 1500.0)
MEDIASTINUM_WINDOW = Window(40.0, 400.0)
BONE_WINDOW = Window(400.0, 1800.0)


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """What to draw a line around: a (row, column) mask on the whole slice, and the line's colour."""

    mask: Mask
    colour: Colour


@dataclass(frozen=True, slots=True)
class Crop:
    """The part of a slice to show, in rows and columns of the volume; the end is excluded."""

    rows: tuple[int, int]
    columns: tuple[int, int]


def render_slice(
    volume: Volume,
    slice_index: int,
    window: Window,
    outlines: Sequence[Outline] = (),
    crop: Crop | None = None,
    size_px: int = 512,
) -> Rgb:
    """(rows, columns, 3) uint8 picture of one slice; its longer side has `size_px` pixels, its pixels are square.

    Patient right is on the left of an axial slice whatever the order of rows and columns. Outlines run around a
    mask and leave its pixels visible. The side, the position along the stack and a scale are written on it.
    Raises IndexError for a slice outside the volume and ValueError for an empty crop or a misfitting mask.
    """
    depth, rows, columns = volume.hu.shape
    if not 0 <= slice_index < depth:
        raise IndexError(f"slice {slice_index} is outside 0..{depth - 1}")
    if any(outline.mask.shape != (rows, columns) for outline in outlines):
        raise ValueError("an outline's mask must have the slice's rows and columns")
    part = _clipped(crop, rows, columns)
    swap, flip_rows, flip_columns, axes = _display(volume.geometry.affine)

    def displayed(plane: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        plane = plane[part.rows[0] : part.rows[1], part.columns[0] : part.columns[1]]
        plane = plane.T if swap else plane
        return plane[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]

    spacing_mm = volume.geometry.spacing_mm[1:][:: -1 if swap else 1]
    grey = displayed(windowed(volume.hu[slice_index], window))
    mm = (grey.shape[0] * spacing_mm[0], grey.shape[1] * spacing_mm[1])
    px_per_mm = size_px / max(mm)
    shape = (max(1, round(mm[0] * px_per_mm)), max(1, round(mm[1] * px_per_mm)))
    picture = np.repeat(_resized(grey, shape, Image.Resampling.BICUBIC)[:, :, None], 3, axis=2)
    for outline in outlines:
        mask = _resized(displayed(outline.mask).astype(np.uint8), shape, Image.Resampling.NEAREST) > 0
        picture[line_around(mask)] = outline.colour
    position_mm = float(volume.geometry.index_to_patient((slice_index, rows / 2, columns / 2))[axes[2]])
    caption = f"{_LETTERS[axes[2]][position_mm > 0]} {abs(position_mm):.1f} mm   slice {slice_index + 1}/{depth}"
    return _annotated(picture, caption, axes[1], px_per_mm)


def windowed(hu: npt.NDArray[np.int16], window: Window) -> npt.NDArray[np.uint8]:
    """HU as 0..255, linear in the window and clipped outside it (PS3.3 C.11.2.1.3.2, LINEAR_EXACT)."""
    fraction = (hu.astype(np.float32) - window.centre_hu) / window.width_hu + 0.5
    grey: npt.NDArray[np.uint8] = (np.clip(fraction, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return grey


def line_around(mask: Mask) -> Mask:
    """A closed line around `mask`, `_GAP_PX` away from it, that shares no pixel with it."""
    ball = ndimage.generate_binary_structure(2, 1)
    inner = ndimage.binary_dilation(mask, ball, iterations=_GAP_PX)
    line: Mask = ndimage.binary_dilation(inner, ball, iterations=_LINE_PX) & ~inner
    return line


def _clipped(crop: Crop | None, rows: int, columns: int) -> Crop:
    if crop is None:
        return Crop((0, rows), (0, columns))
    clipped = Crop(
        (max(0, crop.rows[0]), min(rows, crop.rows[1])), (max(0, crop.columns[0]), min(columns, crop.columns[1]))
    )
    if clipped.rows[0] >= clipped.rows[1] or clipped.columns[0] >= clipped.columns[1]:
        raise ValueError("the crop holds no pixel of the slice")
    return clipped


def _display(affine: FloatArray) -> tuple[bool, bool, bool, tuple[int, int, int]]:
    """Swap rows and columns? Flip rows, flip columns (after the swap)? Patient axes (down, right, through)."""
    down, right = (int(np.argmax(np.abs(affine[:3, k]))) for k in (1, 2))
    swap = down < right
    row_axis, column_axis = (2, 1) if swap else (1, 2)
    down, right = max(down, right), min(down, right)
    flip_rows = bool(affine[down, row_axis] * _DIRECTION[down] < 0)
    flip_columns = bool(affine[right, column_axis] * _DIRECTION[right] < 0)
    return swap, flip_rows, flip_columns, (down, right, 3 - down - right)


def _resized(
    plane: npt.NDArray[np.generic], shape: tuple[int, int], resampling: Image.Resampling
) -> npt.NDArray[np.uint8]:
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.uint8))
    return np.array(image.resize((shape[1], shape[0]), resampling))


def _annotated(picture: Rgb, caption: str, right_axis: int, px_per_mm: float) -> Rgb:
    """`picture` with the sides of the patient at its edges, `caption` at the bottom and a scale at the right."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    height, width = picture.shape[:2]
    size = max(11.0, max(height, width) / 23)
    letter, small = ImageFont.load_default(size * 1.25), ImageFont.load_default(size)

    def write(x: float, y: float, text: str, face: ImageFont.FreeTypeFont | ImageFont.ImageFont, anchor: str) -> None:
        draw.text((x, y), text, font=face, anchor=anchor, fill=_TEXT, stroke_width=2, stroke_fill=(0, 0, 0))

    before, after = _LETTERS[right_axis][:: int(_DIRECTION[right_axis])]
    write(6, height / 2, before, letter, "lm")
    write(width - 6, height / 2, after, letter, "rm")
    write(6, height - 5, caption, small, "ls")
    length_mm = 50 if 50 * px_per_mm < 0.4 * height else 10
    x, bottom = width - 9, height - size - 12
    draw.line([(x, bottom - length_mm * px_per_mm), (x, bottom)], fill=_TEXT, width=2)
    write(width - 5, height - 5, f"{length_mm} mm", small, "rs")
    return np.array(image)
