"""How long result objects take and how large they are, one by one and in sets: `pytest benchmarks/bench_objects.py -s`.

A made-up study of 300 x 512 x 512 with 15 outlines, effusions and a consolidation of half a lung among them. CI runs a
small one so that this file cannot rot.
"""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conformance import conftest as made_up
from running import ROOT

from dicom_gateway.pipeline import write_result
from dicom_gateway.report.key_images import render_key_images
from dicom_gateway.report.objects import ENCODERS, part_10
from dicom_gateway.report.outlines import outlines_of, read_outlines, write_outlines
from dicom_gateway.report.source_headers import read_source_headers
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.settings import Destination
from imaging.geometry import Geometry
from imaging.volume import Volume
from models.findings import Finding, FindingKind, Presence, Region

SLICES, SIZE = (300, 512) if not os.environ.get("CI") else (60, 128)
# Slice, row, column of the centre and radii, as fractions of the volume.
_EFFUSIONS = ((0.27, 0.65, 0.3, 0.2, 0.12, 0.14), (0.23, 0.65, 0.68, 0.17, 0.1, 0.12))
_CONSOLIDATION = (0.5, 0.49, 0.3, 0.3, 0.2, 0.12)
_HEART = (0.33, 0.4, 0.5, 0.2, 0.18, 0.2)
_NODULES = tuple((0.13 + 0.07 * n, 0.4 + 0.01 * n, 0.3, 0.02, 0.016, 0.016) for n in range(10))


def _ellipsoid(volume: Volume, fractions: tuple[float, ...]) -> Region:
    centre = np.array(fractions[:3]) * volume.hu.shape
    radii = np.array(fractions[3:]) * volume.hu.shape
    box = tuple(
        slice(max(0, int(c - r)), min(n, int(c + r) + 1))
        for c, r, n in zip(centre, radii, volume.hu.shape, strict=True)
    )
    grid = np.ogrid[box]
    inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radii, strict=True)) <= 1
    region = made_up.region(box, volume)
    return replace(region, mask=inside)


def _findings(volume: Volume) -> list[Finding]:
    lesions = {
        FindingKind.PULMONARY_NODULE: _NODULES,
        FindingKind.PLEURAL_EFFUSION: _EFFUSIONS,
        FindingKind.CONSOLIDATION: (_CONSOLIDATION,),
    }
    found = []
    for kind in FindingKind:
        region = _ellipsoid(volume, _HEART) if kind is FindingKind.CARDIOMEGALY else None
        found.append(made_up.finding(kind, Presence.PRESENT, region=region))
        found += [
            made_up.finding(kind, Presence.PRESENT, n, region=_ellipsoid(volume, fractions))
            for n, fractions in enumerate(lesions.get(kind, ()), start=1)
        ]
    return found


# In a process of its own, as delivery is: from nothing loaded to all files of the set, made of the stored record.
_SET = """
import sys, time
from pathlib import Path
from dicom_gateway.report.objects import encode_beside, part_10, read_result

loaded_s = time.process_time()
folder, ct, *names = sys.argv[1:]
result = read_result(Path(folder), sorted(Path(ct).iterdir()))
sizes = [len(part_10(ds)) for name in names for ds in encode_beside(names, name, result)]
# Of this program alone: ru_maxrss begins with what its parent had.
peak_kib = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
print(loaded_s, time.process_time(), int(peak_kib) / 1024, len(sizes), sum(sizes), max(sizes))
"""
_SETS = {
    "default": Destination.model_fields["objects"].default,
    "all but fallbacks": tuple(name for name in ENCODERS if not name.startswith(("sr_", "seg_"))),
    "default, label maps": ("sr", "seg_labelmap", "sc"),
}


@pytest.mark.parametrize("name", _SETS)
def test_a_set(name: str, tmp_path: Path, benchmark, capsys) -> None:
    volume, findings, files = _study(tmp_path / "ct")
    write_result(_result(volume, findings, files), tmp_path / "result")

    def in_a_process() -> str:
        command = [sys.executable, "-c", _SET, str(tmp_path / "result"), str(tmp_path / "ct"), *_SETS[name]]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout

    begun = time.perf_counter()
    told = benchmark.pedantic(in_a_process, rounds=1)
    wall_s = time.perf_counter() - begun
    loaded_s, cpu_s, peak, count, whole, largest = map(float, told.split())
    assert largest <= 20_000_000
    with capsys.disabled():
        print(f"\n{name}: {wall_s:.1f} s, {cpu_s:.1f} s of CPU ({loaded_s:.1f} of them loading), {peak:.0f} MiB peak")
        print(f"  {count:.0f} objects, {whole / 1e6:.1f} MB, the largest {largest / 1e6:.1f} MB")


def test_objects_one_by_one(tmp_path: Path, benchmark, capsys) -> None:
    volume, findings, files = _study(tmp_path)
    lines = []

    def timed(name, make):
        begun, worked = time.perf_counter(), time.process_time()
        made = make()
        content = made if isinstance(made, tuple) else ()
        sizes = [len(part_10(ds)) for ds in content]
        seconds, cpu_s = time.perf_counter() - begun, time.process_time() - worked
        lines.append(f"  {name:18s} {seconds:6.2f} s ({cpu_s:.2f} s of one core)  {sizes or ''}")
        assert all(size <= 20_000_000 for size in sizes)
        return made

    def all_objects() -> None:
        headers = timed("source headers", lambda: read_source_headers(files))
        outlines = outlines_of(findings, made_up.make_slices(volume))
        content = timed("write outlines", lambda: write_outlines(outlines))
        timed("read outlines", lambda: read_outlines(content))
        lines.append(f"  outlines.npz {len(content)} bytes")
        result = replace(_result(volume, findings, files), headers=headers)
        for name, encode in ENCODERS.items():
            timed(name, lambda encode=encode: encode(result))

    benchmark.pedantic(all_objects, rounds=1)
    with capsys.disabled():
        print(f"\n{SLICES} x {SIZE} x {SIZE}")
        print("\n".join(lines))


def _study(folder: Path) -> tuple[Volume, list[Finding], list[Path]]:
    folder.mkdir(exist_ok=True)
    shape = (SLICES, SIZE, SIZE)
    affine = np.array([[0, 0, 360 / SIZE, -180], [0, 360 / SIZE, 0, -180], [1.0, 0, 0, -310], [0, 0, 0, 1]])
    uids = tuple(f"{made_up.SERIES_UID}.{n + 1}" for n in range(SLICES))
    volume = Volume(
        np.full(shape, -1000, np.int16),
        Geometry(affine, shape, made_up.FRAME_UID),
        made_up.SERIES_UID,
        uids,
        (None,) * SLICES,
    )
    return volume, _findings(volume), made_up.write_ct(folder, SLICES, Rows=SIZE, Columns=SIZE)


def _result(volume: Volume, findings: list[Finding], files: list[Path]) -> StoredResult:
    return StoredResult(
        report=made_up.compose(volume, findings),
        headers=read_source_headers(files),
        outlines=outlines_of(findings, made_up.make_slices(volume)),
        key_images=render_key_images(findings, volume),
    )
