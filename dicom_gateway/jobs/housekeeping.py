"""What a worker does beside its jobs: beat, take over from dead workers, park what kills workers, forget old jobs."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from dicom_gateway.events import Event, emit
from dicom_gateway.jobs import engine as job_engine
from dicom_gateway.jobs.queue import ANALYSE, JobQueue, parse_job_id
from dicom_gateway.store import ledger
from dicom_gateway.store.schema import StudyState, study, worker_heartbeat

BEAT_S = 5.0
DEAD_AFTER_S = 30.0
KEEP_FINISHED = timedelta(days=14)
_FORGET_AT_ONCE = 1000
WORKER_DIED = "the worker died each time it took this job"
DATABASE_FAILED = "the job could not be recorded in the database"

OnParked = Callable[[sa.Connection, str, int, str | None], None]
"""Hears, in the transaction that parks it, of a revision's analysis (None) or of its delivery to a destination."""


@dataclass(slots=True)
class Housekeeper:
    """The state of one worker's housekeeping; `judge_after` (monotonic s) spares others after a start or an outage."""

    engine: sa.Engine
    jobs: JobQueue
    executor: str
    judge_after: float
    on_parked: OnParked

    def run(self, stop: threading.Event) -> None:
        """Keep house every BEAT_S until `stop` is set."""
        while not stop.wait(BEAT_S):
            try:
                self.once()
            except Exception as error:  # noqa: BLE001  # edge: without beats this worker would be called dead
                # Mostly the database was away, for the others too: let everybody beat before anybody is judged.
                self.judge_after = time.monotonic() + DEAD_AFTER_S
                emit(Event.HOUSEKEEPING_FAILED, level="warning", error=type(error).__name__)

    def once(self) -> None:
        """One round."""
        beat(self.engine, self.executor)
        if time.monotonic() >= self.judge_after:
            dead = dead_executors(self.engine)
            if dead and (recovered := job_engine.take_over(dead)):
                emit(Event.JOBS_RECOVERED, count=recovered, executors=len(dead))
        park_given_up(self.engine, self.jobs, self.on_parked)
        self.jobs.forget(self.jobs.finished_before((datetime.now(UTC) - KEEP_FINISHED).isoformat(), _FORGET_AT_ONCE))


def beat(engine: sa.Engine, executor: str) -> None:
    """Say that this executor is alive, by the database's clock."""
    now = _now(engine)
    mine = worker_heartbeat.c.executor_id == executor
    with engine.begin() as connection:
        if connection.execute(sa.update(worker_heartbeat).where(mine).values(seen=now)).rowcount == 0:
            connection.execute(sa.insert(worker_heartbeat).values(executor_id=executor, seen=now))


def stop_beating(engine: sa.Engine, executor: str) -> None:
    """Let others take over at once what this executor leaves unfinished."""
    with engine.begin() as connection:
        connection.execute(sa.delete(worker_heartbeat).where(worker_heartbeat.c.executor_id == executor))


def dead_executors(engine: sa.Engine) -> list[str]:
    """Executors that hold running jobs and have not been heard of for DEAD_AFTER_S."""
    schema = None if engine.dialect.name == "sqlite" else "dbos"
    jobs = sa.table("workflow_status", sa.column("executor_id"), sa.column("status"), schema=schema)
    query = (
        sa.select(jobs.c.executor_id)
        .distinct()
        .select_from(jobs.outerjoin(worker_heartbeat, worker_heartbeat.c.executor_id == jobs.c.executor_id))
        .where(
            jobs.c.status == "PENDING",
            sa.or_(worker_heartbeat.c.seen.is_(None), worker_heartbeat.c.seen < _now(engine) - DEAD_AFTER_S),
        )
    )
    with engine.connect() as connection:
        return [row[0] for row in connection.execute(query)]


def newest_beat_age_s(engine: sa.Engine) -> float | None:
    """Seconds since any worker was heard of; None when there never was one."""
    query = sa.select(_now(engine) - sa.func.max(worker_heartbeat.c.seen))
    with engine.connect() as connection:
        age_s = connection.execute(query).scalar()
    return None if age_s is None else float(age_s)


def park_given_up(engine: sa.Engine, jobs: JobQueue, on_parked: OnParked) -> None:
    """Make jobs that are not tried any more visible, as failed studies and parked deliveries."""
    for job in jobs.given_up():
        uid, revision, run_or_destination = parse_job_id(job.job_id)
        destination = None if job.kind == ANALYSE else run_or_destination
        reason = WORKER_DIED if job.killed_its_worker else DATABASE_FAILED
        with engine.begin() as connection:
            if destination is None:
                since = (StudyState.QUEUED, StudyState.ANALYSING)
                # A worker that ended itself has said why.
                told = sa.select(study.c.error).where(study.c.study_instance_uid == uid, study.c.revision == revision)
                reason = connection.scalar(told) or reason
                parked = ledger.change_study(connection, uid, revision, to=StudyState.FAILED, since=since, error=reason)
            else:
                parked = ledger.park_unsent(connection, uid, revision, destination, now=time.time(), reason=reason)
            if parked:
                on_parked(connection, uid, revision, destination)
        emit(Event.JOB_GIVEN_UP, level="error", study_instance_uid=uid, job=job.job_id, reason=reason)
        jobs.forget([job.job_id])


def _now(engine: sa.Engine) -> sa.ColumnElement[float]:
    if engine.dialect.name == "sqlite":
        return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Float)
    return sa.literal_column("extract(epoch from clock_timestamp())::float8", sa.Float)
