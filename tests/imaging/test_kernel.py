"""The class of a kernel whose name is missing or unknown, by noise whose spectrum is given."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from imaging.geometry import Geometry
from imaging.kernel import recognise_kernel
from imaging.lungs import Lungs
from imaging.quality import Verdict
from imaging.volume import Volume

Transfer = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def falling(half_per_mm: float) -> Transfer:
    """A transfer function that falls to half at this frequency."""
    return lambda per_mm: np.exp(-np.log(2) * (per_mm / half_per_mm) ** 2)


def scan(transfer: Transfer, pixel_mm: float, noise_hu: float = 20.0) -> tuple[Volume, Lungs]:
    """Six planes of tissue with two lungs and the noise that filtered back projection leaves behind."""
    shape = (6, 256, 256)
    y, x = np.indices(shape[1:]) - 127.5
    body = (x / 120) ** 2 + (y / 100) ** 2 < 1
    left, right = (((x - at) / 25) ** 2 + (y / 40) ** 2 < 1 for at in (70, -70))
    # Half the pixel size, so that frequencies beyond the image's own fold back as they do in a scanner.
    fine = 2 * shape[1]
    per_mm = np.hypot(*np.meshgrid(*(np.fft.fftfreq(fine, pixel_mm / 2),) * 2, indexing="ij"))
    white = np.fft.fft2(np.random.default_rng(0).standard_normal((shape[0], fine, fine)))
    noise = np.fft.ifft2(white * np.sqrt(per_mm) * transfer(per_mm)).real[:, ::2, ::2]
    plain = np.where(body, np.where(left | right, -850.0, 45.0), -1000.0)
    hu = np.rint(plain + noise * noise_hu / noise.std()).astype(np.int16)
    affine = np.array([[0, 0, pixel_mm, 0], [0, pixel_mm, 0, 0], [30, 0, 0, 0], [0, 0, 0, 1]])
    volume = Volume(hu, Geometry(affine, shape, "1.2"), "1.2.3", tuple("012345"), (None,) * 6)
    masks = [np.repeat(mask[None], 6, axis=0) for mask in (body, np.zeros_like(body), left, right)]
    return volume, Lungs(*masks)


@pytest.mark.parametrize(
    ("half_per_mm", "pixel_mm", "sharp"),
    [
        *((half, pixel, False) for half in (0.3, 0.4) for pixel in (0.6, 0.75, 0.95)),
        *((half, pixel, True) for half in (0.75, 1.0) for pixel in (0.6, 0.75, 0.95)),
        (0.48, 0.75, None),
    ],
)
def test_the_noise_tells_a_soft_kernel_from_a_sharp_one(half_per_mm, pixel_mm, sharp) -> None:
    kernel = recognise_kernel(None, *scan(falling(half_per_mm), pixel_mm), is_original=True)
    assert kernel.sharp is sharp
    issue = kernel.issue
    assert issue is not None
    assert issue.verdict is (Verdict.WARN if sharp is None else Verdict.PASS)
    assert "not named" in issue.message


@pytest.mark.parametrize(("pixel_mm", "noise_hu"), [(1.2, 20.0), (0.75, 0.0)])
def test_large_pixels_and_no_noise_tell_nothing(pixel_mm: float, noise_hu: float) -> None:
    kernel = recognise_kernel(None, *scan(falling(1.0), pixel_mm, noise_hu), is_original=True)
    assert kernel.sharp is None


def test_a_known_name_wins_and_an_unknown_one_does_not() -> None:
    soft_image = scan(falling(0.35), 0.75)
    assert recognise_kernel("B70f", *soft_image, is_original=True).sharp is True
    assert recognise_kernel("B70f", *soft_image, is_original=True).issue is None
    unknown = recognise_kernel("X1", *soft_image, is_original=True)
    assert unknown.sharp is False
    assert unknown.issue is not None and "kernel X1 is not known" in unknown.issue.message
    assert recognise_kernel(None, *soft_image, is_original=False).sharp is None
