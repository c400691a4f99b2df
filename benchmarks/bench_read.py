"""How fast a received series becomes a volume: `pytest benchmarks/bench_read.py -s`.

Every way reads the same files in the same run, in an order that is shuffled anew in each repeat; times are given as
multiples of reading the bytes of those files, since machines differ. "bytes" forgets each file at once and so never
leaves the processor's cache, "bytes kept" holds them all as a volume does. "pydicom" is dcmread and pixel_array of each
file, rescaled and stacked; SimpleITK reads a list of files in order already. "onescan" is what the pipeline does
from the files: headers of all, then the volume, with processes for decoding where they are needed. CPU is that of this
process and of its children. The files are in the page cache. CI runs this once with few slices so that it cannot rot.
"""

import os
import random
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import SimpleITK as sitk
from factories import make_ct_dataset
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from imaging.headers import read_studies
from imaging.volume import load_volume

CI = bool(os.environ.get("CI"))
SLICES = {ExplicitVRLittleEndian: 300, RLELossless: 300, JPEGLSLossless: 300, JPEG2000Lossless: 100}
REPEATS = 5 if not CI else 1
_PRIVATE_GROUPS = (0x0019, 0x0021, 0x0029)


@pytest.fixture(scope="module", params=SLICES, ids=lambda uid: uid.name)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("series")
    count = SLICES[request.param] if not CI else 4
    return [_write(folder / f"{index:04d}.dcm", index, request.param) for index in range(count)]


def _write(file: Path, index: int, syntax: str) -> Path:
    """A slice with the noise of a CT in a round field of view, and a header of a scanner's length."""
    rows, columns = np.mgrid[:512, :512] - 256
    inside = np.hypot(rows, columns) < 250
    stored = np.where(inside, np.random.default_rng(index).normal(1040, 12, (512, 512)), 0).astype(np.int16)
    ds = make_ct_dataset(InstanceNumber=index + 1, Rows=512, Columns=512, PixelData=stored.tobytes())
    for group in _PRIVATE_GROUPS:
        block = ds.private_block(group, "ONESCAN BENCHMARK", create=True)
        for element in range(24):
            block.add_new(element, "LO", f"a value of the vendor {element}")
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "77477000", "SCT", "Computed tomography"
    ds.ProcedureCodeSequence = [code]
    if syntax == RLELossless:
        ds.compress(RLELossless, generate_instance_uid=False)
    elif syntax != ExplicitVRLittleEndian:
        unsigned = stored.view(np.uint16)
        encoded = (
            imagecodecs.jpegls_encode(unsigned)
            if syntax == JPEGLSLossless
            else imagecodecs.jpeg2k_encode(stored, level=0, codecformat="j2k", reversible=True)
        )
        ds.PixelData = encapsulate([encoded])
        ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(file, enforce_file_format=True)
    return file


def _bytes(files: list[Path]) -> None:
    for file in files:
        file.read_bytes()


def _bytes_kept(files: list[Path]) -> None:
    _ = [file.read_bytes() for file in files]


def _onescan(files: list[Path]) -> npt.NDArray[np.int16]:
    ((study,), _) = read_studies(files)
    return load_volume(study.series[0]).hu


def _simpleitk(files: list[Path]) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    return reader.Execute()


def _pydicom(files: list[Path]) -> npt.NDArray[np.integer]:
    data_sets = [pydicom.dcmread(file) for file in files]
    return np.stack([ds.pixel_array * int(ds.RescaleSlope) + int(ds.RescaleIntercept) for ds in data_sets])


READERS: dict[str, Callable[[list[Path]], npt.NDArray[np.integer] | sitk.Image | None]] = {
    "bytes": _bytes,
    "bytes kept": _bytes_kept,
    "onescan": _onescan,
    "SimpleITK": _simpleitk,
    "pydicom": _pydicom,
}


def _cpu_s() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def test_reading_beside_its_peers(files: list[Path], benchmark, capsys) -> None:
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in READERS}
    expected = _pydicom(files)

    def interleaved() -> None:
        for _ in range(REPEATS):
            for name in random.sample(list(READERS), len(READERS)):
                started, cpu_s = time.perf_counter(), _cpu_s()
                found = READERS[name](files)
                measured[name].append((time.perf_counter() - started, _cpu_s() - cpu_s))
                if found is not None:
                    voxels = sitk.GetArrayViewFromImage(found) if isinstance(found, sitk.Image) else found
                    np.testing.assert_array_equal(voxels, expected)

    benchmark.pedantic(interleaved, rounds=1)
    with capsys.disabled():
        print(f"\n{len(files)} slices, {pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID.name}, {REPEATS} repeats")
        print(f"  {'':10s} {'wall ms [min-max]':>22s} {'x bytes':>8s} {'CPU ms':>8s} {'x bytes':>8s}")
        medians = {name: [statistics.median(v) * 1000 for v in zip(*m, strict=True)] for name, m in measured.items()}
        for name, (wall_ms, cpu_ms) in medians.items():
            walls_ms = [wall_s * 1000 for wall_s, _ in measured[name]]
            spread = f"{wall_ms:.0f} [{min(walls_ms):.0f}-{max(walls_ms):.0f}]"
            times_wall, times_cpu = wall_ms / medians["bytes"][0], cpu_ms / medians["bytes"][1]
            print(f"  {name:10s} {spread:>22s} {times_wall:8.1f} {cpu_ms:8.0f} {times_cpu:8.1f}")
