"""When a study is complete, as pure rules and on a real index."""

import itertools
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import make_settings
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from dicom_gateway.errors import PeerUnreachable
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.query import ANSWER_WITHIN_S, SourceCount
from dicom_gateway.receive.assembly import (
    LONGEST_QUIET_S,
    Assembly,
    QuietRules,
    ReceivingStudy,
    quiet_needed_s,
)
from dicom_gateway.receive.expected import Comparison, Standing, compare
from dicom_gateway.receive.reception import LONGEST_PAUSE_S, OpenAssociations
from dicom_gateway.settings import Source
from dicom_gateway.store import index, ledger
from dicom_gateway.store.files import StoredFile, instance_path
from dicom_gateway.store.schema import StudyState, open_database
from imaging.uids import derive_uid

RULES = QuietRules(quiet_period_s=5.0, quiet_period_single_image_s=30.0, missing_images_wait_s=60.0)
STUDY = derive_uid("assembly")
STEP_S = 0.5
SOURCE = Source(name="ct", ae_title="CT1", host="127.0.0.1", port=104)
WALL = 1_000_000.0
series_counts = st.dictionaries(st.sampled_from(["1.1", "1.2", "1.3"]), st.integers(1, 4))


def receiving(revision=1, largest_association=10, last_released=100.0):
    return ReceivingStudy(
        study_instance_uid=STUDY,
        revision=revision,
        priority=100,
        calling_ae_title="CT1",
        last_received=100.0,
        last_released=last_released,
        largest_association=largest_association,
    )


@pytest.mark.parametrize(
    ("row", "standing", "needed_s"),
    [
        (receiving(), Standing.UNKNOWN, 5.0),
        (receiving(), Standing.BEGUN_ARE_WHOLE, 5.0),
        (receiving(), Standing.ALL, 0.0),
        (receiving(), Standing.PART, 60.0),
        (receiving(), Standing.ASKED, ANSWER_WITHIN_S),
        (receiving(largest_association=1), Standing.UNKNOWN, 30.0),
        (receiving(largest_association=1), Standing.ALL, 30.0),
        (receiving(revision=2), Standing.UNKNOWN, 20.0),
        (receiving(revision=2), Standing.ALL, 20.0),
        (receiving(revision=2, largest_association=1), Standing.UNKNOWN, 120.0),
        (receiving(revision=2, largest_association=1), Standing.PART, 120.0),
        (receiving(revision=900), Standing.UNKNOWN, LONGEST_QUIET_S),
        (receiving(last_released=0.0), Standing.UNKNOWN, 60.0),
        (receiving(last_released=0.0), Standing.BEGUN_ARE_WHOLE, 60.0),
        (receiving(last_released=0.0), Standing.ALL, 0.0),
    ],
)
def test_quiet_that_is_needed(row, standing, needed_s):
    assert quiet_needed_s(row, RULES, standing) == needed_s


@given(st.integers(1, 2000), st.integers(1, 500), st.sampled_from([0.0, 100.0]), st.sampled_from(Standing))
def test_the_quiet_that_is_needed_has_a_limit(revision, largest, released, standing):
    needed_s = quiet_needed_s(receiving(revision, largest, released), RULES, standing)
    assert 0.0 <= needed_s <= max(LONGEST_QUIET_S, RULES.missing_images_wait_s)
    if standing not in (Standing.ALL, Standing.ALL_MADE):
        assert needed_s >= quiet_needed_s(receiving(1, largest), RULES)


