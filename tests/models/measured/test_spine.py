"""Vertebrae told apart and measured: stacks of boxes with discs, tilted or wedged, and phantoms with their truth."""

import re
from dataclasses import replace

import numpy as np
import pytest
from phantom_anatomy import anatomy_of

from imaging.geometry import Geometry
from imaging.lungs import Lungs
from imaging.phantom import ANATOMY, LesionRequest, make_phantom
from imaging.preprocess import prepare
from imaging.volume import Volume
from models.anatomy import Anatomy
from models.contrast import BloodPool
from models.findings import Finding, Presence, Quantity
from models.measured.spine import low_bone_density, vertebral_compression_fracture

BODIES, PITCH_MM, DISC_MM = 9, 26.0, 5.0
HEIGHT_MM = PITCH_MM - DISC_MM
HALF_DEPTH_MM, HALF_WIDTH_MM, RIM_MM = 15.0, 18.0, 2.0
CRUSHED = 4


def values(finding: Finding) -> dict[Quantity, float]:
    return {m.quantity: m.value for m in finding.measurements}


def stack(
    *,
    tilt_deg: float = 0.0,
    loss: float = 0.0,
    crushed: int = CRUSHED,
    slice_mm: float = 1.5,
    inside_hu: float = 180.0,
    contrast: bool = False,
    arch_mm: float = 0.0,
    length_mm: float = 270.0,
    oblique_deg: float = 0.0,
    apex_mm: float = (BODIES - 1) / 2 * PITCH_MM,
) -> Anatomy:
    """Boxes of bone with discs between them, leaning back by `tilt_deg`; one lost `loss` of its height in front.

    The outline reaches `arch_mm` further back than the bodies. The slices, not the bones, are turned by `oblique_deg`.
    The lungs end at z = `apex_mm`, without tilt the middle of the highest body.
    """
    shape = (round(length_mm / slice_mm), 120, 72)
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    affine[2, 0], affine[1, 1], affine[0, 2] = slice_mm, 1.0, 1.0
    turn = np.radians(oblique_deg)
    affine[1:3] = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ affine[1:3]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    geometry = Geometry(affine, shape)
    x, y, z = np.moveaxis(geometry.index_to_patient(np.moveaxis(np.indices(shape), 0, -1)), -1, 0)
    tilt = np.radians(tilt_deg)
    along, back = z * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - z * np.sin(tilt)
    number = np.floor(along / PITCH_MM + BODIES / 2)
    up = along - (number - BODIES / 2 + 0.5) * PITCH_MM
    forward = (HALF_DEPTH_MM - back) / (2 * HALF_DEPTH_MM)
    top = HEIGHT_MM / 2 - np.where(number == crushed, HEIGHT_MM * loss * np.clip(forward, 0, 1), 0)
    within = np.maximum(np.abs(x) - HALF_WIDTH_MM, np.abs(back) - HALF_DEPTH_MM)
    within = np.where((number >= 0) & (number < BODIES), within, 99.0)
    depth = np.maximum(within, np.maximum(up - top, -HEIGHT_MM / 2 - up))
    hu = np.where(within < 0, 80.0, 30.0)
    outlined = (within < 0) | (
        (within < 99) & (np.abs(x) < HALF_WIDTH_MM) & (back > 0) & (back < HALF_DEPTH_MM + arch_mm)
    )
    hu = np.where(depth < 0, 550.0, hu)
    hu = np.where(depth < -RIM_MM, inside_hu, hu)
    volume = Volume(hu.astype(np.int16), geometry, "1.2.3", tuple(map(str, range(shape[0]))), (None,) * shape[0])
    lungs = Lungs(
        body=np.ones(shape, bool),
        airways=np.zeros(shape, bool),
        left=(x > 30) & (z < apex_mm),
        right=(x < -30) & (z < apex_mm),
    )
    grid = prepare(volume, lungs, spacing_mm=2.5, multiple_of=16, minimum_hu=-1024, maximum_hu=3071)
    return Anatomy(
        volume=volume,
        lungs=lungs,
        grid=grid,
        labels=np.where(grid.from_source(outlined), ANATOMY.index("vertebrae"), 0).astype(np.uint8),
        names=ANATOMY,
        blood_pool=BloodPool(hu=40.0, contrast=contrast, evidence="made for this test"),
        sharp_kernel=False,
        model_sha256="0" * 64,
    )


