"""Deterministic DICOM UIDs: the same inputs give the same UID, so that a re-run duplicates nothing in a PACS."""

import re
import uuid

_NAMESPACE = uuid.UUID("3f0d7a52-6a0e-5c57-9d0b-0e5ca2d1c0de")
_SEPARATOR = "\x1f"
_TOLERATED_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_MAX_LENGTH = 64


def derive_uid(*parts: str) -> str:
    """UID under the 2.25 root (PS3.5 B.2) from a version 5 UUID of `parts`.

    Raises ValueError when a part contains the unit separator, which would make two part lists equal.
    """
    if any(_SEPARATOR in part for part in parts):
        raise ValueError("a part of a derived UID must not contain U+001F")
    return f"2.25.{uuid.uuid5(_NAMESPACE, _SEPARATOR.join(parts)).int}"


def is_safe_uid(value: str) -> bool:
    """Whether `value` may name a file: digits and single dots only, at most 64 characters.

    Tolerates leading zeros in a component, which real scanners write; nothing in it can leave a folder.
    """
    return len(value) <= _MAX_LENGTH and _TOLERATED_UID.fullmatch(value) is not None
