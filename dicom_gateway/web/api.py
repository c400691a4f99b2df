"""The JSON API: studies, reports with their files, verification, deliveries, health, replay."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from fastapi.responses import FileResponse

from dicom_gateway.errors import StudyHasChanged
from dicom_gateway.report.content import Report, report_schema
from dicom_gateway.report.verification import ContradictoryVerdict
from dicom_gateway.store.files import REPORT_NAME
from dicom_gateway.store.index import StudyRow, counts, list_deliveries, list_refusals, list_reports, list_studies
from dicom_gateway.store.schema import DeliveryState, StudyState
from dicom_gateway.web.answers import (
    Delivery,
    Health,
    NotTaken,
    Problem,
    Replayed,
    StoredReport,
    Study,
    StudyDetail,
    StudyPage,
)
from dicom_gateway.web.health import check_health
from dicom_gateway.web.replays import replay_delivery, replay_study
from dicom_gateway.web.results import MEDIA_TYPES, SERVED_NAME, result_file
from dicom_gateway.web.security import CUSTOM_HEADER, DestinationName, Revision, StudyUid, require_same_origin
from dicom_gateway.web.site import CurrentSite, Site
from dicom_gateway.web.verdicts import GivenVerdict, conflict, read_answers, verify, vouching

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "Not here"},
    422: {"model": Problem, "description": "Malformed request"},
}
_REPORT: dict[int | str, dict[str, Any]] = {
    200: {"model": Report, "description": "The stored report.json"},
    **_PROBLEMS,
}
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {media: {} for media in ("image/png", "application/dicom")}},
    **_PROBLEMS,
}
_CHANGE: dict[str, Any] = {
    "dependencies": [Depends(require_same_origin)],
    "responses": {
        403: {"model": Problem, "description": f"Neither from our own page nor with the header {CUSTOM_HEADER}"},
        409: {"model": Problem, "description": "Nothing is parked, or its destination is no longer configured"},
    },
}

router = APIRouter(prefix="/api", responses=_PROBLEMS)


@router.get(
    "/health",
    summary="Whether listener, worker, web, database and disk are well",
    responses={503: {"model": Health, "description": "A part is not well"}},
)
def get_health(site: CurrentSite, response: Response) -> Health:
    health = check_health(site.settings, site.engine)
    response.status_code = 200 if health.ok else 503
    return Health.model_validate(health)


@router.get("/studies", summary="Received studies, the latest first")
def get_studies(
    site: CurrentSite,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
    state: StudyState | None = None,
    search: Annotated[
        str | None, Query(max_length=64, description="Part of patient name, ID, accession number or description.")
    ] = None,
) -> StudyPage:
    found = list_studies(site.engine, limit + 1, offset, state, search)
    return StudyPage(
        studies=[Study.model_validate(study) for study in found[:limit]],
        limit=limit,
        offset=offset,
        more=len(found) > limit,
        counts=dict(counts(site.engine).studies),
    )


@router.get("/studies/{uid}", summary="One study with its reports and deliveries")
def get_study(site: CurrentSite, uid: StudyUid) -> StudyDetail:
    return _detail(site, site.study(uid))


@router.get("/studies/{uid}/report", summary="The newest report of a study", responses=_REPORT)
def get_newest_report(site: CurrentSite, uid: StudyUid) -> Response:
    return _record(site, uid, None)


@router.get("/studies/{uid}/reports/{revision}", summary="The report of one revision", responses=_REPORT)
def get_report(site: CurrentSite, uid: StudyUid, revision: Revision) -> Response:
    return _record(site, uid, revision)


@router.get(
    "/studies/{uid}/reports/{revision}/{name}",
    summary="A file of a report: key_<n>.png, findings.sr.dcm, summary.sc.dcm or segments.seg.dcm",
    response_class=FileResponse,
    responses=_FILE,
)
def get_report_file(
    site: CurrentSite, uid: StudyUid, revision: Revision, name: Annotated[str, Path(pattern=SERVED_NAME)]
) -> FileResponse:
    path = result_file(site.settings, site.report_row(uid, revision), name)
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], filename=None if path.suffix == ".png" else name)


@router.get("/deliveries", summary="Deliveries of reports, the last changed first")
def get_deliveries(
    site: CurrentSite,
    state: DeliveryState | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> list[Delivery]:
    return [Delivery.model_validate(row) for row in list_deliveries(site.engine, state=state, limit=limit)]


@router.post("/studies/{uid}/replay", summary="Start again what is parked of a study", **_CHANGE)
def post_study_replay(site: CurrentSite, uid: StudyUid) -> Replayed:
    return _replayed(replay_study(site, uid))


@router.post("/deliveries/{uid}/{revision}/{destination}/replay", summary="Send a parked delivery again", **_CHANGE)
def post_delivery_replay(
    site: CurrentSite, uid: StudyUid, revision: Revision, destination: DestinationName
) -> Replayed:
    return _replayed(replay_delivery(site, uid, revision, destination))


@router.get("/not-taken", summary="Images that were not taken, of studies of which nothing was")
def get_not_taken(site: CurrentSite) -> list[NotTaken]:
    return [NotTaken.model_validate(row) for row in list_refusals(site.engine, None)]


@router.post(
    "/studies/{uid}/reports/{revision}/verification",
    summary="Vouch for the newest report, as a person who has read the study: the next, verified revision",
    dependencies=[Depends(require_same_origin)],
    responses={
        400: {"model": Problem, "description": "The body is no text"},
        403: {"model": Problem, "description": "From a foreign page, or nobody who may vouch for it"},
        409: {"model": Problem, "description": "Not the newest report, or a contradiction; nothing was changed"},
    },
)
def post_verification(
    request: Request, site: CurrentSite, uid: StudyUid, revision: Revision, verdict: GivenVerdict
) -> Report:
    site.report_row(uid, revision)
    person = vouching(request, verdict.observer_name, verdict.organization, verdict.comment)
    try:
        return verify(site, uid, revision, person, read_answers(verdict.answers))
    except (ContradictoryVerdict, StudyHasChanged) as error:
        raise HTTPException(409, conflict(error)) from error


@router.get("/report-schema", summary="JSON Schema of a report")
def get_report_schema() -> dict[str, Any]:
    return report_schema()


def _record(site: Site, uid: str, revision: int | None) -> Response:
    """The bytes of report.json as they were stored."""
    path = result_file(site.settings, site.report_row(uid, revision), REPORT_NAME)
    return Response(path.read_bytes(), media_type=MEDIA_TYPES[path.suffix])


def _replayed(started: tuple[str, ...]) -> Replayed:
    if not started:
        raise HTTPException(409, "Nothing of this is parked, so there is nothing to replay.")
    return Replayed(started=started)


def _detail(site: Site, study: StudyRow) -> StudyDetail:
    uid = study.study_instance_uid
    return StudyDetail(
        **Study.model_validate(study).model_dump(),
        reports=[StoredReport.model_validate(row) for row in list_reports(site.engine, uid)],
        deliveries=[Delivery.model_validate(row) for row in list_deliveries(site.engine, uid)],
        not_taken=[NotTaken.model_validate(row) for row in list_refusals(site.engine, uid)],
    )
