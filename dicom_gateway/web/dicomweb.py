"""DICOMweb (PS3.18): QIDO-RS and WADO-RS for received images and for the objects of their newest reports."""

import json
import math
import re
import uuid
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any
from urllib.parse import quote
from urllib.request import parse_http_list

from fastapi import APIRouter, Depends, HTTPException, Path, Request, Response
from fastapi.responses import StreamingResponse
from pydicom.dataset import Dataset

from dicom_gateway.store.index import StudyRow
from dicom_gateway.web.answers import Problem
from dicom_gateway.web.dicomweb_frames import Frames, NoFrames, open_frames
from dicom_gateway.web.dicomweb_holdings import (
    Found,
    Held,
    find_instances,
    find_series,
    find_studies,
    held_instances,
    read_metadata,
    read_transfer_syntax,
)
from dicom_gateway.web.dicomweb_query import BadQuery, Query, SearchTooBroad, parse_query
from dicom_gateway.web.security import UID_SCHEMA
from dicom_gateway.web.site import CurrentSite, Site
from imaging.uids import is_safe_uid

PREFIX = "/dicom-web"
JSON = "application/dicom+json"
DICOM = "application/dicom"
_FRAME_NUMBERS = r"^[1-9][0-9]{0,5}(,[1-9][0-9]{0,5}){0,999}$"
_CHUNK_BYTES = 1 << 20
_NO_FUZZY = "The fuzzymatching parameter is not supported. Only literal matching has been performed."
_MORE = "There are additional results that can be requested"

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "A UID or a search parameter is none"},
    404: {"model": Problem, "description": "Not here"},
    406: {"model": Problem, "description": "Not to be had in what Accept asks for"},
}
_SEARCHED: dict[int | str, dict[str, Any]] = {
    200: {"content": {JSON: {}}},
    204: {"description": "Nothing matches"},
    413: {"model": Problem, "description": "The search is too broad"},
}
_METADATA: dict[int | str, dict[str, Any]] = {200: {"content": {JSON: {}}}}
_RETRIEVED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"multipart/related": {}, DICOM: {}}},
    206: {"content": {"multipart/related": {}}, "description": "Some of what is stored cannot be read"},
}
_FRAMES: dict[int | str, dict[str, Any]] = {200: {"content": {"multipart/related": {}}}}

router = APIRouter(prefix=PREFIX, responses=_PROBLEMS)


def _checked(uid: str) -> str:
    if not is_safe_uid(uid):
        raise HTTPException(400, "This is not a DICOM UID.")
    return uid


def _study_uid(study: Annotated[str, Path(description="Study Instance UID.", json_schema_extra=UID_SCHEMA)]) -> str:
    return _checked(study)


def _series_uid(series: Annotated[str, Path(description="Series Instance UID.", json_schema_extra=UID_SCHEMA)]) -> str:
    return _checked(series)


def _instance_uid(instance: Annotated[str, Path(description="SOP Instance UID.", json_schema_extra=UID_SCHEMA)]) -> str:
    return _checked(instance)


def _query(request: Request) -> Query:
    try:
        return parse_query(request.query_params.multi_items())
    except BadQuery as error:
        raise HTTPException(400, f"Bad search: {error}.") from error


StudyUid = Annotated[str, Depends(_study_uid)]
SeriesUid = Annotated[str, Depends(_series_uid)]
InstanceUid = Annotated[str, Depends(_instance_uid)]
Searched = Annotated[Query, Depends(_query)]


@router.get("/studies", summary="Search for studies (QIDO-RS)", responses=_SEARCHED)
def search_studies(request: Request, site: CurrentSite, query: Searched) -> Response:
    return _found(request, query, find_studies(site, query))


@router.get("/series", summary="Search for series of all studies", responses=_SEARCHED)
def search_series(request: Request, site: CurrentSite, query: Searched) -> Response:
    return _found(request, query, find_series(site, query, None))


@router.get("/instances", summary="Search for instances of all studies", responses=_SEARCHED)
def search_instances(request: Request, site: CurrentSite, query: Searched) -> Response:
    return _found(request, query, find_instances(site, query, None))


@router.get("/studies/{study}/series", summary="Search for series of a study", responses=_SEARCHED)
def search_series_of_study(request: Request, site: CurrentSite, study: StudyUid, query: Searched) -> Response:
    return _found(request, query, find_series(site, query, site.study(study)))


@router.get("/studies/{study}/instances", summary="Search for instances of a study", responses=_SEARCHED)
def search_instances_of_study(request: Request, site: CurrentSite, study: StudyUid, query: Searched) -> Response:
    return _found(request, query, find_instances(site, query, site.study(study)))


@router.get(
    "/studies/{study}/series/{series}/instances", summary="Search for instances of a series", responses=_SEARCHED
)
def search_instances_of_series(
    request: Request, site: CurrentSite, study: StudyUid, series: SeriesUid, query: Searched
) -> Response:
    return _found(request, query, find_instances(site, query, site.study(study), series))


