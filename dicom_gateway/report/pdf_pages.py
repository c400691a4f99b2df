"""The report as A4 pages: the one result that carries the patient's name in print, for a chart or a mail."""

import io
from collections.abc import Mapping
from functools import cache
from html import escape
from typing import Any

from PIL import Image as Picture
from pydicom.dataset import Dataset
from reportlab.lib.colors import Color, HexColor, white
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase.pdfmetrics import registerFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, HRFlowable, Image, KeepTogether, Paragraph, SimpleDocTemplate, Spacer, Table

from dicom_gateway.report import printed
from dicom_gateway.report.content import Report
from dicom_gateway.report.headline import by_urgency, commented, headline, not_assessed_by_reason
from dicom_gateway.report.language import ENGLISH, Language
from dicom_gateway.report.source_headers import text_of
from dicom_gateway.report.typefaces import Typeface, printable, runs
from dicom_gateway.report.wording import finding_title, revision_in_words
from imaging.render import Rgb

_MARGIN = 15 * mm
_FRAME_PADDING = 6  # of SimpleDocTemplate
_WIDTH = A4[0] - 2 * _MARGIN
_TEXT, _DIM, _RED, _BLUE, _BAND = map(HexColor, ("#16181c", "#5a6270", "#b81414", "#1f4e8c", "#eef1f5"))
_ANSWER_COLOURS: dict[str, Color] = {
    "present": HexColor("#b45000"),
    "indeterminate": HexColor("#8a6a00"),
    "absent": HexColor("#1c6b3a"),
}
_COLUMN_SHARES = (0.22, 0.12, 0.34, 0.14, 0.10, 0.08)
_PICTURES_A_ROW = 4
_IN_FOOT = 110


def draw_pdf(report: Report, source: Dataset, key_images: Mapping[str, Rgb], language: Language = ENGLISH) -> bytes:
    """A PDF with embedded fonts and text that can be selected; the same arguments give the same bytes.

    `source` is a sanitised header of the study; its patient stands on every page.
    """
    _register_fonts()
    target = io.BytesIO()
    warning = printed.warning(report, language)
    patient = _patient(source, language)

    class NumberedCanvas(Canvas):
        """Writes the foot of each page when the number of pages is known."""

        def __init__(self, *arguments: Any, **more: Any) -> None:
            # In place of Helvetica, as in _table_of.
            super().__init__(*arguments, **(more | {"initialFontName": Typeface.REGULAR.file.stem}))
            self._pages: list[dict[str, Any]] = []

        def showPage(self) -> None:
            self._pages.append(dict(self.__dict__))
            self._startPage()

        def save(self) -> None:
            for number, page in enumerate(self._pages, start=1):
                self.__dict__.update(page)
                page_of_all = language.say("page {n} of {m}", n=number, m=len(self._pages))
                words = f"{_cut(patient)}   ·   {_cut(warning)}   ·   {page_of_all}"
                foot = _paragraph(words, 6.5, _DIM)
                foot.wrap(_WIDTH, _MARGIN)
                foot.drawOn(self, _MARGIN, 7 * mm)
                super().showPage()
            super().save()

    document = SimpleDocTemplate(
        target,
        pagesize=A4,
        leftMargin=_MARGIN - _FRAME_PADDING,
        rightMargin=_MARGIN - _FRAME_PADDING,
        topMargin=12 * mm,
        bottomMargin=_MARGIN,
        title=language.say(printed.TITLE),
        author=f"OneScan {report.software_version}",
        subject=warning,
        lang=language.tag,
        invariant=1,
    )
    document.build(
        [
            *_header(report, source, language),
            *_headline(report, language),
            *_key_images(report, key_images, language),
            *_table(report, language),
            *_not_assessed(report, language),
            *_quality(report, language),
            *_origin(report, language),
        ],
        canvasmaker=NumberedCanvas,
    )
    return target.getvalue()


@cache
def _register_fonts() -> None:
    for face in Typeface:
        registerFont(TTFont(face.file.stem, str(face.file)))


