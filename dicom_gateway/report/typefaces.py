"""The fonts of everything drawn, and which of them draws a character: DejaVu Sans, and Noto Sans SC for ideographs."""

import enum
from functools import cache
from itertools import groupby
from pathlib import Path

_FOLDER = Path(__file__).parent / "fonts"
_FIRST_IDEOGRAPH = "\u2e80"
# Both weights of DejaVu Sans have all that comes before, of which names and units are made.
_FIRST_RARE = "\u0250"


class Typeface(enum.Enum):
    """A font file; the ideographs have one weight."""

    REGULAR = "DejaVuSans.ttf"
    BOLD = "DejaVuSans-Bold.ttf"
    IDEOGRAPHS = "NotoSansSC-Regular.ttf"

    @property
    def file(self) -> Path:
        return _FOLDER / self.value


def printable(text: str) -> str:
    """`text` with what no font here can draw (rarer ideographs, other scripts, symbols) as one dot a character."""
    return "".join(character if character.isprintable() and _is_drawn(character) else "·" for character in text)


def runs(text: str, bold: bool = False) -> list[tuple[Typeface, str]]:
    """`text` divided where the font changes."""
    latin = Typeface.BOLD if bold else Typeface.REGULAR
    return [
        (Typeface.IDEOGRAPHS if is_ideographs else latin, "".join(run))
        for is_ideographs, run in groupby(text, lambda c: c >= _FIRST_IDEOGRAPH)
    ]


def _is_drawn(character: str) -> bool:
    if character >= _FIRST_IDEOGRAPH:
        return character in _ideographs()
    return character < _FIRST_RARE or ord(character) in _latin()


@cache
def _latin() -> frozenset[int]:
    # Most texts have nothing to ask about, and the fonts take time to read.
    from reportlab.pdfbase.ttfonts import TTFontFile

    regular, bold = (TTFontFile(str(face.file)).charToGlyph for face in (Typeface.REGULAR, Typeface.BOLD))
    return frozenset(regular) & frozenset(bold)


@cache
def _ideographs() -> frozenset[str]:
    """The characters that the font of ideographs was made with; it is cut down to these."""
    return frozenset(Typeface.IDEOGRAPHS.file.with_suffix(".characters.txt").read_text(encoding="utf-8").strip())
