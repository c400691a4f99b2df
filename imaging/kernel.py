"""Whether a series was reconstructed with a sharp kernel: by its name, else by the texture of the noise.

A kernel shapes the noise of an image: after filtered back projection the noise power rises with frequency times the
square of the kernel's transfer function (Riederer et al., Phys Med Biol 1978;23:446), so that a soft kernel's falls off
where a sharp one's still rises.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imaging.lungs import Lungs
from imaging.quality import QualityIssue, Verdict
from imaging.selection import is_sharp_kernel
from imaging.volume import Volume

# Noise power at the higher over that at the lower frequencies, per mm. Five real series measure 0.19 to 0.31: B40f, two
# of D40s, STANDARD and one without a name. Sharp ones were not at hand: noise made for transfer functions that fall to
# half at 0.42 per mm measures 0.19 to 0.33 in the same bodies, as the soft ones do; at 0.5, 0.39 to 0.71; at 0.6, 0.74
# to 1.25; at 0.75, 1.18 to 1.68.
SOFT_BELOW, SHARP_ABOVE = 0.4, 0.7
_LOWER_PER_MM, _HIGHER_PER_MM = (0.15, 0.25), (0.55, 0.65)
# Where less is seen of the frequencies, or nearly no noise, there is nothing to tell.
_LARGEST_PIXEL_MM = 1.0
_LEAST_NOISE_HU = 2.0
_TILE_MM = 20.0
_SLICES = 6
_TISSUE_HU = (-50.0, 250.0)
# The most homogeneous of the tiles in soft tissue hold few edges.
_SHARE, _LEAST_TILES = 0.1, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """`sharp` is None where neither name nor image tells; `issue` says what was done without a name that is known."""

    sharp: bool | None
    issue: QualityIssue | None = None


def recognise_kernel(name: str | None, volume: Volume, lungs: Lungs, *, is_original: bool) -> Kernel:
    """The class of the kernel that made `volume`: that of `name` (ConvolutionKernel) if known, else by the noise.

    The noise of images that are not original (ImageType, PS3.3 C.7.6.1.1.2) tells of what was done to them instead.
    """
    named = is_sharp_kernel(name)
    if named is not None:
        return Kernel(sharp=named)
    unnamed = f"the kernel {name.strip()} is not known" if name and name.strip() else "the kernel is not named"
    ratio = noise_ratio(volume, lungs) if is_original else None
    if ratio is None or SOFT_BELOW <= ratio <= SHARP_ABOVE:
        message = f"{unnamed}; the image does not tell whether it is sharp, and it is taken for sharp"
        return Kernel(sharp=None, issue=QualityIssue(check="kernel", verdict=Verdict.WARN, message=message))
    sharp = ratio > SHARP_ABOVE
    message = f"{unnamed}; by the noise of the image it is {'sharp' if sharp else 'soft'}"
    issue = QualityIssue(check="kernel", verdict=Verdict.PASS, message=message, measured=ratio)
    return Kernel(sharp=sharp, issue=issue)


def noise_ratio(volume: Volume, lungs: Lungs) -> float | None:
    """Power of the noise in soft tissue at 0.55 to 0.65 per mm over that at 0.15 to 0.25 per mm; None if not seen."""
    pixel_mm = max(volume.geometry.spacing_mm[1:])
    size = round(_TILE_MM / pixel_mm)
    if pixel_mm > _LARGEST_PIXEL_MM or size > min(volume.hu.shape[1:]):
        return None
    seen = lungs.slices
    if len(seen) == 0:
        return None
    chosen = np.unique(np.linspace(seen[0], seen[-1], _SLICES + 2)[1:-1].astype(int))
    tiles = np.concatenate([_tissue(volume.hu[z], lungs.body[z], size) for z in chosen])
    count = round(_SHARE * len(tiles))
    if count < _LEAST_TILES:
        return None
    noise = np.stack([_detrended(tile) for tile in tiles[np.argsort(tiles.std(axis=(1, 2)))[:count]]])
    if noise.std() < _LEAST_NOISE_HU:
        return None
    window = np.hanning(size + 2)[1:-1]
    power = (np.abs(np.fft.fft2(noise * np.outer(window, window))) ** 2).mean(axis=0)
    row_mm, column_mm = volume.geometry.spacing_mm[1:]
    per_mm = np.hypot(np.fft.fftfreq(size, row_mm)[:, None], np.fft.fftfreq(size, column_mm)[None])
    lower, higher = (power[(per_mm >= low) & (per_mm < high)].mean() for low, high in (_LOWER_PER_MM, _HIGHER_PER_MM))
    return float(higher / lower)


def _tissue(plane: npt.NDArray[np.int16], body: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.float32]:
    """Square tiles of one plane, each half over the next: the middle in the body, the mean that of soft tissue."""
    step = size // 2
    tiles = np.lib.stride_tricks.sliding_window_view(plane.astype(np.float32), (size, size))[::step, ::step]
    middle = body[step : step + step * len(tiles) : step, step : step + step * tiles.shape[1] : step]
    tiles = tiles[middle]
    means = tiles.mean(axis=(1, 2))
    return tiles[(means > _TISSUE_HU[0]) & (means < _TISSUE_HU[1])]


def _detrended(tile: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Without its mean and slope."""
    ramp = np.arange(len(tile), dtype=np.float32) - np.float32((len(tile) - 1) / 2)
    level = tile - tile.mean()
    along = float((ramp**2).sum() * len(ramp))
    return level - ramp[:, None] * (level.sum(axis=1) @ ramp / along) - ramp * (level.sum(axis=0) @ ramp / along)
