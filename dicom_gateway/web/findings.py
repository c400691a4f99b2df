"""The answers of a report as the page shows them: by presence, the most urgent kind first."""

from dataclasses import dataclass

from dicom_gateway.report.content import Report, ReportedFinding
from dicom_gateway.report.headline import by_urgency, headline, limitations, not_assessed_by_reason, positives

# Should a lesion and the answer about the study disagree, the one that asks for a look counts.
_PRECEDENCE = ("present", "indeterminate", "not_assessed", "absent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Everything the report says about one kind: about the whole study, then lesion by lesion."""

    kind: str
    presence: str
    findings: tuple[ReportedFinding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The answers by presence; `not_assessed` has the names of the kinds under the reason they share."""

    present: tuple[Answer, ...]
    indeterminate: tuple[Answer, ...]
    absent: tuple[Answer, ...]
    not_assessed: dict[str, list[str]]

    @property
    def not_assessed_count(self) -> int:
        return sum(map(len, self.not_assessed.values()))


def arrange(report: Report) -> Reading:
    """Group the findings of `report` by kind, then by presence."""
    kinds: dict[str, list[ReportedFinding]] = {}
    for finding in by_urgency(report.findings):
        kinds.setdefault(finding.kind, []).append(finding)
    answers = [
        Answer(
            kind=kind,
            presence=min((f.presence for f in found), key=_PRECEDENCE.index),
            findings=tuple(found),
        )
        for kind, found in kinds.items()
    ]
    return Reading(
        present=tuple(a for a in answers if a.presence == "present"),
        indeterminate=tuple(a for a in answers if a.presence == "indeterminate"),
        absent=tuple(a for a in answers if a.presence == "absent"),
        not_assessed=not_assessed_by_reason(report),
    )


def in_short(report: Report) -> tuple[str, ...]:
    """The sentences of the headline that the page does not show in a list of its own anyway.

    What is present (or that nothing is), what is indeterminate and what limits the answers; all of a refusal.
    """
    if report.outcome == "refused":
        return headline(report)
    return (*positives(report), *limitations(report))
