"""Jobs: ids, what they may carry, priorities, and transactions."""

import json
import threading

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from running import make_settings
from structlog.testing import capture_logs

from dicom_gateway.jobs.housekeeping import Housekeeper, beat, dead_executors, newest_beat_age_s, stop_beating
from dicom_gateway.jobs.queue import (
    BATCH,
    ROUTINE,
    STAT,
    JobError,
    JobQueue,
    JsonSerializer,
    analysis_id,
    parse_job_id,
)
from dicom_gateway.store.schema import open_database, worker_heartbeat

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


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


@given(json_values)
def test_values_survive(value):
    serializer = JsonSerializer()
    assert serializer.deserialize(serializer.serialize({"args": [value], "kwargs": {}}))["args"] == [value]


def test_an_error_keeps_its_class_and_nothing_of_its_message():
    text = JsonSerializer().serialize(ValueError("Test^Patient"))
    assert json.loads(text) == {"__error__": "ValueError"}
    assert isinstance(JsonSerializer().deserialize(text), JobError)


def test_objects_are_not_carried():
    with pytest.raises(TypeError):
        JsonSerializer().serialize({"args": [object()]})


@given(st.integers(1, 99), st.integers(0, 2**40))
def test_ids_name_their_study(revision, run):
    assert parse_job_id(analysis_id("1.2.3", revision, run)) == ("1.2.3", revision, str(run))


@pytest.mark.parametrize("text", ["", "study:1.2", "other:1.2:r1:0", "study:1.2:x1:0"])
def test_other_ids_are_not_ours(text):
    with pytest.raises(ValueError, match="not the id"):
        parse_job_id(text)


def test_stat_before_routine_before_batch():
    # 0 would be "unset" to the engine, and overtake everything.
    assert 0 < STAT < ROUTINE < BATCH


def test_a_job_lives_and_dies_with_its_transaction(engine, jobs):
    def submit(connection):
        return jobs.submit_analysis(connection, "1.2.3", 1, created=1.0, priority=ROUTINE)

    with pytest.raises(RuntimeError, match="undone"), engine.begin() as connection:
        submit(connection)
        raise RuntimeError("undone")
    assert jobs.waiting() == {}
    for _ in range(2):
        with engine.begin() as connection:
            submit(connection)
    assert jobs.waiting() == {"studies": 1}


def test_each_destination_has_its_own_queue(engine, jobs):
    with engine.begin() as connection:
        for name in ("a", "b"):
            jobs.submit_delivery(connection, "1.2.3", 1, name, attempt=1, attempts_left=3)
        jobs.submit_delivery(connection, "1.2.3", 1, "b", attempt=2, attempts_left=2, delay_s=60.0)
    assert jobs.waiting() == {"deliver-a": 1, "deliver-b": 2}


def test_who_is_dead(engine, jobs):
    assert newest_beat_age_s(engine) is None
    with engine.begin() as connection:
        jobs.submit_analysis(connection, "1.2.3", 1, created=1.0, priority=ROUTINE)
        connection.execute(sa.text("update workflow_status set status = 'PENDING', executor_id = 'one'"))
    assert dead_executors(engine) == ["one"]
    beat(engine, "one")
    assert dead_executors(engine) == []
    assert newest_beat_age_s(engine) < 30
    with engine.begin() as connection:
        connection.execute(sa.update(worker_heartbeat).values(seen=worker_heartbeat.c.seen - 60))
    assert dead_executors(engine) == ["one"]
    beat(engine, "one")
    stop_beating(engine, "one")
    assert dead_executors(engine) == ["one"]


class TwoRounds(threading.Event):
    """Set after two waits, which take no time."""

    def __init__(self):
        super().__init__()
        self.rounds = 0

    def wait(self, timeout=None):
        self.rounds += 1
        return self.rounds > 2


def test_housekeeping_goes_on_after_any_error(engine, jobs):
    with engine.begin() as connection:
        jobs.submit_analysis(connection, "1.2.3", 1, created=1.0, priority=ROUTINE)
        connection.execute(sa.text("update workflow_status set status = 'ERROR', workflow_uuid = 'of somebody else'"))
    with capture_logs() as logs:
        Housekeeper(engine, jobs, "one", judge_after=0.0, on_parked=lambda *_: None).run(TwoRounds())
    assert [(log["event"], log["error"]) for log in logs] == 2 * [("housekeeping_failed", "ValueError")]
