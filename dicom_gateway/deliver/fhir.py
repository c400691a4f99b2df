"""Results to a FHIR server: one transaction by HTTP."""

import re

import httpx

from dicom_gateway.deliver.over_http import LATER, answer, json_object
from dicom_gateway.errors import PeerRefused, PeerUnreachable

MEDIA_TYPE = "application/fhir+json"
# Conflict is two updates at once.
_LATER = LATER | {409}
_ISSUE_CODE = re.compile(r"[a-z][a-z-]{1,31}")


def send(bundle: bytes, url: str, *, bearer_token: str | None = None) -> None:
    """POST the transaction (JSON, R4) to the server's base `url`; all of it was accepted when this returns.

    Raises PeerUnreachable where another attempt may succeed: no connection, silence, or a status that asks for
    patience. Raises PeerRefused for every other status, and for an answer that is not that of a transaction. Of the
    answer only status and coded issue types are told: its texts may quote the patient.
    """
    response = _answer("POST", url, bearer_token, content=bundle)
    _require_success(response)
    told = json_object(response)
    if (told.get("resourceType"), told.get("type")) != ("Bundle", "transaction-response"):
        raise PeerRefused(f"HTTP status {response.status_code}, but not the answer to a FHIR transaction")


def ask(url: str, *, bearer_token: str | None = None) -> None:
    """Read the server's capability statement. Raises PeerUnreachable or PeerRefused as `send` does."""
    response = _answer("GET", f"{url.rstrip('/')}/metadata", bearer_token)
    _require_success(response)
    if json_object(response).get("resourceType") != "CapabilityStatement":
        raise PeerRefused(f"HTTP status {response.status_code}, but no FHIR server's capability statement")


def _answer(method: str, url: str, bearer_token: str | None, content: bytes | None = None) -> httpx.Response:
    headers = {"Accept": MEDIA_TYPE}
    if content is not None:
        headers["Content-Type"] = MEDIA_TYPE
    return answer(method, url, headers=headers, bearer_token=bearer_token, content=content)


def _require_success(response: httpx.Response) -> None:
    if response.status_code in _LATER:
        raise PeerUnreachable(_told(response))
    if not response.is_success:
        raise PeerRefused(_told(response))


def _told(response: httpx.Response) -> str:
    """ "HTTP status 422 (processing)": the issue types are codes of the standard (OperationOutcome.issue.code)."""
    issues = json_object(response).get("issue")
    found = [issue.get("code") for issue in issues if isinstance(issue, dict)] if isinstance(issues, list) else []
    codes = dict.fromkeys(code for code in found if isinstance(code, str) and _ISSUE_CODE.fullmatch(code))
    return f"HTTP status {response.status_code}" + (f" ({', '.join(codes)})" if codes else "")
