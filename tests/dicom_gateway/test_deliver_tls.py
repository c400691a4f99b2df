"""Peers that are called over TLS: their certificate is checked, ours is shown, and files are read for each attempt."""

import ssl
import subprocess
from contextlib import contextmanager

import pytest
import trustme
from certificates import Hospital
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from factories import make_ct_dataset
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification
from query_scp import query_scp, series
from receivers import acknowledgement, hl7_engine
from running import dcmtk, end_peer, free_port, wait_until

from dicom_gateway import query
from dicom_gateway.deliver import commitment, dimse, mllp
from dicom_gateway.deliver.profile import SOP_CLASSES
from dicom_gateway.errors import ConfigurationError, PeerUnreachable
from dicom_gateway.receive.commitment import send_event_report
from dicom_gateway.settings import Destination, Hl7Destination, Source
from dicom_gateway.tls import context_towards

MESSAGE = b"MSH|^~\\&|ONESCAN||||20260110||ORU^R01^ORU_R01|ID-1|P|2.5.1\r"


@pytest.fixture
def hospital(tmp_path):
    return Hospital(tmp_path)


def files(hospital):
    return {f"tls_{name}_file": file for name, file in hospital.files.items()}


def at(port, **values):
    return Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, objects=("sr", "sc"), **values)


def deliver(destination):
    def encode(name, held):
        return (make_ct_dataset(SOPClassUID=SOP_CLASSES[name], SOPInstanceUID=f"1.2.3.{len(name)}.{len(held)}"),)

    return dimse.send(encode, destination, calling_ae_title="ONESCAN")


@contextmanager
def scp(tls, handlers=()):
    entity, port = AE(ae_title="PACS"), free_port()
    classes = (Verification, Comprehensive3DSRStorage, SecondaryCaptureImageStorage, StorageCommitmentPushModel)
    for sop_class in classes:
        entity.add_supported_context(sop_class)
    stored = (evt.EVT_C_STORE, lambda _event: 0x0000)
    entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[stored, *handlers], ssl_context=tls)
    try:
        yield port
    finally:
        end_peer(entity)


def test_dcmtk_receives_over_mutual_tls(hospital, tmp_path):
    program = dcmtk("storescp")
    if program is None:
        pytest.skip("DCMTK (storescp) is not installed")
    issued, received, port = hospital.authority.issue_cert("127.0.0.1"), tmp_path / "received", free_port()
    key, certificate = tmp_path / "pacs.key", tmp_path / "pacs.pem"
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(certificate)
    received.mkdir()
    tls = ["+tls", str(key), str(certificate), "+cf", str(hospital.files["ca"])]
    process = subprocess.Popen([program, *tls, "-aet", "PACS", "-od", str(received), str(port)])
    try:
        ours = at(port, **files(hospital))

        def answers():
            try:
                dimse.echo(ours, calling_ae_title="ONESCAN")
            except PeerUnreachable:
                return False
            return True

        wait_until(answers, "storescp answers")
        assert [outcome.sent_as for outcome in deliver(ours)] == ["sr", "sc"]
        assert len(list(received.iterdir())) == 2
        # Without a certificate of ours it does not talk to us.
        with pytest.raises(PeerUnreachable):
            deliver(at(port, tls_ca_file=hospital.files["ca"]))
        with pytest.raises(PeerUnreachable):
            deliver(at(port))
    finally:
        process.kill()
        process.wait()


def test_a_peer_whose_certificate_is_not_right_gets_nothing(hospital, tmp_path):
    """Of another authority, for another host, of an old version, or none at all."""
    (tmp_path / "other").mkdir()
    other = Hospital(tmp_path / "other")
    old = hospital.server()
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    stored = []

    def keep(event):
        stored.append(event)
        return 0x0000

    for server in (other.server(), hospital.server("elsewhere.example.org"), old, None):
        with scp(server, [(evt.EVT_C_STORE, keep)]) as port, pytest.raises(PeerUnreachable):
            deliver(at(port, **files(hospital)))
    assert stored == []
    with scp(hospital.server(), [(evt.EVT_C_STORE, keep)]) as port:
        deliver(at(port, **files(hospital)))
    assert len(stored) == 2


def test_a_new_certificate_of_ours_is_shown_at_the_next_attempt(hospital):
    shown = []

    def note(event):
        shown.append(event.assoc.dul.socket.socket.getpeercert()["serialNumber"])

    with scp(hospital.server(), [(evt.EVT_ACCEPTED, note)]) as port:
        for _ in range(2):
            hospital.issue()
            dimse.echo(at(port, **files(hospital)), calling_ae_title="ONESCAN")
    assert len(set(shown)) == 2


