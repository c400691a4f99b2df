"""Who asked for what of whom: a line in the log for each request that shows or changes something of patients."""

import time
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicom_gateway.events import Event, emit
from dicom_gateway.web.access import logged_in
from imaging.uids import is_safe_uid

# A page asks for its pictures, a viewer for each image: the same again within this time is one look.
_ONE_LOOK_S = 60.0
_MOST_LOOKS = 10_000
_SHOWS_NO_PATIENT = {
    "get_health",
    "get_report_schema",
    "openapi",
    "api_page",
    "evidence_page",
    "system_page",
}
_READS = ("GET", "HEAD", "OPTIONS")


class Audited:
    """ASGI middleware, behind the one that asks who it is.

    A line has the name of the login (None where nobody is asked for one), the address, the name of the operation, the
    Study Instance UID where the path has one, and the status of the answer, None where the client left before there
    was one; of queries not what was sought.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._looks: dict[tuple[object, ...], float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status: int | None = 500

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except ClientDisconnect:
            status = None
            raise
        finally:
            # Of a path that nobody serves there is none, and files of the pages have no name.
            action = getattr(scope.get("endpoint"), "__name__", None)
            if action is not None and action not in _SHOWS_NO_PATIENT:
                self._note(scope, action, status)

    def _note(self, scope: Scope, action: str, status: int | None) -> None:
        user = logged_in(Request(scope))
        uid = scope["path_params"].get("uid") or scope["path_params"].get("study")
        about: dict[str, Any] = {
            "user": user.name if user is not None else None,
            "address": scope["client"][0] if scope.get("client") else None,
            "action": action,
            "study_instance_uid": uid if uid and is_safe_uid(uid) else None,
            "status": status,
        }
        if scope["method"] not in _READS:
            emit(Event.WEB_CHANGE_ASKED_FOR, **about)
        elif self._is_new(tuple(about.values())):
            emit(Event.WEB_LOOKED_AT, **about)

    def _is_new(self, look: tuple[object, ...]) -> bool:
        now = time.monotonic()
        if len(self._looks) >= _MOST_LOOKS:
            self._looks = {other: until for other, until in self._looks.items() if until > now}
        is_new = self._looks.get(look, now) <= now
        if is_new and len(self._looks) < _MOST_LOOKS:
            self._looks[look] = now + _ONE_LOOK_S
        return is_new
