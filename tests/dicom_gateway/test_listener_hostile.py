"""The DICOM port and peers that break the protocol, dawdle, flood or lie: refused by the book, nothing left behind."""

import itertools
import resource
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from collections import Counter
from contextlib import ExitStack

import pytest
import sqlalchemy as sa
from factories import make_ct_dataset
from peers import (
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    Peer,
    associate_request,
    echo_request,
    encoded_data_set,
    listening,
    message,
    reset_at_once,
    store_request,
)
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)
from pynetdicom.dimse_primitives import C_CANCEL, N_GET
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    ImplementationVersionNameNotification,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.sop_class import Verification
from running import make_settings, wait_until
from structlog.testing import capture_logs

from dicom_gateway.errors import ConfigurationError
from dicom_gateway.receive import connection, header, listener
from dicom_gateway.receive.admission import Accepted, Admission
from dicom_gateway.receive.listener import start_listener
from dicom_gateway.receive.pdu import parse_associate_request
from dicom_gateway.receive.reception import Reception
from dicom_gateway.receive.statuses import StoreStatus
from dicom_gateway.store import files, index, ledger
from dicom_gateway.store.schema import open_database, study
from dicom_gateway.wrong_attempts import MOST_WRONG
from imaging import files as archives
from imaging.uids import derive_uid

UNEXPECTED_PDU, UNRECOGNIZED_PDU, UNEXPECTED_PARAMETER, INVALID_PARAMETER = (2, 2), (2, 1), (2, 5), (2, 6)
ECHO_AND_STORE = ((Verification, (ImplicitVRLittleEndian,)), (CTImageStorage, (ExplicitVRLittleEndian,)))


@pytest.fixture
def settings(tmp_path):
    return make_settings(tmp_path)


@pytest.fixture
def impatient(monkeypatch):
    """The port with deadlines of moments."""
    monkeypatch.setattr(listener, "HALF_OPEN_TIMEOUT_S", 0.5)
    for name in ("PDU_TIMEOUT_S", "IDLE_TIMEOUT_S"):
        monkeypatch.setattr(connection, name, 0.5)


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BBI", kind, 0, len(body) if length is None else length) + body


def value(content: bytes, context_id: int = 1, control: int = 0, length: int | None = None) -> bytes:
    """A presentation data value; `control` 1 is of a command, 2 the last of it."""
    return struct.pack(">IBB", len(content) + 2 if length is None else length, context_id, control) + content


def store_pdus(data_set=None, **changes) -> list[bytes]:
    return message(store_request(data_set or make_ct_dataset()), **changes)


def begun_image() -> list[bytes]:
    """A C-STORE request and half of its data set."""
    command, *content = store_pdus(maximum_pdu=300)
    return [command, *content[: len(content) // 2]]


def nothing_left(settings) -> bool:
    return not list(settings.incoming_dir.iterdir()) and not list(files.stored_paths(settings.data_dir))


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (pdu(4, value(b"", control=3)), UNEXPECTED_PDU),
        (pdu(5, bytes(4)), UNEXPECTED_PDU),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", UNRECOGNIZED_PDU),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", UNRECOGNIZED_PDU),
        (bytes(range(200, 256)), UNRECOGNIZED_PDU),
        (pdu(1, b"", length=(1 << 20) + 1), INVALID_PARAMETER),
        (pdu(1, b"", length=0xFFFFFFFF), INVALID_PARAMETER),
        (pdu(1, bytes(67)), INVALID_PARAMETER),
        (pdu(1, associate_request()[6:] + b"\x20\0\0\x09cut off"), INVALID_PARAMETER),
    ],
)
def test_what_begins_no_association_is_aborted(settings, sent, reason):
    with listening(settings), Peer(settings) as peer:
        peer.send(sent)
        assert peer.abort_reason() == reason


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (pdu(4, b"", length=131073), INVALID_PARAMETER),
        (pdu(4, b"", length=0xFFFFFFFF), INVALID_PARAMETER),
        (pdu(4, value(b"", length=1)), INVALID_PARAMETER),
        (pdu(4, value(b"", length=0)), INVALID_PARAMETER),
        (pdu(4, value(b"abc", length=6)), INVALID_PARAMETER),
        (pdu(4, value(b"", length=0xFFFFFFFF)), INVALID_PARAMETER),
        (pdu(4, value(b"", control=1) + b"\0\0\0"), INVALID_PARAMETER),
        (pdu(4, value(bytes(60000), control=1)) * 2, UNEXPECTED_PARAMETER),
        (pdu(4, value(bytes(7), control=3)), INVALID_PARAMETER),
        (pdu(4, value(b"\x08\0\x16\0\0\0\0\0", control=3)), INVALID_PARAMETER),
        (pdu(4, value(b"\0\0\0\x01\xff\xff\xff\xff", control=3)), INVALID_PARAMETER),
        (pdu(4, value(b"\0\0\0\x01\x04\0\0\0\x01\0\0\0", control=3)), INVALID_PARAMETER),
        (pdu(4, value(b"image data without a request", control=2)), UNEXPECTED_PARAMETER),
        (b"".join(begun_image() + begun_image()[:1]), UNEXPECTED_PARAMETER),
        (b"".join(begun_image()) + pdu(4, value(b"of another image", context_id=3)), UNEXPECTED_PARAMETER),
        (b"".join(message(echo_request(), context_id=5)), UNEXPECTED_PARAMETER),
        (b"".join(store_pdus(context_id=2)), UNEXPECTED_PARAMETER),
        (associate_request(), UNEXPECTED_PDU),
        (pdu(2, bytes(4)), UNEXPECTED_PDU),
        (pdu(9, bytes(4)), UNRECOGNIZED_PDU),
    ],
)
def test_what_breaks_an_association_is_aborted(settings, sent, reason):
    with listening(settings):
        with Peer(settings) as peer:
            assert peer.associate().kind == ASSOCIATE_AC
            peer.send(sent)
            assert peer.abort_reason() == reason
        assert nothing_left(settings)
        with Peer(settings) as another:
            assert another.associate().kind == ASSOCIATE_AC


