"""Storage commitment of what was received (PS3.4 Annex J), asked for by pynetdicom and by Orthanc."""

import time
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from factories import make_ct_dataset
from peers import listening
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel
from running import free_port, make_settings, wait_until
from structlog.testing import capture_logs

from dicom_gateway.receive.commitment import SOP_INSTANCE_UID, CommitmentRequest, Commitments, judge
from dicom_gateway.store import index
from dicom_gateway.store.schema import commitment, open_database
from imaging.uids import derive_uid

TRANSACTION = derive_uid("transaction")


@contextmanager
def associated(settings, reports=None):
    def on_report(event):
        reports.append((event.event_type, event.event_information))
        return 0x0000, None

    entity = AE("CT1")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    entity.add_requested_context(StorageCommitmentPushModel)
    handlers = [(evt.EVT_N_EVENT_REPORT, on_report)] if reports is not None else []
    association = entity.associate("127.0.0.1", settings.dicom_port, ae_title=settings.ae_title, evt_handlers=handlers)
    assert association.is_established
    try:
        yield association
    finally:
        association.release()


def request_for(*references, transaction=TRANSACTION):
    information = Dataset()
    information.TransactionUID = transaction
    information.ReferencedSOPSequence = []
    for sop_class, uid in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        information.ReferencedSOPSequence.append(item)
    return information


def ask(association, information, action_type=1, sop_instance_uid=SOP_INSTANCE_UID):
    response, _ = association.send_n_action(information, action_type, StorageCommitmentPushModel, sop_instance_uid)
    return response.Status


def test_told_on_the_same_association_where_the_sender_has_no_address(tmp_path):
    settings, reports = make_settings(tmp_path), []
    images = [make_ct_dataset(InstanceNumber=number) for number in (1, 2)]
    unknown = derive_uid("never sent")
    with listening(settings), associated(settings, reports) as association:
        for image in images:
            assert association.send_c_store(image).Status == 0x0000
        held = [(CTImageStorage, image.SOPInstanceUID) for image in images]
        assert ask(association, request_for(*held)) == 0x0000
        wait_until(lambda: reports, "the report")
        assert ask(association, request_for(held[0], (MRImageStorage, held[1][1]), (CTImageStorage, unknown))) == 0
        wait_until(lambda: len(reports) == 2, "the second report")
    (kind, everything), (other_kind, part) = reports
    assert (kind, other_kind) == (1, 2)
    assert everything.TransactionUID == TRANSACTION
    assert [item.ReferencedSOPInstanceUID for item in everything.ReferencedSOPSequence] == [uid for _, uid in held]
    assert "FailedSOPSequence" not in everything
    assert [item.ReferencedSOPInstanceUID for item in part.ReferencedSOPSequence] == [held[0][1]]
    assert [(i.ReferencedSOPInstanceUID, i.FailureReason) for i in part.FailedSOPSequence] == [
        (held[1][1], 0x0119),
        (unknown, 0x0112),
    ]


def test_many_images_fit_into_the_peers_pdus(tmp_path):
    settings, reports = make_settings(tmp_path), []
    with listening(settings), associated(settings, reports) as association:
        unknown = [(CTImageStorage, derive_uid("unknown", str(number))) for number in range(2000)]
        assert ask(association, request_for(*unknown)) == 0x0000
        wait_until(lambda: reports, "the report")
    assert len(reports[0][1].FailedSOPSequence) == 2000


@pytest.mark.parametrize(
    ("information", "action_type", "sop_instance_uid", "status"),
    [
        (request_for((CTImageStorage, "1.2.3")), 2, SOP_INSTANCE_UID, 0x0123),
        (request_for((CTImageStorage, "1.2.3")), 1, "1.2.840.10008.1.20.1.2", 0x0112),
        (request_for(), 1, SOP_INSTANCE_UID, 0x0115),
        (request_for((CTImageStorage, "1.2.3"), transaction="../x"), 1, SOP_INSTANCE_UID, 0x0115),
    ],
)
def test_what_is_no_request(tmp_path, information, action_type, sop_instance_uid, status):
    settings, reports = make_settings(tmp_path), []
    with listening(settings), associated(settings, reports) as association:
        assert ask(association, information, action_type, sop_instance_uid) == status
    assert reports == []


def test_a_source_is_told_on_an_association_of_ours_even_after_a_restart(tmp_path):
    port = free_port()
    source = {"name": "ct", "ae_title": "CT1", "host": "127.0.0.1", "port": port}
    settings, reports = make_settings(tmp_path, sources=(source,)), []
    image = make_ct_dataset()
    with listening(settings), associated(settings) as association:
        assert association.send_c_store(image).Status == 0x0000
        assert ask(association, request_for((CTImageStorage, image.SOPInstanceUID))) == 0x0000
    with source_that_is_told(port, reports), listening(settings) as engine:
        wait_until(lambda: due(engine), "the request is kept")
        Commitments(engine, settings).report(time.time() + 3600)
        wait_until(lambda: reports, "the report")
        wait_until(lambda: not due(engine), "the request is done")
    kind, information = reports[0]
    assert kind == 1
    assert information.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID


