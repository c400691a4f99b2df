"""A report that a person has read and vouches for, with what they say otherwise: another revision of the record.

What the person does not touch is confirmed as it stands. What they call absent keeps its place in the record, with the
answer it had before, but loses the numbers and the picture that were of something which is not there. A correction is
made of the automated report again, with all that was stated since, so that what is taken back is as it was.
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
from models.findings import FindingKind, Laterality, Quantity, few_of_many

Stated = Literal["present", "absent"]
Presence = Stated | Literal["indeterminate"]
# What `read_question` takes, for forms and documents: one name for each question.
QUESTION_PATTERN = rf"^({'|'.join(FindingKind)})(:[1-9][0-9]{{0,3}})?$"
_SHOWN = 64
_METHOD = "reading by the verifying observer"
_POSITIVE = ("present", "indeterminate")
_PLACE = ("key_sop_instance_uid", "key_frame_number", "key_slice", "centre_mm")


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


def lesion_count(study: ReportedFinding) -> int:
    """How many lesions the answer about the study counts, described or not; 0 where it counts none."""
    return next((round(m.value) for m in study.measurements if m.quantity == Quantity.LESION_COUNT), 0)


def stated_in(report: Report) -> dict[Question, Stated]:
    """What the person who verified `report` answers against the model; absent kinds take their lesions with them."""
    stated: dict[Question, Stated] = {}
    for finding in report.findings:
        if finding.is_by_a_person and finding.presence in ("present", "absent"):
            stated[Question(FindingKind(finding.kind), finding.lesion)] = finding.presence
    gone = {question.kind for question, answer in stated.items() if question.lesion is None and answer == "absent"}
    return {
        question: answer for question, answer in stated.items() if question.lesion is None or question.kind not in gone
    }


def restated(earlier: Mapping[Question, Stated], stated: Mapping[Question, Stated]) -> dict[Question, Stated]:
    """What stands of both: the later answer, and of a kind that is absent now nothing that was said of its lesions."""
    gone = {question.kind for question, answer in stated.items() if question.lesion is None and answer == "absent"}
    return {question: answer for question, answer in earlier.items() if question.kind not in gone} | dict(stated)


def verified_report(
    automated: Report,
    verification: Verification,
    *,
    supersedes: SupersededReport,
    revision: int,
    created: datetime,
    stated: Mapping[Question, Stated],
) -> Report:
    """The automated report as a further revision, which a person verified at `created`, with all they state otherwise.

    A kind that is stated to be absent takes its lesions with it. Of one that was open and is present, the only lesion
    is, too, and several count as far as they are stated. A present kind is open where nothing but doubtful lesions are
    left of it. Raises ContradictoryVerdict for a refused study, a question that the report does not have, and a kind
    that would be present without any of its lesions, or absent or indeterminate with one.
    """
    if automated.outcome == "refused":
        raise ContradictoryVerdict("the study was not analysed: there is nothing to verify")
    before = {Question(FindingKind(f.kind), f.lesion): f for f in automated.findings}
    if unknown := sorted(set(stated) - set(before)):
        raise ContradictoryVerdict(f"the report has no {', '.join(map(str, unknown))}")
    answers = {question: _answered(finding, None) for question, finding in before.items()}
    for kind in {question.kind for question in stated}:
        answers |= _of_kind({q: f for q, f in before.items() if q.kind == kind}, Question(kind), stated)
    findings = tuple(answers.values())
    return automated.model_copy(
        update={
            "disclaimer": VERIFIED_DISCLAIMER,
            "report_uid": derive_uid(automated.report_uid, "verified", str(revision)),
            "revision": revision,
            "supersedes": supersedes,
            "verification": verification,
            "created": created,
            "findings": findings,
            "urgent": tuple(kind for kind in automated.urgent if _is_present(kind, findings)),
        }
    )


def _of_kind(
    before: Mapping[Question, ReportedFinding], study: Question, stated: Mapping[Question, Stated]
) -> dict[Question, ReportedFinding]:
    """The answers about one kind and its lesions. Raises ContradictoryVerdict."""
    lesions = [question for question in before if question != study]
    wanted: dict[Question, Presence] = {question: stated[question] for question in before if question in stated}
    named = [lesion for lesion in lesions if wanted.get(lesion) == "present"]
    if wanted.get(study) == "absent":
        if named:
            raise ContradictoryVerdict(f"{study} is absent, and {', '.join(map(str, named))} is present")
        wanted |= dict.fromkeys(lesions, "absent")
    if wanted.get(study) == "present" and before[study].presence != "present" and len(lesions) == 1:
        wanted.setdefault(lesions[0], "present")
    answers = {question: _answered(finding, wanted.get(question)) for question, finding in before.items()}
    positive = [lesion for lesion in lesions if answers[lesion].presence in _POSITIVE]
    sure = [lesion for lesion in positive if answers[lesion].presence == "present"]
    counted = [q for q in lesions if before[q].presence in _POSITIVE and not _is_beside(before[q], before[study])]
    are_all = lesion_count(before[study]) <= len(counted)
    if answers[study].presence == "present" and study not in wanted and are_all and counted and positive and not sure:
        answers[study] = _answered(before[study], "indeterminate")
    presence = answers[study].presence
    if (presence == "absent" and positive) or (presence == "indeterminate" and named):
        raise ContradictoryVerdict(f"{study} has a lesion but is {presence}: say that it is present, too")
    left = sure if presence == "present" else positive
    if presence in _POSITIVE and left != counted:
        if not left and study not in wanted:
            raise ContradictoryVerdict(f"no lesion of {study} is left: say whether it is present or absent")
        answers[study] = _recounted(answers[study], [answers[question] for question in left], len(counted))
    return answers


def _answered(finding: ReportedFinding, stated: Presence | None) -> ReportedFinding:
    """The answer with its verdict: what a person stated, else confirmed; nobody confirms what was not assessed."""
    automated = Verdict(decision="confirmed", automated=finding.presence, automated_probability=finding.probability)
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
        changed |= {"measurements": (), "key_image": None, **dict.fromkeys(_PLACE)}
    return finding.model_copy(update=changed)


def _in_words(verdict: Verdict) -> str:
    answer = verdict.automated.replace("_", " ")
    if verdict.automated_probability is None:
        return answer
    return f"{answer} ({percentage(verdict.automated_probability)} %)"


def _is_beside(lesion: ReportedFinding, study: ReportedFinding) -> bool:
    """Whether a lesion may be none and the answer about the study, which others make present, does not count it."""
    return study.presence == "present" and lesion.presence == "indeterminate"


def _recounted(study: ReportedFinding, left: Sequence[ReportedFinding], described: int) -> ReportedFinding:
    """The answer about the study with the lesions that a person left: with their side, place and key slice, and without
    sums and the model's probability. `described` were counted before; there may be more than are described."""
    more, found = len(left) - described, lesion_count(study)
    counts = [m for m in study.measurements if m.quantity == Quantity.LESION_COUNT]
    sides = sorted({lesion.laterality for lesion in left if lesion.laterality})
    shown = left[0] if left else None
    changed: dict[str, Any] = {
        "measurements": tuple(m.model_copy(update={"value": m.value + more}) for m in counts if m.value + more > 0),
        "laterality": Laterality.BILATERAL.value if len(sides) > 1 else next(iter(sides), None),
        "site": left[0].site if len(left) == 1 else None,
        "probability": None,
        "operating_point": None,
        **{name: getattr(shown, name, None) for name in _PLACE},
    }
    if study.verdict is not None and study.verdict.decision == "confirmed":
        changed["verdict"] = study.verdict.model_copy(update={"decision": "edited"})
        before, now = few_of_many(described, found), few_of_many(len(left), found + more)
        parts = (now if part == before else part for part in (study.reason or "").split("; "))
        changed["reason"] = "; ".join(filter(None, parts)) or None
    return study.model_copy(update=changed)


def _is_present(kind: str, findings: Collection[ReportedFinding]) -> bool:
    return any(f.kind == kind and f.lesion is None and f.presence == "present" for f in findings)
