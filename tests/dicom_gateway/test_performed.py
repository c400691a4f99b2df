"""Modality performed procedure steps: what a modality says it has made decides when a study is whole."""

import itertools
import time
from io import BytesIO

import pytest
from factories import make_ct_dataset
from modality import begin, begun, change, ended, modality
from peers import Peer, listening, message
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.dimse_primitives import N_CREATE
from running import make_settings
from structlog.testing import capture_logs

from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.receive import performed
from dicom_gateway.receive.assembly import Assembly, QuietRules
from dicom_gateway.receive.data_sets import parse_data_set
from dicom_gateway.receive.performed import SOP_CLASS_UID, Step, StepState, steps_of
from dicom_gateway.receive.statuses import StoreRefused, StoreStatus
from dicom_gateway.store import index
from dicom_gateway.store.schema import open_database
from imaging.uids import derive_uid

STEP = derive_uid("step")
IMAGES = [make_ct_dataset(InstanceNumber=number) for number in (1, 2, 3)]
STUDY, SERIES = IMAGES[0].StudyInstanceUID, IMAGES[0].SeriesInstanceUID
ALL = {SERIES: [image.SOPInstanceUID for image in IMAGES]}
RULES = QuietRules(quiet_period_s=5.0, quiet_period_single_image_s=30.0, missing_images_wait_s=60.0)


@pytest.fixture
def settings(tmp_path):
    return make_settings(tmp_path)


