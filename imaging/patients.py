"""Whether images are of one patient, told without keeping anything that names the patient.

Archives leave these elements out of some images, or pad and spell them in other ways: only what two images say
differently tells them apart.
"""

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from pydicom.dataset import Dataset

PATIENT_KEYWORDS = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex")
# Identifiers are so few that an unkeyed digest of one could be looked up.
_KEY = secrets.token_bytes(16)
_NAME_DELIMITERS = re.compile(rb"[\^=,\s\0]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientIdentity:
    """Digests of what a header says of its patient, None where it says nothing; comparable in one process only."""

    patient_id: bytes | None
    issuer: bytes | None
    name: bytes | None
    birth_date: bytes | None
    sex: bytes | None


def patient_of(ds: Dataset) -> PatientIdentity:
    """The patient that a header names. Names are compared without regard to case, delimiters and padding."""
    patient_id, issuer, name, birth_date, sex = (_raw(ds, keyword) for keyword in PATIENT_KEYWORDS)
    birth_date, sex = birth_date.replace(b".", b""), sex.upper()
    return PatientIdentity(
        patient_id=_digest(patient_id.upper()),
        issuer=_digest(issuer.upper()),
        name=_digest(_NAME_DELIMITERS.sub(b" ", name).strip().upper()),
        birth_date=_digest(birth_date if re.fullmatch(rb"\d{8}", birth_date) else b""),
        # "O" and what is no defined term stand for unknown.
        sex=_digest(sex if sex in (b"M", b"F") else b""),
    )


def agree(patients: Iterable[PatientIdentity]) -> bool:
    """Whether nothing is said differently, as in the images of one series: one scanner wrote them in one act."""
    return not any(_differing(tuple(patients)).values())


def is_one_patient(patients: Iterable[PatientIdentity]) -> bool:
    """Whether the images of a study can be of one patient, although several devices wrote them.

    One Patient ID outweighs a name, a birth date or a sex that was corrected or spelled otherwise, not two of these.
    """
    known = tuple(patients)
    differing = _differing(known)
    if differing["patient_id"] or differing["issuer"]:
        return False
    others = [differing[what] for what in ("name", "birth_date", "sex")]
    return sum(others) < (2 if all(patient.patient_id for patient in known) else 1)


def _differing(patients: tuple[PatientIdentity, ...]) -> dict[str, bool]:
    return {
        what: len({getattr(patient, what) for patient in patients} - {None}) > 1
        for what in ("patient_id", "issuer", "name", "birth_date", "sex")
    }


def _raw(ds: Dataset, keyword: str) -> bytes:
    """The value field as it was written: what pydicom decodes depends on the character set."""
    element = ds.get_item(keyword)
    value = b"" if element is None else element.value or b""
    return (value if isinstance(value, bytes) else str(value).encode()).strip(b" \0")


def _digest(value: bytes) -> bytes | None:
    return blake2b(value, digest_size=8, key=_KEY).digest() if value else None
