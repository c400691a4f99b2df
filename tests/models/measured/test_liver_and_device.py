"""Liver and spleen attenuation and metal in phantoms, against what was painted."""

from dataclasses import replace

import numpy as np
import pytest
from phantom_anatomy import anatomy_of

from imaging.phantom import ANATOMY, LesionRequest, Phantom, make_phantom
from imaging.volume import Volume
from models.anatomy import Anatomy
from models.contrast import BloodPool, measure_blood_pool
from models.findings import Finding, Laterality, Presence, Quantity
from models.measured.calcium import coronary_artery_calcification
from models.measured.device import medical_device
from models.measured.liver import hepatic_steatosis

SPACING_MM = (3.0, 2.0, 2.0)
ENHANCED = BloodPool(hu=200.0, contrast=True, evidence="made for this test")


@pytest.fixture(scope="module")
def fatty() -> tuple[Phantom, Anatomy]:
    requests = (LesionRequest(kind="hepatic_steatosis", size=20.0), LesionRequest(kind="medical_device", size=1.0))
    phantom = make_phantom(3, requests, spacing_mm=SPACING_MM)
    return phantom, anatomy_of(phantom)


@pytest.fixture(scope="module")
def plain() -> Anatomy:
    return anatomy_of(make_phantom(5, spacing_mm=SPACING_MM))


def values(finding: Finding) -> dict[Quantity, float]:
    return {m.quantity: m.value for m in finding.measurements}


def with_hu(anatomy: Anatomy, where: tuple[slice, slice, slice], hu: int) -> Anatomy:
    changed = anatomy.volume.hu.copy()
    changed[where] = hu
    volume = anatomy.volume
    uids = (volume.series_instance_uid, volume.sop_instance_uids, volume.frame_numbers)
    return replace(anatomy, volume=Volume(changed, volume.geometry, *uids))


def test_a_fatty_liver_measures_what_was_painted(fatty: tuple[Phantom, Anatomy]) -> None:
    (finding,) = hepatic_steatosis(fatty[1])
    found = values(finding)
    assert finding.presence is Presence.PRESENT
    assert found[Quantity.MEAN_ATTENUATION] == pytest.approx(20, abs=4)
    assert found[Quantity.SPLEEN_ATTENUATION] == pytest.approx(49, abs=4)
    assert found[Quantity.LIVER_SPLEEN_DIFFERENCE] == pytest.approx(-29, abs=6)
    assert finding.region is not None
    liver = fatty[0].anatomy[finding.region.box] == ANATOMY.index("liver")
    assert liver[finding.region.mask].mean() > 0.95


def test_a_normal_liver_is_not_fatty(plain: Anatomy) -> None:
    (finding,) = hepatic_steatosis(plain)
    assert finding.presence is Presence.ABSENT


@pytest.mark.parametrize("fault", ["contrast", "empty", "left and right exchanged", "two tissues"])
def test_a_liver_that_cannot_be_measured_is_not_assessed(plain: Anatomy, fault: str) -> None:
    labels = plain.labels.copy()
    liver = labels == ANATOMY.index("liver")
    broken = {
        "contrast": replace(plain, blood_pool=ENHANCED),
        "empty": replace(plain, labels=np.where(liver, 0, labels)),
        "left and right exchanged": replace(plain, labels=labels[:, :, ::-1]),
        "two tissues": replace(plain, labels=np.where(labels == ANATOMY.index("body"), ANATOMY.index("liver"), labels)),
    }[fault]
    (finding,) = hepatic_steatosis(broken)
    assert finding.presence is Presence.NOT_ASSESSED
    assert finding.reason


def test_a_pacemaker_is_found_on_its_side(fatty: tuple[Phantom, Anatomy]) -> None:
    phantom, anatomy = fatty
    study, case, *_ = medical_device(anatomy)
    placed = phantom.lesions["medical_device"]
    assert study.presence is case.presence is Presence.PRESENT
    assert case.laterality is Laterality.LEFT
    assert "pacemaker" in (case.site or "")
    assert case.region is not None
    assert placed[case.region.box][case.region.mask].mean() > 0.9


def test_no_metal_says_what_was_not_sought(plain: Anatomy) -> None:
    (finding,) = medical_device(plain)
    assert finding.presence is Presence.ABSENT
    assert "only metal" in (finding.reason or "")


