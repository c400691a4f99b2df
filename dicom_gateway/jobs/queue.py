"""Jobs as their senders see them: names, priorities and how one is put in the queue of the shared database.

The engine is DBOS Transact; only this package knows. Jobs carry small JSON values, never pickles: who can write
to the database must not be able to run code.
"""

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from dbos import DBOSClient, Serializer

from dicom_gateway.store.ledger import ROUTINE_PRIORITY

APPLICATION = "onescan"
# Constant: DBOS strands waiting jobs of another version. Change only with an incompatible change of a job's steps.
APPLICATION_VERSION = "pipeline-1"
STAT, ROUTINE, BATCH = 1, ROUTINE_PRIORITY, 1000
STUDIES_QUEUE = "studies"
ANALYSE, DELIVER = "analyse", "deliver"
_KILLED_ITS_WORKER = "MAX_RECOVERY_ATTEMPTS_EXCEEDED"


class JobError(Exception):
    """An error of a job as the database keeps it: the class only, for messages may quote patient data."""


class JsonSerializer(Serializer):
    """Arguments and results of jobs as JSON."""

    def serialize(self, data: Any) -> str:
        return json.dumps(data, default=_error_class)

    def deserialize(cls, serialized_data: str) -> Any:
        return json.loads(serialized_data, object_hook=_to_error)

    def name(self) -> str:
        return "onescan_json"


@dataclass(frozen=True, slots=True)
class GivenUpJob:
    """A job without an end: it took its worker with it each time, or the database failed it for too long."""

    job_id: str
    kind: str
    killed_its_worker: bool


class JobQueue:
    """Puts jobs into the queues; runs none. An id that is there already is left alone."""

    def __init__(self, engine: sa.Engine) -> None:
        self._client = DBOSClient(
            system_database_engine=engine, serializer=JsonSerializer(), application_name=APPLICATION
        )

    def submit_analysis(
        self,
        connection: sa.Connection,
        study_instance_uid: str,
        revision: int,
        *,
        created: float,
        priority: int,
        run: int = 0,
    ) -> str:
        """Queue the analysis of a study revision with the caller's transaction; the job's id.

        `created` (UTC epoch s) is the time the report will carry, whenever and however often it is made.
        """
        job_id = analysis_id(study_instance_uid, revision, run)
        self._client.enqueue_in_transaction(
            connection,
            {
                "workflow_name": ANALYSE,
                "queue_name": STUDIES_QUEUE,
                "workflow_id": job_id,
                "priority": priority,
                "app_version": APPLICATION_VERSION,
            },
            study_instance_uid,
            revision,
            created,
        )
        return job_id

    def submit_delivery(
        self,
        connection: sa.Connection,
        study_instance_uid: str,
        revision: int,
        destination: str,
        *,
        attempt: int,
        attempts_left: int,
        delay_s: float = 0.0,
    ) -> str:
        """Queue one attempt (1, 2, ...) to deliver a report, due in `delay_s` seconds; the job's id."""
        job_id = f"deliver:{study_instance_uid}:r{revision}:{destination}:{attempt}"
        options: Any = {
            "workflow_name": DELIVER,
            "queue_name": delivery_queue(destination),
            "workflow_id": job_id,
            "priority": ROUTINE,
            "app_version": APPLICATION_VERSION,
        }
        if delay_s > 0:
            options["delay_seconds"] = delay_s
        self._client.enqueue_in_transaction(
            connection, options, study_instance_uid, revision, destination, attempt, attempts_left
        )
        return job_id

    def given_up(self) -> tuple[GivenUpJob, ...]:
        """Jobs that are not tried any more and did not come to an end of their own."""
        rows = self._client.list_workflows(status=[_KILLED_ITS_WORKER, "ERROR"], load_input=False, load_output=False)
        return tuple(GivenUpJob(row.workflow_id, row.name, row.status == _KILLED_ITS_WORKER) for row in rows)

    def forget(self, job_ids: list[str]) -> None:
        """Delete the records of finished or given up jobs."""
        if job_ids:
            self._client.delete_workflows(job_ids)

    def finished_before(self, when: str, limit: int) -> list[str]:
        """Ids of jobs that ended before `when` (ISO 8601), the oldest first."""
        rows = self._client.list_workflows(
            status=["SUCCESS", "CANCELLED"],
            completed_before=when,
            limit=limit,
            load_input=False,
            load_output=False,
        )
        return [row.workflow_id for row in rows]

    def waiting(self) -> dict[str, int]:
        """Number of jobs that wait or run, by queue."""
        numbers: dict[str, int] = {}
        for row in self._client.list_queued_workflows(load_input=False):
            numbers[row.queue_name or "-"] = numbers.get(row.queue_name or "-", 0) + 1
        return numbers

    def close(self) -> None:
        """Let go of the client; the database engine stays the caller's."""
        self._client.destroy()


def analysis_id(study_instance_uid: str, revision: int, run: int) -> str:
    """Id of an analysis job; `run` tells replays apart."""
    return f"study:{study_instance_uid}:r{revision}:{run}"


def parse_job_id(job_id: str) -> tuple[str, int, str]:
    """Study Instance UID, revision, and run or destination of a job's id. Raises ValueError for another id."""
    parts = job_id.split(":")
    if len(parts) < 4 or parts[0] not in ("study", "deliver") or not parts[2].startswith("r"):
        raise ValueError("not the id of a job of ours")
    return parts[1], int(parts[2][1:]), parts[3]


def delivery_queue(destination: str) -> str:
    """Name of a destination's queue: each has its own, so that one that is down delays no other."""
    return f"deliver-{destination}"


def _error_class(value: Any) -> dict[str, str]:
    if isinstance(value, BaseException):
        return {"__error__": type(value).__name__}
    raise TypeError(f"a job must not carry a {type(value).__name__}")


def _to_error(value: dict[str, Any]) -> Any:
    return JobError(value["__error__"]) if set(value) == {"__error__"} else value
