"""QIDO-RS and WADO-RS over HTTP, on a store filled by the reception and by result files."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from factories import make_ct_dataset, save_ct
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, get_frame, itemize_fragment
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from web_samples import open_site, publish, sample_report, serving, site_settings

from dicom_gateway.deliver.shelf import kept_files, send
from dicom_gateway.errors import PeerUnreachable
from dicom_gateway.receive.reception import Incoming, Reception
from dicom_gateway.settings import DicomwebDestination, ResultObject, Settings
from dicom_gateway.web import dicomweb_holdings
from dicom_gateway.web.app import create_app
from dicom_gateway.web.dicomweb_frames import Frames, open_frames
from dicom_gateway.web.dicomweb_query import BadQuery, matches, parse_query
from imaging.uids import derive_uid

CHINESE, ENGLISH = "1.2.3.1", "1.2.3.2"
NAME = "Wang^XiaoDong=王^小东"
RESULTS = {
    "findings.sr.dcm": (Comprehensive3DSRStorage, "SR", "1.2.3.1.8001"),
    "summary.sc.dcm": (SecondaryCaptureImageStorage, "OT", "1.2.3.1.8002"),
    "segments.seg.dcm": (SegmentationStorage, "SEG", "1.2.3.1.8003"),
    "2_segments.seg.dcm": (SegmentationStorage, "SEG", "1.2.3.1.8003"),
}


def keep(reception: Reception, ds: Dataset, syntax: str = ExplicitVRLittleEndian) -> None:
    """As a sender's image is kept."""
    encoded = DicomBytesIO()
    encoded.is_little_endian, encoded.is_implicit_VR = True, syntax == ImplicitVRLittleEndian
    write_dataset(encoded, ds)
    incoming = Incoming(
        reception,
        sop_class_uid=ds.SOPClassUID,
        sop_instance_uid=ds.SOPInstanceUID,
        transfer_syntax=syntax,
        calling_ae_title="CT1",
        association="test",
    )
    incoming.write(encoded.getvalue())
    incoming.keep()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Two studies: a Chinese one of three images with a report, an older one of two series."""
    settings = site_settings(tmp_path_factory.mktemp("site"), minimum_free_space_mb=0)
    for folder in (settings.incoming_dir, settings.studies_dir):
        folder.mkdir(parents=True)
    engine = open_site(settings)
    reception = Reception(settings=settings, engine=engine)
    for number in (1, 2):
        series = f"{ENGLISH}.{number}"
        ds = make_ct_dataset(StudyInstanceUID=ENGLISH, SeriesInstanceUID=series, SeriesNumber=number)
        keep(reception, ds, ImplicitVRLittleEndian)
    text = {"SpecificCharacterSet": "GB18030", "PatientName": NAME, "PatientID": "P-2", "StudyDate": "20260215"}
    for number in (1, 2, 3):
        ds = make_ct_dataset(StudyInstanceUID=CHINESE, SeriesInstanceUID=f"{CHINESE}.1", InstanceNumber=number, **text)
        keep(reception, ds)
    with engine.connect() as connection:
        last = connection.exec_driver_sql(f"select last_received from study where study_instance_uid = '{CHINESE}'")
        folder = publish(settings, engine, sample_report(CHINESE), now=last.scalar_one())
    for number, (name, (sop_class, modality, series)) in enumerate(RESULTS.items()):
        save_ct(
            folder / name,
            StudyInstanceUID=CHINESE,
            SeriesInstanceUID=series,
            SOPInstanceUID=derive_uid("dicomweb result", str(number)),
            SOPClassUID=sop_class,
            Modality=modality,
            **text | {"SpecificCharacterSet": "ISO_IR 192"},
        )
    engine.dispose()
    return settings


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[httpx.Client]:
    with serving(create_app(settings)) as client:
        yield client


def search(client: httpx.Client, what: str, **parameters: Any) -> list[Dataset]:
    answer = client.get(f"/dicom-web/{what}", params=parameters, headers={"Accept": "application/dicom+json"})
    if answer.status_code == 204:
        assert answer.content == b""
        return []
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/dicom+json")
    return [Dataset.from_json(found) for found in answer.json()]


def parts(answer: httpx.Response) -> list[tuple[str, bytes]]:
    """Content type and content of each part."""
    assert answer.status_code in (200, 206)
    kind = re.fullmatch(r'multipart/related;type="[a-z/-]+";boundary=(\w+)', answer.headers["Content-Type"])
    assert kind is not None
    before, *between, after = answer.content.split(f"--{kind[1]}".encode())
    assert (before, after) == (b"", b"--\r\n")
    heads, contents = zip(*(part.split(b"\r\n\r\n", 1) for part in between), strict=True)
    types = [head.removeprefix(b"\r\nContent-Type: ").decode() for head in heads]
    return [(media, content.removesuffix(b"\r\n")) for media, content in zip(types, contents, strict=True)]


def test_studies_are_told_with_images_and_results(client: httpx.Client) -> None:
    chinese, english = search(client, "studies")
    assert (chinese.StudyInstanceUID, english.StudyInstanceUID) == (CHINESE, ENGLISH)
    assert (chinese.PatientName, chinese.SpecificCharacterSet) == (NAME, "ISO_IR 192")
    assert chinese.ModalitiesInStudy == ["CT", "OT", "SEG", "SR"]
    assert (chinese.NumberOfStudyRelatedSeries, chinese.NumberOfStudyRelatedInstances) == (4, 7)
    assert (english.NumberOfStudyRelatedSeries, english.NumberOfStudyRelatedInstances) == (2, 2)
    assert chinese.RetrieveURL == f"{client.base_url}/dicom-web/studies/{CHINESE}"
    assert chinese.InstanceAvailability == "ONLINE"


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({"PatientName": "wang*"}, [CHINESE]),
        ({"PatientName": "王^小东"}, [CHINESE]),
        ({"00100020": "P-2"}, [CHINESE]),
        ({"PatientID": "P-?"}, [CHINESE]),
        ({"PatientID": "p-2"}, []),
        ({"PatientID": ""}, [CHINESE, ENGLISH]),
        ({"StudyDate": "20260101-20260131"}, [ENGLISH]),
        ({"StudyDate": "20260201-"}, [CHINESE]),
        ({"StudyDate": "-20260131"}, [ENGLISH]),
        ({"StudyTime": "1200"}, []),
        ({"StudyTime": "1130-1200"}, [CHINESE, ENGLISH]),
        ({"ModalitiesInStudy": "SR"}, [CHINESE]),
        ({"StudyInstanceUID": f"{ENGLISH},{CHINESE}"}, [CHINESE, ENGLISH]),
        ({"StudyInstanceUID": "1.2.3"}, []),
        ({"AccessionNumber": "ACC1", "limit": 1}, [CHINESE]),
        ({"AccessionNumber": "ACC1", "limit": 1, "offset": 1}, [ENGLISH]),
        ({"AccessionNumber": "ACC1", "offset": 2}, []),
        ({"AccessionNumber": "ACC[1]"}, []),
        ({"AccessionNumber": "' or ''='"}, []),
    ],
)
def test_studies_are_searched(client: httpx.Client, parameters: dict[str, Any], found: list[str]) -> None:
    assert [study.StudyInstanceUID for study in search(client, "studies", **parameters)] == found


def test_series_and_instances_are_searched_within_a_study_and_across(client: httpx.Client) -> None:
    within = search(client, f"studies/{CHINESE}/series", Modality="S*")
    assert {(series.Modality, series.NumberOfSeriesRelatedInstances) for series in within} == {("SR", 1), ("SEG", 2)}
    assert all("PatientName" not in series for series in within)
    (across,) = search(client, "series", Modality="SR", PatientID="P-2")
    assert (across.PatientName, across.SeriesInstanceUID) == (NAME, "1.2.3.1.8001")
    assert across.RetrieveURL.endswith(f"/studies/{CHINESE}/series/1.2.3.1.8001")

    images = search(client, f"studies/{CHINESE}/series/{CHINESE}.1/instances")
    assert [image.InstanceNumber for image in sorted(images, key=lambda i: i.InstanceNumber)] == [1, 2, 3]
    (third,) = search(client, f"studies/{CHINESE}/instances", InstanceNumber="3")
    assert third.RetrieveURL.endswith(f"/series/{CHINESE}.1/instances/{third.SOPInstanceUID}")
    assert (third.Rows, third.Modality) == (16, "CT")
    (segments,) = search(client, "instances", SOPInstanceUID=derive_uid("dicomweb result", "2"))
    assert (segments.SOPClassUID, segments.ModalitiesInStudy[0]) == (SegmentationStorage, "CT")
    assert search(client, f"studies/{CHINESE}/series/1.2.3/instances") == []


def test_further_attributes_are_told_on_request(client: httpx.Client) -> None:
    (plain, named, every) = (
        search(client, f"studies/{CHINESE}/series", Modality="CT", **more)[0]
        for more in ({}, {"includefield": "00180060,StationName,SOPClassUID"}, {"includefield": "all"})
    )
    assert "KVP" not in plain
    assert "KVP" in named and "StationName" not in named and "SOPClassUID" in named
    assert (every.KVP, every.Manufacturer) == (120, "OneScan tests")


def test_what_was_not_done_is_said_in_a_warning(client: httpx.Client) -> None:
    answer = client.get("/dicom-web/studies", params={"fuzzymatching": "true", "limit": 1})
    assert len(answer.json()) == 1
    assert "fuzzymatching parameter is not supported" in answer.headers["Warning"]
    assert "additional results" in answer.headers["Warning"]
    assert "Warning" not in client.get("/dicom-web/studies", params={"limit": 2}).headers


@pytest.mark.parametrize(
    "query",
    [
        "PatientID=%00",
        "limit=-1",
        "limit=x",
        "offset=1.5",
        "NoSuchKeyword=1",
        "0040A730=1",
        "a=1",
        "StudyDate=1&00080020=2",
    ],
)
def test_a_search_that_cannot_be_understood_is_refused(client: httpx.Client, query: str) -> None:
    answer = client.get(f"/dicom-web/studies?{query}")
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/json")


def test_a_search_that_takes_too_long_is_given_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb_holdings, "LONGEST_SEARCH_S", 0.0)
    with serving(create_app(settings)) as client:
        assert client.get("/dicom-web/instances", params={"InstanceNumber": "1"}).status_code == 413
        assert client.get(f"/dicom-web/studies/{CHINESE}/instances").status_code == 200


def test_a_study_is_retrieved_as_it_is_stored(client: httpx.Client, settings: Settings) -> None:
    stored = [path for path in (settings.data_dir).rglob("*.dcm") if CHINESE in str(path)]
    retrieved = parts(client.get(f"/dicom-web/studies/{CHINESE}"))
    assert sorted(content for _, content in retrieved) == sorted(path.read_bytes() for path in stored)
    assert {media for media, _ in retrieved} == {f"application/dicom;transfer-syntax={ExplicitVRLittleEndian}"}
    (sr,) = parts(client.get(f"/dicom-web/studies/{CHINESE}/series/1.2.3.1.8001"))
    assert dcmread(io.BytesIO(sr[1])).Modality == "SR"


def test_an_instance_is_retrieved_alone(client: httpx.Client) -> None:
    address = f"/dicom-web/studies/{ENGLISH}/series/{ENGLISH}.1/instances/{instance_of(f'{ENGLISH}.1')}"
    ((media, content),) = parts(client.get(address, headers={"Accept": 'multipart/related; type="application/dicom"'}))
    assert media == f"application/dicom;transfer-syntax={ImplicitVRLittleEndian}"
    alone = client.get(address, headers={"Accept": "application/dicom; transfer-syntax=*"})
    assert (alone.headers["Content-Type"], alone.content) == (media, content)
    assert dcmread(io.BytesIO(content)).SOPInstanceUID == instance_of(f"{ENGLISH}.1")


def instance_of(series: str) -> str:
    return derive_uid("test instance", series, "1")


def test_metadata_are_the_header_without_pixels(client: httpx.Client) -> None:
    for below, count in (("", 7), (f"/series/{CHINESE}.1", 3), (f"/series/{CHINESE}.1/instances/", 1)):
        below += instance_of(f"{CHINESE}.1") if below.endswith("/") else ""
        answer = client.get(f"/dicom-web/studies/{CHINESE}{below}/metadata")
        assert answer.headers["Content-Type"] == "application/dicom+json"
        assert len(answer.json()) == count
    ds = Dataset.from_json(answer.json()[0])
    assert (ds.PatientName, ds.SpecificCharacterSet) == (NAME, "ISO_IR 192")
    assert ds.ImagePositionPatient == [-8, -8, 1]
    assert "PixelData" not in ds


def frames_of(client: httpx.Client, frames: str, accept: str = "*/*", study: str = "1.2.7") -> httpx.Response:
    (found,) = search(client, f"studies/{study}/instances", limit=1)
    return client.get(f"{found.RetrieveURL}/frames/{frames}", headers={"Accept": accept})


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEGLSLossless])
def test_frames_are_retrieved_as_they_are_stored(tmp_path: Path, syntax: str) -> None:
    settings = site_settings(tmp_path, minimum_free_space_mb=0)
    app = create_app(settings)
    pixels = np.arange(3 * 16 * 16, dtype=np.int16)
    ds = make_ct_dataset(StudyInstanceUID="1.2.7", NumberOfFrames=3, PixelData=pixels.tobytes())
    if syntax in (RLELossless, JPEGLSLossless):
        ds.compress(syntax, generate_instance_uid=False)
    keep(Reception(settings=settings, engine=app.state.site.engine), ds, syntax)
    with serving(app) as client:
        got = parts(frames_of(client, "3,1"))
        if syntax in (RLELossless, JPEGLSLossless):
            expected = [get_frame(ds.PixelData, number, number_of_frames=3) for number in (2, 0)]
        else:
            expected = [pixels[2 * 256 :].tobytes(), pixels[:256].tobytes()]
        assert [content for _, content in got] == expected
        told = {RLELossless: "image/dicom-rle", JPEGLSLossless: "image/jls"}.get(syntax, "application/octet-stream")
        as_stored = syntax if told.startswith("image") else ExplicitVRLittleEndian
        assert {media for media, _ in got} == {f"{told};transfer-syntax={as_stored}"}
        assert frames_of(client, "4").status_code == 404
        for wrong in ("0", "1,", "a", "1-2"):
            assert frames_of(client, wrong).status_code == 400
        assert frames_of(client, "1", 'multipart/related; type="image/jp2"').status_code == 406
        assert frames_of(client, "1", f'multipart/related; type="{told}"').status_code == 200
        assert (
            frames_of(client, "1", "multipart/related; type=application/octet-stream; transfer-syntax=*").status_code
            == 200
        )


def of_frames(tmp_path: Path, pixels: bytes, frames: int, syntax: str = JPEGLSLossless) -> Frames:
    ds = make_ct_dataset(NumberOfFrames=frames, PixelData=pixels)
    ds.file_meta.TransferSyntaxUID = syntax
    ds["PixelData"].is_undefined_length = syntax != ExplicitVRLittleEndian
    ds.save_as(tmp_path / "frames.dcm", enforce_file_format=True)
    return open_frames(tmp_path / "frames.dcm")


def there(stored: Frames, asked: int = 4) -> dict[int, bytes]:
    return {number: next(stored.read([number])) for number in range(asked + 1) if stored.has(number)}


WHOLE, LATER = b"\x01\x02\xff\xd9", b"\x03\x04\x05\x06"


@pytest.mark.parametrize(
    ("fragments", "has_bot", "count", "expected"),
    [
        ([[WHOLE], [LATER]], True, 2, {1: WHOLE, 2: LATER}),
        ([[WHOLE], [LATER]], True, 3, {1: WHOLE, 2: LATER}),
        ([[WHOLE], [LATER]], True, 1, {1: WHOLE}),
        ([[LATER, WHOLE], [LATER, LATER]], True, 2, {1: LATER + WHOLE, 2: LATER + LATER}),
        ([[LATER, WHOLE], [LATER, WHOLE]], False, 2, {1: LATER + WHOLE, 2: LATER + WHOLE}),
        ([[LATER, WHOLE], [LATER, LATER]], False, 2, {1: LATER + WHOLE, 2: LATER + LATER}),
        ([[LATER, LATER]], False, 1, {1: LATER + LATER}),
        ([[LATER]], False, 3, {1: LATER}),
        ([[LATER], [LATER]], False, 3, {}),
        ([[WHOLE], [WHOLE]], False, 3, {1: WHOLE, 2: WHOLE}),
    ],
)
def test_frames_are_those_that_are_there(
    tmp_path: Path, fragments: list[list[bytes]], has_bot: bool, count: int, expected: dict[int, bytes]
) -> None:
    items = [b"".join(itemize_fragment(fragment) for fragment in frame) for frame in fragments]
    starts = [sum(map(len, items[:number])) for number in range(len(items))]
    table = b"".join(start.to_bytes(4, "little") for start in starts) if has_bot else b""
    assert there(of_frames(tmp_path, itemize_fragment(table) + b"".join(items), count)) == expected


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless])
@pytest.mark.parametrize("has_bot", [True, False])
def test_a_frame_that_is_cut_off_is_not_there(tmp_path: Path, syntax: str, has_bot: bool) -> None:
    frames = [bytes([number]) * 512 for number in (1, 2, 3)]
    native = syntax == ExplicitVRLittleEndian
    stored = of_frames(tmp_path, b"".join(frames) if native else encapsulate(frames, has_bot=has_bot), 3, syntax)
    assert list(there(stored).values()) == frames
    content = stored.path.read_bytes()
    stored.path.write_bytes(content[: content.rindex(frames[2][:500]) + 100])
    assert list(there(open_frames(stored.path)).values()) == frames[:2]


def test_a_frame_that_is_not_there_is_no_answer_of_success(tmp_path: Path) -> None:
    app = create_app(site_settings(tmp_path, minimum_free_space_mb=0))
    ds = make_ct_dataset(StudyInstanceUID="1.2.7", NumberOfFrames=3, PixelData=encapsulate([WHOLE]))
    ds["PixelData"].is_undefined_length = True
    keep(Reception(settings=app.state.site.settings, engine=app.state.site.engine), ds, JPEGLSLossless)
    with serving(app) as client:
        assert [frames_of(client, asked).status_code for asked in ("1", "2", "1,3")] == [200, 404, 404]


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("studies/1.2.9", 404),
        (f"studies/{CHINESE}/series/1.2.9", 404),
        (f"studies/{CHINESE}/series/{ENGLISH}.1", 404),
        (f"studies/{CHINESE}/series/{CHINESE}.1/instances/1.2.9/metadata", 404),
        ("studies/1.2.9/series", 404),
        ("studies/..%2f..%2fetc", 404),
        ("studies/1.2.x/metadata", 400),
        (f"studies/{CHINESE}/series/%2e%2e/metadata", 400),
        ("nothing", 404),
    ],
)
def test_what_is_not_here_has_its_status(client: httpx.Client, address: str, status: int) -> None:
    answer = client.get(f"/dicom-web/{address}")
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/json")


@pytest.mark.parametrize(
    ("address", "accept", "status"),
    [
        ("studies", "application/dicom+xml", 406),
        ("studies", "text/html, application/json;q=0.5", 200),
        ("studies?accept=application/dicom%2Bjson", "text/html", 200),
        (f"studies/{ENGLISH}/metadata", "text/html", 406),
        (f"studies/{ENGLISH}", "image/jpeg", 406),
        (f"studies/{ENGLISH}", 'multipart/related; type="image/jpeg"', 406),
        (
            f"studies/{ENGLISH}",
            'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2',
            200,
        ),
        (
            f"studies/{ENGLISH}",
            'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.80',
            406,
        ),
        (f"studies/{ENGLISH}?accept=image/jpeg", "*/*", 406),
        (f"studies/{CHINESE}", "application/dicom", 406),
        (f"studies/{CHINESE}/series/{CHINESE}.1", "application/dicom", 406),
        (f"studies/{CHINESE}/series/{CHINESE}.1", "application/*", 406),
        (f"studies/{CHINESE}/series/{CHINESE}.1", "application/dicom, */*;q=0.1", 200),
        (f"studies/{ENGLISH}/series/{ENGLISH}.1", "application/dicom", 200),
        (f"studies/{CHINESE}", 'Multipart/Related; Type="APPLICATION/DICOM"', 200),
        (f"studies/{CHINESE}", 'multipart/related; type="application/dicom"; q=0', 406),
        ("studies", "application/dicom+json; q=0.000", 406),
        ("studies", "application/json;q=0, text/html", 406),
        ("studies", "application/dicom+json;q=0.001", 200),
    ],
)
def test_only_what_is_accepted_is_sent(client: httpx.Client, address: str, accept: str, status: int) -> None:
    assert client.get(f"/dicom-web/{address}", headers={"Accept": accept}).status_code == status


def test_what_profiles_keep_for_dicomweb_is_served_instead(settings: Settings, client: httpx.Client) -> None:
    def encode(name: str, held: object) -> tuple[Dataset, ...]:
        uid = derive_uid("shelf", name)
        return (make_ct_dataset(StudyInstanceUID=CHINESE, SeriesInstanceUID=uid, SOPInstanceUID=uid, Modality="SR"),)

    def served() -> set[str]:
        return {found.SOPInstanceUID for found in search(client, f"studies/{CHINESE}/instances", Modality="SR")}

    folder = settings.data_dir / "results" / CHINESE / "r1"
    assert served() == {derive_uid("dicomweb result", "0")}
    try:
        for name, objects in (("one", ("sr", "pdf")), ("one", ("sr", "marks")), ("two", ("sr", "ko"))):
            send(encode, DicomwebDestination(name=name, kind="dicomweb", objects=objects), folder)
        assert served() == {derive_uid("shelf", name) for name in ("sr", "marks", "ko")}
        assert len(search(client, f"studies/{CHINESE}/instances")) == 3 + 3
    finally:
        shutil.rmtree(folder / "dicomweb")


def test_a_shelf_is_seen_when_it_is_whole(tmp_path: Path) -> None:
    """While it is written, and after a failure or a kill, the shelf before it is served."""

    def keep_for(*names: ResultObject, fails: Exception | None = None) -> None:
        def encode(name: str, held: object) -> tuple[Dataset, ...]:
            if name == names[-1]:
                seen.append({path.stem for path in kept_files(tmp_path)})
                if fails is not None:
                    raise fails
            return (make_ct_dataset(SOPInstanceUID=derive_uid("shelf", name)),)

        send(encode, DicomwebDestination(name="one", kind="dicomweb", objects=names), tmp_path)

    seen: list[set[str]] = []
    with pytest.raises(PeerUnreachable):
        keep_for("sr", "sc", fails=PeerUnreachable("full"))
    assert not kept_files(tmp_path)
    left = tmp_path / "dicomweb" / ".one.part"
    left.mkdir()
    (left / "1.2.9.dcm").write_bytes(b"half a file")
    keep_for("sr", "sc")
    first, second = ({derive_uid("shelf", name) for name in names} for names in (("sr", "sc"), ("pdf", "sr")))
    keep_for("pdf", "sr")
    with pytest.raises(PeerUnreachable):
        keep_for("ko", "sc", fails=PeerUnreachable("full"))
    assert seen == [set(), set(), first, second]
    assert {path.stem for path in kept_files(tmp_path)} == second
    assert [path.name for path in (tmp_path / "dicomweb").iterdir()] == ["one"]


def test_a_disk_that_does_not_take_a_shelf_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "dicomweb").write_text("no folder")
    profile = DicomwebDestination(name="one", kind="dicomweb", objects=("sr",))
    with pytest.raises(PeerUnreachable, match="cannot write"):
        send(lambda name, held: (make_ct_dataset(),), profile, tmp_path)


def test_a_file_that_is_damaged_hides_no_other(tmp_path: Path) -> None:
    settings = site_settings(tmp_path, minimum_free_space_mb=0)
    for folder in (settings.incoming_dir, settings.studies_dir):
        folder.mkdir(parents=True)
    engine = open_site(settings)
    reception = Reception(settings=settings, engine=engine)
    for number in (1, 2, 3):
        keep(reception, make_ct_dataset(StudyInstanceUID="1.2.5", SeriesInstanceUID="1.2.5.1", InstanceNumber=number))
    first, second, _ = sorted(settings.data_dir.rglob("*.dcm"))
    first.write_bytes(b"no DICOM at all")
    second.unlink()
    with serving(create_app(settings)) as client:
        (study,) = search(client, "studies")
        assert (study.StudyInstanceUID, study.NumberOfStudyRelatedInstances) == ("1.2.5", 2)
        assert len(search(client, "studies/1.2.5/instances")) == 2
        assert len(client.get("/dicom-web/studies/1.2.5/metadata").json()) == 1
        answer = client.get("/dicom-web/studies/1.2.5")
        assert (answer.status_code, len(parts(answer))) == (206, 1)
        damaged = f"/dicom-web/studies/1.2.5/series/1.2.5.1/instances/{first.stem}"
        assert client.get(damaged).status_code == 404


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path) -> None:
    settings = site_settings(tmp_path, minimum_free_space_mb=0)
    app = create_app(settings)
    reception = Reception(settings=settings, engine=app.state.site.engine)
    keep(reception, make_ct_dataset(StudyInstanceUID="1.2.6", TableSpeed=float("nan")))
    with serving(app) as client:
        (header,) = json.loads(client.get("/dicom-web/studies/1.2.6/metadata").text, parse_constant=pytest.fail)
    assert header["00189309"] == {"vr": "FD", "Value": [None]}


@given(st.lists(st.tuples(st.sampled_from(["limit", "offset", "includefield", "PatientName"]) | st.text(), st.text())))
def test_any_parameters_are_understood_or_refused(parameters: list[tuple[str, str]]) -> None:
    try:
        query = parse_query(parameters)
    except BadQuery:
        return
    matches(make_ct_dataset(), query.keys)
    json.dumps(query.fields)
