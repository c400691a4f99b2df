from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from models.evaluation.images import read_image, read_mask, read_masks
from models.evaluation.truth import LabelledStudy, StudyTruth, TruthMismatch

SHAPE = (12, 20, 24)
SPACING_MM = (3.0, 1.5, 2.0)  # along slice, row, column


def write(path: Path, values: np.ndarray, *, flipped: bool, feet_mm: float = 100.0) -> None:
    """The array as NIfTI; `flipped` stores the columns from left to right with a header that says so."""
    image = sitk.GetImageFromArray(values[:, :, ::-1].copy() if flipped else values)
    image.SetSpacing(SPACING_MM[::-1])
    image.SetOrigin((-20.0 + (SPACING_MM[2] * (SHAPE[2] - 1) if flipped else 0.0), 5.0, feet_mm))
    image.SetDirection((-1.0 if flipped else 1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize("flipped", [False, True])
def test_volume_and_mask_meet_in_space_whatever_their_storage(tmp_path: Path, flipped: bool) -> None:
    hu = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    outline = np.zeros(SHAPE, np.uint8)
    outline[2:6, 4:9, 15:22] = 3
    write(tmp_path / "image.nii.gz", hu, flipped=False)
    write(tmp_path / "mask.nii.gz", outline, flipped=flipped)
    volume = read_image(tmp_path / "image.nii.gz")
    assert (volume.hu == hu).all()
    assert volume.geometry.spacing_mm == pytest.approx(SPACING_MM)
    assert volume.geometry.index_to_patient((0, 0, 0)) == pytest.approx([-20.0, 5.0, 100.0])
    assert (read_mask(tmp_path / "mask.nii.gz", volume.geometry) == (outline > 0)).all()


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    with pytest.raises(OSError, match="broken"):
        read_image(tmp_path / "broken.nii.gz")


def test_slices_are_axial_however_they_are_stored(tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    write(tmp_path / "axial.nii.gz", hu, flipped=False)
    sagittal = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "axial.nii.gz")), "PIR")
    sitk.WriteImage(sagittal, str(tmp_path / "sagittal.nii.gz"))
    volume = read_image(tmp_path / "sagittal.nii.gz")
    assert (volume.hu == hu).all()
    assert volume.geometry.index_to_patient((1, 2, 3)) == pytest.approx([-14.0, 8.0, 103.0])


def test_what_is_no_number_is_air(tmp_path: Path) -> None:
    values = np.full(SHAPE, 40.0, np.float32)
    values[:, :3] = np.nan
    values[:, -3:] = 1e9
    write(tmp_path / "image.mha", values, flipped=False)
    hu = read_image(tmp_path / "image.mha").hu
    assert [int(hu[0, row, 0]) for row in (0, 10, -1)] == [-1024, 40, 32767]


@pytest.mark.parametrize(
    ("presence", "outlined", "feet_mm", "said"),
    [
        ("present", True, 5000.0, "by its header it lies beside the image"),
        ("unknown", True, 5000.0, "by its header it lies beside the image"),
        ("present", False, 100.0, "it outlines nothing in the image, although pleural_effusion is present"),
        ("absent", True, 100.0, "it outlines something, although pleural_effusion is absent"),
    ],
)
def test_a_mask_that_does_not_fit_the_study_is_named(
    tmp_path: Path, presence: str, outlined: bool, feet_mm: float, said: str
) -> None:
    write(tmp_path / "image.nii.gz", np.zeros(SHAPE, np.int16), flipped=False)
    write(tmp_path / "mask.nii.gz", np.full(SHAPE, outlined, np.uint8), flipped=False, feet_mm=feet_mm)
    findings = {"pleural_effusion": {"presence": presence, "mask": "mask.nii.gz"}}
    truth = StudyTruth.model_validate({"name": "one", "source": "a hospital", "findings": findings})
    study = LabelledStudy(truth=truth, data=tmp_path / "image.nii.gz", folder=tmp_path)
    with pytest.raises(TruthMismatch, match=rf"mask\.nii\.gz: {said}"):
        read_masks(study, read_image(study.data).geometry)


@pytest.mark.parametrize(("presence", "outlined"), [("present", True), ("absent", False), ("unknown", False)])
def test_a_mask_that_fits_the_study_is_its_outline(tmp_path: Path, presence: str, outlined: bool) -> None:
    write(tmp_path / "image.nii.gz", np.zeros(SHAPE, np.int16), flipped=False)
    write(tmp_path / "mask.nii.gz", np.full(SHAPE, outlined, np.uint8), flipped=True)
    findings = {"pleural_effusion": {"presence": presence, "mask": "mask.nii.gz"}}
    truth = StudyTruth.model_validate({"name": "one", "source": "a hospital", "findings": findings})
    study = LabelledStudy(truth=truth, data=tmp_path / "image.nii.gz", folder=tmp_path)
    (mask,) = read_masks(study, read_image(study.data).geometry).values()
    assert (mask == outlined).all()
