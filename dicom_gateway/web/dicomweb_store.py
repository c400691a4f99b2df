"""STOW-RS (PS3.18 section 10.5): a second front door, with the checks and the promise of C-STORE."""

import asyncio
import ipaddress
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any

import sqlalchemy as sa
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from dicom_gateway.events import Event, emit
from dicom_gateway.receive.admission import SOP_CLASSES, TRANSFER_SYNTAXES
from dicom_gateway.receive.reception import Incoming, Reception, refusal_of, release_study
from dicom_gateway.receive.statuses import StoreRefused, StoreStatus
from dicom_gateway.settings import Settings
from dicom_gateway.store.files import data_set_offset
from dicom_gateway.store.schema import open_database
from dicom_gateway.web.answers import Problem
from dicom_gateway.web.dicomweb import DICOM, JSON, PREFIX, StudyUid, base_address, require_acceptable

# What stands for the calling AE title, which HTTP does not have: in rules, priorities and the study list.
CALLING_AE_TITLE = "STOW-RS"
MAXIMUM_PARTS = 10_000
MAXIMUM_UPLOADS = 8
TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122  # PS3.18 Table I.2-2
_FED_AT_ONCE_BYTES = 1 << 20
_STUDIES_KEPT_OPEN_EVERY_S = 1.0
_RETRY_AFTER_S = 60
# RFC 2046 section 5.1.1 allows 70; Orthanc sends 73.
_LONGEST_BOUNDARY = 200
_LONGEST_PREAMBLE_BYTES = 65_536
_META_GROUP_LENGTH_END = 144
_PREFIX_AND_GROUP_LENGTH = b"DICM\x02\x00\x00\x00UL\x04\x00"  # PS3.10 section 7.1
_LONGEST_META_BYTES = 65_536


class BadUpload(Exception):
    """The body is not what its Content-Type says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one part. `failure_reason` 0: it is kept, and of this study and series.

    The UIDs of the instance are "" where the part does not tell them.
    """

    sop_class_uid: str
    sop_instance_uid: str
    failure_reason: int
    study_instance_uid: str = ""
    series_instance_uid: str = ""


class Upload:
    """The body of one request: each part is kept as soon as it is whole, and only a piece of one is in memory.

    Not to be used by two threads at once. `end` must be called, whatever happens.
    """

    def __init__(self, reception: Reception, boundary: bytes, study_instance_uid: str | None) -> None:
        self.outcomes: list[Outcome] = []
        self._reception = reception
        self._study_instance_uid = study_instance_uid
        self._delimiter = b"--" + boundary
        self._preamble: bytearray | None = bytearray()
        self._ended = False
        self._part: _Part | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_part_data": self._data,
                "on_part_end": self._keep,
                "on_end": self._on_end,
            },
        )

    def feed(self, content: bytes) -> None:
        """Take the next bytes. Raises BadUpload where they are no multipart message."""
        if self._preamble is not None:
            # RFC 2046 section 5.1.1: what stands before the first part is to be ignored. The parser would not.
            self._preamble += content
            begin = self._preamble.find(self._delimiter)
            if begin < 0 and len(self._preamble) <= _LONGEST_PREAMBLE_BYTES:
                return
            content, self._preamble = bytes(self._preamble[max(begin, 0) :]), None
        try:
            self._parser.write(content)
        except MultipartParseError as error:
            raise BadUpload("The body is not multipart/related as its Content-Type says.") from error

    def require_whole(self) -> None:
        """Raises BadUpload unless the last boundary has come."""
        if not self._ended:
            raise BadUpload("The body is cut off.")

    def keep_open(self) -> None:
        """Have the study that is being sent not count as quiet."""
        release_study(self._reception, self)

    def end(self) -> None:
        """Forget a part that has not come whole; nothing more will be sent."""
        if self._part is not None:
            self._part.discard()
        release_study(self._reception, self, broke=not self._ended)
        self._reception.associations.close(self)

    def _begin(self) -> None:
        if len(self.outcomes) >= MAXIMUM_PARTS:
            raise BadUpload(f"A request has at most {MAXIMUM_PARTS} instances.")
        self._part = _Part(self._reception, self, self._study_instance_uid)

    def _data(self, content: bytes, start: int, end: int) -> None:
        assert self._part is not None
        self._part.write(memoryview(content)[start:end])

    def _keep(self) -> None:
        assert self._part is not None
        self.outcomes.append(self._part.keep())
        self._part = None

    def _on_end(self) -> None:
        self._ended = True


