"""The words and number forms of the pages: what a value of the store or the report is called on the screen."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from dicom_gateway.report.content import ReportedMeasurement
from dicom_gateway.report.wording import KIND_NAMES, QUANTITY_NAMES
from dicom_gateway.store.index import DeliveryRow
from dicom_gateway.store.ledger import ROUTINE_PRIORITY
from models.findings import FindingKind, Quantity

Tone = Literal["good", "busy", "waiting", "warn", "bad", "unknown"]


@dataclass(frozen=True, slots=True)
class Words:
    """A state in words: `label` on the badge, `tone` its colour and shape, `meaning` one sentence in plain words."""

    label: str
    tone: Tone
    meaning: str


STUDY_STATES = {
    "receiving": Words("Receiving", "busy", "Images are still arriving, or the quiet period is not over yet."),
    "excluded": Words(
        "Not analysed", "waiting", "A rule of this site excludes the study; it is kept, and is analysed on request."
    ),
    "queued": Words("Waiting", "waiting", "All images are here; the analysis starts when the worker is free."),
    "analysing": Words("Analysing", "busy", "The worker is analysing the study now."),
    "reported": Words("Reported", "good", "The analysis is finished and its report is stored."),
    "refused": Words(
        "Refused", "warn", "No series of the study could be analysed safely; the report says why. Nothing was assessed."
    ),
    "failed": Words("Failed", "bad", "The analysis stopped with an error and waits for a replay."),
}

DELIVERY_STATES = {
    "pending": Words("Pending", "waiting", "Waits to be sent."),
    "delayed": Words("Retrying", "busy", "The destination could not be reached; another attempt is scheduled."),
    "delivered": Words("Delivered", "good", "The destination has confirmed that it stored the objects."),
    "parked": Words("Parked", "bad", "Given up or refused by the destination; it is sent again only by a replay."),
    "superseded": Words("Superseded", "waiting", "A newer report of the study was there before this one was sent."),
}

# What a person can say of an answer: what is stated, and its words; first what leaves the answer as it is.
VERDICT_CHOICES = {
    "present": (("", "Confirm"), ("absent", "Reject")),
    "indeterminate": (("", "Leave open"), ("present", "Present"), ("absent", "Absent")),
    "absent": (("", "Not found"), ("present", "Present")),
    "not_assessed": (("", "Not assessed"), ("present", "Present"), ("absent", "Absent")),
    # Of a kind that is present with more lesions than are described.
    "counts_more": (("", "Confirm"), ("present", "Others are present"), ("absent", "Reject")),
}

EVIDENCE_GRADES = {
    "A": "measured on real CT with reference labels",
    "B": "tried on real CT without labels, or single cases",
    "C": "simulated CT only",
}


def study_state(state: str) -> Words:
    return STUDY_STATES.get(state, Words(state.capitalize(), "unknown", ""))


def delivery_state(state: str) -> Words:
    return DELIVERY_STATES.get(state, Words(state.capitalize(), "unknown", ""))


def kind(value: str) -> str:
    """A finding kind in plain words."""
    return KIND_NAMES[FindingKind(value)]


def quantity(measurement: ReportedMeasurement) -> str:
    """What was measured, with its side where the number is of one side only."""
    name = QUANTITY_NAMES[Quantity(measurement.quantity)]
    return sentence(f"{measurement.laterality} {name}" if measurement.laterality else name)


def sentence(text: str) -> str:
    """`text` with a capital first letter and spaces for underscores."""
    words = text.replace("_", " ")
    return words[:1].upper() + words[1:]


def person(name: str) -> str:
    """A DICOM PN as "Family, Given Middle", its other character groups in brackets (PS3.5 6.2.1)."""
    latin, *others = (group.split("^") for group in name.split("="))
    family, given = latin[0].strip(), " ".join(part.strip() for part in latin[1:] if part.strip())
    first = ", ".join(part for part in (family, given) if part)
    rest = [" ".join(part.strip() for part in group if part.strip()) for group in others]
    shown = "; ".join(group for group in rest if group)
    if first and shown:
        return f"{first} ({shown})"
    return first or shown or "No name"


def day(date: str) -> str:
    """A DICOM DA (YYYYMMDD) as YYYY-MM-DD; anything else as it stands."""
    text = date.strip()
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if re.fullmatch(r"[0-9]{8}", text) else text


def moment(instant: datetime) -> str:
    """An aware datetime as date and time in the time zone of this machine."""
    return f"{instant.astimezone():%Y-%m-%d %H:%M}"


def number(value: float) -> str:
    """A length or a duration without trailing zeros."""
    return f"{value:g}"


def priority(value: int) -> str:
    """Name of a study's priority; empty for the ordinary one."""
    if value == ROUTINE_PRIORITY:
        return ""
    return "STAT" if value < ROUTINE_PRIORITY else "Batch"


def replay_url(delivery: DeliveryRow) -> str:
    """Where the form that sends a delivery again is posted to."""
    return (
        f"/studies/{delivery.study_instance_uid}/reports/{delivery.revision}/deliveries/{delivery.destination}/replay"
    )


def size(byte_count: int) -> str:
    """Bytes as GB or MB, decimal."""
    return f"{byte_count / 1e9:.1f} GB" if byte_count >= 1e9 else f"{byte_count / 1e6:.0f} MB"
