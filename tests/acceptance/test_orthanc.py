"""The whole chain beside a real PACS: Orthanc forwards a study, and the results come back into it."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from factories import save_ct
from orthanc import answers, orthanc
from running import ROOT, free_port, make_settings, role, wait_until

from imaging.phantom import LesionRequest, make_phantom
from imaging.phantom_dicom import write_phantom

pytestmark = pytest.mark.acceptance

# Forward the CT series of a stable study once; our own results make it stable again and must not start a loop.
AUTOROUTE = """
function OnStableStudy(studyId, tags, metadata)
  if metadata['1024'] ~= nil or metadata['SentToOneScan'] ~= nil then return end
  local series = {}
  for _, id in ipairs(ParseJson(RestApiGet('/studies/' .. studyId))['Series']) do
    if ParseJson(RestApiGet('/series/' .. id))['MainDicomTags']['Modality'] == 'CT' then
      table.insert(series, id)
    end
  end
  if #series > 0 then
    RestApiPut('/studies/' .. studyId .. '/metadata/SentToOneScan', 'yes')
    RestApiPost('/modalities/onescan/store', DumpJson({Resources = series, Synchronous = false}, true))
  end
end
"""


@contextmanager
def _orthanc(folder: Path, onescan_port: int) -> Iterator[tuple[str, int]]:
    """Orthanc with auto-forwarding; gives its REST address and DICOM port."""
    (folder / "autoroute.lua").write_text(AUTOROUTE)
    peer = {"AET": "ONESCAN", "Host": "127.0.0.1", "Port": onescan_port, "AllowStore": True, "AllowEcho": True}
    with orthanc(
        folder,
        StableAge=2,
        DicomModalities={"onescan": peer},
        LuaScripts=[str(folder / "autoroute.lua")],
        UserMetadata={"SentToOneScan": 1024},
    ) as addresses:
        yield addresses


@contextmanager
def _onescan(folder: Path, dicom_port: int, orthanc_port: int) -> Iterator[str]:
    """`onescan serve` as a user runs it; gives the address of its pages."""
    web_port = free_port()
    config = folder / "onescan.toml"
    config.write_text(
        f"""
        data_dir = {json.dumps(str(folder / "data"))}
        dicom_host = "127.0.0.1"
        dicom_port = {dicom_port}
        web_port = {web_port}
        calling_ae_titles = ["ORTHANC"]
        quiet_period_s = 2.0
        minimum_free_space_mb = 100
        [[destinations]]
        name = "orthanc"
        ae_title = "ORTHANC"
        host = "127.0.0.1"
        port = {orthanc_port}
        """
    )
    start = "from dicom_gateway.cli import main; main()"
    with (folder / "onescan.log").open("wb") as log:
        command = [sys.executable, "-c", start, "serve", "--config", str(config)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            page = f"http://127.0.0.1:{web_port}"
            wait_until(lambda: answers(page + "/api/health"), "OneScan answers")
            yield page
        finally:
            process.terminate()
            process.wait(timeout=60)


def _modalities(rest: str) -> dict[str, str]:
    """Modality -> an instance of it, of the one study in Orthanc."""
    studies = httpx.get(rest + "/studies").json()
    if not studies:
        return {}
    series = [
        httpx.get(f"{rest}/series/{s}").json() for s in httpx.get(f"{rest}/studies/{studies[0]}").json()["Series"]
    ]
    return {s["MainDicomTags"]["Modality"]: s["Instances"][0] for s in series}


def test_a_study_in_the_pacs_gets_its_report_once(tmp_path: Path) -> None:
    """Uploaded to Orthanc, forwarded, analysed: SR and SC stand in the same study, readable, and are sent once."""
    phantom = make_phantom(5, [LesionRequest(kind="pleural_effusion", size=400.0)], spacing_mm=(5.0, 2.0, 2.0))
    files = write_phantom(phantom, tmp_path / "phantom")
    onescan_port = free_port()
    with (
        _orthanc(tmp_path, onescan_port) as (rest, orthanc_port),
        _onescan(tmp_path, onescan_port, orthanc_port) as page,
    ):
        for file in files:
            httpx.post(rest + "/instances", content=file.read_bytes(), timeout=30).raise_for_status()
        wait_until(lambda: {"SR", "OT"} <= set(_modalities(rest)), "SR and SC are in Orthanc", 180)
        (study,) = httpx.get(rest + "/studies").json()
        # The summary page is sent last.
        series = httpx.get(f"{rest}/studies/{study}").json()["Series"]
        sr = httpx.get(f"{rest}/instances/{_modalities(rest)['SR']}/file").content
        _readable(tmp_path, sr)

        listed = httpx.get(page + "/api/studies").json()
        (row,) = listed["studies"]
        assert row["state"] == "reported"
        uid = row["study_instance_uid"]
        assert uid == httpx.get(f"{rest}/studies/{study}").json()["MainDicomTags"]["StudyInstanceUID"]
        report = httpx.get(f"{page}/api/studies/{uid}/report").json()
        assert report["analysed_series"]["slice_count"] == len(files)
        assert "not a medical device" in httpx.get(f"{page}/studies/{uid}").text.lower()

        time.sleep(6)  # our results made the study stable again: nothing may start over
        assert httpx.get(f"{rest}/studies/{study}").json()["Series"] == series
        assert len(series) == len(_modalities(rest))
        assert {"CT", "SR", "OT"} <= set(_modalities(rest)) <= {"CT", "SR", "SEG", "OT"}
        assert len(httpx.get(page + "/api/studies").json()["studies"]) == 1


def _readable(folder: Path, sr: bytes) -> None:
    """dsr2html renders it with the sentence a radiologist reads first."""
    program = shutil.which("dsr2html")
    if program is None:
        pytest.skip("DCMTK (dsr2html) is not installed")
    (folder / "sr.dcm").write_bytes(sr)
    html = subprocess.run([program, str(folder / "sr.dcm")], capture_output=True, text=True, check=True).stdout
    assert "Impression" in html
    assert "Not assessed" in html


def test_orthanc_has_what_it_sent_committed(tmp_path: Path) -> None:
    """Orthanc is told on an association of ours, as it expects (its REST API, /storage-commitment)."""
    dicom_port = free_port()
    peer = {"AET": "ONESCAN", "Host": "127.0.0.1", "Port": dicom_port, "AllowStorageCommitment": True}
    with orthanc(tmp_path, DicomModalities={"onescan": peer}) as (url, orthanc_port):
        source = {"name": "pacs", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": orthanc_port}
        settings = make_settings(tmp_path, dicom_port=dicom_port, sources=(source,))
        instances = []
        for number in (1, 2, 3):
            image = save_ct(tmp_path / f"{number}.dcm", InstanceNumber=number)
            added = httpx.post(f"{url}/instances", content=(tmp_path / f"{number}.dcm").read_bytes()).json()
            instances.append((added["ID"], image.SOPClassUID, image.SOPInstanceUID))
        with role(settings, "listener"):
            sent = httpx.post(
                f"{url}/modalities/onescan/store", json={"Resources": [instances[0][0], instances[1][0]]}, timeout=60
            )
            assert sent.status_code == 200
            asked = httpx.post(
                f"{url}/modalities/onescan/storage-commitment",
                json={"DicomInstances": [[sop_class, uid] for _, sop_class, uid in instances]},
            ).json()

            def report() -> dict[str, object] | None:
                answer = httpx.get(f"{url}{asked['Path']}").json()
                return None if answer["Status"] == "Pending" else dict(answer)

            answer = wait_until(report, "Orthanc is told")
    assert answer["Status"] == "Failure"
    assert {item["SOPInstanceUID"] for item in answer["Success"]} == {uid for _, _, uid in instances[:2]}
    assert [item["SOPInstanceUID"] for item in answer["Failures"]] == [instances[2][2]]
