"""When a study is complete: nobody is sending it any more, and it has been quiet for a while."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import sqlalchemy as sa

from dicom_gateway.events import Event, emit
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.settings import Rule
from dicom_gateway.store import index, ledger
from dicom_gateway.store.schema import StudyState, study


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietRules:
    """How long, in seconds, a study must be quiet; the second value is for one association per image."""

    quiet_period_s: float
    quiet_period_single_image_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivingStudy:
    """What completeness depends on. Times are UTC epoch seconds.

    `largest_association` is the most images of the study that one association has sent.
    """

    study_instance_uid: str
    revision: int
    priority: int
    last_received: float
    last_released: float
    largest_association: int


def closes_at(row: ReceivingStudy, rules: QuietRules) -> float:
    """When the study is complete if nothing more happens, UTC epoch seconds."""
    one_image_each = row.largest_association <= 1
    quiet_s = rules.quiet_period_single_image_s if one_image_each else rules.quiet_period_s
    return max(row.last_received, row.last_released) + quiet_s


def is_complete(row: ReceivingStudy, rules: QuietRules, *, open_studies: Collection[str], now: float) -> bool:
    """Whether the study may be analysed: no open association has sent it, and the quiet period is over."""
    return row.study_instance_uid not in open_studies and now >= closes_at(row, rules)


def close_quiet_studies(
    engine: sa.Engine,
    jobs: JobQueue,
    rules: QuietRules,
    *,
    open_studies: Collection[str],
    now: float,
    rule_of: Callable[[str], Rule | None] = lambda _study_instance_uid: None,
) -> tuple[str, ...]:
    """Queue every complete study, or keep it aside where its rule says so; state and job change in one transaction.

    Returns the Study Instance UIDs. An image that arrives meanwhile wins: the study stays open.
    """
    closed = []
    for row in _receiving(engine):
        if is_complete(row, rules, open_studies=open_studies, now=now):
            rule = rule_of(row.study_instance_uid)
            if _close(engine, jobs, row, rule, now):
                closed.append(row.study_instance_uid)
    return tuple(closed)


def _receiving(engine: sa.Engine) -> tuple[ReceivingStudy, ...]:
    columns = [study.c[name] for name in ReceivingStudy.__slots__]
    query = sa.select(*columns).where(study.c.state == StudyState.RECEIVING).order_by(study.c.last_received)
    with engine.connect() as connection:
        return tuple(ReceivingStudy(**row) for row in connection.execute(query).mappings())


def _close(engine: sa.Engine, jobs: JobQueue, row: ReceivingStudy, rule: Rule | None, now: float) -> bool:
    uid = row.study_instance_uid
    # A report that is out already is amended by late images, whatever they make of the study.
    analyse = rule is None or rule.analyse or index.get_report(engine, uid) is not None
    to = StudyState.QUEUED if analyse else StudyState.EXCLUDED
    with engine.begin() as connection:
        if not ledger.close_study(
            connection, uid, revision=row.revision, last_received=row.last_received, now=now, to=to
        ):
            return False
        if rule is not None:
            ledger.record_rule(connection, uid, row.revision, rule=rule.name, destinations=rule.destinations)
        if analyse:
            jobs.submit_analysis(connection, uid, row.revision, created=now, priority=row.priority)
    decided = {"rule": rule.name} if rule is not None else {}
    event = Event.STUDY_COMPLETE if analyse else Event.STUDY_EXCLUDED
    emit(event, study_instance_uid=uid, revision=row.revision, **decided)
    return True
