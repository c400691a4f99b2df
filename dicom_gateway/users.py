"""The file of those who may use the web port: a line "name:bcrypt hash" a person, as `htpasswd -B` writes it, too.

Who may also vouch for reports has a longer line, "name:bcrypt hash:Family^Given:organisation".
"""

import re
from dataclasses import dataclass
from pathlib import Path

import bcrypt

from dicom_gateway.errors import ConfigurationError
from dicom_gateway.settings import Settings

# bcrypt takes no more; newer releases of the library refuse what older ones cut off.
LONGEST_PASSWORD_BYTES = 72
_ROUNDS = 12
# $2y$ is what htpasswd writes. Its default cost of 5 is guessed too fast.
# A name and an organisation as a DICOM PN and LO hold them (PS3.5 6.2).
_WORDS = r"(?=\S)([^:\\\x00-\x1f\x7f]{1,64})"
_LINE = re.compile(rf"([^:\s#][^:\r\n]{{0,63}}):(\$2[aby]\$1[0-5]\$[./A-Za-z0-9]{{53}})(?::{_WORDS}:{_WORDS})?")


@dataclass(frozen=True, slots=True)
class Person:
    """Who somebody is in a report: DICOM name (Family^Given) and organisation."""

    name: str
    organization: str


@dataclass(frozen=True, slots=True)
class User:
    """One line; `vouches_as` is None for who may only look."""

    name: str
    password_hash: bytes
    vouches_as: Person | None


def hashed(password: str) -> bytes:
    """bcrypt hash. Raises ValueError for a password that bcrypt cannot tell from others."""
    encoded = password.encode()
    if not encoded or len(encoded) > LONGEST_PASSWORD_BYTES or b"\0" in encoded:
        raise ValueError(f"a password has 1 to {LONGEST_PASSWORD_BYTES} bytes")
    return bcrypt.hashpw(encoded, bcrypt.gensalt(_ROUNDS))


def matches(password: bytes, expected: bytes) -> bool:
    """Whether `expected` is the hash of `password`; takes a good part of a second."""
    if len(password) > LONGEST_PASSWORD_BYTES or b"\0" in password:
        return False
    return bcrypt.checkpw(password, expected)


def hash_line(name: str, password: str, vouches_as: Person | None = None) -> str:
    """The line of a users file for `password`. Raises ValueError for a name or password that cannot stand there."""
    line = f"{name}:{hashed(password).decode('ascii')}"
    if vouches_as is not None:
        line += f":{vouches_as.name}:{vouches_as.organization}"
    if _LINE.fullmatch(line) is None:
        raise ValueError("names have 1 to 64 characters, no colon or backslash, and begin with neither a blank nor '#'")
    return line


def read_users(path: Path) -> dict[str, User]:
    """The users by name. Raises ConfigurationError, which names the line, never its content."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read web_users_file {path}: {type(error).__name__}") from error
    users: dict[str, User] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None or found[1] in users:
            raise ConfigurationError(
                f"web_users_file {path}, line {number}: not 'name:bcrypt hash' of cost 10 to 15, with or without "
                "':Family^Given:organisation', or a name said twice"
            )
        person = Person(found[3].strip(), found[4].strip()) if found[3] else None
        users[found[1]] = User(found[1], found[2].encode("ascii"), person)
    if not users:
        raise ConfigurationError(f"web_users_file {path} names nobody")
    return users


def require_guarded(settings: Settings) -> None:
    """Raises ConfigurationError when other machines would reach patient data without being asked who they are."""
    if settings.web_users_file is not None:
        read_users(settings.web_users_file)
    elif not settings.web_is_local:
        raise ConfigurationError(
            f"web_host {settings.web_host} is reached by other machines: set web_users_file, or leave web_host at "
            "127.0.0.1 behind a proxy that asks who it is"
        )
