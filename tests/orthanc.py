"""A real PACS for tests: Orthanc on ports and a folder of its own."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import free_port, wait_until

DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@contextmanager
def orthanc(folder: Path, **configuration: Any) -> Iterator[tuple[str, int]]:
    """Orthanc with more of its configuration; gives its REST address and DICOM port. Skips where it is missing."""
    program = shutil.which("Orthanc")
    if program is None or not all(Path(plugin).exists() for plugin in configuration.get("Plugins", ())):
        if os.environ.get("CI"):
            pytest.fail("CI must have Orthanc and its DICOMweb plugin")
        pytest.skip("Orthanc, or its DICOMweb plugin, is not installed")
    http_port, dicom_port = free_port(), free_port()
    base = {
        "Name": "test",
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "HttpPort": http_port,
        "DicomPort": dicom_port,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(base | configuration))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            [program, str(folder / "orthanc.json")],
            stdout=log,
            stderr=log,
            # Without it DCMTK's sender waits 40 ms for each image.
            env={**os.environ, "TCP_NODELAY": "1"},
        )
        try:
            rest = f"http://127.0.0.1:{http_port}"
            wait_until(lambda: answers(rest + "/system"), "Orthanc answers")
            yield rest, dicom_port
        finally:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    """Whether a GET gets status 200."""
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
