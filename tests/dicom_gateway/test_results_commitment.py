"""Storage commitment of our results: the destination is asked after it has them, and answers to our DICOM port."""

from contextlib import contextmanager

import pytest
from orthanc import orthanc
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    SecondaryCaptureImageStorage,
    StorageCommitmentPushModel,
)
from running import free_port, make_settings, wait_until
from structlog.testing import capture_logs
from worker_samples import CREATED, STUDY, receive, reported

from dicom_gateway.deliver import commitment
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.receive.commitment import SOP_INSTANCE_UID
from dicom_gateway.receive.listener import start_listener
from dicom_gateway.receive.reception import Reception
from dicom_gateway.settings import Destination, WebhookDestination
from dicom_gateway.store import index, ledger
from dicom_gateway.store.schema import CommitmentState, DeliveryState, open_database
from dicom_gateway.worker import Worker


@contextmanager
def working(tmp_path, **values):
    """A worker with a finished report, and our DICOM port beside it."""
    settings = make_settings(tmp_path, **values)
    engine = open_database(settings.database)
    jobs, listener = JobQueue(engine), start_listener(Reception(settings=settings, engine=engine))
    worker = Worker(settings=settings, engine=engine, jobs=jobs, analyse=reported)
    worker.analyse_study(STUDY, receive(worker), CREATED)
    try:
        yield worker
    finally:
        listener.shutdown()
        jobs.close()
        engine.dispose()


def destination(port, name="pacs", ae_title="PACS"):
    return Destination(name=name, ae_title=ae_title, host="127.0.0.1", port=port, storage_commitment=True)


def row_of(worker):
    return index.get_delivery(worker.engine, STUDY, 1, "pacs")


@contextmanager
def pacs_that_takes_requests(
    port,
    asked,
    sop_classes=(Comprehensive3DSRStorage, SecondaryCaptureImageStorage),
    refused=(),
    stored=None,
    on_action=None,
):
    """Storage of a class in `refused` is negotiated, and refused when it comes."""

    def on_store(event):
        if stored is not None:
            stored.append(event.request.AffectedSOPInstanceUID)
        return 0x0122 if event.request.AffectedSOPClassUID in refused else 0x0000

    def take(event):
        asked.append(event.action_information)
        return 0x0000, None

    entity = AE("PACS")
    for sop_class in (*sop_classes, StorageCommitmentPushModel):
        entity.add_supported_context(sop_class)
    handlers = [(evt.EVT_C_STORE, on_store), (evt.EVT_N_ACTION, on_action or take)]
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        yield
    finally:
        server.shutdown()


def tell(settings, information, event_type, calling="PACS"):
    """N-EVENT-REPORT as a PACS sends it, on an association of its own."""
    entity = AE(calling)
    entity.add_requested_context(StorageCommitmentPushModel)
    role = build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    association = entity.associate("127.0.0.1", settings.dicom_port, ae_title=settings.ae_title, ext_neg=[role])
    assert association.is_established
    try:
        response, _ = association.send_n_event_report(
            information, event_type, StorageCommitmentPushModel, SOP_INSTANCE_UID
        )
        return response.Status
    finally:
        association.release()


@pytest.mark.parametrize("is_committed", [True, False])
def test_what_the_destination_says_is_noted(tmp_path, is_committed):
    port, asked = free_port(), []
    hook = WebhookDestination(name="hook", kind="webhook", url="http://127.0.0.1:9", events=("parked",))
    with working(tmp_path, destinations=(destination(port), hook)) as worker, pacs_that_takes_requests(port, asked):
        worker.deliver_report(STUDY, 1, "pacs", 1, 3)
        (information,) = asked
        assert len(information.ReferencedSOPSequence) == 2
        assert (row_of(worker).state, row_of(worker).commitment) == (
            DeliveryState.DELIVERED,
            CommitmentState.REQUESTED,
        )
        assert tell(worker.settings, information, 1, calling="CT1") == 0x0112
        assert row_of(worker).commitment is CommitmentState.REQUESTED
        if not is_committed:
            information.FailedSOPSequence = [information.ReferencedSOPSequence.pop()]
            information.FailedSOPSequence[0].FailureReason = 0x0112
        assert tell(worker.settings, information, 1 if is_committed else 2) == 0x0000
        row, notice = row_of(worker), index.get_delivery(worker.engine, STUDY, 1, "hook")
    assert (notice is None) == is_committed
    if is_committed:
        assert (row.state, row.commitment) == (DeliveryState.DELIVERED, CommitmentState.COMMITTED)
    else:
        assert (row.state, row.commitment) == (DeliveryState.PARKED, CommitmentState.NOT_COMMITTED)
        assert row.last_error == "storage commitment: 1 objects are not committed (0x0112)"


def _nothing(asked):
    return []


def _one_of_them(asked):
    return list(asked)[:1]


def _others(asked):
    other = Dataset()
    other.ReferencedSOPClassUID, other.ReferencedSOPInstanceUID = asked[0].ReferencedSOPClassUID, "1.2.9"
    return [other, other]


def _of_another_class(asked):
    asked[0].ReferencedSOPClassUID = ComprehensiveSRStorage
    return list(asked)


