"""The report as a value: order, rounding, refusal, identity, headline, key images and the published schema."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dicom_gateway.report
from dicom_gateway.report.compose import compose_report
from dicom_gateway.report.content import Report, ReportedModel, report_schema
from dicom_gateway.report.headline import headline
from dicom_gateway.report.key_images import MAXIMUM_KEY_IMAGES, key_image_names, render_key_images
from dicom_gateway.report.page import draw_page
from dicom_gateway.report.wording import place
from imaging.geometry import Geometry
from imaging.headers import Series
from imaging.quality import QualityIssue, Verdict
from imaging.selection import Rejection, Selection
from imaging.volume import Volume
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

CREATED = datetime(2026, 1, 10, 12, 0, tzinfo=UTC)
NODULE, AORTA = FindingKind.PULMONARY_NODULE, FindingKind.AORTIC_DILATATION


def make_volume() -> Volume:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, :3] = [[0, 0, 2.0], [0, 2.0, 0], [5.0, 0, 0]]
    uids = tuple(f"1.2.3.{i + 1}" for i in range(10))
    hu = np.full((10, 100, 100), -800, dtype=np.int16)
    return Volume(hu, Geometry(affine, hu.shape), "1.2.3", uids, tuple(range(1, 11)))


def make_finding(kind: FindingKind, presence: Presence, lesion: int | None = None, **more: Any) -> Finding:
    values: dict[str, Any] = {
        "tracking_uid": f"1.9.{list(FindingKind).index(kind) + 1}.{lesion or 0}",
        "evidence_grade": EvidenceGrade.C,
        "method": "test",
        "reason": "no reason to look" if presence is Presence.NOT_ASSESSED else None,
        "lesion": lesion,
    }
    return Finding(kind=kind, presence=presence, **(values | more))


def make_findings(**of_kind: Finding) -> list[Finding]:
    """One answer for each kind: not assessed, or what is given under the kind's value."""
    return [of_kind.get(k.value) or make_finding(k, Presence.NOT_ASSESSED) for k in FindingKind]


def make_region(key_slice: int = 4) -> Region:
    box = (slice(3, 6), slice(40, 44), slice(50, 54))
    return Region(centre_mm=(100.06, 80.0, 20.0), box=box, mask=np.ones((3, 4, 4), np.bool_), key_slice=key_slice)


def make_selection(is_chosen: bool = True) -> Selection:
    series = Series(
        series_instance_uid="1.2.3",
        modality="CT",
        series_number=2,
        series_description="Lung",
        body_part_examined=None,
        protocol_name=None,
        convolution_kernel="B60f",
        contrast_bolus_agent=None,
        files=(),
        slices=(),
    )
    scout = Rejection(
        series_instance_uid="1.2.4",
        series_number=1,
        modality="CT",
        series_description=None,
        instance_count=2,
        reason="localizer (scout)",
    )
    return Selection(chosen=series if is_chosen else None, alternatives=(), unsuitable=(scout,))


def compose(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "study_instance_uid": "1.2",
        "selection": make_selection(),
        "quality": (),
        "findings": make_findings(),
        "volume": make_volume(),
        "contrast": None,
        "contrast_evidence": None,
        "model": ReportedModel(name="m", version="1", sha256="0" * 64),
        "revision": 1,
        "created": CREATED,
        "software_version": "0.1.0",
    }
    return compose_report(**(values | changes))


def measured(value: float, unit: Any, quantity: Quantity = Quantity.VOLUME) -> Measurement:
    return Measurement(quantity=quantity, value=value, unit=unit)


