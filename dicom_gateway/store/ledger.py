"""Changes of the index, each a function of one open transaction: the caller decides what commits together."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dicom_gateway.errors import ConflictingInstance
from dicom_gateway.store.files import StoredFile
from dicom_gateway.store.schema import (
    CommitmentState,
    DeliveryState,
    StudyState,
    applied_rule,
    delivery,
    instance,
    refusal,
    report,
    requested_commitment,
    shortfall,
    study,
)

ROUTINE_PRIORITY = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHeader:
    """What the index keeps of a received instance's header; the text is the sender's, in Unicode."""

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient_name: str
    patient_id: str
    study_date: str
    description: str
    accession_number: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What recording an instance did: `duplicate` when we had it, `reopened` when its study was closed before.

    `other_patient` when it is no duplicate and its Patient ID is another one than that of the study's first image.
    """

    revision: int
    duplicate: bool
    reopened: bool
    other_patient: bool


def record_instance(
    connection: sa.Connection,
    header: InstanceHeader,
    file: StoredFile,
    *,
    calling_ae_title: str,
    association_count: int,
    now: float,
    priority: int = ROUTINE_PRIORITY,
    file_is_new: bool = False,
) -> Receipt:
    """Index a stored instance; a study that was closed opens again with the next revision.

    `association_count` is how many images of the study the association has sent with this one. The study has the
    most urgent (smallest) `priority` any of its images came with. `file_is_new` where there was no file at its place:
    one that is indexed there all the same had lost its file, and what came instead counts as a late image.
    Raises ConflictingInstance when this SOP Instance UID is indexed at another place.
    """
    open_revision = _insert_into_open_study(connection, header, file, now)
    if open_revision is not None:
        patient_id = connection.execute(
            _COUNT_INSTANCE,
            {"uid": header.study_instance_uid, "now": now, "sent": association_count, "urgency": priority},
        ).scalar_one()
        other_patient = _differ(patient_id, header.patient_id)
        return Receipt(revision=open_revision, duplicate=False, reopened=False, other_patient=other_patient)
    _insert_or_ignore(connection, study, _new_study(header, calling_ae_title, priority, now))
    key = study.c.study_instance_uid == header.study_instance_uid
    row = connection.execute(sa.select(study).where(key).with_for_update()).mappings().one()
    reopened = row["state"] != StudyState.RECEIVING
    revision = row["revision"] + reopened
    new = _insert_or_ignore(connection, instance, _new_instance(header, file, revision, now))
    if not new:
        _require_same_place(connection, header, file)
        if not file_is_new:
            return Receipt(revision=row["revision"], duplicate=True, reopened=False, other_patient=False)
        connection.execute(
            sa.update(instance)
            .where(instance.c.sop_instance_uid == header.sop_instance_uid)
            .values(revision=revision, size_bytes=file.size_bytes, received=now)
        )
    largest = association_count if reopened else max(row["largest_association"], association_count)
    connection.execute(
        sa.update(study)
        .where(key)
        .values(
            state=StudyState.RECEIVING,
            revision=revision,
            priority=min(row["priority"], priority),
            instance_count=row["instance_count"] + new,
            last_received=now,
            last_released=0.0,
            largest_association=largest,
            error=None,
        )
    )
    other_patient = _differ(row["patient_id"], header.patient_id)
    return Receipt(revision=revision, duplicate=False, reopened=reopened, other_patient=other_patient)


def record_refusal(
    connection: sa.Connection,
    study_instance_uid: str | None,
    *,
    status: int,
    reason: str,
    calling_ae_title: str,
    now: float,
) -> None:
    """Count an image that was not taken. `reason` is one of ours, so that no sender can make ever more rows.

    None, or a study of which nothing was ever taken, is counted under no study for the same reason.
    """
    known = connection.scalar(
        sa.select(study.c.study_instance_uid).where(study.c.study_instance_uid == (study_instance_uid or ""))
    )
    insert: Any = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    last = {"calling_ae_title": calling_ae_title, "last_seen": now}
    statement = insert(refusal).values(
        study_instance_uid=known or "", status=status, reason=reason[:64], count=1, **last
    )
    key = [refusal.c.study_instance_uid, refusal.c.status, refusal.c.reason]
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_={"count": refusal.c.count + 1, **last}))