@cache
def _style(size: float, colour: Color, bold: bool) -> ParagraphStyle:
    face = Typeface.BOLD if bold else Typeface.REGULAR
    return ParagraphStyle(
        f"{face.name} {size} {colour}",
        fontName=face.file.stem,
        fontSize=size,
        leading=size * 1.3,
        textColor=colour,
    )


def _paragraph(text: str, size: float, colour: Color = _TEXT, bold: bool = False) -> Paragraph:
    marked = "".join(
        f'<font name="{face.file.stem}">{escape(run)}</font>' if face is Typeface.IDEOGRAPHS else escape(run)
        for face, run in runs(printable(text), bold)
    )
    return Paragraph(marked, _style(size, colour, bold))


def _cut(text: str) -> str:
    """`text` for the foot, which grows into the page; the head of the first one has all of it."""
    return text if len(text) <= _IN_FOOT else f"{text[: _IN_FOOT - 1]}…"


def _table_of(rows: list[list[Any]], shares: tuple[float, ...], *style: Any, repeated_rows: int = 0) -> Table:
    tight = [("LEFTPADDING", (0, 0), (-1, -1), 3), ("RIGHTPADDING", (0, 0), (-1, -1), 3)]
    # Else a cell begins with Helvetica, which a PDF names without holding it.
    font = ("FONTNAME", (0, 0), (-1, -1), Typeface.REGULAR.file.stem)
    flat = [("TOPPADDING", (0, 0), (-1, -1), 1.5), ("BOTTOMPADDING", (0, 0), (-1, -1), 1.5)]
    return Table(
        rows,
        [share * _WIDTH for share in shares],
        repeatRows=repeated_rows,
        splitInRow=1,
        style=[("VALIGN", (0, 0), (-1, -1), "TOP"), font, *tight, *flat, *style],
    )


def _section(title: str) -> list[Flowable]:
    line = HRFlowable("100%", 0.5, color=_BLUE, spaceAfter=3)
    return [Spacer(0, 7), _paragraph(title.upper(), 8, _BLUE, bold=True), line]


def _patient(source: Dataset, language: Language) -> str:
    name = printed.person_name(text_of(source, "PatientName"), language)
    identity = text_of(source, "PatientID") or language.say("unknown")
    return language.say("{name}, ID {id}", name=name, id=identity)


def _header(report: Report, source: Dataset, language: Language) -> list[Flowable]:
    sex = {"M": "male", "F": "female", "O": "other"}.get(source.PatientSex, "unknown")
    time = source.StudyTime[:4]
    when = printed.written_date(source.StudyDate, language) + (f" {time[:2]}:{time[2:]}" if len(time) == 4 else "")
    fields = (
        ("Patient", printed.person_name(text_of(source, "PatientName"), language)),
        ("Patient ID", text_of(source, "PatientID") or language.say("unknown")),
        ("Born", printed.written_date(source.PatientBirthDate, language)),
        ("Sex", language.say(sex)),
        ("Study date", when),
        ("Accession number", text_of(source, "AccessionNumber") or language.say("none")),
        ("Description", text_of(source, "StudyDescription") or language.say("none")),
        ("Referred by", printed.person_name(text_of(source, "ReferringPhysicianName"), language)),
    )
    cells = [(_paragraph(language.say(name), 7.5, _DIM), _paragraph(value, 8.5, bold=True)) for name, value in fields]
    rows = [[*left, *right] for left, right in zip(cells[::2], cells[1::2], strict=True)]
    amended = [_paragraph(revision_in_words(report, language), 9, _RED, bold=True)] if report.revision > 1 else []
    return [
        _paragraph(language.say(printed.TITLE), 16, bold=True),
        Spacer(0, 2),
        _paragraph(printed.warning(report, language), 9, _RED, bold=True),
        *amended,
        Spacer(0, 5),
        _table_of(rows, (0.14, 0.36, 0.16, 0.34), ("BACKGROUND", (0, 0), (-1, -1), _BAND)),
        Spacer(0, 4),
        _paragraph(printed.study_line(report, source.StudyDate, language), 8, _DIM),
    ]


