"""A few steps of the real training loop on a tiny network, then the real export and its comparison."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models import BUNDLED_MODEL_DIR
from models.errors import ManifestMismatch
from models.manifest import MANIFEST_NAME, load_manifest
from models.training import bundle
from models.training.bundle import Studies, _seen_before, read_studies, write_bundle
from models.training.curves import CURVES_NAME, PROGRESS_NAME, Progress, append_progress, read_progress
from models.training.dataset import Config, Mix, Sources
from models.training.export import compare, export, folded, trained_network, unfitted
from models.training.familiarity import familiarity, fit_strangeness
from models.training.labels import LABEL
from models.training.network import LESIONS, Block, ChestNet, StudyHead, study_evidence
from models.training.sources import OrganMap, Sample
from models.training.start import exported_network, normalise
from models.training.train import (
    CHECKPOINT,
    STARTED_FROM,
    batches,
    is_emulated,
    learning_rate,
    steps_done,
    train,
)
from models.training.variants import Variant, measured_loss, write_variant

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript:DeprecationWarning"),
    # the loader forks its worker while pytest's process has threads of torch
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]
FEATURES = (4, 4, 4, 4, 4)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        data_root=tmp_path,
        seed=3,
        steps=3,
        batch=2,
        precision="float32",
        crop=(16, 32, 32),
        learning_rate=1e-3,
        features=FEATURES,
        healthy=0.0,
        mix=Mix(real=0.6, painted=0.4, phantom=0.0),
        volumes=(),
        held_out=(),
        labelled=(),
        organ_map="",
        organ_map_licence="",
        phantom_folder=tmp_path,
        phantom_first_seed=0,
        phantoms=0,
    )


@pytest.fixture
def sources() -> Sources:
    shape = (40, 40, 48)
    z, y, x = np.ogrid[:40, :40, :48]
    hu = np.full(shape, 40.0, np.float32)
    anatomy = np.full(shape, LABEL["body"], np.uint8)
    organ = np.zeros(shape, np.uint8)
    for number, (name, centre) in enumerate((("lung_right", 13), ("lung_left", 35)), start=1):
        lung = ((z - 20) / 18) ** 2 + ((y - 20) / 17) ** 2 + ((x - centre) / 10) ** 2 < 1
        hu[lung], anatomy[lung], organ[lung] = -850.0, LABEL[name], number
    zeros = np.zeros(shape, np.uint8)
    names = {1: "lung_upper_lobe_right", 2: "lung_upper_lobe_left"}
    return Sources(
        real=(Sample(hu=hu, anatomy=anatomy, lesions=zeros, unknown=zeros),),
        organs=OrganMap(anatomy=anatomy, organ=organ, names=names),
        phantoms=(),
    )


def weights(net: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().float().flatten() for value in net.state_dict().values()])


def blocks(net: ChestNet) -> list[Block]:
    return [module for module in net.modules() if isinstance(module, Block)]


def test_a_processor_without_bfloat16_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert is_emulated("bfloat16")
    assert not is_emulated("float32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not is_emulated("bfloat16")


def test_the_seed_decides_the_network(config: Config, sources: Sources, tmp_path: Path) -> None:
    """Equal up to the rounding of oneDNN's convolutions, which Adam's first steps enlarge."""
    trained = {}
    for name, seed in (("first", 3), ("same", 3), ("other", 4)):
        (tmp_path / name).mkdir()
        trained[name] = weights(train(replace(config, seed=seed), sources, tmp_path / name))
    assert all(torch.isfinite(values).all() for values in trained.values())
    same = float((trained["first"] - trained["same"]).norm())
    other = float((trained["first"] - trained["other"]).norm())
    assert same < 0.01 * other


def test_more_processors_make_the_same_batches(
    config: Config, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {}
    for processors, workers in ((1, 1), (2, 1), (4, 3), (64, 8)):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, count=processors: set(range(count)))
        made[processors] = batches(replace(config, steps=5), sources, 1)
        assert made[processors].num_workers == workers
    for few, many in zip(made[2], made[4], strict=True):
        assert all(torch.equal(few[name], many[name]) for name in ("hu", "anatomy", "lesions", "unknown"))


def test_a_run_that_has_its_steps_is_left_as_it_is(config: Config, sources: Sources, tmp_path: Path) -> None:
    done = weights(train(config, sources, tmp_path))
    assert torch.equal(weights(train(replace(config, steps=1), sources, tmp_path)), done)
    assert steps_done(tmp_path) == config.steps


def test_a_run_goes_on_where_it_stopped(config: Config, sources: Sources, tmp_path: Path) -> None:
    train(replace(config, steps=2), sources, tmp_path)
    stopped = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    train(config, sources, tmp_path)
    ended = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert (stopped["step"], ended["step"]) == (2, 3)
    assert any((stopped["net"][key] != ended["net"][key]).any() for key in stopped["net"])


def test_a_run_starts_from_an_exported_network(config: Config, sources: Sources, tmp_path: Path) -> None:
    """It answers as that one did, its normalisations do their work again, and the training begins there."""
    torch.manual_seed(5)
    net = ChestNet(FEATURES)
    grids = [torch.randn(2, 1, 16, 32, 32) * 400 - 300 for _ in range(4)]
    for grid in grids:
        net(grid)
    folder = tmp_path / "model"
    folder.mkdir()
    export(net, StudyHead(), unfitted(net), folder / "model.onnx")
    weights = (folder / "model.onnx").read_bytes()
    manifest = load_manifest(BUNDLED_MODEL_DIR).model_copy(update={"sha256": hashlib.sha256(weights).hexdigest()})
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json())

    started = exported_network(folder, FEATURES)
    normalise(started, grids)
    net.eval()
    started.eval()
    with torch.no_grad():
        for then, now in zip(net(grids[0]), started(grids[0]), strict=True):
            torch.testing.assert_close(now, then, atol=1e-4, rtol=1e-4)
        of_grids = [started.stem[0](started.windows(grid)) for grid in grids]
    seen = torch.cat([values.transpose(0, 1).flatten(1) for values in of_grids], dim=1)
    torch.testing.assert_close(started.stem[1].running_mean, seen.mean(dim=1))
    torch.testing.assert_close(started.stem[1].running_var, seen.var(dim=1), rtol=0.01, atol=0.01)

    train(replace(config, steps=1, start_from=folder), sources, tmp_path)
    trained = ChestNet(FEATURES)
    trained.load_state_dict(torch.load(tmp_path / CHECKPOINT, weights_only=True)["net"])
    # As exported each scales by 1, which a step of training hardly moves: those of the run have been measured.
    assert all(float((block[1].weight - 1).detach().abs().max()) > 0.05 for block in blocks(trained))
    assert all(
        float((now[0].weight - then[0].weight).detach().abs().max()) < 0.01
        for now, then in zip(blocks(trained), blocks(started), strict=True)
    )
    with pytest.raises(ValueError, match="features"):
        exported_network(folder, (4, 4, 4, 4, 8))
    shutil.rmtree(folder)
    train(replace(config, steps=2, start_from=folder), sources, tmp_path)
    assert steps_done(tmp_path) == 2, "a run that goes on needs no model to start from"
    known = {source.name for source in _seen_before(tmp_path / STARTED_FROM)}
    assert known == {source.name for source in manifest.training_data if source.use == "training"} != set()
    (tmp_path / CHECKPOINT).unlink()
    train(replace(config, steps=1), sources, tmp_path)
    assert _seen_before(tmp_path / STARTED_FROM) == ()


def test_other_weights_than_the_manifest_says_are_not_started_from(tmp_path: Path) -> None:
    shutil.copy(BUNDLED_MODEL_DIR / MANIFEST_NAME, tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"others")
    with pytest.raises(ManifestMismatch, match="SHA-256"):
        exported_network(tmp_path, FEATURES)


@pytest.mark.parametrize("stored", ["outside", "bf16"])
def test_weights_that_are_no_float32_of_the_file_itself_are_not_started_from(stored: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    net = ChestNet((8, 8, 8, 8, 8)).eval()
    path = tmp_path / "model.onnx"
    export(net, StudyHead(), unfitted(net), path)
    if stored == "bf16":
        write_variant(path, path, "bf16")
    else:
        onnx.save(onnx.load(path), path, save_as_external_data=True, location="outside.bin", size_threshold=0)
        assert (tmp_path / "outside.bin").exists()
    manifest = load_manifest(BUNDLED_MODEL_DIR)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / MANIFEST_NAME).write_text(manifest.model_copy(update={"sha256": digest}).model_dump_json())
    with pytest.raises(ValueError, match="not in float32"):
        exported_network(tmp_path, (8, 8, 8, 8, 8))


def test_too_little_memory_of_a_gpu_is_named(
    config: Config, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("models.training.train.batch_loss", full)
    with pytest.raises(MemoryError, match="2 crops"):
        train(config, sources, tmp_path)


def test_a_loss_that_is_no_number_stops_the_run(config: Config, sources: Sources, tmp_path: Path) -> None:
    train(replace(config, steps=1), sources, tmp_path)
    sources.real[0].hu[:] = np.nan
    with pytest.raises(FloatingPointError, match="step 1"):
        train(replace(config, mix=Mix(real=1.0, painted=0.0, phantom=0.0)), sources, tmp_path)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 1


def test_the_learning_rate_ends_near_nothing(config: Config) -> None:
    long = replace(config, steps=1000)
    rates = [learning_rate(long, step) for step in range(1000)]
    assert rates.index(max(rates)) < 60
    assert rates[-1] < 0.01 * max(rates)
    assert all(rate > 0 for rate in rates)


def test_the_exported_graph_says_what_torch_says(config: Config, sources: Sources, tmp_path: Path) -> None:
    train(config, sources, tmp_path)
    net = trained_network(FEATURES, tmp_path / CHECKPOINT)
    path = tmp_path / "model.onnx"
    strangeness = fit_strangeness(torch.randn(20, net.summary_channels))
    export(net, StudyHead(), strangeness, path)
    difference = compare(net, StudyHead(), strangeness, path, (32, 48, 32), seed=2)
    assert difference.lesions < 1e-4
    assert difference.study_logits < 1e-3
    assert difference.strangeness < 1e-3
    assert difference.anatomy_share < 1e-3
    assert b"BatchNormalization" not in path.read_bytes()


@pytest.mark.parametrize(("variant", "share"), [("int8", 0.6), ("bf16", 0.8)])
def test_a_variant_is_smaller_and_its_loss_is_measured(variant: Variant, share: float, tmp_path: Path) -> None:
    torch.manual_seed(2)
    net = ChestNet((8, 8, 8, 8, 8)).eval()
    whole, small = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    export(net, StudyHead(), unfitted(net), whole)
    write_variant(whole, small, variant)
    rng = np.random.default_rng(0)
    grids = [rng.normal(-300, 500, (1, 1, 32, 32, 32)).astype(np.float32)]
    loss = measured_loss(whole, small, grids, 1)
    assert loss.bytes_variant < share * loss.bytes_float32
    assert 0 < loss.lesion_probability < 0.05
    assert loss.acceptable == (loss.lesion_dice >= 0.98 and loss.study_logit <= 0.1 and loss.label_share <= 0.005)
    assert measured_loss(whole, whole, grids, 1).acceptable


def test_a_run_tells_its_course_and_draws_it(config: Config, sources: Sources, tmp_path: Path) -> None:
    (tmp_path / PROGRESS_NAME).write_text("20,9,2.0,1.0\n40,18,1.5,0.9\n20,8,1.9,1.1\n")
    heard: list[Progress] = []
    train(replace(config, steps=20, batch=1), sources, tmp_path, heard.append)
    assert [(one.step, one.lesions > 0) for one in heard] == [(20, True)]
    course = read_progress(tmp_path)
    assert [one.step for one in course] == [20, 40]
    assert course[0].anatomy == pytest.approx(heard[0].anatomy, abs=1e-4)
    assert (tmp_path / CURVES_NAME).read_text().startswith("<svg")


@pytest.mark.parametrize("torn", ["4", "40,18,1.5", "40,18,1.5,0.", "40,18,1.5,0.9"])
def test_a_line_that_a_run_was_stopped_in_is_no_progress(tmp_path: Path, torn: str) -> None:
    (tmp_path / PROGRESS_NAME).write_text(f"20,9,2.0,1.0\n\0\0,\n{torn}")
    assert [one.step for one in read_progress(tmp_path)] == [20]
    append_progress(tmp_path, Progress(60, 8.0, 1.9, 1.1))
    assert [one.step for one in read_progress(tmp_path)] == [20, 60]


def test_folding_changes_no_answer() -> None:
    torch.manual_seed(1)
    net = ChestNet(FEATURES)
    for _ in range(3):
        net(torch.randn(2, 1, 16, 32, 32) * 400)
    net.eval()
    hu = torch.randn(1, 1, 16, 32, 16) * 400
    with torch.no_grad():
        for before, after in zip(net(hu), folded(net)(hu), strict=True):
            torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


def test_more_lesion_is_more_evidence() -> None:
    small = torch.zeros(1, len(LESIONS), 16, 16, 16)
    large = small.clone()
    small[:, :, 4:6, 4:6, 4:6] = 0.9
    large[:, :, 4:12, 4:12, 4:12] = 0.9
    assert (study_evidence(large) > study_evidence(small)).all()
    assert (study_evidence(torch.full_like(small, 0.4))[..., 0] == 0).all()


def test_what_lies_outside_the_known_images_is_strange() -> None:
    """Within the limit: another of the same kind. Beyond it: one that differs in a direction in which none varied."""
    torch.manual_seed(2)
    spread = torch.tensor([3.0, 1.0, 1.0, 0.1])
    strangeness, known = familiarity(torch.randn(60, 4) * spread, torch.randn(6, 4) * spread)
    assert (strangeness(torch.randn(50, 4) * spread) < known.limit).float().mean() > 0.9
    assert strangeness(torch.tensor([[0.0, 0.0, 0.0, 3.0]])) > known.limit
    assert strangeness(torch.tensor([[3.0, 0.0, 0.0, 0.0]])) < known.limit


@pytest.mark.parametrize(("weights", "said"), [(None, "cannot be read"), (b"others", "SHA-256")])
def test_weights_for_nodules_that_the_manifest_does_not_name_are_refused_before_the_run_is_read(
    config: Config, tmp_path: Path, weights: bytes | None, said: str
) -> None:
    shutil.copy(BUNDLED_MODEL_DIR / MANIFEST_NAME, tmp_path)
    if weights is not None:
        (tmp_path / "nodules.onnx").write_bytes(weights)
    with pytest.raises(ManifestMismatch, match=f"nodules.onnx .*{said}"):
        write_bundle(config, tmp_path / "no.toml", tmp_path / "no run", tmp_path / "out", "0", 4, tmp_path)


def test_a_model_folder_stays_as_it_is_when_an_export_fails_late(
    config: Config, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    train(replace(config, steps=1, batch=1), sources, run)
    out.mkdir()
    (out / MANIFEST_NAME).write_text("a manifest")
    (out / "model.onnx").write_text("its weights")

    def too_late(_: object) -> None:
        assert (out / "model.onnx").read_text() == "its weights"
        raise ValueError("late")

    monkeypatch.setattr(bundle, "read_studies", lambda *_: Studies(fitting=(), testing=(), real=()))
    monkeypatch.setattr(bundle, "fit_head", too_late)
    with pytest.raises(ValueError, match="late"):
        write_bundle(config, tmp_path / "index.toml", run, out, "0", 4)
    held = {path.name: path.read_text() for path in out.iterdir()}
    assert held == {MANIFEST_NAME: "a manifest", "model.onnx": "its weights"}


def test_an_index_without_studies_is_refused_before_anything_is_simulated(config: Config, tmp_path: Path) -> None:
    index = tmp_path / "studies.toml"
    index.write_text("version = 1\nstudies = []\n")
    with pytest.raises(ValueError, match=r"studies\.toml names no study"):
        read_studies(config, index, 4)


@pytest.mark.parametrize(("real", "total"), [(0.1, "0.7"), (0.9, "1.5"), (0.0, "0.6")])
def test_a_mix_is_of_the_whole(real: float, total: str) -> None:
    assert Mix(real=0.7, painted=0.1, phantom=0.2).real == 0.7
    with pytest.raises(ValueError, match=f"add up to {total}, not to 1"):
        Mix(real=real, painted=0.2, phantom=0.4)
