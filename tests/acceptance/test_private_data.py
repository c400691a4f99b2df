"""Nothing that identifies a patient, and no secret, leaves the store: not in logs, messages, temporary files or names.

Every text element of the data dictionary and private elements carry a mark with their tag in it. The real service gets
such studies, good, damaged and refused ones; everything is asked of it; then all that it wrote outside of the store is
searched for the marks. Elements of coded strings (CS) are left alone: `onescan rules` shows some of them on purpose.
"""

import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pydicom
import pytest
from factories import make_ct_dataset
from pydicom import Dataset, config
from pydicom.datadict import DicomDictionary
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless
from pynetdicom import AE
from receivers import fhir_server
from running import ROOT, free_port, wait_until

from dicom_gateway.operate import list_parked
from dicom_gateway.settings import Settings
from dicom_gateway.users import Person, hash_line
from imaging.phantom import make_phantom
from imaging.phantom_dicom import write_phantom

pytestmark = pytest.mark.acceptance

MARK = re.compile(rb"ZQ[0-9a-f]{8}|ZQBIRTH|19010203|ZQSECRET", re.IGNORECASE)
TEXT_VRS = ("PN", "LO", "SH", "LT", "ST", "UT", "UC")
PASSWORD, TOKEN = "ZQSECRET-password", "ZQSECRET-token"
GOOD_SLICE_MM = (5.0, 2.0, 2.0)


def mark(ds: Dataset, *, every: bool) -> Dataset:
    """Put marks into the text elements of a data set: those that a study usually has, or `every` one there is."""
    usual = {element.tag for element in ds}
    usual |= {pydicom.datadict.tag_for_keyword(name) for name in ("ReferringPhysicianName", "InstitutionName")}
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if vr in TEXT_VRS and 0x0008 <= tag >> 16 < 0x7FE0 and keyword and (every or tag in usual):
            ds.add_new(tag, vr, f"ZQ{tag:08x}^X" if vr == "PN" else f"ZQ{tag:08x}")
    ds.PatientBirthDate = "19010203"
    item = Dataset()
    item.PatientID, item.RequestedProcedureDescription = "ZQ00100020", "ZQ00321060"
    item.private_block(0x0019, "ZQ00190010", create=True).add_new(1, "LT", "ZQ00191001")
    ds.OtherPatientIDsSequence = Sequence([item])
    ds.private_block(0x0019, "ZQ00190010", create=True).add_new(2, "SQ", Sequence([item]))
    return ds


def good_study(folder: Path) -> list[Path]:
    files = list(write_phantom(make_phantom(3, spacing_mm=GOOD_SLICE_MM), folder))
    for number, file in enumerate(files):
        mark(pydicom.dcmread(file), every=number == 0).save_as(file)
    return [file.rename(file.with_name(f"ZQ00100010_{file.name}")) for file in files]


def odd_study(folder: Path, name: str, *, old: bytes = b"", new: bytes = b"", damaged: bool = False) -> list[Path]:
    """Thirty slices whose bytes `old` are replaced, or whose frames no decoder takes."""
    folder.mkdir()
    files = []
    for number in range(1, 31):
        ds = mark(make_ct_dataset(StudyInstanceUID=f"1.2.826.77.{name}", InstanceNumber=number), every=False)
        ds.SliceThickness = "77.75"
        if damaged:
            ds.file_meta.TransferSyntaxUID = JPEGLSLossless
            ds.PixelData = encapsulate([b"ZQ00100010 is no JPEG-LS stream "])
            ds["PixelData"].is_undefined_length = True
        file = folder / f"ZQ00100010_{number}.dcm"
        ds.save_as(file, enforce_file_format=True)
        file.write_bytes(file.read_bytes().replace(old, new) if old else file.read_bytes())
        files.append(file)
    return files


def send(port: int, files: list[Path], *, calling: str = "CT1", tries: int = 5, **changes: Any) -> list[int]:
    """C-STORE the files, with `changes` in their command's UIDs; the statuses, -1 where there was no association."""
    entity = AE(ae_title=calling)
    entity.dimse_timeout = 10
    for syntax in (ExplicitVRLittleEndian, JPEGLSLossless):
        entity.add_requested_context(CTImageStorage, syntax)
    association = entity.associate("127.0.0.1", port, ae_title="ONESCAN")
    if not association.is_established:
        return [-1]
    statuses: list[int] = []
    for file in files:
        ds = pydicom.dcmread(file)
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
        answer = association.send_c_store(ds)
        if "Status" not in answer:
            # pynetdicom loses an answer that comes while its reactor is being paused: once more, it changes nothing.
            assert tries > 1
            return statuses + send(port, files[len(statuses) :], calling=calling, tries=tries - 1, **changes)
        statuses.append(int(answer.Status))
    association.release()
    return statuses