def test_commitment_is_asked_for_over_tls(hospital):
    asked = []

    def note(event):
        asked.append(event.action_information.TransactionUID)
        return 0x0000, Dataset()

    with scp(hospital.server(), [(evt.EVT_N_ACTION, note)]) as port:
        sent = [commitment.Reference(str(SecondaryCaptureImageStorage), "1.2.3")]
        destination = at(port, **files(hospital))
        commitment.request(destination, sent, transaction_uid="1.2.9", calling_ae_title="ONESCAN")
    assert asked == ["1.2.9"]


def test_a_source_is_told_of_commitment_over_tls(hospital):
    told = []

    def note(event):
        told.append(event.event_information.TransactionUID)
        return 0x0000, None

    entity, information = AE(ae_title="CT1"), Dataset()
    information.TransactionUID = "1.2.9"
    entity.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    handlers = [(evt.EVT_N_EVENT_REPORT, note)]
    server = entity.start_server(
        ("127.0.0.1", port := free_port()), block=False, evt_handlers=handlers, ssl_context=hospital.server()
    )
    source = Source(name="ct", ae_title="CT1", host="127.0.0.1", port=port, **files(hospital))
    try:
        assert send_event_report(source, "ONESCAN", 1, information) is None
    finally:
        server.shutdown()
    assert told == ["1.2.9"]


def test_a_source_is_asked_over_tls(hospital):
    answers = {("SERIES", ""): [series("1.2.1", number=40)]}
    with query_scp(answers, tls=hospital.server(), **files(hospital)) as source:
        assert query.ask(source, "1.2", calling_ae_title="ONESCAN").series == {"1.2.1": 40}
        plain = source.model_copy(update=dict.fromkeys(files(hospital)))
        with pytest.raises(PeerUnreachable):
            query.ask(plain, "1.2", calling_ae_title="ONESCAN")


def engine_at(server, **values):
    host, port = server.server_address
    return Hl7Destination(name="engine", kind="hl7", host=host, port=port, **values)


def send_hl7(engine):
    mllp.send(MESSAGE, engine.host, engine.port, tls=context_towards(engine))


def test_an_hl7_engine_over_mutual_tls(hospital):
    with hl7_engine(acknowledgement("AA"), hospital.server()) as server:
        send_hl7(engine_at(server, **files(hospital)))
        mllp.connect(*server.server_address, tls=context_towards(engine_at(server, **files(hospital))))
        for wrong in ({}, {"tls_ca_file": hospital.files["ca"]}):
            with pytest.raises(PeerUnreachable):
                send_hl7(engine_at(server, **wrong))
    assert server.received == [b"\x0b" + MESSAGE + b"\x1c\r"]


def test_an_hl7_engine_whose_certificate_is_not_right(hospital, tmp_path):
    (tmp_path / "other").mkdir()
    for tls in (hospital.server("elsewhere.example.org"), Hospital(tmp_path / "other").server()):
        with hl7_engine(acknowledgement("AA"), tls) as server:
            with pytest.raises(PeerUnreachable, match="certificate is not trusted"):
                send_hl7(engine_at(server, **files(hospital)))
            assert server.received == []


@pytest.mark.parametrize("damaged", ["certificate", "key", "ca"])
def test_files_that_cannot_be_used_are_named_by_their_destination(damaged, hospital):
    for spoil in (lambda file: file.write_text("nonsense"), lambda file: file.unlink()):
        spoil(hospital.files[damaged])
        with pytest.raises(ConfigurationError, match="the tls files of pacs"):
            deliver(at(104, **files(hospital)))


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(hospital):
    key = load_pem_private_key(hospital.files["key"].read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    hospital.files["key"].write_bytes(locked)
    with pytest.raises(ConfigurationError, match="the tls files of pacs"):
        deliver(at(104, **files(hospital)))


def test_a_key_of_another_certificate(hospital):
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(hospital.files["key"])
    with pytest.raises(ConfigurationError, match="the tls files of pacs"):
        deliver(at(104, **files(hospital)))


@pytest.mark.parametrize("missing", [("key",), ("certificate",), ("ca",)])
def test_files_go_together(missing, hospital):
    values = {name: file for name, file in files(hospital).items() if name != f"tls_{missing[0]}_file"}
    with pytest.raises(ValueError, match="tls_certificate_file"):
        at(104, **values)
