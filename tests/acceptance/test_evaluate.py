"""`onescan evaluate` as a user runs it: studies with truth files in; figures, grades and a page out."""

import json
import shutil
from pathlib import Path

import pytest
from running import ROOT, onescan, refused

from imaging.phantom import LesionRequest, make_phantom
from imaging.phantom_dicom import write_phantom, write_truth
from models.evaluation.evidence import withheld
from models.findings import FindingKind
from models.manifest import load_manifest

pytestmark = pytest.mark.acceptance


def test_labelled_studies_become_figures_and_the_evidence_of_the_model(tmp_path: Path) -> None:
    """One study is evaluated, one with a missing slice is named; a second run takes the first one's records."""
    source, out, model, card = (tmp_path / name for name in ("in", "out", "model", "card.md"))
    effusion = LesionRequest(kind="pleural_effusion", size=600.0, laterality="left")
    phantom = make_phantom(11, [effusion], spacing_mm=(4.0, 2.0, 2.0))
    for name in ("whole", "gap"):
        files = write_phantom(phantom, source / name, study_tag=name)
        write_truth(phantom, source / name / "truth.json")
    files[30].unlink()
    shutil.copytree(ROOT / "models" / "weights", model)
    shutil.copy(ROOT / "models" / "MODEL_CARD.md", card)
    arguments = ("evaluate", source, "--out", out, "--model", model, "--write-evidence", "--card", card)

    run = onescan(*arguments)
    assert run.returncode == 1, run.stderr
    assert "1 of 2 studies evaluated" in run.stdout
    assert "refused phantom gap" in run.stderr
    figures = json.loads((out / "evaluation.json").read_text())
    assert figures["not_evaluated"][0]["study"] == "phantom gap"
    (row,) = (row for row in figures["figures"] if row["kind"] == "pleural_effusion" and not row["subgroup"])
    assert (row["positive"], row["negative"], row["data"]) == (1, 0, "phantoms")
    assert {"evaluation.html", "figures.csv", "answers.csv", "measurements.csv"} <= {p.name for p in out.iterdir()}

    manifest = load_manifest(model)
    assert manifest.withheld == withheld(manifest.evidence)
    assert {evidence.grade.value for evidence in manifest.evidence.values()} == {"C"}
    assert manifest.evidence[FindingKind.PLEURAL_EFFUSION].trials[0].positive == 1
    assert f"| pleural_effusion | C | phantoms | {row['positive']} | 0 |" in card.read_text()

    kept = {path: path.stat().st_mtime_ns for path in (out / "studies").iterdir()}
    assert onescan(*arguments).returncode == 1
    assert {path: path.stat().st_mtime_ns for path in (out / "studies").iterdir()} == kept


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Nothing to evaluate"),
        (("nowhere",), "No such file"),
    ],
)
def test_wrong_usage_is_explained(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused("evaluate", *arguments, "--out", tmp_path)


def test_a_model_stays_as_it_is_when_no_study_could_be_read(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(ROOT / "models" / "weights", model)
    before = (model / "model.json").read_bytes()
    (tmp_path / "one.nii.gz").write_text("no image")
    index = tmp_path / "studies.toml"
    index.write_text('version = 1\n[[studies]]\nname = "one"\npath = "one.nii.gz"\nsource = "LIDC-IDRI"\n')
    run = onescan("evaluate", index, "--out", tmp_path / "out", "--model", model, "--write-evidence")
    assert run.returncode == 1
    assert "No evidence written" in run.stderr
    assert "one: not marked trained_on" in run.stderr
    assert (model / "model.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--simulate", "1", "--card", "FILE"), "--card is written with --write-evidence only"),
        (("--simulate", "1", "--write-evidence", "--card", "nowhere.md"), "No such file"),
        (("--simulate", "1", "--write-evidence", "--card", "FILE"), "does not hold the marks"),
        (("models/evaluation/shared.toml", "--hosts", "FILE"), "--hosts needs --simulate"),
        (("--simulate", "1", "--hosts", "nowhere.toml"), "No such file"),
        (("--simulate", "1", "--hosts", "models/MODEL_CARD.md"), "models/MODEL_CARD.md cannot be used"),
        (("--simulate", "1", "--hosts", "FILE"), "precision"),
        (("--simulate", "1001", "--hosts", "FILE"), "--simulate with --hosts goes up to 1000"),
        (("FILE",), "root: Input should be a valid string"),
    ],
)
def test_flags_that_would_do_nothing_and_files_that_cannot_be_used_are_told_before_the_run(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "file"
    file.write_text("steps = 1\nroot = 3\n")
    out = tmp_path / "out"
    assert said in refused("evaluate", *(file if a == "FILE" else a for a in arguments), "--out", out)
    assert not out.exists()


def test_what_would_stop_the_run_at_its_end_stops_it_at_its_beginning(tmp_path: Path) -> None:
    """A file where the folder of figures should be; weights that are not those of the manifest."""
    shutil.copy(ROOT / "models" / "weights" / "model.json", tmp_path)
    (tmp_path / "model.onnx").write_text("no weights")
    for out, said in ((tmp_path / "model.onnx" / "out", "Cannot write to"), (tmp_path / "out", "SHA-256")):
        assert said in refused("evaluate", "--simulate", "1", "--out", out, "--model", tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_evidence_of_the_bundled_model_is_printed() -> None:
    run = onescan("model", "--evidence")
    manifest = load_manifest(ROOT / "models" / "weights")
    assert run.returncode == 0, run.stderr
    assert manifest.sha256 in run.stdout
    assert all(reason in run.stdout for reason in manifest.withheld.values())
