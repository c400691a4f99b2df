"""What every request and every answer is held against: headers, same origin for changes, UIDs."""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Path, Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imaging.uids import is_safe_uid

CUSTOM_HEADER = "X-OneScan-Request"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")

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


class SecureHeaders:
    """ASGI middleware: the headers above on every answer; patient data are kept by no cache."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)


def require_same_origin(request: Request) -> None:
    """Dependency of every request that changes something: from our own pages, or with the custom header.

    A foreign page can neither set the header without a CORS preflight, which is never granted, nor forge Origin and
    Sec-Fetch-Site. Raises HTTPException 403.
    """
    if request.headers.get(CUSTOM_HEADER):
        return
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    # Browsers send Sec-Fetch-Site to HTTPS and loopback addresses only.
    if site == "same-origin" or (site is None and origin and urlsplit(origin).netloc == request.headers.get("Host")):
        return
    raise HTTPException(403, f"This request must come from a OneScan page or carry the header {CUSTOM_HEADER}.")


def checked_uid(uid: Annotated[str, Path(description="Study Instance UID: digits and dots, at most 64.")]) -> str:
    """Dependency: a UID of the path that may name a row and a folder. Raises HTTPException 422."""
    if not is_safe_uid(uid):
        raise HTTPException(422, "This is not a DICOM UID.")
    return uid


StudyUid = Annotated[str, Depends(checked_uid)]
Revision = Annotated[int, Path(ge=1, le=1_000_000, description="Revision of the report, from 1.")]
DestinationName = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9_-]{1,32}$", description="Name of the destination in the settings.")
]
