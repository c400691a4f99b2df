"""Studies as training and export read them."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from factories import save_ct

from models.training.studies import read_volume, real_studies

TRUTH = {
    "name": "one",
    "source": "a hospital",
    "path": "image.nii.gz",
    "findings": {"pleural_effusion": {"mask": "mask.nii.gz"}},
}


def save_slice(folder: Path, number: int) -> None:
    save_ct(folder / f"{number}.dcm", InstanceNumber=number, ImagePositionPatient=[-8, -8, 5 * number])


def test_archives_among_the_data_are_unpacked_elsewhere_and_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, elsewhere, study = (tmp_path / name for name in ("data", "elsewhere", "study"))
    for folder in (data, elsewhere, study):
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    for number in range(1, 31):
        save_slice(study, number)
    shutil.make_archive(str(data / "study"), "zip", study)
    assert read_volume(data).hu.shape == (30, 16, 16)
    assert [path.name for path in data.iterdir()] == ["study.zip"]
    assert not list(elsewhere.iterdir())


def test_a_series_with_missing_images_is_no_study(tmp_path: Path) -> None:
    for number in (*range(1, 16), *range(21, 46)):
        save_slice(tmp_path, number)
    with pytest.raises(ValueError, match="5 images seem to be missing"):
        read_volume(tmp_path)


def test_an_outline_beside_the_image_fails_the_study_by_name(tmp_path: Path) -> None:
    write_image(tmp_path / "image.nii.gz", np.zeros((4, 8, 8), np.int16))
    write_image(tmp_path / "mask.nii.gz", np.ones((4, 8, 8), np.int16), (500.0, 0.0, 0.0))
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    with pytest.raises(ValueError, match=r"one: .*mask\.nii\.gz: by its header it lies beside the image"):
        list(real_studies(tmp_path))


def write_image(path: Path, values: np.ndarray, origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
    image = sitk.GetImageFromArray(values)
    image.SetOrigin(origin_mm)
    sitk.WriteImage(image, str(path))