def test_an_abort_is_no_reset_of_the_connection(settings):
    """A reset may overtake the abort, and the peer never learns the reason."""
    with listening(settings), Peer(settings) as peer:
        peer.associate()
        peer.send(pdu(4, bytes(2_000_000)))
        assert peer.receive() == (7, bytes((0, 0, *INVALID_PARAMETER)))
        assert peer.socket.recv(1) == b""


def test_one_context_id_for_two_contexts_is_aborted(settings):
    request = associate_request(contexts=ECHO_AND_STORE)
    with listening(settings), Peer(settings) as peer:
        # Presentation context items (PS3.8 Table 9-13): the second gets the id of the first.
        peer.send(request.replace(b"\x03\0\0\0\x30", b"\x01\0\0\0\x30"))
        assert peer.abort_reason() == INVALID_PARAMETER


def test_a_context_that_was_refused_carries_nothing(settings):
    contexts = ((MRImageStorage, (ExplicitVRLittleEndian,)), (CTImageStorage, (ExplicitVRLittleEndian,)))
    with listening(settings), Peer(settings) as peer:
        peer.associate(contexts=contexts)
        assert peer.ask(store_request(make_ct_dataset()), context_id=3).Status == StoreStatus.SUCCESS
        peer.send(*message(store_request(make_ct_dataset()), context_id=1))
        assert peer.abort_reason() == UNEXPECTED_PARAMETER


def test_commands_that_are_not_served(settings):
    contexts = (*ECHO_AND_STORE, (EnhancedCTImageStorage, (ExplicitVRLittleEndian,)))
    cancel, get = C_CANCEL(), N_GET()
    cancel.MessageIDBeingRespondedTo = 7
    get.MessageID, get.RequestedSOPClassUID, get.RequestedSOPInstanceUID = 8, CTImageStorage, "1.2.3"
    nameless = store_request(make_ct_dataset())
    nameless._AffectedSOPInstanceUID = None
    with listening(settings), Peer(settings) as peer:
        peer.associate(contexts=contexts)
        peer.send(*message(cancel))
        answer = peer.ask(get)
        assert (answer.Status, answer.CommandField, answer.MessageIDBeingRespondedTo) == (0x0211, 0x8110, 8)
        assert peer.ask(nameless, context_id=3).Status == StoreStatus.INVALID_SOP_INSTANCE
        in_another_context = peer.ask(store_request(make_ct_dataset()), context_id=5)
        assert in_another_context.Status == StoreStatus.REFUSED_SOP_CLASS_NOT_SUPPORTED
        echo = peer.ask(echo_request())
        assert (echo.Status, echo.CommandField, echo.MessageIDBeingRespondedTo) == (0x0000, 0x8030, 7)
        peer.release()
        assert peer.receive() is None
    assert nothing_left(settings)


def item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(content)) + content


def items(content: bytes) -> dict[int, list[bytes]]:
    """Items of an A-ASSOCIATE PDU by their type (PS3.8 section 9.3)."""
    found: dict[int, list[bytes]] = {}
    while content:
        kind, _, length = struct.unpack_from(">BBH", content)
        found.setdefault(kind, []).append(content[4 : 4 + length])
        content = content[4 + length :]
    return found


def test_the_acceptance_says_what_peers_look_for(settings):
    request = associate_request(calling="A STRANGE ONE")
    with listening(settings), Peer(settings) as peer:
        peer.send(request)
        kind, body = peer.receive()
    assert kind == ASSOCIATE_AC
    assert body[4:68] == request[10:74]
    (user_information,) = items(body[68:])[0x50]
    sub_items = items(user_information)
    assert sub_items[0x51] == [struct.pack(">I", 131072)]
    assert len(sub_items[0x52]) == len(sub_items[0x55]) == 1


