"""How fast images are taken from DCMTK's storescu: `pytest benchmarks/bench_receive.py -s`.

The peer is DCMTK's storescp with TCP_NODELAY on both sides, in the same run. It neither checks, syncs nor indexes what
it writes; our listener does all three before it answers.
"""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from factories import save_ct
from running import dcmtk, free_port, make_settings, role, wait_until

IMAGES = 200 if not os.environ.get("CI") else 10
REPEATS = 5 if not os.environ.get("CI") else 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """512 x 512 slices with the noise of a CT."""
    if dcmtk("storescu") is None or dcmtk("storescp") is None:
        pytest.skip("DCMTK is not installed")
    made = tmp_path_factory.mktemp("images")
    for index in range(IMAGES):
        pixels = np.random.default_rng(index).normal(0, 30, (512, 512)).astype(np.int16)
        save_ct(made / f"{index}.dcm", InstanceNumber=index + 1, Rows=512, Columns=512, PixelData=pixels.tobytes())
    return made


def _send_s(folder: Path, port: int, called: str) -> float:
    command = [str(dcmtk("storescu")), "-aet", "CT1", "-aec", called, "+sd", "127.0.0.1", str(port), str(folder)]
    started = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "TCP_NODELAY": "1"}, capture_output=True)
    return time.perf_counter() - started


def _ours(folder: Path, work: Path) -> tuple[float, float]:
    """Seconds, and CPU seconds of the listener."""
    settings = make_settings(work)
    with role(settings, "listener") as process:
        before = sum(psutil.Process(process.pid).cpu_times()[:2])
        seconds = _send_s(folder, settings.dicom_port, settings.ae_title)
        return seconds, sum(psutil.Process(process.pid).cpu_times()[:2]) - before


def _storescp(folder: Path, work: Path) -> tuple[float, float]:
    port = free_port()
    command = [str(dcmtk("storescp")), "-od", str(work), str(port)]
    with subprocess.Popen(command, env={**os.environ, "TCP_NODELAY": "1"}) as process:
        try:
            wait_until(lambda: _listens(port), "storescp listens")
            before = sum(psutil.Process(process.pid).cpu_times()[:2])
            seconds = _send_s(folder, port, "STORESCP")
            return seconds, sum(psutil.Process(process.pid).cpu_times()[:2]) - before
        finally:
            process.kill()


def _listens(port: int) -> bool:
    return (
        subprocess.run([str(dcmtk("echoscu")), "127.0.0.1", str(port)], capture_output=True, check=False).returncode
        == 0
    )


def test_receive_beside_storescp(folder: Path, tmp_path: Path, benchmark, capsys) -> None:
    receivers: dict[str, Callable[[Path, Path], tuple[float, float]]] = {"onescan": _ours, "storescp": _storescp}
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in receivers}

    def interleaved() -> None:
        for repeat in range(REPEATS):
            for name, receive in receivers.items():
                work = tmp_path / f"{name}{repeat}"
                work.mkdir()
                measured[name].append(receive(folder, work))

    benchmark.pedantic(interleaved, rounds=1)
    ratios = [ours[0] / theirs[0] for ours, theirs in zip(measured["onescan"], measured["storescp"], strict=True)]
    with capsys.disabled():
        print(f"\n{IMAGES} images of 512 x 512, one association, TCP_NODELAY on, {REPEATS} interleaved repeats")
        for name, values in measured.items():
            rate = IMAGES / np.median([seconds for seconds, _ in values])
            cpu_ms = 1000 * np.median([cpu for _, cpu in values]) / IMAGES
            print(f"  {name:9s} {rate:6.0f} images/s  {cpu_ms:5.1f} ms CPU an image")
        low, middle, high = min(ratios), np.median(ratios), max(ratios)
        print(f"  time of onescan (durable, indexed) / storescp (neither): {middle:.1f} [{low:.1f}-{high:.1f}]")
    assert all(seconds > 0 for values in measured.values() for seconds, _ in values)
