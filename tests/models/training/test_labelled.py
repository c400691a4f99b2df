"""Labelled volumes of one's own: what the folder says becomes labels, what it does not say stays open."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from imaging.phantom import LesionRequest, Phantom, make_phantom
from imaging.phantom_dicom import write_localizer, write_phantom
from models.findings import FindingKind
from models.training.labelled import find_labelled, labelled_sample, read_labels
from models.training.labels import LABEL
from models.training.lesions import bit
from models.training.sources import read_ct

LABELS = """
version = 1
name = "one"
licence = "in-house"
complete = ["pleural_effusion", "pneumothorax"]
[anatomy]
7 = "aorta"
[lesions]
3 = "pleural_effusion"
"""


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(
        4, [LesionRequest(kind="pleural_effusion", size=500.0, laterality="left")], spacing_mm=(4, 3, 3)
    )


def save(values: np.ndarray, path: Path, affine: np.ndarray) -> None:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing([float(affine[0, 2]), float(affine[1, 1]), float(affine[2, 0])])
    image.SetOrigin([float(v) for v in affine[:3, 3]])
    sitk.WriteImage(image, str(path))


def folder_of(phantom: Phantom, folder: Path, labels: str = LABELS) -> Path:
    folder.mkdir()
    affine = phantom.volume.geometry.affine
    save(phantom.volume.hu, folder / "image.nii.gz", affine)
    aorta = phantom.anatomy == LABEL["aorta"]
    save(np.where(aorta, 7, 0).astype(np.uint8), folder / "anatomy.nii.gz", affine)
    fluid = phantom.lesions["pleural_effusion"]
    save(np.where(fluid, 3, 0).astype(np.uint8), folder / "lesions.nii.gz", affine)
    (folder / "labels.toml").write_text(labels)
    return folder


def test_outlines_become_labels_and_the_rest_stays_open(phantom: Phantom, tmp_path: Path) -> None:
    folder = folder_of(phantom, tmp_path / "one")
    assert find_labelled(tmp_path) == (folder,)
    sample = labelled_sample(folder)
    fluid = (sample.lesions & bit(FindingKind.PLEURAL_EFFUSION)) > 0
    true_ml = phantom.truth[0].volume_ml
    assert fluid.sum() * 2.5**3 / 1000 == pytest.approx(true_ml, rel=0.1)
    assert -30 < np.median(sample.hu[fluid]) < 60
    assert (sample.anatomy == LABEL["aorta"]).sum() > 1000
    assert (sample.anatomy == LABEL["lung_right"]).any()
    assert not (sample.unknown & bit(FindingKind.PNEUMOTHORAX)).any()
    assert (sample.unknown & bit(FindingKind.CONSOLIDATION)).sum() > 0.9 * fluid.size
    assert not (sample.unknown & sample.lesions).any()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("version = 1", "version = 9"), "version"),
        (('licence = "in-house"', ""), "licence"),
        (('"aorta"', '"kidney"'), "kidney"),
        (('3 = "pleural_effusion"', '3 = "rib_fracture"'), "rib_fracture"),
        (("complete", "completed"), "completed"),
        (('name = "one"', ""), "the key 'name' is missing"),
        (('"pneumothorax"]', '"pneumothorax"]\nabsent = ["pleural_effusion"]'), "absent.*pleural_effusion"),
        (("3 =", "0 ="), "1 or more"),
        (('name = "one"', "name = 17"), "name must be text"),
        (('name = "one"', 'name = " "'), "name must be text, and not empty"),
        (('licence = "in-house"', "licence = false"), "licence must be text"),
    ],
)
def test_what_is_wrong_with_labels_is_named(tmp_path: Path, change: tuple[str, str], named: str) -> None:
    (tmp_path / "labels.toml").write_text(LABELS.replace(*change))
    with pytest.raises(ValueError, match=rf"labels\.toml.*{named}"):
        read_labels(tmp_path)


def test_folders_without_image_or_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"labels\.toml"):
        find_labelled(tmp_path)
    (tmp_path / "labels.toml").write_text(LABELS)
    with pytest.raises(ValueError, match=r"image\.nii\.gz"):
        labelled_sample(tmp_path)


def test_a_mask_that_is_not_there_is_no_healthy_volume(phantom: Phantom, tmp_path: Path) -> None:
    """It is missed where `complete` speaks of it; `absent` says without a mask that there is nothing."""
    folder = folder_of(phantom, tmp_path / "one")
    (folder / "lesions.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"one: .*lesions\.nii\.gz.*absent"):
        labelled_sample(folder)
    (folder / "labels.toml").write_text(LABELS.replace("complete", "absent").split("[lesions]")[0])
    sample = labelled_sample(folder)
    assert not sample.lesions.any()
    assert not (sample.unknown & bit(FindingKind.PLEURAL_EFFUSION)).any()
    assert (sample.unknown & bit(FindingKind.CONSOLIDATION)).all()
    (folder / "anatomy.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"one: .*anatomy\.nii\.gz"):
        labelled_sample(folder)


def test_a_mask_that_labels_do_not_explain_is_refused(phantom: Phantom, tmp_path: Path) -> None:
    folder = folder_of(phantom, tmp_path / "one", LABELS.replace("3 =", "4 ="))
    with pytest.raises(ValueError, match=r"lesions\.nii\.gz: .* 3$"):
        labelled_sample(folder)
    (folder / "labels.toml").write_text(LABELS)
    fluid = np.where(phantom.lesions["pleural_effusion"], 3, 0).astype(np.uint8)
    elsewhere = phantom.volume.geometry.affine.copy()
    elsewhere[:3, 3] += 2000.0
    save(fluid, folder / "lesions.nii.gz", elsewhere)
    with pytest.raises(ValueError, match=r"lesions\.nii\.gz: .*beside"):
        labelled_sample(folder)


@pytest.mark.parametrize("hu", [np.full((40, 60, 60), 40), np.full((40, 60, 60), -1000)])
def test_a_volume_without_lungs_is_named(hu: np.ndarray, tmp_path: Path) -> None:
    save(hu.astype(np.int16), tmp_path / "image.nii.gz", np.diag([4.0, 4.0, 5.0, 1.0])[:, [2, 1, 0, 3]])
    (tmp_path / "labels.toml").write_text('version = 1\nname = "one"\nlicence = "made"\n')
    with pytest.raises(ValueError, match=f"{tmp_path.name}: no lungs"):
        labelled_sample(tmp_path)


def test_a_folder_of_several_series_is_named(phantom: Phantom, tmp_path: Path) -> None:
    write_phantom(phantom, tmp_path)
    assert read_ct(tmp_path).GetSize() == phantom.volume.hu.shape[::-1]
    write_localizer(phantom, tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path.name}: 2 DICOM series"):
        read_ct(tmp_path)


def test_images_that_are_missing_are_not_closed_up(phantom: Phantom, tmp_path: Path) -> None:
    files = write_phantom(phantom, tmp_path)
    for file in files[20:30]:
        file.unlink()
    with pytest.raises(ValueError, match=f"{tmp_path.name}: 10 images seem to be missing"):
        read_ct(tmp_path)


def test_a_folder_of_dicom_files_lies_where_its_headers_say(phantom: Phantom, tmp_path: Path) -> None:
    """Anatomy and masks keep their places: the image is that of the volume written as NIfTI. A copy counts once."""
    folder = folder_of(phantom, tmp_path / "one")
    files = write_phantom(phantom, tmp_path / "dicom")
    shutil.copy(files[7], tmp_path / "dicom" / "again.dcm")
    stored, read = read_ct(folder / "image.nii.gz"), read_ct(tmp_path / "dicom")
    assert (sitk.GetArrayFromImage(read) == sitk.GetArrayFromImage(stored)).all()
    assert read.GetOrigin() == pytest.approx(stored.GetOrigin())
    assert read.GetSpacing() == pytest.approx(stored.GetSpacing())
    assert read.GetDirection() == pytest.approx(stored.GetDirection())
