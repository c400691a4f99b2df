"""Stored values to HU in place: bit-equal to the plain arithmetic, and to pydicom's reading of the same file."""

from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from factories import make_ct_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRBigEndian

from imaging.codecs import decode_jpeg
from imaging.headers import read_studies
from imaging.pixels import AIR_HU, Codec, Rescale, to_hu, to_hu_in_place
from imaging.volume import load_volume

_ALL = np.arange(65536, dtype=np.uint16).reshape(256, 256)
_SLOPES = st.sampled_from([1.0, 0.5, 2.0, -1.0, 0.0001])
_INTERCEPTS = st.sampled_from([0.0, -1000.0, -1024.0, -8192.0, -32768.0, 1.5, 100.0, 40000.0]) | st.floats(
    -70000, 70000
)


@settings(deadline=None)
@given(
    signed=st.booleans(),
    bits=st.sampled_from([8, 12, 16]),
    slope=_SLOPES,
    intercept=_INTERCEPTS,
    padding=st.none() | st.lists(st.integers(-33000, 66000), min_size=2, max_size=2).map(lambda p: (min(p), max(p))),
)
def test_in_place_gives_what_the_plain_arithmetic_gives(signed, bits, slope, intercept, padding) -> None:
    stored = _ALL & np.uint16((1 << bits) - 1)
    stored = stored.view(np.int16) if signed else stored
    rescale = Rescale(slope=slope, intercept=intercept)
    expected = to_hu(stored, rescale, padding)
    to_hu_in_place(stored, rescale, padding)
    np.testing.assert_array_equal(stored.view(np.int16), expected)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("changes", "tail", "in_place"),
    [
        ({"BitsStored": 12, "HighBit": 11}, b"", True),
        ({"BitsStored": 16}, b"\xfc\xff\xfc\xff" + b"OB" + bytes(6), True),
        ({"BitsStored": 16, "RescaleSlope": "0.5", "PixelPaddingValue": 77}, b"", True),
        ({"BitsStored": 16, "NumberOfFrames": 1}, b"", True),
        ({"BitsAllocated": 32, "BitsStored": 24, "Columns": 8}, b"", False),
        ({"BitsAllocated": 8, "BitsStored": 8, "Columns": 32}, b"", False),
        ({"BitsStored": 16, "Rows": 17, "Columns": 15}, b"", False),
    ],
)
# pydicom warns of pixels that are longer than rows and columns say.
@pytest.mark.filterwarnings("ignore:The pixel data")
def test_every_way_of_writing_pixels_is_read_as_pydicom_reads_it(
    tmp_path: Path, changes, tail: bytes, in_place: bool, signed: bool
) -> None:
    values = {"RescaleIntercept": -200, "PixelRepresentation": int(signed), **changes}
    for index in range(2):
        pixels = np.random.default_rng(index).bytes(512)
        ds = make_ct_dataset(InstanceNumber=index + 1, PixelData=pixels, **values)
        ds.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
        with (tmp_path / f"{index}.dcm").open("ab") as file:
            file.write(tail)
    (study,), _ = read_studies(sorted(tmp_path.iterdir()))
    series = study.series[0]
    assert all((plane.pixels is not None) is in_place for plane in series.slices)
    volume = load_volume(series)
    for hu, plane in zip(volume.hu, sorted(series.slices, key=lambda s: s.instance_number or 0), strict=True):
        ds = pydicom.dcmread(plane.path)
        stored = ds.pixel_array.astype(np.float64)
        expected = np.clip(np.rint(stored * float(ds.RescaleSlope) - 200), AIR_HU, None)
        expected[(expected > 32767) | (stored == ds.get("PixelPaddingValue"))] = AIR_HU
        np.testing.assert_array_equal(hu, expected)


def test_big_endian_is_read(tmp_path: Path) -> None:
    for index in range(2):
        ds = make_ct_dataset(InstanceNumber=index + 1)
        stored = ds.pixel_array.copy()
        ds.PixelData = stored.byteswap().tobytes()
        ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(
            tmp_path / f"{index}.dcm", ds, little_endian=False, implicit_vr=False, enforce_file_format=True
        )
    (study,), _ = read_studies(sorted(tmp_path.iterdir()))
    np.testing.assert_array_equal(load_volume(study.series[0]).hu[1], stored - 1024)


@pytest.mark.parametrize("codec", [Codec.JPEG_LS, Codec.JPEG_2000, Codec.JPEG])
def test_an_overlay_in_the_unused_bits_of_a_compressed_image_is_no_density(codec: Codec) -> None:
    encode = {
        Codec.JPEG_LS: imagecodecs.jpegls_encode,
        Codec.JPEG_2000: partial(imagecodecs.jpeg2k_encode, level=0, reversible=True, codecformat="j2k"),
        Codec.JPEG: partial(imagecodecs.ljpeg_encode, bitspersample=16),
    }[codec]
    density = np.random.default_rng(0).integers(0, 4096, (32, 48), np.uint16)
    drawn = density.copy()
    drawn[10:20, 10:20] |= 1 << 12
    np.testing.assert_array_equal(decode_jpeg(encode(drawn), codec, 12, signed=False), density)
