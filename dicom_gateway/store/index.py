"""What the index knows, for the web pages, the commands and the worker: reading only.

Times are aware UTC datetimes; paths are relative to the data folder.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_gateway.store.schema import (
    CommitmentState,
    DeliveryState,
    ObjectOutcome,
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

# What no name is divided by, on pages or in DICOM (PS3.5 6.2.1), and no database refuses.
_WORD = re.compile(r"[^\s,^\x00-\x1f]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow:
    """One study as the index has it. `error` is set for FAILED; late images add one to `revision`.

    `rule` is the name of the rule that decided about this revision, None where none fitted or it is not complete yet.
    """

    study_instance_uid: str
    state: StudyState
    revision: int
    priority: int
    calling_ae_title: str
    instance_count: int
    first_received: datetime
    last_received: datetime
    patient_name: str
    patient_id: str
    study_date: str
    description: str
    accession_number: str
    error: str | None
    rule: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedRule:
    """What a rule said when a revision of a study was complete; `destinations` are those of its report, None: all."""

    rule: str
    destinations: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Images that were not taken for one reason; `status` is the C-STORE status, the sender is the last one's."""

    status: int
    reason: str
    count: int
    calling_ae_title: str
    last_seen: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """How many images of a study were here when it was analysed, and how many of the same series its source had."""

    received: int
    expected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRow:
    """A written report, `outcome` reported or refused; `folder` holds report.json and everything made of it."""

    study_instance_uid: str
    revision: int
    folder: Path
    created: datetime
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRow:
    """One report on its way to one destination. `next_attempt` is set while DELAYED.

    `objects` is what the destination wanted at the last attempt, `outcomes` what became of it where all was tried.
    `commitment` is what it says of storage commitment, None where it was not asked.
    """

    study_instance_uid: str
    revision: int
    destination: str
    objects: tuple[str, ...]
    state: DeliveryState
    attempts: int
    last_error: str | None
    next_attempt: datetime | None
    updated: datetime
    outcomes: tuple[ObjectOutcome, ...]
    commitment: CommitmentState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRow:
    """One stored instance; `revision` is the revision of the study it arrived in."""

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    revision: int
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Number of studies and deliveries in each state; every state is a key."""

    studies: Mapping[StudyState, int]
    deliveries: Mapping[DeliveryState, int]


def list_studies(
    engine: sa.Engine,
    limit: int | None,
    offset: int = 0,
    state: StudyState | None = None,
    search: str | None = None,
    since: datetime | None = None,
) -> tuple[StudyRow, ...]:
    """Studies, the one heard of last first; in one state where given, all of them for `limit` None.

    Each word of `search` is looked for in patient name, patient ID, accession number and description, ignoring case, so
    that a name is found as pages show it; `since` is when the last image came at the earliest.
    """
    query = _studies().order_by(study.c.last_received.desc(), study.c.study_instance_uid)
    if state is not None:
        query = query.where(study.c.state == state)
    if since is not None:
        query = query.where(study.c.last_received >= since.timestamp())
    columns = (study.c.patient_name, study.c.patient_id, study.c.accession_number, study.c.description)
    for word in _WORD.findall(search or ""):
        query = query.where(sa.or_(*(column.icontains(word, autoescape=True) for column in columns)))
    with engine.connect() as connection:
        return tuple(_study(row) for row in connection.execute(query.limit(limit).offset(offset)).mappings())


def match_studies(
    engine: sa.Engine,
    *,
    study_instance_uid: Collection[str] | None = None,
    patient_id: str | None = None,
    accession_number: str | None = None,
) -> Iterator[StudyRow]:
    """Studies with exactly these values where given, the one heard of last first, read a few at a time."""
    query = _studies().order_by(study.c.last_received.desc(), study.c.study_instance_uid)
    if study_instance_uid is not None:
        query = query.where(study.c.study_instance_uid.in_(study_instance_uid))
    if patient_id is not None:
        query = query.where(study.c.patient_id == patient_id)
    if accession_number is not None:
        query = query.where(study.c.accession_number == accession_number)
    after = 0
    while page := _page(engine, query.limit(_PAGE).offset(after)):
        yield from page
        after += _PAGE


def get_study(engine: sa.Engine, study_instance_uid: str) -> StudyRow | None:
    """The study, or None when we never received it."""
    query = _studies().where(study.c.study_instance_uid == study_instance_uid)
    with engine.connect() as connection:
        row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _study(row)


def get_applied_rule(engine: sa.Engine, study_instance_uid: str, revision: int) -> AppliedRule | None:
    """The rule that decided about a revision; None where none fitted."""
    query = sa.select(applied_rule.c.rule, applied_rule.c.destinations).where(
        applied_rule.c.study_instance_uid == study_instance_uid, applied_rule.c.revision == revision
    )
    with engine.connect() as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return AppliedRule(rule=row.rule, destinations=None if row.destinations is None else tuple(row.destinations))


def count_excluded(engine: sa.Engine) -> Mapping[str, int]:
    """How many studies each rule keeps from being analysed."""
    query = (
        sa.select(applied_rule.c.rule, sa.func.count())
        .select_from(study.join(applied_rule, _decided))
        .where(study.c.state == StudyState.EXCLUDED)
        .group_by(applied_rule.c.rule)
        .order_by(applied_rule.c.rule)
    )
    with engine.connect() as connection:
        return {rule: count for rule, count in connection.execute(query)}


def get_report(engine: sa.Engine, study_instance_uid: str, revision: int | None = None) -> ReportRow | None:
    """The report of a revision, by default the newest; None when there is none."""
    query = sa.select(report).where(report.c.study_instance_uid == study_instance_uid)
    if revision is not None:
        query = query.where(report.c.revision == revision)
    with engine.connect() as connection:
        row = connection.execute(query.order_by(report.c.revision.desc()).limit(1)).mappings().one_or_none()
    return None if row is None else _report(row)


def list_reports(engine: sa.Engine, study_instance_uid: str) -> tuple[ReportRow, ...]:
    """Every report of a study, the newest revision first."""
    query = sa.select(report).where(report.c.study_instance_uid == study_instance_uid)
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(report.c.revision.desc())).mappings()
        return tuple(_report(row) for row in rows)


_LAST_COMMITMENT = (
    sa.select(requested_commitment.c.state)
    .where(
        requested_commitment.c.study_instance_uid == delivery.c.study_instance_uid,
        requested_commitment.c.revision == delivery.c.revision,
        requested_commitment.c.destination == delivery.c.destination,
    )
    .order_by(requested_commitment.c.updated.desc())
    .limit(1)
    .scalar_subquery()
)
_DELIVERIES = sa.select(delivery, _LAST_COMMITMENT.label("commitment"))


def list_deliveries(
    engine: sa.Engine,
    study_instance_uid: str | None = None,
    state: DeliveryState | None = None,
    limit: int | None = None,
) -> tuple[DeliveryRow, ...]:
    """Deliveries, the one that changed last first; of one study or in one state where given, at most `limit`."""
    query = _DELIVERIES.order_by(delivery.c.updated.desc(), delivery.c.destination).limit(limit)
    if study_instance_uid is not None:
        query = query.where(delivery.c.study_instance_uid == study_instance_uid)
    if state is not None:
        query = query.where(delivery.c.state == state)
    with engine.connect() as connection:
        return tuple(_delivery(row) for row in connection.execute(query).mappings())


def newest_meant_for(engine: sa.Engine, study_instance_uid: str, destination: str) -> int:
    """The newest revision of a study whose report went or is to go to a destination; 0 where none is."""
    query = sa.select(sa.func.max(delivery.c.revision)).where(
        delivery.c.study_instance_uid == study_instance_uid, delivery.c.destination == destination
    )
    with engine.connect() as connection:
        return connection.execute(query).scalar_one() or 0


def get_delivery(engine: sa.Engine, study_instance_uid: str, revision: int, destination: str) -> DeliveryRow | None:
    """One delivery, or None when the report was never meant for that destination."""
    query = _DELIVERIES.where(
        delivery.c.study_instance_uid == study_instance_uid,
        delivery.c.revision == revision,
        delivery.c.destination == destination,
    )
    with engine.connect() as connection:
        row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _delivery(row)


def list_instances(engine: sa.Engine, study_instance_uid: str, revision: int) -> tuple[InstanceRow, ...]:
    """What the study consists of at `revision`: everything that arrived in it or before it, by UID."""
    query = (
        sa.select(instance)
        .where(instance.c.study_instance_uid == study_instance_uid, instance.c.revision <= revision)
        .order_by(instance.c.series_instance_uid, instance.c.sop_instance_uid)
    )
    with engine.connect() as connection:
        return tuple(_instance(row) for row in connection.execute(query).mappings())


def list_series_samples(engine: sa.Engine, study_instance_uid: str, revision: int) -> tuple[Path, ...]:
    """A stored file of each series that the study has at `revision`, always the same one."""
    query = (
        sa.select(sa.func.min(instance.c.path))
        .where(instance.c.study_instance_uid == study_instance_uid, instance.c.revision <= revision)
        .group_by(instance.c.series_instance_uid)
        .order_by(instance.c.series_instance_uid)
    )
    with engine.connect() as connection:
        return tuple(Path(path) for (path,) in connection.execute(query))


def count_series(engine: sa.Engine, study_instance_uid: str) -> Mapping[str, int]:
    """How many instances of each series of the study are here."""
    query = (
        sa.select(instance.c.series_instance_uid, sa.func.count())
        .where(instance.c.study_instance_uid == study_instance_uid)
        .group_by(instance.c.series_instance_uid)
    )
    with engine.connect() as connection:
        return {series: count for series, count in connection.execute(query)}


def instances_by_series(engine: sa.Engine, study_instance_uid: str) -> Mapping[str, frozenset[str]]:
    """SOP Instance UIDs of each series of the study that are here."""
    query = sa.select(instance.c.series_instance_uid, instance.c.sop_instance_uid).where(
        instance.c.study_instance_uid == study_instance_uid
    )
    held: dict[str, set[str]] = {}
    with engine.connect() as connection:
        for series, uid in connection.execute(query):
            held.setdefault(series, set()).add(uid)
    return {series: frozenset(uids) for series, uids in held.items()}


def list_refusals(engine: sa.Engine, study_instance_uid: str | None) -> tuple[Refusal, ...]:
    """What was not taken of a study, the most frequent reason first; None: of studies of which nothing was taken."""
    query = (
        sa.select(*(refusal.c[name] for name in Refusal.__slots__))
        .where(refusal.c.study_instance_uid == (study_instance_uid or ""))
        .order_by(refusal.c["count"].desc(), refusal.c.reason)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).mappings()
        return tuple(Refusal(**row | {"last_seen": _utc(row["last_seen"])}) for row in map(dict, rows))


def count_refused(engine: sa.Engine) -> Mapping[str, int]:
    """How many images were not taken for each reason, of all studies."""
    query = sa.select(refusal.c.reason, sa.func.sum(refusal.c["count"])).group_by(refusal.c.reason)
    with engine.connect() as connection:
        return {reason: int(count) for reason, count in connection.execute(query.order_by(refusal.c.reason))}


def get_shortfall(engine: sa.Engine, study_instance_uid: str, revision: int) -> Shortfall | None:
    """What a revision lacked of what its source had when it was analysed; None where nothing is known to lack."""
    query = sa.select(shortfall.c.received, shortfall.c.expected).where(
        shortfall.c.study_instance_uid == study_instance_uid, shortfall.c.revision == revision
    )
    with engine.connect() as connection:
        row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Shortfall(**row)


def find_instance(engine: sa.Engine, sop_instance_uid: str) -> InstanceRow | None:
    """The stored instance of this UID, or None."""
    query = sa.select(instance).where(instance.c.sop_instance_uid == sop_instance_uid)
    with engine.connect() as connection:
        row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _instance(row)


def counts(engine: sa.Engine) -> Counts:
    """How many studies and deliveries are in each state."""
    with engine.connect() as connection:
        studies = connection.execute(sa.select(study.c.state, sa.func.count()).group_by(study.c.state)).all()
        sent = connection.execute(sa.select(delivery.c.state, sa.func.count()).group_by(delivery.c.state)).all()
    return Counts(
        dict.fromkeys(StudyState, 0) | {StudyState(state): count for state, count in studies},
        dict.fromkeys(DeliveryState, 0) | {DeliveryState(state): count for state, count in sent},
    )


_PAGE = 200
_Row = Mapping[Any, Any]
_decided = sa.and_(
    applied_rule.c.study_instance_uid == study.c.study_instance_uid, applied_rule.c.revision == study.c.revision
)


def _studies() -> sa.Select[Any]:
    return sa.select(study, applied_rule.c.rule).select_from(study.outerjoin(applied_rule, _decided))


def _page(engine: sa.Engine, query: sa.Select[Any]) -> list[StudyRow]:
    with engine.connect() as connection:
        return [_study(row) for row in connection.execute(query).mappings()]


def _utc(epoch_s: float) -> datetime:
    return datetime.fromtimestamp(epoch_s, UTC)


def _study(row: _Row) -> StudyRow:
    values = {name: row[name] for name in StudyRow.__slots__}
    times = {name: _utc(row[name]) for name in ("first_received", "last_received")}
    return StudyRow(**values | times | {"state": StudyState(row["state"])})


def _report(row: _Row) -> ReportRow:
    values = {name: row[name] for name in ReportRow.__slots__}
    return ReportRow(**values | {"folder": Path(row["folder"]), "created": _utc(row["created"])})


def _delivery(row: _Row) -> DeliveryRow:
    next_attempt = None if row["next_attempt"] is None else _utc(row["next_attempt"])
    return DeliveryRow(
        **{name: row[name] for name in DeliveryRow.__slots__}
        | {
            "objects": tuple(row["objects"].split(",")),
            "state": DeliveryState(row["state"]),
            "next_attempt": next_attempt,
            "updated": _utc(row["updated"]),
            "outcomes": tuple(ObjectOutcome(**outcome) for outcome in row["outcomes"] or ()),
            "commitment": row["commitment"] and CommitmentState(row["commitment"]),
        }
    )


def _instance(row: _Row) -> InstanceRow:
    values = {name: row[name] for name in InstanceRow.__slots__}
    return InstanceRow(**values | {"path": Path(row["path"])})
