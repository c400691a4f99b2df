"""`onescan train` and `onescan export` as a user runs them, on phantoms small enough to take seconds."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from running import onescan

from imaging.phantom import ANATOMY, make_phantom
from models.findings import FindingKind
from models.manifest import load_manifest
from models.session import ModelSession
from models.training.network import LESIONS

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


def write_real(folder: Path) -> Path:
    """An index of one labelled volume."""
    volume = make_phantom(2, spacing_mm=(5.0, 4.0, 4.0)).volume
    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing((4.0, 4.0, 5.0))
    sitk.WriteImage(image, str(folder / "real.nii.gz"))
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
    assert [source.name for source in manifest.training_data] == ["2 phantoms of imaging.phantom", "one"]
    assert json.loads((model / "model.json").read_text())["sha256"] == manifest.sha256


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("phantom = 1.0", "phantom = 0.5"), None),
        (("real = 0.0", "real = 0.5"), "the mix asks for"),
        (('precision = "float32"', 'precision = "half"'), "half"),
        (("seed = 1", "sead = 1"), "sead"),
        (("seed = 1", "seed ="), "cannot be used"),
    ],
)
def test_a_wrong_configuration_is_explained(tmp_path: Path, change: tuple[str, str], said: str | None) -> None:
    config = tmp_path / "my.toml"
    config.write_text(CONFIG.replace(*change).replace("steps = 20", "steps = 0"))
    write_phantoms(tmp_path / "phantoms", [0, 1])
    run = onescan("train", config, "--run", tmp_path / "run")
    assert run.returncode == (0 if said is None else 2)
    if said is not None:
        assert said in run.stderr
    assert "Traceback" not in run.stderr
