"""Compressed images that are decoded while others of their series are still to come.

Each leaves a file of its HU, from which a volume reads them later. A file that is not there, or not of the image as it
is now, costs only the time to decode it again.
"""

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imaging.decoding import StoredPlane, decode_into, plane_of
from imaging.headers import Slice
from imaging.pixels import Codec

_SUFFIX = ".hu"


def not_decoded(slices: Sequence[Slice], folder: Path) -> tuple[Slice, ...]:
    """The compressed images whose HU are not in `folder`. Frames of an Enhanced CT come all at once: none of them."""
    return tuple(image for image in slices if _is_apart(image) and not _kept(folder, image.path).exists())


def decode_ahead(slices: Sequence[Slice], folder: Path) -> None:
    """Decode compressed images into files of `folder`, which exists.

    Raises as `decode_into` where one of them cannot be decoded, OSError where nothing can be written.
    """
    in_order = sorted(slices, key=lambda image: (image.rows, image.columns))
    for shape, group in groupby(in_order, key=lambda image: (image.rows, image.columns)):
        planes = [plane_of(index, image) for index, image in enumerate(group)]
        hu = np.empty((len(planes), *shape), np.int16)
        decode_into(hu, planes)
        for plane in planes:
            kept = _kept(folder, plane.path)
            part = kept.with_suffix(".part")
            part.write_bytes(hu[plane.index].data)
            part.replace(kept)


def read_decoded(hu: npt.NDArray[np.int16], planes: Sequence[StoredPlane], folder: Path) -> list[StoredPlane]:
    """Fill the slices of `hu` (slice, row, column) whose HU are in `folder`; the planes of which they are not."""
    return [plane for plane in planes if plane.frame_number is not None or not _read(hu[plane.index], plane, folder)]


def _read(plane_hu: npt.NDArray[np.int16], plane: StoredPlane, folder: Path) -> bool:
    try:
        descriptor = os.open(_kept(folder, plane.path), os.O_RDONLY)
    except OSError:
        return False
    try:
        kept = os.fstat(descriptor)
        is_of_this_image = kept.st_size == plane_hu.nbytes and kept.st_mtime_ns >= plane.path.stat().st_mtime_ns
        return is_of_this_image and os.preadv(descriptor, [plane_hu.data], 0) == plane_hu.nbytes
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _is_apart(image: Slice) -> bool:
    return image.frame_number is None and image.pixels is not None and image.pixels.codec is not Codec.NATIVE


def _kept(folder: Path, path: Path) -> Path:
    # Two series of a study may hold images of one name.
    return folder / f"{path.parent.name}_{path.stem}{_SUFFIX}"