@contextmanager
def source_that_is_told(port, reports):
    def on_report(event):
        reports.append((event.event_type, event.event_information))
        return 0x0000, None

    entity = AE("CT1")
    entity.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, on_report)])
    try:
        yield
    finally:
        server.shutdown()


def due(engine):
    with engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(commitment))


def test_a_file_that_is_not_as_it_was_is_not_committed(tmp_path):
    settings, image = make_settings(tmp_path), make_ct_dataset()
    with listening(settings) as engine, associated(settings) as association:
        assert association.send_c_store(image).Status == 0x0000
        request = CommitmentRequest(
            calling_ae_title="CT1",
            transaction_uid=TRANSACTION,
            references=((CTImageStorage, image.SOPInstanceUID),),
        )
        assert judge(engine, settings.data_dir, request)[0] == 1
        path = settings.data_dir / index.find_instance(engine, image.SOPInstanceUID).path
        path.write_bytes(path.read_bytes()[:-10])
        kind, information = judge(engine, settings.data_dir, request)
    assert kind == 2
    assert information.FailedSOPSequence[0].FailureReason == 0x0110


def test_a_damaged_file_is_not_committed_and_the_others_are(tmp_path):
    """Of the size that it had, so that its bytes are looked at."""
    settings = make_settings(tmp_path)
    images = [make_ct_dataset(InstanceNumber=number) for number in (1, 2)]
    uids = [image.SOPInstanceUID for image in images]
    with listening(settings) as engine, associated(settings) as association:
        for image in images:
            assert association.send_c_store(image).Status == 0x0000
        path = settings.data_dir / index.find_instance(engine, uids[0]).path
        size_bytes = path.stat().st_size
        for head, filler in ((b"", b"\0"), (bytes(128) + b"DICM", b"\0"), (bytes(128) + b"DICM", b"\xff")):
            path.write_bytes(head + filler * (size_bytes - len(head)))
            kind, information = judge(engine, settings.data_dir, asked_for(*uids))
            assert kind == 2
            (failed,), (committed,) = information.FailedSOPSequence, information.ReferencedSOPSequence
            assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (uids[0], 0x0110)
            assert committed.ReferencedSOPInstanceUID == uids[1]


def asked_for(*uids, transaction=TRANSACTION):
    references = tuple((CTImageStorage, uid) for uid in uids)
    return CommitmentRequest(calling_ae_title="CT1", transaction_uid=transaction, references=references)


def test_a_request_that_cannot_be_judged_is_delayed_and_the_others_are_told(tmp_path, monkeypatch):
    source = {"name": "ct", "ae_title": "CT1", "host": "127.0.0.1", "port": free_port()}
    settings, told = make_settings(tmp_path, sources=(source,)), []

    def judge_some(_engine, _data_dir, request):
        if request.transaction_uid == TRANSACTION:
            raise ValueError("Doe^Jane")
        return 1, request.transaction_uid

    def tell(_source, _calling, _kind, transaction_uid):
        told.append(transaction_uid)

    monkeypatch.setattr("dicom_gateway.receive.commitment.judge", judge_some)
    monkeypatch.setattr("dicom_gateway.receive.commitment.send_event_report", tell)
    engine = open_database(settings.database)
    commitments, other = Commitments(engine, settings), derive_uid("another transaction")
    for transaction in (TRANSACTION, other):
        commitments.take(asked_for("1.2.3", transaction=transaction))
    with capture_logs() as logs:
        commitments.report(time.time())
    assert told == [other]
    assert [log["transaction_uid"] for log in logs if log["event"] == "commitment_delayed"] == [TRANSACTION]
    assert "ValueError" in str(logs) and "Doe" not in str(logs)
    assert due(engine) == 1
    engine.dispose()


def test_sources_are_told_again_after_any_failure(tmp_path, monkeypatch):
    settings, rounds = make_settings(tmp_path), []

    class StopsAfterTwoRounds:
        def wait(self, _timeout_s):
            return len(rounds) == 2

    def fail(now):
        rounds.append(now)
        raise ValueError("Doe^Jane")

    engine = open_database(settings.database)
    commitments = Commitments(engine, settings)
    monkeypatch.setattr(commitments, "report", fail)
    with capture_logs() as logs:
        commitments.run(StopsAfterTwoRounds())
    assert [log["reason"] for log in logs] == ["ValueError", "ValueError"]
    engine.dispose()
