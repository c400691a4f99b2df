"""`onescan train` and `onescan export` as a user runs them, on phantoms small enough to take seconds."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from running import ROOT, onescan, refused

from imaging.phantom import ANATOMY, make_phantom
from models import BUNDLED_MODEL_DIR
from models.findings import FindingKind
from models.manifest import load_manifest
from models.measured import RULES
from models.session import ModelSession
from models.training.dataset import read_config
from models.training.network import LESIONS
from models.training.recalibrate import main, recalibrate
from models.training.train import CHECKPOINT, steps_done

pytestmark = pytest.mark.acceptance

CONFIG = """
seed = 1
steps = 20
batch = 1
precision = "float32"
crop = [32, 32, 32]
learning_rate = 1e-3
features = [4, 4, 4, 4, 4]
healthy = 0.1
phantom_folder = "phantoms"
phantom_first_seed = 0
phantoms = 2
[mix]
real = 0.0
painted = 0.0
phantom = 1.0
"""


def write_phantoms(folder: Path, seeds: list[int]) -> None:
    """Stored phantoms in the place of real ones: two lungs in a block, an effusion in every second."""
    folder.mkdir()
    z, y, x = np.ogrid[:32, :32, :48]
    for seed in seeds:
        rng = np.random.default_rng(seed)
        hu = rng.normal(40, 10, (32, 32, 48)).astype(np.int16)
        anatomy = np.full(hu.shape, ANATOMY.index("body"), np.uint8)
        lesions = np.zeros(hu.shape, np.uint8)
        for name, centre in (("lung_right", 13), ("lung_left", 35)):
            lung = ((z - 16) / 13) ** 2 + ((y - 16) / 13) ** 2 + ((x - centre) / 9) ** 2 < 1
            hu[lung], anatomy[lung] = -850, ANATOMY.index(name)
            fluid = lung & (y > 20)
            if seed % 2:
                hu[fluid] = 10
                lesions[fluid] |= 1 << LESIONS.index(FindingKind.PLEURAL_EFFUSION)
        np.savez_compressed(folder / f"{seed}.npz", hu=hu, anatomy=anatomy, lesions=lesions, unknown=lesions * 0)


def write_image(path: Path) -> None:
    """A coarse phantom as a volume."""
    image = sitk.GetImageFromArray(make_phantom(2, spacing_mm=(5.0, 4.0, 4.0)).volume.hu)
    image.SetSpacing((4.0, 4.0, 5.0))
    sitk.WriteImage(image, str(path))


def write_real(folder: Path) -> Path:
    """An index of one labelled volume."""
    write_image(folder / "real.nii.gz")
    index = folder / "studies.toml"
    index.write_text(
        'version = 1\n[[studies]]\nname = "one"\npath = "real.nii.gz"\nsource = "made"\nabsent = ["pleural_effusion"]\n'
    )
    return index


def test_a_configuration_becomes_a_model_folder_that_the_product_opens(tmp_path: Path) -> None:
    """Train, train on to more steps, export with a variant."""
    config, run, model = tmp_path / "my.toml", tmp_path / "run", tmp_path / "model"
    config.write_text(CONFIG)
    write_phantoms(tmp_path / "phantoms", [0, 1, *range(5000, 5004), *range(6000, 6004), *range(7000, 7004)])
    trained = onescan("train", config, "--run", run, "--threads", "1")
    assert trained.returncode == 0, trained.stderr
    config.write_text(CONFIG.replace("steps = 20", "steps = 40"))
    assert onescan("train", config, "--run", run, "--threads", "1").returncode == 0
    assert [line.split(",")[0] for line in (run / "progress.csv").read_text().split()] == ["20", "40"]
    assert (run / "progress.svg").exists()

    index = write_real(tmp_path)
    exported = onescan(
        "export",
        config,
        run,
        "--real",
        index,
        "--out",
        model,
        "--variant",
        "bf16",
        "--simulate",
        "4",
        "--threads",
        "1",
        "--version",
        "7",
    )
    assert exported.returncode == 0, exported.stderr
    assert "bf16" in exported.stderr
    manifest = load_manifest(model)
    assert manifest.version == "7"
    assert ModelSession.open(model, threads=1).manifest == manifest
    assert manifest.nodules == load_manifest(BUNDLED_MODEL_DIR).nodules
    assert str(BUNDLED_MODEL_DIR) in exported.stdout.replace("\n", "")
    # What was not tried in the export is not answered before `onescan evaluate` has tried it.
    assert manifest.withheld.keys() >= {FindingKind.PULMONARY_NODULE, FindingKind.EMPHYSEMA, *RULES}
    assert [source.name for source in manifest.training_data][:2] == ["2 phantoms of imaging.phantom", "one"]
    assert json.loads((model / "model.json").read_text())["sha256"] == manifest.sha256

    # Other cuts for the same weights: what was measured at the old ones says nothing any more.
    recalibrate(model, read_config(config), index, "8", 4)
    recalibrated = load_manifest(model)
    assert (recalibrated.version, recalibrated.sha256) == ("8", manifest.sha256)
    assert recalibrated.operating_points == manifest.operating_points
    assert recalibrated.withheld.keys() == recalibrated.evidence.keys() >= {*LESIONS, *RULES}
    assert not any(evidence.trials for evidence in recalibrated.evidence.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("real = 0.0\npainted = 0.0\nphantom = 1.0", "real = 0.5\npainted = 0.0\nphantom = 0.5"), "the mix asks for"),
        (("real = 0.0", "real = 0.5"), "add up to 1.5, not to 1"),
        (('precision = "float32"', 'precision = "half"'), "my.toml: precision"),
        (('precision = "float32"', ""), "my.toml: precision: the key is missing"),
        (("seed = 1", "sead = 1"), "sead: there is no such key"),
        (("seed = 1", "seed ="), "my.toml"),
        (("[32, 32, 32]", "[32, 40, 32]"), "crop.1: Input should be a multiple of 16"),
        (("phantom = 1.0", ""), "mix.phantom: the key is missing"),
        (("seed = 1", 'seed = 1\nstart_from = "phantoms"'), "no readable model.json"),
        (("seed = 1", 'seed = 1\nstart_from = "bundled"'), "another network than `features` asks for"),
    ],
)
def test_a_wrong_configuration_is_explained(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    config = tmp_path / "my.toml"
    config.write_text(CONFIG.replace(*change))
    write_phantoms(tmp_path / "phantoms", [0, 1])
    assert said in refused("train", config, "--run", tmp_path / "run")


def test_a_run_that_cannot_go_on_says_why(tmp_path: Path) -> None:
    """Other features than before; a loss that is no number; steps that are done already, which is no mistake."""
    config, run = tmp_path / "my.toml", tmp_path / "run"
    config.write_text(CONFIG.replace("steps = 20", "steps = 1"))
    write_phantoms(tmp_path / "phantoms", [0, 1])
    assert onescan("train", config, "--run", run, "--threads", "1").returncode == 0
    saved = (run / CHECKPOINT).read_bytes()

    done = onescan("train", config, "--run", run)
    assert (done.returncode, "nothing to train" in done.stdout) == (0, True)
    config.write_text(CONFIG.replace("[4, 4, 4, 4, 4]", "[4, 4, 4, 4, 8]"))
    assert "features" in refused("train", config, "--run", run)
    config.write_text(CONFIG.replace("1e-3", "1e30"))
    stopped = onescan("train", config, "--run", run)
    assert (stopped.returncode, len(stopped.stderr.strip().splitlines())) == (1, 1)
    assert "step" in stopped.stderr
    assert (run / CHECKPOINT).read_bytes() == saved


def test_an_export_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    config, run, index = tmp_path / "my.toml", tmp_path / "run", tmp_path / "studies.toml"
    config.write_text(CONFIG.replace("steps = 20", "steps = 1"))
    run.mkdir()
    (tmp_path / "one.nii.gz").write_bytes(b"no image")
    index.write_text('version = 1\n[[studies]]\nname = "one"\npath = "one.nii.gz"\nsource = "made"\n')

    def said(*more: str | Path) -> str:
        return refused("export", config, run, "--real", index, "--out", tmp_path / "model", *more)

    assert CHECKPOINT in said()
    (run / CHECKPOINT).write_bytes(b"no checkpoint")
    assert "cannot be read" in said()
    (run / CHECKPOINT).unlink()
    write_phantoms(tmp_path / "phantoms", [0, 1])
    assert onescan("train", config, "--run", run, "--threads", "1").returncode == 0
    assert "one.nii.gz cannot be read" in said()
    index.write_text("version = 1\n")
    assert "studies.toml" in said()
    index.write_text("version = 1\nstudies = []\n")
    assert "studies.toml names no study" in said().replace("\n", " ")
    assert "model.json" in said("--nodules", tmp_path)
    assert "Cannot write to" in said("--out", index / "model")
    config.write_text(CONFIG.replace("seed = 1\n", ""))
    assert "seed: the key is missing" in said()
    assert not (tmp_path / "model").exists()


def test_a_model_that_cannot_be_recalibrated_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    arguments = [str(tmp_path), str(tmp_path / "my.toml"), str(tmp_path / "studies.toml"), "--version", "2"]
    monkeypatch.setattr("sys.argv", ["recalibrate", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "no readable model.json" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_example_for_own_volumes_trains(tmp_path: Path) -> None:
    """A copy of own.toml beside a labelled folder, made small, from the bundled network on."""
    small = {"steps": "2", "batch": "1", "precision": '"float32"', "crop": "[32, 32, 32]", "phantoms": "2"}
    text = (ROOT / "models/training/own.toml").read_text()
    for key, value in small.items():
        text, found = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        assert found == 1
    config, volume = tmp_path / "my.toml", tmp_path / "labelled" / "one"
    config.write_text(text)
    volume.mkdir(parents=True)
    write_image(volume / "image.nii.gz")
    (volume / "labels.toml").write_text('version = 1\nname = "one"\nlicence = "made"\nabsent = ["pneumothorax"]\n')
    write_phantoms(tmp_path / "phantoms", [1000, 1001])

    assert read_config(config).labelled == (volume,)
    trained = onescan("train", config, "--run", tmp_path / "run", "--threads", "1")
    assert trained.returncode == 0, trained.stderr
    assert steps_done(tmp_path / "run") == 2


def test_phantoms_that_check_what_was_learnt_are_no_training_data(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG.replace("phantom_first_seed = 0", "phantom_first_seed = 4999"))
    with pytest.raises(ValueError, match="from seed 5000 on are kept"):
        read_config(tmp_path / "c.toml")