def test_uncompressed_is_preferred_and_each_context_has_its_result(settings):
    syntaxes = (JPEG2000Lossless, JPEGLSLossless, ImplicitVRLittleEndian, ExplicitVRLittleEndian)
    contexts = [
        (CTImageStorage, syntaxes),
        (CTImageStorage, syntaxes[:2]),
        (CTImageStorage, ("1.2.840.10008.1.2.4.100",)),
        (MRImageStorage, syntaxes),
    ]
    with listening(settings), Peer(settings) as peer:
        _, body = peer.associate(contexts=contexts)
    results = items(body[68:])[0x21]
    assert [(result[0], result[2]) for result in results] == [(1, 0), (3, 0), (5, 4), (7, 3)]
    chosen = [items(result[4:])[0x40][0].decode() for result in results[:2]]
    assert chosen == [ExplicitVRLittleEndian, JPEG2000Lossless] or chosen == [ExplicitVRLittleEndian, JPEGLSLossless]


def test_127_contexts_and_user_items_that_nobody_knows(settings):
    window, role, extended = (
        AsynchronousOperationsWindowNegotiation(),
        SCP_SCU_RoleSelectionNegotiation(),
        SOPClassExtendedNegotiation(),
    )
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 5
    role.sop_class_uid, role.scu_role, role.scp_role = CTImageStorage, True, True
    extended.sop_class_uid, extended.service_class_application_information = CTImageStorage, b"\x01\x00"
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = "HOSTILE"
    others = [(f"1.2.3.{number}", (ExplicitVRLittleEndian,)) for number in range(126)]
    request = associate_request(
        [*others, (CTImageStorage, (ExplicitVRLittleEndian,))], user_items=[window, role, extended, version]
    )
    unknown = b"\x7f\0\0\x04what" + b"\x58\0\0\x06\x09\0\0\0\0\0"
    at = request.index(b"\x50\0", 80)
    user_length = int.from_bytes(request[at + 2 : at + 4], "big") + len(unknown)
    request = request[: at + 2] + user_length.to_bytes(2, "big") + request[at + 4 :] + unknown + b"\x99\0\0\0"
    with listening(settings), Peer(settings) as peer:
        peer.send(pdu(1, request[6:]))
        answer = peer.receive()
        assert answer.kind == ASSOCIATE_AC
        assert [result[2] for result in items(answer.body[68:])[0x21]] == [3] * 126 + [0]
        assert peer.ask(store_request(make_ct_dataset()), context_id=253).Status == StoreStatus.SUCCESS


# Who dawdles (section "slow loris" of every listener's nightmares).


@pytest.mark.parametrize("sent", [b"", b"\x01\0\0", associate_request()[:-1], pdu(1, b"", length=1 << 20)])
def test_half_open_peers_are_closed(settings, impatient, sent):
    with listening(settings), Peer(settings) as peer:
        peer.send(sent)
        assert peer.receive() is None


def dripping(peer: Peer, content: bytes) -> int:
    """Send a byte now and then until the other side ends it; how many were sent."""
    peer.socket.settimeout(0.1)
    for sent, byte in enumerate(content):
        try:
            peer.socket.sendall(bytes([byte]))
            if not peer.socket.recv(4096):
                return sent
        except TimeoutError:
            continue
        except OSError:
            return sent
    return len(content)


def test_a_request_that_drips_is_cut_at_its_deadline(settings, impatient):
    request = pdu(1, associate_request()[6:] + b"\x99\0\x20\0" + bytes(0x2000))
    with listening(settings), Peer(settings) as peer:
        assert dripping(peer, request) < len(request)


@pytest.mark.parametrize("sent", [b"", b"\x04", begun_image()[0][:20], b"".join(begun_image())[:-1]])
def test_associations_that_fall_silent_are_aborted(settings, impatient, sent):
    with listening(settings), Peer(settings) as peer, capture_logs() as logs:
        peer.associate()
        peer.send(sent)
        assert peer.abort_reason() == (2, 0)
        wait_until(lambda: [log for log in logs if log["event"] == "association_aborted"], "the event")
    assert nothing_left(settings)


def test_after_its_first_image_a_scanner_may_pause_for_longer(settings, impatient, monkeypatch):
    images = [make_ct_dataset(InstanceNumber=number) for number in (1, 2, 3)]
    with listening(settings) as engine, Peer(settings) as peer:
        peer.associate()
        for image in images[:2]:
            assert peer.ask(store_request(image)).Status == StoreStatus.SUCCESS
            time.sleep(2 * connection.IDLE_TIMEOUT_S)
        monkeypatch.setattr(connection, "IDLE_AFTER_AN_IMAGE_S", 0.5)
        assert peer.ask(store_request(images[2])).Status == StoreStatus.SUCCESS
        assert peer.abort_reason() == (2, 0)
        assert index.get_study(engine, images[0].StudyInstanceUID).instance_count == 3