def _headline(report: Report, language: Language) -> list[Flowable]:
    sentences = (*headline(report, language), *commented(report, language))
    rows = [[_paragraph("•", 9.5, _DIM), _paragraph(sentence, 9.5)] for sentence in sentences]
    return [*_section(language.say(printed.IMPRESSION)), _table_of(rows, (0.02, 0.98))]


def _key_images(report: Report, key_images: Mapping[str, Rgb], language: Language) -> list[Flowable]:
    shown = [f for f in by_urgency(report.findings) if f.key_image in key_images]
    side = _WIDTH / _PICTURES_A_ROW - 6
    flowables = []
    for start in range(0, len(shown), _PICTURES_A_ROW):
        row = [
            [
                Image(_png(key_images[f.key_image or ""]), side, side, kind="proportional"),
                _paragraph(finding_title(f, language), 7.5, bold=True),
                _paragraph(printed.caption(f, language), 7, _DIM),
            ]
            for f in shown[start : start + _PICTURES_A_ROW]
        ]
        empty: list[Any] = [""] * (_PICTURES_A_ROW - len(row))
        table = _table_of([[*row, *empty]], (1 / _PICTURES_A_ROW,) * _PICTURES_A_ROW)
        flowables.append(KeepTogether([*(_section(language.say(printed.KEY_IMAGES)) if start == 0 else ()), table]))
    return flowables


def _png(picture: Rgb) -> io.BytesIO:
    buffer = io.BytesIO()
    Picture.fromarray(picture).save(buffer, format="PNG")
    buffer.seek(0)
    return buffer


def _table(report: Report, language: Language) -> list[Flowable]:
    rows: list[list[Any]] = [[_paragraph(language.say(title), 7, _DIM) for title in printed.COLUMNS]]
    style: list[Any] = [("LINEBELOW", (0, 0), (-1, 0), 0.3, _DIM)]
    for n, row in enumerate(printed.assessed_rows(report, language), start=1):
        style.append(("BACKGROUND", (0, n), (-1, n), _BAND if row.group % 2 == 0 else white))
        if isinstance(row, printed.Omitted):
            rows.append([_paragraph(row.text, 7.5, _DIM)])
            style.append(("SPAN", (0, n), (-1, n)))
            continue
        colours = (_TEXT, _ANSWER_COLOURS[row.finding.presence], _TEXT, _TEXT, _DIM, _DIM)
        rows.append([_paragraph(text, 7.5, colour) for text, colour in zip(row.cells, colours, strict=True)])
    if len(rows) == 1:
        return []
    return [*_section(language.say(printed.ASSESSED)), _table_of(rows, _COLUMN_SHARES, *style, repeated_rows=1)]


def _not_assessed(report: Report, language: Language) -> list[Flowable]:
    groups = not_assessed_by_reason(report, language)
    rows = [[_paragraph(language.listed(names), 7.5), _paragraph(why, 7.5, _DIM)] for why, names in groups.items()]
    return [*_section(language.say(printed.NOT_ASSESSED)), _table_of(rows, (0.45, 0.55))] if rows else []


def _quality(report: Report, language: Language) -> list[Flowable]:
    notable = [
        (language.say(issue.verdict), language.told(issue.message))
        for issue in report.quality
        if issue.verdict != "pass"
    ]
    lines = [*notable, *printed.rejected_lines(report, language), ("", printed.quality_counts(report, language))]
    rows = [[_paragraph(which, 7.5, _DIM), _paragraph(words, 7.5)] for which, words in lines]
    return [*_section(language.say(printed.QUALITY)), _table_of(rows, (0.10, 0.90))]


def _origin(report: Report, language: Language) -> list[Flowable]:
    lines = [_paragraph(line, 6.5, _DIM) for line in printed.origin_lines(report, language)]
    return [Spacer(0, 8), KeepTogether([HRFlowable("100%", 0.5, color=_DIM, spaceAfter=2), *lines])]
