"""Findings beside a truth: what counts as found, and which figures and grades follow."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imaging.geometry import Geometry
from imaging.volume import Volume
from models.evaluation.card import tables, with_interval
from models.evaluation.evidence import evidence_of, grade, with_evidence
from models.evaluation.page import PAGE_NAME, write_page
from models.evaluation.record import Answer, Record, SizeClass, SliceCounts, read_answers
from models.evaluation.summary import SUBGROUPS, trial
from models.evaluation.tables import FIGURES_NAME, write_tables
from models.evaluation.truth import StudyTruth
from models.findings import (
    EvidenceGrade,
    Finding,
    FindingKind,
    Laterality,
    Measurement,
    Presence,
    Quantity,
    Region,
)
from models.manifest import ModelManifest, Trial, load_manifest
from models.measured import RULES

NODULE, EFFUSION = FindingKind.PULMONARY_NODULE, FindingKind.PLEURAL_EFFUSION
KNOWN_ML = {"quantity": "volume", "value": 0.48, "unit": "ml"}
LUNG_SLICES = np.arange(10) < 8
MODEL = Path(__file__).parents[3] / "models" / "weights"


def volume() -> Volume:
    """10 slices of 20 x 20 mm at 1 mm."""
    shape = (10, 20, 20)
    affine = np.eye(4)[[2, 1, 0, 3]]
    names = tuple(str(i) for i in range(10))
    return Volume(np.zeros(shape, np.int16), Geometry(affine, shape), "1.2", names, (None,) * 10)


def finding(kind: FindingKind, presence: Presence, **values: object) -> Finding:
    return Finding(
        kind=kind,
        presence=presence,
        tracking_uid="1",
        evidence_grade=None,
        method="made",
        **{"reason": "none", **values},  # type: ignore[arg-type]
    )


def lesion(
    number: int,
    at: tuple[float, float, float],
    probability: float,
    long_axis_mm: float,
    presence: Presence = Presence.PRESENT,
) -> Finding:
    mask = np.ones((2, 4, 4), bool)
    box = (slice(0, 2), slice(0, 4), slice(0, 4))
    return finding(
        NODULE,
        presence,
        lesion=number,
        probability=probability,
        measurements=(Measurement(quantity=Quantity.LONG_AXIS, value=long_axis_mm, unit="mm"),),
        region=Region(centre_mm=at, box=box, mask=mask, key_slice=0),
    )


def every_kind(*findings: Finding) -> list[Finding]:
    said = {f.kind for f in findings}
    return [*findings, *(finding(kind, Presence.NOT_ASSESSED) for kind in FindingKind if kind not in said)]


def answers(truth: dict[str, object], *findings: Finding, **masks: np.ndarray) -> dict[FindingKind, Answer]:
    known = StudyTruth.model_validate({"name": "s", "source": "made"} | truth)
    outlines = {FindingKind(kind): mask for kind, mask in masks.items()}
    read = read_answers(known, every_kind(*findings), volume(), outlines, LUNG_SLICES)
    return {a.kind: a for a in read if a.size is None}


def by_size(nodules: dict[str, object], *findings: Finding) -> dict[SizeClass | None, Answer]:
    """Answers about nodules by size, that about all of them under None."""
    known = StudyTruth.model_validate({"name": "s", "source": "made", "findings": {"pulmonary_nodule": nodules}})
    read = read_answers(known, every_kind(*findings), volume(), {}, LUNG_SLICES)
    return {a.size: a for a in read if a.kind is NODULE}


def test_descriptions_take_the_nearest_lesion_once() -> None:
    lesions = [{"centre_lps_mm": [5, 5, 5], "diameter_mm": 10}, {"centre_lps_mm": [50, 5, 5], "diameter_mm": 6}]
    found = answers(
        {"findings": {"pulmonary_nodule": {"lesions": lesions}}},
        finding(NODULE, Presence.PRESENT, probability=0.9),
        lesion(1, (6, 5, 5), 0.9, 11.0),
        lesion(2, (4, 5, 5), 0.8, 9.0),
        lesion(3, (90, 5, 5), 0.7, 5.0),
    )[NODULE]
    assert [(d.score, d.hit) for d in found.descriptions] == [(0.9, True), (0.7, False)]
    assert [(p.true, p.measured) for p in found.pairs] == [(10.0, 11.0)]
    assert found.lesions == 2


MASS_AND_NODULE = [
    {"centre_lps_mm": [5, 5, 5], "diameter_mm": 50, "short_axis_mm": 40},
    {"centre_lps_mm": [90, 5, 5], "diameter_mm": 10},
]


def test_masses_and_nodules_have_rows_of_their_own() -> None:
    """A mass is described too small; something else is described as one."""
    said = finding(NODULE, Presence.PRESENT, probability=0.9)
    found = by_size(
        {"lesions": MASS_AND_NODULE}, said, lesion(1, (5, 5, 5), 0.9, 29.0), lesion(2, (200, 5, 5), 0.6, 42)
    )
    mass, nodule = found[SizeClass.MASS], found[SizeClass.NODULE]
    assert (mass.truth, mass.presence, mass.score, mass.lesions) == ("present", Presence.PRESENT, 0.6, 1)
    assert [(d.score, d.hit) for d in mass.descriptions] == [(0.9, True), (0.6, False)]
    assert [(p.true, p.measured) for p in mass.pairs] == [(50.0, 29.0)]
    assert (nodule.truth, nodule.presence, nodule.score, nodule.lesions) == ("present", Presence.PRESENT, 0.9, 1)
    assert [(d.score, d.hit) for d in nodule.descriptions] == [(0.6, False)]


def test_what_was_not_described_as_a_mass_is_no_mass_unless_the_study_was_left_open() -> None:
    nodules = {"lesions": MASS_AND_NODULE[1:]}
    small = finding(NODULE, Presence.INDETERMINATE, probability=0.3), lesion(1, (90, 5, 5), 0.3, 9.0)
    left_open = finding(NODULE, Presence.INDETERMINATE, probability=0.0)
    doubtful = lesion(1, (90, 5, 5), 0.3, 33.0, Presence.INDETERMINATE)
    expected = [(small, Presence.ABSENT, 0.0), ((left_open,), Presence.INDETERMINATE, 0.0)]
    expected.append(((left_open, doubtful), Presence.INDETERMINATE, 0.3))
    for said, presence, score in expected:
        mass = by_size(nodules, *said)[SizeClass.MASS]
        assert (mass.truth, mass.presence, mass.score) == ("absent", presence, score)


@pytest.mark.parametrize(
    ("lesion_", "mass", "nodule"),
    [
        ({}, "unknown", "unknown"),
        ({"diameter_mm": 5}, "absent", "unknown"),
        ({"diameter_mm": 31, "short_axis_mm": 28}, "absent", "present"),
        ({"diameter_mm": 50, "counts": False}, "unknown", "absent"),
    ],
)
def test_lesions_that_say_nothing_about_a_size_leave_it_unknown(lesion_: dict, mass: str, nodule: str) -> None:
    found = by_size({"lesions": [{"centre_lps_mm": [5, 5, 5], **lesion_}]}, finding(NODULE, Presence.ABSENT))
    assert (found[SizeClass.MASS].truth, found[SizeClass.NODULE].truth) == (mass, nodule)


@pytest.mark.parametrize(
    ("none_above_mm", "mass", "nodule"),
    [(31, "unknown", "unknown"), (30, "absent", "unknown"), (6, "absent", "unknown"), (5, "absent", "absent")],
)
def test_a_size_above_which_there_is_no_lesion_rules_larger_ones_out(
    none_above_mm: float, mass: str, nodule: str
) -> None:
    found = by_size({"presence": "unknown", "none_above_mm": none_above_mm}, finding(NODULE, Presence.ABSENT))
    assert (found[SizeClass.MASS].truth, found[SizeClass.NODULE].truth) == (mass, nodule)


def test_a_study_without_a_mass_counts_in_the_row_of_masses_and_nowhere_else(tmp_path: Path) -> None:
    """What is described where nothing is known may be one of the smaller nodules: no lesion is counted as false."""
    said = finding(NODULE, Presence.PRESENT, probability=0.9)
    for described, specificity in ((42.0, 0.0), (12.0, 1.0)):
        found = by_size({"presence": "unknown", "none_above_mm": 30}, said, lesion(1, (5, 5, 5), 0.9, described))
        one = record("n", "unknown", Presence.PRESENT, 0.9, answers=tuple(found.values()))
        row = trial(NODULE, "phantoms", [one], SizeClass.MASS)
        assert row is not None
        assert (row.positive, row.negative, row.specificity, row.lesions) == (0, 1, specificity, None)
        assert trial(NODULE, "phantoms", [one]) is None
        assert trial(NODULE, "phantoms", [one], SizeClass.NODULE) is None
    write_tables([one], load_manifest(MODEL), tmp_path)
    rows = (tmp_path / FIGURES_NAME).read_text().splitlines()[1:]
    assert {row.split(",")[1] for row in rows} == {"mass above 30 mm"}


def test_a_lesion_that_does_not_count_is_neither_missed_nor_named_wrongly() -> None:
    hidden = {"centre_lps_mm": [5, 5, 5], "diameter_mm": 50, "counts": False}
    found = by_size({"lesions": [hidden]}, finding(NODULE, Presence.PRESENT), lesion(1, (5, 5, 5), 0.9, 40.0))
    assert (found[None].lesions, found[None].descriptions) == (0, ())


def test_volumes_are_compared_by_side_and_outlines_by_dice() -> None:
    def side(laterality: Laterality, ml: float) -> Finding:
        return finding(
            EFFUSION,
            Presence.PRESENT,
            lesion=1,
            laterality=laterality,
            measurements=(Measurement(quantity=Quantity.VOLUME, value=ml, unit="ml"),),
            region=Region(
                centre_mm=(0, 0, 0),
                box=(slice(0, 2), slice(0, 4), slice(0, 4)),
                mask=np.ones((2, 4, 4), bool),
                key_slice=1,
            ),
        )

    outline = np.zeros((10, 20, 20), bool)
    outline[:4, :4, :4] = True
    known = {"measurements": [{"quantity": "volume", "value": 80.0, "unit": "ml", "laterality": "left"}]}
    found = answers(
        {"findings": {"pleural_effusion": known | {"positive_slices": [3]}}},
        finding(EFFUSION, Presence.PRESENT, probability=0.9, region=side(Laterality.LEFT, 1).region),
        side(Laterality.LEFT, 90.0),
        side(Laterality.RIGHT, 400.0),
        pleural_effusion=outline,
    )[EFFUSION]
    assert [(p.true, p.measured, p.laterality) for p in found.pairs] == [(80.0, 90.0, Laterality.LEFT)]
    assert found.dice == pytest.approx(2 * 32 / (32 + 64))
    assert found.key_slice_right is False
    assert found.slices == SliceCounts(positive=1, found=0, negative=7, clean=5)


@pytest.mark.parametrize(("value", "unit"), [(310.0, "ml"), (310_000.0, "mm3")])
def test_a_known_volume_is_compared_in_the_unit_it_is_measured_in(value: float, unit: str) -> None:
    known = {"measurements": [{"quantity": "volume", "value": value, "unit": unit}]}
    measured = (Measurement(quantity=Quantity.VOLUME, value=290.0, unit="ml"),)
    found = answers(
        {"findings": {"pleural_effusion": known}},
        finding(EFFUSION, Presence.PRESENT, probability=0.9, measurements=measured),
        pleural_effusion=np.ones((10, 20, 20), bool),
    )[EFFUSION]
    assert [(p.true, p.measured, p.unit) for p in found.pairs] == [(310.0, 290.0, "ml")]


@pytest.mark.parametrize(
    ("spacing_mm", "group"),
    [
        (math.nextafter(1.5, 2), "up to 1.5 mm"),
        (1.51, "over 1.5 to 3 mm"),
        (math.nextafter(3.0, 4), "over 1.5 to 3 mm"),
        (3.01, "over 3 mm"),
    ],
)
def test_rounding_moves_no_study_into_another_group(spacing_mm: float, group: str) -> None:
    study = record("s", "present", Presence.PRESENT, 0.9, acquisition={"slice_spacing_mm": spacing_mm})
    assert SUBGROUPS["slice spacing"](study) == group


def record(name: str, truth: str, presence: Presence, probability: float, **values: object) -> Record:
    given = Answer(
        kind=EFFUSION, truth=truth, presence=presence, probability=probability, score=probability, reason=None
    )
    start = {"key": name, "name": name, "source": "phantoms", "simulated": True, "trained_on": False}
    return Record.model_validate(start | {"outcome": "evaluated", "answers": (given,)} | values)


def suite(**values: object) -> list[Record]:
    said = [("present", Presence.PRESENT, 0.9)] * 3 + [("present", Presence.INDETERMINATE, 0.5)]
    said += [("absent", Presence.ABSENT, 0.1)] * 3 + [("absent", Presence.PRESENT, 0.6)]
    said += [("unknown", Presence.PRESENT, 0.9), ("present", Presence.NOT_ASSESSED, 0.0)]
    return [record(f"s{i}", *one, **values) for i, one in enumerate(said)]


def test_rates_count_what_was_said_and_leave_out_what_is_not_known() -> None:
    row = trial(EFFUSION, "phantoms", suite())
    assert row is not None
    assert (row.positive, row.negative, row.indeterminate, row.not_assessed) == (4, 4, 1, 1)
    assert (row.sensitivity, row.specificity) == (0.75, 0.75)
    assert row.auroc == pytest.approx(15 / 16)
    assert row.calibration is not None
    assert (row.calibration.n, row.calibration.expected_error) == (8, pytest.approx(1.7 / 8))
    assert row.calibration.brier == pytest.approx((0.01 * 6 + 0.25 + 0.36) / 8)
    assert trial(NODULE, "phantoms", suite()) is None


def test_lesions_are_counted_at_two_false_ones_a_study() -> None:
    """One nodule, found with a lower score than three false descriptions have."""
    lesions = [{"centre_lps_mm": [5, 5, 5], "diameter_mm": 10}]
    far = [lesion(number, (90.0 * number, 5, 5), 0.9, 6.0) for number in (2, 3, 4)]
    said = finding(NODULE, Presence.PRESENT, probability=0.9)
    for false_ones, expected in ((far[:2], 1.0), (far, 0.0)):
        known = answers(
            {"findings": {"pulmonary_nodule": {"lesions": lesions}}}, said, lesion(1, (5, 5, 5), 0.4, 10.0), *false_ones
        )
        row = trial(NODULE, "phantoms", [record("s", "unknown", Presence.ABSENT, 0.0, answers=(known[NODULE],))])
        assert row is not None and row.lesions is not None
        assert (row.lesions.found, row.lesions.sensitivity_at_two) == (1, expected)


@pytest.mark.parametrize(
    ("simulated", "trained_on", "copies", "expected"),
    [(True, False, 9, "C"), (False, False, 1, "B"), (False, False, 9, "A"), (False, True, 9, "C")],
)
def test_grades_need_real_studies_that_were_not_trained_on(
    simulated: bool, trained_on: bool, copies: int, expected: str
) -> None:
    records = suite(simulated=simulated, trained_on=trained_on) * copies
    assert evidence_of(records)[EFFUSION].grade.value == expected


def test_no_trial_at_all_is_grade_c() -> None:
    assert grade([]) is EvidenceGrade.C
    simulated = Trial(data="phantoms", simulated=True, positive=99, negative=99, sensitivity=1.0, specificity=1.0)
    assert grade([simulated]) is EvidenceGrade.C


def test_new_evidence_replaces_the_old_one_and_decides_what_is_withheld() -> None:
    manifest = with_evidence(load_manifest(MODEL), suite())
    assert [row.data for row in manifest.evidence[EFFUSION].trials] == ["phantoms"]
    assert "1 of 4" in manifest.withheld[EFFUSION]
    assert "0 studies" in manifest.withheld[NODULE]
    assert manifest.withheld.keys() >= {FindingKind.EMPHYSEMA, *RULES}


def test_masses_stand_in_the_manifest_and_the_card_without_a_grade() -> None:
    sized = by_size({"lesions": MASS_AND_NODULE}, finding(NODULE, Presence.PRESENT), lesion(1, (5, 5, 5), 0.9, 45.0))
    manifest = with_evidence(
        load_manifest(MODEL), [record("n", "present", Presence.PRESENT, 0.9, answers=tuple(sized.values()))]
    )
    (row,) = ModelManifest.model_validate_json(manifest.model_dump_json()).evidence[NODULE].by_size["mass above 30 mm"]
    assert row.lesions is not None
    assert (row.positive, row.sensitivity, row.lesions.lesions, row.lesions.sensitivity_at_two) == (1, 1.0, 1, 1.0)
    assert "| pulmonary_nodule: mass above 30 mm | - | phantoms | 1 | 0 | 1.00" in tables(manifest)


def test_a_model_that_was_not_measured_by_size_claims_nothing_about_masses() -> None:
    """The manifest of an older release has no such rows."""
    document = load_manifest(MODEL).model_dump(mode="json")
    for evidence in document["evidence"].values():
        del evidence["by_size"]
    assert "mass above" not in tables(ModelManifest.model_validate(document))


def test_tables_and_page_name_groups_refusals_and_figures(tmp_path: Path) -> None:
    refused = record("late", "present", Presence.PRESENT, 0.5, outcome="refused", problem="half a <thorax>", answers=())
    manifest = load_manifest(MODEL)
    sized = by_size({"lesions": MASS_AND_NODULE}, finding(NODULE, Presence.PRESENT), lesion(1, (5, 5, 5), 0.9, 45.0))
    nodules = record("n", "present", Presence.PRESENT, 0.9, answers=tuple(sized.values()))
    records = [*suite(), nodules, *suite(simulated=False, source="a hospital"), refused]
    write_tables(records, manifest, tmp_path)
    write_page(records, manifest, tmp_path)
    rows = (tmp_path / FIGURES_NAME).read_text().splitlines()
    assert any(row.startswith("pleural_effusion,,phantoms,,4,4,1,1,0.75,") for row in rows)
    assert any(row.startswith("pulmonary_nodule,mass above 30 mm,phantoms,,1,0,0,0,1.0,") for row in rows)
    page = (tmp_path / PAGE_NAME).read_text()
    for words in (
        "half a &lt;thorax&gt;",
        "mass above 30 mm, phantoms",
        "real CT, not trained on",
        with_interval(0.75, (0.3, 0.95))[:4],
        "<svg",
    ):
        assert words in page


def test_a_rule_without_a_probability_is_ranked_by_what_it_measures() -> None:
    laa = Measurement(quantity=Quantity.LOW_ATTENUATION_AREA_950, value=12.5, unit="%")
    one_side = replace(laa, value=30.0, laterality=Laterality.LEFT)
    found = answers(
        {"present": ["emphysema"]}, finding(FindingKind.EMPHYSEMA, Presence.PRESENT, measurements=(one_side, laa))
    )
    assert found[FindingKind.EMPHYSEMA].score == 12.5
    assert found[FindingKind.EMPHYSEMA].probability is None


def test_an_aorta_is_ranked_by_its_widest_part() -> None:
    widest = Measurement(quantity=Quantity.MAXIMUM_DIAMETER, value=58.0, unit="mm")
    ascending = Measurement(quantity=Quantity.ASCENDING_AORTA_DIAMETER, value=34.0, unit="mm")
    aorta = finding(FindingKind.AORTIC_DILATATION, Presence.PRESENT, measurements=(ascending, widest))
    assert answers({"present": ["aortic_dilatation"]}, aorta)[FindingKind.AORTIC_DILATATION].score == 58.0


def test_what_may_be_no_nodule_is_not_measured_with_those_that_are() -> None:
    def of(number: int, ml: float, presence: Presence) -> Finding:
        measured = (Measurement(quantity=Quantity.VOLUME, value=ml, unit="ml"),)
        return finding(NODULE, presence, lesion=number, measurements=measured)

    truth = {"findings": {"pulmonary_nodule": {"measurements": [KNOWN_ML]}}}
    sure, doubtful = of(1, 0.5, Presence.PRESENT), of(2, 4.0, Presence.INDETERMINATE)
    (pair,) = answers(truth, finding(NODULE, Presence.PRESENT), sure, doubtful)[NODULE].pairs
    assert (pair.true, pair.measured) == (0.48, 0.5)


def test_what_is_known_of_both_sides_is_known_of_the_study() -> None:
    measured = (Measurement(quantity=Quantity.VOLUME, value=250.0, unit="ml"),)
    known = {"quantity": "volume", "value": 240.0, "unit": "ml", "laterality": "bilateral"}
    truth = {"findings": {"pleural_effusion": {"measurements": [known]}}}
    found = answers(truth, finding(EFFUSION, Presence.PRESENT, measurements=measured))[EFFUSION]
    assert [(p.true, p.measured) for p in found.pairs] == [(240.0, 250.0)]
