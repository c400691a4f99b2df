from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation.statistics import (
    auroc,
    auroc_interval,
    bland_altman,
    calibration,
    froc,
    roc_points,
    wilson,
)

SCORES = st.lists(st.floats(-5, 5), min_size=1, max_size=12)


def test_wilson_interval_of_the_textbook() -> None:
    """8 of 10, as R's prop.test(8, 10, correct = FALSE) gives it."""
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 0) is None


def test_the_interval_of_a_perfect_area_is_no_point() -> None:
    low, high = auroc_interval(1.0, 5, 5)
    assert high == 1.0
    assert 0.5 < low < 0.9
    assert auroc_interval(1.0, 50, 50)[0] > low


@given(st.floats(0.01, 0.99), st.integers(2, 60), st.integers(2, 60))
def test_the_interval_of_an_area_holds_it_and_mirrors(area: float, positive: int, negative: int) -> None:
    low, high = auroc_interval(area, positive, negative)
    assert 0.0 <= low < area < high <= 1.0
    mirrored = auroc_interval(1.0 - area, positive, negative)
    assert mirrored == pytest.approx((1.0 - high, 1.0 - low), abs=1e-6)


@given(SCORES, SCORES)
def test_the_area_under_the_roc_points_is_the_auroc(positive: list[float], negative: list[float]) -> None:
    points = roc_points(positive, negative)
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))
    assert area == pytest.approx(auroc(positive, negative))
    assert points[0] == (0.0, 0.0)
    assert points[-1] == (1.0, 1.0)


@given(SCORES, SCORES)
def test_auroc_is_symmetric_and_bounded(positive: list[float], negative: list[float]) -> None:
    area, swapped = auroc(positive, negative), auroc(negative, positive)
    assert area is not None and swapped is not None
    assert 0.0 <= area <= 1.0
    assert area + swapped == pytest.approx(1.0)
    assert auroc(positive, []) is None


def test_froc_of_a_small_example() -> None:
    curve = froc(hits=[0.9, 0.8], misses=[0.85, 0.1], lesions=4, scans=2)
    assert curve.sensitivity_at(0.0) == 0.25
    assert curve.sensitivity_at(0.5) == 0.5
    assert curve.competition_metric == pytest.approx((2 * 0.25 + 5 * 0.5) / 7)


def test_limits_of_agreement() -> None:
    figures = bland_altman([10, 20, 30, 40], [11, 19, 31, 39])
    assert figures is not None
    assert figures.bias == pytest.approx(0.0)
    assert (figures.lower, figures.upper) == pytest.approx((-2.2632, 2.2632), abs=1e-3)
    assert bland_altman([1], [2]) is None


def test_calibration_of_honest_and_of_overconfident_probabilities() -> None:
    honest = calibration([0.1, 0.1, 0.9, 0.9], [False, False, True, True])
    overconfident = calibration([0.95, 0.95, 0.95, 0.95], [True, False, True, False])
    assert honest is not None and overconfident is not None
    assert honest.expected_error == pytest.approx(0.1)
    assert honest.brier == pytest.approx(0.01)
    assert overconfident.expected_error == pytest.approx(0.45)
    assert overconfident.count == (4,)
