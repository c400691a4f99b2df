"""What people and systems are told of an event: the study by its UID, and how it stands. No other patient data."""

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """How a revision of a study stands; `state` is reported, refused or failed.

    `parked` names the destinations that its report did not reach.
    """

    study_instance_uid: str
    revision: int
    state: str
    urgent: bool
    parked: tuple[str, ...]

    @property
    def page(self) -> str:
        """Path of the study's page at the web port, by whatever name that is reached."""
        return f"/studies/{self.study_instance_uid}"


def as_json(notice: Notice) -> bytes:
    """Always the same bytes for the same notice."""
    told = {
        "study_instance_uid": notice.study_instance_uid,
        "revision": notice.revision,
        "state": notice.state,
        "urgent": notice.urgent,
        "parked": list(notice.parked),
        "page": notice.page,
    }
    return json.dumps(told).encode()


def subject(notice: Notice) -> str:
    """One line that says what matters most."""
    if notice.urgent:
        return "OneScan: URGENT report"
    if notice.state == "failed":
        return "OneScan: an analysis failed"
    return "OneScan: a report was not delivered" if notice.parked else f"OneScan: study {notice.state}"


def as_text(notice: Notice) -> str:
    """A message for people."""
    lines = [f"Study: {notice.study_instance_uid}", f"Revision: {notice.revision}", f"State: {notice.state}"]
    lines.append(f"Urgent: {'yes' if notice.urgent else 'no'}")
    if notice.parked:
        lines.append(f"Not delivered to: {', '.join(notice.parked)}")
    lines += [f"Page: {notice.page}", "", "Automated analysis. Research use only, not a medical device."]
    return "\n".join(lines) + "\n"