@pytest.mark.parametrize(
    ("ending", "ended_well"), [(Peer.release, True), (Peer.abort, False), (lambda peer: peer.socket.close(), False)]
)
def test_how_an_association_ended_is_noted_with_what_it_sent(settings, ending, ended_well):
    engine = open_database(settings.database)
    reception = Reception(settings=settings, engine=engine)
    port = start_listener(reception)
    with Peer(settings) as peer:
        peer.associate()
        assert peer.ask(store_request(make_ct_dataset())).Status == StoreStatus.SUCCESS
        ending(peer)
        wait_until(lambda: not reception.associations.studies(), "the end of the association")
    port.shutdown()
    with engine.connect() as connected:
        last_released = connected.scalar(sa.select(study.c.last_released))
    engine.dispose()
    assert (last_released > 0) == ended_well


def test_an_image_that_trickles_is_given_up(settings, monkeypatch):
    monkeypatch.setattr(connection, "IDLE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(connection, "LEAST_BYTES_PER_S", 1e9)
    with listening(settings), Peer(settings) as peer:
        peer.associate()
        peer.send(store_pdus()[0])
        trickle = itertools.repeat(pdu(4, value(bytes(2))), 1000)
        peer.socket.settimeout(0.1)
        for part in trickle:
            peer.send(part)
            try:
                assert peer.receive().kind == 7
                break
            except TimeoutError:
                continue
        else:
            pytest.fail("it was let trickle")
    assert nothing_left(settings)


def test_hundreds_of_silent_peers_do_not_keep_a_good_one_out(tmp_path):
    settings = make_settings(tmp_path, maximum_associations=5)
    with listening(settings), ExitStack() as open_peers:
        for number in range(300):
            silent = open_peers.enter_context(Peer(settings))
            silent.send(b"\x01\0\0"[: number % 4])
        with Peer(settings) as good:
            assert good.associate().kind == ASSOCIATE_AC
            assert good.ask(store_request(make_ct_dataset())).Status == StoreStatus.SUCCESS


def test_many_silent_peers_of_one_address_make_room_among_themselves(settings):
    with listening(settings), Peer(settings) as slow, ExitStack() as open_peers:
        for _ in range(300):
            silent = socket.create_connection(("127.0.0.1", settings.dicom_port), source_address=("127.0.0.2", 0))
            open_peers.enter_context(silent)
        assert slow.associate().kind == ASSOCIATE_AC


def test_peers_that_reset_at_once_do_not_end_the_port(settings):
    with listening(settings):
        reset_at_once(settings, 50)
        with Peer(settings) as good:
            assert good.associate().kind == ASSOCIATE_AC


# Who may come, and how many.


@pytest.mark.parametrize("limit", ["maximum_associations", "maximum_associations_per_address"])
def test_limits_of_associations(tmp_path, limit):
    settings = make_settings(tmp_path, **{limit: 2})
    with listening(settings), Peer(settings) as first, Peer(settings) as second:
        assert first.associate().kind == second.associate().kind == ASSOCIATE_AC
        with Peer(settings) as third:
            assert third.associate() == (ASSOCIATE_RJ, bytes((0, 2, 3, 2)))
            assert third.receive() is None
        first.release()

        def again():
            with Peer(settings) as peer:
                return peer.associate().kind == ASSOCIATE_AC

        wait_until(again, "a place")


def test_a_flood_under_another_ae_title_leaves_a_sender_of_the_same_address_a_place(tmp_path):
    settings = make_settings(tmp_path, calling_ae_titles=("CT1", "CT2", "*"), maximum_associations_per_address=2)
    with listening(settings), ExitStack() as open_peers:

        def associate(calling: str) -> int:
            return open_peers.enter_context(Peer(settings)).associate(calling=calling).kind

        assert [associate("CT2") for _ in range(3)] == [ASSOCIATE_AC, ASSOCIATE_AC, ASSOCIATE_RJ]
        # A name that nobody has set down is no other sender.
        assert associate("INVENTED") == ASSOCIATE_RJ
        with Peer(settings) as good:
            assert good.associate(calling="CT1").kind == ASSOCIATE_AC
            assert associate("CT1") == ASSOCIATE_RJ
            assert good.ask(store_request(make_ct_dataset())).Status == StoreStatus.SUCCESS


def test_a_subnet_of_ipv6_has_the_share_of_one_address(tmp_path):
    settings = make_settings(tmp_path, maximum_associations_per_address=2)
    admission = Admission(Reception(settings=settings, engine=sa.create_engine("sqlite://")))
    request = parse_associate_request(associate_request()[6:])
    addresses = ("2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1")
    accepted = [isinstance(admission.answer(address, request, address), Accepted) for address in addresses]
    assert accepted == [True, True, False, True]


@pytest.mark.parametrize(
    ("limits", "answer"),
    [
        ({"calling_networks": ("127.0.0.0/8",)}, ASSOCIATE_AC),
        ({"calling_networks": ("10.0.0.0/8", "192.0.2.7")}, ASSOCIATE_RJ),
        ({"calling_networks": ("10.0.0.0/8",), "calling_ae_networks": {"CT1": ("127.0.0.1",)}}, ASSOCIATE_AC),
        ({"calling_ae_networks": {"CT1": ("10.1.2.3",)}}, ASSOCIATE_RJ),
        ({"calling_ae_networks": {"CT2": ("10.1.2.3",)}}, ASSOCIATE_AC),
    ],
)
def test_networks_that_may_send(tmp_path, limits, answer):
    settings = make_settings(tmp_path, **limits)
    with listening(settings), Peer(settings) as peer:
        kind, body = peer.associate()
        assert kind == answer
        assert kind == ASSOCIATE_AC or body == bytes((0, 1, 1, 3))


@pytest.mark.parametrize(
    ("limits", "addresses"),
    [
        ({}, {"10.1.2.3", "10.9.9.9", "127.0.0.1"}),
        ({"calling_networks": ("10.1.0.0/16",)}, {"10.1.2.3", "127.0.0.1"}),
        (
            {"calling_networks": ("10.1.0.0/16",), "calling_ae_networks": {"CT2": ("10.9.0.0/16",)}},
            {"10.1.2.3", "127.0.0.1"},
        ),
        (
            {"calling_networks": ("10.1.0.0/16",), "calling_ae_networks": {"CT1": ("10.9.0.0/16",)}},
            {"10.9.9.9", "127.0.0.1"},
        ),
        ({"calling_ae_networks": {"CT2": ("10.9.0.0/16",)}}, {"10.1.2.3", "10.9.9.9", "127.0.0.1"}),
    ],
)
def test_addresses_from_which_nobody_may_send_are_not_listened_to(tmp_path, limits, addresses):
    settings = make_settings(tmp_path, calling_ae_titles=("CT1",), **limits)
    admission = Admission(Reception(settings=settings, engine=sa.create_engine("sqlite://")))
    asked = ("10.1.2.3", "10.9.9.9", "127.0.0.1", "2001:db8::1")
    allowed = {address for address in asked if admission.may_come_from(address)}
    assert allowed - {"2001:db8::1"} == addresses


def test_a_connection_from_where_nobody_may_send_is_closed_at_once(settings, monkeypatch):
    monkeypatch.setattr(Admission, "may_come_from", lambda _admission, address: address == "127.0.0.1")
    stranger = ("127.0.0.2", 0)
    with listening(settings), capture_logs() as logs:
        with socket.create_connection(("127.0.0.1", settings.dicom_port), 10, source_address=stranger) as peer:
            assert peer.recv(1) == b""
        with Peer(settings) as good:
            assert good.associate().kind == ASSOCIATE_AC
    (refused,) = [log for log in logs if log["event"] == "association_refused"]
    assert refused["address"] == "127.0.0.2"


def test_requests_that_were_read_fill_no_memory(settings):
    def request(number):
        proposed = b"".join(item(0x40, b"%x" % n) for n in range(number * 5000, number * 5000 + 1500))
        context = bytes((1, 0, 0, 0)) + item(0x30, b"1.2") + proposed
        fixed = associate_request()[6:74]
        return parse_associate_request(fixed + item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context))

    admission = Admission(Reception(settings=settings, engine=sa.create_engine("sqlite://")))
    requests = [request(number) for number in range(100)]
    size_bytes = len(requests[0].items)
    tracemalloc.start()
    for number, asked in enumerate(requests):
        assert isinstance(admission.answer(number, asked, "127.0.0.1"), Accepted)
        admission.end(number)
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept_bytes < 100 * size_bytes / 4


