"""The report in 30 seconds: what is present, most urgent first, what is open, not looked at, and what limits it."""

from collections import defaultdict

from dicom_gateway.report.content import Report, ReportedFinding
from dicom_gateway.report.wording import KIND_NAMES, finding_title, key_measurements, place
from models.findings import FindingKind, Quantity

_MOST_URGENT_FIRST = (
    FindingKind.PNEUMOTHORAX,
    FindingKind.AORTIC_DILATATION,
    FindingKind.PERICARDIAL_EFFUSION,
    FindingKind.PLEURAL_EFFUSION,
    FindingKind.CONSOLIDATION,
    FindingKind.PULMONARY_NODULE,
)
# Rank of a kind: what cannot wait first, then the order of the vocabulary.
URGENCY = {kind: i for i, kind in enumerate(dict.fromkeys((*_MOST_URGENT_FIRST, *FindingKind)))}
_LISTED_LESIONS = 2
_NAMED_KINDS = 6
_REASONS_IN_A_SENTENCE = 2
_SIZE_FIRST = (Quantity.LONG_AXIS, Quantity.MAXIMUM_DIAMETER, Quantity.VOLUME)


def by_urgency(findings: tuple[ReportedFinding, ...]) -> list[ReportedFinding]:
    """Most urgent kind first, then in the order of the vocabulary."""
    return sorted(findings, key=lambda f: (URGENCY[FindingKind(f.kind)], f.lesion or 0))


def headline(report: Report) -> tuple[str, ...]:
    """`positives`, then a sentence each for what is absent, what was not assessed, and what limits all of it."""
    if report.refusal is not None:
        return (f"Not analysed: {report.refusal}.", f"None of the {len(FindingKind)} finding kinds was assessed.")
    return (*positives(report), *_absent(report), *_not_assessed(report), *limitations(report))


def positives(report: Report) -> tuple[str, ...]:
    """One sentence for each kind that is present, or that nothing is, then one for what is indeterminate."""
    studied = _about_the_study(report)
    lesions = [f for f in report.findings if f.lesion is not None and f.presence == "present"]
    present = [f for f in studied if f.presence == "present"]
    lines = [_present(f, [x for x in lesions if x.kind == f.kind]) for f in present]
    if not present:
        assessed = sum(f.presence != "not_assessed" for f in studied)
        is_open = any(f.presence == "indeterminate" for f in report.findings)
        nothing = "Nothing clearly present" if is_open else "Nothing found"
        lines.append(f"{nothing} among the finding kinds assessed ({assessed} of {len(FindingKind)}).")
    names = [finding_title(f).lower() for f in studied if f.presence == "indeterminate"]
    if names:
        lines.append(f"Indeterminate: {', '.join(names)}.")
    return tuple(lines)


def limitations(report: Report) -> tuple[str, ...]:
    """At most one sentence: what the quality gates warn of, which holds for every answer of the report."""
    warnings = dict.fromkeys(issue.message for issue in report.quality if issue.verdict == "warn")
    return (f"Limited: {'; '.join(warnings)}.",) if warnings else ()


def not_assessed_by_reason(report: Report) -> dict[str, list[str]]:
    """Reason -> names of the kinds that were not assessed for it, in the order of the report."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for finding in report.findings:
        if finding.presence == "not_assessed" and finding.lesion is None:
            groups[finding.reason or ""].append(KIND_NAMES[FindingKind(finding.kind)])
    return dict(groups)


def _about_the_study(report: Report) -> list[ReportedFinding]:
    return by_urgency(tuple(f for f in report.findings if f.lesion is None))


def _present(finding: ReportedFinding, lesions: list[ReportedFinding]) -> str:
    title = finding_title(finding)
    if len(lesions) > _LISTED_LESIONS:
        title = f"{title} ({len(lesions)})"
        details = [f"largest {_details(max(lesions, key=_size))}"]
    else:
        details = [_details(lesion) for lesion in lesions] or [_details(finding)]
    told = [words for words in (*details, finding.reason) if words]
    sentence = f"{title}: {'; '.join(told)}" if told else title
    return f"{sentence} (simulation evidence only)." if finding.evidence_grade == "C" else f"{sentence}."


def _details(finding: ReportedFinding) -> str:
    return ", ".join(filter(None, (place(finding), key_measurements(finding))))


def _size(finding: ReportedFinding) -> float:
    values = {m.quantity: m.value for m in finding.measurements}
    return next((values[q] for q in _SIZE_FIRST if q in values), 0.0)


def _absent(report: Report) -> list[str]:
    """The kinds in one sentence, but one of its own for an answer with a reservation."""
    absent = [f for f in _about_the_study(report) if f.presence == "absent"]
    names = [finding_title(f).lower() for f in absent if not f.reason]
    lines = [f"Assessed, not found: {', '.join(names)}."] if names else []
    return lines + [f"{finding_title(f)}: not found; {f.reason}." for f in absent if f.reason]


def _not_assessed(report: Report) -> list[str]:
    groups = not_assessed_by_reason(report)
    if not groups:
        return []
    total = f"{sum(map(len, groups.values()))} of {len(FindingKind)} kinds"
    if len(groups) == 1 and _named(*groups.values()) is None:
        return [f"Not assessed: {total} ({next(iter(groups))})."]
    if len(groups) > _REASONS_IN_A_SENTENCE:
        names = ", ".join(name for names in groups.values() for name in names).lower()
        return [f"Not assessed, {total}, each for the reason stated with it: {names}."]
    reasons = [f"{_named(names) or f'{len(names)} kinds'} ({reason})" for reason, names in groups.items()]
    return [f"Not assessed, {total}: {'; '.join(reasons)}."]


def _named(names: list[str]) -> str | None:
    return ", ".join(names).lower() if len(names) <= _NAMED_KINDS else None