class _Part:
    """A DICOM file on its way in: its file meta information says as what its data set is to be taken."""

    def __init__(self, reception: Reception, upload: Upload, study_instance_uid: str | None) -> None:
        self._reception, self._upload, self._study_instance_uid = reception, upload, study_instance_uid
        self._head = bytearray()
        self._incoming: Incoming | None = None
        self._sop_class_uid = self._sop_instance_uid = ""
        self._failure_reason = 0

    def write(self, content: memoryview) -> None:
        with self._refusing():
            if self._failure_reason:
                return
            if self._incoming is not None:
                self._incoming.write(content)
                return
            self._head += content
            if len(self._head) >= _META_GROUP_LENGTH_END and len(self._head) >= (offset := self._offset()):
                self._open(offset)

    def keep(self) -> Outcome:
        study, series = "", ""
        with self._refusing():
            if self._incoming is not None:
                header = self._incoming.keep(self._study_instance_uid)
                study, series = header.study_instance_uid, header.series_instance_uid
            elif not self._failure_reason:
                raise StoreRefused(StoreStatus.CANNOT_UNDERSTAND, "Not a DICOM file")
        return Outcome(
            sop_class_uid=self._sop_class_uid,
            sop_instance_uid=self._sop_instance_uid,
            failure_reason=self._failure_reason,
            study_instance_uid=study,
            series_instance_uid=series,
        )

    def discard(self) -> None:
        if self._incoming is not None:
            self._incoming.discard()

    def _offset(self) -> int:
        """Where the data set begins."""
        if self._head[128:140] != _PREFIX_AND_GROUP_LENGTH:
            raise StoreRefused(StoreStatus.CANNOT_UNDERSTAND, "Not a DICOM file")
        offset = data_set_offset(BytesIO(self._head[:_META_GROUP_LENGTH_END]))
        if offset > _LONGEST_META_BYTES:
            raise StoreRefused(StoreStatus.CANNOT_UNDERSTAND, "File meta information is too long")
        return offset

    def _open(self, offset: int) -> None:
        meta = _file_meta(bytes(self._head[_META_GROUP_LENGTH_END:offset]))
        self._sop_class_uid, self._sop_instance_uid, transfer_syntax = meta
        if self._sop_class_uid not in SOP_CLASSES:
            raise StoreRefused(StoreStatus.REFUSED_SOP_CLASS_NOT_SUPPORTED, "SOP Class is not taken")
        if transfer_syntax not in TRANSFER_SYNTAXES:
            raise _SyntaxRefused(StoreStatus.CANNOT_UNDERSTAND, "Transfer syntax is not taken")
        self._incoming = Incoming(
            self._reception,
            sop_class_uid=self._sop_class_uid,
            sop_instance_uid=self._sop_instance_uid,
            transfer_syntax=transfer_syntax,
            calling_ae_title=CALLING_AE_TITLE,
            association=self._upload,
        )
        self._incoming.write(bytes(self._head[offset:]))
        self._head.clear()

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Whatever goes wrong with an instance becomes its failure: the others are kept."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # edge
            refusal = refusal_of(error, CALLING_AE_TITLE)
            unknown_syntax = isinstance(error, _SyntaxRefused)
            self._failure_reason = TRANSFER_SYNTAX_NOT_SUPPORTED if unknown_syntax else int(refusal.status)
            self.discard()
            self._incoming = None
            self._head.clear()


