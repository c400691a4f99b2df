"""Training of the nodule network: scenes, labels, determinism, export and the digest of what is opened."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from models import BUNDLED_MODEL_DIR
from models.errors import ManifestMismatch
from models.manifest import MANIFEST_NAME, load_manifest
from models.session import ModelSession
from models.training.nodule_network import NoduleNet
from models.training.nodule_scenes import Host, Inserted, make_scene, thick_slices
from models.training.nodule_shapes import draw_body
from models.training.nodules import Patches, labelled_patches, nodule_at, train
from models.training.nodules_evaluate import FIGURES_NAME, export, fit_platt, read_network
from models.training.replace_nodules import replace_nodules
from models.training.start import exported_nodule_network, normalise

pytestmark = pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript:DeprecationWarning")


def a_host() -> Host:
    z, y, x = np.ogrid[:70, :70, :70]
    lung = (z - 35) ** 2 + (y - 35) ** 2 + (x - 35) ** 2 < 30**2
    noise = np.random.default_rng(0).normal(0, 20, lung.shape)
    return Host("ball of lung", (np.where(lung, -850, 40) + noise).astype(np.float32), lung)


def some_patches() -> Patches:
    rng = np.random.default_rng(1)
    nodule = np.arange(40) % 4 == 0
    values = rng.integers(0, 100, (40, 2, 24, 24, 24), np.uint8)
    values[nodule, :, 9:15, 9:15, 9:15] += 100
    return Patches(values, nodule)


def test_a_scene_is_the_same_for_the_same_seed_and_holds_its_nodules() -> None:
    host = a_host()
    one, other = (make_scene(host, (), 3, np.random.default_rng(5), as_scanned=True) for _ in range(2))
    assert np.array_equal(one.hu, other.hu)
    assert one.nodules
    for nodule in one.nodules:
        middle = tuple(np.rint(nodule.centre).astype(int))
        assert one.hu[middle] > host.hu[middle] + 100


def test_candidates_on_nodules_are_positive_and_others_are_not() -> None:
    scene = make_scene(a_host(), (), 3, np.random.default_rng(5), as_scanned=True)
    patches = labelled_patches(scene, 100)
    assert len(patches.values) == len(patches.nodule)
    assert 1 <= patches.nodule.sum() <= 3 * len(scene.nodules)


def test_the_nearest_nodule_is_hit() -> None:
    near, far = (Inserted((10.0, 10.0, x), 8.0, 8.0, 8.0, "solid") for x in (10.0, 16.0))
    assert nodule_at(np.array([10.0, 10.0, 11.0]), (near, far)) is near
    assert nodule_at(np.array([10.0, 10.0, 30.0]), (near, far)) is None


def test_thick_slices_keep_what_does_not_change_along_z() -> None:
    plane = np.random.default_rng(2).normal(size=(1, 5, 5)).astype(np.float32)
    assert thick_slices(np.repeat(plane, 30, 0), 5.0, 5.0, 0.3) == pytest.approx(np.repeat(plane, 30, 0), abs=1e-5)


def test_training_is_deterministic_and_resumes(tmp_path: Path) -> None:
    weights = []
    for name, stops in (("whole", (2,)), ("again", (2,))):
        (tmp_path / name).mkdir()
        for steps in stops:
            net = train(some_patches(), tmp_path / name, steps, seed=3)
        weights.append(net.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    resumed = train(some_patches(), tmp_path / "again", 2, seed=3)
    assert all(torch.equal(weights[0][key], value) for key, value in resumed.state_dict().items())


def test_platt_scaling_recovers_a_known_one() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 4, 4000)
    truth = rng.random(4000) < 1 / (1 + np.exp(-(logits - 1.5) / 2.0))
    temperature, bias = fit_platt(logits, truth)
    assert temperature == pytest.approx(2.0, rel=0.15)
    assert bias == pytest.approx(-1.5, abs=0.3)


def test_exported_weights_judge_and_a_wrong_digest_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Path("models/weights")
    document = json.loads((model / "model.json").read_text())
    (tmp_path / "model.onnx").write_bytes((model / document["weights"]).read_bytes())
    assert export(NoduleNet().eval(), tmp_path / "nodules.onnx") < 1e-3
    document["nodules"] = {
        "weights": "nodules.onnx",
        "sha256": "0" * 64,
        "input": "patches",
        "minimum_diameter_mm": 4.0,
        "present_probability": 0.5,
        "absent_probability": 0.1,
        "temperature": 1.0,
        "bias": 0.0,
        "chosen_on": "nothing",
    }
    (tmp_path / "model.json").write_text(json.dumps(document))
    with pytest.raises(ManifestMismatch, match=r"nodules\.onnx has SHA-256"):
        ModelSession.open(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"network": {}}'])
def test_figures_that_describe_no_network_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / FIGURES_NAME).write_text(content)
    with pytest.raises(ValueError, match=rf"^\S*{FIGURES_NAME} describes no network for nodules$"):
        read_network(tmp_path)


def test_a_run_starts_from_the_network_of_a_model_folder(tmp_path: Path) -> None:
    """It answers as that one did, and its normalisations do their work again."""
    patches = torch.from_numpy(some_patches().values)
    session = ModelSession.open(BUNDLED_MODEL_DIR)
    started = exported_nodule_network(BUNDLED_MODEL_DIR)
    normalise(started, [patches.float()])
    started.eval()
    with torch.no_grad():
        torch.testing.assert_close(started(patches.float()), torch.from_numpy(session.judge(patches.numpy())))
    assert float(started.fine[1].running_var.std()) > 0

    trained = train(some_patches(), tmp_path, 1, seed=3, start_from=BUNDLED_MODEL_DIR)
    for now, then in ((trained.fine[0], started.fine[0]), (trained.answer[0], started.answer[0])):
        assert float((now.weight - then.weight).detach().abs().max()) < 0.01
    without = load_manifest(BUNDLED_MODEL_DIR).model_copy(update={"nodules": None})
    (tmp_path / MANIFEST_NAME).write_text(without.model_dump_json())
    with pytest.raises(ValueError, match="no network for nodules"):
        exported_nodule_network(tmp_path)


@pytest.mark.parametrize("diameter_mm", [4.0, 8.0, 30.0])
def test_the_corners_around_a_body_stay_empty(diameter_mm: float) -> None:
    """Large outlines made small left a cube of haze around the nodule."""
    z, y, x = np.ogrid[:31, :31, :31]
    ball = ((z - 15) ** 2 + (y - 15) ** 2 + (x - 15) ** 2 < 12**2).astype(np.float32)
    rng = np.random.default_rng(6)
    bodies = [draw_body((ndimage.gaussian_filter(ball, 0.7),), diameter_mm, rng) for _ in range(20)]
    assert max(float(body[::step, ::step, ::step].max()) for body in bodies if (step := len(body) - 1)) == 0
    volumes_mm3 = np.array([body.sum() for body in bodies])
    assert np.median((6 * volumes_mm3 / np.pi) ** (1 / 3)) == pytest.approx(diameter_mm, rel=0.1)


def test_another_network_for_nodules_answers_nothing_until_it_is_measured(tmp_path: Path) -> None:
    model, nodules = tmp_path / "model", tmp_path / "nodules"
    shutil.copytree(BUNDLED_MODEL_DIR, model)
    nodules.mkdir()
    torch.manual_seed(0)
    export(NoduleNet().eval(), nodules / "nodules.onnx")
    before = load_manifest(model)
    assert before.nodules is not None
    digest = hashlib.sha256((nodules / "nodules.onnx").read_bytes()).hexdigest()
    other = before.nodules.model_copy(update={"sha256": digest, "present_probability": 0.7})
    (nodules / FIGURES_NAME).write_text(json.dumps({"network": other.model_dump()}))

    replace_nodules(model, nodules, "9.9.9")
    after = ModelSession.open(model).manifest
    assert (after.version, after.nodules, after.sha256) == ("9.9.9", other, before.sha256)
    assert set(after.withheld) == set(after.evidence) == set(before.evidence)
    (nodules / "nodules.onnx").write_bytes(b"something else")
    with pytest.raises(ManifestMismatch, match="SHA-256"):
        replace_nodules(model, nodules, "9.9.10")
    assert load_manifest(model) == after
