"""A report reaches its destinations whatever these do; what cannot be analysed or delivered is parked."""

import pytest
from pydicom import dcmread
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage
from running import end, free_port, make_settings, pacs, restricted_storescp, role, start_role, storescu, wait_until
from stand_in import all_delivered, analyses, delivery_states, in_state, own_worker, results, to, write_study

from dicom_gateway.operate import list_parked, replay, service_status
from dicom_gateway.settings import Destination
from dicom_gateway.store import index
from dicom_gateway.store.schema import DeliveryState, StudyState, open_database

pytestmark = pytest.mark.acceptance


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
