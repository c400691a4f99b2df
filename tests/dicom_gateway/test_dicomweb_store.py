"""STOW-RS over HTTP: what is taken, what is refused with which reason, and what is left on the disk."""

import contextlib
import io
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from factories import make_ct_dataset
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)
from running import wait_until
from structlog.testing import capture_logs
from web_samples import serving, site_settings

from dicom_gateway.receive.reception import Reception
from dicom_gateway.settings import Settings
from dicom_gateway.store import index
from dicom_gateway.store.schema import StudyState, open_database
from dicom_gateway.web.app import create_app
from dicom_gateway.web.dicomweb_store import BadUpload, Upload

STUDY = "1.2.3.1"
BOUNDARY = "a-boundary"
MEDIA_TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
LOOPBACK = ("127.0.0.0/8",)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return site_settings(tmp_path, minimum_free_space_mb=0, stow_networks=LOOPBACK)


@pytest.fixture
def client(settings: Settings) -> Iterator[httpx.Client]:
    with serving(create_app(settings)) as client:
        yield client


def file_of(ds: Dataset, syntax: str | None = None) -> bytes:
    if syntax is not None:
        ds.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def image(number: int = 1, syntax: str | None = None, **overrides: object) -> bytes:
    values = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": f"{STUDY}.1", "InstanceNumber": number}
    return file_of(make_ct_dataset(**values | overrides), syntax)