class _SyntaxRefused(StoreRefused):
    """C-STORE negotiates transfer syntaxes and has no status for this."""


def _file_meta(encoded: bytes) -> tuple[str, str, str]:
    """SOP Class, SOP Instance and Transfer Syntax UID of file meta information elements (PS3.10 section 7.1)."""
    try:
        meta = read_dataset(BytesIO(encoded), False, True)
        keywords = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
        values = [str(meta.get(keyword) or "") for keyword in keywords]
    except Exception as error:
        raise StoreRefused(StoreStatus.CANNOT_UNDERSTAND, "File meta information cannot be read") from error
    return values[0], values[1], values[2]


@dataclass(slots=True)
class FrontDoor:
    """One per application that takes images; `uploads` are being received now."""

    reception: Reception
    limiter: CapacityLimiter
    uploads: int = 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Raises HTTPException 503 while too many uploads are being received."""
        if self.uploads >= MAXIMUM_UPLOADS:
            raise HTTPException(503, "Too many uploads at the same time.", {"Retry-After": str(_RETRY_AFTER_S)})
        self.uploads += 1
        try:
            yield
        finally:
            self.uploads -= 1


def open_front_door(settings: Settings) -> FrontDoor:
    """For `app.state.front_door`."""
    for folder in (settings.incoming_dir, settings.studies_dir):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    reception = Reception(settings=settings, engine=open_database(settings.database, rebuildable=True))
    return FrontDoor(reception, CapacityLimiter(MAXIMUM_UPLOADS))


def _front_door(request: Request) -> FrontDoor:
    """Dependency: the front door, to senders it is open to. Raises HTTPException 403."""
    door: FrontDoor = request.app.state.front_door
    with suppress(ValueError):
        address = ipaddress.ip_address(request.client.host if request.client else "")
        address = getattr(address, "ipv4_mapped", None) or address
        if any(address in network for network in door.reception.settings.stow_networks):
            return door
    raise HTTPException(403, "This address may not send images: it is in no network of the setting stow_networks.")


def _boundary(request: Request) -> bytes:
    """Dependency: what separates the parts. Raises HTTPException 415 where they are not to be DICOM files."""
    media_type, parameters = parse_options_header(request.headers.get("Content-Type"))
    encoding = request.headers.get("Content-Encoding", "identity")
    kind = parameters.get(b"type", DICOM.encode()).decode("latin-1").lower()
    if media_type != b"multipart/related" or kind != DICOM or encoding != "identity":
        raise HTTPException(415, f'Instances are sent as multipart/related; type="{DICOM}".')
    boundary = parameters.get(b"boundary", b"")
    if not 1 <= len(boundary) <= _LONGEST_BOUNDARY:
        raise HTTPException(400, "The Content-Type has no boundary, or too long a one.")
    return boundary


Door = Annotated[FrontDoor, Depends(_front_door)]
Boundary = Annotated[bytes, Depends(_boundary)]
_ANSWER: dict[str, Any] = {"content": {JSON: {}}}
_STORED: dict[int | str, dict[str, Any]] = {
    200: {**_ANSWER, "description": "All instances are kept"},
    202: {**_ANSWER, "description": "Some are kept; the others have a Failure Reason"},
    409: {**_ANSWER, "description": "None is kept"},
    503: {**_ANSWER, "description": "No room, or too much to do: try again later"},
    **{code: {"model": Problem} for code in (400, 403, 406, 415)},
}
_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"multipart/related": {"schema": {"type": "string"}}}}
}

router = APIRouter(prefix=PREFIX, responses=_STORED)


@router.post("/studies", summary="Store instances (STOW-RS)", openapi_extra=_BODY)
async def store_instances(request: Request, door: Door, boundary: Boundary) -> Response:
    return await _stored(request, door, boundary, None)


@router.post("/studies/{study}", summary="Store instances of one study (STOW-RS)", openapi_extra=_BODY)
async def store_instances_of_study(request: Request, door: Door, boundary: Boundary, study: StudyUid) -> Response:
    return await _stored(request, door, boundary, study)


async def _stored(request: Request, door: FrontDoor, boundary: bytes, study: str | None) -> Response:
    require_acceptable(request, (JSON, "application/json"))
    with door.entered():
        upload = Upload(door.reception, boundary, study)
        kept_open = asyncio.create_task(_keep_open(upload, door))
        try:
            await _receive(request, upload, door)
        except BadUpload as error:
            if not any(outcome.failure_reason == 0 for outcome in upload.outcomes):
                raise HTTPException(400, str(error)) from error
            upload.outcomes.append(
                Outcome(sop_class_uid="", sop_instance_uid="", failure_reason=StoreStatus.CANNOT_UNDERSTAND)
            )
        finally:
            kept_open.cancel()
            await to_thread.run_sync(upload.end, limiter=door.limiter)
    if not upload.outcomes:
        raise HTTPException(400, "The request has no instances.")
    return _answer(base_address(request), upload.outcomes)


async def _receive(request: Request, upload: Upload, door: FrontDoor) -> None:
    waiting = bytearray()
    async for chunk in request.stream():
        waiting += chunk
        if len(waiting) >= _FED_AT_ONCE_BYTES:
            await to_thread.run_sync(upload.feed, bytes(waiting), limiter=door.limiter)
            waiting.clear()
    await to_thread.run_sync(upload.feed, bytes(waiting), limiter=door.limiter)
    upload.require_whole()


async def _keep_open(upload: Upload, door: FrontDoor) -> None:
    """The listener closes studies that are quiet, and does not see this request."""
    while True:
        await asyncio.sleep(_STUDIES_KEPT_OPEN_EVERY_S)
        try:
            await to_thread.run_sync(upload.keep_open, limiter=door.limiter)
        except sa.exc.SQLAlchemyError as error:
            emit(Event.COMPLETION_FAILED, level="error", error=type(error).__name__)


def _answer(base: str, outcomes: list[Outcome]) -> Response:
    """The Store Instances Response Module (PS3.18 Table 10.5.3-1)."""
    kept = [outcome for outcome in outcomes if not outcome.failure_reason]
    failed = [outcome for outcome in outcomes if outcome.failure_reason]
    answer = Dataset()
    studies = {outcome.study_instance_uid for outcome in kept}
    if len(studies) == 1:
        answer.RetrieveURL = f"{base}/studies/{studies.pop()}"
    if kept:
        answer.ReferencedSOPSequence = [_kept(base, outcome) for outcome in kept]
    if named := [outcome for outcome in failed if outcome.sop_instance_uid]:
        answer.FailedSOPSequence = [_failed(outcome) for outcome in named]
    if unnamed := [outcome for outcome in failed if not outcome.sop_instance_uid]:
        answer.OtherFailuresSequence = [_failed(outcome) for outcome in unnamed]
    status, headers = _status(kept, failed)
    return JSONResponse(answer.to_json_dict(), status, headers, media_type=JSON)


def _status(kept: list[Outcome], failed: list[Outcome]) -> tuple[int, Mapping[str, str]]:
    if kept:
        return (202 if failed else 200), {}
    if {outcome.failure_reason for outcome in failed} == {StoreStatus.REFUSED_OUT_OF_RESOURCES}:
        return 503, {"Retry-After": str(_RETRY_AFTER_S)}
    return 409, {}


def _kept(base: str, outcome: Outcome) -> Dataset:
    item = _identified(outcome)
    item.RetrieveURL = (
        f"{base}/studies/{outcome.study_instance_uid}/series/{outcome.series_instance_uid}"
        f"/instances/{outcome.sop_instance_uid}"
    )
    return item


def _failed(outcome: Outcome) -> Dataset:
    item = _identified(outcome)
    item.FailureReason = outcome.failure_reason
    return item


def _identified(outcome: Outcome) -> Dataset:
    item = Dataset()
    if outcome.sop_instance_uid:
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = outcome.sop_class_uid, outcome.sop_instance_uid
    return item
