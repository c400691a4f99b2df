"""The lines and rows of the printed report, the same on the summary page and in the PDF."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.valuerep import PersonName

from dicom_gateway.report.content import Report, ReportedFinding
from dicom_gateway.report.language import ENGLISH, Language
from dicom_gateway.report.typefaces import Typeface, runs
from dicom_gateway.report.wording import (
    PRESENCE_NAMES,
    describe_series,
    finding_title,
    format_measurements,
    key_measurements,
    percentage,
    place,
    presence_in_words,
)

TITLE = "OneScan chest CT summary"
WARNING = "RESEARCH USE ONLY - NOT A MEDICAL DEVICE - AUTOMATED RESULT, UNVERIFIED"
VERIFIED_WARNING = (
    "RESEARCH USE ONLY - NOT A MEDICAL DEVICE - AUTOMATED RESULT, VERIFIED BY {name}, {organization}, {time}"
)
IMPRESSION, KEY_IMAGES, ASSESSED, QUALITY = "Impression", "Key images", "Assessed", "Quality"
NOT_ASSESSED = "Not assessed (says nothing about presence or absence)"
COLUMNS = ("Finding", "Answer", "Measurements", "Where", "Probability", "Evidence")

_LESIONS_SHOWN = 4
_SHOWN_FIRST = ("present", "indeterminate", "absent")
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


def written_date(dicom_date: str, language: Language = ENGLISH) -> str:
    """YYYY-MM-DD of a DICOM date, or "date unknown" of an empty one."""
    if len(dicom_date) != 8:
        return language.say("date unknown")
    return f"{dicom_date[:4]}-{dicom_date[4:6]}-{dicom_date[6:]}"


def person_name(name: PersonName | str, language: Language = ENGLISH) -> str:
    """A name (PS3.5 6.2.1) as it is read: "Wang XiaoDong (王小东)", or "name unknown"."""
    groups = []
    for group in str(name).split("=")[:2]:
        parts = [part for part in group.split("^") if part]
        is_ideographic = bool(parts) and all(face is Typeface.IDEOGRAPHS for face, _ in runs("".join(parts)))
        groups.append(("" if is_ideographic else " ").join(parts))
    written = [group for group in groups if group]
    return f"{written[0]} ({written[1]})" if len(written) > 1 else "".join(written) or language.say("name unknown")


def warning(report: Report, language: Language) -> str:
    """What every picture and page says in red: whose word this is."""
    if report.verification is None:
        return language.say(WARNING)
    return language.say(
        VERIFIED_WARNING,
        name=person_name(report.verification.observer_name, language),
        organization=report.verification.organization,
        time=written_time(report),
    )


def written_time(report: Report) -> str:
    return f"{report.created:%Y-%m-%d %H:%M} {report.created.tzname()}"


def study_line(report: Report, study_date: str, language: Language) -> str:
    date, series = written_date(study_date, language), describe_series(report, language)
    return language.say("Study of {date}. Analysed: {series}.", date=date, series=series)


def caption(finding: ReportedFinding, language: Language) -> str:
    """What stands below a key image's title."""
    parts = [place(finding, language), key_measurements(finding, language)]
    if finding.presence != "present":
        parts.insert(0, presence_in_words(finding, language))
    return language.comma.join(filter(None, parts))


def assessed_rows(report: Report, language: Language) -> Iterator[Row | Omitted]:
    """Every kind that was assessed with its first lesions, in the order of the report."""
    assessed = [f for f in report.findings if f.presence != "not_assessed"]
    for group, finding in enumerate(f for f in assessed if f.lesion is None):
        yield Row(finding, group, _cells(finding, finding_title(finding, language), language))
        lesions = [f for f in assessed if f.kind == finding.kind and f.lesion is not None]
        lesions.sort(key=lambda lesion: _SHOWN_FIRST.index(lesion.presence))
        for lesion in lesions[:_LESIONS_SHOWN]:
            yield Row(lesion, group, _cells(lesion, f"↳ {language.say('no. {n}', n=lesion.lesion)}", language))
        if len(lesions) > _LESIONS_SHOWN:
            more = language.say("and {n} more, listed in the structured report", n=len(lesions) - _LESIONS_SHOWN)
            yield Omitted(group, f"↳ {more}")


def _cells(finding: ReportedFinding, title: str, language: Language) -> tuple[str, ...]:
    certainty = "" if finding.probability is None else f"{percentage(finding.probability)} %"
    told = (format_measurements(finding.measurements, language), language.told(finding.reason or ""))
    measured = language.semicolon.join(filter(None, told))
    answer = language.say(PRESENCE_NAMES[finding.presence])
    return title, answer, measured, place(finding, language), certainty, finding.evidence_grade or ""


def rejected_lines(report: Report, language: Language) -> list[tuple[str, str]]:
    """(which, why) of the series of a refused study that were not analysed."""
    if report.outcome != "refused":
        return []
    return [
        (
            language.say("series")
            if series.series_number is None
            else language.say("series {n}", n=series.series_number),
            language.told(series.reason),
        )
        for series in report.rejected_series[:_REJECTED_SHOWN]
    ]


def quality_counts(report: Report, language: Language) -> str:
    return language.say(
        "Checks passed: {n}, series not analysed: {m}, unreadable files: {k}",
        n=sum(issue.verdict == "pass" for issue in report.quality),
        m=len(report.rejected_series),
        k=report.unreadable_file_count,
    )


def origin_lines(report: Report, language: Language) -> tuple[str, str]:
    """What made this report, and how far to trust it."""
    grades = "Evidence: A measured on labelled real CT; B single or unlabelled real CT; C simulation only."
    return (
        language.say(
            "Model {model} (sha256 {digest}), OneScan {software}, {time}, revision {n}, report {uid}",
            model=f"{report.model.name} {report.model.version}",
            digest=report.model.sha256[:12],
            software=report.software_version,
            time=written_time(report),
            n=report.revision,
            uid=report.report_uid,
        ),
        language.after_stop.join((language.say(grades), language.told(report.disclaimer))),
    )
