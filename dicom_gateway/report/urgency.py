"""Which answers cannot wait for the reading of the study."""

from collections.abc import Collection, Sequence

from dicom_gateway.report.content import ReportedFinding

# C is evidence from simulation alone: an alarm that is often false is soon no alarm.
_GRADES = ("A", "B")


def urgent_findings(findings: Sequence[ReportedFinding], kinds: Collection[str]) -> tuple[str, ...]:
    """The kinds among `kinds` that are present in the study, with evidence of grade A or B, in the order of the report.

    An indeterminate answer is none of them.
    """
    return tuple(
        f.kind
        for f in findings
        if f.lesion is None and f.kind in kinds and f.presence == "present" and f.evidence_grade in _GRADES
    )