@router.get("/studies/{study}", summary="Every instance of a study (WADO-RS)", responses=_RETRIEVED)
def retrieve_study(request: Request, site: CurrentSite, study: StudyUid) -> Response:
    return _retrieved(request, _held(site, study))


@router.get("/studies/{study}/series/{series}", summary="Every instance of a series", responses=_RETRIEVED)
def retrieve_series(request: Request, site: CurrentSite, study: StudyUid, series: SeriesUid) -> Response:
    return _retrieved(request, _held(site, study, series))


@router.get("/studies/{study}/series/{series}/instances/{instance}", summary="One instance", responses=_RETRIEVED)
def retrieve_instance(
    request: Request, site: CurrentSite, study: StudyUid, series: SeriesUid, instance: InstanceUid
) -> Response:
    return _retrieved(request, _held(site, study, series, instance))


@router.get(
    "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}",
    summary="Frames of an instance, numbered from 1: 1,2,3",
    responses=_FRAMES,
)
def retrieve_frames(
    request: Request,
    site: CurrentSite,
    study: StudyUid,
    series: SeriesUid,
    instance: InstanceUid,
    frames: Annotated[
        str, Path(description="Frame numbers, comma-separated.", json_schema_extra={"pattern": _FRAME_NUMBERS})
    ],
) -> Response:
    if not re.fullmatch(_FRAME_NUMBERS, frames):
        raise HTTPException(400, "This is no list of frame numbers.")
    (held,) = _held(site, study, series, instance)
    try:
        stored = open_frames(held.path)
    except NoFrames as error:
        raise HTTPException(406, f"There are no frames of this instance: {error}.") from error
    numbers = [int(number) for number in frames.split(",")]
    if not all(map(stored.has, numbers)):
        raise HTTPException(404, "There is no such frame.")
    _require_frames_acceptable(request, stored)
    boundary = uuid.uuid4().hex
    media_type = f"{stored.media_type};transfer-syntax={stored.transfer_syntax}"

    def content() -> Iterator[bytes]:
        for frame in stored.read(numbers):
            yield f"--{boundary}\r\nContent-Type: {media_type}\r\n\r\n".encode() + frame + b"\r\n"
        yield f"--{boundary}--\r\n".encode()

    return StreamingResponse(content(), media_type=f'multipart/related;type="{stored.media_type}";boundary={boundary}')


@router.get("/studies/{study}/metadata", summary="Headers of a study", responses=_METADATA)
def study_metadata(request: Request, site: CurrentSite, study: StudyUid) -> Response:
    return _headers(request, _held(site, study))


@router.get("/studies/{study}/series/{series}/metadata", summary="Headers of a series", responses=_METADATA)
def series_metadata(request: Request, site: CurrentSite, study: StudyUid, series: SeriesUid) -> Response:
    return _headers(request, _held(site, study, series))


@router.get(
    "/studies/{study}/series/{series}/instances/{instance}/metadata",
    summary="Header of an instance",
    responses=_METADATA,
)
def instance_metadata(
    request: Request, site: CurrentSite, study: StudyUid, series: SeriesUid, instance: InstanceUid
) -> Response:
    return _headers(request, _held(site, study, series, instance))


def _held(site: Site, study: str, series: str | None = None, instance: str | None = None) -> list[Held]:
    row: StudyRow = site.study(study)
    held = held_instances(site, row, series, instance)
    if not held:
        raise HTTPException(404, "There is no such series or instance.")
    return held


def _found(request: Request, query: Query, found: Iterator[Found]) -> Response:
    require_acceptable(request, (JSON, "application/json"))
    try:
        told = list(islice(found, query.offset, query.offset + query.limit + 1))
    except SearchTooBroad as error:
        raise HTTPException(413, "The search takes too long: name more of what is searched.") from error
    warnings = [_NO_FUZZY] if query.fuzzy else []
    if len(told) > query.limit:
        warnings.append(_MORE)
    told_of = ", ".join(f'299 {base_address(request)}: "{text}"' for text in warnings)
    headers = {"Warning": told_of} if warnings else None
    answers = [_with_address(request, one) for one in told[: query.limit]]
    if not answers:
        return Response(status_code=204, headers=headers)
    return Response(_encoded(answers), media_type=JSON, headers=headers)


def _headers(request: Request, held: Sequence[Held]) -> Response:
    require_acceptable(request, (JSON, "application/json"))

    def content() -> Iterator[bytes]:
        lead = b"["
        for instance in held:
            header = read_metadata(instance)
            if header is not None:
                yield lead + _encoded(_json(header))
                lead = b","
        yield b"[]" if lead == b"[" else b"]"

    return StreamingResponse(content(), media_type=JSON)


