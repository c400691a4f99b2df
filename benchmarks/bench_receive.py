"""How fast images are taken from DCMTK's storescu, beside other receivers: `pytest benchmarks/bench_receive.py -s`.

Every receiver is started fresh for each cell, their order is shuffled in each repeat, and the number of images that
arrived is checked. CPU time an image is the steadier figure where other work goes on. Who promises what:

- onescan answers when the bytes and the folder are synced and the index row is written;
- Orthanc (Debian's package, SQLite) syncs the file before it answers, not its index;
- pynetdicom is the documented handler (`event.dataset.save_as`), without sync or index;
- storescp and `storescp --fork +B` neither check, sync nor index.

"nodelay" is TCP_NODELAY=1 in that server's environment. The sender leaves Nagle's algorithm on, as it is shipped.
BENCH_IMAGES and BENCH_REPEATS change the size.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from factories import save_ct
from running import dcmtk, free_port, make_settings, role, wait_until

IS_SMOKE = bool(os.environ.get("CI"))
IMAGES = int(os.environ.get("BENCH_IMAGES", "4" if IS_SMOKE else "300"))
REPEATS = int(os.environ.get("BENCH_REPEATS", "1" if IS_SMOKE else "5"))
ASSOCIATIONS = (2,) if IS_SMOKE else (1, 4, 8)
NODELAY = {"TCP_NODELAY": "1"}
SAMPLED_EVERY_S = 0.05
# The handler of pynetdicom's documentation, "Storage SCP" example.
PYNETDICOM = """
import sys, uuid
from pynetdicom import AE, AllStoragePresentationContexts, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.sop_class import Verification
port, folder = int(sys.argv[1]), sys.argv[2]
def store(event):
    dataset = event.dataset
    dataset.file_meta = event.file_meta
    dataset.save_as(f"{folder}/{dataset.SOPInstanceUID}.dcm", enforce_file_format=True)
    return 0x0000
entity = AE("PYNETDICOM")
for context in AllStoragePresentationContexts:
    entity.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
entity.add_supported_context(Verification)
entity.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, store)])
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """One receiver once: images a second, CPU milliseconds an image, peak resident memory."""

    rate: float
    cpu_ms: float
    peak_mb: float


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """A folder an association: IMAGES slices of 512 x 512 with the noise of a CT, uncompressed and JPEG-LS."""
    if dcmtk("storescu") is None or dcmtk("storescp") is None or shutil.which("Orthanc") is None:
        pytest.skip("DCMTK or Orthanc is not installed")
    made: dict[str, list[Path]] = {"uncompressed": [], "JPEG-LS": []}
    root = tmp_path_factory.mktemp("studies")
    for study in range(max(ASSOCIATIONS)):
        for syntax, folders in made.items():
            folder = root / f"{syntax}{study}"
            folder.mkdir()
            folders.append(folder)
        for number in range(IMAGES):
            noise = np.random.default_rng(1000 * study + number).normal(0, 30, (512, 512)).astype(np.int16)
            uid = f"1.2.826.0.1.3680043.10.1.{study}"
            values = {"StudyInstanceUID": uid, "SeriesInstanceUID": f"{uid}.1", "InstanceNumber": number + 1}
            values |= {"SOPInstanceUID": f"{uid}.1.{number}", "Rows": 512, "Columns": 512}
            plain = made["uncompressed"][study] / f"{number}.dcm"
            save_ct(plain, PixelData=noise.tobytes(), **values)
            encode = [str(dcmtk("dcmcjpls")), str(plain), str(made["JPEG-LS"][study] / f"{number}.dcm")]
            subprocess.run(encode, check=True)
    return made


# A started receiver: its process, port, AE title, and the folder that it keeps images in.
Running = AbstractContextManager[tuple[psutil.Process, int, str, Path]]
Start = Callable[[Path, bool], Running]


@contextmanager
def _onescan(work: Path, _nodelay: bool) -> Iterator[tuple[psutil.Process, int, str, Path]]:
    settings = make_settings(work)
    with role(settings, "listener") as process:
        yield psutil.Process(process.pid), settings.dicom_port, settings.ae_title, settings.studies_dir


@contextmanager
def _started(
    command: list[str], port: int, nodelay: bool, work: Path
) -> Iterator[tuple[psutil.Process, int, str, Path]]:
    environment = {**os.environ, **(NODELAY if nodelay else {})}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _listens(port), f"{command[0]} listens")
            yield psutil.Process(process.pid), port, "ANY", work
        finally:
            process.kill()


def _storescp(*options: str) -> Start:
    def start(work: Path, nodelay: bool) -> Running:
        port = free_port()
        return _started([str(dcmtk("storescp")), "+xa", *options, "-od", str(work), str(port)], port, nodelay, work)

    return start


def _pynetdicom(work: Path, nodelay: bool) -> Running:
    port = free_port()
    return _started([sys.executable, "-c", PYNETDICOM, str(port), str(work)], port, nodelay, work)


