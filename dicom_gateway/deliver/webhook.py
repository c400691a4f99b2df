"""Notices to a web service: one POST, signed after the Standard Webhooks specification 1.0 (standardwebhooks.com)."""

import base64
import binascii
import hashlib
import hmac
import time
from urllib.parse import urlsplit

from dicom_gateway.deliver import mllp
from dicom_gateway.deliver.notice import Notice, as_json
from dicom_gateway.deliver.over_http import LATER, answer
from dicom_gateway.errors import ConfigurationError, PeerRefused, PeerUnreachable

_SECRET_PREFIX = "whsec_"
_PORTS = {"http": 80, "https": 443}


def send(
    notice: Notice, url: str, *, occasion: str, secret: str | None = None, bearer_token: str | None = None
) -> None:
    """POST the notice as JSON; it was taken (any 2xx) when this returns.

    `webhook-id` is the same for each attempt to tell the same on one `occasion`, and for nothing else. With a secret,
    `webhook-signature` is that of id, time and body.
    Raises PeerUnreachable where another attempt may succeed, PeerRefused for every other status, and
    ConfigurationError for a secret that is not base64.
    """
    body = as_json(notice)
    identifier = f"msg_{hashlib.sha256(occasion.encode() + b' ' + body).hexdigest()[:32]}"
    timestamp = str(int(time.time()))
    headers = {"Content-Type": "application/json", "webhook-id": identifier, "webhook-timestamp": timestamp}
    if secret is not None:
        headers["webhook-signature"] = signature(secret, identifier, timestamp, body)
    response = answer("POST", url, headers=headers, bearer_token=bearer_token, content=body)
    if response.status_code in LATER:
        raise PeerUnreachable(f"HTTP status {response.status_code}")
    if not response.is_success:
        raise PeerRefused(f"HTTP status {response.status_code}")


def signature(secret: str, identifier: str, timestamp: str, body: bytes) -> str:
    """HMAC-SHA256 as the specification writes it. Raises ConfigurationError for a secret that is not base64."""
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise ConfigurationError("the secret of a webhook is not base64") from error
    digest = hmac.digest(key, b".".join((identifier.encode(), timestamp.encode(), body)), "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


def connect(url: str) -> None:
    """Whether somebody listens there; a webhook has no question to ask. Raises PeerUnreachable."""
    parts = urlsplit(url)
    mllp.connect(parts.hostname or "", parts.port or _PORTS[parts.scheme])
