"""What every request and every answer is held against: headers, bodies, same origin for changes, UIDs."""

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Path, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicom_gateway.events import Event, emit, frames
from imaging.uids import is_safe_uid

CUSTOM_HEADER = "X-OneScan-Request"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
# No request of ours has a body that matters.
MAXIMUM_BODY_BYTES = 65_536
BODY_GRACE_S = 30.0
SLOWEST_BODY_BYTES_PER_S = 16_384
# What is_safe_uid takes, for the OpenAPI document.
UID_SCHEMA: dict[str, Any] = {"pattern": r"^[0-9]+(\.[0-9]+)*$", "minLength": 1, "maxLength": 64}
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

# Referrer-Policy is same-origin and not no-referrer: with the latter browsers send "Origin: null" with our own forms
# (Fetch standard, "append a request Origin header").
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class SecureAnswers:
    """ASGI middleware: the headers above on every answer, and `failed` as the answer to an error of ours.

    Patient data are kept by no cache. Of an error only its class and place are logged: its message may quote a header.
    """

    def __init__(self, app: ASGIApp, failed: Callable[[Request], Response]) -> None:
        self._app = app
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001  # edge: the client always gets an answer
            emit(Event.WEB_REQUEST_FAILED, level="error", error=type(error).__name__, at=frames(error))
            if not started and scope["type"] == "http":
                await self._failed(Request(scope))(scope, receive, send_with_headers)


class BoundedBodies:
    """ASGI middleware: a request body has at most MAXIMUM_BODY_BYTES, and comes steadily.

    Below `uploads` (paths) the size is left to the handler.
    """

    def __init__(self, app: ASGIApp, uploads: tuple[str, ...] = ()) -> None:
        self._app = app
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limit_bytes = None if scope["path"].startswith(self._uploads) else MAXIMUM_BODY_BYTES
        announced = Headers(scope=scope).get("content-length", "0")
        if limit_bytes is not None and announced.isdecimal() and int(announced[:18]) > limit_bytes:
            answer = JSONResponse({"detail": f"A request has at most {limit_bytes} bytes."}, 413)
            return await answer(scope, receive, send)
        received, waited_s, whole = 0, 0.0, False

        async def receive_bounded() -> Message:
            nonlocal received, waited_s, whole
            if whole:
                return await receive()  # the end of the connection, whenever that is
            # Only waiting counts: that we are slow to take what has come is not the client's fault.
            began = time.monotonic()
            try:
                patience_s = BODY_GRACE_S + received / SLOWEST_BODY_BYTES_PER_S - waited_s
                message = await asyncio.wait_for(receive(), patience_s)
            except TimeoutError:
                raise HTTPException(408, "The request came too slowly.") from None
            waited_s += time.monotonic() - began
            received += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if limit_bytes is not None and received > limit_bytes:
                raise HTTPException(413, f"A request has at most {limit_bytes} bytes.")
            return message

        await self._app(scope, receive_bounded, send)


class OwnPagesOnly:
    """ASGI middleware: a browser changes something only from a page of ours, whatever the path.

    The name and password that a browser remembers go with requests of foreign pages, too. Programs send neither header.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _SAFE_METHODS and _is_foreign(Headers(scope=scope)):
            answer = JSONResponse({"detail": "This request comes from a foreign page."}, 403)
            return await answer(scope, receive, send)
        await self._app(scope, receive, send)


def _is_foreign(headers: Headers) -> bool:
    """Whether a page of another origin made the request. Browsers send Sec-Fetch-Site to HTTPS and loopback only."""
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    if site is not None:
        return site not in ("same-origin", "none")
    return origin is not None and origin.partition("://")[2] != headers.get("Host")


def require_same_origin(request: Request) -> None:
    """Dependency of every request that changes something: from our own pages, or with the custom header.

    A foreign page can neither set the header without a CORS preflight, which is never granted, nor forge Origin and
    Sec-Fetch-Site. Raises HTTPException 403.
    """
    if request.headers.get(CUSTOM_HEADER):
        return
    told = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if any(told) and told[0] != "none" and not _is_foreign(request.headers):
        return
    raise HTTPException(403, f"This request must come from a OneScan page or carry the header {CUSTOM_HEADER}.")


def checked_uid(uid: Annotated[str, Path(description="Study Instance UID.", json_schema_extra=UID_SCHEMA)]) -> str:
    """Dependency: a UID of the path that may name a row and a folder. Raises HTTPException 422."""
    if not is_safe_uid(uid):
        raise HTTPException(422, "This is not a DICOM UID.")
    return uid


StudyUid = Annotated[str, Depends(checked_uid)]
Revision = Annotated[int, Path(ge=1, le=1_000_000, description="Revision of the report, from 1.")]
DestinationName = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9_-]{1,32}$", description="Name of the destination in the settings.")
]
