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
from models.evaluation.truth import (
    StudyTruth,
    TruthMismatch,
    UnreadableTruth,
    check_places,
    find_labelled_studies,
    phantom_truth,
    units_of,
)
from models.findings import FindingKind, Quantity

MODELS = Path(__file__).parents[3] / "models"
MEASURING = (MODELS / "detect.py", MODELS / "measure.py", *(MODELS / "measured").glob("*.py"))
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
        (
            nodules(presence="absent", lesions=[{"centre_lps_mm": [0, 0, 0]}]),
            "has lesions, although presence is absent",
        ),
        (
            nodules(presence="absent", measurements=[{"quantity": "long_axis", "value": 9, "unit": "mm"}]),
            "pulmonary_nodule has a long_axis, although presence is absent",
        ),
        (nodules(presence="absent", positive_slices=[1]), "has positive_slices, although presence is absent"),
        (nodules(positive_slices=[3, -1]), "positive_slices.1"),
        (
            nodules(measurements=[{"quantity": "volume", "value": 9, "unit": "mm"}]),
            "volume is measured in mm3 or ml, not in mm",
        ),
        (
            nodules(measurements=[{"quantity": "long_axis", "value": 9, "unit": "ml"}]),
            "long_axis is measured in mm, not in ml",
        ),
    ],
)
def test_what_is_wrong_with_a_truth_file_is_named(tmp_path: Path, document: dict[str, object], named: str) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(document))
    with pytest.raises(UnreadableTruth, match=named):
        find_labelled_studies([tmp_path])


def test_what_is_measured_of_everybody_may_be_known_of_the_healthy() -> None:
    """An aorta has a diameter, a heart a volume and a liver an attenuation; fluid that is absent measures 0."""
    known = {
        "aortic_dilatation": {"quantity": "ascending_aorta_diameter", "value": 32, "unit": "mm"},
        "cardiomegaly": {"quantity": "volume", "value": 650, "unit": "ml"},
        "hepatic_steatosis": {"quantity": "mean_attenuation", "value": 58, "unit": "[hnsf'U]"},
        "pleural_effusion": {"quantity": "volume", "value": 0, "unit": "ml"},
    }
    findings = {kind: {"presence": "absent", "measurements": [one]} for kind, one in known.items()}
    findings["pulmonary_nodule"] = {"presence": "absent", "lesions": [{"centre_lps_mm": [0, 0, 0], "counts": False}]}
    assert len(StudyTruth.model_validate({"name": "a", "source": "b", "findings": findings}).findings) == 5


def test_every_quantity_may_be_known_in_the_unit_it_is_reported_in() -> None:
    said = re.findall(r"Quantity\.(\w+),[^)]*?unit=\"([^\"]+)\"", "".join(p.read_text() for p in MEASURING))
    assert len(said) > 20
    assert not [(name, unit) for name, unit in said if unit not in units_of(Quantity[name])]


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (
            {"lesions": [{"centre_lps_mm": [5, 5, 5]}, {"centre_lps_mm": [5, 5, 90]}]},
            r"outside the image: \(5.0, 5.0, 90",
        ),
        ({"positive_slices": [3, 9, 10, 400]}, "positive_slices go to 9 in the image: 10, 400"),
    ],
)
def test_places_outside_the_image_are_named(known: dict[str, object], said: str) -> None:
    truth = StudyTruth.model_validate(nodules(**known))
    geometry = Geometry(np.eye(4)[[2, 1, 0, 3]], (10, 20, 20))
    with pytest.raises(TruthMismatch, match=f"pulmonary_nodule: .*{said}"):
        check_places(truth, geometry)
    inside = {"lesions": [{"centre_lps_mm": [-0.5, 19.5, 9.5]}], "positive_slices": [0, 9]}
    check_places(StudyTruth.model_validate(nodules(**inside)), geometry)


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
