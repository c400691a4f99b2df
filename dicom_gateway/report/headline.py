"""The report in 30 seconds: what is present, most urgent first, what is open, and what was not looked at."""

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
_SIZE_FIRST = (Quantity.LONG_AXIS, Quantity.MAXIMUM_DIAMETER, Quantity.VOLUME)


def by_urgency(findings: tuple[ReportedFinding, ...]) -> list[ReportedFinding]:
    """Most urgent kind first, then in the order of the vocabulary."""
    return sorted(findings, key=lambda f: (URGENCY[FindingKind(f.kind)], f.lesion or 0))


def headline(report: Report) -> tuple[str, ...]:
    """One sentence for each kind that is present, then one each for what is indeterminate, absent, not assessed."""
    if report.refusal is not None:
        return (f"Not analysed: {report.refusal}.", f"None of the {len(FindingKind)} finding kinds was assessed.")
    studied = by_urgency(tuple(f for f in report.findings if f.lesion is None))
    lesions = [f for f in report.findings if f.lesion is not None and f.presence == "present"]
    present = [f for f in studied if f.presence == "present"]
    lines = [_present(f, [x for x in lesions if x.kind == f.kind]) for f in present]
    if not present:
        assessed = sum(f.presence != "not_assessed" for f in studied)
        lines.append(f"Nothing found among the finding kinds assessed ({assessed} of {len(FindingKind)}).")
    lines += _listed("Indeterminate", studied, "indeterminate")
    lines += _listed("Assessed, not found", studied, "absent")
    return (*lines, *_not_assessed(report))


def not_assessed_by_reason(report: Report) -> dict[str, list[str]]:
    """Reason -> names of the kinds that were not assessed for it, in the order of the report."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for finding in report.findings:
        if finding.presence == "not_assessed" and finding.lesion is None:
            groups[finding.reason or ""].append(KIND_NAMES[FindingKind(finding.kind)])
    return dict(groups)


def _present(finding: ReportedFinding, lesions: list[ReportedFinding]) -> str:
    title = finding_title(finding)
    if len(lesions) > _LISTED_LESIONS:
        title = f"{title} ({len(lesions)})"
        details = [f"largest {_details(max(lesions, key=_size))}"]
    else:
        details = [_details(lesion) for lesion in lesions] or [_details(finding)]
    sentence = f"{title}: {'; '.join(details)}" if any(details) else title
    return f"{sentence} (simulation evidence only)." if finding.evidence_grade == "C" else f"{sentence}."


def _details(finding: ReportedFinding) -> str:
    return ", ".join(filter(None, (place(finding), key_measurements(finding))))


def _size(finding: ReportedFinding) -> float:
    values = {m.quantity: m.value for m in finding.measurements}
    return next((values[q] for q in _SIZE_FIRST if q in values), 0.0)


def _listed(words: str, findings: list[ReportedFinding], presence: str) -> list[str]:
    names = [finding_title(f).lower() for f in findings if f.presence == presence]
    return [f"{words}: {', '.join(names)}."] if names else []


def _not_assessed(report: Report) -> list[str]:
    groups = not_assessed_by_reason(report)
    if not groups:
        return []
    reasons = [f"{_named_or_counted(names)} ({reason})" for reason, names in groups.items()]
    return [f"Not assessed, {sum(map(len, groups.values()))} of {len(FindingKind)} kinds: {'; '.join(reasons)}."]


def _named_or_counted(names: list[str]) -> str:
    return ", ".join(names).lower() if len(names) <= _NAMED_KINDS else f"{len(names)} kinds"
