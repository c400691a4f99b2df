"""Studies as training and export read them."""

import shutil
import tempfile
from pathlib import Path

import pytest
from factories import save_ct

from models.training.studies import read_volume


def test_archives_among_the_data_are_unpacked_elsewhere_and_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, elsewhere, study = (tmp_path / name for name in ("data", "elsewhere", "study"))
    for folder in (data, elsewhere, study):
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    for number in range(1, 31):
        save_ct(study / f"{number}.dcm", InstanceNumber=number)
    shutil.make_archive(str(data / "study"), "zip", study)
    assert read_volume(data).hu.shape == (30, 16, 16)
    assert [path.name for path in data.iterdir()] == ["study.zip"]
    assert not list(elsewhere.iterdir())
