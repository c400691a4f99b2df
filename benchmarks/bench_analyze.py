"""Where the seconds and megabytes of one study go: `pytest benchmarks/bench_analyze.py -s`.

The peer is SimpleITK's ImageSeriesReader reading the same files in the same run: times are given as multiples
of it, since machines differ. CI runs this file once with a small phantom so that it cannot rot.
"""

import os
import resource
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import SimpleITK as sitk

from dicom_gateway.pipeline import process_study, write_result
from dicom_gateway.settings import BUNDLED_MODEL_DIR
from imaging.headers import read_studies
from imaging.phantom import LesionRequest, make_phantom
from imaging.phantom_dicom import write_phantom
from models.detect import Detector
from models.session import ModelSession

SPACING_MM = (1.0, 0.7, 0.7) if not os.environ.get("CI") else (4.0, 1.4, 1.4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    phantom = make_phantom(3, [LesionRequest(kind="pleural_effusion", size=300.0)], spacing_mm=SPACING_MM)
    return write_phantom(phantom, tmp_path_factory.mktemp("phantom"))


def test_analyze_split(files: tuple[Path, ...], tmp_path: Path, benchmark, capsys) -> None:
    detector = Detector(ModelSession.open(BUNDLED_MODEL_DIR))
    started = time.perf_counter()
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    reader.Execute()
    peer_s = time.perf_counter() - started

    def analyse():
        begun = time.perf_counter()
        (study,), _ = read_studies(files)
        headers_s = time.perf_counter() - begun
        result = process_study(study, detector, revision=1, created=datetime.now(UTC))
        write_result(result, tmp_path / "result")
        return headers_s, time.perf_counter() - begun, result

    headers_s, total_s, result = benchmark.pedantic(analyse, rounds=1)
    assert result.report.outcome == "reported"
    with capsys.disabled():
        print(f"\n{len(files)} slices; SimpleITK reads them in {peer_s:.2f} s; stages in s and as multiples of that")
        for stage, seconds in {"headers": headers_s, **result.report.timings_s, "total": total_s}.items():
            print(f"  {stage:12s} {seconds:7.2f} {seconds / peer_s:7.2f} x")
        print(f"  peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