def test_an_address_that_sends_too_fast_waits_until_the_port_closes(tmp_path):
    settings = make_settings(tmp_path, maximum_mb_per_s_per_address=0.001)
    admission = Admission(Reception(settings=settings, engine=sa.create_engine("sqlite://")))
    assert isinstance(admission.answer("one", parse_associate_request(associate_request()[6:]), "127.0.0.1"), Accepted)
    waiting = threading.Thread(target=admission.pace, args=("one", 10**6), daemon=True)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    admission.close()
    waiting.join(10)
    assert not waiting.is_alive()


def test_what_a_stranger_proposes_is_not_read(tmp_path):
    settings = make_settings(tmp_path, calling_ae_titles=("CT2",))
    with listening(settings), Peer(settings) as peer:
        peer.send(pdu(1, associate_request()[6:] + b"\x20\0\0\x09cut off"))
        assert peer.receive() == (ASSOCIATE_RJ, bytes((0, 1, 1, 3)))


def identity(kind: int, name: bytes, passcode: bytes = b"", confirm: bool = False) -> UserIdentityNegotiation:
    item = UserIdentityNegotiation()
    item.user_identity_type, item.primary_field, item.positive_response_requested = kind, name, confirm
    if kind == 2:
        item.secondary_field = passcode
    return item


