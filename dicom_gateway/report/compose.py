"""From what the pipeline found to the report: order, rounding, refusals, references to the source images."""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from dicom_gateway.report.content import (
    AnalysedSeries,
    RejectedSeries,
    Report,
    ReportedFinding,
    ReportedMeasurement,
    ReportedModel,
    ReportedQuality,
    SupersededReport,
)
from dicom_gateway.report.key_images import key_image_names
from dicom_gateway.report.urgency import urgent_findings
from dicom_gateway.report.wording import decimals
from imaging.quality import QualityIssue, is_rejected
from imaging.selection import Rejection, Selection
from imaging.uids import derive_uid
from imaging.volume import Volume
from models.contrast_phase import ContrastPhase
from models.findings import Finding, FindingKind, Measurement, Presence


def compose_report(
    *,
    study_instance_uid: str,
    selection: Selection,
    quality: Sequence[QualityIssue],
    findings: Sequence[Finding],
    volume: Volume | None,
    contrast: bool | None,
    contrast_evidence: str | None,
    contrast_phase: ContrastPhase | None = None,
    model: ReportedModel,
    revision: int,
    created: datetime,
    software_version: str,
    unreadable_file_count: int = 0,
    timings_s: Mapping[str, float] | None = None,
    supersedes: SupersededReport | None = None,
    urgent_kinds: Collection[FindingKind] = (),
) -> Report:
    """The report of one analysis. `created` is aware; the same values give the same report and `report_uid`.

    `quality` is what the gates said of the chosen series (of the last one tried where none was chosen). The study is
    refused when no series was chosen, a check rejects it or there is no volume: `findings` must then be empty, and
    every kind becomes NOT_ASSESSED. Otherwise every kind needs exactly one finding whose `lesion` is None.
    Raises ValueError when that does not hold, for a naive `created` and for a number that is not finite.
    """
    if created.tzinfo is None:
        raise ValueError("created must be timezone aware")
    refusal = _refusal(selection, quality, volume)
    series = selection.chosen
    sources = sorted(_source_instance_uids(selection, volume))
    series_instance_uid = series.series_instance_uid if series else None
    report_uid = derive_uid(
        study_instance_uid,
        series_instance_uid or "",
        hashlib.sha256("\n".join(sources).encode()).hexdigest(),
        model.sha256,
        software_version,
        str(revision),
    )
    answers = _all_not_assessed(findings, report_uid, refusal) if refusal else _in_report_order(findings)
    reported = _reported_findings(answers, volume)
    return Report(
        report_uid=report_uid,
        study_instance_uid=study_instance_uid,
        series_instance_uid=series_instance_uid,
        revision=revision,
        supersedes=supersedes,
        created=created,
        software_version=software_version,
        model=model,
        outcome="refused" if refusal else "reported",
        refusal=refusal,
        analysed_series=None if refusal else _analysed(selection, volume, contrast, contrast_evidence, contrast_phase),
        quality=tuple(map(_reported_quality, quality)),
        rejected_series=tuple(map(_rejected_series, selection.rejected)),
        unreadable_file_count=unreadable_file_count,
        findings=reported,
        urgent=urgent_findings(reported, urgent_kinds),
        timings_s={stage: _rounded(seconds, 3) for stage, seconds in (timings_s or {}).items()},
    )


def _refusal(selection: Selection, quality: Sequence[QualityIssue], volume: Volume | None) -> str | None:
    """Why no finding may be drawn from this study, in words, or None."""
    if selection.chosen is not None and volume is not None and not is_rejected(quality):
        return None
    rejects = [issue.message for issue in quality if is_rejected([issue])]
    if rejects:
        return "; ".join(rejects)
    reasons = Counter(r.reason for r in selection.rejected)
    if not reasons:
        return "the study holds no series"
    listed = "; ".join(reason if n == 1 else f"{reason} ({n} series)" for reason, n in reasons.items())
    return f"no suitable series ({listed})"


def _source_instance_uids(selection: Selection, volume: Volume | None) -> set[str]:
    if volume is not None:
        return set(volume.sop_instance_uids)
    if selection.chosen is not None:
        return {plane.sop_instance_uid for plane in selection.chosen.slices}
    return {f"{r.series_instance_uid}:{r.instance_count}" for r in selection.rejected}


def _all_not_assessed(findings: Sequence[Finding], report_uid: str, refusal: str) -> list[Finding]:
    if findings:
        raise ValueError("a refused study has no findings")
    return [
        Finding(
            kind=kind,
            presence=Presence.NOT_ASSESSED,
            tracking_uid=derive_uid(report_uid, kind),
            evidence_grade=None,
            method="not applied",
            reason=f"study not analysed: {refusal}",
        )
        for kind in FindingKind
    ]


