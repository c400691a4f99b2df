"""The HTTP server: uvicorn, whose peers do not have for ever to say what they want."""

import asyncio

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from dicom_gateway.settings import Settings

REQUEST_HEAD_S = 10.0
MAXIMUM_CONNECTIONS = 500


class _PromptProtocol(H11Protocol):
    """Ends a connection on which REQUEST_HEAD_S after its start, or after the last answer, no request is whole.

    uvicorn itself waits without end for the rest of a request's head that comes byte by byte.
    """

    _head_is_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head_is_due is not None:
            self._head_is_due.cancel()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        if self._head_is_due is not None:
            self._head_is_due.cancel()
        self._head_is_due = self.loop.call_later(REQUEST_HEAD_S, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def web_server(app: FastAPI, settings: Settings, *, log_level: str = "warning") -> uvicorn.Server:
    """The server of `app`, not started."""
    config = uvicorn.Config(
        app,
        host=settings.web_host,
        port=settings.web_port,
        http=_PromptProtocol,
        ws="none",
        lifespan="off",
        log_level=log_level,
        access_log=False,
        server_header=False,
        limit_concurrency=MAXIMUM_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)