def test_an_electrode_on_the_skin_is_no_device(plain: Anatomy) -> None:
    z, x = (n // 2 for n in (plain.volume.hu.shape[0], plain.volume.hu.shape[2]))
    skin = int(np.flatnonzero(plain.lungs.body[z, :, x])[0])
    thick = round(4.0 / plain.volume.geometry.spacing_mm[1])
    (finding,) = medical_device(with_hu(plain, (slice(z, z + 2), slice(skin, skin + thick), slice(x, x + 5)), 3000))
    assert finding.presence is Presence.ABSENT


def test_of_many_pieces_the_largest_are_described_and_the_number_is_said(plain: Anatomy) -> None:
    """Twelve of them, 50 mm apart from slice to slice and 40 mm in it, in soft tissue or lung."""
    places, source = np.argwhere(plain.lungs.left | plain.lungs.right), plain.volume.geometry
    z, y, x = np.rint(places.mean(axis=0)).astype(int)
    hu = plain.volume.hu.copy()
    for slices in (-17, 0, 17):
        for columns in (-60, -40, 40, 60):
            hu[z + slices : z + slices + 2, y - 15 : y - 11, x + columns : x + columns + 4] = 3000
    uids = (plain.volume.series_instance_uid, plain.volume.sop_instance_uids, plain.volume.frame_numbers)
    study, *pieces = medical_device(replace(plain, volume=Volume(hu, source, *uids)))
    assert (len(pieces), values(study)[Quantity.LESION_COUNT]) == (10, 12.0)
    assert "the 10 largest of 12 are described" in (study.reason or "")


def test_brightness_in_a_vein_of_an_enhanced_scan_is_undetermined(plain: Anatomy) -> None:
    trunk = np.argwhere(plain.labels == ANATOMY.index("pulmonary_trunk")).mean(axis=0)
    grid, source = plain.grid.geometry, plain.volume.geometry
    z, y, x = np.rint(source.patient_to_index(grid.index_to_patient(trunk))).astype(int)
    bright = with_hu(plain, (slice(z, z + 3), slice(y, y + 4), slice(x, x + 4)), 2800)
    study, piece = medical_device(bright)
    assert study.presence is piece.presence is Presence.PRESENT
    study, piece = medical_device(replace(bright, blood_pool=ENHANCED))
    assert study.presence is piece.presence is Presence.INDETERMINATE
    assert "contrast" in (study.reason or "")


@pytest.mark.parametrize("size_mm", [(20.0, 20.0, 20.0), (8.0, 40.0, 40.0), (50.0, 4.0, 4.0)])
def test_the_diameter_of_metal_is_its_greatest_width(plain: Anatomy, size_mm: tuple[float, float, float]) -> None:
    """Ellipsoids, whose greatest width is their longest axis and not the diagonal of the box around them."""
    source = plain.volume.geometry
    middle = np.rint(np.argwhere(plain.lungs.left).mean(axis=0))
    away = np.moveaxis(np.indices(source.shape), 0, -1) - middle
    hu = plain.volume.hu.copy()
    hu[((away * np.array(source.spacing_mm) * 2 / np.array(size_mm)) ** 2).sum(axis=-1) <= 1] = 3000
    _, piece = medical_device(replace(plain, volume=replace(plain.volume, hu=hu)))
    assert values(piece)[Quantity.MAXIMUM_DIAMETER] == pytest.approx(max(size_mm), abs=1.5 * max(source.spacing_mm))


def test_an_image_cut_off_below_bone_has_no_calcium_score(plain: Anatomy) -> None:
    clipped = replace(plain.volume, hu=np.minimum(plain.volume.hu, 150).astype(np.int16))
    (finding, *_) = coronary_artery_calcification(replace(plain, volume=clipped))
    assert finding.presence is Presence.NOT_ASSESSED
    assert "no voxel measures more than 150 HU" in (finding.reason or "")


@pytest.mark.parametrize("shift_hu", [-24, -60, 50])
def test_a_shifted_scale_of_hu_makes_no_liver_fatty_and_no_coronary_free_of_calcium(
    plain: Anatomy, shift_hu: int
) -> None:
    """24 HU are the error of taking -1024 for -1000."""
    grid = replace(plain.grid, hu=plain.grid.hu + np.float32(shift_hu))
    left, right = (grid.from_source(lung) for lung in (plain.lungs.left, plain.lungs.right))
    volume = replace(plain.volume, hu=(plain.volume.hu + shift_hu).astype(np.int16))
    blood = measure_blood_pool(grid.hu[0, 0], left, right)
    assert (blood.contrast, blood.is_scale_in_doubt) == (None, True)
    shifted = replace(plain, grid=grid, volume=volume, blood_pool=blood)
    for rule in (hepatic_steatosis, coronary_artery_calcification):
        (finding, *_) = rule(shifted)
        assert finding.presence is Presence.NOT_ASSESSED
        assert "the scale of HU is in doubt" in (finding.reason or "")
