"""A FHIR server and an HL7 engine that answer what a test wants, on ports of their own."""

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

TAKEN = {"resourceType": "Bundle", "type": "transaction-response", "entry": [{"response": {"status": "201 Created"}}]}


class FhirServer(HTTPServer):
    """Answers every POST alike and keeps what was posted."""

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


class Hl7Engine(socketserver.TCPServer):
    """Reads one message a connection and answers with `answer`, in pieces of one byte; None hangs up."""

    def __init__(self, answer: bytes | None) -> None:
        super().__init__(("127.0.0.1", 0), _Hl7Handler)
        self.answer = answer
        self.received: list[bytes] = []


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
def hl7_engine(answer: bytes | None) -> Iterator[Hl7Engine]:
    with Hl7Engine(answer) as server:
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
