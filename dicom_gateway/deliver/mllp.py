"""Results to an HL7 v2 interface engine: one message and its acknowledgement over MLLP."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import hl7

from dicom_gateway.errors import PeerRefused, PeerUnreachable

CONNECTION_TIMEOUT_S = 10.0
RESPONSE_TIMEOUT_S = 60.0
# HL7 v2 "Transport Specification: MLLP", release 1: <VT> message <FS><CR>
_START, _END = b"\x0b", b"\x1c\r"
_LONGEST_ANSWER_BYTES = 1 << 20
_ACCEPTED = frozenset({"AA", "CA"})
_REJECTED = frozenset({"AE", "AR", "CE", "CR"})
_ERROR_DIGITS = 4


def send(message: bytes, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
    """Send one message (segments end in carriage returns); it has been accepted (AA, CA) when this returns.

    With `tls` over TLS. Raises PeerUnreachable without connection or answer or with a certificate that is not trusted,
    PeerRefused for every other acknowledgement (AE, AR, ...) and for an answer that acknowledges something else. Of the
    answer only its codes are told: texts may quote the patient.
    """
    control_id = message.split(b"|", 10)[9].decode()
    with _connection(host, port, tls) as connection:
        connection.sendall(_START + message + _END)
        answer = _answer(connection)
    _require_accepted(answer, control_id)


def connect(host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
    """Whether somebody listens there; MLLP has no question to ask. Raises PeerUnreachable."""
    with _connection(host, port, tls):
        pass


@contextmanager
def _connection(host: str, port: int, tls: ssl.SSLContext | None) -> Iterator[socket.socket]:
    try:
        with ExitStack() as open_sockets:
            plain = open_sockets.enter_context(socket.create_connection((host, port), timeout=CONNECTION_TIMEOUT_S))
            connection = plain if tls is None else tls.wrap_socket(plain, server_hostname=host)
            open_sockets.enter_context(connection)
            connection.settimeout(RESPONSE_TIMEOUT_S)
            yield connection
    except ssl.SSLCertVerificationError as error:
        raise PeerUnreachable(f"its certificate is not trusted ({error.verify_message})") from error
    except (OSError, UnicodeError) as error:
        raise PeerUnreachable("no connection, or it ended before the acknowledgement") from error


def _answer(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(_END):
        block = connection.recv(65536)
        if not block:
            raise ConnectionResetError("no acknowledgement")
        received += block
        if len(received) > _LONGEST_ANSWER_BYTES:
            raise PeerRefused("the answer is no acknowledgement")
    return received.removesuffix(_END).removeprefix(_START)


def _require_accepted(answer: bytes, control_id: str) -> None:
    try:
        # Latin-1, for its codes are ASCII and its texts may be in any character set.
        acknowledgement = hl7.parse(answer, encoding="latin-1")
        code, acknowledged = (str(acknowledgement.segment("MSA")[number]) for number in (1, 2))
    except (hl7.HL7Exception, LookupError) as error:
        raise PeerRefused("the answer is no acknowledgement") from error
    if acknowledged != control_id:
        raise PeerRefused("the answer acknowledges another message")
    if code not in _ACCEPTED:
        raise PeerRefused(
            f"acknowledgement {code if code in _REJECTED else 'of no known code'}{_errors(acknowledgement)}"
        )


def _errors(acknowledgement: hl7.Message) -> str:
    """The numbers of ERR-3 (table 0357), such as 204."""
    segments = [segment for segment in acknowledgement if str(segment[0]) == "ERR" and len(segment) > 3]
    numbers = [str(segment[3]).partition("^")[0] for segment in segments]
    known = [number for number in numbers if number.isdecimal() and len(number) <= _ERROR_DIGITS]
    return f" (error {', '.join(known)})" if known else ""
