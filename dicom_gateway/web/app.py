"""The web application: pages for people, JSON under /api, nothing from any other host."""

from http import HTTPStatus
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from dicom_gateway.errors import NotFound
from dicom_gateway.settings import Settings
from dicom_gateway.store.schema import create_tables, open_database
from dicom_gateway.web import api, dicomweb, pages
from dicom_gateway.web.rendering import render_problem, software_version
from dicom_gateway.web.security import HEADERS, LOOPBACK_HOSTS, SecureHeaders
from dicom_gateway.web.site import Site

_STATIC = Path(__file__).parent / "static"


def create_app(settings: Settings) -> FastAPI:
    """The application on the database and the results of `settings`; both are made when missing."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
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
    app.include_router(api.router)
    app.include_router(dicomweb.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    if settings.web_host in LOOPBACK_HOSTS:
        # Against DNS rebinding: a foreign page cannot read us under a name of its own.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK_HOSTS))
    app.add_middleware(SecureHeaders)
    app.add_exception_handler(NotFound, _not_found)
    app.add_exception_handler(RequestValidationError, _unprocessable)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _server_error)
    return app


def _not_found(request: Request, error: Exception) -> Response:
    return _problem(request, HTTPStatus.NOT_FOUND, str(error) or NotFound.__doc__ or "")


def _unprocessable(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = (f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
    return _problem(request, HTTPStatus(422), "; ".join(wrong))


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _problem(request, HTTPStatus(error.status_code), error.detail)


def _server_error(request: Request, error: Exception) -> Response:
    answer = _problem(request, HTTPStatus.INTERNAL_SERVER_ERROR, "The service met an error; its log says which.")
    answer.headers.update(HEADERS)  # this handler stands outside of every middleware
    return answer


def _problem(request: Request, status: HTTPStatus, detail: str) -> Response:
    if request.url.path.startswith(("/api/", f"{dicomweb.PREFIX}/")):
        return JSONResponse({"detail": detail}, status)
    return render_problem(request, status, detail)
