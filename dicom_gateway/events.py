"""The catalogue of log events, and how they are written: one JSON object a line on standard error.

An event carries UIDs, AE titles, names of users, counts and classes of errors; never what names a patient or says
anything about one.
"""

import enum
import logging
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any, TextIO

import structlog


class Event(enum.StrEnum):
    """Every event OneScan logs."""

    SETTINGS_LOADED = "settings_loaded"
    SERVICE_READY = "service_ready"
    SERVICE_STOPPING = "service_stopping"
    PROCESS_DIED = "process_died"
    LISTENER_READY = "listener_ready"
    NOBODY_MAY_SEND = "nobody_may_send"
    ASSOCIATION_REFUSED = "association_refused"
    ASSOCIATION_ABORTED = "association_aborted"
    CONNECTION_FAILED = "connection_failed"
    TLS_REFUSED = "tls_refused"
    TLS_RELOADED = "tls_reloaded"
    TLS_NOT_RELOADED = "tls_not_reloaded"
    INSTANCE_REFUSED = "instance_refused"
    INSTANCE_HANDLER_FAILED = "instance_handler_failed"
    STORAGE_FULL = "storage_full"
    COMMITMENT_TOLD = "commitment_told"
    COMMITMENT_DELAYED = "commitment_delayed"
    COMMITMENT_GIVEN_UP = "commitment_given_up"
    RESULTS_COMMITTED = "results_committed"
    RESULTS_NOT_COMMITTED = "results_not_committed"
    STEP_TOLD = "step_told"
    INDEX_RECONCILED = "index_reconciled"
    FILE_NOT_INDEXABLE = "file_not_indexable"
    FILE_MISSING = "file_missing"
    STORED_FILE_UNREADABLE = "stored_file_unreadable"
    STUDY_REOPENED = "study_reopened"
    PATIENTS_DIFFER = "patients_differ"
    STUDY_COMPLETE = "study_complete"
    STUDY_EXCLUDED = "study_excluded"
    STUDY_LACKS_IMAGES = "study_lacks_images"
    SOURCE_NOT_ANSWERING = "source_not_answering"
    COMPLETION_FAILED = "completion_failed"
    WORKER_READY = "worker_ready"
    EARLY_DECODING_FAILED = "early_decoding_failed"
    ANALYSIS_STARTED = "analysis_started"
    ANALYSIS_SUPERSEDED = "analysis_superseded"
    ANALYSIS_FINISHED = "analysis_finished"
    ANALYSIS_FAILED = "analysis_failed"
    ANALYSIS_OVERDUE = "analysis_overdue"
    REPORT_VERIFIED = "report_verified"
    DELIVERED = "delivered"
    DELIVERY_DELAYED = "delivery_delayed"
    DELIVERY_PARKED = "delivery_parked"
    DELIVERY_SUPERSEDED = "delivery_superseded"
    HOUSEKEEPING_FAILED = "housekeeping_failed"
    JOBS_RECOVERED = "jobs_recovered"
    JOB_GIVEN_UP = "job_given_up"
    REPLAYED = "replayed"
    UNCAUGHT_ERROR = "uncaught_error"
    WEB_REQUEST_FAILED = "web_request_failed"
    WEB_LOGIN_ACCEPTED = "web_login_accepted"
    WEB_LOGIN_REFUSED = "web_login_refused"
    WEB_LOOKED_AT = "web_looked_at"
    WEB_CHANGE_ASKED_FOR = "web_change_asked_for"
    WEB_USERS_UNREADABLE = "web_users_unreadable"


# Who did what, and who was refused: these are written whatever the level is, with logger = "onescan.audit".
AUDITED = frozenset(
    {
        Event.SETTINGS_LOADED,
        Event.ASSOCIATION_REFUSED,
        Event.TLS_REFUSED,
        Event.REPORT_VERIFIED,
        Event.REPLAYED,
        Event.WEB_LOGIN_ACCEPTED,
        Event.WEB_LOGIN_REFUSED,
        Event.WEB_LOOKED_AT,
        Event.WEB_CHANGE_ASKED_FOR,
    }
)
_FRAMES = 8
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(level: str, stream: TextIO | None = None, **bound: Any) -> None:
    """Write events of `level` and above as JSON lines to `stream` (standard error), each with `bound` in it."""
    structlog.configure(
        processors=[
            lambda _logger, _method, event: {**bound, **event},
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
    )
    # Their messages may quote data set values; what matters of them is an event of ours.
    for name in ("pynetdicom", "pydicom", "highdicom", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", module=name)


def tell_uncaught_errors() -> None:
    """From now on an error that nothing catches in this process is an event, without its message."""
    sys.excepthook = lambda _kind, error, _traceback: _uncaught(error)
    threading.excepthook = lambda failed: _uncaught(failed.exc_value)


def _uncaught(error: BaseException | None) -> None:
    if error is not None:
        emit(Event.UNCAUGHT_ERROR, level="error", error=type(error).__name__, at=frames(error))


def frames(error: BaseException) -> list[str]:
    """Where an error came from, "module.py:line" from the outermost frame in: what a log may say of it."""
    stack = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return [f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}" for frame in stack]


def emit(event: Event, /, *, level: str = "info", **values: Any) -> None:
    """Log one event of the catalogue."""
    logger = structlog.get_logger()
    if event in AUDITED:
        every_level = structlog.make_filtering_bound_logger(logging.INFO)
        logger = structlog.wrap_logger(None, wrapper_class=every_level).bind(logger="onescan.audit")
    getattr(logger, level)(event.value, **values)
