"""The worker's side of the job engine: run jobs, survive being killed, hand over when told to stop."""

import os
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa
from dbos import DBOS

from dicom_gateway.jobs.queue import (
    ANALYSE,
    APPLICATION,
    APPLICATION_VERSION,
    DELIVER,
    STUDIES_QUEUE,
    JsonSerializer,
    delivery_queue,
)

EMBEDDED_EXECUTOR = "embedded"
_DELIVERIES_AT_ONCE = 2
_STUDY_POLL_S, _DELIVERY_POLL_S = 0.2, 0.5
# A study that took its worker with it this often is parked, not tried for ever (DBOS's default is 100).
_RECOVERIES_OF_ANALYSIS = 3
_RECOVERIES_OF_DELIVERY = 10
_DATABASE_ATTEMPTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a worker does: `analyse(study_instance_uid, revision, created)` and

    `deliver(study_instance_uid, revision, destination, attempt, attempts_left)`. Both may run again after a kill
    and must then come to the same end.
    """

    analyse: Callable[[str, int, float], None]
    deliver: Callable[[str, int, str, int, int], None]
    destinations: tuple[str, ...]
    concurrency: int


def prepare_jobs(url: str) -> None:
    """Create or update the engine's tables."""
    DBOS.migrate(url.replace("postgresql+psycopg://", "postgresql://"))


def executor_id(engine: sa.Engine) -> str:
    """Who we are to the engine.

    An embedded database has one worker, which takes up its own work at once when it starts again; with PostgreSQL
    each start is a worker of its own and the reaper of the others hands its work on.
    """
    if engine.dialect.name == "sqlite":
        return EMBEDDED_EXECUTOR
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def start_worker(engine: sa.Engine, url: str, executor: str, work: Work) -> None:
    """Begin to take jobs, in threads, until `drain`."""

    # The functions handle their own failures; what is left, and worth trying again soon, is the database.
    @DBOS.step(name="analyse_once", retries_allowed=True, max_attempts=_DATABASE_ATTEMPTS)
    def analyse_once(study_instance_uid: str, revision: int, created: float) -> None:
        work.analyse(study_instance_uid, revision, created)

    @DBOS.step(name="deliver_once", retries_allowed=True, max_attempts=_DATABASE_ATTEMPTS)
    def deliver_once(uid: str, revision: int, destination: str, attempt: int, attempts_left: int) -> None:
        work.deliver(uid, revision, destination, attempt, attempts_left)

    @DBOS.workflow(name=ANALYSE, max_recovery_attempts=_RECOVERIES_OF_ANALYSIS)
    def analyse(study_instance_uid: str, revision: int, created: float) -> None:
        analyse_once(study_instance_uid, revision, created)

    @DBOS.workflow(name=DELIVER, max_recovery_attempts=_RECOVERIES_OF_DELIVERY)
    def deliver(uid: str, revision: int, destination: str, attempt: int, attempts_left: int) -> None:
        deliver_once(uid, revision, destination, attempt, attempts_left)

    DBOS(
        config={
            "name": APPLICATION,
            "system_database_url": url.replace("postgresql+psycopg://", "postgresql://"),
            "system_database_engine": engine,
            "executor_id": executor,
            "application_version": APPLICATION_VERSION,
            "serializer": JsonSerializer(),
            "log_level": "ERROR",
        }
    )
    queues = {STUDIES_QUEUE: (work.concurrency, _STUDY_POLL_S)}
    queues |= {delivery_queue(name): (_DELIVERIES_AT_ONCE, _DELIVERY_POLL_S) for name in work.destinations}
    DBOS.listen_queues(list(queues))
    DBOS.launch()
    for name, (concurrency, poll_s) in queues.items():
        DBOS.register_queue(name, worker_concurrency=concurrency, polling_interval_sec=poll_s)


def take_over(executors: list[str]) -> int:
    """Give the running jobs of dead executors back to their queues; how many that were.

    DBOS's open part has no public call for this that is guarded by the executor id; pinned to dbos 3.4.
    """
    return len(DBOS._recover_pending_workflows(executors))


def drain(timeout_s: int) -> None:
    """Take no more jobs and wait up to `timeout_s` for those that run; the rest is resumed later."""
    DBOS.destroy(workflow_completion_timeout_sec=timeout_s)
