"""Header elements that tell the geometry of a series a second time: where they contradict it, one of both is wrong."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imaging.geometry import slice_normal
from imaging.headers import Slice
from imaging.volume import order_slices

# Steps and widths that differ by more are not the same; a stack 20 degrees from axial differs by 6 % from the table's.
_SAME = 0.1
_ROUNDING_MM = 0.11
# Of a step, from which on an image is missing between.
_HOLE = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """What contradicts the geometry, in words for a person; `measured` by the geometry and `told` by the witness.

    Where `is_certain`, the voxels cannot be where the headers say or an image is missing.
    """

    check: str
    message: str
    measured: float
    told: float
    is_certain: bool


def contradictions(slices: Sequence[Slice]) -> Iterator[Contradiction]:
    """Where SliceLocation, InstanceNumber and ReconstructionDiameter say otherwise than positions and spacing.

    `slices` are those of one regular stack (PS3.3 C.7.6.2); elements that are absent, or follow no rule, tell nothing.
    """
    ordered = order_slices(slices)
    normal = slice_normal(ordered[0].image_orientation_patient or ())
    step_mm = float(np.median(np.diff(np.array([s.image_position_patient for s in ordered]) @ normal)))
    yield from _locations([s.slice_location_mm for s in ordered], step_mm)
    yield from _numbers([s.instance_number for s in ordered], step_mm)
    yield from _diameter(ordered[0])


def _locations(values: Sequence[float | None], step_mm: float) -> Iterator[Contradiction]:
    steps = _steps(values)
    if steps is None:
        return
    told_mm = float(np.median(steps))
    if abs(told_mm - step_mm) > max(_ROUNDING_MM, _SAME * max(told_mm, step_mm)):
        message = (
            f"by SliceLocation the images are {told_mm:.2f} mm apart, by their positions {step_mm:.2f} mm: "
            "nothing can be measured along the body"
        )
        yield Contradiction(
            check="slice_location", message=message, measured=step_mm, told=told_mm, is_certain=_is_even(steps)
        )
    elif missing := _missing(steps):
        message = f"by SliceLocation {missing} images are missing, though the positions are even"
        yield Contradiction(
            check="slice_location", message=message, measured=step_mm, told=float(steps.max()), is_certain=True
        )


def _numbers(values: Sequence[int | None], step_mm: float) -> Iterator[Contradiction]:
    steps = _steps(values)
    if steps is not None and (missing := _missing(steps)):
        message = f"by their numbers {missing} images may be missing, though the positions are even"
        yield Contradiction(
            check="image_numbers", message=message, measured=step_mm, told=float(steps.max()), is_certain=False
        )


def _diameter(plane: Slice) -> Iterator[Contradiction]:
    told_mm, spacing_mm = plane.reconstruction_diameter_mm, plane.pixel_spacing_mm
    if told_mm is None or spacing_mm is None or not told_mm > 0:
        return
    width_mm = max(plane.rows * spacing_mm[0], plane.columns * spacing_mm[1])
    if abs(width_mm - told_mm) > _SAME * max(width_mm, told_mm):
        message = (
            f"by PixelSpacing the images are {width_mm:.0f} mm wide, by ReconstructionDiameter {told_mm:.0f} mm: "
            "unless they were cut out, all sizes are wrong"
        )
        yield Contradiction(
            check="reconstruction_diameter", message=message, measured=width_mm, told=told_mm, is_certain=False
        )


def _steps(values: Sequence[float | None]) -> npt.NDArray[np.float64] | None:
    """Lengths of the steps between values that only rise or only fall; None where they do neither."""
    if any(value is None for value in values):
        return None
    steps = np.diff(np.array(values, np.float64))
    return np.abs(steps) if np.isfinite(steps).all() and ((steps > 0).all() or (steps < 0).all()) else None


def _is_even(steps: npt.NDArray[np.float64]) -> bool:
    usual = float(np.median(steps))
    return bool((np.abs(steps - usual) <= max(_ROUNDING_MM, _SAME * usual)).all())


def _missing(steps: npt.NDArray[np.float64]) -> int:
    """How many values would fill the holes among steps that are otherwise even; 0 where they are no even steps."""
    usual = float(np.median(steps))
    holes = steps >= _HOLE * usual
    if not holes.any() or not _is_even(steps[~holes]) or holes.sum() > len(steps) / 10:
        return 0
    return int(np.rint(steps[holes] / usual - 1).sum())