@pytest.mark.parametrize("tilt_deg", [0.0, 15.0])
def test_even_boxes_are_no_fracture(tilt_deg: float) -> None:
    (study,) = vertebral_compression_fracture(stack(tilt_deg=tilt_deg))
    assert study.presence is Presence.ABSENT
    assert "estimated" in (study.site or "")


@pytest.mark.parametrize("tilt_deg", [0.0, 15.0])
@pytest.mark.parametrize(("loss", "grade"), [(0.38, 2), (0.56, 3)])
def test_a_wedge_gives_its_ratio_and_heights(tilt_deg: float, loss: float, grade: int) -> None:
    """Heights are those a tenth of the depth inside the walls, to 1 mm; the ratio to 0.05."""
    anatomy = stack(tilt_deg=tilt_deg, loss=loss)
    study, wedge = vertebral_compression_fracture(anatomy)
    found = values(wedge)
    assert study.presence is wedge.presence is Presence.PRESENT
    assert found[Quantity.ANTERIOR_HEIGHT] == pytest.approx(HEIGHT_MM * (1 - 0.9 * loss), abs=1.0)
    assert found[Quantity.MIDDLE_HEIGHT] == pytest.approx(HEIGHT_MM * (1 - 0.5 * loss), abs=1.0)
    assert found[Quantity.POSTERIOR_HEIGHT] == pytest.approx(HEIGHT_MM * (1 - 0.1 * loss), abs=1.0)
    assert found[Quantity.VERTEBRAL_HEIGHT_RATIO] == pytest.approx((1 - 0.9 * loss) / (1 - 0.1 * loss), abs=0.05)
    assert found[Quantity.GENANT_GRADE] == grade
    assert wedge.region is not None
    assert np.linalg.norm(wedge.region.centre_mm) < PITCH_MM / 2


def test_a_fracture_of_the_lowest_whole_body_is_found() -> None:
    """The scan ends 6 mm below the disc under it."""
    study, wedge = vertebral_compression_fracture(stack(loss=0.5, crushed=0, length_mm=BODIES * PITCH_MM + 12))
    assert study.presence is wedge.presence is Presence.PRESENT
    assert wedge.region is not None
    assert wedge.region.centre_mm[2] == pytest.approx((0.5 - BODIES / 2) * PITCH_MM, abs=PITCH_MM / 2)


@pytest.mark.parametrize("oblique_deg", [-20.0, 0.0, 20.0])
@pytest.mark.parametrize(("crushed", "level"), [(0, "T9"), (CRUSHED, "T5"), (BODIES - 2, "T2")])
def test_levels_are_counted_from_the_top_of_the_lungs(crushed: int, level: str, oblique_deg: float) -> None:
    _, wedge = vertebral_compression_fracture(stack(loss=0.5, crushed=crushed, oblique_deg=oblique_deg))
    assert wedge.site == f"spine, about {level} (estimated level)"
    assert wedge.region is not None
    assert wedge.region.centre_mm[2] == pytest.approx((crushed + 0.5 - BODIES / 2) * PITCH_MM, abs=PITCH_MM / 3)


@pytest.mark.parametrize(
    ("apex_mm", "length_mm", "crushed"),
    [(200.0, 270.0, CRUSHED), (-30.0, 270.0, CRUSHED), (360.0, 740.0, 1)],
    ids=["the lungs reach the highest slice", "above T1", "below L5"],
)
def test_a_body_without_a_level_is_described(apex_mm: float, length_mm: float, crushed: int) -> None:
    anatomy = stack(loss=0.5, crushed=crushed, apex_mm=apex_mm, length_mm=length_mm)
    study, wedge = vertebral_compression_fracture(anatomy)
    assert study.presence is wedge.presence is Presence.PRESENT
    assert study.site == wedge.site == "spine (level not told)"


