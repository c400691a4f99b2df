import math

import numpy as np

from models.findings import FindingKind
from models.training.calibrate import fit_head, operating_point, study_logit
from models.training.evaluate import THRESHOLDS, Answer, is_present, trial

KIND = FindingKind.PLEURAL_EFFUSION


def answer(present: bool | None, volume_ml: float, *, simulated: bool = True, name: str = "s") -> Answer:
    peak = 1.0 - math.exp(-volume_ml / 20.0)
    return Answer(
        study=name,
        source="made",
        simulated=simulated,
        trained_on=False,
        kind=KIND,
        present=present,
        evidence=(math.log1p(volume_ml), peak),
        found_ml=tuple(volume_ml * (1.1 - 0.5 * t) for t in THRESHOLDS),
        true_ml=None,
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
    point = operating_point(head, found, KIND)
    row = trial("made", [(a, study_logit(head, a)) for a in studies(1)], point)
    assert row.sensitivity is not None and row.sensitivity > 0.9
    assert row.specificity is not None and row.specificity > 0.95
    assert row.auroc is not None and row.auroc > 0.98


def test_a_known_negative_real_study_is_kept_clean() -> None:
    normal = answer(False, 120.0, simulated=False, name="normal")
    found = [*studies(), normal]
    head = fit_head(found)
    point = operating_point(head, found, KIND)
    assert not is_present(normal, study_logit(head, normal), point)
    assert "normal" in point.chosen_on


def test_unknown_truth_is_left_out() -> None:
    head = fit_head(studies())
    point = operating_point(head, studies(), KIND)
    row = trial("made", [(answer(None, 300.0), 5.0)], point)
    assert (row.positive, row.negative, row.sensitivity, row.specificity) == (0, 0, None, None)


def test_a_kind_never_seen_present_keeps_a_usable_point() -> None:
    found = [answer(False, 1.0) for _ in range(8)]
    point = operating_point(fit_head(found), found, KIND)
    assert 0.0 <= point.absent_probability <= point.present_probability <= 1.0
    assert point.voxel_threshold in THRESHOLDS
