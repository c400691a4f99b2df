"""CT images in compressed transfer syntaxes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from factories import make_ct_dataset
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

_SIDE = 64
_ENCODERS: dict[str, Callable[[Any], bytes]] = {
    JPEGLSLossless: lambda a: imagecodecs.jpegls_encode(a),
    JPEG2000Lossless: lambda a: imagecodecs.jpeg2k_encode(a, level=0, codecformat="j2k", reversible=True),
}


def compressed(
    syntax: str, number: int, damage: Callable[[bytes], bytes] = lambda frame: frame, **values: Any
) -> Dataset:
    """Image `number` of a series, of noise; its encoded frame damaged where wanted."""
    stored = np.random.default_rng(number).integers(0, 3000, (_SIDE, _SIDE)).astype(np.uint16)
    pixels = {"Rows": _SIDE, "Columns": _SIDE, "PixelRepresentation": 0, "PixelData": stored.tobytes()}
    ds = make_ct_dataset(InstanceNumber=number, **pixels | values)
    if syntax == RLELossless:
        ds.compress(RLELossless, generate_instance_uid=False)
        return ds
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([damage(_ENCODERS[syntax](stored))])
    ds["PixelData"].is_undefined_length = True
    return ds


def save_compressed(
    path: Path, syntax: str, number: int, damage: Callable[[bytes], bytes] = lambda frame: frame, **values: Any
) -> Dataset:
    """The same as a file."""
    ds = compressed(syntax, number, damage, **values)
    ds.save_as(path, enforce_file_format=True)
    return ds
