"""Nobody gets to the pages without a name and password of the users file, asked for by HTTP Basic (RFC 7617)."""

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dicom_gateway.errors import ConfigurationError
from dicom_gateway.events import Event, emit
from dicom_gateway.users import User, hashed, matches, read_users
from dicom_gateway.wrong_attempts import WrongAttempts

CHALLENGE = 'Basic realm="OneScan", charset="UTF-8"'
_REMEMBERED_S = 600.0
_MOST_WAITING = 50
_LOGGED_IN = "logged_in"


@dataclass(slots=True)
class _Users:
    """The users file, read again when it changes; one that cannot be read lets nobody in."""

    path: Path
    _read_as: tuple[int, int, int] | None = None
    _users: dict[str, User] = field(default_factory=dict)

    def by_name(self) -> dict[str, User]:
        try:
            status = self.path.stat()
            now = (status.st_mtime_ns, status.st_size, status.st_ino)
            if now != self._read_as:
                self._users, self._read_as = read_users(self.path), now
        except (OSError, ConfigurationError):
            if self._read_as is not None or self._users:
                emit(Event.WEB_USERS_UNREADABLE, level="error", setting="web_users_file")
            self._users, self._read_as = {}, None
        return self._users


class RequireUser:
    """ASGI middleware: every request carries name and password of the users file; nothing behind it runs without.

    What is behind it is told by `logged_in`. Hashes are computed one at a time in a thread of their own. What was right
    is remembered by a keyed digest for ten minutes, or until the file has another hash for it.
    """

    def __init__(self, app: ASGIApp, users_file: Path) -> None:
        self._app = app
        self._users = _Users(users_file)
        self._wrong = WrongAttempts()
        self._key = secrets.token_bytes(32)
        self._remembered: dict[bytes, tuple[str, bytes, float]] = {}
        self._one_at_a_time = CapacityLimiter(1)
        self._nobody = User("", hashed(secrets.token_hex(16)), vouches_as=None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        authorization = Headers(scope=scope).get("authorization")
        address = scope["client"][0] if scope.get("client") else ""
        user = await self._user(authorization, address, scope["path"])
        if isinstance(user, Response):
            return await user(scope, receive, send)
        scope.setdefault("state", {})[_LOGGED_IN] = user
        await self._app(scope, receive, send)

    async def _user(self, authorization: str | None, address: str, path: str) -> User | Response:
        """Whose name and password these are, or the answer that says they are nobody's."""
        if authorization is None:
            return _refuse(path, HTTPStatus.UNAUTHORIZED, {"WWW-Authenticate": CHALLENGE})
        users = self._users.by_name()
        given = hmac.digest(self._key, authorization.encode("latin-1"), hashlib.sha256)
        name, password_hash, until = self._remembered.get(given, ("", b"", 0.0))
        if name in users and users[name].password_hash == password_hash and time.monotonic() < until:
            return users[name]
        wait_s = self._wrong.wait_s(address, time.monotonic())
        if wait_s or self._one_at_a_time.statistics().tasks_waiting >= _MOST_WAITING:
            return _refuse(path, HTTPStatus.TOO_MANY_REQUESTS, {"Retry-After": str(wait_s or 1)})
        name, password = _credentials(authorization)
        # For a name that nobody has the answer takes as long as for a wrong password.
        user = users.get(name) or next(iter(users.values()), self._nobody)
        right = await to_thread.run_sync(matches, password, user.password_hash, limiter=self._one_at_a_time)
        if right and name in users:
            self._remembered = {k: v for k, v in self._remembered.items() if v[2] > time.monotonic()}
            self._remembered[given] = (name, user.password_hash, time.monotonic() + _REMEMBERED_S)
            emit(Event.WEB_LOGIN_ACCEPTED, user=name, address=address)
            return user
        self._wrong.add(address, time.monotonic())
        emit(Event.WEB_LOGIN_REFUSED, level="warning", address=address)
        return _refuse(path, HTTPStatus.UNAUTHORIZED, {"WWW-Authenticate": CHALLENGE})


def logged_in(request: Request) -> User | None:
    """Who makes the request; None where no users file says who may."""
    user: User | None = getattr(request.state, _LOGGED_IN, None)
    return user


def _credentials(authorization: str) -> tuple[str, bytes]:
    """Name and password of the header; an empty pair where it is none."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True)
        name, _, password = decoded.partition(b":")
        return (name.decode(), password) if scheme.lower() == "basic" else ("", b"")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return "", b""


def _refuse(path: str, status: HTTPStatus, headers: dict[str, str]) -> Response:
    detail = "Name and password are needed." if status is HTTPStatus.UNAUTHORIZED else "Too many wrong attempts: wait."
    if path.startswith(("/api/", "/dicom-web/")):
        return JSONResponse({"detail": detail}, status, headers)
    return PlainTextResponse(detail, status, headers)
