import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
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
    assert not training_doubts([case("normal_001", "NSCLC-Radiomics")], MANIFEST)
