"""Where the seconds and megabytes of one study go: `pytest benchmarks/bench_analyze.py -s`.

300 slices of 512 x 512, uncompressed: the whole command in a process of its own, start-up and all, then its stages.
Seconds of wall and of processor stand side by side, since only the latter mean something on a machine that does other
things too. The peer is SimpleITK's ImageSeriesReader on the same files in the same run. CI runs this file once with a
small phantom so that it cannot rot.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
import SimpleITK as sitk

from dicom_gateway.pipeline import process_study, write_result
from imaging.headers import read_studies
from imaging.phantom import LesionRequest, make_phantom
from imaging.phantom_dicom import write_phantom
from models import BUNDLED_MODEL_DIR
from models.detect import Detector
from models.session import ModelSession

_SMALL = bool(os.environ.get("CI"))
SPACING_MM, SHAPE = ((4.0, 1.4, 1.4), None) if _SMALL else ((1.0, 0.7, 0.7), (300, 512, 512))
LESIONS = (
    LesionRequest(kind="pleural_effusion", size=300.0),
    LesionRequest(kind="pulmonary_nodule", size=9.0),
    LesionRequest(kind="pulmonary_nodule", size=14.0),
    LesionRequest(kind="ground_glass_opacity", size=60.0),
)
COMMAND = ("-c", "from dicom_gateway.cli import app; app()", "analyze")
START = ("-c", "import dicom_gateway.cli, dicom_gateway.analyze")
# A process inherits the highest memory of the one that starts it: a small one stands between.
_LAUNCHER = """
import resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
wall_s = time.perf_counter() - started
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ...]]:
    phantom = make_phantom(3, LESIONS, spacing_mm=SPACING_MM, shape=SHAPE)
    yield write_phantom(phantom, tmp_path_factory.mktemp("phantom"))


def test_whole_command(files: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = _spent(*START)
    whole = _spent(*COMMAND, str(files[0].parent), "--out", str(tmp_path))
    assert list(tmp_path.glob("*/report.json"))
    with capsys.disabled():
        print(f"\n{len(files)} slices of a phantom; {os.cpu_count()} processors")
        print("                      wall s   CPU s    MiB")
        for what, (wall_s, cpu_s, peak_mib) in (("onescan analyze", whole), ("of it start-up", start)):
            print(f"  {what:18s} {wall_s:7.2f} {cpu_s:7.2f} {peak_mib:6.0f}")


def _spent(*arguments: str) -> tuple[float, float, float]:
    """Seconds of wall and processor, and the highest resident memory in MiB, of a Python process."""
    answer = subprocess.run([sys.executable, "-c", _LAUNCHER, *arguments], stdout=subprocess.PIPE, check=True).stdout
    wall_s, cpu_s, peak_mib = map(float, answer.split())
    return wall_s, cpu_s, peak_mib


def test_stages(files: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = Detector(ModelSession.open(BUNDLED_MODEL_DIR))
    peer = _now()
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    reader.Execute()
    begun = [("SimpleITK reads", *peer), ("headers", *_now())]
    (study,), _ = read_studies(files)
    result = process_study(
        study,
        detector,
        revision=1,
        created=datetime.now(UTC),
        on_stage=lambda stage: begun.append((stage, *_now())),
    )
    begun.append(("write", *_now()))
    write_result(result, tmp_path / "result")
    begun.append(("end", *_now()))
    assert result.report.outcome == "reported"
    with capsys.disabled():
        print("\n                      wall s   CPU s")
        for (stage, wall_s, cpu_s), (_, wall_end_s, cpu_end_s) in pairwise(begun):
            print(f"  {stage:18s} {wall_end_s - wall_s:7.2f} {cpu_end_s - cpu_s:7.2f}")
            if stage == "analyse":
                for part in ("preprocess", "infer", "nodules", "measure"):
                    print(f"    {part:16s} {result.report.timings_s[part]:7.2f}")
        print(f"  highest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def _now() -> tuple[float, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), used.ru_utime + used.ru_stime
