"""When a study is complete, as pure rules and on a real index."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import make_settings

from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.receive.assembly import (
    QuietRules,
    ReceivingStudy,
    close_quiet_studies,
    closes_at,
    is_complete,
)
from dicom_gateway.store import index, ledger
from dicom_gateway.store.files import StoredFile, instance_path
from dicom_gateway.store.schema import StudyState, open_database
from imaging.uids import derive_uid

RULES = QuietRules(quiet_period_s=5.0, quiet_period_single_image_s=30.0)
STUDY = derive_uid("assembly")
times = st.floats(0, 1e6, allow_nan=False)


def receiving(last_received=100.0, last_released=100.0, largest_association=10):
    return ReceivingStudy(
        study_instance_uid=STUDY,
        revision=1,
        priority=100,
        last_received=last_received,
        last_released=last_released,
        largest_association=largest_association,
    )


@pytest.mark.parametrize(
    ("row", "now", "complete"),
    [
        (receiving(), 104.9, False),
        (receiving(), 105.0, True),
        (receiving(last_released=103.0), 107.9, False),
        (receiving(last_released=103.0), 108.0, True),
        (receiving(largest_association=1), 105.0, False),
        (receiving(largest_association=1), 130.0, True),
    ],
)
def test_quiet_period(row, now, complete):
    assert is_complete(row, RULES, open_studies=(), now=now) == complete


@given(times, times, st.integers(0, 500), times)
def test_never_while_an_association_sends_it(received, released, largest, now):
    row = receiving(received, released, largest)
    assert not is_complete(row, RULES, open_studies={STUDY}, now=now)


@given(times, times, st.integers(0, 500), times)
def test_complete_exactly_from_its_closing_time_on(received, released, largest, now):
    row = receiving(received, released, largest)
    assert is_complete(row, RULES, open_studies={"1.2.3"}, now=now) == (now >= closes_at(row, RULES))
    assert closes_at(row, RULES) >= max(received, released) + RULES.quiet_period_s


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


def record(engine, number, now, association_count=2, sha256="0" * 64):
    header = ledger.InstanceHeader(
        sop_instance_uid=derive_uid("assembly", str(number)),
        series_instance_uid="1.2",
        study_instance_uid=STUDY,
        patient_name="",
        patient_id="",
        study_date="",
        description="",
        accession_number="",
    )
    path = instance_path(STUDY, "1.2", header.sop_instance_uid)
    file = StoredFile(path=path, sha256=sha256, size_bytes=1)
    with engine.begin() as connection:
        return ledger.record_instance(
            connection, header, file, calling_ae_title="CT1", association_count=association_count, now=now
        )


def test_study_and_job_change_together(engine, jobs):
    record(engine, 1, now=100.0)
    assert close_quiet_studies(engine, jobs, RULES, open_studies=(), now=104.0) == ()
    assert close_quiet_studies(engine, jobs, RULES, open_studies={STUDY}, now=200.0) == ()
    assert close_quiet_studies(engine, jobs, RULES, open_studies=(), now=105.0) == (STUDY,)
    assert index.get_study(engine, STUDY).state == StudyState.QUEUED
    assert jobs.waiting() == {"studies": 1}
    assert close_quiet_studies(engine, jobs, RULES, open_studies=(), now=300.0) == ()
    assert jobs.waiting() == {"studies": 1}


def test_image_that_arrives_while_the_study_is_closed_keeps_it_open(engine, jobs):
    record(engine, 1, now=100.0)
    with engine.begin() as connection:
        assert not ledger.close_study(connection, STUDY, revision=1, last_received=99.0, now=110.0)
    assert index.get_study(engine, STUDY).state == StudyState.RECEIVING


def test_late_image_opens_the_next_revision(engine, jobs):
    record(engine, 1, now=100.0)
    close_quiet_studies(engine, jobs, RULES, open_studies=(), now=105.0)
    assert record(engine, 2, now=200.0).reopened
    assert index.get_study(engine, STUDY).revision == 2
    assert close_quiet_studies(engine, jobs, RULES, open_studies=(), now=205.0) == (STUDY,)
    assert jobs.waiting() == {"studies": 2}
    assert [len(index.list_instances(engine, STUDY, revision)) for revision in (1, 2)] == [1, 2]


def test_duplicate_does_not_open_a_closed_study(engine, jobs):
    record(engine, 1, now=100.0)
    close_quiet_studies(engine, jobs, RULES, open_studies=(), now=105.0)
    receipt = record(engine, 1, now=200.0)
    assert (receipt.duplicate, receipt.reopened) == (True, False)
    assert index.get_study(engine, STUDY).state == StudyState.QUEUED


def test_release_starts_the_quiet_period_again(engine, jobs):
    record(engine, 1, now=100.0)
    with engine.begin() as connection:
        ledger.mark_released(connection, frozenset({STUDY}), 150.0)
    assert close_quiet_studies(engine, jobs, RULES, open_studies=(), now=154.0) == ()
    assert close_quiet_studies(engine, jobs, RULES, open_studies=(), now=155.0) == (STUDY,)


def test_one_association_an_image_waits_longer(engine, jobs):
    for number in range(3):
        record(engine, number, now=100.0 + number, association_count=1)
    assert close_quiet_studies(engine, jobs, RULES, open_studies=(), now=131.0) == ()
    assert close_quiet_studies(engine, jobs, RULES, open_studies=(), now=132.0) == (STUDY,)
