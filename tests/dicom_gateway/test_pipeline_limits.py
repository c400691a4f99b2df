"""Answers about lungs whose apices or bases lie outside the images."""

from dicom_gateway.pipeline import limited_to_what_is_seen
from imaging.quality import QualityIssue, Verdict
from models.findings import EvidenceGrade, Finding, FindingKind, Presence

CUT = QualityIssue(check="coverage", verdict=Verdict.WARN, message="the lung bases are cut off")
WHOLE = QualityIssue(check="coverage", verdict=Verdict.PASS, message="lung apices covered")


def finding(kind: FindingKind, presence: Presence, reason: str | None = None) -> Finding:
    return Finding(
        kind=kind,
        presence=presence,
        tracking_uid="1.2.3",
        evidence_grade=EvidenceGrade.C,
        method="made for this test",
        reason=reason,
    )


def test_an_answer_about_cut_off_lungs_says_so() -> None:
    findings = (
        finding(FindingKind.PLEURAL_EFFUSION, Presence.ABSENT),
        finding(FindingKind.EMPHYSEMA, Presence.PRESENT, "sharp kernel"),
        finding(FindingKind.BRONCHIECTASIS, Presence.NOT_ASSESSED, "too coarse"),
        finding(FindingKind.HEPATIC_STEATOSIS, Presence.ABSENT),
    )
    reasons = [f.reason for f in limited_to_what_is_seen(findings, (WHOLE, CUT))]
    assert reasons == [CUT.message, f"sharp kernel; {CUT.message}", "too coarse", None]
    assert limited_to_what_is_seen(findings, (WHOLE,)) == findings
