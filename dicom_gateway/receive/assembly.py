"""When a study is complete: its modality made no more of it, its source has no more, or it has been quiet for a while.

Not while an association is sending it, as long as it brings something new now and then.
"""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from dicom_gateway.errors import DeliveryError
from dicom_gateway.events import Event, emit
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.query import ANSWER_WITHIN_S, SourceCount
from dicom_gateway.receive.expected import Comparison, Standing, compare, compare_made
from dicom_gateway.receive.performed import Step, steps_of
from dicom_gateway.receive.reception import LONGEST_PAUSE_S
from dicom_gateway.settings import Rule, Source
from dicom_gateway.store import index, ledger
from dicom_gateway.store.schema import StudyState, study

# A study that turned out not to be complete is given this many times more quiet each time, up to the limit: a sender of
# one image a minute leads to two reports, not to one a minute.
GROWTH = 4.0
LONGEST_QUIET_S = 600.0
# Time that passed while we could not look does not count as quiet: the database was away, or this process stood still,
# and nobody could have stored an image either.
_LONGEST_STEP_S = 2.0
_NOT_ASKED = Comparison(standing=Standing.UNKNOWN)

Ask = Callable[[Source, str], SourceCount]
"""How many images of a study a source has; raises DeliveryError where it does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietRules:
    """How long, in seconds, a study must be quiet.

    The second value is for one association per image, the third for a study that lacks images which its source has or
    its modality has made, or goes on making, or whose association broke.
    """

    quiet_period_s: float
    quiet_period_single_image_s: float
    missing_images_wait_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivingStudy:
    """What completeness depends on. Times are UTC epoch seconds, and only ever compared for being the same.

    `last_released` is 0 unless the association that sent the latest image has ended well, `largest_association` the
    most images of the study that one association has sent.
    """

    study_instance_uid: str
    revision: int
    priority: int
    calling_ae_title: str
    last_received: float
    last_released: float
    largest_association: int


def quiet_needed_s(row: ReceivingStudy, rules: QuietRules, standing: Standing = Standing.UNKNOWN) -> float:
    """How long, in seconds, the study must be quiet to be complete."""
    one_image_each = row.largest_association <= 1
    first_s = rules.quiet_period_single_image_s if one_image_each else rules.quiet_period_s
    quiet_s = min(first_s * GROWTH ** min(row.revision - 1, 10), max(LONGEST_QUIET_S, first_s))
    match standing:
        case Standing.ALL_MADE:
            return quiet_s if row.revision > 1 else 0.0
        case Standing.ALL:
            # A scanner that sends while it scans has no more than it has sent, at every moment.
            return quiet_s if one_image_each or row.revision > 1 else 0.0
        case Standing.PART | Standing.IN_PROGRESS:
            return max(quiet_s, rules.missing_images_wait_s)
        case _ if row.last_released == 0.0:
            # An association that ended well says that its sender had no more, one that broke that it had.
            return max(quiet_s, rules.missing_images_wait_s)
        case Standing.ASKED:
            return max(quiet_s, ANSWER_WITHIN_S)
        case _:
            return quiet_s


@dataclass(slots=True)
class _Watched:
    """A study between two looks at it: as it was, how long nothing happened to it, and what its source said since.

    `unchanged_s` is how long it has had no new image, whatever else its senders did.
    """

    row: ReceivingStudy
    unchanged_s: float = 0.0
    quiet_s: float = 0.0
    answer: Future[Comparison] | None = None

    def forget_answer(self) -> None:
        if self.answer is not None:
            self.answer.cancel()
        self.answer = None


@dataclass(slots=True, kw_only=True)
class Assembly:
    """Looks again and again at the studies that are being received, and queues those that are complete.

    Quiet is measured by a monotonic clock between looks, so that a wall clock that is set closes nothing early and
    keeps nothing open. After a restart it begins anew: what was cut off has that long to be sent again.
    """

    engine: sa.Engine
    jobs: JobQueue
    rules: QuietRules
    sources: Mapping[str, Source] = field(default_factory=dict)
    ask: Ask | None = None
    rule_of: Callable[[str], Rule | None] = lambda _study_instance_uid: None
    _watched: dict[str, _Watched] = field(default_factory=dict)
    _looked: float | None = None
    _askers: dict[str, ThreadPoolExecutor] = field(default_factory=dict)

    def close_complete(self, *, open_studies: Collection[str], now: float, clock_s: float) -> tuple[str, ...]:
        """Queue every complete study, or keep it aside where its rule says so; state and job change together.

        `now` is UTC epoch seconds, for the record; `clock_s` monotonic seconds, for the decision. Returns the Study
        Instance UIDs. An image that arrives meanwhile wins: the study stays open. So does a study that cannot be
        closed, of which the log says so at each look; sqlalchemy's OperationalError, of the database itself, is raised.
        """
        rows = {row.study_instance_uid: row for row in _receiving(self.engine)}
        passed_s = 0.0 if self._looked is None else min(max(0.0, clock_s - self._looked), _LONGEST_STEP_S)
        self._looked = clock_s
        self._watched = {uid: self._look(row, uid in open_studies, passed_s) for uid, row in rows.items()}
        # Not at the first look: a sender of one association an image would have us ask after each.
        quiet = {uid for uid, watched in self._watched.items() if watched.quiet_s > 0.0}
        steps = steps_of(self.engine, quiet)
        closed = []
        for uid, watched in self._watched.items():
            try:
                if self._close_if_complete(watched, steps.get(uid, ()) if uid in quiet else None, now):
                    closed.append(uid)
            except sa.exc.OperationalError:
                # Busy, full or away, and so for every study.
                raise
            except Exception as error:  # noqa: BLE001  # edge: one study must not keep the others from being closed
                emit(Event.COMPLETION_FAILED, level="error", study_instance_uid=uid, error=type(error).__name__)
        return tuple(closed)

    def _close_if_complete(self, watched: _Watched, steps: tuple[Step, ...] | None, now: float) -> bool:
        """Whether it was closed; without `steps` nobody is asked what the study lacks."""
        comparison = _NOT_ASKED if steps is None else self._comparison(watched, steps)
        complete = watched.quiet_s >= quiet_needed_s(watched.row, self.rules, comparison.standing)
        return complete and self._close(watched.row, comparison, now)

    def _look(self, row: ReceivingStudy, is_open: bool, passed_s: float) -> _Watched:
        watched = self._watched.get(row.study_instance_uid)
        if watched is None or (watched.row.revision, watched.row.last_received) != (row.revision, row.last_received):
            if watched is not None:
                watched.forget_answer()
            return _Watched(row)
        watched.unchanged_s += passed_s
        # A sender may bring again what we have before it brings the rest, or pause, but not for ever.
        if (is_open or watched.row != row) and watched.unchanged_s < LONGEST_PAUSE_S:
            watched.forget_answer()
            watched.quiet_s = 0.0
        else:
            watched.quiet_s += passed_s
        watched.row = row
        return watched

    def _comparison(self, watched: _Watched, steps: tuple[Step, ...]) -> Comparison:
        """What its modality's steps say, or else its source, which is asked once each time the study becomes quiet."""
        uid = watched.row.study_instance_uid
        made = compare_made(index.instances_by_series(self.engine, uid), steps) if steps else _NOT_ASKED
        source = self.sources.get(watched.row.calling_ae_title)
        is_told = made.standing in (Standing.IN_PROGRESS, Standing.PART, Standing.ALL_MADE)
        if is_told or source is None or self.ask is None:
            return made
        if watched.answer is None:
            watched.answer = self._asker(source).submit(self._compared, source, uid)
        if not watched.answer.done():
            return Comparison(standing=Standing.ASKED)
        answer = watched.answer
        if answer.exception() is not None:
            # The index failed, not the source: this look is told, and the next one asks anew.
            watched.answer = None
        return answer.result()

    def _compared(self, source: Source, study_instance_uid: str) -> Comparison:
        assert self.ask is not None
        try:
            count = self.ask(source, study_instance_uid)
        except Exception as error:  # noqa: BLE001  # edge: whatever a source does, its studies close by the quiet period
            reason = str(error) if isinstance(error, DeliveryError) else type(error).__name__
            emit(Event.SOURCE_NOT_ANSWERING, level="warning", source=source.name, reason=reason)
            return _NOT_ASKED
        return compare(index.count_series(self.engine, study_instance_uid), count)

    def _asker(self, source: Source) -> ThreadPoolExecutor:
        """One thread a source: a source that hangs delays no other, and none has more than one association of ours."""
        if source.name not in self._askers:
            self._askers[source.name] = ThreadPoolExecutor(1, thread_name_prefix=f"ask-{source.name}")
        return self._askers[source.name]

    def _close(self, row: ReceivingStudy, comparison: Comparison, now: float) -> bool:
        uid = row.study_instance_uid
        rule = self.rule_of(uid)
        # A report that is out already is amended by late images, whatever they make of the study.
        analyse = rule is None or rule.analyse or index.get_report(self.engine, uid) is not None
        to = StudyState.QUEUED if analyse else StudyState.EXCLUDED
        lacks = comparison.standing is Standing.PART
        with self.engine.begin() as connection:
            if not ledger.close_study(
                connection, uid, revision=row.revision, last_received=row.last_received, now=now, to=to
            ):
                return False
            if rule is not None:
                ledger.record_rule(connection, uid, row.revision, rule=rule.name, destinations=rule.destinations)
            if lacks and comparison.expected is not None:
                ledger.record_shortfall(
                    connection, uid, row.revision, received=comparison.received, expected=comparison.expected
                )
            if analyse:
                self.jobs.submit_analysis(connection, uid, row.revision, created=now, priority=row.priority)
        about: dict[str, Any] = {"study_instance_uid": uid, "revision": row.revision}
        numbers: dict[str, Any] = {"received": comparison.received, "expected": comparison.expected}
        if lacks:
            emit(Event.STUDY_LACKS_IMAGES, level="warning", **about, **numbers)
        decided = {"rule": rule.name} if rule is not None else {}
        counted = numbers if comparison.standing in (Standing.ALL, Standing.ALL_MADE) else {}
        emit(Event.STUDY_COMPLETE if analyse else Event.STUDY_EXCLUDED, **about, **decided, **counted)
        return True


def _receiving(engine: sa.Engine) -> tuple[ReceivingStudy, ...]:
    columns = [study.c[name] for name in ReceivingStudy.__slots__]
    query = sa.select(*columns).where(study.c.state == StudyState.RECEIVING).order_by(study.c.last_received)
    with engine.connect() as connection:
        return tuple(ReceivingStudy(**row) for row in connection.execute(query).mappings())
