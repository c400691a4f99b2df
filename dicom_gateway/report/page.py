"""The summary page: one picture that tells a radiologist at any workstation what the report says."""

from collections.abc import Mapping

from dicom_gateway.report import printed
from dicom_gateway.report.canvas import DIM, PANEL, RED, TEXT, Canvas
from dicom_gateway.report.content import Report
from dicom_gateway.report.headline import by_urgency, commented, headline, not_assessed_by_reason
from dicom_gateway.report.language import ENGLISH, Language
from dicom_gateway.report.wording import finding_title, revision_in_words
from imaging.render import Colour, Rgb

_WIDTH_PX, _MINIMUM_HEIGHT_PX, _MARGIN_PX = 1280, 900, 36
_PICTURES_A_ROW = 4
_AMBER: Colour = (250, 220, 90)
_COLUMNS_PX = (300, 150, 368, 190, 110, 90)
_ANSWER_COLOURS: dict[str, Colour] = {
    "present": (255, 160, 60),
    "indeterminate": _AMBER,
    "absent": (120, 205, 140),
    "not_assessed": DIM,
}


def draw_page(report: Report, study_date: str, key_images: Mapping[str, Rgb], language: Language = ENGLISH) -> Rgb:
    """(rows, columns, 3) uint8, 1280 px wide and as high as it needs.

    `study_date` is YYYYMMDD or empty; `key_images` maps `ReportedFinding.key_image` to its picture. No patient
    identity is drawn: a workstation shows it from the headers.
    """
    canvas = Canvas(_WIDTH_PX, _MARGIN_PX)
    _header(canvas, report, study_date, language)
    _headline(canvas, report, language)
    _key_images(canvas, report, key_images, language)
    _table(canvas, report, language)
    _not_assessed(canvas, report, language)
    _quality(canvas, report, language)
    _footer(canvas, report, language)
    return canvas.rgb(_MINIMUM_HEIGHT_PX)


def _header(canvas: Canvas, report: Report, study_date: str, language: Language) -> None:
    canvas.space(26)
    canvas.text(language.say(printed.TITLE), 32, bold=True)
    canvas.space(4)
    canvas.text(printed.warning(report, language), 19, RED, bold=True)
    canvas.space(6)
    if report.revision > 1:
        canvas.text(revision_in_words(report, language), 19, _AMBER, bold=True)
        canvas.space(6)
    canvas.text(printed.study_line(report, study_date, language), 17, DIM)
    canvas.space(14)


def _section(canvas: Canvas, title: str) -> None:
    canvas.space(14)
    canvas.text(title.upper(), 16, (130, 175, 235), bold=True)
    canvas.rule()
    canvas.space(8)


def _headline(canvas: Canvas, report: Report, language: Language) -> None:
    _section(canvas, language.say(printed.IMPRESSION))
    for sentence in (*headline(report, language), *commented(report, language)):
        canvas.row([("•", 24, DIM), (sentence, canvas.inner_width - 24, TEXT)], 20)
        canvas.space(4)


def _key_images(canvas: Canvas, report: Report, key_images: Mapping[str, Rgb], language: Language) -> None:
    shown = [f for f in by_urgency(report.findings) if f.key_image in key_images]
    if not shown:
        return
    _section(canvas, language.say(printed.KEY_IMAGES))
    captions = [
        (key_images[f.key_image or ""], finding_title(f, language), printed.caption(f, language)) for f in shown
    ]
    canvas.pictures(captions, _PICTURES_A_ROW)


def _table(canvas: Canvas, report: Report, language: Language) -> None:
    rows = list(printed.assessed_rows(report, language))
    if not rows:
        return
    _section(canvas, language.say(printed.ASSESSED))
    titles = zip(map(language.say, printed.COLUMNS), _COLUMNS_PX, strict=True)
    canvas.row([(title, width, DIM) for title, width in titles], 15, indent_px=10, padding_px=3)
    for row in rows:
        background = PANEL if row.group % 2 == 0 else None
        if isinstance(row, printed.Omitted):
            cells = [(row.text, canvas.inner_width, DIM)]
        else:
            colours = (TEXT, _ANSWER_COLOURS[row.finding.presence], TEXT, TEXT, DIM, DIM)
            cells = list(zip(row.cells, _COLUMNS_PX, colours, strict=True))
        canvas.row(cells, 16, indent_px=10, background=background, padding_px=4)


def _not_assessed(canvas: Canvas, report: Report, language: Language) -> None:
    groups = not_assessed_by_reason(report, language)
    if not groups:
        return
    _section(canvas, language.say(printed.NOT_ASSESSED))
    width = canvas.inner_width * 2 // 5
    for reason, names in groups.items():
        canvas.row([(language.listed(names), width, TEXT), (reason, canvas.inner_width - width, DIM)], 16)


def _quality(canvas: Canvas, report: Report, language: Language) -> None:
    _section(canvas, language.say(printed.QUALITY))
    for issue in report.quality:
        if issue.verdict != "pass":
            colour = RED if issue.verdict == "reject" else _AMBER
            verdict, message = language.say(issue.verdict), language.told(issue.message)
            canvas.row([(verdict, 90, colour), (message, canvas.inner_width - 90, TEXT)], 16)
    for which, why in printed.rejected_lines(report, language):
        canvas.row([(which, 110, DIM), (why, canvas.inner_width - 110, TEXT)], 16)
    canvas.text(printed.quality_counts(report, language), 16, DIM)


def _footer(canvas: Canvas, report: Report, language: Language) -> None:
    canvas.space(16)
    canvas.rule()
    canvas.space(8)
    for line in printed.origin_lines(report, language):
        canvas.text(line, 14, DIM)
