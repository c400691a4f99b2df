import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.errors import ManifestMismatch
from models.findings import FindingKind
from models.manifest import ModelManifest, OperatingPoint, load_manifest


def operating_point(**overrides: object) -> dict[str, object]:
    return {
        "voxel_threshold": 0.5,
        "minimum_volume_ml": 1.0,
        "present_probability": 0.7,
        "absent_probability": 0.3,
        "temperature": 1.0,
        "bias": 0.0,
        "chosen_on": "phantoms",
    } | overrides


def document(**overrides: object) -> dict[str, object]:
    lesions = ["pleural_effusion", "pulmonary_nodule"]
    return {
        "name": "chest",
        "version": "0",
        "weights": "model.onnx",
        "sha256": "0" * 64,
        "input": {
            "name": "hu",
            "spacing_mm": 2.5,
            "multiple_of": 16,
            "minimum_hu": -1024,
            "maximum_hu": 3071,
        },
        "anatomy": ["background", "body"],
        "lesions": lesions,
        "calibration": "none",
        "operating_points": {kind: operating_point() for kind in lesions},
        "evidence": {kind: {"grade": "C", "trials": []} for kind in lesions},
        "not_assessed": {kind.value: "not trained" for kind in FindingKind if kind.value not in lesions},
        "training_data": [{"name": "phantoms", "licence": "Apache-2.0", "use": "training"}],
    } | overrides


def write(folder: Path, content: dict[str, object]) -> Path:
    (folder / "model.json").write_text(json.dumps(content))
    return folder


def test_a_complete_manifest_is_read_and_cannot_be_changed(tmp_path: Path) -> None:
    manifest = load_manifest(write(tmp_path, document()))
    assert manifest.lesions == (FindingKind.PLEURAL_EFFUSION, FindingKind.PULMONARY_NODULE)
    assert manifest.operating_points[FindingKind.PLEURAL_EFFUSION].minimum_volume_ml == 1.0
    with pytest.raises(ValidationError):
        manifest.name = "other"  # type: ignore[misc]


def test_a_manifest_survives_being_written(tmp_path: Path) -> None:
    manifest = ModelManifest.model_validate(document())
    (tmp_path / "model.json").write_text(manifest.model_dump_json(indent=1))
    assert load_manifest(tmp_path) == manifest


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"sha256": "abc"}, "sha256"),
        ({"weights": "../model.onnx"}, "weights"),
        ({"lesions": ["headache"]}, "lesions"),
        ({"colour": "blue"}, "colour"),
        ({"operating_points": {}}, "operating_points"),
        ({"evidence": {}}, "evidence"),
        ({"not_assessed": {}}, "not_assessed"),
        ({"anatomy": ["body", "body"]}, "twice"),
        (
            {
                "operating_points": {
                    "pleural_effusion": operating_point(absent_probability=0.9),
                    "pulmonary_nodule": operating_point(),
                }
            },
            "absent_probability",
        ),
        (
            {
                "operating_points": {
                    "pleural_effusion": operating_point(temperature=0.0),
                    "pulmonary_nodule": operating_point(),
                }
            },
            "temperature",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, overrides: dict[str, object], named: str) -> None:
    with pytest.raises(ManifestMismatch, match=named):
        load_manifest(write(tmp_path, document(**overrides)))


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"'])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ManifestMismatch):
        load_manifest(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestMismatch, match=r"model\.json"):
        load_manifest(tmp_path)


@given(
    logits=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2).map(sorted),
    temperature=st.floats(0.1, 10),
    bias=st.floats(-10, 10),
)
def test_probability_rises_with_the_logit(logits: list[float], temperature: float, bias: float) -> None:
    point = OperatingPoint.model_validate(operating_point(temperature=temperature, bias=bias))
    low, high = (point.probability(logit) for logit in logits)
    assert 0.0 <= low <= high <= 1.0
    assert point.probability(-bias) == pytest.approx(0.5)
