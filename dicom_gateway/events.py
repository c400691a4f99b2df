"""The catalogue of log events, and how they are written: one JSON object a line on standard error.

An event carries UIDs, AE titles, counts and classes of errors; never names, patient ids or free text of headers.
"""

import enum
import logging
import sys
import warnings
from typing import Any, TextIO

import structlog


class Event(enum.StrEnum):
    """Every event OneScan logs."""

    SERVICE_READY = "service_ready"
    SERVICE_STOPPING = "service_stopping"
    PROCESS_DIED = "process_died"
    LISTENER_READY = "listener_ready"
    NOBODY_MAY_SEND = "nobody_may_send"
    ASSOCIATION_REFUSED = "association_refused"
    INSTANCE_REFUSED = "instance_refused"
    INSTANCE_HANDLER_FAILED = "instance_handler_failed"
    STORAGE_FULL = "storage_full"
    INDEX_RECONCILED = "index_reconciled"
    FILE_NOT_INDEXABLE = "file_not_indexable"
    FILE_MISSING = "file_missing"
    STUDY_REOPENED = "study_reopened"
    STUDY_COMPLETE = "study_complete"
    STUDY_EXCLUDED = "study_excluded"
    COMPLETION_FAILED = "completion_failed"
    WORKER_READY = "worker_ready"
    ANALYSIS_STARTED = "analysis_started"
    ANALYSIS_SUPERSEDED = "analysis_superseded"
    ANALYSIS_FINISHED = "analysis_finished"
    ANALYSIS_FAILED = "analysis_failed"
    DELIVERED = "delivered"
    DELIVERY_DELAYED = "delivery_delayed"
    DELIVERY_PARKED = "delivery_parked"
    DELIVERY_SUPERSEDED = "delivery_superseded"
    HOUSEKEEPING_FAILED = "housekeeping_failed"
    JOBS_RECOVERED = "jobs_recovered"
    JOB_GIVEN_UP = "job_given_up"
    REPLAYED = "replayed"


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
    for name in ("pynetdicom", "pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", module=name)


def emit(event: Event, /, *, level: str = "info", **values: Any) -> None:
    """Log one event of the catalogue."""
    getattr(structlog.get_logger(), level)(event.value, **values)
