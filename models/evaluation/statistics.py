"""Rates with intervals, ROC and FROC, agreement and calibration. All intervals are of 95 %."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

Interval = tuple[float, float]
_END = 1e-9
_Z = float(stats.norm.ppf(0.975))
# False positives per scan of the competition performance metric (Setio et al., Med Image Anal 2017;42:1, LUNA16).
FALSE_PER_SCAN = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
RELIABILITY_BINS = 10


def wilson(successes: int, n: int) -> Interval | None:
    """Wilson's score interval of a proportion; None where nothing was counted."""
    if n == 0:
        return None
    interval = stats.binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """Area under the ROC curve: how often a positive scores above a negative, ties counted half."""
    if not positive or not negative:
        return None
    p, n = np.asarray(positive)[:, None], np.asarray(negative)[None, :]
    return float((p > n).mean() + 0.5 * (p == n).mean())


def auroc_interval(area: float, positive: int, negative: int) -> Interval:
    """Interval of an area from counts of positives and negatives (Newcombe, Stat Med 2006;25:559, method 5).

    It inverts the score test with Hanley and McNeil's variance, so that it is no point even where the area is 1.
    """

    def excess(theta: float) -> float:
        return (theta - area) ** 2 - _Z**2 * _area_variance(theta, positive, negative)

    # The variance is 0 at both ends, where an area of 0 or 1 would be a root itself.
    low = 0.0 if area <= _END else float(optimize.brentq(excess, 0.0, min(area, 1.0 - _END)))
    high = 1.0 if area >= 1.0 - _END else float(optimize.brentq(excess, max(area, _END), 1.0))
    return low, high


def _area_variance(theta: float, positive: int, negative: int) -> float:
    mean = (positive + negative) / 2 - 1
    spread = 1 + mean * (1 - theta) / (2 - theta) + mean * theta / (1 + theta)
    return theta * (1 - theta) * spread / (positive * negative)


def roc_points(positive: Sequence[float], negative: Sequence[float]) -> list[tuple[float, float]]:
    """(1 - specificity, sensitivity) from (0, 0) to (1, 1), one point for each threshold."""
    p, n = np.asarray(positive), np.asarray(negative)
    cuts = sorted({*positive, *negative}, reverse=True)
    return [(0.0, 0.0), *((float((n >= cut).mean()), float((p >= cut).mean())) for cut in cuts)]


@dataclass(frozen=True, slots=True)
class Froc:
    """Sensitivity for lesions over false descriptions per scan, from the strictest threshold on."""

    false_per_scan: tuple[float, ...]
    sensitivity: tuple[float, ...]

    def sensitivity_at(self, false_per_scan: float) -> float:
        """The highest sensitivity with no more false descriptions per scan than this."""
        reached = [s for f, s in zip(self.false_per_scan, self.sensitivity, strict=True) if f <= false_per_scan]
        return max(reached, default=0.0)

    @property
    def competition_metric(self) -> float:
        """Mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan."""
        return float(np.mean([self.sensitivity_at(rate) for rate in FALSE_PER_SCAN]))


def froc(hits: Sequence[float], misses: Sequence[float], lesions: int, scans: int) -> Froc:
    """From the scores of descriptions that hit a lesion (one a lesion) and of those that hit none."""
    if lesions == 0 or scans == 0:
        raise ValueError("a FROC curve needs lesions and scans")
    h, m = np.asarray(hits, float), np.asarray(misses, float)
    cuts = sorted({*hits, *misses}, reverse=True)
    return Froc(
        tuple(float((m >= cut).sum()) / scans for cut in cuts),
        tuple(float((h >= cut).sum()) / lesions for cut in cuts),
    )


@dataclass(frozen=True, slots=True)
class BlandAltman:
    """Mean of measured minus true, and the limits of agreement: mean -/+ 1.96 standard deviations."""

    n: int
    bias: float
    lower: float
    upper: float


def bland_altman(true: Sequence[float], measured: Sequence[float]) -> BlandAltman | None:
    """Bland and Altman, Lancet 1986;i:307. None for less than two pairs."""
    if len(true) < 2:
        return None
    difference: npt.NDArray[np.float64] = np.asarray(measured, float) - np.asarray(true, float)
    bias, spread = float(difference.mean()), 1.96 * float(difference.std(ddof=1))
    return BlandAltman(len(true), bias, bias - spread, bias + spread)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Mean predicted and observed share of each filled bin with its count, expected calibration error, Brier score."""

    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    count: tuple[int, ...]
    expected_error: float
    brier: float


def calibration(probability: Sequence[float], present: Sequence[bool]) -> Calibration | None:
    """Reliability over bins of equal width; None without studies."""
    if not probability:
        return None
    p, y = np.asarray(probability, float), np.asarray(present, float)
    bins = np.minimum((p * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    filled = [bins == b for b in range(RELIABILITY_BINS) if (bins == b).any()]
    predicted = tuple(float(p[inside].mean()) for inside in filled)
    observed = tuple(float(y[inside].mean()) for inside in filled)
    count = tuple(int(inside.sum()) for inside in filled)
    error = sum(n * abs(a - b) for n, a, b in zip(count, predicted, observed, strict=True)) / len(p)
    return Calibration(predicted, observed, count, float(error), float(((p - y) ** 2).mean()))
