"""The summary page: one picture that tells a radiologist at any workstation what the report says."""

from collections.abc import Mapping

from dicom_gateway.report.canvas import DIM, PANEL, RED, TEXT, Canvas
from dicom_gateway.report.content import Report, ReportedFinding
from dicom_gateway.report.headline import by_urgency, headline, not_assessed_by_reason
from dicom_gateway.report.wording import (
    PRESENCE_NAMES,
    describe_series,
    finding_title,
    format_measurements,
    key_measurements,
    place,
    revision_in_words,
)
from imaging.render import Colour, Rgb

_WIDTH_PX, _MINIMUM_HEIGHT_PX, _MARGIN_PX = 1280, 900, 36
_PICTURES_A_ROW = 4
_LESIONS_SHOWN = 4
_REJECTED_SHOWN = 8
_AMBER: Colour = (250, 220, 90)
_COLUMNS_PX = (300, 150, 368, 190, 110, 90)
_ANSWER_COLOURS: dict[str, Colour] = {
    "present": (255, 160, 60),
    "indeterminate": _AMBER,
    "absent": (120, 205, 140),
    "not_assessed": DIM,
}
_WARNING = "RESEARCH USE ONLY - NOT A MEDICAL DEVICE - AUTOMATED RESULT, UNVERIFIED"


def draw_page(report: Report, study_date: str, key_images: Mapping[str, Rgb]) -> Rgb:
    """(rows, columns, 3) uint8, 1280 px wide and as high as it needs.

    `study_date` is YYYYMMDD or empty; `key_images` maps `ReportedFinding.key_image` to its picture. No patient
    identity is drawn: a workstation shows it from the headers.
    """
    canvas = Canvas(_WIDTH_PX, _MARGIN_PX)
    _header(canvas, report, study_date)
    _headline(canvas, report)
    _key_images(canvas, report, key_images)
    _table(canvas, report)
    _not_assessed(canvas, report)
    _quality(canvas, report)
    _footer(canvas, report)
    return canvas.rgb(_MINIMUM_HEIGHT_PX)


def _header(canvas: Canvas, report: Report, study_date: str) -> None:
    canvas.space(26)
    canvas.text("OneScan chest CT summary", 32, bold=True)
    canvas.space(4)
    canvas.text(_WARNING, 19, RED, bold=True)
    canvas.space(6)
    if report.revision > 1:
        canvas.text(revision_in_words(report), 19, _AMBER, bold=True)
        canvas.space(6)
    date = f"{study_date[:4]}-{study_date[4:6]}-{study_date[6:]}" if len(study_date) == 8 else "date unknown"
    canvas.text(f"Study of {date}. Analysed: {describe_series(report)}.", 17, DIM)
    canvas.space(14)


def _section(canvas: Canvas, title: str) -> None:
    canvas.space(14)
    canvas.text(title.upper(), 16, (130, 175, 235), bold=True)
    canvas.rule()
    canvas.space(8)


def _headline(canvas: Canvas, report: Report) -> None:
    _section(canvas, "Impression")
    for sentence in headline(report):
        canvas.row([("•", 24, DIM), (sentence, canvas.inner_width - 24, TEXT)], 20)
        canvas.space(4)


def _key_images(canvas: Canvas, report: Report, key_images: Mapping[str, Rgb]) -> None:
    shown = [f for f in by_urgency(report.findings) if f.key_image in key_images]
    if not shown:
        return
    _section(canvas, "Key images")
    captions = [(key_images[f.key_image or ""], finding_title(f), _caption(f)) for f in shown]
    canvas.pictures(captions, _PICTURES_A_ROW)


def _caption(finding: ReportedFinding) -> str:
    parts = [place(finding), key_measurements(finding)]
    if finding.presence != "present":
        parts.insert(0, PRESENCE_NAMES[finding.presence].lower())
    return ", ".join(filter(None, parts))


