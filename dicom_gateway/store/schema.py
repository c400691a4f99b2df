"""The tables of the index and the database they live in: SQLite by default, PostgreSQL with the same code.

Times are UTC seconds since the epoch, paths are relative to the data folder. The job engine keeps its own
tables in the same database, so that a study's state and its job change in one transaction.
"""

import enum
import sqlite3
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()

_SQLITE_TIMEOUT_S = 30.0


class StudyState(enum.StrEnum):
    """RECEIVING -> QUEUED -> ANALYSING -> REPORTED, REFUSED or FAILED; a late instance: RECEIVING again.

    EXCLUDED instead of QUEUED: a rule of the site says that it is not analysed, unless a person asks for it.
    """

    RECEIVING = "receiving"
    EXCLUDED = "excluded"
    QUEUED = "queued"
    ANALYSING = "analysing"
    REPORTED = "reported"
    REFUSED = "refused"
    FAILED = "failed"


class DeliveryState(enum.StrEnum):
    """PENDING -> DELIVERED, or DELAYED between attempts, or PARKED until a person replays it.

    SUPERSEDED: it still waited when a newer revision's report was there, and is not sent any more.
    """

    PENDING = "pending"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    PARKED = "parked"
    SUPERSEDED = "superseded"


class CommitmentState(enum.StrEnum):
    """REQUESTED -> COMMITTED or NOT_COMMITTED, as the destination says."""

    REQUESTED = "requested"
    COMMITTED = "committed"
    NOT_COMMITTED = "not committed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectOutcome:
    """What became of one kind of object that a destination wants.

    `sent_as` is its own name, that of a fallback, or None where it was left out; `instances` is 0 where the study
    has nothing of the kind to say. `reason` says why it was not sent as itself.
    """

    name: str
    sent_as: str | None
    instances: int
    reason: str | None = None


