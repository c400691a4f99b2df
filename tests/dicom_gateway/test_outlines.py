"""outlines.npz: gives back what was outlined, byte for byte alike, and is no way in for a hostile file."""

import contextlib
import io
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_gateway.report.outlines import Outlined, Outlines, SliceGrid, read_outlines, write_outlines


def make_grid(slices: int = 6, rows: int = 9, columns: int = 11, frames: bool = False) -> SliceGrid:
    return SliceGrid(
        sop_instance_uids=tuple(f"1.2.{i}" for i in range(slices)),
        frame_numbers=tuple(i + 1 if frames else None for i in range(slices)),
        positions_mm=np.array([[-10.25, 3.0, 2.5 * i + 1e-7] for i in range(slices)]),
        rescale=np.array([[1.0, -1024.0]] * slices),
        image_orientation_patient=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        pixel_spacing_mm=(0.7, 0.8),
        slice_thickness_mm=None if frames else 3.0,
        rows=rows,
        columns=columns,
        frame_of_reference_uid="1.2.9",
    )


def make_outlines(frames: bool = False) -> Outlines:
    random = np.random.default_rng(1)
    boxes = {"2.25.1": (slice(1, 4), slice(2, 7), slice(0, 3)), "2.25.2": (slice(5, 6), slice(0, 9), slice(0, 11))}
    outlined = {}
    for uid, box in boxes.items():
        mask = random.random([s.stop - s.start for s in box]) > 0.5
        mask[0, 0, 0] = True
        outlined[uid] = Outlined(box, mask)
    return Outlines(make_grid(frames=frames), outlined)


@pytest.mark.parametrize("frames", [False, True])
def test_outlines_come_back(frames: bool) -> None:
    outlines = make_outlines(frames)
    back = read_outlines(write_outlines(outlines))
    assert back.grid is not None
    for name in SliceGrid.__slots__:
        assert np.array_equal(getattr(back.grid, name), getattr(outlines.grid, name)), name
    assert list(back.by_tracking_uid) == list(outlines.by_tracking_uid)
    for uid, outlined in outlines.by_tracking_uid.items():
        assert back.by_tracking_uid[uid].box == outlined.box
        assert np.array_equal(back.by_tracking_uid[uid].mask, outlined.mask)


def test_the_same_outlines_are_the_same_bytes() -> None:
    first = write_outlines(make_outlines())
    assert first == write_outlines(make_outlines()) == write_outlines(read_outlines(first))


def test_a_study_without_outlines_has_an_empty_file() -> None:
    back = read_outlines(write_outlines(Outlines()))
    assert (back.grid, dict(back.by_tracking_uid)) == (None, {})


def test_a_large_outline_takes_little_room() -> None:
    grid = make_grid(slices=100, rows=512, columns=512)
    z, y, x = np.ogrid[0:100, 0:512, 0:512]
    lung = ((z - 50) / 45) ** 2 + ((y - 256) / 150) ** 2 + ((x - 150) / 90) ** 2 < 1
    whole = Outlined((slice(0, 100), slice(0, 512), slice(0, 512)), lung)
    assert len(write_outlines(Outlines(grid, {"2.25.1": whole}))) < 200_000


def archive(**changes: object) -> bytes:
    """The file of `make_outlines` with some of its arrays exchanged (None: left out)."""
    with np.load(io.BytesIO(write_outlines(make_outlines()))) as arrays:
        values = dict(arrays) | changes
    target = io.BytesIO()
    np.savez(target, **{name: value for name, value in values.items() if value is not None})
    return target.getvalue()


def zipped(content: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("tracking_uids.npy", content)
    return target.getvalue()


def header(shape: tuple[int, ...], descr: str) -> bytes:
    target = io.BytesIO()
    np.lib.format.write_array_header_1_0(target, {"descr": descr, "fortran_order": False, "shape": shape})
    return target.getvalue()


BAD = {
    "empty": b"",
    "no archive": b"PK\x03\x04 and then nothing",
    "no arrays": zipped(b""),
    "no boxes": archive(boxes=None),
    "a box outside": archive(boxes=np.array([[[1, 4], [2, 7], [0, 3]], [[5, 7], [0, 9], [0, 11]]])),
    "a negative box": archive(boxes=np.array([[[-1, 2], [2, 7], [0, 3]], [[5, 6], [0, 9], [0, 11]]])),
    "an empty box": archive(boxes=np.array([[[1, 1], [2, 7], [0, 3]], [[5, 6], [0, 9], [0, 11]]])),
    "too few voxels": archive(voxels=np.zeros(3, np.uint8)),
    "too many voxels": archive(voxels=np.zeros(300, np.uint8)),
    "voxels of another type": archive(voxels=np.zeros(20, np.float64)),
    "text for numbers": archive(positions_mm=np.full((6, 3), b"1")),
    "positions of another count": archive(positions_mm=np.zeros((5, 3))),
    "no slices": archive(sop_instance_uids=np.zeros(0, "S64")),
    "no columns": archive(size=np.array([9, 0])),
    "more memory than there is": zipped(header((1 << 60,), "|u1")),
    "an object": zipped(header((1,), "|O") + pickle.dumps([1])),
}


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        read_outlines(BAD[name])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_read(data: st.DataObject) -> None:
    content = bytearray(write_outlines(make_outlines()))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ValueError):
        read_outlines(bytes(content))
