"""The DICOM port, asked by real peers: what is kept, what is refused, and with which status."""

import itertools
import shutil
import subprocess
import time
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from factories import make_ct_dataset, save_ct
from orthanc import orthanc
from peers import encoded_data_set, listening
from pydicom import dcmread
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)
from pynetdicom import AE
from pynetdicom.sop_class import Verification
from running import dcmtk, free_port, make_settings, storescu, wait_until
from structlog.testing import capture_logs

from dicom_gateway.jobs.queue import ROUTINE, STAT, JobQueue
from dicom_gateway.receive.assembly import Assembly, QuietRules
from dicom_gateway.receive.listener import start_listener
from dicom_gateway.receive.reception import Reception
from dicom_gateway.receive.statuses import StoreStatus
from dicom_gateway.store import index
from dicom_gateway.store.files import stored_paths
from dicom_gateway.store.schema import open_database, study
from imaging.uids import derive_uid


@pytest.fixture
def settings(tmp_path):
    return make_settings(tmp_path)


@contextmanager
def associated(settings, contexts=((CTImageStorage, ExplicitVRLittleEndian),), calling="CT1", called=None):
    entity = AE(ae_title=calling)
    for sop_class, transfer_syntax in contexts:
        entity.add_requested_context(sop_class, transfer_syntax)
    association = entity.associate("127.0.0.1", settings.dicom_port, ae_title=called or settings.ae_title)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def send(settings, data_set):
    syntax = data_set.file_meta.TransferSyntaxUID
    with associated(settings, [(data_set.file_meta.MediaStorageSOPClassUID, syntax)]) as association:
        return association.send_c_store(data_set)


def send_bytes(settings, data_set, encoded, sop_instance_uid=None):
    """C-STORE of arbitrary data set bytes under the identity of `data_set`."""
    from pynetdicom.dimse_primitives import C_STORE

    with associated(settings) as association:
        request = C_STORE()
        request.MessageID = 1
        request.AffectedSOPClassUID = data_set.SOPClassUID
        request.AffectedSOPInstanceUID = sop_instance_uid or data_set.SOPInstanceUID
        request.Priority = 2
        request.DataSet = BytesIO(encoded)
        association._reactor_checkpoint.clear()
        association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
        _, response = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
        return response


def test_only_the_study_of_the_latest_image_is_being_sent(settings):
    images = [make_ct_dataset(StudyInstanceUID=derive_uid("moves on", name)) for name in ("first", "second")]
    first, second = (image.StudyInstanceUID for image in images)
    engine = open_database(settings.database)
    reception = Reception(settings=settings, engine=engine)
    entity, jobs = start_listener(reception), JobQueue(engine)
    rules = QuietRules(quiet_period_s=5.0, quiet_period_single_image_s=5.0)

    assembly, clock_s = Assembly(engine=engine, jobs=jobs, rules=rules), itertools.count()

    def closed(after_s):
        closed = ()
        for second in itertools.islice(clock_s, after_s):
            open_studies = reception.associations.studies()
            closed += assembly.close_complete(open_studies=open_studies, now=time.time(), clock_s=float(second))
        return closed

    try:
        with associated(settings) as association:
            assert association.send_c_store(images[0]).Status == StoreStatus.SUCCESS
            received = index.get_study(engine, first).last_received.timestamp()
            assert reception.associations.studies() == {first}
            assert closed(10) == ()
            assert association.send_c_store(images[1]).Status == StoreStatus.SUCCESS
            assert reception.associations.studies() == {second}
            assert released(engine, first) > received
            assert closed(10) == (first,)
            before = released(engine, first)
        wait_until(lambda: not reception.associations.studies(), "the end of the association")
        assert released(engine, first) == before
        assert closed(10) == (second,)
    finally:
        entity.shutdown()
        jobs.close()
        engine.dispose()


def released(engine, uid):
    with engine.connect() as connection:
        return connection.scalar(sa.select(study.c.last_released).where(study.c.study_instance_uid == uid))


def test_studies_of_a_stat_sender_come_first(tmp_path):
    settings = make_settings(tmp_path, stat_calling_ae_titles=("EMERGENCY",))
    images = [make_ct_dataset(InstanceNumber=number) for number in (1, 2, 3)]
    with listening(settings) as engine:
        for image, sender, expected in zip(images, ("CT1", "EMERGENCY", "CT1"), (ROUTINE, STAT, STAT), strict=True):
            with associated(settings, calling=sender) as association:
                assert association.send_c_store(image).Status == StoreStatus.SUCCESS
            assert index.get_study(engine, image.StudyInstanceUID).priority == expected


