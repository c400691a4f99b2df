"""Notices by webhook and by e-mail, on the wire."""

import base64
import email
import email.policy
import hashlib
import hmac
import json

import pytest
from receivers import fhir_server, mail_server

from dicom_gateway.deliver import mail, webhook
from dicom_gateway.deliver.notice import Notice
from dicom_gateway.errors import ConfigurationError, DeliveryError, PeerRefused, PeerUnreachable
from dicom_gateway.settings import MailDestination

NOTICE = Notice(study_instance_uid="1.2.3", revision=2, state="reported", urgent=True, parked=("pacs",))
SECRET = "whsec_" + base64.b64encode(b"a secret of our own").decode()


def test_a_notice_is_posted_and_signed() -> None:
    with fhir_server(204) as server:
        webhook.send(NOTICE, server.url, occasion="hook 5", secret=SECRET, bearer_token="token")
        webhook.send(NOTICE, server.url, occasion="hook 5", secret=SECRET.removeprefix("whsec_"))
    (_, headers, body), (_, again, _) = server.posted
    assert json.loads(body) == {
        "study_instance_uid": "1.2.3",
        "revision": 2,
        "state": "reported",
        "urgent": True,
        "parked": ["pacs"],
        "page": "/studies/1.2.3",
    }
    assert (headers["Content-Type"], headers["Authorization"]) == ("application/json", "Bearer token")
    assert headers["webhook-id"] == again["webhook-id"]
    # The text of the Standard Webhooks specification: id.timestamp.payload
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"a secret of our own", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


def test_without_a_secret_it_is_not_signed_and_a_bad_one_is_a_mistake() -> None:
    with fhir_server(200) as server:
        webhook.send(NOTICE, server.url, occasion="hook 5")
        with pytest.raises(ConfigurationError, match="base64"):
            webhook.send(NOTICE, server.url, occasion="hook 5", secret="no base64!")
    ((_, headers, _),) = server.posted
    assert "webhook-signature" not in headers


@pytest.mark.parametrize(("status", "error"), [(503, PeerUnreachable), (429, PeerUnreachable), (410, PeerRefused)])
def test_the_status_says_whether_another_attempt_makes_sense(status: int, error: type[DeliveryError]) -> None:
    with fhir_server(status) as server, pytest.raises(error, match=f"^HTTP status {status}$"):
        webhook.send(NOTICE, server.url, occasion="hook 5")
    with pytest.raises(PeerUnreachable):
        webhook.connect(server.url)


def at(server, **values):
    host, port = server.server_address
    addresses = {"sender": "onescan@hospital.example", "recipients": ("anna@hospital.example", "li@hospital.example")}
    given = {"name": "staff", "kind": "mail", "host": host, "port": port, "security": "none"}
    return MailDestination(**given | addresses | values)


def test_people_are_told_by_mail() -> None:
    with mail_server() as server:
        mail.send(NOTICE, at(server))
        mail.connect(at(server))
    ((recipients, content),) = server.received
    assert recipients == ["anna@hospital.example", "li@hospital.example"]
    message = email.message_from_string(content, policy=email.policy.SMTP)
    assert (message["Subject"], message["From"]) == ("OneScan: URGENT report", "onescan@hospital.example")
    text = message.get_content()
    for line in ("Study: 1.2.3", "Revision: 2", "Urgent: yes", "Not delivered to: pacs", "Page: /studies/1.2.3"):
        assert line in text.splitlines()


def test_one_recipient_that_takes_it_is_enough() -> None:
    with mail_server(anna="550 no Wang XiaoDong here") as server:
        mail.send(NOTICE, at(server))
    ((recipients, _),) = server.received
    assert recipients == ["li@hospital.example"]


@pytest.mark.parametrize(("reply", "error"), [("451 later", PeerUnreachable), ("550 no Wang", PeerRefused)])
def test_the_code_says_whether_another_attempt_makes_sense(reply: str, error: type[DeliveryError]) -> None:
    with mail_server(anna=reply, li=reply) as server, pytest.raises(error, match=f"^SMTP code {reply[:3]}$"):
        mail.send(NOTICE, at(server))
    with pytest.raises(PeerUnreachable):
        mail.send(NOTICE, at(server))


def test_a_server_without_what_the_site_asks_for_is_refused(tmp_path) -> None:
    (tmp_path / "password").write_text("secret")
    with mail_server() as server:
        with pytest.raises(PeerRefused, match="lacks"):
            mail.send(NOTICE, at(server, security="starttls"))
        with pytest.raises(PeerRefused, match="lacks"):
            mail.send(NOTICE, at(server, user="onescan", password_file=tmp_path / "password"))
        with pytest.raises(ConfigurationError, match="password_file"):
            mail.send(NOTICE, at(server, user="onescan"))
    assert server.received == []
