"""Real processes and peers for tests: roles of the service, DCMTK's storescu, a PACS that keeps what it gets."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import Comprehensive3DSRStorage, SecondaryCaptureImageStorage, Verification
from typer.testing import CliRunner

from dicom_gateway.operate import prepare_data
from dicom_gateway.settings import Settings

ROOT = Path(__file__).parent.parent
DEADLINE_S = 60.0


def free_port() -> int:
    """A TCP port of the loopback nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def onescan(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with hardly any environment."""
    start = "from dicom_gateway.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", start, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={"PATH": "", "COLUMNS": "200", "HOME": "/nonexistent"},
    )


def refused(*arguments: str | Path) -> str:
    """What a command says that ends with exit code 2: one line. In this process, as each start would load torch."""
    from dicom_gateway.cli import app

    with chdir(ROOT):
        ended = CliRunner().invoke(app, [*map(str, arguments)])
    assert ended.exit_code == 2, ended.output
    said = ended.stderr.strip()
    assert len(said.splitlines()) == 1, said
    return said


def make_settings(folder: Path, **values: Any) -> Settings:
    """Settings for a test: loopback, free ports, everybody may send, short quiet periods; data prepared."""
    defaults: dict[str, Any] = {
        "data_dir": folder / "data",
        "dicom_host": "127.0.0.1",
        "dicom_port": free_port(),
        "web_port": free_port(),
        "calling_ae_titles": ("*",),
        "quiet_period_s": 0.5,
        "quiet_period_single_image_s": 1.0,
        "missing_images_wait_s": 2.0,
        "minimum_free_space_mb": 1,
        "delivery_backoff_s": 0.5,
    }
    settings = Settings(**defaults | values)
    prepare_data(settings)
    return settings


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of `condition`; fails with `what` when none comes."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    pytest.fail(f"not within {deadline_s:.0f} s: {what}")


def start_role(settings: Settings, role: str, program: list[str] | None = None) -> subprocess.Popen[str]:
    """A role of the service as the supervisor starts it; serving when this returns.

    `program` replaces `-m dicom_gateway ROLE --supervised` after the interpreter's name.
    """
    process = subprocess.Popen(
        [sys.executable, *(program or ["-m", "dicom_gateway", role, "--supervised"])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(settings.model_dump_json() + "\n")
    process.stdin.flush()
    assert process.stdout.readline().strip() == "ready"
    return process


def end(process: subprocess.Popen[str]) -> None:
    """kill -9, and wait for it."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


@contextmanager
def role(settings: Settings, name: str, program: list[str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A role that is killed at the end."""
    process = start_role(settings, name, program)
    try:
        yield process
    finally:
        end(process)


def dcmtk(program: str) -> str | None:
    """Path of a DCMTK program. pynetdicom puts programs of the same names beside Python; those are not meant."""
    beside_python = Path(sys.executable).parent
    folders = [f for f in os.environ.get("PATH", "").split(os.pathsep) if f and Path(f) != beside_python]
    return shutil.which(program, path=os.pathsep.join(folders))


def storescu(settings: Settings, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Send every file of `folder` with DCMTK; skips the test where DCMTK is not installed."""
    program = dcmtk("storescu")
    if program is None:
        pytest.skip("DCMTK (storescu) is not installed")
    titles = ["-aet", "CT1", "-aec", settings.ae_title]
    return subprocess.run(
        [program, "-v", *options, *titles, "+sd", "127.0.0.1", str(settings.dicom_port), str(folder)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@dataclass
class Pacs:
    """A receiving peer; `received` counts C-STOREs by SOP Instance UID, `status` is what it answers.

    `digests` has those of everything that came under a UID, taken or not: more than one is a changed object.
    `answers` come before `status`, one a C-STORE; None aborts the association.
    """

    port: int
    received: Counter[str] = field(default_factory=Counter)
    digests: dict[str, set[str]] = field(default_factory=dict)
    status: int = 0x0000
    answers: list[int | None] = field(default_factory=list)


def end_peer(entity: AE) -> None:
    """End the servers of a peer, its associations first: pynetdicom aborts what is just ending, and raises for that."""
    deadline = time.monotonic() + 3
    while entity.active_associations and time.monotonic() < deadline:
        time.sleep(0.01)
    entity.shutdown()


@contextmanager
def pacs(port: int | None = None, sop_classes: tuple[Any, ...] | None = None) -> Iterator[Pacs]:
    """A storage SCP for results on a loopback port."""
    peer = Pacs(port or free_port())

    def on_store(event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        content = hashlib.sha256(event.request.DataSet.getvalue()).hexdigest()
        peer.digests.setdefault(uid, set()).add(content)
        status = peer.answers.pop(0) if peer.answers else peer.status
        if status is None:
            event.assoc.abort()
            return 0x0000
        if status == 0x0000:
            peer.received[uid] += 1
        return status

    entity = AE(ae_title="PACS")
    entity.add_supported_context(Verification)
    for sop_class in (Comprehensive3DSRStorage, SecondaryCaptureImageStorage) if sop_classes is None else sop_classes:
        entity.add_supported_context(sop_class)
    entity.start_server(("127.0.0.1", peer.port), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    try:
        yield peer
    finally:
        end_peer(entity)


@contextmanager
def restricted_storescp(folder: Path, *sop_classes: str) -> Iterator[tuple[int, Path]]:
    """DCMTK's storescp that takes only these classes (DCMTK's names), uncompressed: its port and folder."""
    program = dcmtk("storescp")
    if program is None:
        pytest.skip("DCMTK (storescp) is not installed")
    lines = ["[[TransferSyntaxes]]", "[Uncompressed]"]
    lines += ["TransferSyntax1 = LocalEndianExplicit", "TransferSyntax2 = LittleEndianImplicit"]
    lines += ["[[PresentationContexts]]", "[Restricted]"]
    lines += [f"PresentationContext{n} = {name}\\Uncompressed" for n, name in enumerate(sop_classes, start=1)]
    lines += ["[[Profiles]]", "[Restricted]", "PresentationContexts = Restricted"]
    profile, received, port = folder / "restricted.cfg", folder / "received", free_port()
    profile.write_text("\n".join(lines))
    received.mkdir()
    command = [program, "-xf", str(profile), "Restricted", "-od", str(received), "-aet", "PACS", str(port)]
    process = subprocess.Popen(command)
    try:
        wait_until(lambda: _is_open(port), "storescp listens")
        yield port, received
    finally:
        process.kill()
        process.wait()


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
