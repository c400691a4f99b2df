"""The README's first command: the report of a phantom comes back through the real port, and the page shows it."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from running import wait_until

pytestmark = pytest.mark.acceptance


def test_the_demo_agrees_and_leaves_nothing(tmp_path: Path) -> None:
    folder, told = tmp_path / "temporary", tmp_path / "told"
    folder.mkdir()
    command = [sys.executable, "-c", "from dicom_gateway.cli import main; main()", "demo"]
    with told.open("wb") as sink:
        demo = subprocess.Popen(command, stdout=sink, stderr=sink, env=os.environ | {"TMPDIR": str(folder)})
    try:
        wait_until(lambda: demo.poll() is not None or b"Ctrl-C" in told.read_bytes(), "it shows the report", 240)
        (page,) = re.findall(r"The report page: (http://127\.0\.0\.1:\S+)", told.read_text())
        assert "Pneumothorax" in httpx.get(page).text
        demo.send_signal(signal.SIGTERM)
        # 0 says that the report agrees with the truth.
        assert demo.wait(60) == 0
    finally:
        demo.kill()
        demo.wait()
    assert list(folder.iterdir()) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", urlsplit(page).port)) != 0