@pytest.mark.parametrize(
    ("held", "count", "expected"),
    [
        ({"1.1": 3}, SourceCount(series={"1.1": 3}), (Standing.ALL, 3, 3)),
        ({"1.1": 4}, SourceCount(series={"1.1": 3}), (Standing.ALL, 4, 3)),
        ({"1.1": 2}, SourceCount(series={"1.1": 3}), (Standing.PART, 2, 3)),
        ({"1.1": 3, "1.2": 1}, SourceCount(series={"1.1": 3, "1.2": 2}), (Standing.PART, 4, 5)),
        # It may have been told to send one series of two.
        ({"1.1": 3}, SourceCount(series={"1.1": 3, "1.2": 2}), (Standing.BEGUN_ARE_WHOLE, 3, 3)),
        # Somebody else sends a series too.
        ({"1.1": 3, "1.9": 1}, SourceCount(series={"1.1": 3}), (Standing.BEGUN_ARE_WHOLE, 4, 4)),
        ({"1.1": 3}, SourceCount(total=3), (Standing.ALL, 3, 3)),
        ({"1.1": 3}, SourceCount(total=2), (Standing.UNKNOWN, 3, 2)),
        ({"1.1": 3}, SourceCount(total=4, modalities=frozenset({"CT"})), (Standing.PART, 3, 4)),
        # The fourth may be a report.
        ({"1.1": 3}, SourceCount(total=4, modalities=frozenset({"CT", "SR"})), (Standing.UNKNOWN, 3, 4)),
        ({"1.1": 3}, SourceCount(total=4), (Standing.UNKNOWN, 3, 4)),
        ({"1.1": 3}, SourceCount(), (Standing.UNKNOWN, 3, None)),
    ],
)
def test_compared_with_what_the_source_has(held, count, expected):
    standing, received, number = expected
    assert compare(held, count) == Comparison(standing=standing, received=received, expected=number)


@given(series_counts, series_counts)
def test_all_means_that_the_source_has_nothing_more(held, has):
    comparison = compare(held, SourceCount(series=has))
    lacks = [uid for uid, number in has.items() if held.get(uid, 0) < number]
    if comparison.standing is Standing.ALL:
        assert held and not lacks
    if comparison.standing is Standing.PART:
        assert lacks and comparison.received < sum(held.values()) + sum(has.values())


def test_an_association_that_sends_by_turns_is_sending_all_of_its_studies():
    associations = OpenAssociations()
    sending = []
    for study in "aabba":
        associations.count("one", study)
        sending.append("".join(sorted(associations.studies())))
    assert sending == ["a", "a", "b", "b", "ab"]
    assert [associations.count("one", "c"), associations.count("two", "d")] == [1, 1]
    assert associations.studies() == {"a", "b", "c", "d"}
    associations.close("one")
    assert associations.studies() == associations.sending("two") == {"d"}


@pytest.fixture
def engine(tmp_path):
    opened = open_database(make_settings(tmp_path).database)
    yield opened
    opened.dispose()


@pytest.fixture
def jobs(engine):
    queue = JobQueue(engine)
    yield queue
    queue.close()


def record(engine, number, now, association_count=2, study_instance_uid=STUDY, calling_ae_title="CT1", released=True):
    header = ledger.InstanceHeader(
        sop_instance_uid=derive_uid("assembly", str(number)),
        series_instance_uid="1.2",
        study_instance_uid=study_instance_uid,
        patient_name="",
        patient_id="",
        study_date="",
        description="",
        accession_number="",
    )
    path = instance_path(study_instance_uid, "1.2", header.sop_instance_uid)
    file = StoredFile(path=path, size_bytes=1)
    with engine.begin() as connection:
        receipt = ledger.record_instance(
            connection, header, file, calling_ae_title=calling_ae_title, association_count=association_count, now=now
        )
        if released:
            ledger.mark_released(connection, frozenset({study_instance_uid}), now)
        return receipt


def broke(engine):
    with engine.begin() as connection:
        ledger.mark_released(connection, frozenset({STUDY}), 0.0)