@pytest.mark.parametrize(
    ("user_items", "answer"),
    [
        ([identity(2, b"ct-room", b"a:b c")], ASSOCIATE_AC),
        ([identity(2, "röntgen".encode(), "schlüssel".encode())], ASSOCIATE_AC),
        ([identity(2, b"ct-room", b"another")], ASSOCIATE_RJ),
        ([identity(2, b"ct-room", b"schl\xfcssel")], ASSOCIATE_RJ),
        ([identity(2, b"nobody", b"a:b c")], ASSOCIATE_RJ),
        ([identity(2, b"\xff\xfe", b"a:b c")], ASSOCIATE_RJ),
        ([identity(1, b"ct-room")], ASSOCIATE_RJ),
        ([identity(4, b"<saml/>")], ASSOCIATE_RJ),
        ([], ASSOCIATE_RJ),
    ],
)
def test_user_identity(tmp_path, user_items, answer):
    passcodes = tmp_path / "passcodes"
    passcodes.write_text("ct-room:a:b c\nröntgen:schlüssel\n", encoding="utf-8")
    settings = make_settings(tmp_path, dicom_passcodes_file=passcodes)
    with listening(settings), Peer(settings) as peer, capture_logs() as logs:
        kind, body = peer.associate(user_items=user_items)
        assert kind == answer
        assert kind == ASSOCIATE_AC or body == bytes((0, 1, 1, 1))
    assert not any(word in str(logs) for word in ("a:b c", "another", "saml"))


def test_passcodes_cannot_be_guessed_for_long(tmp_path):
    passcodes = tmp_path / "passcodes"
    passcodes.write_text("ct-room:open\n")
    settings = make_settings(tmp_path, dicom_passcodes_file=passcodes)
    answers = []
    with listening(settings), capture_logs() as logs:
        for passcode in [b"open"] + MOST_WRONG * [b"guess"] + [b"open"]:
            with Peer(settings) as peer:
                kind, body = peer.associate(user_items=[identity(2, b"ct-room", passcode)])
                answers.append(None if kind == ASSOCIATE_AC else tuple(body[1:]))
    assert answers == [None] + MOST_WRONG * [(1, 1, 1)] + [(2, 3, 2)]
    assert logs[-1]["reason"] == "too many wrong user identities from this address"


def confirmations(settings, item) -> list[bytes]:
    with listening(settings), Peer(settings) as peer:
        kind, body = peer.associate(user_items=[item])
    assert kind == ASSOCIATE_AC
    return items(items(body[68:])[0x50][0]).get(0x59, [])


def test_an_identity_that_was_checked_is_confirmed_where_that_is_asked_for(tmp_path):
    passcodes = tmp_path / "passcodes"
    passcodes.write_text("ct-room:open\n")
    settings = make_settings(tmp_path, dicom_passcodes_file=passcodes)
    assert confirmations(settings, identity(2, b"ct-room", b"open", confirm=True)) == [b"\0\0"]
    assert confirmations(settings, identity(2, b"ct-room", b"open")) == []


def test_an_identity_that_nobody_asked_for_changes_nothing_and_is_not_confirmed(settings):
    assert confirmations(settings, identity(2, b"anybody", b"anything", confirm=True)) == []


def test_files_for_all_associations_or_a_start_that_says_so(tmp_path, monkeypatch):
    limits: dict[int, tuple[int, int]] = {resource.RLIMIT_NOFILE: (1024, 2000)}
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    with listening(make_settings(tmp_path / "few", maximum_associations=400)):
        soft, hard = limits[resource.RLIMIT_NOFILE]
        assert 1200 < soft <= hard == 2000
    too_many = Reception(
        settings=make_settings(tmp_path / "many", maximum_associations=1000), engine=sa.create_engine("sqlite://")
    )
    with pytest.raises(ConfigurationError, match="maximum_associations = 1000 needs"):
        start_listener(too_many)


# Storage that is full, gone or short.


def test_below_the_free_space_floor_images_are_not_let_in(tmp_path):
    settings = make_settings(tmp_path, minimum_free_space_mb=10**9)
    with listening(settings):
        for contexts in (ECHO_AND_STORE[1:], ECHO_AND_STORE):
            with Peer(settings) as peer:
                assert peer.associate(contexts=contexts) == (ASSOCIATE_RJ, bytes((0, 2, 3, 1)))
        with Peer(settings) as peer:
            assert peer.associate(contexts=ECHO_AND_STORE[:1]).kind == ASSOCIATE_AC
            assert peer.ask(echo_request()).Status == 0x0000


