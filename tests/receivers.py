"""Servers of FHIR, DICOMweb, HL7 and mail that answer what a test wants, on ports of their own."""

import json
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from typing import Any

from pydicom import Dataset, dcmread

TAKEN = {"resourceType": "Bundle", "type": "transaction-response", "entry": [{"response": {"status": "201 Created"}}]}


class FhirServer(HTTPServer):
    """Answers every POST alike and keeps what was posted; `meanwhile` runs once before an answer."""

    meanwhile: Callable[[], object] | None = None

    def __init__(self, status: int, answer: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _FhirHandler)
        self.status, self.answer = status, answer
        self.posted: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/fhir"


class _FhirHandler(BaseHTTPRequestHandler):
    server: FhirServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.posted.append((self.path, dict(self.headers), body))
        meanwhile, self.server.meanwhile = self.server.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def fhir_server(status: int, answer: object = TAKEN) -> Iterator[FhirServer]:
    content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    with FhirServer(status, content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class StowServer(HTTPServer):
    """Stores what is posted, but for SOP classes with a failure reason in `refused`; then answers as PS3.18 10.5 says.

    `status` other than 200 is answered to everything, with the answer `told`.
    """

    def __init__(self, refused: dict[str, int], status: int, told: bytes | None) -> None:
        super().__init__(("127.0.0.1", 0), _StowHandler)
        self.refused, self.status, self.told = refused, status, told
        self.stored: list[Dataset] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/dicom-web"


class _StowHandler(BaseHTTPRequestHandler):
    server: StowServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(("POST", self.path, dict(self.headers)))
        boundary = re.fullmatch(
            r'multipart/related; type="application/dicom"; boundary=(\w+)', self.headers["Content-Type"]
        )
        assert boundary is not None
        delimiter = b"--" + boundary[1].encode()
        before, *parts, after = body.split(delimiter)
        assert (before, after) == (b"", b"--\r\n")
        taken, failed = [], []
        for part in parts:
            head, _, content = part.partition(b"\r\n\r\n")
            assert head == b"\r\nContent-Type: application/dicom"
            data_set = dcmread(BytesIO(content.removesuffix(b"\r\n")))
            reason = self.server.refused.get(data_set.SOPClassUID)
            if reason is None:
                self.server.stored.append(data_set)
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = data_set.SOPClassUID, data_set.SOPInstanceUID
            if reason is not None:
                item.FailureReason = reason
            (taken if reason is None else failed).append(item)
        answer = Dataset()
        if taken:
            answer.ReferencedSOPSequence = taken
        if failed:
            answer.FailedSOPSequence = failed
        self._answer(409 if failed else 200, answer.to_json().encode())

    def do_GET(self) -> None:
        self.server.requests.append(("GET", self.path, dict(self.headers)))
        self._answer(200, b"[]")

    def _answer(self, status: int, told: bytes) -> None:
        self.send_response(status if self.server.status == 200 else self.server.status)
        told = told if self.server.told is None else self.server.told
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def stow_server(
    refused: dict[str, int] | None = None, status: int = 200, told: bytes | None = None
) -> Iterator[StowServer]:
    with StowServer(refused or {}, status, told) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Hl7Engine(socketserver.TCPServer):
    """Reads one message a connection and answers with `answer`, in pieces of one byte; None hangs up."""

    def __init__(self, answer: bytes | None, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Hl7Handler)
        self.answer, self.tls = answer, tls
        self.received: list[bytes] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        return connection if self.tls is None else self.tls.wrap_socket(connection, server_side=True), address


class _Hl7Handler(socketserver.StreamRequestHandler):
    server: Hl7Engine

    def handle(self) -> None:
        message = b""
        while not message.endswith(b"\x1c\r"):
            if not (byte := self.rfile.read(1)):
                return
            message += byte
        self.server.received.append(message)
        for number in (self.server.answer or b"").replace(b"{id}", message.split(b"|", 10)[9]):
            self.wfile.write(bytes([number]))


@contextmanager
def hl7_engine(answer: bytes | None, tls: ssl.SSLContext | None = None) -> Iterator[Hl7Engine]:
    with Hl7Engine(answer, tls) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def acknowledgement(code: str, control_id: str = "{id}", more: str = "", separator: str = "|") -> bytes:
    """With the patient's name in its text; "{id}" is the control id of what is acknowledged."""
    lines = [
        f"MSH|^~\\&|ENGINE||ONESCAN||20260110||ACK^R01|1|P|2.5.1\rMSA|{code}|{control_id}|no Wang XiaoDong\r",
        more,
    ]
    return f"\x0b{''.join(lines)}\x1c\r".replace("|", separator).encode()


class MailServer(socketserver.TCPServer):
    """Takes mail for every recipient but those in `refused` (address -> reply, such as "550 unknown")."""

    def __init__(self, refused: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _SmtpHandler)
        self.refused = refused
        self.received: list[tuple[list[str], str]] = []


class _SmtpHandler(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        recipients: list[str] = []
        self._say("220 test")
        while line := self.rfile.readline().decode().strip():
            word = line.split(":")[0].upper()
            if word == "RCPT TO":
                recipient = line.partition("<")[2].rstrip(">")
                reply = self.server.refused.get(recipient, "250 ok")
                recipients += [recipient] if reply.startswith("250") else []
                self._say(reply)
            elif word == "DATA":
                self._say("354 go on")
                message = b""
                while not message.endswith(b"\r\n.\r\n"):
                    message += self.rfile.readline()
                self.server.received.append((recipients, message.decode()))
                self._say("250 taken")
            elif word == "QUIT":
                return self._say("221 bye")
            else:
                self._say("250 ok")

    def _say(self, reply: str) -> None:
        self.wfile.write(f"{reply}\r\n".encode())


@contextmanager
def mail_server(**refused: str) -> Iterator[MailServer]:
    with MailServer({f"{name}@hospital.example": reply for name, reply in refused.items()}) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