def _in_report_order(findings: Sequence[Finding]) -> list[Finding]:
    """Kinds in the order of the vocabulary, the answer about the study before its lesions."""
    answered = Counter(f.kind for f in findings if f.lesion is None)
    wrong = [kind.value for kind in FindingKind if answered[kind] != 1]
    if wrong:
        raise ValueError(f"each finding kind needs one answer about the study: {', '.join(wrong)}")
    order = {kind: i for i, kind in enumerate(FindingKind)}
    return sorted(findings, key=lambda f: (order[f.kind], f.lesion or 0))


def _analysed(
    selection: Selection,
    volume: Volume | None,
    contrast: bool | None,
    contrast_evidence: str | None,
    contrast_phase: ContrastPhase | None,
) -> AnalysedSeries:
    series = selection.chosen
    if series is None or volume is None:
        raise ValueError("nothing was analysed")
    slice_mm, row_mm, column_mm = volume.geometry.spacing_mm
    thickness_mm = series.slices[0].slice_thickness_mm if series.slices else None
    return AnalysedSeries(
        series_number=series.series_number,
        series_description=series.series_description,
        slice_count=volume.hu.shape[0],
        spacing_mm=(_rounded(slice_mm, 3), _rounded(row_mm, 3), _rounded(column_mm, 3)),
        slice_thickness_mm=None if thickness_mm is None else _rounded(thickness_mm, 3),
        convolution_kernel=series.convolution_kernel,
        contrast=contrast,
        contrast_evidence=contrast_evidence,
        contrast_phase=contrast_phase and contrast_phase.value,
    )


def _reported_quality(issue: QualityIssue) -> ReportedQuality:
    return ReportedQuality(
        check=issue.check,
        verdict=issue.verdict.value,
        message=issue.message,
        measured=None if issue.measured is None else _rounded(issue.measured, 2),
        limit=None if issue.limit is None else _rounded(issue.limit, 2),
    )


def _rejected_series(rejection: Rejection) -> RejectedSeries:
    return RejectedSeries(
        series_instance_uid=rejection.series_instance_uid,
        series_number=rejection.series_number,
        modality=rejection.modality,
        series_description=rejection.series_description,
        instance_count=rejection.instance_count,
        reason=rejection.reason,
    )


def _reported_findings(findings: Sequence[Finding], volume: Volume | None) -> tuple[ReportedFinding, ...]:
    names = key_image_names(findings)
    return tuple(_reported_finding(f, volume, names.get(f.tracking_uid)) for f in findings)


def _reported_finding(finding: Finding, volume: Volume | None, key_image: str | None) -> ReportedFinding:
    key_slice = None if finding.region is None else int(finding.region.key_slice)
    key_sop_instance_uid, key_frame_number = None, None
    if key_slice is not None and volume is not None:
        key_sop_instance_uid = volume.sop_instance_uids[key_slice]
        key_frame_number = volume.frame_numbers[key_slice]
    return ReportedFinding(
        kind=finding.kind,
        presence=finding.presence.value,
        probability=None if finding.probability is None else _rounded(finding.probability, 3),
        operating_point=None if finding.operating_point is None else _rounded(finding.operating_point, 3),
        reason=finding.reason,
        laterality=finding.laterality,
        site=finding.site,
        evidence_grade=None if finding.evidence_grade is None else finding.evidence_grade.value,
        method=finding.method,
        tracking_uid=finding.tracking_uid,
        lesion=finding.lesion,
        measurements=tuple(map(_reported_measurement, finding.measurements)),
        key_sop_instance_uid=key_sop_instance_uid,
        key_frame_number=key_frame_number,
        key_slice=key_slice,
        key_image=key_image,
        centre_mm=None if finding.region is None else _rounded_point(finding.region.centre_mm),
    )


def _reported_measurement(measurement: Measurement) -> ReportedMeasurement:
    return ReportedMeasurement(
        quantity=measurement.quantity,
        value=_rounded(measurement.value, decimals(measurement.unit, measurement.value)),
        unit=measurement.unit,
        laterality=measurement.laterality,
    )


def _rounded(value: float, decimals: int) -> float:
    if not math.isfinite(value):
        raise ValueError("a number of the report is not finite")
    return round(float(value), decimals) + 0.0  # + 0.0 turns -0.0 into 0.0


def _rounded_point(point_mm: Sequence[float]) -> tuple[float, float, float]:
    x, y, z = (_rounded(v, 1) for v in point_mm)
    return x, y, z
