"""What was acknowledged is reported once to each destination, whoever is killed and whenever."""

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from factories import make_ct_dataset, save_ct
from pydicom import dcmread
from pydicom.uid import (
    ComprehensiveSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE
from query_scp import query_scp, series
from running import (
    ROOT,
    dcmtk,
    end,
    free_port,
    make_settings,
    pacs,
    restricted_storescp,
    role,
    start_role,
    storescu,
    wait_until,
)
from trials import kill, senders, storage

from dicom_gateway.operate import list_parked, replay, service_status
from dicom_gateway.report.content import Report
from dicom_gateway.report.instance import object_uid
from dicom_gateway.settings import Destination
from dicom_gateway.store import index
from dicom_gateway.store.files import REPORT_NAME, result_path
from dicom_gateway.store.schema import DeliveryState, StudyState, open_database
from imaging.uids import derive_uid

pytestmark = pytest.mark.acceptance
WORKER = ROOT / "tests" / "worker_with_own_analysis.py"


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


def to(peer, name="pacs"):
    return Destination(name=name, ae_title="PACS", host="127.0.0.1", port=peer.port)


def own_worker(tmp_path, *arguments):
    return [str(WORKER), str(tmp_path / "analyses.log"), *map(str, arguments)]


def analyses(tmp_path):
    log = tmp_path / "analyses.log"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def write_study(folder: Path, name: str, count: int = 3) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    uid = derive_uid("durability", name)
    for number in range(1, count + 1):
        save_ct(folder / f"{name}-{number}.dcm", StudyInstanceUID=uid, InstanceNumber=number)
    return uid


def results(settings, uid: str, revision: int = 1) -> dict[str, int]:
    """What a destination without Segmentations must have received: SR and summary page of a study, each once."""
    record = Report.model_validate_json((settings.data_dir / result_path(uid, revision) / REPORT_NAME).read_bytes())
    return {object_uid(record, "sop", kind, "1"): 1 for kind in ("SR-ALONE", "SC")}


def in_state(settings, state, count=1):
    engine = open_database(settings.database)
    try:
        return len(index.list_studies(engine, limit=100, state=state)) >= count
    finally:
        engine.dispose()


def delivery_states(settings):
    engine = open_database(settings.database)
    try:
        return [row.state for row in index.list_deliveries(engine)]
    finally:
        engine.dispose()


def all_delivered(settings, count):
    return delivery_states(settings) == count * [DeliveryState.DELIVERED]


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


def test_a_study_whose_analysis_hangs_is_parked_with_the_reason(tmp_path):
    uid = write_study(tmp_path / "out", "hangs")
    settings = make_settings(tmp_path, analysis_timeout_s=0.5)
    with role(settings, "listener"):
        assert storescu(settings, tmp_path / "out").returncode == 0
        for _ in range(4):
            worker = start_role(settings, "worker", own_worker(tmp_path, 3600))
            assert worker.wait(60) == 1
            end(worker)
        with role(settings, "worker", own_worker(tmp_path, 3600)):
            wait_until(lambda: in_state(settings, StudyState.FAILED), "the study to be given up")
    assert len(analyses(tmp_path)) == 4
    (parked,) = list_parked(settings)
    assert (parked.study_instance_uid, parked.error) == (
        uid,
        "the analysis took longer than analysis_timeout_s (0.5 s)",
    )


def test_a_study_that_kills_its_worker_is_parked_and_replayable(tmp_path):
    uid = write_study(tmp_path / "out", "poison")
    with pacs() as peer:
        settings = make_settings(tmp_path, destinations=(to(peer),))
        with role(settings, "listener"):
            worker = start_role(settings, "worker", own_worker(tmp_path, 0, "die"))
            assert storescu(settings, tmp_path / "out").returncode == 0

            def parked_after_restarts():
                nonlocal worker
                if worker.poll() is not None:
                    end(worker)
                    worker = start_role(settings, "worker", own_worker(tmp_path, 0, "die"))
                return in_state(settings, StudyState.FAILED)

            wait_until(parked_after_restarts, "the study to be given up", 120)
            assert len(analyses(tmp_path)) == 4
            (tmp_path / "analyses.mend").touch()
            assert [job.study_instance_uid for job in list_parked(settings)] == [uid]
            assert len(replay(settings, uid)) == 1
            wait_until(lambda: all_delivered(settings, 1), "delivery after the replay")
            end(worker)
    assert peer.received == results(settings, uid)


def test_failed_analysis_is_visible_without_patient_data_and_replayable(tmp_path):
    uid = write_study(tmp_path / "out", "fails")
    with pacs() as peer:
        settings = make_settings(tmp_path, destinations=(to(peer),))
        with role(settings, "listener"), role(settings, "worker", own_worker(tmp_path, 0, "fail")):
            assert storescu(settings, tmp_path / "out").returncode == 0
            wait_until(lambda: in_state(settings, StudyState.FAILED), "the failure")
            (job,) = list_parked(settings)
            assert (job.study_instance_uid, job.error) == (uid, "ArithmeticError")
            (tmp_path / "analyses.mend").touch()
            assert replay(settings, job.job_id) == (job.job_id,)
            wait_until(lambda: all_delivered(settings, 1), "delivery after the replay")
            assert list_parked(settings) == ()
            assert replay(settings, uid) == ()


def test_destination_away_is_tried_again_and_refusal_is_parked(tmp_path):
    uid = write_study(tmp_path / "out", "away")
    port = free_port()
    with pacs() as refusing:
        refusing.status = 0xC000
        away = Destination(name="away", ae_title="PACS", host="127.0.0.1", port=port)
        settings = make_settings(tmp_path, destinations=(away, to(refusing, "refusing")))
        with role(settings, "listener"), role(settings, "worker", own_worker(tmp_path)):
            assert storescu(settings, tmp_path / "out").returncode == 0
            expected = sorted([DeliveryState.DELAYED, DeliveryState.PARKED])
            wait_until(lambda: sorted(delivery_states(settings)) == expected, "one delayed, one parked")
            (parked,) = list_parked(settings)
            assert parked.destination == "refusing"
            assert "0xC000" in parked.error
            refusing.status = 0x0000
            with pacs(port) as back:
                assert replay(settings, parked.job_id) == (parked.job_id,)
                wait_until(lambda: all_delivered(settings, 2), "both deliveries")
                assert back.received == results(settings, uid)
    assert refusing.received == results(settings, uid)


def test_a_receiver_in_trouble_gets_the_same_objects_in_the_end(tmp_path):
    """It drops the association in mid delivery, is full, and drops it at the first object; then it is well."""
    uid = write_study(tmp_path / "out", "trouble")
    with pacs() as peer:
        peer.answers = [0x0000, None, 0xA700, None]
        settings = make_settings(tmp_path, destinations=(to(peer),))
        with role(settings, "listener"), role(settings, "worker", own_worker(tmp_path)):
            assert storescu(settings, tmp_path / "out").returncode == 0
            wait_until(lambda: all_delivered(settings, 1), "the delivery")
    # What was acknowledged before the association broke comes once more, under the same UID with the same bytes.
    assert set(peer.received) == set(results(settings, uid))
    assert {uid: len(digests) for uid, digests in peer.digests.items()} == results(settings, uid)


def test_a_receiver_without_3d_sr_and_segmentations_gets_what_it_takes(tmp_path):
    write_study(tmp_path / "out", "restricted")
    classes = ("ComprehensiveSRStorage", "SecondaryCaptureImageStorage")
    with restricted_storescp(tmp_path, *classes) as (port, received):
        peer = Destination(name="old", ae_title="PACS", host="127.0.0.1", port=port)
        settings = make_settings(tmp_path, destinations=(peer,))
        with role(settings, "listener"), role(settings, "worker", own_worker(tmp_path)):
            assert storescu(settings, tmp_path / "out").returncode == 0
            wait_until(lambda: all_delivered(settings, 1), "the delivery")
    classes = {str(dcmread(path).SOPClassUID) for path in received.iterdir()}
    assert classes == {ComprehensiveSRStorage, SecondaryCaptureImageStorage}
    engine = open_database(settings.database)
    (row,) = index.list_deliveries(engine)
    engine.dispose()
    assert [(o.name, o.sent_as) for o in row.outcomes] == [("sr", "sr_comprehensive"), ("seg", None), ("sc", "sc")]


def test_last_attempt_is_parked(tmp_path):
    write_study(tmp_path / "out", "never")
    away = Destination(name="away", ae_title="PACS", host="127.0.0.1", port=free_port())
    settings = make_settings(tmp_path, destinations=(away,), delivery_attempts=2, delivery_backoff_s=0.2)
    with role(settings, "listener"), role(settings, "worker", own_worker(tmp_path)):
        assert storescu(settings, tmp_path / "out").returncode == 0
        wait_until(lambda: delivery_states(settings) == [DeliveryState.PARKED], "the delivery to be parked")
    engine = open_database(settings.database)
    (row,) = index.list_deliveries(engine)
    engine.dispose()
    assert row.attempts == 2
    assert service_status(settings).counts.deliveries[DeliveryState.PARKED] == 1


def test_late_image_amends_the_report(tmp_path):
    uid = write_study(tmp_path / "out", "late")
    write_study(tmp_path / "late", "late", count=4)
    with pacs() as peer:
        settings = make_settings(tmp_path, destinations=(to(peer),))
        with role(settings, "listener"), role(settings, "worker", own_worker(tmp_path)):
            assert storescu(settings, tmp_path / "out").returncode == 0
            wait_until(lambda: all_delivered(settings, 1), "the first report")
            # The whole study again, with one image more: three duplicates and a late image.
            assert storescu(settings, tmp_path / "late").returncode == 0
            wait_until(lambda: all_delivered(settings, 2), "the amended report")
            # Nothing new: nothing happens.
            assert storescu(settings, tmp_path / "out").returncode == 0
            assert in_state(settings, StudyState.REFUSED)
    assert peer.received == results(settings, uid, 1) | results(settings, uid, 2)
    assert [row[1:3] for row in analyses(tmp_path)] == [["1", "3"], ["2", "4"]]