def test_arches_in_the_outline_do_not_lead_away_from_the_bodies() -> None:
    study, wedge = vertebral_compression_fracture(stack(loss=0.5, arch_mm=24.0))
    assert study.presence is Presence.PRESENT
    assert values(wedge)[Quantity.POSTERIOR_HEIGHT] == pytest.approx(HEIGHT_MM * (1 - 0.1 * 0.5), abs=1.0)


def test_bodies_that_are_not_told_apart_are_counted() -> None:
    """Without end plates in its lower third, the spine there is as long as three bodies."""
    anatomy = stack()
    hu = anatomy.volume.hu.copy()
    hu[: len(hu) // 3] = 200
    (study,) = vertebral_compression_fracture(replace(anatomy, volume=replace(anatomy.volume, hu=hu)))
    assert study.presence is Presence.ABSENT
    assert re.search(r"[56] of [89] whole vertebral bodies", study.reason or ""), study.reason


def test_a_loss_near_20_percent_is_undetermined() -> None:
    study, wedge = vertebral_compression_fracture(stack(loss=0.29))
    assert study.presence is wedge.presence is Presence.INDETERMINATE
    assert study.reason


def test_thick_slices_and_an_empty_outline_are_not_assessed() -> None:
    (thick,) = vertebral_compression_fracture(stack(slice_mm=4.0))
    assert thick.presence is Presence.NOT_ASSESSED
    assert "too thick" in (thick.reason or "")
    empty = stack()
    empty.labels[...] = 0
    for rule in (vertebral_compression_fracture, low_bone_density):
        (finding,) = rule(empty)
        assert finding.presence is Presence.NOT_ASSESSED


@pytest.mark.parametrize(
    ("inside_hu", "presence"), [(80, Presence.PRESENT), (135, Presence.INDETERMINATE), (190, Presence.ABSENT)]
)
def test_bone_density_by_bands(inside_hu: float, presence: Presence) -> None:
    (finding,) = low_bone_density(stack(tilt_deg=8.0, inside_hu=inside_hu))
    assert finding.presence is presence
    assert values(finding)[Quantity.MEAN_ATTENUATION] == pytest.approx(inside_hu, abs=5)


def test_bone_density_is_not_assessed_with_contrast() -> None:
    (finding,) = low_bone_density(stack(contrast=True))
    assert finding.presence is Presence.NOT_ASSESSED
    assert "contrast" in (finding.reason or "")


def test_a_phantoms_fracture_and_density() -> None:
    """The level to one, the ratio to 0.06, the density to 6 HU of what was painted."""
    fracture = LesionRequest(kind="vertebral_compression_fracture", size=40.0)
    density = LesionRequest(kind="low_bone_density", size=95.0)
    phantom = make_phantom(5, (fracture, density), spacing_mm=(2.0, 1.4, 1.4))
    anatomy = anatomy_of(phantom)
    truth = next(t for t in phantom.truth if t.kind == "vertebral_compression_fracture").measurements
    study, wedge = vertebral_compression_fracture(anatomy)
    assert study.presence is Presence.PRESENT
    found = values(wedge)
    expected = truth["anterior_mm"] / truth["posterior_mm"]
    assert found[Quantity.VERTEBRAL_HEIGHT_RATIO] == pytest.approx(expected, abs=0.06)
    level = int((wedge.site or "").split("about T")[1].split()[0])
    assert level == pytest.approx(truth["level_thoracic"], abs=1)
    placed = phantom.lesions["vertebral_compression_fracture"]
    assert wedge.region is not None
    assert (placed[wedge.region.box] & wedge.region.mask).sum() > 0.5 * wedge.region.mask.sum()
    (bone,) = low_bone_density(anatomy)
    assert bone.presence is Presence.PRESENT
    assert values(bone)[Quantity.MEAN_ATTENUATION] == pytest.approx(95.0, abs=6)


@pytest.mark.parametrize("loss", [0.7, 0.8, 0.9])
def test_a_crushed_body_is_never_absent(loss: float) -> None:
    """It is found, or said to have too little height to be measured as a whole, at its level."""
    study, *parts = vertebral_compression_fracture(stack(loss=loss))
    assert study.presence in (Presence.PRESENT, Presence.INDETERMINATE)
    assert [part.site for part in parts] == ["spine, about T5 (estimated level)"]