def _retrieved(request: Request, held: Sequence[Held]) -> Response:
    """The files as they are stored, one after the other, never more than a piece of one in memory."""
    wanted = _accepted_syntaxes(request, alone=len(held) == 1)
    there = [(instance, syntax) for instance in held if (syntax := read_transfer_syntax(instance)) is not None]
    if not there:
        raise HTTPException(404, "What is stored cannot be read.")
    if not all("*" in wanted or syntax in wanted for _, syntax in there):
        raise HTTPException(406, "Instances are served in the transfer syntax they are stored in.")
    boundary = uuid.uuid4().hex

    def content() -> Iterator[bytes]:
        for instance, syntax in there:
            yield f"--{boundary}\r\nContent-Type: {DICOM};transfer-syntax={syntax}\r\n\r\n".encode()
            yield from _pieces(instance)
            yield b"\r\n"
        yield f"--{boundary}--\r\n".encode()

    if len(held) == 1 and _wants_single_part(request):
        return StreamingResponse(_pieces(held[0]), media_type=f"{DICOM};transfer-syntax={there[0][1]}")
    status = 200 if len(there) == len(held) else 206
    return StreamingResponse(content(), status, media_type=f'multipart/related;type="{DICOM}";boundary={boundary}')


def _pieces(held: Held) -> Iterator[bytes]:
    with held.path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield piece


def _accept(request: Request) -> list[tuple[str, dict[str, str]]]:
    """Media types of Accept with their parameters; `accept` in the address stands for the header (PS3.18 8.3.3.1).

    Without those of weight 0, which are not acceptable (RFC 9110 section 12.4.2).
    """
    told = request.query_params.get("accept") or request.headers.get("Accept") or "*/*"
    ranges = []
    for part in parse_http_list(told):
        media_type, *rest = (text.strip() for text in part.split(";"))
        pairs = (text.partition("=") for text in rest)
        parameters = {name.strip().lower(): value.strip(' "') for name, _, value in pairs}
        if not re.fullmatch(r"0(\.0{0,3})?", parameters.get("q", "1")):
            ranges.append((media_type.lower(), parameters))
    return ranges


def require_acceptable(request: Request, served: Sequence[str]) -> None:
    """Raises HTTPException 406 where none of the media types that are served is accepted."""
    if not {"*/*", "application/*", *served} & {media_type for media_type, _ in _accept(request)}:
        raise HTTPException(406, f"This is served as {served[0]}.")


def _accepted_syntaxes(request: Request, *, alone: bool) -> set[str]:
    """Transfer syntaxes that are asked for, "*" for any. Raises HTTPException 406 where it is not instances.

    `alone`: there is one, which needs no parts.
    """
    served = {"*/*", "multipart/*"} | ({DICOM, "application/*"} if alone else set())
    syntaxes = set()
    for media_type, parameters in _accept(request):
        of_instances = parameters.get("type", DICOM).lower() == DICOM if media_type == "multipart/related" else False
        if of_instances or media_type in served:
            syntaxes.add(parameters.get("transfer-syntax", "*"))
    if not syntaxes:
        raise HTTPException(406, f'Instances are served as multipart/related; type="{DICOM}".')
    return syntaxes


def _require_frames_acceptable(request: Request, stored: Frames) -> None:
    for media_type, parameters in _accept(request):
        kind, syntax = parameters.get("type", "*/*").lower(), parameters.get("transfer-syntax")
        of_kind = kind in ("*/*", stored.media_type) and syntax in (None, "*", stored.transfer_syntax)
        # Viewers ask for any syntax in the name of the uncompressed one.
        if media_type in ("*/*", "multipart/*") or (media_type == "multipart/related" and (of_kind or syntax == "*")):
            return
    raise HTTPException(406, f"The frames are served as {stored.media_type}.")


def _wants_single_part(request: Request) -> bool:
    media_types = {media_type for media_type, _ in _accept(request)}
    if DICOM in media_types:
        return "multipart/related" not in media_types
    return not media_types & {"*/*", "multipart/*", "multipart/related"}


def base_address(request: Request) -> str:
    """Address of the services, as the client calls us."""
    return f"{str(request.base_url).rstrip('/')}{PREFIX}"


def _with_address(request: Request, found: Found) -> dict[str, Any]:
    parts = [("studies", found.study_instance_uid), ("series", found.series_instance_uid)]
    parts.append(("instances", found.sop_instance_uid))
    address = "".join(f"/{name}/{quote(uid)}" for name, uid in parts if uid is not None)
    answer = _json(found.attributes)
    answer["00081190"] = {"vr": "UR", "Value": [f"{base_address(request)}{address}"]}
    return dict(sorted(answer.items()))


def _json(attributes: Dataset) -> dict[str, Any]:
    return attributes.to_json_dict(suppress_invalid_tags=True)


def _encoded(answer: Any) -> bytes:
    try:
        return json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return json.dumps(_without_nan(answer), ensure_ascii=False).encode()


def _without_nan(value: Any) -> Any:
    """The same with null for numbers that JSON does not have; senders write them into FL and FD."""
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
