"""Delivery to an HL7 interface engine, on the wire."""

import pytest
from receivers import acknowledgement, hl7_engine

from dicom_gateway.deliver.mllp import connect, send
from dicom_gateway.errors import PeerRefused, PeerUnreachable

MESSAGE = "MSH|^~\\&|ONESCAN||||20260110||ORU^R01^ORU_R01|ID-1|P|2.5.1\rPID|1||P-1||王^小东\r".encode()


@pytest.mark.parametrize("code", ["AA", "CA"])
@pytest.mark.parametrize("separator", ["|", "#"])
def test_a_message_is_framed_and_its_acceptance_awaited(code: str, separator: str) -> None:
    with hl7_engine(acknowledgement(code, separator=separator)) as server:
        send(MESSAGE, *server.server_address)
    assert server.received == [b"\x0b" + MESSAGE + b"\x1c\r"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (acknowledgement("AE"), "acknowledgement AE"),
        (acknowledgement("AR"), "acknowledgement AR"),
        (acknowledgement("CR", more="ERR||PID^1^3|204^Unknown key^HL70357|E|||Wang\r"), "CR (error 204)"),
        (acknowledgement("AE", more="ERR||PID^1^3|Wang^XiaoDong|E\r"), "acknowledgement AE"),
        (acknowledgement("WANG"), "acknowledgement of no known code"),
        (acknowledgement("AA", control_id="ID-2"), "the answer acknowledges another message"),
        (b"\x0bMSH|^~\\&|\r\x1c\r", "the answer is no acknowledgement"),
        (b"HTTP/1.1 400 Wang\x1c\r", "the answer is no acknowledgement"),
    ],
)
def test_a_no_is_told_by_its_codes_alone(answer: bytes, told: str) -> None:
    with hl7_engine(answer) as server, pytest.raises(PeerRefused) as caught:
        send(MESSAGE, *server.server_address)
    assert str(caught.value).endswith(told)
    assert "Wang" not in str(caught.value)
    assert "204" in told or "204" not in str(caught.value)


@pytest.mark.parametrize("answer", [None, b"\x0bMSH|^~\\&|ENGINE"])
def test_no_whole_answer_is_unreachable(answer: bytes | None) -> None:
    with hl7_engine(answer) as server, pytest.raises(PeerUnreachable):
        send(MESSAGE, *server.server_address)


def test_nobody_there_is_unreachable() -> None:
    with hl7_engine(None) as server:
        host, port = server.server_address
    with pytest.raises(PeerUnreachable):
        send(MESSAGE, host, port)
    with pytest.raises(PeerUnreachable):
        connect(host, port)
    with pytest.raises(PeerUnreachable):
        send(MESSAGE, "no-such-host.invalid", port)