@pytest.mark.parametrize(
    ("value", "unit", "reported"),
    [
        (12.349, "mm", 12.3),
        (512.6, "mm3", 513.0),
        (350.4, "ml", 350.0),
        (7.26, "ml", 7.3),
        (9.96, "ml", 10.0),
        (-0.01, "mm", 0.0),
        (-856.4, "[hnsf'U]", -856.0),
        (3.456, "%", 3.5),
        (210.2, "1", 210.0),
        (0.4567, "{ratio}", 0.46),
        (np.float32(1.25), "{ratio}", 1.25),
    ],
)
def test_numbers_are_rounded_to_what_they_can_carry(value: float, unit: str, reported: float) -> None:
    nodule = make_finding(NODULE, Presence.PRESENT, measurements=(measured(value, unit),))
    report = compose(findings=make_findings(pulmonary_nodule=nodule))
    found = report.findings[0].measurements[0].value
    assert found == reported
    assert type(found) is float
    assert math.copysign(1.0, found) == (1.0 if reported >= 0 else -1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(value: float) -> None:
    nodule = make_finding(NODULE, Presence.PRESENT, measurements=(measured(value, "mm"),))
    with pytest.raises(ValueError, match="finite"):
        compose(findings=make_findings(pulmonary_nodule=nodule))


@given(order=st.permutations(range(len(FindingKind) + 2)))
def test_the_order_of_the_findings_does_not_matter(order: list[int]) -> None:
    findings = [*make_findings(), make_finding(NODULE, Presence.PRESENT, 1), make_finding(NODULE, Presence.PRESENT, 2)]
    report = compose(findings=[findings[i] for i in order])
    assert report == compose(findings=findings)
    assert [f.lesion for f in report.findings[:4]] == [None, 1, 2, None]
    assert list(dict.fromkeys(f.kind for f in report.findings)) == [k.value for k in FindingKind]


def test_every_kind_needs_one_answer_about_the_study() -> None:
    with pytest.raises(ValueError, match="pulmonary_nodule"):
        compose(findings=make_findings()[1:])
    with pytest.raises(ValueError, match="medical_device"):
        compose(findings=[*make_findings(), make_finding(FindingKind.MEDICAL_DEVICE, Presence.ABSENT)])


def test_created_needs_a_zone() -> None:
    with pytest.raises(ValueError, match="aware"):
        compose(created=CREATED.replace(tzinfo=None))


def test_the_report_uid_follows_what_was_analysed_and_by_what() -> None:
    report = compose()
    assert compose(created=CREATED.replace(year=2027), timings_s={"read": 9.0}).report_uid == report.report_uid
    volume = make_volume()
    fewer = replace(volume, sop_instance_uids=(*volume.sop_instance_uids[:-1], "1.2.3.99"))
    others = [
        compose(revision=2),
        compose(software_version="0.1.1"),
        compose(study_instance_uid="1.3"),
        compose(model=ReportedModel(name="m", version="1", sha256="1" * 64)),
        compose(volume=fewer),
        compose(volume=None, selection=make_selection(is_chosen=False), findings=()),
    ]
    assert len({report.report_uid, *(o.report_uid for o in others)}) == 7


def test_a_key_slice_names_its_source_image() -> None:
    nodule = make_finding(NODULE, Presence.PRESENT, 1, region=make_region(key_slice=4))
    found = compose(findings=[*make_findings(), nodule]).findings[1]
    assert (found.key_slice, found.key_sop_instance_uid, found.key_frame_number) == (4, "1.2.3.5", 5)
    assert (found.key_image, found.centre_mm) == ("key_1.png", (100.1, 80.0, 20.0))


@pytest.mark.parametrize("is_chosen", [True, False])
def test_a_refused_study_assesses_nothing_and_says_why(is_chosen: bool) -> None:
    gaps = QualityIssue(check="slice_gaps", verdict=Verdict.REJECT, message="3 images seem to be missing")
    quality = (gaps,) if is_chosen else ()
    report = compose(volume=None, selection=make_selection(is_chosen), quality=quality, findings=())
    why = "3 images seem to be missing" if is_chosen else "localizer (scout)"
    assert report.outcome == "refused"
    assert why in (report.refusal or "")
    assert report.analysed_series is None
    assert {f.presence for f in report.findings} == {"not_assessed"}
    assert all(why in (f.reason or "") for f in report.findings)
    assert why in headline(report)[0]
    assert draw_page(report, "", {}).shape[1:] == (1280, 3)


def test_a_rejected_volume_has_no_findings() -> None:
    noise = QualityIssue(check="lungs", verdict=Verdict.REJECT, message="no lungs")
    with pytest.raises(ValueError, match="no findings"):
        compose(quality=(noise,))


def test_the_headline_puts_the_urgent_first_and_never_calls_absent_what_was_not_assessed() -> None:
    aorta = make_finding(
        AORTA,
        Presence.PRESENT,
        site="ascending aorta",
        evidence_grade=EvidenceGrade.A,
        measurements=(measured(56.04, "mm", Quantity.MAXIMUM_DIAMETER),),
    )
    nodule = make_finding(NODULE, Presence.PRESENT)
    lesions = [
        make_finding(
            NODULE,
            Presence.PRESENT,
            n,
            laterality=Laterality.LEFT,
            site="upper lobe",
            measurements=(
                measured(size, "mm", Quantity.LONG_AXIS),
                measured(size - 1, "mm", Quantity.SHORT_AXIS),
            ),
        )
        for n, size in enumerate((6.0, 9.5, 7.0), start=1)
    ]
    device = make_finding(FindingKind.MEDICAL_DEVICE, Presence.INDETERMINATE)
    hernia = make_finding(FindingKind.HIATAL_HERNIA, Presence.ABSENT)
    answers = make_findings(
        aortic_dilatation=aorta, pulmonary_nodule=nodule, medical_device=device, hiatal_hernia=hernia
    )
    assert headline(compose(findings=[*answers, *lesions])) == (
        "Aortic dilatation: ascending aorta, maximum diameter 56.0 mm.",
        "Pulmonary nodule (3): largest left upper lobe, 9.5 x 8.5 mm (simulation evidence only).",
        "Indeterminate: medical device.",
        "Assessed, not found: hiatal hernia.",
        "Not assessed: 18 of 22 kinds (no reason to look).",
    )


def test_few_kinds_that_were_not_assessed_are_named_each_reason_once() -> None:
    absent = {kind.value: make_finding(kind, Presence.ABSENT) for kind in list(FindingKind)[3:]}
    assert headline(compose(findings=make_findings(**absent)))[-1] == (
        "Not assessed, 3 of 22 kinds: pulmonary nodule, coronary artery calcification, emphysema (no reason to look)."
    )
    nodule = make_finding(NODULE, Presence.NOT_ASSESSED, reason="contrast")
    assert headline(compose(findings=make_findings(pulmonary_nodule=nodule)))[-1] == (
        "Not assessed, 22 of 22 kinds: pulmonary nodule (contrast); 21 kinds (no reason to look)."
    )


def test_many_reasons_are_left_to_the_list_below_but_every_kind_is_named() -> None:
    absent = {kind.value: make_finding(kind, Presence.ABSENT) for kind in list(FindingKind)[3:]}
    three = {k.value: make_finding(k, Presence.NOT_ASSESSED, reason=f"reason {k}") for k in list(FindingKind)[:3]}
    assert headline(compose(findings=make_findings(**absent, **three)))[-1] == (
        "Not assessed, 3 of 22 kinds, each for the reason stated with it: "
        "pulmonary nodule, coronary artery calcification, emphysema."
    )


@pytest.mark.parametrize(
    ("side", "site", "words"),
    [
        (Laterality.LEFT, "upper lobe", "left upper lobe"),
        (Laterality.LEFT, "left upper lobe", "left upper lobe"),
        (Laterality.BILATERAL, "both lungs", "both lungs"),
        (Laterality.BILATERAL, None, "bilateral"),
        (None, "ascending aorta", "ascending aorta"),
        (None, None, ""),
    ],
)
def test_a_place_names_the_side_once(side: Laterality | None, site: str | None, words: str) -> None:
    nodule = make_finding(NODULE, Presence.PRESENT, laterality=side, site=site)
    assert place(compose(findings=make_findings(pulmonary_nodule=nodule)).findings[0]) == words


def test_nothing_found_counts_only_what_was_assessed() -> None:
    absent = make_finding(NODULE, Presence.ABSENT)
    lines = headline(compose(findings=make_findings(pulmonary_nodule=absent)))
    assert lines[0] == "Nothing found among the finding kinds assessed (1 of 22)."
    assert "normal" not in " ".join(lines).lower()


def test_nothing_is_called_not_found_while_a_kind_is_open() -> None:
    device = make_finding(FindingKind.MEDICAL_DEVICE, Presence.INDETERMINATE)
    absent = make_finding(NODULE, Presence.ABSENT)
    lines = headline(compose(findings=make_findings(pulmonary_nodule=absent, medical_device=device)))
    assert lines[:2] == (
        "Nothing clearly present among the finding kinds assessed (2 of 22).",
        "Indeterminate: medical device.",
    )


def test_the_headline_ends_with_what_limits_the_answers() -> None:
    warnings = (
        "the lung bases are cut off; findings there are not seen",
        "slices of 5.0 mm: small nodules may be missed",
    )
    quality = [QualityIssue(check="any", verdict=Verdict.WARN, message=message) for message in (*warnings, warnings[0])]
    passed = QualityIssue(check="hu", verdict=Verdict.PASS, message="lung -850 HU")
    lines = headline(compose(quality=[passed, *quality]))
    assert lines[-1] == f"Limited: {warnings[0]}; {warnings[1]}."
    assert not any("Limited" in line for line in (*lines[:-1], *headline(compose(quality=[passed]))))


def test_a_reservation_stands_beside_the_answer() -> None:
    why = "the left lung was not assessed (hardly aerated)"
    absent = make_finding(FindingKind.EMPHYSEMA, Presence.ABSENT, reason=why)
    hernia = make_finding(FindingKind.HIATAL_HERNIA, Presence.ABSENT)
    lines = headline(compose(findings=make_findings(emphysema=absent, hiatal_hernia=hernia)))
    assert lines[1:3] == ("Assessed, not found: hiatal hernia.", f"Emphysema: not found; {why}.")
    present = make_finding(
        FindingKind.EMPHYSEMA,
        Presence.PRESENT,
        reason=why,
        measurements=(measured(12.3, "%", Quantity.LOW_ATTENUATION_AREA_950),),
        evidence_grade=EvidenceGrade.B,
    )
    lines = headline(compose(findings=make_findings(emphysema=present)))
    assert lines[0] == f"Emphysema: lung below -950 HU 12.3 %; {why}."


def test_an_effusion_of_the_pericardium_has_no_side() -> None:
    values: dict[str, Any] = {"measurements": (measured(120.0, "ml"),)}
    study = make_finding(FindingKind.PERICARDIAL_EFFUSION, Presence.PRESENT, **values)
    lesion = make_finding(FindingKind.PERICARDIAL_EFFUSION, Presence.PRESENT, 1, **values)
    report = compose(findings=[*make_findings(pericardial_effusion=study), lesion])
    assert headline(report)[0] == "Pericardial effusion: volume 120 ml (simulation evidence only)."


@pytest.mark.parametrize(
    ("presence", "grade", "kinds", "urgent"),
    [
        (Presence.PRESENT, EvidenceGrade.B, ["pneumothorax"], ("pneumothorax",)),
        (Presence.PRESENT, EvidenceGrade.A, list(FindingKind), ("pneumothorax",)),
        (Presence.PRESENT, EvidenceGrade.C, ["pneumothorax"], ()),
        (Presence.INDETERMINATE, EvidenceGrade.B, ["pneumothorax"], ()),
        (Presence.ABSENT, EvidenceGrade.A, ["pneumothorax"], ()),
        (Presence.PRESENT, EvidenceGrade.B, ["pleural_effusion"], ()),
        (Presence.PRESENT, EvidenceGrade.B, [], ()),
    ],
)
def test_urgent_is_what_is_present_by_good_evidence_and_named_in_the_settings(
    presence: Presence, grade: EvidenceGrade, kinds: list[str], urgent: tuple[str, ...]
) -> None:
    values: dict[str, Any] = {"evidence_grade": grade}
    study = make_finding(FindingKind.PNEUMOTHORAX, presence, **values)
    lesion = make_finding(FindingKind.PNEUMOTHORAX, presence, 1, **values)
    findings = [*make_findings(pneumothorax=study), lesion]
    assert compose(findings=findings, urgent_kinds=kinds).urgent == urgent
    assert compose(volume=None, selection=make_selection(is_chosen=False), findings=(), urgent_kinds=kinds).urgent == ()


def test_the_page_of_an_amended_report_says_so_at_its_top() -> None:
    first, second = (draw_page(compose(revision=revision), "20260110", {}) for revision in (1, 2))
    amber = [(page[:200] == (250, 220, 90)).all(axis=2).sum() for page in (first, second)]
    assert amber[0] == 0 < amber[1]


def test_each_kind_gets_a_key_image_before_any_gets_a_second() -> None:
    nodules = [make_finding(NODULE, Presence.PRESENT, n, region=make_region()) for n in range(1, 20)]
    study = make_finding(NODULE, Presence.PRESENT, region=make_region())
    aorta = make_finding(AORTA, Presence.INDETERMINATE, region=make_region())
    absent = make_finding(FindingKind.EMPHYSEMA, Presence.ABSENT, region=make_region())
    names = key_image_names([study, *nodules, aorta, absent])
    assert len(names) == MAXIMUM_KEY_IMAGES
    assert names[aorta.tracking_uid] == "key_1.png", "the more urgent kind comes first"
    assert names[nodules[0].tracking_uid] == "key_2.png"
    assert study.tracking_uid not in names
    assert absent.tracking_uid not in names


def test_key_images_carry_the_names_of_the_report() -> None:
    volume = make_volume()
    findings = [*make_findings(), make_finding(NODULE, Presence.PRESENT, 1, region=make_region())]
    pictures = render_key_images(findings, volume)
    named = {f.key_image for f in compose(findings=findings, volume=volume).findings if f.key_image}
    assert set(pictures) == named == {"key_1.png"}
    orange = (pictures["key_1.png"] == (255, 150, 50)).all(axis=2)
    rows, columns = np.nonzero(orange)
    assert orange.any()
    # The lesion is shown enlarged in the middle of its picture.
    assert abs(rows.mean() - 256) < 12
    assert abs(columns.mean() - 256) < 12


def test_the_page_has_room_for_everything() -> None:
    volume = make_volume()
    long = "a reason that a careful author made rather long, " * 8
    present = [
        make_finding(kind, Presence.PRESENT, site="somewhere in the chest " * 4, reason=long, region=make_region())
        for kind in FindingKind
    ]
    report = compose(findings=present, volume=volume)
    page = draw_page(report, "20260110", render_key_images(present, volume))
    short = draw_page(compose(), "20260110", {})
    assert page.shape[0] > short.shape[0] + 1500
    assert page.shape[1:] == (1280, 3)
    # Nothing reaches the margins: no text is cut at an edge.
    for edge in (page[:, :20], page[:, -20:], page[-20:]):
        assert (edge == page[0, 0]).all()


def test_a_report_survives_json() -> None:
    nodule = make_finding(NODULE, Presence.PRESENT, 1, region=make_region(), measurements=(measured(3.14, "mm"),))
    report = compose(findings=[*make_findings(), nodule])
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_the_published_schema_is_current() -> None:
    """After a change: python -m dicom_gateway.report.content > dicom_gateway/report/report.schema.json"""
    published = Path(dicom_gateway.report.__file__).with_name("report.schema.json")
    assert json.loads(published.read_text()) == report_schema()
