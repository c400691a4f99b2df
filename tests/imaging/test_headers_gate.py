"""Gate 1 and series selection on header values: a volume is geometrically right or refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from imaging.headers import Series, Slice, Study
from imaging.quality import Verdict, check_headers, is_rejected
from imaging.selection import is_sharp_kernel, next_selection, select_series

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


def make_slice(index: int, **overrides) -> Slice:
    """An axial plane, 1.5 mm above the one before."""
    values = {
        "path": Path(f"{index}.dcm"),
        "sop_instance_uid": f"1.2.3.{index + 1}",
        "sop_class_uid": CT_IMAGE,
        "frame_number": None,
        "instance_number": index + 1,
        "image_type": ("ORIGINAL", "PRIMARY", "AXIAL"),
        "acquisition_number": 1,
        "frame_of_reference_uid": "1.2.4",
        "image_position_patient": (-180.0, -160.0, -300.0 + 1.5 * index),
        "image_orientation_patient": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        "pixel_spacing_mm": (0.7, 0.7),
        "rows": 512,
        "columns": 512,
        "slice_thickness_mm": 1.5,
        "rescale_slope": 1.0,
        "rescale_intercept": -1024.0,
    }
    return Slice(**{**values, **overrides})


def make_series(slices=None, **overrides) -> Series:
    planes = tuple(make_slice(i) for i in range(200)) if slices is None else tuple(slices)
    values = {
        "series_instance_uid": "1.2.5",
        "modality": "CT",
        "series_number": 3,
        "series_description": "Chest 1.5 B40f",
        "body_part_examined": "CHEST",
        "protocol_name": None,
        "convolution_kernel": "B40f",
        "contrast_bolus_agent": None,
        "files": tuple(p.path for p in planes),
        "slices": planes,
    }
    return Series(**{**values, **overrides})


def _rejects(series: Series) -> set[str]:
    return {issue.check for issue in check_headers(series) if issue.verdict is Verdict.REJECT}


def test_a_regular_series_passes() -> None:
    assert not is_rejected(check_headers(make_series()))


@given(
    seed=st.integers(0, 1000),
    tilt_free_rotation=st.floats(-15, 15),
    spacing=st.sampled_from([0.5, 0.625, 0.7, 1.0, 1.25, 2.0, 5.0]),
    decimals=st.sampled_from([1, 2, 6]),
)
def test_order_rounding_and_oblique_positioning_do_not_matter(seed, tilt_free_rotation, spacing, decimals) -> None:
    """Files in any order, positions rounded as scanners round them, patient rotated: still one regular stack."""
    row, column, normal = Rotation.from_euler("zx", [tilt_free_rotation, 3], degrees=True).as_matrix().T
    planes = [
        make_slice(
            i,
            image_position_patient=tuple(np.round(np.array([-180, -160, -300]) + i * spacing * normal, decimals)),
            image_orientation_patient=(*row, *column),
            slice_thickness_mm=spacing,
        )
        for i in range(250)
    ]
    np.random.default_rng(seed).shuffle(planes)
    assert not is_rejected(check_headers(make_series(planes)))


@given(st.data())
def test_a_missing_slice_is_always_refused(data) -> None:
    spacing = data.draw(st.sampled_from([0.5, 1.0, 1.5, 3.0]))
    planes = [make_slice(i, image_position_patient=(0.0, 0.0, i * spacing)) for i in range(300)]
    del planes[data.draw(st.integers(1, 298))]
    assert _rejects(make_series(planes)) == {"slice_gaps"}


def _with(index: int, **changes) -> Series:
    planes = [make_slice(i) for i in range(200)]
    planes[index] = replace(planes[index], **changes)
    return make_series(planes)


@pytest.mark.parametrize(
    ("series", "check"),
    [
        (_with(50, image_position_patient=None), "headers"),
        (_with(50, image_position_patient=(float("nan"), 0.0, 0.0)), "headers"),
        (_with(50, rescale_slope=None), "headers"),
        (_with(50, pixel_spacing_mm=(0.0, 0.7)), "headers"),
        (_with(50, pixel_spacing_mm=(float("inf"), 0.7)), "headers"),
        (_with(50, rescale_intercept=float("nan")), "headers"),
        (_with(50, pixel_spacing_mm=(0.7, 0.8)), "mixed_images"),
        (make_series([make_slice(i, pixel_spacing_mm=(7.0, 7.0)) for i in range(200)]), "pixel_spacing"),
        (_with(50, instance_number=500), "image_order"),
        (_with(50, rows=256), "mixed_images"),
        (_with(50, frame_of_reference_uid="1.2.9"), "mixed_images"),
        (_with(50, image_orientation_patient=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0)), "orientation"),
        (_with(50, image_position_patient=(-180.0, -160.0, -300.0 + 1.5 * 51)), "duplicate_positions"),
        (_with(50, image_position_patient=(-170.0, -160.0, -300.0 + 1.5 * 50)), "alignment"),
        (_with(50, sop_instance_uid="1.2.3.1"), "sop_instance_uid"),
        (make_series([make_slice(i, acquisition_number=1 + (i > 90)) for i in range(200)]), "acquisition"),
        (
            make_series([make_slice(i, image_position_patient=(0.0, 0.1 * i, 1.5 * i)) for i in range(200)]),
            "gantry_tilt",
        ),
        (
            make_series(
                [make_slice(i, image_position_patient=(0.0, 0.0, 1.5 * i + 0.004 * i * i)) for i in range(200)]
            ),
            "slice_gaps",
        ),
        (
            make_series([make_slice(i, image_position_patient=(0.0, 0.0, 10.0 * i)) for i in range(30)]),
            "slice_spacing",
        ),
        (make_series([make_slice(i) for i in range(30)]), "coverage"),
    ],
)
def test_what_is_no_regular_stack_is_refused_by_name(series, check) -> None:
    assert check in _rejects(series)


def _located(*mm: float) -> Series:
    return make_series([make_slice(i, slice_location_mm=at) for i, at in enumerate(mm)])


_CLOSED_UP = [i + 12 * (i >= 90) for i in range(200)]


@pytest.mark.parametrize(
    ("series", "check", "verdict"),
    [
        (_located(*(-3.0 * i for i in range(200))), "slice_location", Verdict.REJECT),
        (_located(*(1.5 * number for number in _CLOSED_UP)), "slice_location", Verdict.REJECT),
        (_located(*(1.5 * i for i in range(200))), "slice_location", None),
        (_located(*(-1.5 * i + 7 for i in range(200))), "slice_location", None),
        # Values that follow no rule tell nothing.
        (_located(*(float(i * 77 % 200) for i in range(200))), "slice_location", None),
        (_located(*[3.0] * 200), "slice_location", None),
        (
            make_series([make_slice(i, instance_number=number + 1) for i, number in enumerate(_CLOSED_UP)]),
            "image_numbers",
            Verdict.WARN,
        ),
        (make_series([make_slice(i, instance_number=2 * i) for i in range(200)]), "image_numbers", None),
        (
            make_series([make_slice(i, reconstruction_diameter_mm=275.0) for i in range(200)]),
            "reconstruction_diameter",
            Verdict.WARN,
        ),
        (
            make_series([make_slice(i, reconstruction_diameter_mm=360.0) for i in range(200)]),
            "reconstruction_diameter",
            None,
        ),
        (
            make_series([make_slice(i, rows=128, columns=128, pixel_spacing_mm=(2.8, 2.8)) for i in range(200)]),
            "pixel_spacing",
            Verdict.WARN,
        ),
        (
            make_series([make_slice(i, rows=64, columns=64, pixel_spacing_mm=(5.6, 5.6)) for i in range(200)]),
            "pixel_spacing",
            Verdict.REJECT,
        ),
        (make_series([make_slice(i, rescale_slope=5.9) for i in range(200)]), "hu", Verdict.WARN),
        (make_series([make_slice(i, kvp=70.0) for i in range(200)]), "kvp", Verdict.WARN),
        (make_series([make_slice(i, kvp=120.0) for i in range(200)]), "kvp", None),
    ],
)
def test_what_headers_tell_a_second_time_is_compared(series, check, verdict) -> None:
    assert next((issue.verdict for issue in check_headers(series) if issue.check == check), None) is verdict


def test_every_rotation_numbered_as_an_acquisition_is_one_volume() -> None:
    """Some scanners count AcquisitionNumber up with every image."""
    assert not _rejects(make_series([make_slice(i, acquisition_number=i) for i in range(200)]))


@pytest.mark.parametrize(
    "numbers", [range(200), range(200, 0, -1), [None] * 200, [7] * 200, [i * 77 % 200 for i in range(200)]]
)
def test_numbers_that_tell_no_other_order_are_no_contradiction(numbers) -> None:
    assert not _rejects(make_series([make_slice(i, instance_number=number) for i, number in enumerate(numbers)]))


def test_thick_slices_are_warned_about_not_refused() -> None:
    planes = [make_slice(i, image_position_patient=(0.0, 0.0, 5.0 * i), slice_thickness_mm=5.0) for i in range(60)]
    issues = check_headers(make_series(planes))
    assert not is_rejected(issues)
    assert any(i.check == "slice_thickness" and i.verdict is Verdict.WARN for i in issues)


def _study(*series: Series) -> Study:
    return Study(study_instance_uid="1.2", study_description=None, series=series)


def test_localizers_inside_an_axial_series_are_left_out_and_said() -> None:
    scout = make_slice(
        200,
        image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"),
        image_orientation_patient=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    )
    chosen = select_series(_study(make_series([*(make_slice(i) for i in range(200)), scout]))).chosen
    assert chosen is not None and len(chosen.slices) == 200
    issues = check_headers(chosen)
    assert not is_rejected(issues)
    assert any(i.check == "localizer" and i.verdict is Verdict.WARN for i in issues)


def test_a_dose_page_among_the_slices_costs_no_chest() -> None:
    page = make_slice(
        200, image_type=("DERIVED", "SECONDARY", "SCREEN SAVE"), image_position_patient=None, rows=768, columns=1024
    )
    planes = [make_slice(i) for i in range(200)]
    for series in (make_series([*planes, page]), make_series([page, *planes])):
        chosen = select_series(_study(series)).chosen
        assert chosen is not None and len(chosen.slices) == 200
        issues = check_headers(chosen)
        assert not is_rejected(issues)
        assert any(issue.check == "localizer" and issue.verdict is Verdict.WARN for issue in issues)


@pytest.mark.parametrize(("unit", "good"), [("MGML", False), ("Z_EFF", False), ("HU", True), ("US", True)])
def test_voxels_in_another_unit_are_no_ct_numbers(unit: str, good: bool) -> None:
    selection = select_series(_study(make_series([make_slice(i, rescale_type=unit) for i in range(200)])))
    assert (selection.chosen is not None) is good
    assert good or unit in selection.rejected[0].reason


def _numbered(number: int, **overrides) -> Series:
    return make_series(
        overrides.pop("slices", None), series_instance_uid=f"1.2.5.{number}", series_number=number, **overrides
    )


def _every(mm: float, count: int):
    return [make_slice(i, image_position_patient=(0.0, 0.0, mm * i), slice_thickness_mm=mm) for i in range(count)]


def test_the_thin_axial_chest_is_chosen_and_every_other_series_has_its_reason() -> None:
    sagittal = [make_slice(i, image_orientation_patient=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0)) for i in range(60)]
    scout = [make_slice(i, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")) for i in range(2)]
    study = _study(
        _numbered(1, slices=scout),
        _numbered(2, slices=_every(5.0, 60)),
        _numbered(3, slices=_every(1.0, 300)),
        _numbered(4, slices=_every(1.0, 300), convolution_kernel="B70f"),
        _numbered(5, slices=sagittal),
        _numbered(6, slices=(), modality="SR"),
        _numbered(7, slices=(), series_description="Dose Report"),
        _numbered(8, slices=_every(1.0, 300), body_part_examined="HEAD", series_description="Head 1.0"),
        _numbered(9, slices=_every(1.0, 40), series_description="1.0", body_part_examined="CHEST"),
        _numbered(10, slices=[replace(s, image_type=("DERIVED", "SECONDARY", "MIP")) for s in _every(1.0, 300)]),
        _numbered(11, slices=_every(1.0, 300), contrast_bolus_agent="Iohexol"),
        _numbered(12, slices=_every(1.0, 5)),
        _numbered(13, slices=_every(1.0, 300), convolution_kernel=None),
    )
    selection = select_series(study)
    assert selection.chosen is not None and selection.chosen.series_number == 3
    reasons = {r.series_number: r.reason for r in selection.rejected}
    assert set(reasons) == set(range(1, 14)) - {3}
    for number, word in {
        1: "localizer", 2: "thicker", 4: "sharp kernel", 5: "sagittal", 6: "SR", 7: "no CT images", 8: "HEAD",
        9: "fewer images", 10: "MIP", 11: "contrast", 12: "only 5 images", 13: "kernel that is not known",
    }.items():  # fmt: skip
        assert word in reasons[number], (number, reasons[number])


def _reason_not_chosen(chosen: Series, other: Series) -> str:
    """Why `other` is not chosen beside `chosen`; alone it is."""
    assert select_series(_study(other)).chosen == other
    for study in (_study(chosen, other), _study(other, chosen)):
        selection = select_series(study)
        assert selection.chosen == chosen
    return selection.rejected[0].reason


@pytest.mark.parametrize("name", ["6.1 CAP", "ROUTINE C/A/P 5.0", "TAP_portal", "Thorax Abd"])
def test_a_scan_down_to_the_pelvis_may_be_filed_under_the_abdomen(name) -> None:
    filed = _numbered(1, body_part_examined="ABDOMEN", series_description="5.0", protocol_name=name)
    assert select_series(_study(filed)).chosen == filed


@pytest.mark.parametrize("name", ["ABD PELVIS", "CAPSULE LEAK", "TAPE"])
def test_an_abdomen_alone_is_none(name) -> None:
    filed = _numbered(1, body_part_examined="ABDOMEN", series_description="5.0", protocol_name=name)
    (rejected,) = select_series(_study(filed)).rejected
    assert rejected.reason == "body part examined is ABDOMEN"


def test_a_field_of_view_that_shows_a_part_of_the_chest_comes_last() -> None:
    spine = [replace(plane, pixel_spacing_mm=(0.35, 0.35)) for plane in _every(0.625, 500)]
    low = [replace(plane, rows=256) for plane in _every(0.625, 500)]
    unknown = [replace(plane, pixel_spacing_mm=None) for plane in _every(0.625, 500)]
    chest = _numbered(1, slices=_every(1.25, 250), convolution_kernel="STANDARD")
    reason = _reason_not_chosen(chest, _numbered(2, slices=spine, series_description="T SPINE 0.625"))
    assert reason == "a field of view of 179 mm; a wider one was preferred"
    assert "179 mm" in _reason_not_chosen(chest, _numbered(2, slices=low))
    assert "179 mm" not in _reason_not_chosen(_numbered(2, slices=unknown), chest)


@pytest.mark.parametrize("name", ["CHEST EXP 1.0", "expir", "Thorax_Expiration 1.0", "LUNG 1.0 EXPIRATORY", "呼气相"])
def test_breathing_out_comes_after_breathing_in(name) -> None:
    thick = _numbered(1, slices=_every(2.5, 120), series_description="2.5 STD")
    reason = _reason_not_chosen(thick, _numbered(2, slices=_every(1.0, 300), series_description=name))
    assert reason == "taken after breathing out; one that was not was preferred"


@pytest.mark.parametrize("name", ["EXPERT 1.0", "INSP 1.0", "EXPOSURE", "", None])
def test_other_words_say_nothing_of_breathing_out(name) -> None:
    thin = _numbered(1, slices=_every(1.0, 300), series_description=name)
    assert "thicker" in _reason_not_chosen(thin, _numbered(2, slices=_every(2.5, 120), series_description="2.5 STD"))


def _of_thickness(number: int, thickness_mm: float | None, every_mm: float, count: int) -> Series:
    return _numbered(
        number, slices=[replace(plane, slice_thickness_mm=thickness_mm) for plane in _every(every_mm, count)]
    )


@pytest.mark.parametrize(
    ("thickness_mm", "every_mm", "better_mm", "said"),
    [(8.0, 1.0, 2.5, "8.00 mm"), (5.0, 2.5, 3.0, "5.00 mm"), (1.25, 0.625, 1.0, "1.25 mm"), (1.0, 5.0, 3.0, "5.00 mm")],
)
def test_slices_that_overlap_are_no_thinner_for_it(thickness_mm, every_mm, better_mm, said) -> None:
    reason = _reason_not_chosen(
        _numbered(1, slices=_every(better_mm, 120)), _of_thickness(2, thickness_mm, every_mm, 300)
    )
    assert reason == f"thicker slices ({said}) than the analysed series ({better_mm:.2f} mm)"


@pytest.mark.parametrize("thickness_mm", [None, 0.0, -1.0, float("nan")])
def test_without_a_thickness_the_spacing_counts(thickness_mm) -> None:
    assert "thicker" in _reason_not_chosen(
        _of_thickness(1, thickness_mm, 1.0, 300), _numbered(2, slices=_every(2.5, 120))
    )


@pytest.mark.parametrize(
    ("image_type", "description", "said"),
    [
        (("DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MIP"), "Thorax", "MIP"),
        (("DERIVED", "SECONDARY", "CT_SOM5 MinIP"), "Thorax", "MINIP"),
        (("DERIVED", "SECONDARY", "MIN_IP"), "Thorax", "MIN_IP"),
        (("DERIVED", "SECONDARY", "CT_SOM5 VRT"), "Thorax", "VRT"),
        (("ORIGINAL", "PRIMARY", "AXIAL"), "CHEST MIP 8x1", "MIP"),
        (("ORIGINAL", "PRIMARY", "AXIAL"), "Lung_MinIP_5", "MINIP"),
        (("ORIGINAL", "PRIMARY", "AXIAL"), "Chest Min-IP", "MIN-IP"),
        (("DERIVED", "SECONDARY", "MPR"), "Thorax", "MPR"),
        (("DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MPR"), "Thorax", None),
        (("ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"), "Chest 1.0 for MIP", None),
        (("ORIGINAL", "PRIMARY", "AXIAL"), "Chest IMIPENEM", None),
    ],
)
def test_a_projection_is_known_by_a_word_of_its_type_or_description(image_type, description, said) -> None:
    planes = [make_slice(i, image_type=image_type) for i in range(200)]
    selection = select_series(_study(make_series(planes, series_description=description)))
    assert [r.reason for r in selection.rejected] == ([f"not a plain reconstruction ({said})"] if said else [])


def test_a_chosen_series_that_fails_its_gate_gives_way_to_the_next() -> None:
    study = _study(_numbered(1, slices=_every(1.0, 300)), _numbered(2, slices=_every(2.0, 150)))
    selection = next_selection(select_series(study), "an image is missing")
    assert selection.chosen is not None and selection.chosen.series_number == 2
    assert [r.reason for r in selection.rejected] == ["an image is missing"]
    assert next_selection(selection, "too").chosen is None


def test_a_study_without_ct_has_no_choice() -> None:
    selection = select_series(_study(make_series((), modality="DX")))
    assert selection.chosen is None
    assert [r.reason for r in selection.rejected] == ["modality DX is not CT"]


@pytest.mark.parametrize(
    ("kernel", "sharp"),
    [
        *((k, True) for k in ("B70f", "B60s", "I70f/3", "I50f", "Br59", "Bl57", "Hr68", "Qr59", "YC", "L", "FC30")),
        *((k, True) for k in ("FC51", "FC86", "LUNG", "BONEPLUS", "EDGE", "B_SHARP_C")),
        *((k, False) for k in ("B40f", "D40s", "Br40", "I30f", "B", "C", "FC08", "FC18", "STANDARD", "SOFT")),
        *((k, None) for k in ("", "DETAIL", "CMS", "FC43", None)),
    ],
)
def test_sharp_kernels_are_known_by_the_names_vendors_use(kernel, sharp) -> None:
    assert is_sharp_kernel(kernel) is sharp