def files_of(settings):
    return sorted(stored_paths(settings.data_dir))


def test_echo(settings):
    with listening(settings), associated(settings, [(Verification, ImplicitVRLittleEndian)]) as association:
        assert association.send_c_echo().Status == 0x0000


@pytest.mark.parametrize("transfer_syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_data_set_is_kept_as_sent(settings, transfer_syntax):
    data_set = make_ct_dataset(PatientName="Test^Päti", SpecificCharacterSet="ISO_IR 192")
    data_set.file_meta.TransferSyntaxUID = transfer_syntax
    with listening(settings) as engine:
        assert send(settings, data_set).Status == StoreStatus.SUCCESS
        row = index.find_instance(engine, data_set.SOPInstanceUID)
        study = index.get_study(engine, data_set.StudyInstanceUID)
    sent = encoded_data_set(data_set)
    stored = (settings.data_dir / row.path).read_bytes()
    assert stored.endswith(sent)
    assert dcmread(BytesIO(stored)).file_meta.TransferSyntaxUID == transfer_syntax
    assert (study.state, study.instance_count, study.calling_ae_title) == ("receiving", 1, "CT1")
    assert study.patient_name == "Test^Päti"


def test_compressed_and_deflated_are_kept_as_sent(settings):
    rle = make_ct_dataset(InstanceNumber=1)
    rle.compress(RLELossless, generate_instance_uid=False)
    deflated = make_ct_dataset(InstanceNumber=2)
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    with listening(settings):
        assert send(settings, rle).Status == StoreStatus.SUCCESS
        assert send(settings, deflated).Status == StoreStatus.SUCCESS
    images = {dcmread(settings.data_dir / path).InstanceNumber: path for path in files_of(settings)}
    for number, original in ((1, rle), (2, deflated)):
        stored = dcmread(settings.data_dir / images[number])
        assert (stored.pixel_array == original.pixel_array).all()


def test_dcmtk_sends_a_series(settings, tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    for number in range(1, 6):
        save_ct(folder / f"{number}.dcm", InstanceNumber=number)
    with listening(settings) as engine:
        result = storescu(settings, folder)
        assert result.returncode == 0, result.stderr
        assert len(index.list_instances(engine, make_ct_dataset().StudyInstanceUID, 1)) == 5
    assert list(settings.incoming_dir.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ["dcmsend", "-aet", "CT1", "-aec", "ONESCAN", "+sd", "127.0.0.1", "PORT", "FOLDER"],
        ["gdcmscu", "--store", "--aetitle", "CT1", "--call", "ONESCAN", "127.0.0.1", "PORT", "-r", "-i", "FOLDER"],
    ],
    ids=lambda command: command[0],
)
def test_other_programs_send_a_series(settings, tmp_path, command):
    program = shutil.which(command[0])
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    folder = tmp_path / "series"
    folder.mkdir()
    for number in range(1, 6):
        save_ct(folder / f"{number}.dcm", InstanceNumber=number)
    values = {"PORT": str(settings.dicom_port), "FOLDER": str(folder)}
    with listening(settings) as engine:
        # Not its exit code: gdcmscu 3.0 crashes over the answer to its release, whoever gives it.
        subprocess.run([program, *(values.get(word, word) for word in command[1:])], check=False, timeout=60)
        assert len(index.list_instances(engine, make_ct_dataset().StudyInstanceUID, 1)) == 5
        wait_until(lambda: released(engine, make_ct_dataset().StudyInstanceUID), "the release")


def test_a_pacs_moves_a_study_to_us(tmp_path):
    program, dicom_port = dcmtk("movescu"), free_port()
    if program is None:
        pytest.skip("DCMTK (movescu) is not installed")
    uid = save_ct(tmp_path / "1.dcm").StudyInstanceUID
    peers = {"onescan": ["ONESCAN", "127.0.0.1", dicom_port], "workstation": ["WORKSTATION", "127.0.0.1", 104]}
    with orthanc(tmp_path, DicomModalities=peers) as (url, orthanc_port):
        assert httpx.post(f"{url}/instances", content=(tmp_path / "1.dcm").read_bytes()).status_code == 200
        settings = make_settings(tmp_path, dicom_port=dicom_port, calling_ae_titles=("ORTHANC",))
        with listening(settings) as engine:
            titles = ["-aet", "WORKSTATION", "-aec", "ORTHANC", "-aem", "ONESCAN"]
            keys = ["-S", "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={uid}"]
            subprocess.run([program, *titles, *keys, "127.0.0.1", str(orthanc_port)], check=True, timeout=60)
            assert len(index.list_instances(engine, uid, 1)) == 1
            wait_until(lambda: released(engine, uid), "the release")


def test_the_same_image_again_is_a_success_and_changes_nothing(settings):
    with listening(settings) as engine:
        assert send(settings, make_ct_dataset()).Status == StoreStatus.SUCCESS
        assert send(settings, make_ct_dataset()).Status == StoreStatus.SUCCESS
        assert index.get_study(engine, make_ct_dataset().StudyInstanceUID).instance_count == 1
    assert len(files_of(settings)) == 1


def test_an_image_whose_file_is_gone_comes_back_as_a_late_image(settings):
    """Nobody knows any more whether it is the same."""
    first, again = make_ct_dataset(), make_ct_dataset(PixelData=bytes(range(256)) * 32)
    with listening(settings) as engine:
        send(settings, first)
        row = index.find_instance(engine, first.SOPInstanceUID)
        with engine.begin() as connection:
            connection.execute(sa.update(study).values(state="reported"))
        (settings.data_dir / row.path).unlink()
        assert send(settings, again).Status == StoreStatus.SUCCESS
        late, row = index.get_study(engine, row.study_instance_uid), index.find_instance(engine, first.SOPInstanceUID)
    assert (late.state, late.revision, late.instance_count) == ("receiving", 2, 1)
    assert (row.revision, row.size_bytes) == (2, (settings.data_dir / row.path).stat().st_size)
    assert dcmread(settings.data_dir / row.path).PixelData == again.PixelData


def test_other_bytes_under_the_same_uid_are_refused_and_the_first_kept(settings):
    first, second = make_ct_dataset(), make_ct_dataset(PatientID="OTHER")
    with listening(settings) as engine, capture_logs() as logs:
        assert send(settings, first).Status == StoreStatus.SUCCESS
        assert send(settings, second).Status == StoreStatus.DUPLICATE_SOP_INSTANCE
        # The same UID in another series must not become a second image either.
        elsewhere = make_ct_dataset(SeriesInstanceUID="1.2.3", SOPInstanceUID=first.SOPInstanceUID)
        assert send(settings, elsewhere).Status == StoreStatus.DUPLICATE_SOP_INSTANCE
        assert index.get_study(engine, first.StudyInstanceUID).instance_count == 1
    (path,) = files_of(settings)
    assert dcmread(settings.data_dir / path).PatientID == first.PatientID
    assert [log["status"] for log in logs if log["event"] == "instance_refused"] == 2 * ["DUPLICATE_SOP_INSTANCE"]
    assert "OTHER" not in str(logs)


def test_an_image_that_names_another_patient_than_its_study_is_kept_and_told_of(settings):
    patient = make_ct_dataset().PatientID
    ids = [patient, patient.lower(), "", "SOMEBODY-ELSE", "SOMEBODY-ELSE", patient]
    images = [make_ct_dataset(InstanceNumber=number, PatientID=named) for number, named in enumerate(ids, start=1)]
    with listening(settings) as engine, capture_logs() as logs:
        for image in (*images[:4], images[3]):
            assert send(settings, image).Status == StoreStatus.SUCCESS
        with engine.begin() as connection:
            connection.execute(sa.update(study).values(state="reported"))
        for late in images[4:]:
            assert send(settings, late).Status == StoreStatus.SUCCESS
        row = index.get_study(engine, images[0].StudyInstanceUID)
    told = [log for log in logs if log["event"] == "patients_differ"]
    assert [log["sop_instance_uid"] for log in told] == [images[3].SOPInstanceUID, images[4].SOPInstanceUID]
    assert {log["study_instance_uid"] for log in told} == {row.study_instance_uid}
    assert (row.patient_id, row.instance_count, len(files_of(settings))) == (patient, 6, 6)
    assert not any(name in str(logs) for name in (patient, patient.lower(), "SOMEBODY"))


@pytest.mark.parametrize(
    ("overrides", "status"),
    [
        ({"StudyInstanceUID": None}, StoreStatus.CANNOT_UNDERSTAND),
        ({"SeriesInstanceUID": None}, StoreStatus.CANNOT_UNDERSTAND),
        ({"PixelData": None}, StoreStatus.CANNOT_UNDERSTAND),
        ({"PixelData": bytes(100)}, StoreStatus.CANNOT_UNDERSTAND),
    ],
)
def test_incomplete_image(settings, overrides, status):
    data_set = make_ct_dataset()
    for keyword, value in overrides.items():
        if value is None:
            delattr(data_set, keyword)
        else:
            setattr(data_set, keyword, value)
    with listening(settings) as engine:
        assert send(settings, data_set).Status == status
        assert index.counts(engine).studies["receiving"] == 0
    assert files_of(settings) == []
    assert list(settings.incoming_dir.iterdir()) == []


@pytest.mark.parametrize("path", ["../../../escaped", "/tmp/escaped", "1.2/3", "1..2", ".1.2", "1.2.", "1.2.3a"])
@pytest.mark.parametrize("where", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_uid_that_is_no_uid(settings, path, where):
    data_set = make_ct_dataset()
    good = encoded_data_set(data_set)
    uid = str(data_set[where].value)
    bad = path.ljust(len(uid), "\0")[: len(uid)]
    encoded = good.replace(uid.encode(), bad.encode())
    with listening(settings):
        command_uid = data_set.SOPInstanceUID
        response = send_bytes(settings, data_set, encoded, command_uid)
    assert response.Status in (
        StoreStatus.INVALID_SOP_INSTANCE,
        StoreStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS,
        StoreStatus.CANNOT_UNDERSTAND,
    )
    assert files_of(settings) == []
    assert not list(Path("/tmp").glob("escaped*"))


def test_command_and_data_set_disagree(settings):
    data_set = make_ct_dataset()
    encoded = encoded_data_set(data_set)
    with listening(settings):
        response = send_bytes(settings, data_set, encoded, sop_instance_uid=derive_uid("another"))
        assert response.Status == StoreStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS
        wrong_class = make_ct_dataset()
        wrong_class.SOPClassUID = MRImageStorage
        response = send_bytes(settings, data_set, encoded_data_set(wrong_class))
        assert response.Status == StoreStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS
    assert files_of(settings) == []


@pytest.mark.parametrize("cut", [1, 200, 600])
def test_truncated_data_set(settings, cut):
    data_set = make_ct_dataset()
    with listening(settings):
        response = send_bytes(settings, data_set, encoded_data_set(data_set)[:-cut])
    assert response.Status == StoreStatus.CANNOT_UNDERSTAND
    assert files_of(settings) == []


def test_random_bytes(settings):
    data_set = make_ct_dataset()
    with listening(settings):
        for noise in (b"\x00" * 64, bytes(range(256)) * 4, b"\xff" * 100):
            status = send_bytes(settings, data_set, noise).Status
            assert status in (StoreStatus.CANNOT_UNDERSTAND, StoreStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS)
        assert send(settings, data_set).Status == StoreStatus.SUCCESS
    assert len(files_of(settings)) == 1


def test_only_ct_images(settings):
    with (
        listening(settings),
        associated(
            settings, [(MRImageStorage, ExplicitVRLittleEndian), (CTImageStorage, ExplicitVRLittleEndian)]
        ) as association,
    ):
        assert [context.abstract_syntax for context in association.accepted_contexts] == [CTImageStorage]


@pytest.mark.parametrize(
    ("allowed", "calling", "called", "welcome"),
    [
        ((), "CT1", None, False),
        (("CT1",), "CT1", None, True),
        (("CT1",), "CT2", None, False),
        (("*",), "ANY", None, True),
        (("*",), "ANY", "OTHER", False),
    ],
)
def test_who_may_send(tmp_path, allowed, calling, called, welcome):
    settings = make_settings(tmp_path, calling_ae_titles=allowed)
    with (
        capture_logs() as logs,
        listening(settings),
        associated(settings, calling=calling, called=called) as association,
    ):
        assert association.is_established == welcome
    refused = [log for log in logs if log["event"] == "association_refused"]
    assert len(refused) == (0 if welcome else 1)
    if refused:
        assert refused[0]["calling_ae_title"] == calling