def _orthanc(work: Path, nodelay: bool) -> Running:
    port = free_port()
    values = {"DicomAet": "ANY", "DicomPort": port, "HttpPort": free_port(), "StorageDirectory": str(work)}
    settings = work / "orthanc.json"
    settings.write_text(json.dumps(values | {"IndexDirectory": str(work), "RemoteAccessAllowed": False}))
    return _started(["Orthanc", str(settings)], port, nodelay, work)


RECEIVERS: dict[str, tuple[Start, bool]] = {
    "onescan": (_onescan, False),
    "Orthanc as shipped": (_orthanc, False),
    "Orthanc nodelay": (_orthanc, True),
    "pynetdicom documented": (_pynetdicom, False),
    "storescp as shipped": (_storescp(), False),
    "storescp --fork +B nodelay": (_storescp("--fork", "+B", "-pdu", "131072"), True),
}


def _listens(port: int) -> bool:
    return subprocess.run([str(dcmtk("echoscu")), "127.0.0.1", str(port)], capture_output=True).returncode == 0


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a receiver and of the children it had, which end first."""
    return sum(wait_until(lambda: _accounts(process), "children of the receiver have ended"))


def _accounts(process: psutil.Process) -> list[float]:
    """CPU seconds of a receiver with the children it has waited for, and of those it has not; [] while one runs.

    A forking server of which two children end at once may wait for one alone, and a child has no account of its own
    any more when it was waited for. Hence the children are listed first: none is missed, and none counted twice.
    """
    try:
        children = process.children(recursive=True)
        own = process.cpu_times()
        if any(child.status() != psutil.STATUS_ZOMBIE for child in children):
            return []
        waited_for = own.children_user + own.children_system
        return [own.user + own.system + waited_for, *(sum(child.cpu_times()[:2]) for child in children)]
    except psutil.NoSuchProcess:
        return []


@contextmanager
def _peak_mb(process: psutil.Process) -> Iterator[list[float]]:
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLED_EVERY_S):
            try:
                peak[0] = max(peak[0], sum(p.memory_info().rss for p in _tree(process)) / 1e6)
            except psutil.NoSuchProcess:
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _measure(receiver: str, folders: list[Path], work: Path) -> Cell:
    start, nodelay = RECEIVERS[receiver]
    work.mkdir()
    with start(work, nodelay) as (process, port, called, kept), _peak_mb(process) as peak:
        before, started = _cpu_s(process), time.perf_counter()
        options = ["-xt"] if "JPEG-LS" in folders[0].name else []
        # A receiver that serves one sender after another is waited for longer than the usual 30 s.
        command = [str(dcmtk("storescu")), *options, "-ta", "600", "-aec", called, "+sd", "127.0.0.1", str(port)]
        senders = [
            subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for folder in folders
        ]
        assert [sender.wait() for sender in senders] == [0] * len(folders)
        seconds, cpu_s = time.perf_counter() - started, _cpu_s(process) - before
        least = 100_000
        arrived = sum(1 for file in kept.rglob("*") if file.is_file() and file.stat().st_size > least)
    images = IMAGES * len(folders)
    assert arrived >= images, f"{receiver} kept {arrived} of {images}"
    shutil.rmtree(work)
    return Cell(images / seconds, 1000 * cpu_s / images, peak[0])


@pytest.mark.parametrize("syntax", ["uncompressed", "JPEG-LS"])
@pytest.mark.parametrize("associations", ASSOCIATIONS)
def test_receive_beside_others(studies, associations: int, syntax: str, tmp_path: Path, benchmark, capsys) -> None:
    measured: dict[str, list[Cell]] = {name: [] for name in RECEIVERS}

    def interleaved() -> None:
        for repeat in range(REPEATS):
            for name in random.Random(repeat).sample(list(RECEIVERS), len(RECEIVERS)):
                cell = _measure(name, studies[syntax][:associations], tmp_path / f"{repeat}{name}".replace(" ", "_"))
                measured[name].append(cell)

    benchmark.pedantic(interleaved, rounds=1)
    with capsys.disabled():
        print(f"\n{IMAGES} images of 512 x 512, {syntax}, {associations} associations; median of {REPEATS}")
        print(f"  {'':28s}images/s [least-most]   CPU ms an image   peak MB   onescan is faster   CPU ratio")
        for name, cells in measured.items():
            print(f"  {name:28s}{_row(measured['onescan'], cells)}")


def _row(ours: list[Cell], theirs: list[Cell]) -> str:
    rates = [cell.rate for cell in theirs]
    faster = [mine.rate / other.rate for mine, other in zip(ours, theirs, strict=True)]
    # A process that took less than a tick of the clock has used no time that could be compared.
    cpu = [mine.cpu_ms / max(other.cpu_ms, 0.01) for mine, other in zip(ours, theirs, strict=True)]
    return (
        f"{statistics.median(rates):8.0f} [{min(rates):4.0f}-{max(rates):4.0f}]"
        f"{statistics.median(cell.cpu_ms for cell in theirs):16.2f}{max(cell.peak_mb for cell in theirs):10.0f}"
        f"{statistics.median(faster):10.1f} [{min(faster):.1f}-{max(faster):.1f}]{statistics.median(cpu):12.2f}"
    )
