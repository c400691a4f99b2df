"""DICOMweb beside a real server and client: Orthanc with its DICOMweb plugin."""

import io
import itertools
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from factories import make_ct_dataset, save_ct
from orthanc import DICOMWEB, orthanc
from pydicom import dcmread
from running import make_settings, role, wait_until
from web_samples import serving

from dicom_gateway.deliver.profile import SOP_CLASSES
from dicom_gateway.deliver.stow import ask, send
from dicom_gateway.settings import StowDestination
from dicom_gateway.store import index
from dicom_gateway.store.schema import ObjectOutcome, StudyState, open_database
from dicom_gateway.web.app import create_app
from imaging.uids import derive_uid

pytestmark = pytest.mark.acceptance


def test_results_are_stored_by_orthanc_once(tmp_path: Path) -> None:
    """A repeated delivery is a success and nothing is there twice."""

    def encode(name, held):
        uid = derive_uid("dicomweb test", name)
        return (make_ct_dataset(SOPClassUID=SOP_CLASSES[name], SOPInstanceUID=uid, SeriesInstanceUID=uid),)

    with orthanc(tmp_path, Plugins=[str(DICOMWEB)]) as (rest, _):
        peer = StowDestination(name="web", kind="stow", url=rest + "/dicom-web/", objects=("sr", "seg", "sc"))
        ask(peer.url)
        for _ in range(2):
            outcomes = send(encode, peer)
            assert outcomes == tuple(ObjectOutcome(name=n, sent_as=n, instances=1) for n in ("sr", "seg", "sc"))
        instances = [httpx.get(f"{rest}/instances/{i}").json() for i in httpx.get(rest + "/instances").json()]
    stored = {instance["MainDicomTags"]["SOPInstanceUID"] for instance in instances}
    assert len(instances) == len(stored) == 3
    assert stored == {derive_uid("dicomweb test", name) for name in ("sr", "seg", "sc")}


def test_orthanc_sends_to_us_searches_and_retrieves(tmp_path: Path) -> None:
    """Its DICOMweb client has images kept here by STOW-RS, finds them by QIDO-RS and gets them back by WADO-RS."""
    settings = make_settings(tmp_path, stow_networks=("127.0.0.1",))
    study = derive_uid("dicomweb acceptance")
    files = {}
    with serving(create_app(settings)) as client:
        servers = {"onescan": {"Url": f"{client.base_url}/dicom-web", "HasDelete": False}}
        dicomweb = {"Enable": True, "Servers": servers, "StowMaxInstances": 4}
        with orthanc(tmp_path, Plugins=[str(DICOMWEB)], DicomWeb=dicomweb) as (rest, _):
            for number in range(1, 11):
                ds = save_ct(buffer := io.BytesIO(), StudyInstanceUID=study, InstanceNumber=number)
                files[f"{ds.SOPInstanceUID}.dcm"] = ds
                httpx.post(rest + "/instances", content=buffer.getvalue()).raise_for_status()
            (there,) = httpx.get(rest + "/studies").json()
            sent = httpx.post(
                f"{rest}/dicom-web/servers/onescan/stow", json={"Resources": [there], "Synchronous": True}, timeout=60
            )
            assert sent.status_code == 200, sent.text
            kept = {path.name: dcmread(path) for path in settings.studies_dir.rglob("*.dcm")}
            assert kept == files

            httpx.delete(f"{rest}/studies/{there}").raise_for_status()
            found = httpx.post(
                f"{rest}/dicom-web/servers/onescan/get",
                json={"Uri": "/studies", "Arguments": {"PatientID": "TEST-1"}},
                timeout=60,
            ).json()
            assert [answer["0020000D"]["Value"] for answer in found] == [[study]]
            retrieved = httpx.post(
                f"{rest}/dicom-web/servers/onescan/retrieve",
                json={"Resources": [{"Study": study}], "Synchronous": True},
                timeout=60,
            )
            assert retrieved.status_code == 200, retrieved.text
            assert len(httpx.get(rest + "/instances").json()) == len(files)


def test_a_study_sent_slowly_by_stow_is_complete_when_its_request_ends_and_not_before(tmp_path: Path) -> None:
    """Two processes: the web process receives, the listener's process calls the study complete."""
    settings = make_settings(
        tmp_path, stow_networks=("127.0.0.1",), quiet_period_s=2.0, quiet_period_single_image_s=2.0
    )
    study, states = derive_uid("slow"), []

    def body() -> Iterator[bytes]:
        for number in range(1, 4):
            save_ct(
                file := io.BytesIO(),
                StudyInstanceUID=study,
                InstanceNumber=number,
                Rows=1024,
                Columns=1024,
                PixelData=bytes(2 << 20),  # larger than what is handed over at once
            )
            yield b"--part\r\nContent-Type: application/dicom\r\n\r\n" + file.getvalue() + b"\r\n"
            time.sleep(5)
            states.append(index.get_study(engine, study))
        yield b"--part--\r\n"

    engine = open_database(settings.database)
    with role(settings, "listener"), role(settings, "web"):
        address = f"http://127.0.0.1:{settings.web_port}/dicom-web/studies"
        media_type = 'multipart/related; type="application/dicom"; boundary=part'
        answer = httpx.post(address, content=body(), headers={"Content-Type": media_type}, timeout=60)
        assert answer.status_code == 200, answer.text
        wait_until(lambda: index.get_study(engine, study).state is StudyState.QUEUED, "the study is complete")
    # Where an image ends is known when the next one begins.
    assert states[0] is None
    assert [(row.state, row.revision) for row in states[1:]] == 2 * [(StudyState.RECEIVING, 1)]
    assert index.get_study(engine, study).instance_count == 3
    assert index.get_study(engine, study).revision == 1
    engine.dispose()


def test_what_stow_acknowledged_survives_the_death_of_the_process(tmp_path: Path) -> None:
    """kill -9 of the web process at random moments; the index is repaired at the listener's start."""
    settings = make_settings(tmp_path, stow_networks=("127.0.0.1",))
    address = f"http://127.0.0.1:{settings.web_port}/dicom-web/studies"
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=part'}
    acknowledged: dict[str, bytes] = {}
    chance = random.Random(4)
    for trial in range(5):
        with role(settings, "web") as process:
            killer = threading.Timer(chance.uniform(0.0, 1.0), process.kill)
            for number in itertools.count(1):
                ds = save_ct(
                    file := io.BytesIO(), StudyInstanceUID=derive_uid("kill", str(trial)), InstanceNumber=number
                )
                part = b"--part\r\nContent-Type: application/dicom\r\n\r\n" + file.getvalue() + b"\r\n--part--\r\n"
                try:
                    answer = httpx.post(address, content=part, headers=headers, timeout=30)
                except httpx.TransportError:
                    break
                assert answer.status_code == 200, answer.text
                acknowledged[ds.SOPInstanceUID] = ds.PixelData
                if number == 1:
                    killer.start()
            killer.join()
    assert len(acknowledged) >= 5
    with role(settings, "listener"):
        pass
    engine = open_database(settings.database)
    for uid, pixels in acknowledged.items():
        row = index.find_instance(engine, uid)
        assert row is not None
        assert dcmread(settings.data_dir / row.path).PixelData == pixels
    engine.dispose()
    assert not list(settings.incoming_dir.iterdir())
