"""Delivery to a DICOMweb server, on the wire."""

import json

import pytest
from factories import make_ct_dataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, RLELossless
from receivers import stow_server

from dicom_gateway.deliver.profile import SOP_CLASSES
from dicom_gateway.deliver.stow import ask, send
from dicom_gateway.errors import DeliveryError, PeerRefused, PeerUnreachable
from dicom_gateway.settings import StowDestination
from dicom_gateway.store.schema import ObjectOutcome
from imaging.uids import derive_uid

NAME = "Wang^XiaoDong=王^小东"


def encode(name, held=()):
    """Two objects of the kind's class."""
    return tuple(
        make_ct_dataset(
            SpecificCharacterSet="ISO_IR 192",
            PatientName=NAME,
            SOPClassUID=SOP_CLASSES[name],
            SOPInstanceUID=derive_uid("stow test", name, number),
        )
        for number in "12"
    )


def at(server, *objects, **values):
    return StowDestination(name="web", kind="stow", url=server.url + "/", objects=objects or ("sr", "sc"), **values)


def sent(name, sent_as=None, reason=None, instances=2):
    return ObjectOutcome(name=name, sent_as=sent_as or name, instances=instances, reason=reason)


def test_every_object_is_posted_whole_and_in_the_order_of_the_profile(tmp_path):
    (tmp_path / "token").write_text("secret")
    with stow_server() as server:
        peer = at(server, bearer_token_file=tmp_path / "token", character_set="GB18030")
        assert send(encode, peer) == (sent("sr"), sent("sc"))
    expected = [*encode("sr"), *encode("sc")]
    assert [ds.SOPInstanceUID for ds in server.stored] == [ds.SOPInstanceUID for ds in expected]
    for stored, original in zip(server.stored, expected, strict=True):
        assert stored.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert (stored.SpecificCharacterSet, stored.PatientName) == ("GB18030", NAME)
        assert stored.PixelData == original.PixelData
    for method, path, headers in server.requests:
        assert (method, path) == ("POST", "/dicom-web/studies")
        assert (headers["Accept"], headers["Authorization"]) == ("application/dicom+json", "Bearer secret")


def test_a_class_that_is_refused_is_replaced_by_the_next():
    with stow_server(refused={SOP_CLASSES["sr"]: 0x0122}) as server:
        outcomes = send(encode, at(server, "sr", "marks"))
    reason = "HTTP status 409, failure reason 0x0122"
    assert outcomes == (sent("sr", "sr_comprehensive", reason), sent("marks"))
    assert {ds.SOPClassUID for ds in server.stored} == {ComprehensiveSRStorage}
    assert len(server.requests) == 1 + 2 + 2


@pytest.mark.parametrize("reason", [0x0122, 0xC122])
def test_a_compressed_label_map_that_is_not_taken_is_replaced_by_a_binary_segmentation(reason: int) -> None:
    label_map = make_ct_dataset(SOPClassUID=SOP_CLASSES["seg_labelmap"], SOPInstanceUID="1.2.3.77")
    label_map.compress(RLELossless, generate_instance_uid=False)

    def encode_one(name, held):
        return (label_map,) if name == "seg_labelmap" else encode(name)

    with stow_server() as server:
        assert send(encode_one, at(server, "seg_labelmap")) == (sent("seg_labelmap", instances=1),)
    (stored,) = server.stored
    assert (stored.file_meta.TransferSyntaxUID, stored.PixelData) == (RLELossless, label_map.PixelData)
    with stow_server(refused={SOP_CLASSES["seg_labelmap"]: reason}) as server:
        told = f"HTTP status 409, failure reason 0x{reason:04X}"
        assert send(encode_one, at(server, "seg_labelmap")) == (sent("seg_labelmap", "seg", told),)


def test_nothing_taken_is_refused():
    refused = dict.fromkeys(SOP_CLASSES.values(), 0x0122)
    with stow_server(refused=refused) as server, pytest.raises(PeerRefused, match="takes none"):
        send(encode, at(server))


@pytest.mark.parametrize(
    ("reason", "error"),
    [(0xA700, PeerUnreachable), (0xA900, PeerRefused), (0xC000, PeerRefused), (0xC122, PeerRefused)],
)
def test_the_failure_reason_says_whether_another_attempt_makes_sense(reason: int, error: type[DeliveryError]) -> None:
    with stow_server(refused={SOP_CLASSES["sr"]: reason}) as server, pytest.raises(error, match=f"0x{reason:04X}"):
        send(encode, at(server))
    # What is refused alone does not keep the other kinds.
    assert len(server.stored) == (2 if error is PeerRefused else 0)


@pytest.mark.parametrize("reason", [0x0111, 0xB00E])
def test_what_the_server_has_already_is_delivered(reason: int) -> None:
    with stow_server(refused={SOP_CLASSES["sr"]: reason}) as server:
        assert send(encode, at(server)) == (sent("sr"), sent("sc"))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((status, PeerUnreachable) for status in (408, 429, 500, 503)),
        *((status, PeerRefused) for status in (302, 400, 401, 403, 404, 413, 415, 501)),
    ],
)
def test_the_status_says_whether_another_attempt_makes_sense(status: int, error: type[DeliveryError]) -> None:
    with stow_server(status=status, told=b"no Wang XiaoDong") as server, pytest.raises(error) as caught:
        send(encode, at(server, "sc"))
    assert str(caught.value).endswith(f"HTTP status {status}")


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (200, b"<html>Please log in</html>"),
        (200, b"{}"),
        (200, b"[]"),
        (200, json.dumps({"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}}]}}).encode()),
        (202, json.dumps({"00081198": {"vr": "SQ", "Value": [{}]}}).encode()),
        (202, json.dumps({"0008119A": {"vr": "SQ", "Value": [{"00081197": {"Value": [-1]}}]}}).encode()),
        (409, b""),
    ],
)
def test_only_an_answer_that_names_the_object_is_success(status: int, told: bytes) -> None:
    with stow_server(status=status, told=told) as server, pytest.raises(PeerRefused, match=str(status)):
        send(encode, at(server))


def test_nobody_there_is_unreachable() -> None:
    with stow_server() as server:
        peer = at(server)
    with pytest.raises(PeerUnreachable):
        send(encode, peer)
    with pytest.raises(PeerUnreachable):
        ask(peer.url)


def test_a_server_is_asked_for_a_study_that_nobody_has() -> None:
    with stow_server() as server:
        ask(server.url + "/", bearer_token="secret")
    ((method, path, headers),) = server.requests
    assert (method, headers["Authorization"]) == ("GET", "Bearer secret")
    assert path.startswith("/dicom-web/studies?StudyInstanceUID=2.25.")
    with stow_server(status=405) as server:
        ask(server.url)
    with stow_server(status=404) as server, pytest.raises(PeerRefused, match="404"):
        ask(server.url)
    with stow_server(status=503) as server, pytest.raises(PeerUnreachable):
        ask(server.url)
