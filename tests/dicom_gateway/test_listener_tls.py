"""TLS on the DICOM port: both sides show a certificate, old versions are refused, certificates change while it runs."""

import os
import ssl
from contextlib import ExitStack

import pytest
import trustme
from certificates import Hospital
from factories import make_ct_dataset, save_ct
from peers import ASSOCIATE_AC, Peer, listening, reset_at_once, store_request
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from running import make_settings, storescu, wait_until
from structlog.testing import capture_logs

from dicom_gateway.errors import ConfigurationError
from dicom_gateway.receive.statuses import StoreStatus


@pytest.fixture
def hospital(tmp_path):
    return Hospital(tmp_path)


@pytest.fixture
def settings(tmp_path, hospital):
    return make_settings(tmp_path, **{f"dicom_tls_{name}_file": file for name, file in hospital.files.items()})


def serial_number(peer: Peer) -> str:
    return peer.socket.getpeercert()["serialNumber"]


def test_images_over_mutual_tls(settings, hospital):
    with listening(settings), Peer(settings, hospital.client(hospital.authority)) as peer:
        assert peer.socket.version() == "TLSv1.3"
        assert peer.associate().kind == ASSOCIATE_AC
        assert peer.ask(store_request(make_ct_dataset())).Status == StoreStatus.SUCCESS
        peer.release()


def test_pynetdicom_over_tls(settings, hospital):
    entity = AE(ae_title="CT1")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    with listening(settings):
        association = entity.associate(
            "127.0.0.1",
            settings.dicom_port,
            ae_title=settings.ae_title,
            tls_args=(hospital.client(hospital.authority), "localhost"),
        )
        assert association.send_c_store(make_ct_dataset()).Status == StoreStatus.SUCCESS
        association.release()


def test_dcmtk_over_tls(settings, hospital, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    save_ct(folder / "1.dcm")
    sender = hospital.authority.issue_cert("ct.example.org")
    key, certificate = tmp_path / "sender-key.pem", tmp_path / "sender.pem"
    sender.private_key_pem.write_to_path(key)
    sender.cert_chain_pems[0].write_to_path(certificate)
    with listening(settings):
        sent = storescu(settings, folder, "+tls", str(key), str(certificate), "+cf", str(hospital.files["ca"]))
        assert sent.returncode == 0, sent.stderr
        assert storescu(settings, folder).returncode != 0


def refused(settings, context: ssl.SSLContext) -> str:
    """Why the port refuses the context, by the alert it sends."""
    with pytest.raises(ssl.SSLError) as alert, Peer(settings, context) as peer:
        # With TLS 1.3 a client learns only after its handshake what the server thinks of its certificate.
        peer.socket.recv(1)
    return alert.value.reason


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_sender_whose_certificate_nobody_vouches_for(settings, hospital, version):
    nobody, stranger = hospital.client(), hospital.client(trustme.CA())
    nobody.maximum_version = stranger.maximum_version = version
    with listening(settings), capture_logs() as logs:

        def logged(count):
            return [log["address"] for log in logs if log["event"] == "tls_refused"] == count * ["127.0.0.1"]

        assert refused(settings, nobody) in ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE")
        wait_until(lambda: logged(1), "the first is logged")
        assert "UNKNOWN_CA" in refused(settings, stranger)
        wait_until(lambda: logged(2), "the second is logged")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_old_versions_and_weak_ciphers(settings, hospital):
    old, weak = hospital.client(hospital.authority), hospital.client(hospital.authority)
    for context, ciphers in ((old, "ALL:@SECLEVEL=0"), (weak, "AES128-SHA:AES256-SHA256:AES128-GCM-SHA256")):
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.set_ciphers(ciphers)
    old.maximum_version, weak.maximum_version = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2
    with listening(settings):
        assert "PROTOCOL_VERSION" in refused(settings, old)
        assert "HANDSHAKE_FAILURE" in refused(settings, weak)


def test_silent_peers_do_not_keep_a_good_one_out(settings, hospital):
    with listening(settings), ExitStack() as open_peers:
        for number in range(12):
            silent = open_peers.enter_context(Peer(settings))
            silent.send(b"\x16\x03\x01"[: number % 4])
        with Peer(settings, hospital.client(hospital.authority)) as good:
            assert good.associate().kind == ASSOCIATE_AC


def test_peers_that_reset_at_once_do_not_end_the_port(settings, hospital):
    with listening(settings):
        reset_at_once(settings, 200)
        with Peer(settings, hospital.client(hospital.authority)) as good:
            assert good.associate().kind == ASSOCIATE_AC


def test_certificates_change_without_a_restart(settings, hospital):
    good = hospital.client(hospital.authority)
    with listening(settings), capture_logs() as logs, Peer(settings, good) as during:
        during.associate()
        first = serial_number(during)
        hospital.issue()
        with Peer(settings, good) as peer:
            second = serial_number(peer)
        assert second != first
        for broken in (b"no key", b""):
            hospital.files["key"].write_bytes(broken)
            with Peer(settings, good) as peer:
                assert serial_number(peer) == second
        hospital.files["key"].unlink()
        with Peer(settings, good) as peer:
            assert serial_number(peer) == second
        hospital.issue()
        with Peer(settings, good) as peer:
            assert serial_number(peer) not in (first, second)
        assert during.ask(store_request(make_ct_dataset())).Status == StoreStatus.SUCCESS
    events = [log["event"] for log in logs if log["event"].startswith("tls_")]
    assert events == ["tls_reloaded", "tls_not_reloaded", "tls_not_reloaded", "tls_not_reloaded", "tls_reloaded"]


def test_files_that_are_mended_without_a_newer_date_are_read_again(settings, hospital):
    good = hospital.client(hospital.authority)
    with listening(settings):
        with Peer(settings, good) as peer:
            first = serial_number(peer)
        hospital.issue()
        key = hospital.files["key"]
        content, status = key.read_bytes(), key.stat()
        key.write_bytes(b"")
        with Peer(settings, good) as peer:
            assert serial_number(peer) == first
        key.write_bytes(content)
        os.utime(key, ns=(status.st_atime_ns, status.st_mtime_ns))
        with Peer(settings, good) as peer:
            assert serial_number(peer) != first


def test_an_authority_that_is_withdrawn(settings, hospital):
    good = hospital.client(hospital.authority)
    with listening(settings):
        with Peer(settings, good) as peer:
            assert peer.associate().kind == ASSOCIATE_AC
        trustme.CA().cert_pem.write_to_path(hospital.files["ca"])
        assert "UNKNOWN_CA" in refused(settings, good)


def test_files_that_cannot_be_used_are_said_at_the_start(settings, hospital):
    hospital.files["key"].write_bytes(b"no key")
    with pytest.raises(ConfigurationError, match="dicom_tls"), listening(settings):
        pass
