"""`onescan demo`: a phantom study through the real service, and what came back beside the truth."""

import json
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    CTImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    Verification,
)
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from dicom_gateway.report.wording import KIND_NAMES
from imaging.phantom import LesionRequest, Phantom, PlacedFinding, make_phantom
from imaging.phantom_dicom import write_phantom
from models.findings import FindingKind

PACS_AE_TITLE = "DEMOPACS"
FINDINGS = (
    LesionRequest(kind="pneumothorax", size=400.0, laterality="right"),
    LesionRequest(kind="arterial_wall_calcification", size=800.0),
)
# A measured size within this factor of the truth agrees: the research model outlines, it does not trace.
SIZE_FACTOR = 2.0
_START_TIMEOUT_S = 120.0
_REPORT_TIMEOUT_S = 420.0
_STUDY_LEVEL = "finding:"
_NOT_ASSESSED = "Not assessed"
_CALLS = ("Present", "Absent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an SR says about a kind: its presence and sides, and the volume in ml where one is given."""

    presence: str
    sides: frozenset[str]
    volume_ml: float | None


def run_demo(console: Console, *, once: bool, seed: int) -> int:
    """Run the demo; 0 when the report agrees with the truth, 1 when it does not or does not come.

    However it is told to end, its service ends with it and its data are removed.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="onescan-demo-") as name, _progress(console) as progress:
        folder = Path(name)
        task = progress.add_task("making a phantom patient")
        phantom = make_phantom(seed, FINDINGS)
        files = write_phantom(phantom, folder / "phantom", study_tag="demo")
        progress.update(task, description="starting a receiving PACS, the DICOM listener, the worker and the web page")
        received: queue.Queue[Dataset] = queue.Queue()
        with _receiving_pacs(received) as pacs_port, _service(folder, pacs_port) as service:
            progress.update(task, description=f"sending {len(files)} images to {service.dicom_port}")
            started = time.monotonic()
            _send(files, service.dicom_port)
            progress.update(task, description="waiting for the structured report to come back")
            sr = _first_sr(received, service)
            progress.stop()
            if sr is None:
                console.print("[red]No report came back.[/] The service said:\n" + service.log.read_text()[-3000:])
                return 1
            seconds = time.monotonic() - started
            agrees = _show(console, phantom, sr, seconds)
            if not once:
                page = f"http://127.0.0.1:{service.web_port}/studies/{sr.StudyInstanceUID}"
                console.print(
                    f"\nThe report page: [bold]{page}[/]\nCtrl-C ends the demo and removes its data.", soft_wrap=True
                )
                _wait_for_interrupt()
    return 0 if agrees else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Service:
    dicom_port: int
    web_port: int
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def _service(folder: Path, pacs_port: int) -> Iterator[_Service]:
    """`onescan serve` on free loopback ports with its data below `folder`."""
    dicom_port, web_port = _free_ports(2)
    settings = {
        "data_dir": str(folder / "data"),
        "dicom_host": "127.0.0.1",
        "dicom_port": dicom_port,
        "web_port": web_port,
        "calling_ae_titles": [PACS_AE_TITLE],
        "quiet_period_s": 2.0,
        "minimum_free_space_mb": 200,
    }
    config = folder / "onescan.toml"
    # JSON strings, numbers and arrays of strings are TOML too.
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    destination = {"name": "demo", "ae_title": PACS_AE_TITLE, "host": "127.0.0.1", "port": pacs_port}
    lines += ["[[destinations]]", *(f"{name} = {json.dumps(value)}" for name, value in destination.items())]
    config.write_text("\n".join(lines) + "\n")
    log = folder / "service.log"
    with log.open("wb") as sink:
        start = "from dicom_gateway.cli import main; main()"
        command = [sys.executable, "-P", "-c", start, "serve", "--config", str(config)]
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        service = _Service(dicom_port=dicom_port, web_port=web_port, process=process, log=log)
        _wait_until_up(service)
        yield service
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_up(service: _Service) -> None:
    """Until the DICOM port answers a C-ECHO and the web page answers. Raises RuntimeError when that fails."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and service.process.poll() is None:
        if _echo(service.dicom_port) and _answers(f"http://127.0.0.1:{service.web_port}/api/health"):
            return
        time.sleep(0.3)
    raise RuntimeError("the service did not start:\n" + service.log.read_text()[-3000:])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def _echo(port: int) -> bool:
    entity = AE(ae_title=PACS_AE_TITLE)
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", port, ae_title="ONESCAN")
    if not association.is_established:
        return False
    status = association.send_c_echo()
    association.release()
    return "Status" in status and status.Status == 0


@contextmanager
def _receiving_pacs(received: "queue.Queue[Dataset]") -> Iterator[int]:
    """A C-STORE SCP that puts what it receives into `received`; gives its port."""

    def on_store(event: Any) -> int:
        received.put(event.dataset)
        return 0

    entity = AE(ae_title=PACS_AE_TITLE)
    for context in (Verification, Comprehensive3DSRStorage, SegmentationStorage, SecondaryCaptureImageStorage):
        entity.add_supported_context(context)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    try:
        yield int(server.socket.getsockname()[1])
    finally:
        server.shutdown()


def _send(files: Sequence[Path], port: int) -> None:
    """C-STORE of all files in one association. Raises RuntimeError when an image is not taken."""
    entity = AE(ae_title=PACS_AE_TITLE)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", port, ae_title="ONESCAN")
    if not association.is_established:
        raise RuntimeError("the DICOM port refused the association")
    try:
        for file in files:
            status = association.send_c_store(pydicom.dcmread(file))
            if "Status" not in status or status.Status != 0:
                raise RuntimeError("the DICOM port refused an image")
    finally:
        association.release()


def _first_sr(received: "queue.Queue[Dataset]", service: _Service) -> Dataset | None:
    deadline = time.monotonic() + _REPORT_TIMEOUT_S
    while time.monotonic() < deadline and service.process.poll() is None:
        try:
            ds = received.get(timeout=1.0)
        except queue.Empty:
            continue
        if ds.SOPClassUID == Comprehensive3DSRStorage:
            return ds
    return None


def read_answers(sr: Dataset) -> Mapping[str, Answer]:
    """Kind -> what a Comprehensive 3D SR of ours says about it in the whole study."""
    answers: dict[str, Answer] = {}
    sides: dict[str, set[str]] = {}
    for group in _groups(sr):
        items = list(group.ContentSequence)
        tracking = next(i.TextValue for i in items if _name(i) == "Tracking Identifier")
        kind, _, lesion = tracking.removeprefix(_STUDY_LEVEL).partition(":")
        side = [_name(i, "ConceptCodeSequence") for i in _all(items) if _name(i) == "Laterality"]
        sides.setdefault(kind, set()).update(side[:1] if lesion else ())
        if not lesion:
            presence = [i for i in items if i.ValueType == "CODE" and _name(i) == "Presence of property"]
            volumes = [i for i in items if i.ValueType == "NUM" and _name(i) == "Volume" and _unit(i) == "ml"]
            answers[kind] = Answer(
                presence=_name(presence[0], "ConceptCodeSequence") if presence else "",
                sides=frozenset(),
                volume_ml=float(volumes[0].MeasuredValueSequence[0].NumericValue) if volumes else None,
            )
    return {
        kind: Answer(presence=a.presence, sides=frozenset(sides[kind]), volume_ml=a.volume_ml)
        for kind, a in answers.items()
    }


def _groups(sr: Dataset) -> Iterator[Dataset]:
    for section in sr.ContentSequence:
        if section.ValueType == "CONTAINER" and _name(section) == "Imaging Measurements":
            yield from section.ContentSequence


def _all(items: Sequence[Dataset]) -> Iterator[Dataset]:
    for item in items:
        yield item
        yield from _all(item.get("ContentSequence", ()))


def _unit(item: Dataset) -> str:
    return str(item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue)


def _name(item: Dataset, keyword: str = "ConceptNameCodeSequence") -> str:
    return str(item[keyword].value[0].CodeMeaning)


def agreement(placed: PlacedFinding | None, answer: Answer | None) -> tuple[bool, str]:
    """Whether the answer to one kind is right, and in words what is wrong. Not assessed is never right or wrong."""
    presence = answer.presence if answer else _NOT_ASSESSED
    if placed is None:
        return presence != "Present", "false finding" if presence == "Present" else ""
    if answer is None or presence != "Present":
        return False, "missed"
    if placed.laterality and placed.laterality.capitalize() not in answer.sides:
        return False, "wrong side"
    if answer.volume_ml and placed.volume_ml:
        ratio = answer.volume_ml / placed.volume_ml
        if not 1 / SIZE_FACTOR <= ratio <= SIZE_FACTOR:
            return False, f"size off by a factor of {max(ratio, 1 / ratio):.1f}"
    return True, ""


def _show(console: Console, phantom: Phantom, sr: Dataset, seconds: float) -> bool:
    truth = {placed.kind: placed for placed in phantom.truth}
    answers = read_answers(sr)
    table = Table("finding", "placed", "reported", "", title="The structured report beside the truth of the phantom")
    right, unanswered = [], []
    for kind, answer in answers.items():
        placed = truth.get(kind)
        name = KIND_NAMES[FindingKind(kind)]
        if placed is None and answer.presence == _NOT_ASSESSED:
            unanswered.append(name)
            continue
        ok, problem = agreement(placed, answer)
        right.append(ok)
        verdict = f"[red]{problem}[/]" if not ok else "[green]right[/]" if answer.presence in _CALLS else "left open"
        table.add_row(name, _placed_words(placed), _answer_words(answer), verdict)
    console.print(table)
    if unanswered:
        console.print(f"Not assessed by this model: {', '.join(unanswered)}.", highlight=False)
    console.print(f"The report came back {seconds:.0f} s after the first image was sent.")
    console.print("[bold red]Research use only. Not a medical device.[/]")
    return bool(right) and all(right) and set(truth) <= set(answers)


def _placed_words(placed: PlacedFinding | None) -> str:
    if placed is None:
        return "-"
    volume = f", {placed.volume_ml:.1f} ml" if placed.volume_ml and placed.size_unit != "ml" else ""
    unit = "" if placed.size_unit == "1" else f" {placed.size_unit}"
    return f"{placed.laterality or ''} {placed.size:.0f}{unit}{volume}".strip()


def _answer_words(answer: Answer) -> str:
    volume = f"{answer.volume_ml:.1f} ml" if answer.volume_ml and answer.presence == "Present" else ""
    return " ".join(filter(None, (answer.presence.lower(), *sorted(s.lower() for s in answer.sides), volume)))


def _free_ports(count: int) -> tuple[int, ...]:
    """Loopback ports nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return tuple(int(one.getsockname()[1]) for one in sockets)
    finally:
        for one in sockets:
            one.close()


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    )


def _wait_for_interrupt() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass
