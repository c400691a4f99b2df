import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from running import ROOT

from dicom_gateway.evaluate import (
    Case,
    NothingMeasured,
    Refused,
    evaluate_cases,
    labelled_case,
    training_doubts,
    write_evidence_into,
)
from imaging.phantom import make_phantom
from models.evaluation.record import Record
from models.evaluation.truth import find_labelled_studies
from models.manifest import load_manifest

MANIFEST = load_manifest(ROOT / "models" / "weights")
INDEX = """
version = 1
[[studies]]
name = "one"
path = "ct"
source = "a hospital"
[studies.findings.pleural_effusion]
mask = "fluid.nii.gz"
"""


def study_on_disk(folder: Path) -> Path:
    (folder / "ct").mkdir()
    (folder / "ct" / "1.dcm").write_bytes(b"first")
    (folder / "fluid.nii.gz").write_bytes(b"mask")
    (folder / "studies.toml").write_text(INDEX)
    return folder / "studies.toml"


def case(name: str = "one", source: str = "a hospital", **values: Any) -> Case:
    defaults = {"simulated": False, "trained_on": False, "identity": "", "read": None}
    return Case(name=name, source=source, **(defaults | values))


def test_what_could_not_be_read_is_tried_again_and_a_refusal_stays(tmp_path: Path) -> None:
    detector: Any = SimpleNamespace(manifest=MANIFEST)
    ends: list[Exception] = [OSError("no route to the archive"), Refused("a slice is missing"), OSError("gone")]

    def read(_: object) -> None:
        raise ends.pop(0)

    outcomes = [record.outcome for _ in range(3) for record in evaluate_cases([case(read=read)], detector, tmp_path)]
    assert outcomes == ["failed", "refused", "refused"]


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "ct" / "2.dcm").write_bytes(b"second"),
        lambda folder: os.utime(folder / "ct" / "1.dcm", ns=(1, 1)),
        lambda folder: (folder / "fluid.nii.gz").write_bytes(b"better mask"),
    ],
    ids=["a file more", "a file written again", "another mask"],
)
def test_changed_data_or_masks_make_another_case(tmp_path: Path, change: Callable[[Path], object]) -> None:
    index = study_on_disk(tmp_path)
    first, again = (labelled_case(*find_labelled_studies([index])).identity for _ in range(2))
    assert first == again
    change(tmp_path)
    assert labelled_case(*find_labelled_studies([index])).identity != first


def test_nothing_is_unpacked_beside_the_data(tmp_path: Path) -> None:
    index = study_on_disk(tmp_path)
    with zipfile.ZipFile(tmp_path / "ct" / "study.zip", "w") as archive:
        archive.writestr("note.txt", "no images yet")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Refused, match="0 studies"):
        labelled_case(*find_labelled_studies([index])).read(lambda _: None)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("outcome", ["failed", "refused", "evaluated"])
def test_a_model_keeps_its_evidence_when_nothing_was_measured(tmp_path: Path, outcome: Any) -> None:
    """An evaluated study without known truth measures nothing, too."""
    (tmp_path / "model.json").write_text(MANIFEST.model_dump_json())
    record = Record(key="k", name="one", source="a hospital", simulated=False, trained_on=False, outcome=outcome)
    with pytest.raises(NothingMeasured):
        write_evidence_into(tmp_path, [record], None)
    assert load_manifest(tmp_path) == MANIFEST


def test_a_study_like_a_training_volume_is_asked_about_unless_it_says_so() -> None:
    cases = [
        case("LIDC-IDRI 0063, nodules"),
        case("two", "lidc-idri"),
        case("three", "LIDC-IDRI", trained_on=True),
        case("four", "LIDC"),
        case("five", "phantoms", simulated=True),
    ]
    (doubt,) = training_doubts(cases, MANIFEST)
    assert doubt.startswith("LIDC-IDRI 0063, nodules, two: not marked trained_on")
    assert not training_doubts([case("another", "NSCLC-Radiomics")], MANIFEST)


def test_a_study_that_the_cuts_were_fitted_to_is_told() -> None:
    (doubt,) = training_doubts([case("normal_001", "NSCLC-Radiomics"), case("two")], MANIFEST)
    assert doubt == "normal_001: not trained on, but the model's cuts were fitted to keep them clean"


@pytest.mark.parametrize(
    ("known", "origin_mm", "outlined", "said"),
    [
        ({"mask": "mask.nii.gz"}, 5000.0, 1, "mask.nii.gz: by its header it lies beside the image"),
        ({"mask": "mask.nii.gz"}, 0.0, 0, "mask.nii.gz: it outlines nothing in the image"),
        ({"positive_slices": [4000]}, 0.0, 1, "pleural_effusion: positive_slices go to 61 in the image: 4000"),
        ({"lesions": [{"centre_lps_mm": [9000, 0, 0]}]}, 0.0, 1, "outside the image: (9000.0, 0.0, 0.0)"),
    ],
)
def test_a_truth_that_misses_the_image_fails_the_study(
    tmp_path: Path, known: dict[str, object], origin_mm: float, outlined: int, said: str
) -> None:
    hu = make_phantom(2, spacing_mm=(5.0, 4.0, 4.0)).volume.hu
    for name, values, at_mm in (("image", hu, 0.0), ("mask", np.full(hu.shape, outlined, np.uint8), origin_mm)):
        image = sitk.GetImageFromArray(values)
        image.SetSpacing((4.0, 4.0, 5.0))
        image.SetOrigin((at_mm, 0.0, 0.0))
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    truth = {"name": "one", "source": "s", "path": "image.nii.gz", "findings": {"pleural_effusion": known}}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    detector: Any = SimpleNamespace(manifest=MANIFEST)
    (study,) = find_labelled_studies([tmp_path])
    (record,) = evaluate_cases([labelled_case(study)], detector, tmp_path / "out")
    assert record.outcome == "failed"
    assert said in (record.problem or "")
