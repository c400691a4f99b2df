import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imaging.geometry import Geometry
from imaging.phantom import LesionRequest, make_phantom, truth_document
from models.evaluation.outlined import outlined_lesions
from models.evaluation.phantoms import PREVALENCE, SIZES, make_planned, plan_suite
from models.evaluation.truth import UnreadableTruth, find_labelled_studies, phantom_truth
from models.findings import FindingKind, Quantity

INDEX = """
version = 1
root = "archive"
[[studies]]
name = "one"
path = "ct/one"
source = "a hospital"
absent = ["pneumothorax"]
[studies.findings.pleural_effusion]
mask = "labels/one.nii.gz"
measurements = [{ quantity = "volume", value = 310.0, unit = "ml", laterality = "left" }]
"""


def test_an_index_names_data_and_masks_below_its_root(tmp_path: Path) -> None:
    index = tmp_path / "studies.toml"
    index.write_text(INDEX)
    (tmp_path / "archive" / "ct" / "one").mkdir(parents=True)
    (tmp_path / "archive" / "labels").mkdir()
    (tmp_path / "archive" / "labels" / "one.nii.gz").touch()
    (study,) = find_labelled_studies([index])
    assert study.data == tmp_path / "archive" / "ct" / "one"
    assert study.mask_path(FindingKind.PLEURAL_EFFUSION) == tmp_path / "archive" / "labels" / "one.nii.gz"
    assert study.truth.of(FindingKind.PLEURAL_EFFUSION).presence == "present"
    assert study.truth.of(FindingKind.PNEUMOTHORAX).presence == "absent"
    assert study.truth.of(FindingKind.EMPHYSEMA).presence == "unknown"


def test_data_and_masks_that_are_not_there_are_named(tmp_path: Path) -> None:
    index = tmp_path / "studies.toml"
    index.write_text(INDEX)
    with pytest.raises(UnreadableTruth, match=r"archive/ct/one \(one\), .*archive/labels/one\.nii\.gz"):
        find_labelled_studies([index])
    truth = {"version": 1, "name": "a", "source": "b", "findings": {"pneumothorax": {"mask": "air.nii.gz"}}}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with pytest.raises(UnreadableTruth, match=r"air\.nii\.gz \(a\)"):
        find_labelled_studies([tmp_path])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("root = 3", "root: "),
        (f'root = "{"a" * 300}"', "File name too long"),
        ('studies = "one"', "studies: "),
        ("studies = [1]", "studies.0: "),
        ("rot = '.'", "rot: "),
        ('[[studies]]\npath = "."\nsource = "b"\nname = 1', "studies.0.name: "),
        ('[[studies]]\npath = 1\nsource = "b"\nname = "a"', "studies.0.path: "),
        (f'[[studies]]\npath = "{"a" * 300}"\nsource = "b"\nname = "a"', "File name too long"),
    ],
)
def test_what_is_wrong_with_an_index_is_named(tmp_path: Path, text: str, named: str) -> None:
    index = tmp_path / "studies.toml"
    whole = text if "studies" in text else f'{text}\n[[studies]]\npath = "."\nsource = "b"\nname = "a"'
    index.write_text(f"version = 1\n{whole}\n")
    with pytest.raises(UnreadableTruth, match=re.escape(f"{index}: ") + f".*{re.escape(named)}"):
        find_labelled_studies([index])


def nodules(**known: object) -> dict[str, object]:
    return {"name": "a", "source": "b", "findings": {"pulmonary_nodule": known}}


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"version": 2, "name": "a", "source": "b"}, "version"),
        ({"version": 1, "name": "a"}, "source"),
        ({"version": 1, "name": "a", "source": "b", "present": ["headache"]}, "present"),
        (
            {"version": 1, "name": "a", "source": "b", "present": ["emphysema"], "absent": ["emphysema"]},
            "more than once",
        ),
        ({"seed": 1}, "findings"),
        ({"seed": 1, "findings": [1]}, "not as `onescan phantom` writes it"),
        (nodules(none_above_mm=30), "presence must"),
        (nodules(none_above_mm=30, lesions=[{"centre_lps_mm": [0, 0, 0], "diameter_mm": 31}]), "a lesion is larger"),
        (
            {"name": "a", "source": "b", "findings": {"emphysema": {"presence": "present", "none_above_mm": 30}}},
            "none_above_mm is for pulmonary_nodule",
        ),
    ],
)
def test_what_is_wrong_with_a_truth_file_is_named(tmp_path: Path, document: dict[str, object], named: str) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(document))
    with pytest.raises(UnreadableTruth, match=named):
        find_labelled_studies([tmp_path])