class Clock:
    """An assembly looked at every half second; the wall clock goes along unless a test sets it."""

    def __init__(self, engine, jobs, answer=None, sources=(SOURCE,)):
        self.assembly = Assembly(
            engine=engine,
            jobs=jobs,
            rules=RULES,
            sources={source.ae_title: source for source in sources} if answer else {},
            ask=(lambda _source, _uid: answer()) if answer else None,
        )
        self.clock_s, self.wall = 50.0, WALL
        self.look()

    def look(self, open_studies=()):
        return self.assembly.close_complete(open_studies=open_studies, now=self.wall, clock_s=self.clock_s)

    def answered(self):
        """After the source, if asked, has answered."""
        for watched in self.assembly._watched.values():
            if watched.answer is not None:
                watched.answer.exception()

    def run(self, seconds, open_studies=()):
        """Everything that closes within this time."""
        closed = []
        for _ in range(round(seconds / STEP_S)):
            self.clock_s += STEP_S
            self.wall += STEP_S
            closed += self.look(open_studies)
            self.answered()
        return closed


def test_study_and_job_change_together(engine, jobs):
    clock = Clock(engine, jobs)
    record(engine, 1, now=clock.wall)
    assert clock.run(5.0) == []
    assert clock.run(60.0, open_studies={STUDY}) == []
    assert clock.run(4.5) == []
    assert clock.run(STEP_S) == [STUDY]
    assert index.get_study(engine, STUDY).state == StudyState.QUEUED
    assert jobs.waiting() == {"studies": 1}
    assert clock.run(300.0) == []
    assert jobs.waiting() == {"studies": 1}


def test_image_that_arrives_while_the_study_is_closed_keeps_it_open(engine, jobs):
    record(engine, 1, now=100.0)
    with engine.begin() as connection:
        assert not ledger.close_study(connection, STUDY, revision=1, last_received=99.0, now=110.0)
    assert index.get_study(engine, STUDY).state == StudyState.RECEIVING


def test_late_image_opens_the_next_revision(engine, jobs):
    clock = Clock(engine, jobs)
    record(engine, 1, now=clock.wall)
    assert clock.run(6.0) == [STUDY]
    assert record(engine, 2, now=clock.wall).reopened
    assert index.get_study(engine, STUDY).revision == 2
    assert clock.run(20.0) == []
    assert clock.run(1.0) == [STUDY]
    assert jobs.waiting() == {"studies": 2}
    assert [len(index.list_instances(engine, STUDY, revision)) for revision in (1, 2)] == [1, 2]


def test_duplicate_does_not_open_a_closed_study(engine, jobs):
    clock = Clock(engine, jobs)
    record(engine, 1, now=clock.wall)
    assert clock.run(6.0) == [STUDY]
    receipt = record(engine, 1, now=clock.wall)
    assert (receipt.duplicate, receipt.reopened) == (True, False)
    assert index.get_study(engine, STUDY).state == StudyState.QUEUED


def test_release_starts_the_quiet_period_again(engine, jobs):
    clock = Clock(engine, jobs)
    record(engine, 1, now=clock.wall)
    assert clock.run(4.0) == []
    with engine.begin() as connection:
        ledger.mark_released(connection, frozenset({STUDY}), clock.wall)
    assert clock.run(5.0) == []
    assert clock.run(1.0) == [STUDY]


def test_an_association_that_broke_leaves_time_to_send_the_rest(engine, jobs):
    clock = Clock(engine, jobs)
    record(engine, 1, now=clock.wall, released=False)
    assert clock.run(10.0, open_studies={STUDY}) == []
    broke(engine)
    assert clock.run(50.0) == []
    # Sent again from its beginning: what we have, then the rest.
    for number in (1, 2):
        record(engine, number, now=clock.wall, released=False)
        assert clock.run(10.0, open_studies={STUDY}) == []
    assert index.get_study(engine, STUDY).instance_count == 2
    with engine.begin() as connection:
        ledger.mark_released(connection, frozenset({STUDY}), clock.wall)
    assert clock.run(5.0) == []
    assert clock.run(1.0) == [STUDY]


