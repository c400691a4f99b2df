"""Chinese in what is drawn: every character has its glyph, and lines break as Chinese does."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from reportlab.pdfbase.ttfonts import TTFontFile

from dicom_gateway.report.canvas import Canvas, Pen, wrap
from dicom_gateway.report.typefaces import Typeface, printable, runs


def test_the_font_has_every_character_it_is_asked_for() -> None:
    """The list decides what is drawn with it, so that both must agree; GB 2312 and the newer given names are in it."""
    glyphs = TTFontFile(str(Typeface.IDEOGRAPHS.file)).charToGlyph
    listed = Typeface.IDEOGRAPHS.file.with_suffix(".characters.txt").read_text(encoding="utf-8").strip()
    assert [c for c in listed if not glyphs.get(ord(c))] == []
    gb_2312 = {bytes([row, cell]).decode("gb2312") for row in range(0xB0, 0xD7) for cell in range(0xA1, 0xFA)}
    assert gb_2312 <= set(listed)
    assert printable("王小东、喆堃玥祎（复查）") == "王小东、喆堃玥祎（复查）"


def test_what_no_font_has_is_a_dot_a_character() -> None:
    assert printable("a\u0007b 龑\U0001f600") == "a·b ··"
    assert printable("Müller, สมชาย ≥ 3 mm²") == "Müller, ····· ≥ 3 mm²"


def test_what_is_taken_for_granted_is_there() -> None:
    both = [TTFontFile(str(face.file)).charToGlyph for face in (Typeface.REGULAR, Typeface.BOLD)]
    assert [chr(n) for n in range(0x250) if chr(n).isprintable() and not all(n in glyphs for glyphs in both)] == []


def test_each_character_is_drawn_with_the_font_that_has_it() -> None:
    assert runs("Wang 王小东, 1 mm", bold=True) == [
        (Typeface.BOLD, "Wang "),
        (Typeface.IDEOGRAPHS, "王小东"),
        (Typeface.BOLD, ", 1 mm"),
    ]


def test_a_name_is_drawn_and_no_two_characters_look_alike() -> None:
    pictures = []
    for character in "王小东":
        image = Image.new("L", (60, 60))
        Pen(40).draw(ImageDraw.Draw(image), 5, 30, character, 255)  # type: ignore[arg-type]
        pictures.append(np.array(image))
    assert all((picture > 128).sum() > 50 for picture in pictures)
    assert not any((pictures[i] == pictures[j]).all() for i, j in ((0, 1), (1, 2), (0, 2)))


@pytest.mark.parametrize("width_px", [60, 150, 400])
def test_chinese_breaks_anywhere_but_before_closing_punctuation(width_px: int) -> None:
    text = "胸部平扫，薄层重建（肺窗）。复查 with contrast，对比剂 80 ml。"
    lines = wrap(text, width_px, Pen(20))
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(Pen(20).length_px(line) <= width_px for line in lines)
    assert not any(line.startswith(("，", "。", "）")) for line in lines)


def test_a_line_of_latin_and_chinese_takes_the_room_it_needs() -> None:
    canvas = Canvas(200, 10)
    canvas.text("王小东 " * 20, 16)
    picture = canvas.rgb(50)
    assert (picture[:, :10] == picture[0, 0]).all()
    assert (picture[:, -10:] == picture[0, 0]).all()
    assert picture.shape[0] > 100