def _table(canvas: Canvas, report: Report) -> None:
    assessed = [f for f in report.findings if f.presence != "not_assessed"]
    if not assessed:
        return
    _section(canvas, "Assessed")
    titles = ("Finding", "Answer", "Measurements", "Where", "Probability", "Evidence")
    canvas.row([(t, w, DIM) for t, w in zip(titles, _COLUMNS_PX, strict=True)], 15, indent_px=10, padding_px=3)
    for n, finding in enumerate(f for f in assessed if f.lesion is None):
        background = PANEL if n % 2 == 0 else None
        _table_row(canvas, finding, finding_title(finding), background)
        lesions = [f for f in assessed if f.kind == finding.kind and f.lesion is not None]
        for lesion in lesions[:_LESIONS_SHOWN]:
            _table_row(canvas, lesion, f"↳ no. {lesion.lesion}", background)
        if len(lesions) > _LESIONS_SHOWN:
            more = f"↳ and {len(lesions) - _LESIONS_SHOWN} more, listed in the structured report"
            canvas.row([(more, canvas.inner_width, DIM)], 16, indent_px=10, background=background, padding_px=4)


def _table_row(canvas: Canvas, finding: ReportedFinding, title: str, background: Colour | None) -> None:
    certainty = "" if finding.probability is None else f"{finding.probability * 100:.1f} %"
    measured = format_measurements(finding.measurements)
    if finding.reason:
        measured = f"{measured}; {finding.reason}" if measured else finding.reason
    texts = (
        title,
        PRESENCE_NAMES[finding.presence],
        measured,
        place(finding),
        certainty,
        finding.evidence_grade or "",
    )
    colours = (TEXT, _ANSWER_COLOURS[finding.presence], TEXT, TEXT, DIM, DIM)
    cells = list(zip(texts, _COLUMNS_PX, colours, strict=True))
    canvas.row(cells, 16, indent_px=10, background=background, padding_px=4)


def _not_assessed(canvas: Canvas, report: Report) -> None:
    groups = not_assessed_by_reason(report)
    if not groups:
        return
    _section(canvas, "Not assessed (says nothing about presence or absence)")
    width = canvas.inner_width * 2 // 5
    for reason, names in groups.items():
        canvas.row([(", ".join(names), width, TEXT), (reason, canvas.inner_width - width, DIM)], 16)


def _quality(canvas: Canvas, report: Report) -> None:
    _section(canvas, "Quality")
    notable = [issue for issue in report.quality if issue.verdict != "pass"]
    for issue in notable:
        colour = RED if issue.verdict == "reject" else _AMBER
        canvas.row([(issue.verdict, 90, colour), (issue.message, canvas.inner_width - 90, TEXT)], 16)
    rest = [f"Checks passed: {len(report.quality) - len(notable)}"]
    if report.outcome == "refused":
        for series in report.rejected_series[:_REJECTED_SHOWN]:
            number = "series" if series.series_number is None else f"series {series.series_number}"
            canvas.row([(number, 110, DIM), (series.reason, canvas.inner_width - 110, TEXT)], 16)
    rest.append(f"series not analysed: {len(report.rejected_series)}")
    rest.append(f"unreadable files: {report.unreadable_file_count}")
    canvas.text(", ".join(rest), 16, DIM)


def _footer(canvas: Canvas, report: Report) -> None:
    canvas.space(16)
    canvas.rule()
    canvas.space(8)
    canvas.text(
        f"Model {report.model.name} {report.model.version} (sha256 {report.model.sha256[:12]}), OneScan "
        f"{report.software_version}, {report.created:%Y-%m-%d %H:%M} {report.created.tzname()}, revision "
        f"{report.revision}, report {report.report_uid}",
        14,
        DIM,
    )
    canvas.text(
        "Evidence: A measured on labelled real CT; B single or unlabelled real CT; C simulation only. "
        + report.disclaimer,
        14,
        DIM,
    )
