"""Server-rendered pages: study list, report, deliveries, rules, evidence, system."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import sqlalchemy as sa
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from dicom_gateway import operate
from dicom_gateway.dry_run import tally, try_rules
from dicom_gateway.errors import NotFound, StudyHasChanged
from dicom_gateway.evidence import known_about
from dicom_gateway.report.content import Report
from dicom_gateway.report.headline import commented
from dicom_gateway.report.verification import ContradictoryVerdict
from dicom_gateway.report.wording import rule_conditions, rule_outcome
from dicom_gateway.settings import ANY_AE_TITLE, Settings
from dicom_gateway.store.index import (
    DeliveryRow,
    ReportRow,
    StudyRow,
    counts,
    get_report,
    get_shortfall,
    list_deliveries,
    list_refusals,
    list_reports,
    list_studies,
)
from dicom_gateway.store.schema import DeliveryState, StudyState
from dicom_gateway.web.access import logged_in
from dicom_gateway.web.findings import arrange, changes, in_short, verdict
from dicom_gateway.web.health import check_health
from dicom_gateway.web.rendering import render
from dicom_gateway.web.replays import replay_delivery, replay_study
from dicom_gateway.web.results import dicom_objects, read_report
from dicom_gateway.web.security import CUSTOM_HEADER, DestinationName, Revision, StudyUid, require_same_origin
from dicom_gateway.web.site import CurrentSite, Site
from dicom_gateway.web.verdicts import conflict, previewed, read_answers, verify, vouching, with_what_follows
from dicom_gateway.web.wording import Words, delivery_state
from models.errors import ManifestMismatch
from models.manifest import load_manifest

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

_STUDIES_PER_PAGE = 25
_DELIVERIES_SHOWN = 200
_TRIALS_SHOWN = 500
_DAYS = (1, 7, 30, 90)
BackTo = Literal["study", "deliveries"]
Form = Mapping[str, str]
# What stands for undecodable bytes, and halves of characters, which some encodings that a request may name can give.
_UNDECODED = re.compile("[\ufffd\ud800-\udfff]")
_FORM_FIELDS = frozenset({"family_name", "given_name", "organization", "comment", "reviewed"})


async def posted(request: Request) -> Form:
    """Dependency: the fields of a form, whose names are not known beforehand; none of ours has a file.

    Raises HTTPException 400 for a field that is there twice: of two answers to a question neither is the person's; and
    for bytes that are no text: what they stood for is unknown.
    """
    async with request.form(max_files=0) as form:
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        if len(fields) != len(form.multi_items()):
            raise HTTPException(400, "A field of the form is there twice.")
        if any(_UNDECODED.search(name + value) for name, value in fields.items()):
            raise HTTPException(400, "The form is not text in UTF-8.")
        return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyEntry:
    """A line of the study list; `headline` is empty until there is a report, `urgent` names the kinds of its newest.

    `verified_by` is the DICOM name of who verified the newest report, if anybody did; its `revision` is 0 without one.
    """

    study: StudyRow
    headline: tuple[str, ...]
    urgent: tuple[str, ...]
    verified_by: str | None
    revision: int
    deliveries: tuple[tuple[Words, int], ...]


@router.get("/")
def studies_page(
    request: Request,
    site: CurrentSite,
    search: Annotated[str, Query(max_length=64)] = "",
    state: StudyState | str = "",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> HTMLResponse:
    """The study list, the latest first."""
    chosen = StudyState(state) if state in list(StudyState) else None
    found = list_studies(site.engine, _STUDIES_PER_PAGE + 1, (page - 1) * _STUDIES_PER_PAGE, chosen, search.strip())

    def page_url(number: int) -> str:
        return "/?" + urlencode({"search": search, "state": chosen or "", "page": number})

    return render(
        request,
        "studies.html",
        entries=[_entry(site, study) for study in found[:_STUDIES_PER_PAGE]],
        more=len(found) > _STUDIES_PER_PAGE,
        page=page,
        page_url=page_url,
        search=search,
        state=chosen,
        counts=counts(site.engine).studies,
        settings=site.settings,
        connect=_how_to_connect(site.settings),
    )


@router.get("/studies/{uid}")
def study_page(
    request: Request,
    site: CurrentSite,
    uid: StudyUid,
    revision: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
    correct: bool = False,
) -> HTMLResponse:
    """The report of a study, by default its newest revision, or what the study is waiting for.

    The newest can be verified on it, and one that is verified once more where somebody wants to `correct` it.
    """
    study = site.study(uid)
    reports = list_reports(site.engine, uid)
    row = site.report_row(uid, revision) if revision else next(iter(reports), None)
    report = _readable(site, row) if row else None
    base = f"/api/studies/{uid}/reports/{row.revision}" if row else ""
    user = logged_in(request)
    may_vouch = user is None or user.vouches_as is not None
    can_be_verified = report is not None and _can_be_verified(study, report)
    return render(
        request,
        "study.html",
        study=study,
        report=report,
        report_missing=row is not None and report is None,
        reading=arrange(report) if report else None,
        headline=(*in_short(report), *commented(report)) if report else (),
        verdict=verdict(report) if report else (),
        automated=_newest_automated(site, reports, report) if report and report.verification else None,
        can_be_verified=can_be_verified,
        may_vouch=may_vouch,
        is_verifying=can_be_verified and may_vouch and (correct or report is None or report.verification is None),
        user=user,
        revisions=[stored.revision for stored in reports],
        deliveries=list_deliveries(site.engine, uid),
        refusals=list_refusals(site.engine, uid),
        shortfall=get_shortfall(site.engine, uid, row.revision if row else study.revision),
        report_url=base,
        downloads=dicom_objects(site.settings, row) if row else {},
        settings=site.settings,
    )


@router.get("/deliveries")
def deliveries_page(request: Request, site: CurrentSite, state: DeliveryState | str = "") -> HTMLResponse:
    """Deliveries, the parked ones first."""
    chosen = DeliveryState(state) if state in list(DeliveryState) else None
    found = list_deliveries(site.engine, state=chosen or DeliveryState.PARKED, limit=_DELIVERIES_SHOWN)
    if chosen is None:
        latest = list_deliveries(site.engine, limit=_DELIVERIES_SHOWN)
        found += tuple(delivery for delivery in latest if delivery.state is not DeliveryState.PARKED)
    uids = {delivery.study_instance_uid for delivery in found}
    return render(
        request,
        "deliveries.html",
        deliveries=found,
        studies={uid: site.study(uid) for uid in uids},
        state=chosen,
        settings=site.settings,
    )


@router.get("/rules")
def rules_page(request: Request, site: CurrentSite, days: Annotated[int, Query(ge=1, le=366)] = 7) -> HTMLResponse:
    """The rules, and what they would have done with the studies of the last days."""
    since = datetime.now(UTC) - timedelta(days=days)
    trials = try_rules(site.engine, site.settings, since, limit=_TRIALS_SHOWN) if site.settings.rules else ()
    return render(
        request,
        "rules.html",
        rules=site.settings.rules,
        trials=trials,
        totals=tally(site.settings.rules, trials),
        is_cut=len(trials) == _TRIALS_SHOWN,
        days=days,
        choices=_DAYS,
    )


@router.get("/system")
def system_page(request: Request, site: CurrentSite) -> HTMLResponse:
    """Health and settings."""
    return _system(request, site, ())


@router.post("/system/checks", dependencies=[Depends(require_same_origin)])
def checks_page(request: Request, site: CurrentSite) -> HTMLResponse:
    """The same with the checks of `onescan doctor`, which call every destination and open the model."""
    return _system(request, site, operate.doctor(site.settings))


@router.get("/evidence")
def evidence_page(request: Request, site: CurrentSite) -> HTMLResponse:
    """What was measured about each answer of the configured model."""
    try:
        manifest = load_manifest(site.settings.model_dir)
    except ManifestMismatch as error:
        raise NotFound("The model.json of the configured model cannot be read: onescan doctor says why.") from error
    return render(request, "evidence.html", model=manifest, known=known_about(manifest))


@router.post("/studies/{uid}/replay", dependencies=[Depends(require_same_origin)])
def replay_study_form(site: CurrentSite, uid: StudyUid) -> RedirectResponse:
    """The button "Analyse again"; the page shows the new state."""
    replay_study(site, uid)
    return RedirectResponse(f"/studies/{uid}", 303)


@router.post(
    "/studies/{uid}/reports/{revision}/deliveries/{destination}/replay",
    dependencies=[Depends(require_same_origin)],
)
def replay_delivery_form(
    site: CurrentSite, uid: StudyUid, revision: Revision, destination: DestinationName, back: BackTo = "study"
) -> RedirectResponse:
    """The button "Send again"; leads back to the page it stands on."""
    replay_delivery(site, uid, revision, destination)
    return RedirectResponse("/deliveries" if back == "deliveries" else f"/studies/{uid}", 303)


@router.post("/studies/{uid}/reports/{revision}/verification", dependencies=[Depends(require_same_origin)])
def verify_form(
    request: Request, site: CurrentSite, uid: StudyUid, revision: Revision, form: Annotated[Form, Depends(posted)]
) -> Response:
    """The button "Verify": what differs from the report or is said beside it is shown once more before it counts."""
    report = read_report(site.settings, site.report_row(uid, revision))
    name = "^".join(filter(None, (form.get("family_name"), form.get("given_name"))))
    comment = " ".join(form.get("comment", "").split())
    person = vouching(request, name, form.get("organization"), comment or None)
    study = site.study(uid)
    shown: dict[str, Any] = {"study": study, "report": report, "person": person, "form": form}
    try:
        if not _can_be_verified(study, report):
            raise StudyHasChanged("this is not the newest report any more, or another one is being made: read that one")
        answers = {question: answer for question, answer in form.items() if question not in _FORM_FIELDS and answer}
        stated = with_what_follows(read_answers(answers), report)
        automated = _newest_automated(site, list_reports(site.engine, uid), report)
        if automated is None:
            raise NotFound("The automated report of the study cannot be read.")
        after = previewed(report, automated, person, stated)
        found = changes(report, after)
        if (found or comment) and "reviewed" not in form:
            return render(request, "verdict.html", changes=found, headline=in_short(after), problem=None, **shown)
        verify(site, uid, revision, person, stated)
    except (ContradictoryVerdict, StudyHasChanged) as error:
        status, problem = HTTPStatus.CONFLICT, conflict(error)
        return render(request, "verdict.html", status, changes=(), headline=(), problem=problem, **shown)
    return RedirectResponse(f"/studies/{uid}", 303)


@router.get("/api")
def api_page(request: Request) -> HTMLResponse:
    """What the JSON API offers, from its OpenAPI document."""
    operations = [
        (method.upper(), path, operation["summary"])
        for path, methods in request.app.openapi()["paths"].items()
        for method, operation in methods.items()
    ]
    return render(request, "api.html", operations=operations, custom_header=CUSTOM_HEADER)


def _system(request: Request, site: Site, checks: Sequence[operate.Check]) -> HTMLResponse:
    health = check_health(site.settings, site.engine)
    database_answers = health.failed_studies is not None
    return render(
        request,
        "system.html",
        health=health,
        checks=checks,
        refusals=list_refusals(site.engine, None) if database_answers else (),
        shown_settings=shown_settings(site.settings),
    )


def _entry(site: Site, study: StudyRow) -> StudyEntry:
    row = get_report(site.engine, study.study_instance_uid)
    report = _readable(site, row) if row else None
    deliveries = list_deliveries(site.engine, study.study_instance_uid)
    return StudyEntry(
        study=study,
        headline=in_short(report) if report else (),
        urgent=report.urgent if report else (),
        verified_by=report.verification.observer_name if report and report.verification else None,
        revision=row.revision if row else 0,
        deliveries=_tally(deliveries),
    )


def _can_be_verified(study: StudyRow, report: Report) -> bool:
    """Whether it is the report of all images that are here, and nobody works on the study."""
    is_newest = report.revision == study.revision and study.state is StudyState.REPORTED
    return is_newest and report.outcome == "reported"


def _newest_automated(site: Site, rows: Sequence[ReportRow], report: Report) -> Report | None:
    """What a report is or, however often it was verified, was made of; None where that cannot be read."""
    if report.verification is None:
        return report
    earlier = (_readable(site, row) for row in rows if row.revision < report.revision)
    return next((r for r in earlier if r is not None and r.verification is None), None)


def _readable(site: Site, row: ReportRow) -> Report | None:
    """The stored record, or None where the page has to say that it is missing."""
    try:
        return read_report(site.settings, row)
    except NotFound:
        return None


def _tally(deliveries: tuple[DeliveryRow, ...]) -> tuple[tuple[Words, int], ...]:
    """How many deliveries of the newest revision that has any are in each state."""
    newest = max((delivery.revision for delivery in deliveries), default=0)
    states = Counter(delivery.state for delivery in deliveries if delivery.revision == newest)
    return tuple((delivery_state(state), states[state]) for state in DeliveryState if state in states)


def shown_settings(settings: Settings) -> list[tuple[str, str, str]]:
    """Name, value and description of every setting; a password in the database's URL is left out."""
    values: dict[str, Any] = settings.model_dump(mode="json")
    values["database_url"] = sa.make_url(settings.database).render_as_string(hide_password=True)
    values["destinations"] = [f"{d.name} ({d.address})" for d in settings.destinations]
    values["sources"] = [f"{s.name} ({s.ae_title}, asked as {s.address})" for s in settings.sources]
    values["rules"] = [f"{r.name} ({rule_conditions(r)}: {rule_outcome(r)})" for r in settings.rules]
    return [
        (name, ", ".join(value) if isinstance(value, list) else str(value), field.description or "")
        for name, field in Settings.model_fields.items()
        for value in (values[name],)
    ]


def _how_to_connect(settings: Settings) -> dict[str, str]:
    """What a PACS administrator has to type, for the empty list."""
    everywhere = settings.dicom_loopback_host != settings.dicom_host
    named = [title for title in settings.calling_ae_titles if title != ANY_AE_TITLE]
    return {
        "dicom_address": "the address of this computer" if everywhere else settings.dicom_host,
        "dicom_address_example": settings.dicom_loopback_host,
        "calling_example": named[0] if named else "MY_PACS",
    }