def test_an_association_that_pauses_is_still_sending_for_some_minutes(engine, jobs):
    clock = Clock(engine, jobs)
    for number in range(2):
        record(engine, number, now=clock.wall, released=False)
        assert clock.run(LONGEST_PAUSE_S - 1.0, open_studies={STUDY}) == []
    assert clock.run(900.0, open_studies={STUDY}) == [STUDY]


def test_a_study_that_is_sent_again_and_again_is_complete_some_day(engine, jobs):
    clock = Clock(engine, jobs, answer=lambda: SourceCount(series={"1.2": 4}))
    closed = []
    for number in (0, 1, 2) * 40:
        record(engine, number, now=clock.wall)
        closed += clock.run(10.0)
    assert closed == [STUDY]
    assert index.get_shortfall(engine, STUDY, 1) == index.Shortfall(received=3, expected=4)


# What a sender may do for ever without ever sending anything new, each for some seconds.
nothing_new = st.lists(
    st.tuples(st.sampled_from(["open", "away", "duplicate", "released", "broke"]), st.integers(1, 90)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(nothing_new, st.sampled_from([None, 1, 2]), st.booleans())
def test_every_study_is_complete_some_day(nothing_new, of_source, is_released):
    with tempfile.TemporaryDirectory() as folder:
        engine = open_database(make_settings(Path(folder)).database)
        jobs = JobQueue(engine)
        clock = Clock(engine, jobs, answer=of_source and (lambda: SourceCount(series={"1.2": of_source})))
        record(engine, 1, now=clock.wall, released=is_released)
        began, closed_after_s = clock.wall, None
        for happens, seconds in itertools.cycle(nothing_new):
            match happens:
                case "duplicate":
                    record(engine, 1, now=clock.wall)
                case "released" | "broke":
                    last = clock.wall if happens == "released" else 0.0
                    with engine.begin() as connection:
                        ledger.mark_released(connection, frozenset({STUDY}), last)
            open_studies = {STUDY} if happens == "open" else ()
            if clock.run(seconds, open_studies):
                closed_after_s = clock.wall - began
                break
            assert clock.wall - began <= LONGEST_PAUSE_S + max(RULES.missing_images_wait_s, 90.0)
        jobs.close()
        engine.dispose()
    assert closed_after_s >= (0.0 if of_source == 1 else RULES.quiet_period_s)
    if nothing_new[0][0] == "open":
        assert closed_after_s >= min(nothing_new[0][1], LONGEST_PAUSE_S)


def test_one_association_an_image_waits_longer(engine, jobs):
    clock = Clock(engine, jobs)
    for number in range(3):
        record(engine, number, now=clock.wall, association_count=1)
        assert clock.run(20.0) == []
    assert clock.run(11.0) == [STUDY]


def test_an_image_a_minute_is_not_a_report_a_minute(engine, jobs):
    clock = Clock(engine, jobs)
    reports = []
    for number in range(30):
        record(engine, number, now=clock.wall, association_count=1)
        reports += clock.run(60.0)
    reports += clock.run(LONGEST_QUIET_S)
    assert len(reports) == 2
    study = index.get_study(engine, STUDY)
    assert (study.state, study.instance_count) == (StudyState.QUEUED, 30)


@pytest.mark.parametrize("jump_s", [7200.0, -7200.0])
def test_a_wall_clock_that_is_set_changes_nothing(engine, jobs, jump_s):
    clock = Clock(engine, jobs)
    record(engine, 1, now=clock.wall)
    assert clock.run(4.0) == []
    clock.wall += jump_s
    assert clock.run(1.0) == []
    record(engine, 2, now=clock.wall, association_count=3)
    assert clock.run(5.0) == []
    assert clock.run(1.0) == [STUDY]


def test_time_in_which_nobody_could_store_is_not_quiet(engine, jobs):
    clock = Clock(engine, jobs)
    record(engine, 1, now=clock.wall)
    assert clock.run(2.0) == []
    clock.clock_s += 3600.0
    assert clock.run(1.0) == []
    assert clock.run(5.0) == [STUDY]


def test_after_a_restart_the_sender_has_the_whole_quiet_period(engine, jobs):
    before = Clock(engine, jobs)
    record(engine, 1, now=before.wall)
    assert before.run(4.0) == []
    after = Clock(engine, jobs)
    after.wall, after.clock_s = WALL + 3600.0, 7.0
    assert after.run(5.0) == []
    assert after.run(1.0) == [STUDY]


def test_complete_at_once_when_the_source_has_no_more(engine, jobs):
    clock = Clock(engine, jobs, answer=lambda: SourceCount(series={"1.2": 1}))
    record(engine, 1, now=clock.wall)
    assert clock.run(60.0, open_studies={STUDY}) == []
    assert clock.run(1.5) == [STUDY]


def test_waits_for_what_the_source_has_and_says_when_it_gives_up(engine, jobs):
    clock = Clock(engine, jobs, answer=lambda: SourceCount(series={"1.2": 3}))
    record(engine, 1, now=clock.wall)
    assert clock.run(59.0) == []
    record(engine, 2, now=clock.wall)
    assert clock.run(60.0) == []
    assert clock.run(1.0) == [STUDY]
    assert index.get_shortfall(engine, STUDY, 1) == index.Shortfall(received=2, expected=3)
    record(engine, 3, now=clock.wall)
    assert clock.run(21.0) == [STUDY]
    assert index.get_shortfall(engine, STUDY, 2) is None


def fails():
    raise PeerUnreachable("not there")


@pytest.mark.parametrize("answer", [fails, lambda: 1 / 0, SourceCount])
def test_a_source_that_does_not_answer_changes_nothing(engine, jobs, answer):
    clock = Clock(engine, jobs, answer=answer)
    record(engine, 1, now=clock.wall)
    assert clock.run(5.0) == []
    assert clock.run(0.5) == [STUDY]


def test_a_study_that_cannot_be_closed_keeps_no_other_open_and_is_told_of(engine, jobs):
    clock, can_be_read = Clock(engine, jobs), []

    def rule_of(uid):
        if uid == STUDY and not can_be_read:
            raise ValueError("Test^Patient")

    clock.assembly.rule_of = rule_of
    record(engine, 1, now=clock.wall)
    record(engine, 2, now=clock.wall, study_instance_uid=derive_uid("another"))
    with capture_logs() as logs:
        assert clock.run(5.5) == [derive_uid("another")]
    assert [log for log in logs if log["event"] == "completion_failed"] == [
        {"event": "completion_failed", "log_level": "error", "study_instance_uid": STUDY, "error": "ValueError"}
    ]
    can_be_read.append(True)
    assert clock.run(0.5) == [STUDY]


def test_a_database_that_is_away_is_told_of_once_a_look(engine, jobs):
    """It is so for every study; and what the source said is asked for again where the comparison failed."""
    clock = Clock(engine, jobs, answer=lambda: SourceCount(series={"1.2": 1}))
    record(engine, 1, now=clock.wall)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "count_series", lambda *_: away())
        with pytest.raises(OperationalError):
            clock.run(1.5)
    assert clock.run(1.0) == [STUDY]


def away():
    raise OperationalError("select", {}, OSError("database is locked"))


def test_a_source_that_hangs_keeps_no_study_open_and_delays_no_other(engine, jobs):
    goes_on = threading.Event()
    clock = Clock(engine, jobs, answer=lambda: goes_on.wait(60) and SourceCount())
    clock.answered = lambda: None
    record(engine, 1, now=clock.wall)
    record(engine, 2, now=clock.wall, study_instance_uid=derive_uid("another"), calling_ae_title="CT2")
    assert clock.run(6.0) == [derive_uid("another")]
    assert clock.run(ANSWER_WITHIN_S - 6.0) == []
    assert clock.run(1.0) == [STUDY]
    goes_on.set()
