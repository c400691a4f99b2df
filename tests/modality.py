"""What a modality tells of a performed procedure step (PS3.4 Table F.7.2-1), and the association it tells it on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, Association
from pynetdicom.sop_class import ModalityPerformedProcedureStep

from dicom_gateway.settings import Settings

DOSE_REPORT = "1.2.840.10008.5.1.4.1.1.88.67"


@contextmanager
def modality(settings: Settings, calling: str = "CT1") -> Iterator[Association]:
    """An association for images and steps."""
    entity = AE(calling)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    entity.add_requested_context(ModalityPerformedProcedureStep)
    association = entity.associate("127.0.0.1", settings.dicom_port, ae_title=settings.ae_title)
    assert association.is_established and len(association.accepted_contexts) == 2
    try:
        yield association
    finally:
        association.release()


def begin(association: Association, uid: str | None, step: Dataset) -> int:
    """N-CREATE; the status of its response."""
    return int(association.send_n_create(step, ModalityPerformedProcedureStep, uid)[0].Status)


def change(association: Association, uid: str, step: Dataset) -> int:
    """N-SET; the status of its response."""
    return int(association.send_n_set(step, ModalityPerformedProcedureStep, uid)[0].Status)


def begun(*studies: str) -> Dataset:
    """The attribute list of an N-CREATE."""
    step = Dataset()
    step.PatientName, step.PatientID, step.Modality = "Doe^Jane", "4711", "CT"
    step.PerformedProcedureStepStatus = "IN PROGRESS"
    step.ScheduledStepAttributesSequence = []
    for study in studies:
        item = Dataset()
        item.StudyInstanceUID = study
        step.ScheduledStepAttributesSequence.append(item)
    step.PerformedSeriesSequence = []
    return step


def ended(made: Mapping[str, Sequence[str]], status: str = "COMPLETED") -> Dataset:
    """The modification list of the last N-SET: CT images by Series Instance UID, with a dose report in each series."""
    step = Dataset()
    step.PerformedProcedureStepStatus = status
    step.PerformedSeriesSequence = [_series(uid, images) for uid, images in made.items()]
    return step


def _series(uid: str, images: Sequence[str]) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = uid
    series.ReferencedImageSequence = [_reference(str(CTImageStorage), image) for image in images]
    series.ReferencedImageSequence.append(_reference(DOSE_REPORT, f"{uid}.999"))
    return series


def _reference(sop_class: str, uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    return item
