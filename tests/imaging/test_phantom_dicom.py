"""Phantom files are valid DICOM by the judgement of dciodvfy, and say what the volume says."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import UID, JPEG2000Lossless, RLELossless

from imaging.phantom import LesionRequest, Phantom, make_phantom
from imaging.phantom_dicom import write_localizer, write_phantom, write_truth
from imaging.phantom_enhanced import write_enhanced_phantom

DCIODVFY = shutil.which("dciodvfy", path=str(Path(sys.executable).parent)) or shutil.which("dciodvfy")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "contrast"])
def phantom(request: pytest.FixtureRequest) -> Phantom:
    lesion = LesionRequest(kind="pleural_effusion", size=200.0)
    return make_phantom(8, [lesion], spacing_mm=(10.0, 4.0, 4.0), contrast=request.param, kernel="sharp")


def errors(path: Path) -> list[str]:
    if DCIODVFY is None:
        pytest.skip("dciodvfy is not installed")
    done = subprocess.run([DCIODVFY, str(path)], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def test_every_file_is_valid(phantom: Phantom, tmp_path: Path) -> None:
    paths = write_phantom(phantom, tmp_path)
    localizer = write_localizer(phantom, tmp_path)
    enhanced = write_enhanced_phantom(phantom, tmp_path / "enhanced.dcm")
    assert len(paths) == phantom.volume.hu.shape[0]
    assert [errors(path) for path in (paths[0], paths[-1], localizer, enhanced)] == [[], [], [], []]


def test_the_files_hold_the_volume(phantom: Phantom, tmp_path: Path) -> None:
    for index, path in enumerate(write_phantom(phantom, tmp_path)):
        dataset = pydicom.dcmread(path)
        hu = dataset.pixel_array.astype(np.int32) * int(dataset.RescaleSlope) + int(dataset.RescaleIntercept)
        assert np.array_equal(hu, phantom.volume.hu[index])
        assert dataset.SOPInstanceUID == phantom.volume.sop_instance_uids[index]
        corner = phantom.volume.geometry.index_to_patient((index, 0, 0))
        assert np.allclose([float(v) for v in dataset.ImagePositionPatient], corner, atol=1e-4)
    assert dataset.SeriesInstanceUID == phantom.volume.series_instance_uid


def test_the_enhanced_image_holds_the_volume(phantom: Phantom, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(write_enhanced_phantom(phantom, tmp_path / "enhanced.dcm"))
    assert np.array_equal(dataset.pixel_array.astype(np.int32) - 1024, phantom.volume.hu)
    first = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    assert np.allclose(first, phantom.volume.geometry.index_to_patient((0, 0, 0)))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=["rle", "jpeg2000"])
def test_compressed_files_decode_to_the_same_pixels(phantom: Phantom, tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    if syntax == JPEG2000Lossless:
        pytest.importorskip("openjpeg", reason="pydicom has no JPEG 2000 encoder here")
    path = write_phantom(phantom, tmp_path, transfer_syntax=syntax)[3]
    dataset = pydicom.dcmread(path)
    assert dataset.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(dataset.pixel_array.astype(np.int32) - 1024, phantom.volume.hu[3])


def test_identity_follows_from_seed_and_tag(phantom: Phantom, tmp_path: Path) -> None:
    def identity(tag: str, folder: str) -> tuple[str, ...]:
        dataset = pydicom.dcmread(write_phantom(phantom, tmp_path / folder, study_tag=tag)[0])
        return dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID

    once, again, other = identity("", "a"), identity("", "b"), identity("second", "c")
    assert once == again
    assert not set(once) & set(other)
    assert all(UID(uid).is_valid for uid in once + other)


def test_progress_is_told_and_truth_is_written(phantom: Phantom, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    paths = write_phantom(phantom, tmp_path, on_slice=lambda done, total: told.append((done, total)))
    assert told == [(index + 1, len(paths)) for index in range(len(paths))]
    write_truth(phantom, tmp_path / "truth.json")
    assert json.loads((tmp_path / "truth.json").read_text())["findings"][0]["size_unit"] == "ml"
