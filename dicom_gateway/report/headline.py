"""The report in 30 seconds: what is present, most urgent first, what is open, and what was not looked at."""

from collections import defaultdict

from dicom_gateway.report.content import Report, ReportedFinding
from dicom_gateway.report.wording import KIND_NAMES, finding_title, format_measurements, place
from models.findings import FindingKind, Quantity

_MOST_URGENT_FIRST = (
    FindingKind.PNEUMOTHORAX,
    FindingKind.AORTIC_DILATATION,
    FindingKind.PERICARDIAL_EFFUSION,
    FindingKind.PLEURAL_EFFUSION,
    FindingKind.CONSOLIDATION,
    FindingKind.PULMONARY_NODULE,
)
_URGENCY = {kind: i for i, kind in enumerate((*_MOST_URGENT_FIRST, *FindingKind))}
_SIZE_FIRST = (Quantity.LONG_AXIS, Quantity.MAXIMUM_DIAMETER, Quantity.VOLUME)


def by_urgency(findings: tuple[ReportedFinding, ...]) -> list[ReportedFinding]:
    """Most urgent kind first, kinds of equal urgency in the order of the vocabulary."""
    order = {kind: i for i, kind in enumerate(sorted(FindingKind, key=_URGENCY.__getitem__))}
    return sorted(findings, key=lambda f: (order[FindingKind(f.kind)], f.lesion or 0))


def headline(report: Report) -> tuple[str, ...]:
    """One sentence for each kind that is present, then one each for what is indeterminate, absent, not assessed."""
    if report.refusal is not None:
        return (f"Not analysed: {report.refusal}.", f"None of the {len(FindingKind)} finding kinds was assessed.")
    studied = by_urgency(tuple(f for f in report.findings if f.lesion is None))
    lesions = [f for f in report.findings if f.lesion is not None and f.presence == "present"]
    present = [f for f in studied if f.presence == "present"]
    lines = [_present(f, [x for x in lesions if x.kind == f.kind]) for f in present]
    if not present:
        lines.append("Nothing found among the finding kinds that were assessed.")
    lines += _listed("Indeterminate", studied, "indeterminate")
    lines += _listed("Assessed, not found", studied, "absent")
    return (*lines, *_not_assessed(studied))


def not_assessed_by_reason(report: Report) -> dict[str, list[str]]:
    """Reason -> names of the kinds that were not assessed for it, in the order of the report."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for finding in report.findings:
        if finding.presence == "not_assessed" and finding.lesion is None:
            groups[finding.reason or ""].append(KIND_NAMES[FindingKind(finding.kind)])
    return dict(groups)


def _present(finding: ReportedFinding, lesions: list[ReportedFinding]) -> str:
    title = finding_title(finding)
    if len(lesions) > 1:
        title = f"{len(lesions)} findings of {title.lower()}"
    parts = [title]
    if len(lesions) > 1 and finding.site is None and finding.laterality is None:
        largest = max(lesions, key=_size)
        parts.append(f"largest {_where(largest)}{format_measurements(largest.measurements[:3])}".rstrip())
    else:
        shown = finding if finding.measurements or not lesions else lesions[0]
        parts.append(f"{_where(shown)}{format_measurements(shown.measurements[:4])}".rstrip())
    sentence = ", ".join(part.rstrip(", ") for part in parts if part)
    return f"{sentence} (simulation evidence only)." if finding.evidence_grade == "C" else f"{sentence}."


def _where(finding: ReportedFinding) -> str:
    where = place(finding)
    return f"{where}, " if where else ""


def _size(finding: ReportedFinding) -> float:
    values = {m.quantity: m.value for m in finding.measurements}
    return next((values[q] for q in _SIZE_FIRST if q in values), 0.0)


def _listed(words: str, findings: list[ReportedFinding], presence: str) -> list[str]:
    names = [finding_title(f).lower() for f in findings if f.presence == presence]
    return [f"{words}: {', '.join(names)}."] if names else []


def _not_assessed(findings: list[ReportedFinding]) -> list[str]:
    left_out = [f for f in findings if f.presence == "not_assessed"]
    if not left_out:
        return []
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for finding in left_out:
        groups[finding.reason or ""].append(finding_title(finding).lower())
    reasons = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in groups.items())
    return [f"Not assessed, {len(left_out)} of {len(FindingKind)} kinds: {reasons}."]