def mark_released(connection: sa.Connection, study_instance_uids: frozenset[str], now: float) -> None:
    """Note that the association that sent these studies has ended well or gone on to another study at `now`.

    0: that it broke, as it is for every new image until its association has ended.
    """
    connection.execute(
        sa.update(study)
        .where(study.c.study_instance_uid.in_(study_instance_uids), study.c.state == StudyState.RECEIVING)
        .values(last_released=now)
    )


def close_study(
    connection: sa.Connection,
    study_instance_uid: str,
    *,
    revision: int,
    last_received: float,
    now: float,
    to: StudyState = StudyState.QUEUED,
) -> bool:
    """RECEIVING -> QUEUED or EXCLUDED, unless something arrived since the row was read; whether it was done."""
    done = connection.execute(
        sa.update(study)
        .where(
            study.c.study_instance_uid == study_instance_uid,
            study.c.state == StudyState.RECEIVING,
            study.c.revision == revision,
            study.c.last_received == last_received,
        )
        .values(state=to, queued_at=now)
    )
    return done.rowcount == 1


def record_rule(
    connection: sa.Connection,
    study_instance_uid: str,
    revision: int,
    *,
    rule: str,
    destinations: tuple[str, ...] | None,
) -> None:
    """Note which rule decided about a revision and where its report goes (None: everywhere)."""
    connection.execute(
        sa.insert(applied_rule).values(
            study_instance_uid=study_instance_uid,
            revision=revision,
            rule=rule,
            destinations=None if destinations is None else list(destinations),
        )
    )


def record_shortfall(
    connection: sa.Connection, study_instance_uid: str, revision: int, *, received: int, expected: int
) -> None:
    """Note that a revision goes to analysis with fewer images than its source has."""
    connection.execute(
        sa.insert(shortfall).values(
            study_instance_uid=study_instance_uid, revision=revision, received=received, expected=expected
        )
    )


def change_study(
    connection: sa.Connection,
    study_instance_uid: str,
    revision: int,
    *,
    to: StudyState,
    since: tuple[StudyState, ...],
    error: str | None = None,
    **values: Any,
) -> bool:
    """Move the study to another state if it is still at this revision and in one of `since`; whether it was."""
    done = connection.execute(
        sa.update(study)
        .where(
            study.c.study_instance_uid == study_instance_uid,
            study.c.revision == revision,
            study.c.state.in_(since),
        )
        .values(**values, state=to, error=error)
    )
    return done.rowcount == 1


def queue_next_revision(connection: sa.Connection, study_instance_uid: str, revision: int, *, now: float) -> bool:
    """REPORTED or REFUSED -> QUEUED with the next revision, of the same images, if still at this; whether it was.

    The rule that decided about this revision decides about the next one, too, and what it lacks is still missing.
    """
    done = connection.execute(
        sa.update(study)
        .where(
            study.c.study_instance_uid == study_instance_uid,
            study.c.revision == revision,
            study.c.state.in_((StudyState.REPORTED, StudyState.REFUSED)),
        )
        .values(state=StudyState.QUEUED, revision=revision + 1, queued_at=now)
    )
    if done.rowcount != 1:
        return False
    for table in (applied_rule, shortfall):
        columns = [sa.literal(revision + 1) if column is table.c.revision else column for column in table.c]
        of_this = (table.c.study_instance_uid == study_instance_uid) & (table.c.revision == revision)
        carried = sa.select(*columns).where(of_this)
        connection.execute(sa.insert(table).from_select([column.name for column in table.c], carried))
    return True


def record_report(
    connection: sa.Connection,
    study_instance_uid: str,
    revision: int,
    *,
    folder: Path,
    created: float,
    outcome: str,
) -> None:
    """Note a written report; the same one again changes nothing."""
    _insert_or_ignore(
        connection,
        report,
        {
            "study_instance_uid": study_instance_uid,
            "revision": revision,
            "folder": folder.as_posix(),
            "created": created,
            "outcome": outcome,
        },
    )


def open_delivery(
    connection: sa.Connection,
    study_instance_uid: str,
    revision: int,
    destination: str,
    *,
    objects: tuple[str, ...],
    now: float,
) -> bool:
    """Note that a report is to go to a destination; whether that is new."""
    return _insert_or_ignore(
        connection,
        delivery,
        {
            "study_instance_uid": study_instance_uid,
            "revision": revision,
            "destination": destination,
            "objects": ",".join(objects),
            "state": DeliveryState.PENDING,
            "attempts": 0,
            "updated": now,
        },
    )


