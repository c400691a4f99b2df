"""A person's verdict on a report, from the API and from the form of the report page."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from dicom_gateway.errors import StudyHasChanged
from dicom_gateway.report.content import Comment, Name, Report, SupersededReport, Verification
from dicom_gateway.report.verification import (
    QUESTION_PATTERN,
    ContradictoryVerdict,
    Question,
    Stated,
    lesion_count,
    read_question,
    restated,
    stated_in,
    verified_report,
)
from dicom_gateway.web.access import logged_in
from dicom_gateway.web.site import Site
from models.findings import FindingKind

_NOBODY = "This login is for looking only: its line of the users file names no person who could vouch for a report."
_SOMEBODY_ELSE = "Nobody vouches for a report in the name of another: leave out name and organisation."


class GivenVerdict(BaseModel):
    """What a person who has read the study says of a report; what is not answered is confirmed as it stands."""

    model_config = ConfigDict(extra="forbid")

    answers: dict[Annotated[str, StringConstraints(pattern=QUESTION_PATTERN)], Stated] = Field(
        default_factory=dict,
        description='A kind, or "kind:N" for its lesion N, and whether it is there.',
        json_schema_extra={"additionalProperties": False},
    )
    comment: Comment | None = Field(default=None, description="In the person's own words, on one line.")
    observer_name: Name | None = Field(
        default=None, description="Name of the person (DICOM PN); the login says it where one is needed."
    )
    organization: Name | None = Field(default=None, description="Organisation of the person; as above.")


def vouching(request: Request, name: str | None, organization: str | None, comment: str | None) -> Verification:
    """Who vouches: the person of the login, or whom an open site is told.

    Raises HTTPException 403 for nobody and for another than the login's, 422 for what is no name.
    """
    user = logged_in(request)
    if user is not None:
        person = user.vouches_as
        if person is None:
            raise HTTPException(403, _NOBODY)
        own = (person.name, person.organization)
        if (name or own[0], organization or own[1]) != own:
            raise HTTPException(403, _SOMEBODY_ELSE)
        name, organization = own
    if not name or not organization:
        raise HTTPException(403, "A person has to vouch for a report: say name and organisation.")
    try:
        return Verification(observer_name=name, organization=organization, comment=comment)
    except ValidationError as error:
        fields = " and ".join(str(e["loc"][0]).replace("_", " ") for e in error.errors())
        raise HTTPException(
            422, f"The {fields} cannot be taken: names have at most 64 characters without backslash, comments 500."
        ) from error


def verify(
    site: Site, uid: str, revision: int, verification: Verification, stated: Mapping[Question, Stated]
) -> Report:
    """The verified report, which goes to the destinations. Raises as `dicom_gateway.verify.verify_study`."""
    # The writers of documents are loaded by who needs them: most web processes never do.
    from dicom_gateway.verify import verify_study

    return verify_study(site.settings, uid, verification, stated, revision=revision)


def read_answers(answers: Mapping[str, str]) -> dict[Question, Stated]:
    """Question -> what is stated. Raises ContradictoryVerdict for what is neither."""
    stated: dict[Question, Stated] = {}
    for question, answer in answers.items():
        named = read_question(question)
        if answer not in ("present", "absent"):
            raise ContradictoryVerdict(f"{named}: neither present nor absent")
        stated[named] = "present" if answer == "present" else "absent"
    return stated


def with_what_follows(stated: Mapping[Question, Stated], report: Report) -> dict[Question, Stated]:
    """`stated`, and that a kind is absent all of whose lesions are: the page shows that before it counts.

    Not so where the report counts more lesions than it describes.
    """
    followed = dict(stated)
    for study in (f for f in report.findings if f.lesion is None and f.presence in ("present", "indeterminate")):
        kind = FindingKind(study.kind)
        lesions = [f for f in report.findings if f.kind == kind and f.lesion is not None and f.presence != "absent"]
        rejected = [f for f in lesions if stated.get(Question(kind, f.lesion)) == "absent"]
        described = sum(f.presence == study.presence for f in lesions)
        if lesions and len(rejected) == len(lesions) and lesion_count(study) <= described:
            followed.setdefault(Question(kind), "absent")
    return followed


def previewed(
    report: Report, automated: Report, verification: Verification, stated: Mapping[Question, Stated]
) -> Report:
    """The report as it would be verified now; nothing is written. Raises ContradictoryVerdict.

    `automated` is what `report` was made of, or itself.
    """
    return verified_report(
        automated,
        verification,
        supersedes=SupersededReport(
            revision=report.revision,
            report_uid=report.report_uid,
            content_sha256=report.content_sha256,
            marked=False,
            verified=report.verification is not None,
        ),
        revision=report.revision + 1,
        created=datetime.now(UTC),
        stated=restated(stated_in(report), stated),
    )


def conflict(error: ContradictoryVerdict | StudyHasChanged) -> str:
    """Why nothing was changed, as a sentence."""
    words = str(error).replace("_", " ")
    return f"{words[:1].upper()}{words[1:]}."
