"""How long after a study's last image its report is begun, and made: `pytest benchmarks/bench_complete.py -s`.

One phantom is sent by DCMTK's storescu over one association to the listener and worker, with the periods that the
product ships, and to Debian's Orthanc with its own StableAge, after which it says `StableStudy`. Seconds count from
the end of storescu. CI shortens all of the periods.
"""

import os
import statistics
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from orthanc import orthanc
from running import dcmtk, make_settings, role, wait_until

from dicom_gateway.settings import Settings
from dicom_gateway.store.schema import open_database, report
from imaging.phantom import make_phantom
from imaging.phantom_dicom import write_phantom

IS_SMOKE = bool(os.environ.get("CI"))
REPEATS = int(os.environ.get("BENCH_REPEATS", "1" if IS_SMOKE else "3"))
SHIPPED = {name: Settings.model_fields[name].default for name in ("quiet_period_s", "missing_images_wait_s")}
ORTHANC_STABLE_AGE: dict[str, Any] = {"StableAge": 1} if IS_SMOKE else {}
PATIENCE_S = 180.0


def test_complete_beside_orthanc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if dcmtk("storescu") is None:
        pytest.skip("DCMTK is not installed")
    begun, made, stable = [], [], []
    for repeat in range(REPEATS):
        folder = tmp_path / str(repeat)
        files = write_phantom(make_phantom(repeat, spacing_mm=(5.0, 1.6, 1.6)), folder / "phantom")
        after = _onescan(folder, files[0].parent)
        begun.append(after[0])
        made.append(after[1])
        stable.append(_orthanc(folder, files[0].parent))
    with capsys.disabled():
        print(f"\nseconds after the last image, median [least-most] of {REPEATS}")
        for what, seconds in (("onescan begins", begun), ("onescan has a report", made), ("Orthanc: stable", stable)):
            print(f"  {what:20s}{statistics.median(seconds):7.1f} [{min(seconds):.1f}-{max(seconds):.1f}]")


def _onescan(folder: Path, images: Path) -> tuple[float, float]:
    """Seconds until the analysis begins, and until its report is stored."""
    settings = make_settings(folder / "onescan", **({} if IS_SMOKE else SHIPPED))
    engine = open_database(settings.database)
    try:
        with ExitStack() as running:
            running.enter_context(role(settings, "listener"))
            running.enter_context(role(settings, "worker"))
            ended = _send(images, settings.ae_title, settings.dicom_port)

            def report_begun() -> float | None:
                with engine.connect() as connection:
                    return connection.scalar(sa.select(report.c.created))

            begun = wait_until(report_begun, "a report", PATIENCE_S)
            return begun - ended, time.time() - ended
    finally:
        engine.dispose()


def _orthanc(folder: Path, images: Path) -> float:
    """Seconds until Orthanc calls the study stable."""
    with orthanc(folder, **ORTHANC_STABLE_AGE) as (rest, port):
        ended = _send(images, "ORTHANC", port)
        wait_until(lambda: _is_stable(rest), "a stable study", PATIENCE_S)
        return time.time() - ended


def _is_stable(rest: str) -> bool:
    changes = httpx.get(f"{rest}/changes?limit=1000").json()["Changes"]
    return any(change["ChangeType"] == "StableStudy" for change in changes)


def _send(images: Path, called: str, port: int) -> float:
    """Send a folder; the time at which storescu ended."""
    command = [str(dcmtk("storescu")), "-aec", called, "+sd", "127.0.0.1", str(port), str(images)]
    subprocess.run(command, check=True, capture_output=True)
    return time.time()