def test_two_studies_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "truth.json").write_text(json.dumps({"version": 1, "name": "same", "source": "x"}))
    with pytest.raises(UnreadableTruth, match="same"):
        find_labelled_studies([tmp_path])


def test_the_truth_of_a_phantom_is_read_and_small_lesions_stay_open() -> None:
    requests = [LesionRequest(kind="pleural_effusion", size=200.0), LesionRequest(kind="pulmonary_nodule", size=4.0)]
    phantom = make_phantom(3, requests, spacing_mm=(5.0, 3.0, 3.0))
    truth = phantom_truth(truth_document(phantom), name="p")
    effusion = truth.of(FindingKind.PLEURAL_EFFUSION)
    (volume,) = effusion.measurements
    assert (effusion.presence, volume.quantity) == ("present", Quantity.VOLUME)
    assert volume.value == pytest.approx(200, rel=0.05)
    assert truth.of(FindingKind.PULMONARY_NODULE).presence == "unknown"
    assert truth.of(FindingKind.PNEUMOTHORAX).presence == "absent"


def test_a_suite_follows_from_its_seed_and_holds_every_kind() -> None:
    suite = list(plan_suite(20, 5))
    assert suite == list(plan_suite(20, 5))
    assert suite != list(plan_suite(20, 6))
    requests = [request for plan in suite for request in plan.requests]
    masses = [r for r in requests if r.kind == "pulmonary_nodule" and r.size > SIZES[FindingKind.PULMONARY_NODULE][1]]
    held = [request.kind for request in requests if request not in masses]
    assert len(masses) == round(20 * PREVALENCE)
    assert {kind: held.count(kind.value) for kind in SIZES} == dict.fromkeys(FindingKind, round(20 * PREVALENCE))


def test_calcium_to_be_scored_comes_without_contrast_medium_and_pressed_lung_is_not_called_expanded() -> None:
    suite = list(plan_suite(40, 5))
    scored = [plan for plan in suite if any(r.kind == "coronary_artery_calcification" for r in plan.requests)]
    assert len(scored) == round(40 * PREVALENCE)
    assert not any(plan.contrast for plan in scored)
    assert any(plan.contrast for plan in suite)
    fluid = replace(
        suite[0], requests=(LesionRequest(kind="pleural_effusion", size=200.0),), spacing_mm=(6.0, 4.0, 4.0)
    )
    assert make_planned(fluid)[1].of(FindingKind.ATELECTASIS).presence == "unknown"


def test_a_phantoms_heart_is_enlarged_or_not_by_its_width_and_open_between() -> None:
    document = truth_document(make_phantom(3, spacing_mm=(5.0, 3.0, 3.0)))
    assert document["cardiothoracic_ratio"] is not None
    said = {}
    for ratio in (0.46, 0.5, 0.53, None):
        truth = phantom_truth(document | {"cardiothoracic_ratio": ratio}, name="p").of(FindingKind.CARDIOMEGALY)
        said[ratio] = truth.presence
        assert [m.value for m in truth.measurements] == ([] if ratio is None else [ratio])
    assert said == {0.46: "absent", 0.5: "unknown", 0.53: "present", None: "unknown"}


def test_a_nodule_under_fluid_is_not_asked_for() -> None:
    """1.5 l of fluid fill nearly all of the side that the smaller nodule lies in."""
    (plan,) = plan_suite(1, 5)
    requests = (
        LesionRequest(kind="pulmonary_nodule", size=8.0, laterality="left"),
        LesionRequest(kind="pulmonary_nodule", size=40.0, laterality="right"),
        LesionRequest(kind="pleural_effusion", size=1500.0, laterality="left"),
    )
    truth = make_planned(replace(plan, requests=requests, spacing_mm=(5.0, 3.0, 3.0)))[1]
    assert [lesion.counts for lesion in truth.of(FindingKind.PULMONARY_NODULE).lesions] == [False, True]


def test_pieces_of_an_outline_are_lesions_unless_they_are_open() -> None:
    mask = np.zeros((20, 40, 40), bool)
    mask[2:8, 4:20, 4:24] = True
    mask[14:18, 30:34, 30:34] = True
    unknown = mask.copy()
    unknown[:10] = False
    geometry = Geometry(np.eye(4)[[2, 1, 0, 3]] * 2.0, mask.shape)
    large, small = outlined_lesions(mask, unknown, geometry, 0.1)
    assert large.counts and not small.counts
    assert large.diameter_mm == pytest.approx(np.hypot(32, 40), rel=0.05)
    assert not any(lesion.counts for lesion in outlined_lesions(mask, mask, geometry, 0.1))
    assert not any(lesion.counts for lesion in outlined_lesions(mask, ~mask, geometry, 100.0))
