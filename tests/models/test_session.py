import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnxruntime
import pytest
import torch

from models.errors import ManifestMismatch
from models.findings import FindingKind
from models.session import PROVIDERS, ModelSession
from models.training.export import export, unfitted
from models.training.network import ANATOMY, LESIONS, ChestNet, StudyHead

# torch marks its TorchScript exporter as the older one; the newer needs onnxscript, one dependency more
pytestmark = pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript:DeprecationWarning")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small untrained network through the real export."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "model.onnx"
    net = ChestNet((4, 4, 4, 4, 4)).eval()
    export(net, StudyHead(), unfitted(net), path)
    return path.read_bytes()


def document(weights: bytes) -> dict[str, object]:
    point = {
        "voxel_threshold": 0.5,
        "minimum_volume_ml": 0,
        "present_probability": 0.5,
        "absent_probability": 0.5,
        "temperature": 1,
        "bias": 0,
        "chosen_on": "nothing",
    }
    return {
        "name": "small",
        "version": "0",
        "weights": "model.onnx",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "input": {
            "name": "hu",
            "spacing_mm": 2.5,
            "multiple_of": 16,
            "minimum_hu": -1024,
            "maximum_hu": 3071,
        },
        "anatomy": list(ANATOMY),
        "lesions": list(LESIONS),
        "calibration": "none",
        "operating_points": {kind: point for kind in LESIONS},
        "evidence": {kind: {"grade": "C", "trials": []} for kind in LESIONS},
        "not_assessed": {kind: "not trained" for kind in FindingKind if kind not in LESIONS},
        "familiarity": {"limit": 2.0, "fitted_on": "nothing"},
        "training_data": [],
    }


def bundle(folder: Path, weights: bytes, manifest: dict[str, object]) -> Path:
    (folder / "model.onnx").write_bytes(weights)
    (folder / "model.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("shape", [(16, 32, 48), (48, 16, 32)])
def test_one_run_answers_on_the_grid_it_was_given(tmp_path: Path, weights: bytes, shape: tuple[int, int, int]) -> None:
    session = ModelSession.open(bundle(tmp_path, weights, document(weights)), threads=1)
    hu = np.random.default_rng(0).normal(-300, 500, (1, 1, *shape)).astype(np.float32)
    outputs = session.run(hu)
    assert outputs.anatomy.shape == shape
    assert outputs.anatomy.dtype == np.uint8
    assert outputs.anatomy.max() < len(ANATOMY)
    assert outputs.lesions.shape == (len(LESIONS), *shape)
    assert outputs.lesions.dtype == np.float32
    assert 0.0 <= outputs.lesions.min() <= outputs.lesions.max() <= 1.0
    assert outputs.study_logits.shape == (len(LESIONS),)
    assert outputs.strangeness is not None and outputs.strangeness > 0.0


def test_the_same_grid_gives_the_same_answer(tmp_path: Path, weights: bytes) -> None:
    session = ModelSession.open(bundle(tmp_path, weights, document(weights)), threads=1)
    hu = np.random.default_rng(0).normal(-300, 500, (1, 1, 16, 16, 32)).astype(np.float32)
    first, second = session.run(hu), session.run(hu)
    np.testing.assert_array_equal(first.lesions, second.lesions)
    np.testing.assert_array_equal(first.study_logits, second.study_logits)


@pytest.mark.parametrize("shape", [(1, 1, 16, 16, 20), (1, 2, 16, 16, 16), (16, 16, 16)])
def test_a_grid_the_network_was_not_made_for_is_an_error_of_the_caller(
    tmp_path: Path, weights: bytes, shape: tuple[int, ...]
) -> None:
    session = ModelSession.open(bundle(tmp_path, weights, document(weights)), threads=1)
    with pytest.raises(ValueError, match="multiples of 16"):
        session.run(np.zeros(shape, np.float32))


def test_changed_weights_are_refused(tmp_path: Path, weights: bytes) -> None:
    folder = bundle(tmp_path, weights[:-1] + bytes([weights[-1] ^ 1]), document(weights))
    with pytest.raises(ManifestMismatch, match="SHA-256"):
        ModelSession.open(folder)


def test_missing_weights_are_refused(tmp_path: Path, weights: bytes) -> None:
    folder = bundle(tmp_path, weights, document(weights))
    (folder / "model.onnx").unlink()
    with pytest.raises(ManifestMismatch, match=r"model\.onnx"):
        ModelSession.open(folder)


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestMismatch, match="cannot load"):
        ModelSession.open(bundle(tmp_path, b"no network", document(b"no network")))


def test_weights_for_other_kinds_are_refused(tmp_path: Path, weights: bytes) -> None:
    manifest = document(weights)
    kinds = [kind for kind in LESIONS if kind is not FindingKind.ATELECTASIS]
    for key in ("operating_points", "evidence"):
        manifest[key] = {kind: entry for kind, entry in manifest[key].items() if kind in kinds}  # type: ignore[attr-defined]
    manifest["lesions"] = kinds
    manifest["not_assessed"] = {kind: "not trained" for kind in FindingKind if kind not in kinds}
    with pytest.raises(ManifestMismatch, match="lesion kinds"):
        ModelSession.open(bundle(tmp_path, weights, manifest))


def test_a_manifest_that_does_not_know_of_the_strangeness_is_refused(tmp_path: Path, weights: bytes) -> None:
    manifest = document(weights)
    del manifest["familiarity"]
    with pytest.raises(ManifestMismatch, match="strangeness"):
        ModelSession.open(bundle(tmp_path, weights, manifest))


def test_another_input_name_is_refused(tmp_path: Path, weights: bytes) -> None:
    manifest = document(weights)
    manifest["input"]["name"] = "image"  # type: ignore[index]
    with pytest.raises(ManifestMismatch, match="image"):
        ModelSession.open(bundle(tmp_path, weights, manifest))


@pytest.mark.parametrize("name", ["cuda", "openvino", "cann"])
def test_a_provider_that_is_not_installed_is_named(tmp_path: Path, weights: bytes, name: str) -> None:
    if PROVIDERS[name] in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has {PROVIDERS[name]}")
    with pytest.raises(ManifestMismatch, match=PROVIDERS[name]):
        ModelSession.open(bundle(tmp_path, weights, document(weights)), name)


@pytest.mark.parametrize("location", ["beside.bin", "/etc/hostname", "../beside.bin"])
def test_weights_outside_of_the_file_that_has_the_digest_are_refused(
    tmp_path: Path, weights: bytes, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_from_string(weights)
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    (tmp_path / "beside.bin").write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    pointing = model.SerializeToString()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestMismatch, match="onnxruntime cannot load"):
        ModelSession.open(bundle(tmp_path, pointing, document(pointing)))
