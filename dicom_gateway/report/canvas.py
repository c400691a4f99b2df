"""A tall dark page that grows downwards: wrapped text, table rows, pictures. Nothing on it can overlap or be cut."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dicom_gateway.report.typefaces import Typeface, printable, runs
from imaging.render import Colour, Rgb

BACKGROUND: Colour = (16, 18, 22)
PANEL: Colour = (30, 34, 41)
TEXT: Colour = (230, 233, 238)
DIM: Colour = (160, 168, 180)
RED: Colour = (255, 92, 92)

_LINE_HEIGHT = 1.4
# A line may break at a space and beside an ideograph, but not before the punctuation that ends a phrase.
_PIECES = re.compile(r"\s*(?:[\u2e80-\U0003ffff]|[^\s\u2e80-\U0003ffff]+)[、。，．：；！？）》」』】〕〉]*")


@dataclass(frozen=True, slots=True)
class Pen:
    """A size and weight in which text is measured and drawn, each character in the font that has it."""

    size_px: int
    bold: bool = False

    def length_px(self, text: str) -> float:
        return sum(_font(face, self.size_px).getlength(run) for face, run in runs(text, self.bold))

    def draw(self, draw: ImageDraw.ImageDraw, x: float, middle: float, text: str, colour: Colour) -> None:
        """One line from `x` on, its middle at `middle`; all fonts stand on one base line."""
        ascent, descent = _font(Typeface.BOLD if self.bold else Typeface.REGULAR, self.size_px).getmetrics()
        base = middle + (ascent - descent) / 2
        for face, run in runs(text, self.bold):
            font = _font(face, self.size_px)
            draw.text((x, base), run, font=font, fill=colour, anchor="ls")
            x += font.getlength(run)


@cache
def _font(face: Typeface, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(face.file, size_px)


def wrap(text: str, width_px: float, pen: Pen) -> list[str]:
    """Lines of `text` that are each at most `width_px` wide; a word that is wider than that is divided."""
    lines: list[str] = [""]
    for piece in _PIECES.findall(printable(text)):
        word = piece.lstrip()
        space = " " if lines[-1] and word != piece else ""
        if pen.length_px(lines[-1] + space + word) <= width_px:
            lines[-1] += space + word
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and pen.length_px(lines[-1] + character) > width_px:
                lines.append("")
            lines[-1] += character
    return lines


class Canvas:
    """Draws downwards from `y`; the picture is as high as what was drawn on it."""

    def __init__(self, width_px: int, margin_px: int) -> None:
        self.width = width_px
        self.margin = margin_px
        self.y = 0
        self._image = Image.new("RGB", (width_px, 1024), BACKGROUND)

    @property
    def inner_width(self) -> int:
        return self.width - 2 * self.margin

    def rgb(self, minimum_height_px: int) -> Rgb:
        """(rows, columns, 3) uint8 of all that was drawn."""
        self._reach(minimum_height_px)
        height = max(minimum_height_px, self.y + self.margin)
        self._reach(height)
        return np.array(self._image.crop((0, 0, self.width, height)))

    def space(self, height_px: int) -> None:
        self.y += height_px

    def text(self, text: str, size_px: int, colour: Colour = TEXT, bold: bool = False, indent_px: int = 0) -> None:
        """A paragraph over the whole width."""
        self.row([(text, self.inner_width - indent_px, colour)], size_px, bold, indent_px)

    def row(
        self,
        cells: Sequence[tuple[str, int, Colour]],
        size_px: int,
        bold: bool = False,
        indent_px: int = 0,
        background: Colour | None = None,
        padding_px: int = 0,
    ) -> None:
        """Cells (text, width, colour) side by side, each wrapped in its width; as high as the highest."""
        pen, line_px = Pen(size_px, bold), round(size_px * _LINE_HEIGHT)
        wrapped = [wrap(text, width - 12, pen) for text, width, _ in cells]
        height = max(map(len, wrapped)) * line_px + 2 * padding_px
        draw = self._reach(self.y + height)
        if background is not None:
            draw.rectangle([self.margin, self.y, self.width - self.margin, self.y + height - 1], fill=background)
        x = self.margin + indent_px
        for (_, width, colour), lines in zip(cells, wrapped, strict=True):
            for n, line in enumerate(lines):
                middle = self.y + padding_px + (n + 0.5) * line_px
                pen.draw(draw, x, middle, line, colour)
            x += width
        self.y += height

    def rule(self, colour: Colour = PANEL) -> None:
        self._reach(self.y + 2).rectangle([self.margin, self.y, self.width - self.margin, self.y + 1], fill=colour)
        self.y += 2

    def pictures(self, pictures: Sequence[tuple[Rgb, str, str]], columns: int) -> None:
        """(picture, title, caption) in rows of `columns`, each fitted into a square with its text below."""
        gap = 16
        side = (self.inner_width - (columns - 1) * gap) // columns
        for start in range(0, len(pictures), columns):
            shown = pictures[start : start + columns]
            self._reach(self.y + side)
            for n, (picture, _, _) in enumerate(shown):
                image = Image.fromarray(picture)
                image.thumbnail((side, side), Image.Resampling.LANCZOS)
                x = self.margin + n * (side + gap)
                self._image.paste((0, 0, 0), (x, self.y, x + side, self.y + side))
                self._image.paste(image, (x + (side - image.width) // 2, self.y + (side - image.height) // 2))
            self.y += side + 4
            self.row([(title, side + gap, TEXT) for _, title, _ in shown], 17, bold=True)
            self.row([(caption, side + gap, DIM) for _, _, caption in shown], 15)
            self.y += 12

    def _reach(self, height_px: int) -> ImageDraw.ImageDraw:
        """A pen on the picture, which is made higher first where `height_px` does not fit on it."""
        if height_px > self._image.height:
            taller = Image.new("RGB", (self.width, max(height_px, 2 * self._image.height)), BACKGROUND)
            taller.paste(self._image, (0, 0))
            self._image = taller
        return ImageDraw.Draw(self._image)
