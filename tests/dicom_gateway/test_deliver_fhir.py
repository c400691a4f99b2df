"""Delivery to a FHIR server, on the wire."""

import pytest
from receivers import fhir_server

from dicom_gateway.deliver.fhir import ask, send
from dicom_gateway.errors import DeliveryError, PeerRefused, PeerUnreachable

BUNDLE = b'{"resourceType": "Bundle", "type": "transaction"}'


def test_a_transaction_is_posted_to_the_base_url() -> None:
    with fhir_server(200) as server:
        send(BUNDLE, server.url, bearer_token="secret")
    ((path, headers, body),) = server.posted
    assert (path, body) == ("/fhir", BUNDLE)
    assert headers["Content-Type"] == headers["Accept"] == "application/fhir+json"
    assert headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((status, PeerUnreachable) for status in (408, 409, 429, 500, 502, 503, 504)),
        *((status, PeerRefused) for status in (302, 400, 401, 403, 404, 412, 413, 415, 422, 501)),
    ],
)
def test_the_status_says_whether_another_attempt_makes_sense(status: int, error: type[DeliveryError]) -> None:
    with fhir_server(status, {}) as server, pytest.raises(error, match=str(status)):
        send(BUNDLE, server.url)


def test_the_types_of_the_issues_are_told_but_no_text_of_the_server() -> None:
    outcome = {
        "resourceType": "OperationOutcome",
        "issue": [
            {"severity": "error", "code": "not-found", "diagnostics": "no Patient Wang XiaoDong, P-1"},
            {"severity": "error", "code": "Wang XiaoDong"},
            {"severity": "error", "code": ["P-1"]},
            "P-1",
        ],
    }
    with fhir_server(422, outcome) as server, pytest.raises(PeerRefused) as caught:
        send(BUNDLE, server.url)
    assert str(caught.value) == "HTTP status 422 (not-found)"


@pytest.mark.parametrize("answer", [b"<html>welcome</html>", b"[]", {"resourceType": "Bundle", "type": "batch"}])
def test_success_is_only_the_answer_to_a_transaction(answer: object) -> None:
    with fhir_server(200, answer) as server, pytest.raises(PeerRefused, match="not the answer"):
        send(BUNDLE, server.url)


def test_nobody_there_is_unreachable() -> None:
    with fhir_server(200) as server:
        url = server.url
    with pytest.raises(PeerUnreachable):
        send(BUNDLE, url)
    with pytest.raises(PeerUnreachable):
        send(BUNDLE, "http://no-such-host.invalid/fhir")


def test_a_server_is_asked_for_its_capabilities() -> None:
    with fhir_server(200, {"resourceType": "CapabilityStatement"}) as server:
        ask(server.url + "/", bearer_token="secret")
    ((path, headers, _),) = server.posted
    assert (path, headers["Authorization"]) == ("/fhir/metadata", "Bearer secret")
    with fhir_server(200, {"resourceType": "Patient"}) as server, pytest.raises(PeerRefused):
        ask(server.url)
    with fhir_server(401, {}) as server, pytest.raises(PeerRefused, match="401"):
        ask(server.url)