def body_of(*files: bytes) -> bytes:
    parts = (b"--%s\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % (BOUNDARY.encode(), file) for file in files)
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def post(client: httpx.Client, *files: bytes, study: str | None = None, **headers: str) -> httpx.Response:
    address = "/dicom-web/studies" + (f"/{study}" if study else "")
    return client.post(address, content=body_of(*files), headers={"Content-Type": MEDIA_TYPE, **headers})


def told(answer: httpx.Response) -> Dataset:
    assert answer.headers["Content-Type"] == "application/dicom+json"
    return Dataset.from_json(answer.json())


def reasons(answer: httpx.Response) -> list[int]:
    ds = told(answer)
    return [item.FailureReason for name in ("FailedSOPSequence", "OtherFailuresSequence") for item in ds.get(name, ())]


def stored(settings: Settings) -> list[Path]:
    assert not list(settings.incoming_dir.iterdir())
    return sorted(settings.studies_dir.rglob("*.dcm"))


@contextlib.contextmanager
def database(settings: Settings) -> Iterator[object]:
    engine = open_database(settings.database)
    yield engine
    engine.dispose()


def test_instances_are_kept_as_by_c_store(client: httpx.Client, settings: Settings) -> None:
    files = [image(number) for number in (1, 2)] + [image(3, ImplicitVRLittleEndian)]
    answer = post(client, *files)
    assert answer.status_code == 200
    ds = told(answer)
    assert ds.RetrieveURL == f"{client.base_url}/dicom-web/studies/{STUDY}"
    assert "FailedSOPSequence" not in ds
    sent = [dcmread(io.BytesIO(file)) for file in files]
    assert [item.ReferencedSOPInstanceUID for item in ds.ReferencedSOPSequence] == [ds.SOPInstanceUID for ds in sent]
    for item, original in zip(ds.ReferencedSOPSequence, sent, strict=True):
        retrieved = client.get(item.RetrieveURL, headers={"Accept": "application/dicom"})
        again = dcmread(io.BytesIO(retrieved.content))
        assert (again, again.file_meta.TransferSyntaxUID) == (original, original.file_meta.TransferSyntaxUID)
    assert len(stored(settings)) == 3
    with database(settings) as engine:
        row = index.get_study(engine, STUDY)
        assert (row.state, row.calling_ae_title, row.instance_count) == (StudyState.RECEIVING, "STOW-RS", 3)


def test_an_instance_twice_is_kept_once_and_with_other_bytes_refused(client: httpx.Client, settings: Settings) -> None:
    first, other = image(1), image(1, PatientName="Other")
    assert [post(client, first, first).status_code, post(client, first).status_code] == [200, 200]
    answer = post(client, other, image(2))
    assert (answer.status_code, reasons(answer)) == (202, [0x0111])
    assert len(stored(settings)) == 2
    assert b"Other" not in stored(settings)[0].read_bytes() + stored(settings)[1].read_bytes()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (image(SOPClassUID=MRImageStorage), 0x0122),
        (image(PixelData=b"\0" * 100), 0xC000),
        (image()[:-100], 0xC000),
        (image(PixelData=None), 0xC000),
        (image(StudyInstanceUID=None), 0xC000),
        (image(SOPInstanceUID="1.2.3.4.a"), 0x0117),
        (image(SeriesInstanceUID="../../etc"), 0x0117),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_each_instance_has_its_own_failure_reason(
    client: httpx.Client, settings: Settings, file: bytes, reason: int
) -> None:
    answer = post(client, file, image(7))
    assert (answer.status_code, reasons(answer)) == (202, [reason])
    assert len(stored(settings)) == 1
    alone = post(client, file)
    assert (alone.status_code, reasons(alone)) == (409, [reason])


def test_a_transfer_syntax_that_is_not_taken_has_the_reason_for_it(client: httpx.Client) -> None:
    head = image().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0", 1)
    assert str(ExplicitVRBigEndian) == "1.2.840.10008.1.2.2"
    answer = post(client, head)
    assert (answer.status_code, reasons(answer)) == (409, [0xC122])


@pytest.mark.parametrize("content", [b"", b"no DICOM", bytes(128) + b"DICM", bytes(128) + b"DICM" + b"\xff" * 500])
def test_what_is_no_dicom_file_is_another_failure(client: httpx.Client, content: bytes) -> None:
    answer = post(client, content)
    assert answer.status_code == 409
    (item,) = told(answer).OtherFailuresSequence
    assert (item.FailureReason, "ReferencedSOPInstanceUID" in item) == (0xC000, False)


def test_only_instances_of_the_study_of_the_address_are_kept(client: httpx.Client, settings: Settings) -> None:
    answer = post(client, image(1), image(2, StudyInstanceUID="1.2.3.9"), study=STUDY)
    assert (answer.status_code, reasons(answer)) == (202, [0xA900])
    assert [path.parts[-3] for path in stored(settings)] == [STUDY]
    assert post(client, image(1), study="1.2.x").status_code == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/dicom"}, 415),
        ({"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, 415),
        ({"Content-Type": f'multipart/related; type="application/dicom+json"; boundary={BOUNDARY}'}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Type": 'multipart/related; type="application/dicom"'}, 400),
        ({"Content-Type": f'multipart/related; type="application/dicom"; boundary={"x" * 300}'}, 400),
        ({"Content-Type": 'multipart/related; type="application/dicom"; boundary=other'}, 400),
        ({"Accept": "application/dicom+xml"}, 406),
    ],
)
def test_a_request_that_is_none_has_its_status(client: httpx.Client, headers: dict[str, str], status: int) -> None:
    answer = post(client, image(), **headers)
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/json")


@pytest.mark.parametrize(("files", "status"), [([], 400), ([image(1)], 202)], ids=["nothing whole", "one whole"])
def test_of_a_body_that_is_cut_off_the_whole_parts_are_kept(
    client: httpx.Client, settings: Settings, files: list[bytes], status: int
) -> None:
    content = body_of(*files, image(2))[:-200]
    answer = client.post("/dicom-web/studies", content=content, headers={"Content-Type": MEDIA_TYPE})
    assert answer.status_code == status
    assert len(stored(settings)) == len(files)


def test_what_stands_around_the_parts_is_ignored(client: httpx.Client, settings: Settings) -> None:
    content = b"A message for people.\r\n" + body_of(image(1)) + b"The end.\r\n"
    for sent in (content, content.removesuffix(b"\r\nThe end.\r\n"), b"\r\n" + body_of(image(1))):
        answer = client.post("/dicom-web/studies", content=sent, headers={"Content-Type": MEDIA_TYPE})
        assert answer.status_code == 200
    assert len(stored(settings)) == 1
    long = b"x" * 3_000_000 + body_of(image(1))
    assert client.post("/dicom-web/studies", content=long, headers={"Content-Type": MEDIA_TYPE}).status_code == 400


def test_a_sender_that_hangs_up_leaves_nothing_half(client: httpx.Client, settings: Settings) -> None:
    large = image(2, Rows=1024, Columns=1024, PixelData=bytes(1024 * 1024 * 2))
    content = body_of(image(1), large)
    head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MEDIA_TYPE}\r\n"
    with capture_logs() as logs:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:-1000])
            wait_until(lambda: any(settings.incoming_dir.iterdir()), "the second image is being received")
        wait_until(lambda: not any(settings.incoming_dir.iterdir()), "it is forgotten")
        wait_until(lambda: [log for log in logs if log["event"] == "web_change_asked_for"], "it is noted")
    assert [log["status"] for log in logs if log["event"] == "web_change_asked_for"] == [None]
    (kept,) = stored(settings)
    assert dcmread(kept).InstanceNumber == 1


