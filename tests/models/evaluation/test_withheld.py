"""A kind whose own evidence speaks against it is not answered."""

import pytest

from models.evaluation.evidence import withheld
from models.findings import EvidenceGrade, FindingKind
from models.manifest import Evidence, Trial

KIND = FindingKind.PULMONARY_NODULE


def _evidence(*trials: tuple[int, int, float | None, float | None]) -> dict[FindingKind, Evidence]:
    rows = tuple(
        Trial(data="made up", simulated=True, positive=p, negative=n, sensitivity=se, specificity=sp)
        for p, n, se, sp in trials
    )
    return {KIND: Evidence(grade=EvidenceGrade.C, trials=rows)}


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        (((10, 10, 0.8, 0.9),), None),
        (((2, 10, 1.0, 1.0),), "2 studies"),
        (((4, 10, 0.25, 1.0), (4, 0, 0.5, None)), "3 of 8"),
        (((10, 10, 1.0, 0.7),), "3 of 10"),
        (((10, 10, 1.0, 1.0), (0, 10, None, 0.5)), "5 of 20"),
    ],
)
def test_an_answer_is_withheld_by_its_pooled_figures(trials, reason) -> None:
    found = withheld(_evidence(*trials))
    assert (KIND in found) is (reason is not None)
    if reason:
        assert reason in found[KIND]


@pytest.mark.parametrize(("left_open", "is_withheld"), [(0, True), (2, False), (6, True)])
def test_what_is_left_open_is_no_miss_but_no_answer_either(left_open: int, is_withheld: bool) -> None:
    """4 of 10 found; or 4 of 8 decided; or 3 of 10 found though they are 3 of 4 decided."""
    found = 0.3 if left_open == 6 else 0.4
    trial = Trial(
        data="made up",
        simulated=True,
        positive=10,
        negative=0,
        sensitivity=found,
        specificity=None,
        indeterminate=left_open,
        indeterminate_positive=left_open,
    )
    assert (KIND in withheld({KIND: Evidence(grade=EvidenceGrade.C, trials=(trial,))})) is is_withheld


@pytest.mark.parametrize(
    ("negative", "specificity", "reason"), [(3, 1 / 3, "2 of 3 real"), (2, 0.5, None), (3, 1.0, None)]
)
def test_simulation_does_not_outvote_real_studies(negative, specificity, reason) -> None:
    simulated = Trial(data="phantoms", simulated=True, positive=30, negative=30, sensitivity=1.0, specificity=1.0)
    real = Trial(data="real", simulated=False, positive=0, negative=negative, sensitivity=None, specificity=specificity)
    found = withheld({KIND: Evidence(grade=EvidenceGrade.C, trials=(simulated, real))})
    assert (reason in found.get(KIND, "")) if reason else KIND not in found


@pytest.mark.parametrize(
    ("grade", "found", "reason"),
    [(EvidenceGrade.C, 1.0, "9 of 31"), (EvidenceGrade.B, 1.0, None), (EvidenceGrade.B, 0.25, "1 of 4 real")],
)
def test_where_real_studies_were_tried_they_alone_decide(grade, found, reason) -> None:
    simulated = Trial(data="phantoms", simulated=True, positive=30, negative=30, sensitivity=1.0, specificity=0.7)
    real = Trial(data="real", simulated=False, positive=4, negative=1, sensitivity=found, specificity=1.0)
    reasons = withheld({KIND: Evidence(grade=grade, trials=(simulated, real))})
    assert (reason in reasons.get(KIND, "")) if reason else KIND not in reasons
