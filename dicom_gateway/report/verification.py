"""A report that a person has read and vouches for, with what they say otherwise: another revision of the record.

What the person does not touch is confirmed as it stands. What they call absent keeps its place in the record, with the
answer it had before, but loses the numbers and the picture that were of something which is not there.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from dicom_gateway.report.content import (
    VERIFIED_DISCLAIMER,
    Report,
    ReportedFinding,
    SupersededReport,
    Verdict,
    Verification,
)
from dicom_gateway.report.wording import percentage
from imaging.uids import derive_uid
from models.findings import FindingKind, Laterality, Quantity

Stated = Literal["present", "absent"]
# What `read_question` takes, for forms and documents: one name for each question.
QUESTION_PATTERN = rf"^({'|'.join(FindingKind)})(:[1-9][0-9]{{0,3}})?$"
_SHOWN = 64
_METHOD = "reading by the verifying observer"
_POSITIVE = ("present", "indeterminate")


class ContradictoryVerdict(ValueError):
    """What is stated names no answer of the report, or cannot be true together."""


@dataclass(frozen=True, slots=True, order=True)
class Question:
    """What one answer of a report is about: a kind in the whole study, or one lesion of it (1, 2, ...)."""

    kind: FindingKind
    lesion: int | None = None

    def __str__(self) -> str:
        return self.kind if self.lesion is None else f"{self.kind}:{self.lesion}"


def read_question(text: str) -> Question:
    """The question that "pleural_effusion" or "pulmonary_nodule:2" names. Raises ContradictoryVerdict."""
    if re.fullmatch(QUESTION_PATTERN, text) is None:
        raise ContradictoryVerdict(f"{text[:_SHOWN]}: no finding kind, nor KIND:N for a lesion of it")
    kind, _, lesion = text.partition(":")
    return Question(FindingKind(kind), int(lesion) if lesion else None)


def verified_report(
    report: Report,
    verification: Verification,
    *,
    supersedes: SupersededReport,
    revision: int,
    created: datetime,
    stated: Mapping[Question, Stated],
) -> Report:
    """`report` as the next revision, which a person verified at `created`, with what they stated otherwise.

    A kind that is stated to be absent takes its lesions with it. Raises ContradictoryVerdict for a refused study, a
    question that the report does not have, and a kind that would be present without any of its lesions, or absent or
    indeterminate with one.
    """
    if report.outcome == "refused":
        raise ContradictoryVerdict("the study was not analysed: there is nothing to verify")
    before = {Question(FindingKind(f.kind), f.lesion): f for f in report.findings}
    if unknown := sorted(set(stated) - set(before)):
        raise ContradictoryVerdict(f"the report has no {', '.join(map(str, unknown))}")
    gone = {question.kind for question, answer in stated.items() if question.lesion is None and answer == "absent"}
    answers = {
        question: _answered(finding, "absent" if question.kind in gone else stated.get(question))
        for question, finding in before.items()
    }
    for kind in {question.kind for question in stated}:
        study = Question(kind)
        lesions = [q for q in answers if q.kind == kind and q.lesion is not None]
        positive = [q for q in lesions if answers[q].presence in _POSITIVE]
        named = any(stated.get(q) == answers[q].presence == "present" for q in lesions)
        if (answers[study].presence == "absent" and positive) or (answers[study].presence == "indeterminate" and named):
            raise ContradictoryVerdict(
                f"{kind} has a lesion but is {answers[study].presence}: say that it is present, too"
            )
        counted = [q for q in lesions if before[q].presence in _POSITIVE and not _is_beside(before[q], before[study])]
        left = [q for q in positive if q in counted or answers[q].presence == "present"]
        if answers[study].presence not in _POSITIVE or left == counted:
            continue
        if not left and study not in stated:
            raise ContradictoryVerdict(f"no lesion of {kind} is left: say whether it is present or absent")
        answers[study] = _recounted(answers[study], [answers[q] for q in left], len(left) - len(counted))
    findings = tuple(answers.values())
    return report.model_copy(
        update={
            "disclaimer": VERIFIED_DISCLAIMER,
            "report_uid": derive_uid(report.report_uid, "verified", str(revision)),
            "revision": revision,
            "supersedes": supersedes,
            "verification": verification,
            "created": created,
            "findings": findings,
            "urgent": tuple(kind for kind in report.urgent if _is_present(kind, findings)),
        }
    )


def _answered(finding: ReportedFinding, stated: Stated | None) -> ReportedFinding:
    """The answer with its verdict: what a person stated, else confirmed; nobody confirms what was not assessed."""
    automated = finding.verdict or Verdict(
        decision="confirmed", automated=finding.presence, automated_probability=finding.probability
    )
    if stated is None or stated == finding.presence:
        has_answer = finding.presence != "not_assessed"
        return finding.model_copy(update={"verdict": automated}) if has_answer else finding
    is_rejected = stated == "absent" and automated.automated in _POSITIVE
    words = "rejected" if is_rejected else "answered"
    changed: dict[str, Any] = {
        "presence": stated,
        "probability": None,
        "operating_point": None,
        "evidence_grade": None,
        "method": _METHOD,
        "reason": f"{words} by the verifying observer; the automated answer was {_in_words(automated)}",
        "verdict": automated.model_copy(update={"decision": "rejected" if is_rejected else "edited"}),
    }
    if stated == "absent":
        changed |= {"measurements": (), "key_image": None}
    return finding.model_copy(update=changed)


def _in_words(verdict: Verdict) -> str:
    answer = verdict.automated.replace("_", " ")
    if verdict.automated_probability is None:
        return answer
    return f"{answer} ({percentage(verdict.automated_probability)} %)"


def _is_beside(lesion: ReportedFinding, study: ReportedFinding) -> bool:
    """Whether a lesion may be none and the answer about the study, which others make present, does not count it."""
    return study.presence == "present" and lesion.presence == "indeterminate"


def _recounted(study: ReportedFinding, left: Sequence[ReportedFinding], more: int) -> ReportedFinding:
    """The answer about the study with the lesions that a person left: without sums, with their side, place, key slice.

    Their number changes by `more` (below 0: fewer), for there may be more than are described.
    """
    counts = [m for m in study.measurements if m.quantity == Quantity.LESION_COUNT]
    sides = sorted({lesion.laterality for lesion in left if lesion.laterality})
    shown = left[0] if left else None
    place = ("key_sop_instance_uid", "key_frame_number", "key_slice", "centre_mm")
    changed: dict[str, Any] = {
        "measurements": tuple(m.model_copy(update={"value": m.value + more}) for m in counts if m.value + more > 0),
        "laterality": Laterality.BILATERAL.value if len(sides) > 1 else next(iter(sides), None),
        "site": left[0].site if len(left) == 1 else None,
        **{name: getattr(shown, name, None) for name in place},
    }
    if study.verdict is not None and study.verdict.decision == "confirmed":
        changed["verdict"] = study.verdict.model_copy(update={"decision": "edited"})
    return study.model_copy(update=changed)


def _is_present(kind: str, findings: Collection[ReportedFinding]) -> bool:
    return any(f.kind == kind and f.lesion is None and f.presence == "present" for f in findings)