@contextmanager
def service(folder: Path, config_file: Path, settings: Settings) -> Iterator[dict[str, str]]:
    """`onescan serve`, all that it says in files of `folder`; the environment it runs in."""
    for name in ("home", "tmp", "here"):
        (folder / name).mkdir()
    environment = {
        **os.environ, "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
    }  # fmt: skip
    with (folder / "stdout").open("wb") as said, (folder / "stderr").open("wb") as logged:
        process = subprocess.Popen(
            [sys.executable, "-c", "from dicom_gateway.cli import main; main()", "serve", "--config", str(config_file)],
            stdout=said,
            stderr=logged,
            cwd=folder / "here",
            env=environment,
        )
        try:
            wait_until(lambda: b"is ready" in (folder / "stdout").read_bytes(), "the service is ready")
            assert listening(process.pid) == {settings.dicom_port, settings.web_port}
            yield environment
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        finally:
            process.kill()
            process.wait()


def listening(pid: int) -> set[int]:
    """TCP ports that a process and its children accept connections on."""
    parent = psutil.Process(pid)
    found = [c for p in (parent, *parent.children(recursive=True)) for c in p.net_connections("tcp")]
    return {connection.laddr.port for connection in found if connection.status == psutil.CONN_LISTEN}


@pytest.fixture
def wild_values() -> Iterator[None]:
    """Values that pydicom would complain of are sent as they are."""
    before = config.settings.reading_validation_mode, config.settings.writing_validation_mode
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    config.settings.reading_validation_mode, config.settings.writing_validation_mode = before


@pytest.mark.usefixtures("wild_values")
def test_marked_identifiers_stay_in_the_store(tmp_path: Path) -> None:
    """Good, damaged and refused studies, failing deliveries, all pages, all commands."""
    outside, sent = tmp_path / "outside", tmp_path / "sent"
    outside.mkdir(), sent.mkdir()
    quoted = {"issue": [{"severity": "error", "code": "processing", "diagnostics": "ZQ00100010 ZQ00100020"}]}
    with fhir_server(422, {"resourceType": "OperationOutcome", **quoted}) as refusing:
        settings, config_file = configure(tmp_path, refusing.url)
        good = good_study(sent / "good")
        with service(outside, config_file, settings) as environment:
            send_everything(settings.dicom_port, sent, good)
            client = httpx.Client(
                base_url=f"http://127.0.0.1:{settings.web_port}", auth=("reader", PASSWORD), timeout=90
            )
            states = wait_until(lambda: ended(client), "every study and delivery ends", 300)
            assert states["1.2.826.77.1"] == states["1.2.826.77.2"] and set(states.values()) == {"reported", "refused"}
            assert {job.destination for job in list_parked(settings)} == {"gone", "ehr"}
            messages = visit(client, states)
            messages += command_line(environment, config_file, sent, tmp_path / "results")
    written = [path for path in outside.rglob("*") if path.is_file()]
    # MONAI loads matplotlib where that is installed, for training: it keeps a list of fonts.
    ours = [path for path in written if path.parent.name != "matplotlib"]
    assert {str(path.relative_to(outside)) for path in ours} == {"stdout", "stderr"}
    assert b"instance_refused" in (outside / "stderr").read_bytes()
    leaks = {str(path.relative_to(outside)): MARK.findall(path.read_bytes()) for path in written}
    assert {name: found for name, found in leaks.items() if found} == {}
    assert [path for path in tmp_path.rglob("*") if MARK.search(path.name.encode()) and sent not in path.parents] == []
    assert [(asked, found) for asked, told in messages if (found := MARK.findall(told.encode()))] == []
    assert [path for path in (tmp_path / "data").rglob("*") if path.stat().st_mode & 0o077] == []
    assert MARK.search((settings.data_dir / "onescan.sqlite").read_bytes() + b"".join(wal(settings)))


def wal(settings: Settings) -> list[bytes]:
    return [path.read_bytes() for path in settings.data_dir.glob("onescan.sqlite-wal")]


