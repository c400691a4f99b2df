"""What a rule answers: findings of its kind with the identity and method that every one of them has."""

from models.anatomy import Anatomy
from models.findings import Finding, FindingKind, Laterality, Measurement, Presence, Region


def answer(
    anatomy: Anatomy,
    kind: FindingKind,
    presence: Presence,
    *,
    method: str,
    reason: str | None = None,
    site: str | None = None,
    laterality: Laterality | None = None,
    lesion: int | None = None,
    measurements: tuple[Measurement, ...] = (),
    region: Region | None = None,
) -> Finding:
    """The answer about the study, or about one lesion of it; the detector fills in the evidence grade."""
    return Finding(
        kind=kind,
        presence=presence,
        tracking_uid=anatomy.tracking_uid(kind, *([] if lesion is None else [str(lesion)])),
        evidence_grade=None,
        method=method,
        reason=reason,
        site=site,
        laterality=laterality,
        lesion=lesion,
        measurements=measurements,
        region=region,
    )


def not_assessed(anatomy: Anatomy, kind: FindingKind, reason: str) -> Finding:
    return answer(anatomy, kind, Presence.NOT_ASSESSED, method="none", reason=reason)