def test_the_floor_is_reached_during_an_association(settings, monkeypatch):
    usage = files.shutil.disk_usage(settings.data_dir)
    with listening(settings), Peer(settings) as peer, capture_logs() as logs:
        peer.associate()
        with monkeypatch.context() as full:
            full.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=0))
            assert peer.ask(store_request(make_ct_dataset())).Status == StoreStatus.REFUSED_OUT_OF_RESOURCES
        assert nothing_left(settings)
        assert peer.ask(store_request(make_ct_dataset())).Status == StoreStatus.SUCCESS
    assert "storage_full" in [log["event"] for log in logs]


@pytest.mark.parametrize(
    ("gone", "a_file_is_there"), [("incoming", False), ("incoming", True), ("studies", True), (".", False), (".", True)]
)
def test_storage_that_vanished_and_is_back(settings, gone, a_file_is_there):
    folder = (settings.data_dir / gone).resolve()
    away = folder.with_name("away")
    images = [make_ct_dataset(InstanceNumber=number) for number in (1, 2, 3)]
    with listening(settings), Peer(settings) as peer:
        peer.associate()
        assert peer.ask(store_request(images[0])).Status == StoreStatus.SUCCESS
        folder.rename(away)
        if a_file_is_there:
            folder.touch()
        assert peer.ask(store_request(images[1])).Status == StoreStatus.REFUSED_OUT_OF_RESOURCES
        folder.unlink(missing_ok=True)
        away.rename(folder)
        assert peer.ask(store_request(images[1])).Status == StoreStatus.SUCCESS
        assert peer.ask(store_request(images[2])).Status == StoreStatus.SUCCESS
    assert list(settings.incoming_dir.iterdir()) == []
    assert len(list(files.stored_paths(settings.data_dir))) == 3


@pytest.mark.parametrize("fails", ["mark_released", "record_instance"])
def test_an_index_that_does_not_answer(settings, monkeypatch, fails):
    def locked(*_arguments, **_named):
        raise sa.exc.OperationalError("INSERT", {"patient_name": "Test^Patient"}, Exception("database is locked"))

    first, second = (make_ct_dataset(StudyInstanceUID=derive_uid(name)) for name in ("first", "second"))
    with listening(settings) as engine, Peer(settings) as peer, capture_logs() as logs:
        peer.associate()
        assert peer.ask(store_request(first)).Status == StoreStatus.SUCCESS
        with monkeypatch.context() as failing:
            failing.setattr(ledger, fails, locked)
            assert peer.ask(store_request(second)).Status == StoreStatus.REFUSED_OUT_OF_RESOURCES
        assert index.find_instance(engine, second.SOPInstanceUID) is None
        assert peer.ask(store_request(second)).Status == StoreStatus.SUCCESS
        assert index.find_instance(engine, second.SOPInstanceUID) is not None
    assert "Test^Patient" not in str(logs)


def test_an_image_above_the_limit(tmp_path):
    settings = make_settings(tmp_path, maximum_instance_mb=1)
    large = make_ct_dataset(Rows=1024, Columns=1024, PixelData=bytes(2 << 20))
    with listening(settings) as engine, Peer(settings) as peer:
        peer.associate()
        assert peer.ask(store_request(large)).Status == StoreStatus.REFUSED_OUT_OF_RESOURCES
        assert nothing_left(settings)
        (refusal,) = index.list_refusals(engine, None)
        assert (refusal.status, refusal.reason, refusal.count) == (0xA700, "Larger than maximum_instance_mb", 1)
        assert peer.ask(store_request(make_ct_dataset())).Status == StoreStatus.SUCCESS


def test_the_peer_ends_in_the_middle_of_an_image(settings):
    with listening(settings) as engine:
        for ending in (Peer.abort, lambda peer: peer.socket.close(), Peer.release):
            with Peer(settings) as peer:
                peer.associate()
                peer.send(*begun_image())
                wait_until(lambda: list(settings.incoming_dir.iterdir()), "the image begins")
                ending(peer)
            wait_until(lambda: nothing_left(settings), "nothing is left")
        assert index.counts(engine).studies["receiving"] == 0


def test_shutdown_in_the_middle_of_an_image(settings):
    with listening(settings), Peer(settings) as peer:
        peer.associate()
        peer.send(*begun_image())
        wait_until(lambda: list(settings.incoming_dir.iterdir()), "the image begins")
    assert nothing_left(settings)


def test_one_uid_from_four_senders_at_once(settings):
    images = [make_ct_dataset(PatientID=f"SENDER-{number}") for number in range(4)]
    statuses: list[int] = []
    together = threading.Barrier(len(images))

    def send(image):
        with Peer(settings) as peer:
            peer.associate()
            pdus = store_pdus(image)
            peer.send(*pdus[:-1])
            together.wait()
            peer.send(pdus[-1])
            statuses.append(peer.response().Status)

    with listening(settings):
        for _ in range(3):
            threads = [threading.Thread(target=send, args=(image,)) for image in images]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    (path,) = files.stored_paths(settings.data_dir)
    kept = (settings.data_dir / path).read_bytes()
    assert [image for image in images if kept.endswith(encoded_data_set(image))] != []
    # The sender whose image was kept may repeat it.
    assert Counter(statuses) == {StoreStatus.SUCCESS: 3, StoreStatus.DUPLICATE_SOP_INSTANCE: 9}
    assert list(settings.incoming_dir.iterdir()) == []


