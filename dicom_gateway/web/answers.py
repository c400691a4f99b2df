"""The JSON forms of the API beside the report itself. Times are UTC."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dicom_gateway.store.schema import CommitmentState, DeliveryState, StudyState


class _Answer(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class Study(_Answer):
    """A received study; identity and dates as the sender wrote them (PN, LO, DA)."""

    study_instance_uid: str
    state: StudyState
    revision: int = Field(description="Counts from 1; late images make the next one.")
    priority: int = Field(description="Smaller is served first.")
    calling_ae_title: str
    instance_count: int
    first_received: datetime
    last_received: datetime
    patient_name: str
    patient_id: str
    study_date: str
    description: str
    accession_number: str
    error: str | None = Field(description="Why the analysis failed, for state failed.")
    rule: str | None = Field(description="Name of the rule that decided about this revision; null: none fitted.")


class StudyPage(_Answer):
    """A page of the study list, the latest first."""

    studies: list[Study]
    limit: int
    offset: int
    more: bool = Field(description="Whether an older page follows.")
    counts: dict[StudyState, int] = Field(description="Studies in each state, of all pages.")


class StoredReport(_Answer):
    """A revision of a study's report."""

    revision: int
    created: datetime
    outcome: Literal["reported", "refused"]


class SentObject(_Answer):
    """What became of one kind of object that the destination is to be given."""

    name: str = Field(description="The kind as the settings name it.")
    sent_as: str | None = Field(description="The kind itself, or the one sent in its place; null: left out.")
    instances: int = Field(description="0 where the study has nothing of this kind.")
    reason: str | None = Field(description="Why it was not sent as itself.")


class Delivery(_Answer):
    """One report on its way to one destination."""

    study_instance_uid: str
    revision: int
    destination: str
    objects: tuple[str, ...]
    state: DeliveryState
    attempts: int
    last_error: str | None
    next_attempt: datetime | None = Field(description="Set while the state is delayed.")
    updated: datetime
    outcomes: tuple[SentObject, ...] = Field(description="For state delivered, one for each kind of object.")
    commitment: CommitmentState | None = Field(description="Storage commitment; null where it was not asked for.")


class NotTaken(_Answer):
    """Images that were not taken for one reason."""

    status: int = Field(description="Status of the C-STORE response.")
    reason: str
    count: int
    calling_ae_title: str = Field(description="Who sent the last of them.")
    last_seen: datetime


class StudyDetail(Study):
    """A study with its reports, the newest first, its deliveries, the last changed first, and what was not taken."""

    reports: list[StoredReport]
    deliveries: list[Delivery]
    not_taken: list[NotTaken]


class Replayed(_Answer):
    """What a replay has started again."""

    started: tuple[str, ...] = Field(description="Ids of the jobs put back into their queue.")


class HealthPart(_Answer):
    """One part of the service: listener, worker, web, database or disk."""

    name: str
    ok: bool
    detail: str


class Health(_Answer):
    """State of the service. Counts are null while the database does not answer."""

    ok: bool
    parts: tuple[HealthPart, ...]
    failed_studies: int | None
    parked_deliveries: int | None


class Problem(_Answer):
    """Why a request was not served."""

    detail: str
