"""The answers of a report as the page shows them: by presence, the most urgent kind first."""

from dataclasses import dataclass

from dicom_gateway.report.content import Report, ReportedFinding
from dicom_gateway.report.headline import URGENCY, by_urgency, headline, limitations, not_assessed_by_reason, positives
from dicom_gateway.report.verification import lesion_count
from models.findings import FindingKind

# Should a lesion and the answer about the study disagree, the one that asks for a look counts.
_PRECEDENCE = ("present", "indeterminate", "not_assessed", "absent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Everything the report says about one kind: about the whole study, then lesion by lesion."""

    kind: str
    presence: str
    findings: tuple[ReportedFinding, ...]

    @property
    def counts_more(self) -> bool:
        """Whether lesions are counted as present that are not described."""
        study = self.findings[0]
        described = sum(f.lesion is not None and f.presence == "present" for f in self.findings)
        return study.presence == "present" and described < lesion_count(study)


@dataclass(frozen=True, slots=True)
class Change:
    """An answer of a person, and what stood in its place."""

    finding: ReportedFinding
    was: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The answers by presence; `not_assessed` has the names of the kinds under the reason they share, `unanswered`
    the same kinds."""

    present: tuple[Answer, ...]
    indeterminate: tuple[Answer, ...]
    absent: tuple[Answer, ...]
    not_assessed: dict[str, list[str]]
    unanswered: tuple[str, ...]

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
        unanswered=tuple(f.kind for f in by_urgency(report.findings) if _is_open(f)),
    )


def in_short(report: Report) -> tuple[str, ...]:
    """The sentences of the headline that the page does not show in a list of its own anyway.

    What is present (or that nothing is), what is indeterminate and what limits the answers; all of a refusal.
    """
    if report.outcome == "refused":
        return headline(report)
    return (*positives(report), *limitations(report))


def verdict(report: Report) -> tuple[Change, ...]:
    """What the person who verified `report` answers against the model."""
    answered = [Change(f, f.verdict.automated) for f in report.findings if f.verdict and f.is_by_a_person]
    return _of_lasting_kinds(answered)


def changes(before: Report, after: Report) -> tuple[Change, ...]:
    """What `after`, made of `before`, answers otherwise."""
    pairs = zip(before.findings, after.findings, strict=True)
    return _of_lasting_kinds([Change(now, then.presence) for then, now in pairs if then.presence != now.presence])


def _of_lasting_kinds(changes: list[Change]) -> tuple[Change, ...]:
    """`changes`, the most urgent kind first, without the lesions of a kind of which there is none."""
    gone = {c.finding.kind for c in changes if c.finding.lesion is None and c.finding.presence == "absent"}
    lasting = (c for c in changes if c.finding.lesion is None or c.finding.kind not in gone)
    return tuple(sorted(lasting, key=lambda c: (URGENCY[FindingKind(c.finding.kind)], c.finding.lesion or 0)))


def _is_open(finding: ReportedFinding) -> bool:
    return finding.presence == "not_assessed" and finding.lesion is None
