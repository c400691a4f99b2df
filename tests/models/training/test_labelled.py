"""Labelled volumes of one's own: what the folder says becomes labels, what it does not say stays open."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from imaging.phantom import LesionRequest, Phantom, make_phantom
from models.findings import FindingKind
from models.training.labelled import find_labelled, labelled_sample, read_labels
from models.training.labels import LABEL
from models.training.lesions import bit

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


def folder_of(phantom: Phantom, folder: Path, labels: str = LABELS) -> Path:
    folder.mkdir()
    affine = phantom.volume.geometry.affine

    def save(values: np.ndarray, name: str) -> None:
        image = sitk.GetImageFromArray(values)
        image.SetSpacing([float(affine[0, 2]), float(affine[1, 1]), float(affine[2, 0])])
        image.SetOrigin([float(v) for v in affine[:3, 3]])
        sitk.WriteImage(image, str(folder / name))

    save(phantom.volume.hu, "image.nii.gz")
    aorta = phantom.anatomy == LABEL["aorta"]
    save(np.where(aorta, 7, 0).astype(np.uint8), "anatomy.nii.gz")
    save(np.where(phantom.lesions["pleural_effusion"], 3, 0).astype(np.uint8), "lesions.nii.gz")
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
    ],
)
def test_what_is_wrong_with_labels_is_named(tmp_path: Path, change: tuple[str, str], named: str) -> None:
    (tmp_path / "labels.toml").write_text(LABELS.replace(*change))
    with pytest.raises(ValueError, match=named):
        read_labels(tmp_path)


def test_folders_without_image_or_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"labels\.toml"):
        find_labelled(tmp_path)
    (tmp_path / "labels.toml").write_text(LABELS)
    with pytest.raises(ValueError, match=r"image\.nii\.gz"):
        labelled_sample(tmp_path)
