"""Modality performed procedure steps (PS3.4 Annex F.7, as SCP): what a modality says it has made of a study.

A step that is over with success names its images, so that a study is whole when they are here; while a step goes on,
more is to come. Kept are the UIDs, nothing of the patient.
"""

import enum
import json
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from pydicom.dataset import Dataset
from pynetdicom.sop_class import CTImageStorage, EnhancedCTImageStorage, ModalityPerformedProcedureStep

from dicom_gateway.events import Event, emit
from dicom_gateway.receive.data_sets import items_of, parse_data_set
from dicom_gateway.receive.pdu import Command, CommandSet
from dicom_gateway.receive.statuses import StoreRefused, StoreStatus
from dicom_gateway.store.schema import performed_step, performed_step_study
from imaging.uids import is_safe_uid

SOP_CLASS_UID = str(ModalityPerformedProcedureStep)
_INVALID = StoreStatus.INVALID_ATTRIBUTE_VALUE
MAXIMUM_STEP_BYTES = 4 << 20
# A step says nothing any more of a study that comes a week later; neither does one that was never ended.
_FORGOTTEN_AFTER_S = 7 * 86400.0
_MAXIMUM_STEPS = 10_000
_MAXIMUM_STUDIES = 100
_IMAGES = (str(CTImageStorage), str(EnhancedCTImageStorage))

Made = Mapping[str, tuple[str, ...]]
"""SOP Instance UIDs of the CT images of each Series Instance UID."""


class StepState(enum.StrEnum):
    """Performed Procedure Step Status (0040,0252)."""

    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    DISCONTINUED = "DISCONTINUED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is known of one step."""

    state: StepState
    made: Made


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMessage:
    """What an N-CREATE or N-SET says; None is what it leaves as it was, `studies` are only told by an N-CREATE."""

    state: StepState | None
    studies: tuple[str, ...]
    made: Made | None


def parse_step(encoded: bytes, transfer_syntax: str) -> StepMessage:
    """The attribute or modification list of an N-CREATE or N-SET (PS3.4 Table F.7.2-1). Raises StoreRefused."""
    data_set = parse_data_set(encoded, transfer_syntax, StoreStatus.PROCESSING_FAILURE)
    # A text whatever VR was sent: a person's name equals the text, and is none.
    status = str(data_set.get("PerformedProcedureStepStatus") or "")
    if status and status not in list(StepState):
        raise StoreRefused(_INVALID, "Not a Performed Procedure Step Status")
    studies = {
        _uid(item, "StudyInstanceUID") for item in items_of(data_set, "ScheduledStepAttributesSequence", _INVALID)
    }
    made: dict[str, set[str]] = {}
    for series in items_of(data_set, "PerformedSeriesSequence", _INVALID):
        if images := set(_images(series)):
            made.setdefault(_uid(series, "SeriesInstanceUID"), set()).update(images)
    in_order = {series: tuple(sorted(images)) for series, images in made.items()}
    return StepMessage(
        state=StepState(status) if status else None,
        studies=tuple(sorted(studies)),
        made=in_order if "PerformedSeriesSequence" in data_set else None,
    )


def _images(series: Dataset) -> Iterator[str]:
    for item in items_of(series, "ReferencedImageSequence", _INVALID):
        if str(item.get("ReferencedSOPClassUID", "")) in _IMAGES:
            yield _uid(item, "ReferencedSOPInstanceUID")


def _uid(data_set: Dataset, keyword: str) -> str:
    value = str(data_set.get(keyword) or "")
    if not is_safe_uid(value):
        raise StoreRefused(_INVALID, "A UID is missing or not valid")
    return value


