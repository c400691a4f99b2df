"""Results to a DICOMweb server by STOW-RS (PS3.18 section 10.5)."""

import io
import uuid
from typing import Any

import httpx
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_gateway.deliver.attempt import ClassRefused, Encode, prepared, require_taken, store_all
from dicom_gateway.deliver.over_http import LATER, answer, json_object
from dicom_gateway.errors import PeerRefused, PeerUnreachable
from dicom_gateway.settings import StowDestination
from dicom_gateway.store.schema import ObjectOutcome
from imaging.uids import derive_uid

_JSON = "application/dicom+json"
_CONFLICT, _UNSUPPORTED_MEDIA_TYPE = 409, 415
# PS3.18 Table I.2-2; to C-STORE the number says something else.
_TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122
# A server that stores only may say so when it is searched.
_NO_SEARCH = frozenset({405, 501})
# PS3.18 Table 10.5.3-1, as DICOM JSON writes tags (F.2.2).
_FAILED, _OTHER_FAILURES, _STORED = "00081198", "0008119A", "00081199"
_FAILURE_REASON, _REFERENCED_INSTANCE = "00081197", "00081155"


def send(encode: Encode, destination: StowDestination) -> tuple[ObjectOutcome, ...]:
    """Store what the destination names, one request an object; it has answered for each when this returns.

    Fallbacks, outcomes and repeated attempts are as with C-STORE (`dimse.send`), where the server answers with a
    Failure Reason. Objects are Explicit VR Little Endian, the syntax that every server takes (PS3.18 section 8.7.3.3),
    but for label maps, which are RLE Lossless.

    Raises PeerUnreachable where another attempt may succeed: no connection, silence, a status that asks for patience,
    out of resources (0xA7xx). Raises PeerRefused when nothing at all is taken, and, after the other kinds were sent,
    for every other "no" to one of them. Of an answer only its codes are told: its texts may quote the patient.
    """
    url, token = f"{destination.url.rstrip('/')}/studies", destination.bearer_token()

    def store(data_set: Dataset) -> None:
        changed = prepared(data_set, ExplicitVRLittleEndian, destination.character_set)
        boundary = uuid.uuid4().hex
        media_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
        headers = {"Accept": _JSON, "Content-Type": media_type}
        response = answer("POST", url, headers=headers, bearer_token=token, content=_body(changed, boundary))
        _require_stored(response, changed)

    return store_all(destination.objects, encode, store, refused={})


def ask(url: str, *, bearer_token: str | None = None) -> None:
    """Search for a study that nobody has, so that no patient's data are asked for.

    Raises PeerUnreachable or PeerRefused as `send` does.
    """
    nobodys = derive_uid("is anybody there")
    search = f"{url.rstrip('/')}/studies?StudyInstanceUID={nobodys}&limit=1"
    response = answer("GET", search, headers={"Accept": _JSON}, bearer_token=bearer_token)
    if response.status_code in LATER:
        raise PeerUnreachable(f"HTTP status {response.status_code}")
    if not response.is_success and response.status_code not in _NO_SEARCH:
        raise PeerRefused(f"HTTP status {response.status_code}")


def _body(data_set: Dataset, boundary: str) -> bytes:
    body = io.BytesIO()
    body.write(f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode())
    data_set.save_as(file := io.BytesIO(), enforce_file_format=True)
    body.write(file.getbuffer())
    body.write(f"\r\n--{boundary}--\r\n".encode())
    return body.getvalue()


def _require_stored(response: httpx.Response, data_set: Dataset) -> None:
    """Judge the answer to a request that held this one instance."""
    status = response.status_code
    if status in LATER:
        raise PeerUnreachable(f"HTTP status {status}")
    is_compressed = data_set.file_meta.TransferSyntaxUID.is_compressed
    if is_compressed and status == _UNSUPPORTED_MEDIA_TYPE:
        raise ClassRefused(f"HTTP status {status}")
    if not response.is_success and status != _CONFLICT:
        raise PeerRefused(f"HTTP status {status}")
    told = json_object(response)
    reasons = [_number(item, _FAILURE_REASON) for tag in (_FAILED, _OTHER_FAILURES) for item in _items(told, tag)]
    for reason in reasons:
        if reason is None:
            raise PeerRefused(f"HTTP status {status}, and the object is among the failed ones")
        words = f"HTTP status {status}, failure reason 0x{reason:04X}"
        if is_compressed and reason == _TRANSFER_SYNTAX_NOT_SUPPORTED:
            raise ClassRefused(words)
        require_taken(reason, words)
    if reasons:
        return
    if status == _CONFLICT:
        raise PeerRefused(f"HTTP status {status}")
    # Without it this may be any web page: one that asks to log in, for example.
    if str(data_set.SOPInstanceUID) not in [_text(item, _REFERENCED_INSTANCE) for item in _items(told, _STORED)]:
        raise PeerRefused(f"HTTP status {status}, but the answer does not say that the object was stored")


def _values(item: dict[str, Any], tag: str) -> list[Any]:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _items(data_set: dict[str, Any], tag: str) -> list[dict[str, Any]]:
    return [item for item in _values(data_set, tag) if isinstance(item, dict)]


def _number(item: dict[str, Any], tag: str) -> int | None:
    value = next(iter(_values(item, tag)), None)
    return value if isinstance(value, int) and 0 <= value <= 0xFFFF else None


def _text(item: dict[str, Any], tag: str) -> str | None:
    value = next(iter(_values(item, tag)), None)
    return value if isinstance(value, str) else None