@pytest.mark.parametrize(("named", "missing"), [(_nothing, 2), (_one_of_them, 1), (_others, 2), (_of_another_class, 1)])
def test_what_a_report_does_not_name_is_not_committed(tmp_path, named, missing):
    port, asked = free_port(), []
    with working(tmp_path, destinations=(destination(port),)) as worker, pacs_that_takes_requests(port, asked):
        worker.deliver_report(STUDY, 1, "pacs", 1, 3)
        information = Dataset()
        information.TransactionUID = asked[0].TransactionUID
        information.ReferencedSOPSequence = named(asked[0].ReferencedSOPSequence)
        assert tell(worker.settings, information, 1) == 0x0000
        row = row_of(worker)
    assert (row.state, row.commitment) == (DeliveryState.PARKED, CommitmentState.NOT_COMMITTED)
    assert row.last_error == f"storage commitment: {missing} objects are not committed (not named)"


def test_a_job_that_died_after_the_delivery_asks_when_it_runs_again(tmp_path, monkeypatch):
    port, asked, stored = free_port(), [], []
    peer = pacs_that_takes_requests(port, asked, stored=stored)
    with working(tmp_path, destinations=(destination(port),)) as worker, peer:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(commitment, "request", _died)
            worker.deliver_report(STUDY, 1, "pacs", 1, 3)
        assert (row_of(worker).state, row_of(worker).commitment) == (
            DeliveryState.DELIVERED,
            CommitmentState.REQUESTED,
        )
        worker.deliver_report(STUDY, 1, "pacs", 1, 3)
        assert [len(information.ReferencedSOPSequence) for information in asked] == [2]
        assert len(stored) == 2
        assert tell(worker.settings, asked[0], 1) == 0x0000
        assert row_of(worker).commitment is CommitmentState.COMMITTED
        worker.deliver_report(STUDY, 1, "pacs", 1, 3)
    assert len(asked) == 1


def test_a_delivery_is_not_done_before_its_commitment_is_wished_for(tmp_path, monkeypatch):
    port, asked = free_port(), []
    with working(tmp_path, destinations=(destination(port),)) as worker, pacs_that_takes_requests(port, asked):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(ledger, "request_commitment", _died)
            worker.deliver_report(STUDY, 1, "pacs", 1, 3)
        assert row_of(worker).state is DeliveryState.PENDING
        worker.deliver_report(STUDY, 1, "pacs", 1, 3)
        assert (row_of(worker).state, len(asked)) == (DeliveryState.DELIVERED, 1)


def _died(*_arguments, **_values):
    raise KeyboardInterrupt


def test_an_answer_stands_when_the_response_to_the_request_is_lost(tmp_path):
    port = free_port()
    with working(tmp_path, destinations=(destination(port),)) as worker, capture_logs() as logs:

        def commit_and_abort(event):
            assert tell(worker.settings, event.action_information, 1) == 0x0000
            event.assoc.abort()
            return 0x0000, None

        with pacs_that_takes_requests(port, [], on_action=commit_and_abort):
            worker.deliver_report(STUDY, 1, "pacs", 1, 3)
        row = row_of(worker)
    assert (row.state, row.commitment) == (DeliveryState.DELIVERED, CommitmentState.COMMITTED)
    assert "results_not_committed" not in {log["event"] for log in logs}


def test_commitment_is_asked_for_what_was_stored_alone(tmp_path):
    """Not for an object that was refused, in whose place another was sent."""
    port, asked = free_port(), []
    taken = (ComprehensiveSRStorage, SecondaryCaptureImageStorage)
    peer = pacs_that_takes_requests(port, asked, (Comprehensive3DSRStorage, *taken), refused={Comprehensive3DSRStorage})
    with working(tmp_path, destinations=(destination(port),)) as worker, peer:
        worker.deliver_report(STUDY, 1, "pacs", 1, 3)
        assert row_of(worker).state is DeliveryState.DELIVERED
    (information,) = asked
    assert [item.ReferencedSOPClassUID for item in information.ReferencedSOPSequence] == list(taken)


def test_a_destination_without_storage_commitment_has_its_results_all_the_same(tmp_path):
    port = free_port()
    entity = AE("PACS")
    for sop_class in (Comprehensive3DSRStorage, SecondaryCaptureImageStorage):
        entity.add_supported_context(sop_class)
    handlers = [(evt.EVT_C_STORE, lambda _event: 0x0000)]
    with working(tmp_path, destinations=(destination(port),)) as worker, capture_logs() as logs:
        server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        try:
            worker.deliver_report(STUDY, 1, "pacs", 1, 3)
        finally:
            server.shutdown()
        row = row_of(worker)
    assert (row.state, row.commitment) == (DeliveryState.DELIVERED, CommitmentState.NOT_COMMITTED)
    assert [log["reason"] for log in logs if log["event"] == "results_not_committed"] == [
        "every presentation context refused"
    ]


def test_an_answer_nobody_asked_for_is_refused(tmp_path):
    information = Dataset()
    information.TransactionUID = "1.2.3"
    with working(tmp_path) as worker:
        assert tell(worker.settings, information, 1) == 0x0112


def test_orthanc_commits_what_it_was_given(tmp_path):
    dicom_port = free_port()
    peer = {"AET": "ONESCAN", "Host": "127.0.0.1", "Port": dicom_port, "AllowStorageCommitment": True}
    with (
        orthanc(tmp_path, DicomModalities={"onescan": peer}) as (_url, orthanc_port),
        working(
            tmp_path, dicom_port=dicom_port, destinations=(destination(orthanc_port, ae_title="ORTHANC"),)
        ) as worker,
    ):
        worker.deliver_report(STUDY, 1, "pacs", 1, 3)

        def committed():
            return row_of(worker).commitment is CommitmentState.COMMITTED

        wait_until(committed, "Orthanc commits")
