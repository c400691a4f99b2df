"""Results to an HL7 v2 interface engine: one message and its acknowledgement over MLLP."""

import socket

from dicom_gateway.errors import PeerRefused, PeerUnreachable

CONNECTION_TIMEOUT_S = 10.0
RESPONSE_TIMEOUT_S = 60.0
# HL7 v2 "Transport Specification: MLLP", release 1: <VT> message <FS><CR>
_START, _END = b"\x0b", b"\x1c\r"
_LONGEST_ANSWER_BYTES = 1 << 20
_ACCEPTED = frozenset({"AA", "CA"})
_REJECTED = frozenset({"AE", "AR", "CE", "CR"})


def send(message: bytes, host: str, port: int) -> None:
    """Send one message (segments end in carriage returns); it has been accepted (AA, CA) when this returns.

    Raises PeerUnreachable without connection or answer, PeerRefused for every other acknowledgement (AE, AR, ...) and
    for an answer that acknowledges something else. Of the answer only its codes are told: texts may quote the patient.
    """
    control_id = message.split(b"\r", 1)[0].split(b"|")[9]
    try:
        with socket.create_connection((host, port), timeout=CONNECTION_TIMEOUT_S) as connection:
            connection.settimeout(RESPONSE_TIMEOUT_S)
            connection.sendall(_START + message + _END)
            answer = _answer(connection)
    except (OSError, UnicodeError) as error:
        raise PeerUnreachable("no connection, or it ended before the acknowledgement") from error
    _require_accepted(answer, control_id)


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


def _require_accepted(answer: bytes, control_id: bytes) -> None:
    """Reads MSA and ERR by the separators that the answer itself declares (MSH-1)."""
    if not answer.startswith(b"MSH") or len(answer) < 4:
        raise PeerRefused("the answer is no acknowledgement")
    segments = [segment.split(answer[3:4]) for segment in answer.split(b"\r")]
    acknowledged = next((fields for fields in segments if fields[0] == b"MSA" and len(fields) > 2), None)
    if acknowledged is None:
        raise PeerRefused("the answer is no acknowledgement")
    code = acknowledged[1].decode("ascii", errors="replace")
    if acknowledged[2] != control_id:
        raise PeerRefused("the answer acknowledges another message")
    if code in _ACCEPTED:
        return
    # ERR-3 (table 0357) is a number such as 204; the text beside it is not told.
    errors = [fields[3].split(b"^")[0] for fields in segments if fields[0] == b"ERR" and len(fields) > 3]
    numbers = [error.decode() for error in errors if error.isdigit() and len(error) <= 4]
    reason = f" (error {', '.join(numbers)})" if numbers else ""
    raise PeerRefused(f"acknowledgement {code if code in _REJECTED else 'of no known code'}{reason}")