class PerformedSteps:
    """The steps that modalities tell of. The `engine` writes durably: what was answered is not told again."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def take(self, command: CommandSet, encoded: bytes, transfer_syntax: str, calling_ae_title: str) -> None:
        """Keep what an N-CREATE or N-SET request says. Raises StoreRefused with its status."""
        uid = command.sop_instance_uid
        if not is_safe_uid(uid):
            raise StoreRefused(StoreStatus.INVALID_SOP_INSTANCE, "SOP Instance UID is not valid (PS3.5 section 9.1)")
        told = parse_step(encoded, transfer_syntax)
        with self._engine.begin() as connection:
            if command.command == Command.N_CREATE_RQ:
                state = _create(connection, uid, told, calling_ae_title, time.time())
            else:
                state = _set(connection, uid, told, calling_ae_title, time.time())
        images = sum(map(len, (told.made or {}).values()))
        emit(Event.STEP_TOLD, calling_ae_title=calling_ae_title, sop_instance_uid=uid, state=state, images=images)


def _create(connection: sa.Connection, uid: str, told: StepMessage, calling_ae_title: str, now: float) -> StepState:
    if told.state is None or not told.studies:
        raise StoreRefused(StoreStatus.MISSING_ATTRIBUTE, "No status, or no study")
    if told.state is not StepState.IN_PROGRESS or len(told.studies) > _MAXIMUM_STUDIES:
        raise StoreRefused(_INVALID, "A step begins IN PROGRESS, of few studies")
    forgotten = sa.select(performed_step.c.sop_instance_uid).where(performed_step.c.updated < now - _FORGOTTEN_AFTER_S)
    connection.execute(sa.delete(performed_step_study).where(performed_step_study.c.sop_instance_uid.in_(forgotten)))
    connection.execute(sa.delete(performed_step).where(performed_step.c.updated < now - _FORGOTTEN_AFTER_S))
    if (connection.scalar(sa.select(sa.func.count()).select_from(performed_step)) or 0) >= _MAXIMUM_STEPS:
        raise StoreRefused(StoreStatus.RESOURCE_LIMITATION, "Too many steps within a week")
    known = sa.select(performed_step.c.state).where(performed_step.c.sop_instance_uid == uid)
    if connection.scalar(known) is not None:
        raise StoreRefused(StoreStatus.DUPLICATE_SOP_INSTANCE, "The step is known already")
    connection.execute(
        sa.insert(performed_step).values(
            sop_instance_uid=uid,
            calling_ae_title=calling_ae_title,
            state=told.state,
            made=json.dumps(told.made or {}),
            updated=now,
        )
    )
    rows = [{"sop_instance_uid": uid, "study_instance_uid": study} for study in told.studies]
    connection.execute(sa.insert(performed_step_study), rows)
    return told.state


def _set(connection: sa.Connection, uid: str, told: StepMessage, calling_ae_title: str, now: float) -> StepState:
    mine = sa.and_(performed_step.c.sop_instance_uid == uid, performed_step.c.calling_ae_title == calling_ae_title)
    row = connection.execute(sa.select(performed_step).where(mine).with_for_update()).one_or_none()
    if row is None:
        raise StoreRefused(StoreStatus.NO_SUCH_SOP_INSTANCE, "A step that this sender has not begun")
    if row.state != StepState.IN_PROGRESS:
        raise StoreRefused(StoreStatus.PROCESSING_FAILURE, "The step may no longer be updated")
    state = told.state or StepState.IN_PROGRESS
    made = row.made if told.made is None else json.dumps(told.made)
    connection.execute(sa.update(performed_step).where(mine).values(state=state, made=made, updated=now))
    return state


def steps_of(engine: sa.Engine, study_instance_uids: Collection[str]) -> Mapping[str, tuple[Step, ...]]:
    """The steps of each of these studies of which there is any."""
    if not study_instance_uids:
        return {}
    query = (
        sa.select(performed_step_study.c.study_instance_uid, performed_step.c.state, performed_step.c.made)
        .join_from(performed_step_study, performed_step)
        .where(performed_step_study.c.study_instance_uid.in_(study_instance_uids))
    )
    steps: dict[str, tuple[Step, ...]] = {}
    with engine.connect() as connection:
        for uid, state, made in connection.execute(query):
            of_series = {series: tuple(images) for series, images in json.loads(made).items()}
            steps[uid] = (*steps.get(uid, ()), Step(state=StepState(state), made=of_series))
    return steps
