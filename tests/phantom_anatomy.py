"""The anatomy of a phantom as a perfect network would outline it."""

import numpy as np

from imaging.lungs import Lungs
from imaging.phantom import ANATOMY, Phantom
from imaging.preprocess import prepare
from models.anatomy import Anatomy
from models.contrast import measure_blood_pool


def anatomy_of(phantom: Phantom) -> Anatomy:
    """The phantom's own organs on the network's grid, and its aerated lungs."""
    air = phantom.volume.hu < -500
    truth = phantom.anatomy
    lungs = Lungs(
        body=truth > 0,
        airways=truth == ANATOMY.index("airways"),
        left=(truth == ANATOMY.index("lung_left")) & air,
        right=(truth == ANATOMY.index("lung_right")) & air,
    )
    grid = prepare(phantom.volume, lungs, spacing_mm=2.5, multiple_of=16, minimum_hu=-1024, maximum_hu=3071)
    labels = np.zeros(grid.geometry.shape, np.uint8)
    for label in range(1, len(ANATOMY)):
        labels[grid.from_source(truth == label)] = label
    return Anatomy(
        volume=phantom.volume,
        lungs=lungs,
        grid=grid,
        labels=labels,
        names=ANATOMY,
        blood_pool=measure_blood_pool(grid.hu[0, 0], grid.from_source(lungs.left), grid.from_source(lungs.right)),
        sharp_kernel=False,
        model_sha256="0" * 64,
    )
