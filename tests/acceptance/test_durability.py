"""What was acknowledged is reported once to each destination, whoever is killed and whenever."""

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from factories import make_ct_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from query_scp import query_scp, series
from running import dcmtk, end, free_port, make_settings, pacs, role, start_role, storescu, wait_until
from stand_in import all_delivered, analyses, in_state, own_worker, results, to, write_study
from trials import kill, senders, storage

from dicom_gateway.store import index
from dicom_gateway.store.schema import StudyState, open_database
from imaging.uids import derive_uid

pytestmark = pytest.mark.acceptance


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request, tmp_path):
    """Both databases; PostgreSQL as a server of this test's own."""
    if request.param == "sqlite":
        yield None
        return
    with postgres(tmp_path) as url:
        yield url


@contextmanager
def postgres(tmp_path):
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed")
    if shutil.which("runuser") is None or Path("/").owner() != "root":
        pytest.skip("starting PostgreSQL for a test needs root and runuser")
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/onescan-pg-XXXXXX"], text=True).strip())
    shutil.chown(folder, "postgres")
    port = free_port()

    def run(program, *arguments):
        command = ["runuser", "-u", "postgres", "--", str(programs[-1] / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/tmp")

    run("initdb", "-D", str(folder / "db"), "-A", "trust", "-U", "onescan")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    run("pg_ctl", "-D", str(folder / "db"), "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "onescan", "onescan")
        yield f"postgresql://onescan@127.0.0.1:{port}/onescan"
    finally:
        run("pg_ctl", "-D", str(folder / "db"), "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


def test_every_study_reaches_every_destination_once(tmp_path, database_url):
    # A folder each: by turns, a busy machine can take longer to come back to a study than its quiet period.
    uids = [write_study(tmp_path / "out" / name, name) for name in ("a", "b", "c")]
    with pacs() as first, pacs() as second:
        settings = make_settings(tmp_path, database_url=database_url, destinations=(to(first), to(second, "research")))
        with role(settings, "listener"), role(settings, "worker", own_worker(tmp_path)):
            sent = storescu(settings, tmp_path / "out", "+r")
            assert sent.returncode == 0, sent.stderr
            wait_until(lambda: all_delivered(settings, 6), "six deliveries")
            assert in_state(settings, StudyState.REFUSED, 3)
    for peer in (first, second):
        assert peer.received == {key: 1 for uid in uids for key in results(settings, uid)}
    assert sorted(row[0] for row in analyses(tmp_path)) == sorted(uids)


@pytest.fixture
def needs_storescu():
    if dcmtk("storescu") is None:
        pytest.skip("DCMTK (storescu) is not installed")


def test_listener_killed_at_random_points(tmp_path, needs_storescu):
    tally = kill.kill_listener(tmp_path, trials=2, seed=7)
    assert (tally.tried, tally.broken) == (2, {}), tally


def test_senders_that_break_off_repeat_race_and_reuse_uids(tmp_path, needs_storescu):
    for tally in senders.trouble(tmp_path, trials=1, seed=7):
        assert (tally.tried, tally.broken) == (1, {}), tally
        assert tally.notes.get("refused") == tally.notes.get("counted for the operator"), tally
        assert not tally.notes.get("acknowledged to both"), tally


@pytest.mark.parametrize("fault", [storage.full_to_the_floor, storage.full, storage.gone, storage.another_disk])
def test_storage_fails_and_is_well_again(tmp_path, needs_storescu, fault):
    if shutil.which("mkfs.ext4") is None or os.geteuid() != 0:
        pytest.skip("a file system of its own needs root and mkfs.ext4")
    floor_mb = storage.FLOOR_MB if fault is storage.full_to_the_floor else 0
    with storage.disk(tmp_path / "site") as site:
        settings = make_settings(site, minimum_free_space_mb=floor_mb)
        tally = storage.fail("fault", settings, tmp_path / "out", fault, trials=1, seed=7)
    assert (tally.tried, tally.broken) == (1, {}), tally
    assert (tally.notes["taken after it"], tally.notes["another refusal"]) == (storage.IMAGES, 0), tally


def test_complete_as_soon_as_the_source_has_no_more(tmp_path, needs_storescu):
    """Neither the quiet period nor the wait for missing images ends within this test."""
    image = make_ct_dataset(StudyInstanceUID=derive_uid("durability", "counted"))
    answers = {("SERIES", ""): [series(image.SeriesInstanceUID, number=3), series("1.2.3", "SR", 1)]}
    with query_scp(answers) as source:
        settings = make_settings(tmp_path, sources=(source,), quiet_period_s=600.0)
        uid = write_study(tmp_path / "part", "counted", count=2)
        write_study(tmp_path / "rest", "counted", count=3)
        with role(settings, "listener"):
            assert storescu(settings, tmp_path / "part").returncode == 0
            time.sleep(3)
            assert in_state(settings, StudyState.RECEIVING)
            assert storescu(settings, tmp_path / "rest").returncode == 0
            wait_until(lambda: in_state(settings, StudyState.QUEUED), "the study is complete")
    engine = open_database(settings.database)
    assert index.get_study(engine, uid).revision == 1
    engine.dispose()


def test_what_the_source_never_sends_is_waited_for_and_told(tmp_path, needs_storescu):
    image = make_ct_dataset(StudyInstanceUID=derive_uid("durability", "short"))
    with query_scp({("SERIES", ""): [series(image.SeriesInstanceUID, number=5)]}) as source:
        settings = make_settings(tmp_path, sources=(source,), missing_images_wait_s=3.0)
        uid = write_study(tmp_path / "out", "short")
        with role(settings, "listener"):
            assert storescu(settings, tmp_path / "out").returncode == 0
            time.sleep(2)
            assert in_state(settings, StudyState.RECEIVING)
            wait_until(lambda: in_state(settings, StudyState.QUEUED), "the study is given up")
    engine = open_database(settings.database)
    assert index.get_shortfall(engine, uid, 1) == index.Shortfall(received=3, expected=5)
    engine.dispose()


def test_worker_killed_in_mid_analysis(tmp_path, database_url):
    uid = write_study(tmp_path / "out", "killed")
    with pacs() as peer:
        settings = make_settings(tmp_path, database_url=database_url, destinations=(to(peer),))
        with role(settings, "listener"):
            worker = start_role(settings, "worker", own_worker(tmp_path, 120))
            assert storescu(settings, tmp_path / "out").returncode == 0
            wait_until(lambda: analyses(tmp_path), "the analysis to start")
            assert in_state(settings, StudyState.ANALYSING)
            end(worker)
            with role(settings, "worker", own_worker(tmp_path)):
                wait_until(lambda: all_delivered(settings, 1), "delivery after the restart", 90)
    assert peer.received == results(settings, uid)
    first, second = analyses(tmp_path)
    # The same time of creation, so that the second run makes the very same objects.
    assert first == second


def test_listener_killed_in_mid_association(tmp_path):
    uid = derive_uid("durability", "listener")
    images = [make_ct_dataset(StudyInstanceUID=uid, InstanceNumber=number) for number in range(1, 41)]
    with pacs() as peer:
        settings = make_settings(tmp_path, destinations=(to(peer),))
        listener = start_role(settings, "listener")
        entity = AE(ae_title="CT1")
        entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        association = entity.associate("127.0.0.1", settings.dicom_port, ae_title=settings.ae_title)
        acknowledged = []
        for image in images[:25]:
            if "Status" in (answer := association.send_c_store(image)) and answer.Status == 0x0000:
                acknowledged.append(image.SOPInstanceUID)
        # What a kill between file and row leaves, and between the first byte and the last.
        orphan = settings.studies_dir / uid / images[30].SeriesInstanceUID
        images[30].save_as(orphan / f"{images[30].SOPInstanceUID}.dcm", enforce_file_format=True)
        (settings.incoming_dir / "half.part").write_bytes(b"half")
        end(listener)
        association.abort()
        with role(settings, "listener"), role(settings, "worker", own_worker(tmp_path)):
            wait_until(lambda: all_delivered(settings, 1), "delivery")
        engine = open_database(settings.database)
        stored = {row.sop_instance_uid for row in index.list_instances(engine, uid, 1)}
        engine.dispose()
    assert len(acknowledged) == 25
    assert stored == {*acknowledged, images[30].SOPInstanceUID}
    assert peer.received == results(settings, uid)
    assert analyses(tmp_path)[0][2] == "26"
    assert list(settings.incoming_dir.iterdir()) == []


def test_everything_killed_again_and_again(tmp_path):
    uids = [write_study(tmp_path / f"out{number}", f"again{number}") for number in range(4)]
    with pacs() as peer:
        settings = make_settings(tmp_path, destinations=(to(peer),))
        for number in range(4):
            listener = start_role(settings, "listener")
            worker = start_role(settings, "worker", own_worker(tmp_path, 0.5))
            assert storescu(settings, tmp_path / f"out{number}").returncode == 0
            if number % 2:
                wait_until(lambda number=number: len(analyses(tmp_path)) > number, "some analysis")
            end(worker)
            end(listener)
        with role(settings, "listener"), role(settings, "worker", own_worker(tmp_path)):
            wait_until(lambda: all_delivered(settings, 4), "four deliveries")
    # A kill between the peer's acknowledgement and our note of it may send an object twice, under the same UID.
    assert set(peer.received) == {key for uid in uids for key in results(settings, uid)}