def change_delivery(
    connection: sa.Connection,
    study_instance_uid: str,
    revision: int,
    destination: str,
    *,
    to: DeliveryState,
    now: float,
    since: tuple[DeliveryState, ...] = (DeliveryState.PENDING, DeliveryState.DELAYED),
    **values: Any,
) -> bool:
    """Move a delivery to another state if it is in one of `since`; whether it was."""
    done = connection.execute(
        sa.update(delivery)
        .where(
            delivery.c.study_instance_uid == study_instance_uid,
            delivery.c.revision == revision,
            delivery.c.destination == destination,
            delivery.c.state.in_(since),
        )
        .values(**{"next_attempt": None, **values, "state": to, "updated": now})
    )
    return done.rowcount == 1


def park_unsent(
    connection: sa.Connection, study_instance_uid: str, revision: int, destination: str, *, now: float, reason: str
) -> bool:
    """PENDING or DELAYED -> PARKED for a delivery whose queued attempt was never made; whether it waited.

    That attempt counts as made: its job may be in the queue still, and a replay must not get the same job id.
    """
    return change_delivery(
        connection,
        study_instance_uid,
        revision,
        destination,
        to=DeliveryState.PARKED,
        now=now,
        attempts=delivery.c.attempts + 1,
        last_error=reason,
    )


def request_commitment(
    connection: sa.Connection,
    transaction_uid: str,
    study_instance_uid: str,
    revision: int,
    destination: str,
    *,
    references: Sequence[tuple[str, str]],
    now: float,
) -> None:
    """Note that a destination is to be asked for storage commitment of these, pairs of SOP Class and Instance UID."""
    connection.execute(
        sa.insert(requested_commitment).values(
            transaction_uid=transaction_uid,
            study_instance_uid=study_instance_uid,
            revision=revision,
            destination=destination,
            instances=len(references),
            references=[list(reference) for reference in references],
            state=CommitmentState.REQUESTED,
            updated=now,
        )
    )


def requested_references(
    connection: sa.Connection, transaction_uid: str, destinations: Collection[str]
) -> frozenset[tuple[str, str]] | None:
    """What one of these destinations was asked for, as far as it was noted; None where none of them was asked."""
    row = connection.execute(
        sa.select(requested_commitment.c.references).where(
            requested_commitment.c.transaction_uid == transaction_uid,
            requested_commitment.c.destination.in_(destinations),
        )
    ).one_or_none()
    return None if row is None else frozenset((sop_class, uid) for sop_class, uid in row.references or ())


def answer_commitment(
    connection: sa.Connection,
    transaction_uid: str,
    destinations: Collection[str],
    *,
    reason: str | None,
    now: float,
    since: tuple[CommitmentState, ...] = tuple(CommitmentState),
) -> tuple[str, int, str] | None:
    """Note that one of these destinations has committed, or with a `reason` that it has not.

    Returns the key of the delivery, None where none of them was asked or its answer is not in one of `since`.
    """
    state = CommitmentState.COMMITTED if reason is None else CommitmentState.NOT_COMMITTED
    row = connection.execute(
        sa.update(requested_commitment)
        .where(
            requested_commitment.c.transaction_uid == transaction_uid,
            requested_commitment.c.destination.in_(destinations),
            requested_commitment.c.state.in_(since),
        )
        .values(state=state, reason=reason, updated=now)
        .returning(
            requested_commitment.c.study_instance_uid,
            requested_commitment.c.revision,
            requested_commitment.c.destination,
        )
    ).one_or_none()
    return None if row is None else (row.study_instance_uid, row.revision, row.destination)


