"""Files of the store and the index."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from factories import make_ct_dataset, save_ct
from hypothesis import given
from hypothesis import strategies as st
from running import make_settings

from dicom_gateway.errors import ConflictingInstance, StorageFull
from dicom_gateway.receive.reconcile import reconcile
from dicom_gateway.store import files, index, ledger
from dicom_gateway.store.schema import DeliveryState, ObjectOutcome, StudyState, create_tables, open_database
from imaging.uids import derive_uid

META = bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00" + (4).to_bytes(4, "little") + b"meta"
PATH = files.instance_path("1.2", "1.3", "1.4")


@pytest.fixture
def settings(tmp_path):
    return make_settings(tmp_path)


@pytest.fixture
def engine(settings):
    opened = open_database(settings.database)
    yield opened
    opened.dispose()


@given(st.text(alphabet="0123456789./\\\0 a~-", max_size=70), st.integers(0, 2))
def test_a_path_never_leaves_its_folder(text, place):
    uids = ["1.2", "1.3", "1.4"]
    uids[place] = text
    try:
        path = files.instance_path(*uids)
    except ValueError:
        return
    assert len(path.parts) == 4
    assert path.parts[0] == "studies"
    assert not {"", ".", ".."} & set(path.parts)


def keep(settings, content: bytes) -> files.StoredFile:
    part = files.PartFile(settings.data_dir, META)
    part.write(content)
    stored, _is_new = part.place(PATH)
    return stored


@pytest.mark.parametrize(("clock_s", "found"), [(1e9 + 10, 1), (1e9 - 86400, 2)])
def test_only_what_came_last_can_lack_its_row(settings, engine, clock_s, found):
    """Unless the clock was set back: then every series is looked at."""
    for number, folder_time in ((1, 1e9), (2, 1e9 + 5), (3, 1e9 - 10 * 86400)):
        image = make_ct_dataset(SeriesInstanceUID=f"1.2.{number}", SOPInstanceUID=f"1.2.{number}.1")
        path = files.instance_path(image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID)
        target = settings.data_dir / path
        target.parent.mkdir(parents=True)
        image.save_as(target, enforce_file_format=True)
        os.utime(target.parent, (folder_time, folder_time))
        if number == 1:
            assert reconcile(engine, settings, 1e9) == (1, 0)
    assert reconcile(engine, settings, clock_s) == (found, 0)


def test_kept_bytes(settings):
    stored = keep(settings, b"data set")
    assert (settings.data_dir / PATH).read_bytes() == META + b"data set"
    assert stored == files.StoredFile(path=PATH, size_bytes=len(META) + 8)
    assert list(settings.incoming_dir.iterdir()) == []
    assert list(files.stored_paths(settings.data_dir)) == [PATH]


def test_same_again_and_other_bytes(settings):
    first = keep(settings, b"data set")
    assert keep(settings, b"data set") == first
    for other in (b"another!", b"data set longer", b"data"):
        with pytest.raises(ConflictingInstance):
            keep(settings, other)
    assert (settings.data_dir / PATH).read_bytes() == META + b"data set"
    assert list(settings.incoming_dir.iterdir()) == []


def test_an_earlier_file_of_other_meta_information_keeps_its_size(settings):
    """The same data set from another AE title, which the file meta information names."""
    first = keep(settings, b"data set")
    part = files.PartFile(settings.data_dir, META[:140] + (10).to_bytes(4, "little") + b"other meta")
    part.write(b"data set")
    assert part.place(PATH) == (first, False)
    assert first.size_bytes == (settings.data_dir / PATH).stat().st_size


def test_bytes_of_senders_at_the_same_time_never_mix(settings):
    contents = [bytes([number]) * 300_000 for number in range(8)]
    kept = []

    def send(content: bytes) -> None:
        try:
            keep(settings, content)
        except ConflictingInstance:
            return
        kept.append(content)

    threads = [threading.Thread(target=send, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 1
    assert (settings.data_dir / PATH).read_bytes() == META + kept[0]


def test_free_space_floor(settings):
    files.require_space(settings.data_dir, 1, 0)
    with pytest.raises(StorageFull):
        files.require_space(settings.data_dir, 1, 10**18)


def test_sweep(settings):
    (settings.incoming_dir / "a.part").write_bytes(b"x")
    assert files.sweep(settings.incoming_dir) == 1
    assert list(settings.incoming_dir.iterdir()) == []


def test_what_another_process_is_writing_is_not_swept(settings):
    """A second service that finds the port taken, or a listener that starts again beside an upload by HTTP."""
    part = files.PartFile(settings.data_dir, b"meta")
    assert files.sweep(settings.incoming_dir) == 0
    part.discard()
    assert list(settings.incoming_dir.iterdir()) == []


def test_what_killed_processes_left_unfinished_goes_after_a_while(tmp_path):
    old, new = tmp_path / ".a.part", tmp_path / ".b.part"
    for folder in (old, new):
        folder.mkdir()
        (folder / "report.json").write_text("{}")
    os.utime(old, (0, 0))
    with files.unfinished(tmp_path) as folder:
        assert set(tmp_path.iterdir()) == {new, folder}
    assert list(tmp_path.iterdir()) == [new]


def test_processes_that_start_at_once_make_the_tables_once(tmp_path):
    # Which of them meets whom is chance, hence many databases.
    for number in range(25):
        engines = [open_database(f"sqlite:///{tmp_path / f'{number}.sqlite'}") for _ in range(12)]
        with ThreadPoolExecutor(len(engines)) as starting:
            list(starting.map(create_tables, engines))
        assert "study" in sa.inspect(engines[0]).get_table_names()
        for engine in engines:
            engine.dispose()


def test_files_without_a_row_are_indexed_again(settings, engine):
    images = [make_ct_dataset(InstanceNumber=number) for number in (1, 2)]
    for image in images:
        path = settings.data_dir / files.instance_path(
            image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        save_ct(path, InstanceNumber=image.InstanceNumber)
    assert reconcile(engine, settings, 100.0) == (2, 0)
    assert reconcile(engine, settings, 200.0) == (0, 0)
    row = index.find_instance(engine, images[0].SOPInstanceUID)
    assert row.size_bytes == (settings.data_dir / row.path).stat().st_size
    assert index.get_study(engine, images[0].StudyInstanceUID).instance_count == 2
    path.unlink()
    assert reconcile(engine, settings, 300.0) == (0, 1)


def test_a_strange_file_does_not_stop_the_start(settings, engine):
    path = settings.data_dir / PATH
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not DICOM")
    assert reconcile(engine, settings, 100.0) == (0, 0)
    assert path.exists()


def test_what_the_index_tells(settings, engine):
    uid = derive_uid("index")
    header = ledger.InstanceHeader(
        sop_instance_uid="1.4",
        series_instance_uid="1.3",
        study_instance_uid=uid,
        patient_name="Test^Patient",
        patient_id="TEST-1",
        study_date="20260101",
        description="CT CHEST",
        accession_number="ACC1",
    )
    file = files.StoredFile(path=PATH, size_bytes=7)
    folder = files.result_path(uid, 1)
    with engine.begin() as connection:
        ledger.record_instance(connection, header, file, calling_ae_title="CT1", association_count=1, now=1000.0)
        ledger.record_report(connection, uid, 1, folder=folder, created=1001.0, outcome="refused")
        assert ledger.open_delivery(connection, uid, 1, "pacs", objects=("sr", "sc"), now=1002.0)
        assert not ledger.open_delivery(connection, uid, 1, "pacs", objects=("sr", "sc"), now=1003.0)
    (study,) = index.list_studies(engine, limit=10)
    assert study == index.get_study(engine, uid)
    assert study.first_received == datetime(1970, 1, 1, 0, 16, 40, tzinfo=UTC)
    assert (study.state, study.revision, study.patient_id) == (StudyState.RECEIVING, 1, "TEST-1")
    assert index.list_studies(engine, limit=10, state=StudyState.FAILED) == ()
    assert index.list_studies(engine, limit=10, offset=1) == ()
    report = index.get_report(engine, uid)
    assert (report.folder, report.outcome) == (Path("results") / uid / "r1", "refused")
    assert index.list_reports(engine, uid) == (report,)
    assert index.get_report(engine, uid, revision=2) is None
    (delivery,) = index.list_deliveries(engine, uid)
    assert (delivery.objects, delivery.state) == (("sr", "sc"), DeliveryState.PENDING)
    assert index.list_deliveries(engine, state=DeliveryState.PARKED) == ()
    counts = index.counts(engine)
    assert (counts.studies[StudyState.RECEIVING], counts.deliveries[DeliveryState.PENDING]) == (1, 1)
    assert set(counts.studies) == set(StudyState)


def test_a_database_of_version_0_1_0_is_brought_up_to_date(tmp_path):
    """Its deliveries are kept, and what is sent from now on is noted."""
    engine = open_database(f"sqlite:///{tmp_path / 'old.sqlite'}")
    create_tables(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("drop table delivery")
        connection.exec_driver_sql('alter table requested_commitment drop column "references"')
        connection.exec_driver_sql("alter table instance add column sha256 varchar(64) not null default ''")
        connection.exec_driver_sql(
            "create table delivery (study_instance_uid varchar(64) not null references study,"
            " revision integer not null, destination varchar(32) not null, objects varchar(32) not null,"
            " state varchar(16) not null, attempts integer not null, last_error text,"
            " next_attempt float, updated float not null, primary key (study_instance_uid, revision, destination))"
        )
        connection.exec_driver_sql(
            "insert into study values ('1.2','reported',1,100,'CT1',1,1,1,1,1,null,'','','','','',null)"
        )
        connection.exec_driver_sql("insert into delivery values ('1.2',1,'pacs','sr,sc','pending',0,null,null,1)")
    for _ in range(2):
        create_tables(engine)
    (row,) = index.list_deliveries(engine)
    assert (row.objects, row.outcomes) == (("sr", "sc"), ())
    with engine.connect() as connection:
        assert "sha256" not in {column["name"] for column in sa.inspect(connection).get_columns("instance")}
        assert "references" in {column["name"] for column in sa.inspect(connection).get_columns("requested_commitment")}
    outcome = ObjectOutcome(name="sr", sent_as="sr_text", instances=1, reason="refused")
    with engine.begin() as connection:
        ledger.change_delivery(
            connection, "1.2", 1, "pacs", to=DeliveryState.DELIVERED, now=2.0, outcomes=[asdict(outcome)]
        )
    (row,) = index.list_deliveries(engine)
    engine.dispose()
    assert row.outcomes == (outcome,)


def test_a_state_changes_only_from_where_it_was_meant_to(engine, settings):
    header = ledger.InstanceHeader(
        sop_instance_uid="1.4",
        series_instance_uid="1.3",
        study_instance_uid="1.2",
        patient_name="",
        patient_id="",
        study_date="",
        description="",
        accession_number="",
    )
    file = files.StoredFile(path=PATH, size_bytes=7)
    with engine.begin() as connection:
        ledger.record_instance(connection, header, file, calling_ae_title="X", association_count=1, now=1.0)
        to_analysing = {"to": StudyState.ANALYSING, "since": (StudyState.QUEUED,)}
        assert not ledger.change_study(connection, "1.2", 1, **to_analysing)
        assert ledger.close_study(connection, "1.2", revision=1, last_received=1.0, now=2.0)
        assert not ledger.change_study(connection, "1.2", 2, **to_analysing)
        assert ledger.change_study(connection, "1.2", 1, **to_analysing)