# Data sets made to hurt.


def store(settings, data_set, encoded: bytes, syntax=ExplicitVRLittleEndian) -> int:
    with listening(settings), Peer(settings) as peer:
        peer.associate(contexts=((CTImageStorage, (syntax,)),))
        return peer.ask(store_request(data_set, encoded)).Status


def with_private(size_bytes: int):
    data_set = make_ct_dataset()
    data_set.add_new(0x00290010, "LO", "TESTS")
    data_set.add_new(0x00291010, "OB", bytes(size_bytes))
    return data_set


@pytest.mark.parametrize(
    ("size_bytes", "status"),
    [
        (70_000, StoreStatus.SUCCESS),
        (1_100_000, StoreStatus.SUCCESS),
        (header.MAXIMUM_HEADER_BYTES, StoreStatus.CANNOT_UNDERSTAND),
    ],
)
def test_long_headers(settings, size_bytes, status):
    data_set = with_private(size_bytes)
    assert store(settings, data_set, encoded_data_set(data_set)) == status
    assert nothing_left(settings) == (status != StoreStatus.SUCCESS)


def test_text_that_fills_a_header_is_not_kept_in_memory(settings):
    """An element of implicit VR may be as long as the header; the index takes what a person can read of it."""
    data_set = make_ct_dataset()
    data_set.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    name = b"\x10\0\x10\0" + struct.pack("<I", 4_000_000) + b"A" * 4_000_000
    encoded = encoded_data_set(data_set)
    at = encoded.index(b"\x10\0\x10\0")
    encoded = encoded[:at] + name + encoded[at + 8 + int.from_bytes(encoded[at + 4 : at + 8], "little") :]
    with listening(settings) as engine, Peer(settings) as peer:
        peer.associate(contexts=((CTImageStorage, (ImplicitVRLittleEndian,)),))
        assert peer.ask(store_request(data_set, encoded)).Status == StoreStatus.SUCCESS
        assert 64 <= len(index.get_study(engine, data_set.StudyInstanceUID).patient_name) <= 1024


def deflated(content: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflater.compress(content) + deflater.flush()


@pytest.mark.parametrize(("module", "limit"), [(header, "_MAXIMUM_INFLATED_BYTES"), (archives, "_NEGLIGIBLE_BYTES")])
@pytest.mark.parametrize("damage", ["bomb", "cut", "noise"])
def test_deflated_data_sets_that_are_not(settings, monkeypatch, damage, module, limit):
    """In all, or for their size, too large; or broken."""
    monkeypatch.setattr(module, limit, 3 << 20)
    data_set = make_ct_dataset()
    whole = deflated(encoded_data_set(data_set))
    encoded = {
        "bomb": deflated(encoded_data_set(with_private(64 << 20))),
        "cut": whole[:-20],
        "noise": whole[:50] + bytes(50) + whole[100:],
    }[damage]
    assert store(settings, data_set, encoded, DeflatedExplicitVRLittleEndian) == StoreStatus.CANNOT_UNDERSTAND
    assert nothing_left(settings)


def test_encapsulated_pixels_that_are_cut(settings):
    data_set = make_ct_dataset()
    data_set.compress(RLELossless, generate_instance_uid=False)
    encoded = encoded_data_set(data_set)
    with listening(settings), Peer(settings) as peer:
        peer.associate(contexts=((CTImageStorage, (RLELossless,)),))
        for cut in (1, 8, 9, 40):
            assert peer.ask(store_request(data_set, encoded[:-cut])).Status == StoreStatus.CANNOT_UNDERSTAND
        assert nothing_left(settings)
        assert peer.ask(store_request(data_set, encoded)).Status == StoreStatus.SUCCESS


@pytest.mark.parametrize("depth", [40, 400, 40_000])
def test_sequences_nested_without_end(settings, depth):
    opened = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    assert store(settings, make_ct_dataset(), opened * depth) == StoreStatus.CANNOT_UNDERSTAND


def test_a_tampered_study_uid_never_names_a_path(settings):
    data_set = make_ct_dataset(StudyInstanceUID=derive_uid("x").ljust(64, "1") + "\0" * 0)
    encoded = encoded_data_set(data_set).replace(data_set.StudyInstanceUID.encode(), b"../" * 21 + b"1")
    assert store(settings, data_set, encoded) == StoreStatus.INVALID_SOP_INSTANCE
    assert nothing_left(settings)
