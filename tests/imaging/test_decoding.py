"""Decoding in processes: what a decoder does to itself costs its series, with the reason, and nothing else."""

import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from factories import make_ct_dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from imaging.decoding import StoredPlane, decode_into, plane_of
from imaging.errors import ImagingError, UnreadableInstance
from imaging.headers import read_studies
from imaging.pixels import Rescale
from imaging.volume import load_volume

_GONE_WRONG = Path(__file__).parents[1] / "decoder_gone_wrong.py"
_SIDE = 64
_ENCODERS = {
    JPEGLosslessSV1: lambda a: imagecodecs.ljpeg_encode(a, bitspersample=16),
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEG2000Lossless: lambda a: imagecodecs.jpeg2k_encode(a, level=0, codecformat="j2k", reversible=True),
}


def _decode_with(mode: str, time_limit_s: float = 60.0) -> np.ndarray:
    hu = np.empty((3, 4, 4), np.int16)
    rescale = Rescale(slope=1.0, intercept=0.0)
    planes = [
        StoredPlane(index=i, path=Path(f"{i}"), frame_number=None, pixels=None, rescale=rescale) for i in range(3)
    ]
    decode_into(hu, planes, decoder=(sys.executable, str(_GONE_WRONG), mode), time_limit_s=time_limit_s)
    return hu


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("abort", "ended by SIGABRT"),
        ("exit", "ended with 3"),
        ("hang", "longer than 2 s"),
        ("eat", "more than 1024 MiB"),
    ],
)
def test_a_decoder_gone_wrong_is_a_reason(mode: str, reason: str) -> None:
    with pytest.raises(UnreadableInstance, match=reason):
        _decode_with(mode, time_limit_s=2.0 if mode == "hang" else 60.0)


def test_code_beside_the_images_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("imaging.py", "numpy.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'run')!r}, 'w').close()")
    pixels = np.arange(_SIDE * _SIDE, dtype=np.uint16).reshape(_SIDE, _SIDE)
    ds = make_ct_dataset(Rows=_SIDE, Columns=_SIDE, BitsAllocated=16, BitsStored=16, HighBit=15, PixelRepresentation=0)
    ds.PixelData = encapsulate([imagecodecs.jpegls_encode(pixels)])
    ds.file_meta.TransferSyntaxUID = JPEGLSLossless
    ds.save_as(tmp_path / "1.dcm", enforce_file_format=True)
    (study,), _ = read_studies([tmp_path / "1.dcm"])
    image = study.series[0].slices[0]
    hu = np.empty((1, _SIDE, _SIDE), np.int16)
    monkeypatch.chdir(tmp_path)
    decode_into(hu, [plane_of(0, image)])
    assert not (tmp_path / "run").exists()
    assert hu[0].max() > hu[0].min()


def test_a_decoder_that_prints_does_not_print_into_the_pixels() -> None:
    np.testing.assert_array_equal(_decode_with("print")[:, 0, 0], [0, 1, 2])


def _series(folder: Path, syntax: str, damage, **overrides):
    """Two slices, the second with its encoded frame damaged."""
    folder.mkdir()
    stored = np.random.default_rng(0).integers(0, 3000, (_SIDE, _SIDE)).astype(np.uint16)
    values = {"Rows": _SIDE, "Columns": _SIDE, "PixelRepresentation": 0, "PixelData": stored.tobytes(), **overrides}
    for index in range(2):
        ds = make_ct_dataset(InstanceNumber=index + 1, **values)
        if syntax == RLELossless:
            ds.compress(RLELossless, generate_instance_uid=False)
            frame = next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))
        else:
            frame = _ENCODERS[syntax](stored)
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = encapsulate([damage(frame) if index else frame])
        ds["PixelData"].is_undefined_length = True
        ds.save_as(folder / f"{index}.dcm", enforce_file_format=True)
    studies, unreadable = read_studies(sorted(folder.iterdir()))
    assert not unreadable
    return studies[0].series[0]


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_damaged_streams_are_refused(tmp_path: Path, syntax: str) -> None:
    """Cut off after a fifth, which no decoder may fill up; and noise in place of the rest."""
    noise = np.random.default_rng(1).bytes(5000)
    for name, damage in {
        "cut": lambda frame: frame[: len(frame) // 5],
        "noise": lambda frame: frame[:100] + noise,
    }.items():
        with pytest.raises(ImagingError):
            load_volume(_series(tmp_path / name, syntax, damage))


def test_a_stream_that_claims_more_than_memory_is_refused(tmp_path: Path) -> None:
    """The size in the SIZ marker of JPEG 2000, not that of the header, is what a decoder makes room for."""

    def claim(frame: bytes) -> bytes:
        assert frame[2:4] == b"\xff\x51"
        huge = (65535).to_bytes(4, "big")
        return frame[:8] + huge + huge + frame[16:24] + huge + huge + frame[32:]

    with pytest.raises(ImagingError):
        load_volume(_series(tmp_path / "claim", JPEG2000Lossless, claim))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, JPEG2000Lossless])
@pytest.mark.parametrize(("rows", "frames"), [(65535, 10000), (20000, 1)])
def test_a_tiny_file_that_claims_to_be_huge_is_refused(tmp_path: Path, syntax: str, rows: int, frames: int) -> None:
    for index in range(2):
        ds = make_ct_dataset(InstanceNumber=index + 1, Rows=rows, Columns=rows, NumberOfFrames=frames)
        ds.file_meta.TransferSyntaxUID = syntax
        if syntax == JPEG2000Lossless:
            ds.PixelData = encapsulate([_ENCODERS[syntax](np.zeros((16, 16), np.uint16))])
            ds["PixelData"].is_undefined_length = True
        ds.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    studies, _ = read_studies(sorted(tmp_path.iterdir()))
    with pytest.raises(ImagingError):
        load_volume(studies[0].series[0])
