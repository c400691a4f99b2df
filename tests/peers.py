"""DICOM peers on bare sockets, which may send anything; what is right of it was encoded by pynetdicom."""

import socket
import ssl
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NamedTuple

import sqlalchemy as sa
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.dimse_messages import C_CANCEL_RQ, C_ECHO_RQ, C_STORE_RQ, N_ACTION_RQ, N_CREATE_RQ, N_GET_RQ
from pynetdicom.dimse_primitives import C_CANCEL, C_ECHO, C_STORE, N_ACTION, N_CREATE, N_GET
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_RQ, A_RELEASE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import (
    A_ABORT,
    A_ASSOCIATE,
    A_RELEASE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context

from dicom_gateway.receive.listener import start_listener
from dicom_gateway.receive.reception import Reception
from dicom_gateway.settings import Settings
from dicom_gateway.store.schema import open_database

ASSOCIATE_AC, ASSOCIATE_RJ, DATA, RELEASE_RP, ABORT = 2, 3, 4, 6, 7
CT_EXPLICIT = ((CTImageStorage, (ExplicitVRLittleEndian,)),)
_PATIENCE_S = 30.0
_MESSAGES = {
    C_STORE: C_STORE_RQ,
    C_ECHO: C_ECHO_RQ,
    C_CANCEL: C_CANCEL_RQ,
    N_ACTION: N_ACTION_RQ,
    N_CREATE: N_CREATE_RQ,
    N_GET: N_GET_RQ,
}


@contextmanager
def listening(settings: Settings) -> Iterator[sa.Engine]:
    """The DICOM port of `settings`, in this process; its database."""
    engine = open_database(settings.database)
    listener = start_listener(Reception(settings=settings, engine=engine))
    try:
        yield engine
    finally:
        listener.shutdown()
        engine.dispose()


class Pdu(NamedTuple):
    """A received PDU: its type and what follows its header."""

    kind: int
    body: bytes


def associate_request(
    contexts: Iterable[tuple[str, Sequence[str]]] = CT_EXPLICIT,
    calling: str = "CT1",
    called: str = "ONESCAN",
    user_items: Sequence[Any] = (),
) -> bytes:
    """A-ASSOCIATE-RQ with these presentation contexts, under the ids 1, 3, 5 ...; more `user_items` as primitives."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = calling, called
    proposed = [build_context(sop_class, list(syntaxes)) for sop_class, syntaxes in contexts]
    for number, context in enumerate(proposed):
        context.context_id = 2 * number + 1
    request.presentation_context_definition_list = proposed
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16382
    implementation.implementation_class_uid = "1.2.826.0.1.3680043.9.3811.3.0.4"
    request.user_information = [length, implementation, *user_items]
    return A_ASSOCIATE_RQ(request).encode()


def message(request: Any, context_id: int = 1, maximum_pdu: int = 16382) -> list[bytes]:
    """The P-DATA-TF PDUs of a DIMSE request primitive."""
    encoded = _MESSAGES[type(request)]()
    encoded.primitive_to_message(request)
    return [P_DATA_TF(value).encode() for value in encoded.encode_msg(context_id, maximum_pdu)]


def store_request(data_set: Dataset, encoded: bytes | None = None) -> C_STORE:
    """C-STORE-RQ primitive of `data_set`, with `encoded` as its bytes instead of its own."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID = data_set.SOPClassUID
    request.AffectedSOPInstanceUID = data_set.SOPInstanceUID
    request.DataSet = BytesIO(encoded_data_set(data_set) if encoded is None else encoded)
    return request


def encoded_data_set(data_set: Dataset) -> bytes:
    """The data set as a C-STORE carries it, without file meta information."""
    stream = BytesIO()
    data_set.save_as(stream, enforce_file_format=True)
    content = stream.getvalue()
    return content[144 + int.from_bytes(content[140:144], "little") :]


def echo_request() -> C_ECHO:
    """C-ECHO-RQ primitive."""
    request = C_ECHO()
    request.MessageID = 7
    request.AffectedSOPClassUID = "1.2.840.10008.1.1"
    return request


class Peer:
    """A connection to the DICOM port of `settings`. Reading fails after a time in which any answer would have come."""

    def __init__(self, settings: Settings, tls: ssl.SSLContext | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", settings.dicom_port), timeout=_PATIENCE_S)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *pdus: bytes) -> None:
        self.socket.sendall(b"".join(pdus))

    def receive(self) -> Pdu | None:
        """The next PDU; None at the end of the connection."""
        header = self._take(6)
        return None if header is None else Pdu(header[0], self._take(int.from_bytes(header[2:], "big")) or b"")

    def associate(self, **request: Any) -> Pdu:
        """Send an association request; what is answered."""
        self.send(associate_request(**request))
        answer = self.receive()
        assert answer is not None
        return answer

    def ask(self, request: Any, context_id: int = 1) -> Dataset:
        """Send a DIMSE request; the command set of its response."""
        self.send(*message(request, context_id))
        return self.response()

    def response(self) -> Dataset:
        """The command set that comes next."""
        answer = self.receive()
        assert answer is not None and answer.kind == DATA, answer
        return read_dataset(BytesIO(answer.body[6:]), True, True)

    def abort_reason(self) -> tuple[int, int]:
        """Source and reason of the A-ABORT that comes next, after which the connection must end."""
        answer = self.receive()
        assert answer is not None and answer.kind == ABORT, answer
        assert self.receive() is None
        return answer.body[2], answer.body[3]

    def release(self) -> None:
        self.send(A_RELEASE_RQ(A_RELEASE()).encode())
        answer = self.receive()
        assert answer is not None and answer.kind == RELEASE_RP, answer

    def abort(self) -> None:
        request = A_ABORT()
        request.abort_source = 0
        self.send(A_ABORT_RQ(request).encode())

    def _take(self, count: int) -> bytes | None:
        content = b""
        while len(content) < count:
            try:
                received = self.socket.recv(count - len(content))
            except ConnectionResetError:
                return None
            if not received:
                return None
            content += received
        return content


def reset_at_once(settings: Settings, count: int) -> None:
    """Connect that often, say a byte and reset the connection."""
    for _ in range(count):
        peer = socket.create_connection(("127.0.0.1", settings.dicom_port))
        peer.sendall(b"\x16")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
