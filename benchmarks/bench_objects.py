"""How long each result object takes and how large it is: `pytest benchmarks/bench_objects.py -s`.

A made-up study of 300 x 512 x 512 with 15 outlines, effusions and a consolidation of half a lung among them. CI runs a
small one so that this file cannot rot.
"""

import os
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from conformance import conftest as made_up

from dicom_gateway.report.key_images import render_key_images
from dicom_gateway.report.objects import ENCODERS, part_10
from dicom_gateway.report.outlines import outlines_of, read_outlines, write_outlines
from dicom_gateway.report.source_headers import read_source_headers
from dicom_gateway.report.stored import StoredResult
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


def test_result_objects(tmp_path: Path, benchmark, capsys) -> None:
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
    findings = _findings(volume)
    files = made_up.write_ct(tmp_path, SLICES, Rows=SIZE, Columns=SIZE)
    lines = []

    def timed(name, make):
        begun, worked = time.perf_counter(), time.process_time()
        made = make()
        content = made if isinstance(made, tuple) else ()
        sizes = [len(part_10(ds)) for ds in content]
        seconds, cpu_s = time.perf_counter() - begun, time.process_time() - worked
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        lines.append(f"  {name:18s} {seconds:6.2f} s ({cpu_s:.2f} s of one core)  {peak:5.0f} MiB peak  {sizes or ''}")
        assert all(size <= 20_000_000 for size in sizes)
        return made

    def all_objects() -> None:
        headers = timed("source headers", lambda: read_source_headers(files))
        outlines = outlines_of(findings, made_up.make_slices(volume))
        content = timed("write outlines", lambda: write_outlines(outlines))
        outlines = timed("read outlines", lambda: read_outlines(content))
        lines.append(f"  outlines.npz {len(content)} bytes")
        result = StoredResult(
            report=made_up.compose(volume, findings),
            headers=headers,
            outlines=outlines,
            key_images=render_key_images(findings, volume),
        )
        for name, encode in ENCODERS.items():
            timed(name, lambda encode=encode: encode(result))

    benchmark.pedantic(all_objects, rounds=1)
    with capsys.disabled():
        print(f"\n{SLICES} x {SIZE} x {SIZE}")
        print("\n".join(lines))
