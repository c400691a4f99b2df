"""Results sent to real peers: which "no" is worth another attempt."""

from contextlib import contextmanager

import pytest
from factories import save_ct
from pydicom.uid import Comprehensive3DSRStorage, CTImageStorage, ImplicitVRLittleEndian, SecondaryCaptureImageStorage
from pynetdicom import AE, evt
from running import free_port, pacs

from dicom_gateway.deliver.dimse import echo, send
from dicom_gateway.errors import PeerRefused, PeerUnreachable
from dicom_gateway.settings import Destination
from imaging.uids import derive_uid


@pytest.fixture
def results(tmp_path):
    paths = []
    for number, sop_class in enumerate((Comprehensive3DSRStorage, SecondaryCaptureImageStorage), start=1):
        paths.append(tmp_path / f"{number}.dcm")
        save_ct(paths[-1], SOPClassUID=sop_class, InstanceNumber=number)
    return paths


def at(port, ae_title="PACS"):
    return Destination(name="pacs", ae_title=ae_title, host="127.0.0.1", port=port)


@contextmanager
def scp(handlers=(), **attributes):
    """A peer that knows its name, with more of pynetdicom's AE attributes."""
    entity = AE(ae_title="PACS")
    for sop_class in (Comprehensive3DSRStorage, SecondaryCaptureImageStorage):
        entity.add_supported_context(sop_class, attributes.pop("transfer_syntax", None))
    for name, value in attributes.items():
        setattr(entity, name, value)
    port = free_port()
    entity.start_server(("127.0.0.1", port), block=False, evt_handlers=list(handlers))
    try:
        yield port
    finally:
        entity.shutdown()


def test_delivered(results):
    with pacs() as peer:
        send(results, at(peer.port), calling_ae_title="ONESCAN")
        echo(at(peer.port), calling_ae_title="ONESCAN")
    assert sum(peer.received.values()) == 2


def test_peer_that_knows_implicit_only(results):
    seen = []

    def keep(event):
        seen.append((event.dataset.PatientID, list(event.dataset.PixelSpacing), len(event.dataset.PixelData)))
        return 0x0000

    with scp([(evt.EVT_C_STORE, keep)], transfer_syntax=ImplicitVRLittleEndian) as port:
        send(results[:1], at(port), calling_ae_title="ONESCAN")
    assert seen == [("TEST-1", [1, 1], 512)]


@pytest.mark.parametrize("status", [0xA700, 0xA7FF])
def test_out_of_resources_is_tried_again(results, status):
    with pacs() as peer:
        peer.status = status
        with pytest.raises(PeerUnreachable, match=f"0x{status:04X}"):
            send(results, at(peer.port), calling_ae_title="ONESCAN")


@pytest.mark.parametrize("status", [0xA900, 0xC000, 0x0110, 0x0122])
def test_failure_is_refusal(results, status):
    with pacs() as peer:
        peer.status = status
        with pytest.raises(PeerRefused, match=f"0x{status:04X}"):
            send(results, at(peer.port), calling_ae_title="ONESCAN")


@pytest.mark.parametrize("status", [0xB000, 0xB007, 0x0111])
def test_warning_and_duplicate_are_success(results, status):
    with pacs() as peer:
        peer.status = status
        send(results, at(peer.port), calling_ae_title="ONESCAN")


def test_nobody_there(results):
    with pytest.raises(PeerUnreachable):
        send(results, at(free_port()), calling_ae_title="ONESCAN")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "not..a.name"])
def test_name_that_cannot_be_resolved_is_tried_again(results, host):
    peer = Destination(name="pacs", ae_title="PACS", host=host, port=104)
    with pytest.raises(PeerUnreachable, match="cannot be resolved"):
        send(results, peer, calling_ae_title="ONESCAN")
    with pytest.raises(PeerUnreachable, match="cannot be resolved"):
        echo(peer, calling_ae_title="ONESCAN")


def test_context_refused(results):
    with pacs(sop_classes=(CTImageStorage,)) as peer, pytest.raises(PeerRefused, match="context"):
        send(results, at(peer.port), calling_ae_title="ONESCAN")


def test_unknown_calling_title_is_refusal(results):
    with scp(require_calling_aet=["OTHER"]) as port, pytest.raises(PeerRefused, match="rejected"):
        send(results, at(port), calling_ae_title="ONESCAN")


def test_abort_is_tried_again(results):
    def abort(event):
        event.assoc.abort()
        return 0x0000

    with scp([(evt.EVT_C_STORE, abort)]) as port, pytest.raises(PeerUnreachable):
        send(results, at(port), calling_ae_title="ONESCAN")


def test_identity_is_the_files(results):
    with pacs() as peer:
        send(results, at(peer.port), calling_ae_title="ONESCAN")
    series = derive_uid("test series", derive_uid("test study"))
    assert set(peer.received) == {derive_uid("test instance", series, number) for number in ("1", "2")}
