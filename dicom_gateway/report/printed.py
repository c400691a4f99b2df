"""The lines and rows of the printed report, the same on the summary page and in the PDF."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.valuerep import PersonName

from dicom_gateway.report.content import Report, ReportedFinding
from dicom_gateway.report.typefaces import Typeface, runs
from dicom_gateway.report.wording import (
    PRESENCE_NAMES,
    describe_series,
    finding_title,
    format_measurements,
    key_measurements,
    place,
)

TITLE = "OneScan chest CT summary"
WARNING = "RESEARCH USE ONLY - NOT A MEDICAL DEVICE - AUTOMATED RESULT, UNVERIFIED"
IMPRESSION, KEY_IMAGES, ASSESSED, QUALITY = "Impression", "Key images", "Assessed", "Quality"
NOT_ASSESSED = "Not assessed (says nothing about presence or absence)"
COLUMNS = ("Finding", "Answer", "Measurements", "Where", "Probability", "Evidence")

_LESIONS_SHOWN = 4
_REJECTED_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Row:
    """One answer in the order of COLUMNS; `group` counts the kinds, a lesion has its kind's."""

    finding: ReportedFinding
    group: int
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Omitted:
    """In place of the lesions for which a page has no room."""

    group: int
    text: str


def written_date(dicom_date: str) -> str:
    """YYYY-MM-DD of a DICOM date, or "date unknown" of an empty one."""
    return f"{dicom_date[:4]}-{dicom_date[4:6]}-{dicom_date[6:]}" if len(dicom_date) == 8 else "date unknown"


def person_name(name: PersonName | str) -> str:
    """A name (PS3.5 6.2.1) as it is read: "Wang XiaoDong (王小东)", or "name unknown"."""
    groups = []
    for group in str(name).split("=")[:2]:
        parts = [part for part in group.split("^") if part]
        is_ideographic = bool(parts) and all(face is Typeface.IDEOGRAPHS for face, _ in runs("".join(parts)))
        groups.append(("" if is_ideographic else " ").join(parts))
    written = [group for group in groups if group]
    return f"{written[0]} ({written[1]})" if len(written) > 1 else "".join(written) or "name unknown"


def study_line(report: Report, study_date: str) -> str:
    return f"Study of {written_date(study_date)}. Analysed: {describe_series(report)}."


def caption(finding: ReportedFinding) -> str:
    """What stands below a key image's title."""
    parts = [place(finding), key_measurements(finding)]
    if finding.presence != "present":
        parts.insert(0, PRESENCE_NAMES[finding.presence].lower())
    return ", ".join(filter(None, parts))


def assessed_rows(report: Report) -> Iterator[Row | Omitted]:
    """Every kind that was assessed with its first lesions, in the order of the report."""
    assessed = [f for f in report.findings if f.presence != "not_assessed"]
    for group, finding in enumerate(f for f in assessed if f.lesion is None):
        yield Row(finding, group, _cells(finding, finding_title(finding)))
        lesions = [f for f in assessed if f.kind == finding.kind and f.lesion is not None]
        for lesion in lesions[:_LESIONS_SHOWN]:
            yield Row(lesion, group, _cells(lesion, f"↳ no. {lesion.lesion}"))
        if len(lesions) > _LESIONS_SHOWN:
            yield Omitted(group, f"↳ and {len(lesions) - _LESIONS_SHOWN} more, listed in the structured report")


def _cells(finding: ReportedFinding, title: str) -> tuple[str, ...]:
    certainty = "" if finding.probability is None else f"{finding.probability * 100:.1f} %"
    measured = format_measurements(finding.measurements)
    if finding.reason:
        measured = f"{measured}; {finding.reason}" if measured else finding.reason
    answer = PRESENCE_NAMES[finding.presence]
    return title, answer, measured, place(finding), certainty, finding.evidence_grade or ""


def rejected_lines(report: Report) -> list[tuple[str, str]]:
    """(which, why) of the series of a refused study that were not analysed."""
    if report.outcome != "refused":
        return []
    return [
        ("series" if series.series_number is None else f"series {series.series_number}", series.reason)
        for series in report.rejected_series[:_REJECTED_SHOWN]
    ]


def quality_counts(report: Report) -> str:
    passed = sum(issue.verdict == "pass" for issue in report.quality)
    return (
        f"Checks passed: {passed}, series not analysed: {len(report.rejected_series)}, "
        f"unreadable files: {report.unreadable_file_count}"
    )


def origin_lines(report: Report) -> tuple[str, str]:
    """What made this report, and how far to trust it."""
    return (
        f"Model {report.model.name} {report.model.version} (sha256 {report.model.sha256[:12]}), OneScan "
        f"{report.software_version}, {report.created:%Y-%m-%d %H:%M} {report.created.tzname()}, revision "
        f"{report.revision}, report {report.report_uid}",
        "Evidence: A measured on labelled real CT; B single or unlabelled real CT; C simulation only. "
        + report.disclaimer,
    )
