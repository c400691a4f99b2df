"""Images that were decoded before their series was whole give the same volume, and are not decoded again."""

import os
from pathlib import Path

import numpy as np
import pytest
from compressed import save_compressed
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from imaging import volume
from imaging.ahead import decode_ahead, not_decoded
from imaging.errors import UnreadableInstance
from imaging.headers import Series, read_studies
from imaging.volume import load_volume


def read_series(folder: Path, syntax: str, count: int = 4) -> Series:
    folder.mkdir(exist_ok=True)
    for number in range(1, count + 1):
        save_compressed(folder / f"{number}.dcm", syntax, number)
    ((study,), _) = read_studies(sorted(folder.iterdir()))
    return study.series[0]


@pytest.fixture
def decoded(tmp_path: Path) -> Path:
    folder = tmp_path / "decoded"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_the_volume_is_the_same(tmp_path: Path, decoded: Path, monkeypatch, syntax: str) -> None:
    series = read_series(tmp_path / "series", syntax)
    expected = load_volume(series).hu
    decode_ahead(series.slices[1:3], decoded)
    assert not_decoded(series.slices, decoded) == (series.slices[0], series.slices[3])
    np.testing.assert_array_equal(load_volume(series, decoded).hu, expected)
    decode_ahead(not_decoded(series.slices, decoded), decoded)
    monkeypatch.setattr(volume, "decode_into", lambda *_: pytest.fail("decoded again"))
    np.testing.assert_array_equal(load_volume(series, decoded).hu, expected)


def test_files_that_are_not_of_the_image_are_not_used(tmp_path: Path, decoded: Path) -> None:
    series = read_series(tmp_path / "series", JPEGLSLossless)
    expected = load_volume(series).hu
    decode_ahead(series.slices, decoded)
    cut, older, empty, _ = sorted(decoded.iterdir())
    cut.write_bytes(cut.read_bytes()[:-1])
    older.write_bytes(bytes(len(older.read_bytes())))
    os.utime(older, ns=(0, series.slices[1].path.stat().st_mtime_ns - 1))
    empty.write_bytes(b"")
    np.testing.assert_array_equal(load_volume(series, decoded).hu, expected)


def test_images_of_one_name_in_two_series_are_kept_apart(tmp_path: Path, decoded: Path) -> None:
    series = []
    for name, first in (("one", 1), ("other", 11)):
        (tmp_path / name).mkdir()
        for number in range(4):
            save_compressed(tmp_path / name / f"{number}.dcm", JPEGLSLossless, first + number)
        ((study,), _) = read_studies(sorted((tmp_path / name).iterdir()))
        series.append(study.series[0])
        decode_ahead(series[-1].slices, decoded)
    for kept in series:
        np.testing.assert_array_equal(load_volume(kept, decoded).hu, load_volume(kept).hu)


def test_a_damaged_image_leaves_nothing(tmp_path: Path, decoded: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    save_compressed(folder / "1.dcm", JPEGLSLossless, 1)
    save_compressed(folder / "2.dcm", JPEGLSLossless, 2, damage=lambda frame: frame[:40])
    ((study,), _) = read_studies(sorted(folder.iterdir()))
    with pytest.raises(UnreadableInstance):
        decode_ahead(study.series[0].slices, decoded)
    assert list(decoded.iterdir()) == []
