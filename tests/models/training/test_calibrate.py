import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from models.findings import FindingKind
from models.training.calibrate import fit_head, operating_point, study_logit, voxel_threshold
from models.training.evaluate import THRESHOLDS, Answer, is_present, trial

KIND = FindingKind.PLEURAL_EFFUSION


def answer(
    present: bool | None,
    volume_ml: float,
    *,
    simulated: bool = True,
    name: str = "s",
    source: str = "made",
    kind: FindingKind = KIND,
    outlined_at: float | None = None,
) -> Answer:
    """What a network says; one that is right about the volume at the voxel threshold `outlined_at` alone."""
    peak = 1.0 - math.exp(-volume_ml / 20.0)
    return Answer(
        study=name,
        source=source,
        simulated=simulated,
        trained_on=False,
        kind=kind,
        present=present,
        evidence=(math.log1p(volume_ml), peak),
        found_ml=tuple(volume_ml * (1.1 - 0.5 * t) for t in THRESHOLDS),
        true_ml=None if outlined_at is None else volume_ml,
        outlined_ml=None
        if outlined_at is None
        else tuple(volume_ml * math.exp(5 * (outlined_at - t)) for t in THRESHOLDS),
        dice=None,
    )


def studies(seed: int = 0) -> list[Answer]:
    rng = np.random.default_rng(seed)
    return [answer(True, float(rng.uniform(80, 900))) for _ in range(30)] + [
        answer(False, float(rng.exponential(4))) for _ in range(30)
    ]


def test_separable_studies_are_told_apart() -> None:
    found = studies()
    head = fit_head(found)
    point = operating_point(partial(study_logit, head), found, KIND)
    row = trial("made", [(a, study_logit(head, a)) for a in studies(1)], point)
    assert row.sensitivity is not None and row.sensitivity > 0.9
    assert row.specificity is not None and row.specificity > 0.95
    assert row.auroc is not None and row.auroc > 0.98


def test_a_known_negative_real_study_is_kept_clean() -> None:
    normal = answer(False, 120.0, simulated=False, name="normal")
    found = [*studies(), normal]
    head = fit_head(found)
    point = operating_point(partial(study_logit, head), found, KIND)
    assert not is_present(normal, study_logit(head, normal), point)
    assert "normal" in point.chosen_on


def test_unknown_truth_is_left_out() -> None:
    head = fit_head(studies())
    point = operating_point(partial(study_logit, head), studies(), KIND)
    row = trial("made", [(answer(None, 300.0), 5.0)], point)
    assert (row.positive, row.negative, row.sensitivity, row.specificity) == (0, 0, None, None)


def test_a_kind_never_seen_present_keeps_a_usable_point() -> None:
    found = [answer(False, 1.0) for _ in range(8)]
    point = operating_point(partial(study_logit, fit_head(found)), found, KIND)
    assert 0.0 <= point.absent_probability <= point.present_probability <= 1.0
    assert point.voxel_threshold in THRESHOLDS


@pytest.mark.parametrize("best", [0.3, 0.45, 0.9])
def test_outlines_end_where_their_volumes_are_right(best: float) -> None:
    found = [answer(True, ml, outlined_at=best) for ml in (60.0, 100.0, 900.0)]
    assert voxel_threshold(found, KIND) == best
    assert operating_point(lambda a: a.evidence[0], found, KIND).voxel_threshold == best


def test_sources_weigh_alike_however_many_studies_they_have() -> None:
    many = [answer(True, 100.0, outlined_at=0.3)] * 30
    others = [answer(True, 100.0, source=source, outlined_at=0.7) for source in ("second", "third")]
    assert voxel_threshold([*many, *others], KIND) == 0.7


@pytest.mark.parametrize(
    "found",
    [
        [answer(True, 100.0, outlined_at=0.8)] * 2,
        [answer(True, 100.0)] * 5,
        [answer(True, 100.0, simulated=False, outlined_at=0.8)] * 5,
        [answer(None, 100.0, outlined_at=0.8)] * 5,
    ],
    ids=["too few", "no outlines", "real ones, which are for checking", "truth unknown"],
)
def test_without_outlines_to_learn_from_the_threshold_is_one_half(found: list[Answer]) -> None:
    assert voxel_threshold(found, KIND) == 0.5


def test_a_nodule_keeps_one_half_as_its_border_is_sought_in_the_image() -> None:
    nodule = FindingKind.PULMONARY_NODULE
    assert voxel_threshold([answer(True, 100.0, kind=nodule, outlined_at=0.8)] * 5, nodule) == 0.5


def test_one_half_stays_where_another_threshold_is_hardly_better() -> None:
    found = [answer(True, 100.0, outlined_at=0.505)] * 5
    assert (
        voxel_threshold([replace(a, outlined_ml=tuple(100.0 + 0.1 * t for t in THRESHOLDS)) for a in found], KIND)
        == 0.5
    )