study = sa.Table(
    "study",
    metadata,
    sa.Column("study_instance_uid", sa.String(64), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("calling_ae_title", sa.String(16), nullable=False),
    sa.Column("instance_count", sa.Integer, nullable=False),
    sa.Column("first_received", sa.Float, nullable=False),
    # Of a new image: one that is sent again changes nothing.
    sa.Column("last_received", sa.Float, nullable=False, index=True),
    # 0 while the association that sent the latest image has not ended, and where it broke.
    sa.Column("last_released", sa.Float, nullable=False),
    sa.Column("largest_association", sa.Integer, nullable=False),
    sa.Column("queued_at", sa.Float, nullable=True),
    sa.Column("patient_name", sa.Text, nullable=False),
    sa.Column("patient_id", sa.Text, nullable=False),
    sa.Column("study_date", sa.String(8), nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("accession_number", sa.Text, nullable=False),
    sa.Column("error", sa.Text, nullable=True),
)

# The rule that decided about a revision when it was complete; no row: none fitted.
applied_rule = sa.Table(
    "applied_rule",
    metadata,
    sa.Column("study_instance_uid", sa.ForeignKey("study.study_instance_uid"), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("rule", sa.String(32), nullable=False),
    # Names of the destinations of the report; null: all.
    sa.Column("destinations", sa.JSON(none_as_null=True), nullable=True),
)

instance = sa.Table(
    "instance",
    metadata,
    sa.Column("sop_instance_uid", sa.String(64), primary_key=True),
    sa.Column("series_instance_uid", sa.String(64), nullable=False),
    sa.Column("study_instance_uid", sa.ForeignKey("study.study_instance_uid"), nullable=False, index=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("received", sa.Float, nullable=False),
)

# A revision that was analysed without images that its source had: as many were here, as many the source counted.
shortfall = sa.Table(
    "shortfall",
    metadata,
    sa.Column("study_instance_uid", sa.ForeignKey("study.study_instance_uid"), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("received", sa.Integer, nullable=False),
    sa.Column("expected", sa.Integer, nullable=False),
)

# Images that were not taken, counted by study and reason; "" stands for all studies of which we have no image.
refusal = sa.Table(
    "refusal",
    metadata,
    sa.Column("study_instance_uid", sa.String(64), primary_key=True),
    sa.Column("status", sa.Integer, primary_key=True),
    sa.Column("reason", sa.String(64), primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("calling_ae_title", sa.String(16), nullable=False),
    sa.Column("last_seen", sa.Float, nullable=False),
)

report = sa.Table(
    "report",
    metadata,
    sa.Column("study_instance_uid", sa.ForeignKey("study.study_instance_uid"), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
)

delivery = sa.Table(
    "delivery",
    metadata,
    sa.Column("study_instance_uid", sa.ForeignKey("study.study_instance_uid"), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("destination", sa.String(32), primary_key=True),
    sa.Column("objects", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("last_error", sa.Text, nullable=True),
    sa.Column("next_attempt", sa.Float, nullable=True),
    sa.Column("updated", sa.Float, nullable=False),
    # ObjectOutcomes of the last complete attempt.
    sa.Column("outcomes", sa.JSON(none_as_null=True), nullable=True),
)

# Storage commitment that a sender asked for and has not been told of yet. `references` are pairs of SOP Class and
# Instance UID.
commitment = sa.Table(
    "commitment",
    metadata,
    sa.Column("calling_ae_title", sa.String(16), primary_key=True),
    sa.Column("transaction_uid", sa.String(64), primary_key=True),
    sa.Column("references", sa.JSON, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_attempt", sa.Float, nullable=False),
)

# Storage commitment that a destination was asked for. `references` are pairs of SOP Class and Instance UID, null in
# rows of earlier versions; `state` is a CommitmentState, `reason` says why it is not committed.
requested_commitment = sa.Table(
    "requested_commitment",
    metadata,
    sa.Column("transaction_uid", sa.String(64), primary_key=True),
    sa.Column("study_instance_uid", sa.ForeignKey("study.study_instance_uid"), nullable=False, index=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("destination", sa.String(32), nullable=False),
    sa.Column("instances", sa.Integer, nullable=False),
    sa.Column("references", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=True),
    sa.Column("updated", sa.Float, nullable=False),
)

# A performed procedure step that a modality told of. `state` is a StepState, `made` the JSON of the SOP Instance UIDs
# of its CT images by Series Instance UID.
performed_step = sa.Table(
    "performed_step",
    metadata,
    sa.Column("sop_instance_uid", sa.String(64), primary_key=True),
    sa.Column("calling_ae_title", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("made", sa.Text, nullable=False),
    sa.Column("updated", sa.Float, nullable=False, index=True),
)

# The studies of a step, of which no image need be here.
performed_step_study = sa.Table(
    "performed_step_study",
    metadata,
    sa.Column("sop_instance_uid", sa.ForeignKey("performed_step.sop_instance_uid"), primary_key=True),
    sa.Column("study_instance_uid", sa.String(64), primary_key=True, index=True),
)

worker_heartbeat = sa.Table(
    "worker_heartbeat",
    metadata,
    sa.Column("executor_id", sa.String(128), primary_key=True),
    sa.Column("seen", sa.Float, nullable=False),
)


def open_database(url: str, *, rebuildable: bool = False) -> sa.Engine:
    """Engine for the index and the jobs. A commit is on the disk when it returns.

    `rebuildable` is for rows that are made again from durable files when the service starts: in SQLite their commits
    do not wait for the disk. A power cut can take the latest of them, but none from before a commit that did wait:
    both kinds go into one log in order (https://www.sqlite.org/pragma.html#pragma_synchronous). PostgreSQL waits for
    all, because it may crash and come back while this service goes on.
    Its errors do not quote parameters: patient names would reach the log that way.
    """
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True, pool_size=10, hide_parameters=True)
    engine = sa.create_engine(url, connect_args={"timeout": _SQLITE_TIMEOUT_S}, pool_size=10, hide_parameters=True)
    sa.event.listen(engine, "connect", partial(_prepare_sqlite, synchronous="normal" if rebuildable else "full"))
    return engine


def _prepare_sqlite(connection: Any, _record: Any, *, synchronous: str) -> None:
    # BEGIN IMMEDIATE: a reader that turns writer would otherwise meet SQLITE_BUSY without any wait.
    connection.isolation_level = "IMMEDIATE"
    # Its own knows no letter beyond ASCII, and patients are looked for by name.
    connection.create_function("lower", 1, lambda text: text and text.lower(), deterministic=True)
    _write_ahead(connection)
    for pragma in (f"synchronous={synchronous}", "foreign_keys=on"):
        connection.execute(f"pragma {pragma}")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch a new database to the write-ahead log, which stays in its file. Raises OperationalError after the timeout.

    Of processes that do so at the same time all but one meet SQLITE_BUSY without any wait: each would turn from reader
    to writer (https://www.sqlite.org/c3ref/busy_handler.html).
    """
    deadline = time.monotonic() + _SQLITE_TIMEOUT_S
    while True:
        try:
            connection.execute("pragma journal_mode=wal")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


# Any number that nobody else in the database locks.
_CREATING_TABLES = 0x4F53_4341_4E


def create_tables(engine: sa.Engine) -> None:
    """Create the tables that are missing, and bring those of an earlier version to this one's form."""
    with engine.begin() as connection:
        # Processes may start at the same time, and what one finds missing the other may have made meanwhile.
        if connection.dialect.name == "sqlite":
            # pysqlite begins no transaction for DDL by itself.
            connection.exec_driver_sql("begin immediate")
        else:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATING_TABLES)))
        metadata.create_all(connection)
        _add_delivery_outcomes(connection)
        _add_requested_references(connection)
        _drop_digests(connection)


def _add_delivery_outcomes(connection: sa.Connection) -> None:
    """Version 0.1.0 had no `outcomes` and kept `objects` in 32 characters, which SQLite does not enforce."""
    if "outcomes" in {column["name"] for column in sa.inspect(connection).get_columns(delivery.name)}:
        return
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("alter table delivery add column outcomes json")
    else:
        connection.exec_driver_sql(
            "alter table delivery add column if not exists outcomes json, alter column objects type text"
        )


def _add_requested_references(connection: sa.Connection) -> None:
    """Earlier versions noted how many instances they asked for, not which."""
    table = requested_commitment.name
    if "references" in {column["name"] for column in sa.inspect(connection).get_columns(table)}:
        return
    if_not_exists = "" if connection.dialect.name == "sqlite" else "if not exists "
    # Quoted: it is a word of SQL.
    connection.exec_driver_sql(f'alter table {table} add column {if_not_exists}"references" json')


def _drop_digests(connection: sa.Connection) -> None:
    """Version 0.1.0 kept a digest of each instance; what is sent again is compared with the file itself now."""
    if "sha256" not in {column["name"] for column in sa.inspect(connection).get_columns(instance.name)}:
        return
    if_exists = "" if connection.dialect.name == "sqlite" else "if exists "
    connection.exec_driver_sql(f"alter table instance drop column {if_exists}sha256")