def configure(folder: Path, fhir_url: str) -> tuple[Settings, Path]:
    """A site with an unreachable and a refusing destination, and one user of the web port."""
    (folder / "token").write_text(TOKEN)
    (folder / "users").write_text(hash_line("reader", PASSWORD, Person("ZQ0040a075^X", "ZQ0040a027")))
    values = {
        "data_dir": str(folder / "data"),
        "dicom_host": "127.0.0.1",
        "dicom_port": free_port(),
        "web_port": free_port(),
        "web_users_file": str(folder / "users"),
        "calling_ae_titles": ["CT1"],
        "quiet_period_s": 1.0,
        "minimum_free_space_mb": 1,
        "inference_threads": 1,
        "delivery_attempts": 2,
        "delivery_backoff_s": 0.2,
        "log_level": "debug",
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    lines += ["[[destinations]]", 'name = "gone"', 'ae_title = "GONE"', 'host = "127.0.0.1"', f"port = {free_port()}"]
    lines += ["[[destinations]]", 'name = "ehr"', 'kind = "fhir"', f'url = "{fhir_url}"']
    lines += [f'bearer_token_file = "{folder / "token"}"']
    file = folder / "onescan.toml"
    file.write_text("\n".join(lines))
    return Settings.load(file), file


def send_everything(port: int, sent: Path, good: list[Path]) -> None:
    assert set(send(port, good)) == {0x0000}
    assert set(send(port, odd_study(sent / "damaged", "1", damaged=True))) == {0x0000}
    assert set(send(port, odd_study(sent / "number", "2", old=b"77.75 ", new=b"ZQ0018"))) == {0x0000}
    first = good[:1]
    assert send(port, first, calling="CT9") == [-1]
    assert send(port, first, StudyInstanceUID="ZQ0020000d") != [0x0000]
    assert send(port, first, SeriesInstanceUID="../ZQ0020000e") != [0x0000]
    assert send(port, first, PatientName="ZQ00100010^OTHER") == [0x0111]
    assert send(port, first, SOPInstanceUID="1.2.3.4", PixelData=b"ZQ") != [0x0000]


def ended(client: httpx.Client) -> dict[str, str] | None:
    """State of each study, once none is under way and no delivery either."""
    studies = client.get("/api/studies").json()["studies"]
    deliveries = client.get("/api/deliveries").json()
    under_way = [s for s in studies if s["state"] in ("receiving", "queued", "analysing")]
    under_way += [d for d in deliveries if d["state"] in ("pending", "delayed")]
    done = len(studies) == 3 and len(deliveries) == 6 and not under_way
    return {s["study_instance_uid"]: s["state"] for s in studies} if done else None


def visit(client: httpx.Client, uids: Iterator[str]) -> list[tuple[str, str]]:
    """Look at every page; what is not a page about a patient is given back with its address."""
    verified = set()
    for uid in uids:
        for path in (f"/studies/{uid}", f"/api/studies/{uid}/report", f"/dicom-web/studies/{uid}/metadata"):
            assert client.get(path).status_code == 200
        path, verdict = f"/api/studies/{uid}/reports/1/verification", {"comment": "ZQ00104000"}
        verified.add(client.post(path, json=verdict, headers={"X-OneScan-Request": "1"}).status_code)
    assert verified == {200, 409}
    for path in ("/", "/?search=ZQ00100010", "/deliveries", "/rules", "/dicom-web/studies?PatientID=ZQ00100020"):
        assert client.get(path).status_code == 200
    checked = client.post("/system/checks", headers={"Sec-Fetch-Site": "same-origin"})
    assert "Checks of the installation" in checked.text
    told = [("/system/checks", checked.text)]
    for path in ("/system", "/evidence", "/api", "/api/openapi.json", "/api/health"):
        told.append((path, client.get(path).text))
    for path in ("/studies/ZQ00100010", "/api/studies/ZQ00100010", "/ZQ00100010", "/dicom-web/studies?ZQ00100010=x"):
        answer = client.get(path)
        assert answer.is_client_error, path
        told.append((path, answer.text.replace("ZQ00100010", "")))
    for path in ("/", "/api/studies", "/static/onescan.css"):
        told.append((path, client.get(path, auth=("reader", "wrong")).text))
    return told


def command_line(environment: dict[str, str], config_file: Path, sent: Path, out: Path) -> list[tuple[str, str]]:
    """What each command says. `analyze` may repeat names of files to the person who has named them."""
    told = []
    odd = [str(sent / "damaged"), str(sent / "number")]
    for command in (["status"], ["doctor"], ["rules"], ["replay", "--all"], ["analyze", *odd, "--out", str(out)]):
        run = subprocess.run(
            [
                sys.executable,
                "-c",
                "from dicom_gateway.cli import main; main()",
                *command,
                "--config",
                str(config_file),
            ],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=300,
        )
        assert "Traceback" not in run.stderr, run.stderr
        told.append((command[0], re.sub(r"ZQ00100010_\S+\.dcm", "", run.stdout + run.stderr)))
    return told