def unanswered_commitment(
    connection: sa.Connection, study_instance_uid: str, revision: int, destination: str
) -> tuple[str, tuple[tuple[str, str], ...]] | None:
    """Transaction UID and references of a delivery's latest request that waits for its answer; None: there is none."""
    row = connection.execute(
        sa.select(requested_commitment.c.transaction_uid, requested_commitment.c.references)
        .where(
            requested_commitment.c.study_instance_uid == study_instance_uid,
            requested_commitment.c.revision == revision,
            requested_commitment.c.destination == destination,
            requested_commitment.c.state == CommitmentState.REQUESTED,
            # One of an earlier version was asked, or cannot be.
            requested_commitment.c.references.is_not(sa.null()),
        )
        .order_by(requested_commitment.c.updated.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    return row.transaction_uid, tuple((sop_class, uid) for sop_class, uid in row.references)


def _insert_into_open_study(
    connection: sa.Connection, header: InstanceHeader, file: StoredFile, now: float
) -> int | None:
    """Index a new instance of a study that is being received; the revision, None where it is not that simple.

    299 of 300 images are that simple, and one statement is all they need here.
    """
    statement = _INSERT_INTO_OPEN_STUDY[connection.dialect.name]
    return connection.execute(statement, _new_instance(header, file, 0, now)).scalar()


def _insert_into_open_study_of(insert: Any) -> Any:
    names = [column.name for column in instance.columns]
    values = [
        study.c.revision if name == "revision" else sa.bindparam(name, type_=instance.c[name].type) for name in names
    ]
    of_open_study = sa.and_(
        study.c.study_instance_uid == sa.bindparam("study_instance_uid"), study.c.state == StudyState.RECEIVING
    )
    source = sa.select(*values).where(of_open_study).with_for_update()
    return insert(instance).from_select(names, source).on_conflict_do_nothing().returning(instance.c.revision)


# Built once: to build them costs several times as much as to execute them.
_INSERT_INTO_OPEN_STUDY = {
    "sqlite": _insert_into_open_study_of(sqlite.insert),
    "postgresql": _insert_into_open_study_of(postgresql.insert),
}
_COUNT_INSTANCE = (
    sa.update(study)
    .where(study.c.study_instance_uid == sa.bindparam("uid"))
    .values(
        instance_count=study.c.instance_count + 1,
        priority=sa.case((study.c.priority < sa.bindparam("urgency"), study.c.priority), else_=sa.bindparam("urgency")),
        last_received=sa.bindparam("now"),
        last_released=0.0,
        largest_association=sa.case(
            (study.c.largest_association > sa.bindparam("sent"), study.c.largest_association),
            else_=sa.bindparam("sent"),
        ),
        error=None,
    )
    .returning(study.c.patient_id)
)


def _new_study(header: InstanceHeader, calling_ae_title: str, priority: int, now: float) -> dict[str, Any]:
    return {
        "study_instance_uid": header.study_instance_uid,
        "state": StudyState.RECEIVING,
        "revision": 1,
        "priority": priority,
        "calling_ae_title": calling_ae_title,
        "instance_count": 0,
        "first_received": now,
        "last_received": now,
        "last_released": 0.0,
        "largest_association": 0,
        "patient_name": header.patient_name,
        "patient_id": header.patient_id,
        "study_date": header.study_date,
        "description": header.description,
        "accession_number": header.accession_number,
    }


def _new_instance(header: InstanceHeader, file: StoredFile, revision: int, now: float) -> dict[str, Any]:
    return {
        "sop_instance_uid": header.sop_instance_uid,
        "series_instance_uid": header.series_instance_uid,
        "study_instance_uid": header.study_instance_uid,
        "revision": revision,
        "path": file.path.as_posix(),
        "size_bytes": file.size_bytes,
        "received": now,
    }


def _differ(patient_id: str, other: str) -> bool:
    """Whether two Patient IDs are both given and not the same; imaging.patients looks at more of them, and decides."""
    return bool(patient_id and other) and patient_id.upper() != other.upper()


def _require_same_place(connection: sa.Connection, header: InstanceHeader, file: StoredFile) -> None:
    stored = connection.execute(
        sa.select(instance.c.path).where(instance.c.sop_instance_uid == header.sop_instance_uid)
    ).scalar_one()
    if stored != file.path.as_posix():
        raise ConflictingInstance("indexed already, in another series")


def _insert_or_ignore(connection: sa.Connection, table: sa.Table, values: dict[str, Any]) -> bool:
    insert: Any = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    # Not rowcount: psycopg does not set it for an insert that SQLAlchemy sends with RETURNING.
    statement = insert(table).values(**values).on_conflict_do_nothing().returning(sa.literal(1))
    return connection.execute(statement).first() is not None
