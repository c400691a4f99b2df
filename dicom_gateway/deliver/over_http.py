"""What deliveries by HTTP share: one request, and which of its failures are worth another attempt."""

from collections.abc import Mapping
from typing import Any

import httpx

from dicom_gateway.errors import PeerUnreachable

TIMEOUT_S = 60.0
# These ask for patience. Of 5xx, 501 and 505 will not change.
LATER = frozenset({408, 425, 429, 500, 502, 503, 504, 507})


def answer(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    bearer_token: str | None = None,
    content: bytes | None = None,
) -> httpx.Response:
    """The server's answer, redirections not followed. Raises PeerUnreachable without one."""
    authorization = {} if bearer_token is None else {"Authorization": f"Bearer {bearer_token}"}
    try:
        return httpx.request(method, url, content=content, headers={**headers, **authorization}, timeout=TIMEOUT_S)
    except httpx.RequestError as error:
        raise PeerUnreachable("no connection, or no answer in time") from error


def json_object(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer; empty where it holds none."""
    try:
        told = response.json()
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