def test_nobody_may_send_unless_the_site_says_so(tmp_path: Path) -> None:
    for networks in ((), ("10.0.0.0/8",)):
        settings = site_settings(tmp_path, minimum_free_space_mb=0, stow_networks=networks)
        with serving(create_app(settings)) as client:
            answer = post(client, image())
            assert (answer.status_code, "stow_networks" in answer.json()["detail"]) == (403, True)
            assert stored(settings) == []


def test_without_room_the_sender_is_to_try_again(tmp_path: Path) -> None:
    settings = site_settings(tmp_path, minimum_free_space_mb=1_000_000_000, stow_networks=LOOPBACK)
    with serving(create_app(settings)) as client:
        answer = post(client, image())
    assert (answer.status_code, reasons(answer)) == (503, [0xA700])
    assert int(answer.headers["Retry-After"]) > 0
    assert stored(settings) == []


def test_an_enhanced_image_and_a_deflated_one_are_taken_like_by_c_store(client: httpx.Client) -> None:
    files = [image(1, SOPClassUID=EnhancedCTImageStorage), image(2, DeflatedExplicitVRLittleEndian)]
    assert post(client, *files).status_code == 200


def test_the_study_of_an_upload_in_progress_does_not_become_quiet(settings: Settings, tmp_path: Path) -> None:
    create_app(settings)
    with database(settings) as engine:
        upload = Upload(Reception(settings=settings, engine=engine), BOUNDARY.encode(), None)
        content = body_of(image(1), image(2))
        upload.feed(content[: len(content) // 2 + 300])
        with engine.connect() as connection:
            before = connection.exec_driver_sql("select last_released from study").scalar_one()
            upload.keep_open()
            after = connection.exec_driver_sql("select last_released from study").scalar_one()
        assert after > before
        upload.end()
        assert len(stored(settings)) == 1


@pytest.fixture(scope="module")
def reception(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reception]:
    settings = site_settings(tmp_path_factory.mktemp("site"), minimum_free_space_mb=0)
    create_app(settings)
    with database(settings) as engine:
        yield Reception(settings=settings, engine=engine)


PIECES = [
    f"--{BOUNDARY}".encode(),
    b"\r\n",
    b"--",
    b"DICM",
    bytes(128),
    image(),
    body_of(image()),
    body_of(image())[:-9],
]


@given(st.lists(st.sampled_from(PIECES) | st.binary()))
@hypothesis_settings(max_examples=100, deadline=None)
def test_any_body_is_taken_or_refused(reception: Reception, pieces: list[bytes]) -> None:
    upload = Upload(reception, BOUNDARY.encode(), None)
    try:
        for piece in pieces:
            upload.feed(piece)
        upload.require_whole()
    except BadUpload:
        pass
    finally:
        upload.end()
    assert len(stored(reception.settings)) <= 1