class Looks:
    """An assembly looked at every half second of a clock of its own."""

    def __init__(self, engine):
        self._engine, self._jobs = engine, JobQueue(engine)
        self._assembly = Assembly(engine=engine, jobs=self._jobs, rules=RULES)
        self._clock_s = itertools.count(1.0, 0.5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._jobs.close()

    def closes_after_s(self) -> float:
        """How long it takes from now until the study is complete."""
        for looked in range(1000):
            if self._assembly.close_complete(open_studies=(), now=time.time(), clock_s=next(self._clock_s)):
                return looked / 2
        return float("inf")


def send(association, *images):
    assert [association.send_c_store(image).Status for image in images] == [0x0000] * len(images)


def told(settings, steps, images=IMAGES, calling="CT1"):
    """Tell of steps, by UID what is said one after the other, then send images."""
    with modality(settings, calling) as association:
        for uid, (first, *others) in steps.items():
            assert begin(association, uid, first) == 0x0000
            assert [change(association, uid, other) for other in others] == [0x0000] * len(others)
        send(association, *images)


@pytest.mark.parametrize(
    ("steps", "images", "quiet_s"),
    [
        ({STEP: [begun(STUDY), ended(ALL)]}, IMAGES, 0.5),
        ({STEP: [begun(STUDY), ended(ALL)]}, IMAGES[:1], 60.0),
        ({STEP: [begun(STUDY), ended(ALL, "IN PROGRESS")]}, IMAGES, 60.0),
        ({STEP: [begun(STUDY), ended(ALL, "IN PROGRESS"), ended({}, "COMPLETED")]}, IMAGES, 5.0),
        ({STEP: [begun(STUDY), ended(ALL, "DISCONTINUED")]}, IMAGES[:2], 5.0),
        ({STEP: [begun(STUDY), ended({SERIES: ALL[SERIES][:2]})]}, IMAGES, 5.0),
        ({STEP: [begun(STUDY), ended(ALL | {derive_uid("thick"): ["1.2.3"]})]}, IMAGES, 5.0),
        ({STEP: [begun(derive_uid("another")), ended(ALL)]}, IMAGES, 5.0),
        ({STEP: [begun(STUDY), ended(ALL)], derive_uid("second"): [begun(STUDY)]}, IMAGES, 60.0),
        ({STEP: [begun(STUDY, derive_uid("grouped")), ended(ALL)]}, IMAGES, 0.5),
    ],
    ids=[
        "all that was made",
        "a part of it",
        "the scanner goes on",
        "nothing is named at the end",
        "discontinued",
        "more than was made",
        "a series that is not sent to us",
        "another study",
        "one of two steps goes on",
        "two studies in one step",
    ],
)
def test_when_a_study_is_whole(settings, steps, images, quiet_s):
    with listening(settings) as engine, Looks(engine) as looks:
        told(settings, steps, images)
        assert looks.closes_after_s() == quiet_s


def test_one_association_an_image_is_whole_at_once_when_the_step_is_over(settings):
    with listening(settings) as engine, Looks(engine) as looks:
        told(settings, {STEP: [begun(STUDY)]}, [])
        for image in IMAGES:
            told(settings, {}, [image])
        with modality(settings) as association:
            assert change(association, STEP, ended(ALL)) == 0x0000
        assert looks.closes_after_s() == 0.5


def test_what_is_missing_is_said_with_the_revision(settings):
    with listening(settings) as engine, Looks(engine) as looks:
        told(settings, {STEP: [begun(STUDY), ended(ALL)]}, IMAGES[:1])
        assert looks.closes_after_s() == 60.0
        assert index.get_shortfall(engine, STUDY, 1) == index.Shortfall(received=1, expected=3)
        told(settings, {}, IMAGES[1:])
        assert looks.closes_after_s() == 20.0
        assert index.get_shortfall(engine, STUDY, 2) is None


def test_a_restart_forgets_no_step_and_the_patient_is_not_kept(settings):
    with listening(settings), capture_logs() as logs:
        told(settings, {STEP: [begun(STUDY)]}, [])
    with listening(settings), modality(settings) as association:
        assert change(association, STEP, ended(ALL)) == 0x0000
    engine = open_database(settings.database)
    made = {SERIES: tuple(sorted(ALL[SERIES]))}
    assert steps_of(engine, {STUDY}) == {STUDY: (Step(state=StepState.COMPLETED, made=made),)}
    engine.dispose()
    assert not any(b"Doe^Jane" in path.read_bytes() for path in settings.data_dir.glob("onescan.sqlite*"))
    assert "step_told" in str(logs) and "Doe" not in str(logs) and "4711" not in str(logs)


def changed(step, **values):
    for keyword, value in values.items():
        setattr(step, keyword, value)
    return step


def test_what_is_no_step_is_refused_and_changes_nothing(settings, monkeypatch):
    new = derive_uid("new")
    with listening(settings) as engine, modality(settings) as association:
        assert begin(association, STEP, begun(STUDY)) == StoreStatus.SUCCESS
        for uid, step, status in (
            (new, changed(Dataset(), PerformedProcedureStepStatus="IN PROGRESS"), StoreStatus.MISSING_ATTRIBUTE),
            (new, changed(begun(STUDY), PerformedProcedureStepStatus=None), StoreStatus.MISSING_ATTRIBUTE),
            (new, ended(ALL), StoreStatus.MISSING_ATTRIBUTE),
            (new, changed(begun(STUDY), PerformedProcedureStepStatus="COMPLETED"), StoreStatus.INVALID_ATTRIBUTE_VALUE),
            (new, begun("1.2.3", ""), StoreStatus.INVALID_ATTRIBUTE_VALUE),
            (new, begun(*(f"1.2.{number}" for number in range(101))), StoreStatus.INVALID_ATTRIBUTE_VALUE),
            (None, begun(STUDY), StoreStatus.INVALID_SOP_INSTANCE),
            (STEP, begun(STUDY), StoreStatus.DUPLICATE_SOP_INSTANCE),
        ):
            assert begin(association, uid, step) == status
        for uid, step, status in (
            (new, ended(ALL), StoreStatus.NO_SUCH_SOP_INSTANCE),
            (STEP, ended(ALL, "DONE"), StoreStatus.INVALID_ATTRIBUTE_VALUE),
            (STEP, ended({SERIES: ["1..2"]}), StoreStatus.INVALID_ATTRIBUTE_VALUE),
            (STEP, ended({"../x": ["1.2.3"]}), StoreStatus.INVALID_ATTRIBUTE_VALUE),
        ):
            assert change(association, uid, step) == status
        with modality(settings, calling="CT2") as another:
            assert change(another, STEP, ended(ALL)) == StoreStatus.NO_SUCH_SOP_INSTANCE
        monkeypatch.setattr(performed, "_MAXIMUM_STEPS", 1)
        assert begin(association, new, begun(STUDY)) == StoreStatus.RESOURCE_LIMITATION
        assert steps_of(engine, {STUDY}) == {STUDY: (Step(state=StepState.IN_PROGRESS, made={}),)}
        assert change(association, STEP, ended({}, "DISCONTINUED")) == StoreStatus.SUCCESS
        assert change(association, STEP, ended(ALL)) == StoreStatus.PROCESSING_FAILURE
        monkeypatch.setattr(performed, "_FORGOTTEN_AFTER_S", -1.0)
        assert begin(association, new, begun("1.2.3")) == StoreStatus.SUCCESS
        assert steps_of(engine, {STUDY}) == {}


@pytest.mark.parametrize(
    "encoded",
    [b"\x40\0\x40\x03SQ\0\0\xff\xff\xff\xff" * 2000, b"\x40\0\x52\x02", bytes(range(256)), b"\0" * 100_000],
    ids=["nested", "cut off", "any bytes", "zeros"],
)
def test_bytes_that_are_no_data_set_have_an_answer(settings, encoded):
    request = N_CREATE()
    request.MessageID, request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = 1, SOP_CLASS_UID, STEP
    request.AttributeList = BytesIO(encoded)
    with listening(settings) as engine, Peer(settings) as peer:
        peer.associate(contexts=((SOP_CLASS_UID, (ImplicitVRLittleEndian,)),))
        assert peer.ask(request).Status in (StoreStatus.PROCESSING_FAILURE, StoreStatus.MISSING_ATTRIBUTE)
        assert steps_of(engine, {STUDY}) == {}


GOOD_ROWS, BAD_ROWS = b"\x28\0\x10\0\x02\0\0\0\x07\0", b"\x28\0\x10\0\x01\0\0\0\x07"


def nested(encoded: bytes, levels: int) -> bytes:
    """A data set in so many Performed Series Sequences of one item, all of explicit length, Implicit VR."""
    for _ in range(levels):
        item = b"\xfe\xff\0\xe0" + len(encoded).to_bytes(4, "little") + encoded
        encoded = b"\x40\0\x40\x03" + len(item).to_bytes(4, "little") + item
    return encoded


def test_sequences_are_read_to_the_bottom():
    read = parse_data_set(nested(GOOD_ROWS, 20), ImplicitVRLittleEndian, StoreStatus.PROCESSING_FAILURE)
    for _ in range(20):
        (read,) = read.PerformedSeriesSequence
    assert read.Rows == 7


@pytest.mark.parametrize(
    ("rows", "levels"),
    [(GOOD_ROWS, 40), (BAD_ROWS, 8), (BAD_ROWS, 60), (GOOD_ROWS, 1000)],
    ids=["good 40", "bad 8", "bad 60", "good 1000"],
)
def test_a_bad_value_and_too_many_levels_are_refused_in_few_words(rows, levels):
    """Each level that quotes the error of the one below would double the text: 60 of them fill any memory."""
    with pytest.raises(StoreRefused) as refused:
        parse_data_set(nested(rows, levels), ImplicitVRLittleEndian, StoreStatus.PROCESSING_FAILURE)
    assert refused.value.status == StoreStatus.PROCESSING_FAILURE
    assert len(str(refused.value.__cause__)) < 500


def test_a_step_without_an_end_is_aborted(settings):
    request = N_CREATE()
    request.MessageID, request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = 1, SOP_CLASS_UID, STEP
    request.AttributeList = BytesIO(bytes(performed.MAXIMUM_STEP_BYTES + 1))
    with listening(settings), Peer(settings) as peer:
        peer.associate(contexts=((SOP_CLASS_UID, (ImplicitVRLittleEndian,)),))
        peer.send(*message(request))
        assert peer.abort_reason() == (2, 5)
