"""The web application: pages for people, JSON under /api, nothing from any other host."""

from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import Match

from dicom_gateway.errors import NotFound
from dicom_gateway.settings import Settings
from dicom_gateway.store.schema import create_tables, open_database
from dicom_gateway.users import require_guarded
from dicom_gateway.web import api, dicomweb, dicomweb_store, pages
from dicom_gateway.web.access import RequireUser
from dicom_gateway.web.answers import Problem
from dicom_gateway.web.audit import Audited
from dicom_gateway.web.rendering import render_problem, software_version
from dicom_gateway.web.security import LOOPBACK_HOSTS, BoundedBodies, OwnPagesOnly, SecureAnswers
from dicom_gateway.web.site import Site

_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
_NOT_LET_IN: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "Without name and password, or with wrong ones"},
    429: {"model": Problem, "description": "Too many wrong passwords from this address"},
}
_STATIC = Path(__file__).parent / "static"


class _AskedByRequireUser(HTTPBasic):
    """For the document alone: FastAPI's own check refuses passwords that are not ASCII."""

    async def __call__(self, request: HTTPConnection) -> None:
        return None


def create_app(settings: Settings) -> FastAPI:
    """The application on the database and the results of `settings`; both are made when missing.

    Raises ConfigurationError where other machines would get in without being asked who they are.
    """
    require_guarded(settings)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = open_database(settings.database)
    create_tables(engine)
    app = FastAPI(
        title="OneScan",
        version=software_version(),
        summary="Studies, reports and deliveries of this OneScan. Research use only, not a medical device.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # FastAPI's documentation pages load their scripts from a CDN
        redoc_url=None,
    )
    app.state.site = Site(settings, engine)
    app.state.front_door = dicomweb_store.open_front_door(settings)
    # The check itself is RequireUser's, which nothing gets past; this says so in the OpenAPI document.
    documented: dict[str, Any] = {}
    if settings.web_users_file:
        documented = {
            "dependencies": [Security(_AskedByRequireUser(scheme_name="HTTPBasic"))],
            "responses": _NOT_LET_IN,
        }
    app.include_router(api.router, **documented)
    app.include_router(dicomweb.router, **documented)
    app.include_router(dicomweb_store.router, **documented)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    app.add_exception_handler(NotFound, _not_found)
    app.add_exception_handler(RequestValidationError, _unprocessable)
    app.add_exception_handler(HTTPException, _http_error)
    # The last one added sees a request first.
    app.add_middleware(BoundedBodies, uploads=(f"{dicomweb.PREFIX}/studies",) if settings.stow_networks else ())
    app.add_middleware(OwnPagesOnly)
    app.add_middleware(Audited)
    if settings.web_users_file:
        app.add_middleware(RequireUser, users_file=settings.web_users_file)
    else:
        # Against DNS rebinding: a foreign page cannot read us under a name of its own.
        names = [*LOOPBACK_HOSTS, *settings.web_host_names]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)
    app.add_middleware(SecureAnswers, failed=_server_error)
    return app


def _not_found(request: Request, error: Exception) -> Response:
    return _problem(request, HTTPStatus.NOT_FOUND, str(error) or NotFound.__doc__ or "")


def _unprocessable(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = (f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
    return _problem(request, HTTPStatus(422), "; ".join(wrong))


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = _problem(request, HTTPStatus(error.status_code), error.detail)
    answer.headers.update(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        answer.headers["Allow"] = ", ".join(_allowed(request) or ("GET", "HEAD"))
    return answer


def _allowed(request: Request) -> list[str]:
    """Methods that some route takes for this path; the router itself names those of the first one alone."""
    asked = [{**request.scope, "method": method} for method in _METHODS]
    routes = request.app.routes
    return [scope["method"] for scope in asked if any(r.matches(scope)[0] is Match.FULL for r in routes)]


def _server_error(request: Request) -> Response:
    return _problem(request, HTTPStatus.INTERNAL_SERVER_ERROR, "The service met an error; its log says which.")


def _problem(request: Request, status: HTTPStatus, detail: str) -> Response:
    if request.url.path.startswith(("/api/", f"{dicomweb.PREFIX}/")):
        return JSONResponse({"detail": detail}, status)
    return render_problem(request, status, detail)
