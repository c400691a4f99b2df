"""Heart, aorta, pulmonary trunk and calcium against the truth of phantoms; implausible outlines are not measured."""

from dataclasses import replace

import numpy as np
import pytest
from phantom_anatomy import anatomy_of
from scipy import ndimage

from imaging.geometry import Geometry, Point
from imaging.lungs import Lungs
from imaging.phantom import LesionRequest, Phantom, make_phantom
from imaging.volume import Volume
from models.anatomy import Anatomy, lung_z_mm
from models.contrast import BloodPool
from models.findings import Finding, FindingKind, Presence, Quantity
from models.measured import RULES
from models.measured.aorta import aortic_dilatation
from models.measured.calcium import arterial_wall_calcification, coronary_artery_calcification
from models.measured.heart import cardiomegaly, heart_fault
from models.measured.outline import outline_of
from models.measured.pulmonary_artery import pulmonary_artery_enlargement

COARSE: Point = (2.5, 2.5, 2.5)
DIAMETER_ERROR_MM = 2.0


def _phantom(kind: str, size: float, *, seed: int = 5, spacing_mm: Point = COARSE, contrast: bool = False) -> Phantom:
    return make_phantom(seed, [LesionRequest(kind=kind, size=size)], spacing_mm=spacing_mm, contrast=contrast)


@pytest.fixture(scope="module")
def normal() -> Anatomy:
    return anatomy_of(make_phantom(3, spacing_mm=COARSE))


def _value(finding: Finding, quantity: Quantity) -> float:
    return next(m.value for m in finding.measurements if m.quantity is quantity)


def _with_label(anatomy: Anatomy, name: str, mask: np.ndarray) -> Anatomy:
    """The same anatomy with another outline of one organ; what it leaves is body."""
    labels = anatomy.labels.copy()
    labels[anatomy.mask(name)] = anatomy.names.index("body")
    labels[mask] = anatomy.names.index(name)
    return replace(anatomy, labels=labels)


@pytest.mark.parametrize(
    ("size_mm", "seed", "spacing_mm", "contrast"),
    [(42, 5, COARSE, False), (45, 11, (2.0, 1.4, 1.4), False), (57, 7, COARSE, True)],
)
def test_a_dilated_ascending_aorta_is_measured(size_mm: float, seed: int, spacing_mm: Point, contrast: bool) -> None:
    phantom = _phantom("aortic_dilatation", size_mm, seed=seed, spacing_mm=spacing_mm, contrast=contrast)
    (finding,) = aortic_dilatation(anatomy_of(phantom))
    assert finding.presence is Presence.PRESENT
    assert finding.site == "ascending aorta"
    assert _value(finding, Quantity.MAXIMUM_DIAMETER) == pytest.approx(size_mm, abs=DIAMETER_ERROR_MM)
    # The phantom's descending aorta follows from the ascending one (imaging.phantom_anatomy.vessel_paths).
    descending_mm = 2 * (12 + 0.25 * (size_mm / 2 - 16))
    assert _value(finding, Quantity.DESCENDING_AORTA_DIAMETER) == pytest.approx(descending_mm, abs=DIAMETER_ERROR_MM)
    (truth,) = phantom.truth
    assert finding.region is not None
    assert np.linalg.norm(np.subtract(finding.region.centre_mm, truth.centre_mm)) < 40


def test_a_normal_aorta_is_not_dilated(normal: Anatomy) -> None:
    (finding,) = aortic_dilatation(normal)
    assert finding.presence is Presence.ABSENT


def test_an_eroded_outline_of_the_aorta_gives_the_same_diameters(normal: Anatomy) -> None:
    (whole,) = aortic_dilatation(normal)
    (eroded,) = aortic_dilatation(_with_label(normal, "aorta", ndimage.binary_erosion(normal.mask("aorta"))))
    for quantity in (Quantity.ASCENDING_AORTA_DIAMETER, Quantity.DESCENDING_AORTA_DIAMETER):
        assert _value(eroded, quantity) == pytest.approx(_value(whole, quantity), abs=DIAMETER_ERROR_MM)


def test_an_aorta_without_its_arch_is_not_measured(normal: Anatomy) -> None:
    aorta = normal.mask("aorta")
    slices = np.flatnonzero(aorta.any(axis=(1, 2)))
    aorta[slices[0] + len(slices) // 2 :] = False
    (finding,) = aortic_dilatation(_with_label(normal, "aorta", aorta))
    assert finding.presence is Presence.NOT_ASSESSED
    assert "several pieces" in (finding.reason or "")


@pytest.mark.parametrize(
    ("size_mm", "seed", "presence"),
    [(30.5, 24, Presence.INDETERMINATE), (34, 22, Presence.PRESENT), (37, 23, Presence.PRESENT)],
)
def test_a_wide_pulmonary_trunk_is_measured(size_mm: float, seed: int, presence: Presence) -> None:
    (finding,) = pulmonary_artery_enlargement(anatomy_of(_phantom("pulmonary_artery_enlargement", size_mm, seed=seed)))
    assert finding.presence is presence
    assert _value(finding, Quantity.PULMONARY_TRUNK_DIAMETER) == pytest.approx(size_mm, abs=DIAMETER_ERROR_MM)


def test_a_normal_pulmonary_trunk_is_narrower_than_the_aorta(normal: Anatomy) -> None:
    (finding,) = pulmonary_artery_enlargement(normal)
    assert finding.presence is Presence.ABSENT
    assert 0.5 < _value(finding, Quantity.PULMONARY_TRUNK_TO_AORTA_RATIO) < 0.9


@pytest.mark.parametrize("ratio", [0.54, 0.6])
def test_the_cardiothoracic_ratio_of_a_large_heart(ratio: float) -> None:
    phantom = _phantom("cardiomegaly", ratio, seed=32)
    (finding,) = cardiomegaly(anatomy_of(phantom))
    (truth,) = phantom.truth
    assert finding.presence is Presence.PRESENT
    assert _value(finding, Quantity.CARDIOTHORACIC_RATIO) == pytest.approx(truth.size, abs=0.03)
    assert truth.volume_ml is not None
    assert _value(finding, Quantity.VOLUME) == pytest.approx(truth.volume_ml, rel=0.05)


def test_half_a_heart_is_not_measured() -> None:
    """A scan that ends in the middle of the heart."""
    anatomy = anatomy_of(make_phantom(3, spacing_mm=COARSE))
    heart_mm = anatomy.grid.geometry.index_to_patient(np.argwhere(anatomy.mask("heart")).mean(axis=0))
    first = round(float(anatomy.volume.geometry.patient_to_index(heart_mm)[0]))
    cut = replace(anatomy, volume=_from_slice(anatomy.volume, first))
    outside = np.zeros(anatomy.labels.shape, np.bool_)
    outside[anatomy.grid.geometry.index_to_patient([(n, 0, 0) for n in range(len(outside))])[:, 2] < heart_mm[2]] = True
    cut = replace(cut, labels=np.where(outside, 0, anatomy.labels).astype(np.uint8))
    (finding,) = cardiomegaly(cut)
    assert finding.presence is Presence.NOT_ASSESSED
    assert "not wholly within the scan" in (finding.reason or "")


@pytest.mark.parametrize("oblique_deg", [-20.0, 20.0])
@pytest.mark.parametrize(("slices", "fault"), [(80, None), (30, "the heart is not wholly within the scan")])
def test_a_heart_in_oblique_slices_is_cut_off_only_where_they_end(
    normal: Anatomy, slices: int, fault: str | None, oblique_deg: float
) -> None:
    """Slices 2 mm apart, turned about the middle of a heart that is some 120 mm high, in images of 400 mm."""
    heart = outline_of(normal, "heart")
    middle_mm = normal.grid.geometry.index_to_patient(np.argwhere(heart.mask).mean(axis=0))
    geometry = _oblique((slices, 200, 200), 2.0, oblique_deg, middle_mm)
    scan = Volume(np.zeros(geometry.shape, np.int16), geometry, "1", ("1",) * slices, (None,) * slices)
    assert heart_fault(replace(normal, volume=scan), heart) == fault


@pytest.mark.parametrize("oblique_deg", [-20.0, 0.0, 20.0])
def test_the_lungs_end_at_the_same_height_however_the_slices_lie(oblique_deg: float) -> None:
    geometry = _oblique((150, 160, 160), 2.0, oblique_deg, np.zeros(3))
    x, y, z = np.moveaxis(geometry.index_to_patient(np.moveaxis(np.indices(geometry.shape), 0, -1)), -1, 0)
    left, right = ((np.abs(x - side) < 50) & (np.abs(y) < 70) & (z > -100) & (z < 90) for side in (70, -70))
    lungs = Lungs(body=left | right, airways=np.zeros_like(left), left=left, right=right)
    assert lung_z_mm(lungs, geometry) == pytest.approx((-100, 90), abs=2.0)
    nothing = np.zeros_like(left)
    assert lung_z_mm(replace(lungs, left=nothing, right=nothing), geometry) is None


def _oblique(shape: tuple[int, int, int], spacing_mm: float, oblique_deg: float, middle_mm: np.ndarray) -> Geometry:
    """Slices turned by `oblique_deg` around the patient's left-right axis through `middle_mm`, their own middle."""
    cos, sin = spacing_mm * np.cos(np.radians(oblique_deg)), spacing_mm * np.sin(np.radians(oblique_deg))
    affine = np.eye(4)
    affine[:3, :3] = [[0.0, 0.0, spacing_mm], [-sin, cos, 0.0], [cos, sin, 0.0]]
    affine[:3, 3] = middle_mm - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Geometry(affine, shape)


def _from_slice(volume: Volume, first: int) -> Volume:
    affine = volume.geometry.affine.copy()
    affine[:3, 3] = volume.geometry.index_to_patient((first, 0, 0))
    hu = volume.hu[first:].copy()
    names, frames = volume.sop_instance_uids[first:], volume.frame_numbers[first:]
    return Volume(hu, Geometry(affine, hu.shape), volume.series_instance_uid, names, frames)


@pytest.mark.parametrize(
    ("score", "seed", "spacing_mm", "category"),
    [(120, 42, COARSE, "A2"), (400, 43, (2.5, 1.2, 1.2), "A3"), (1200, 44, COARSE, "A3")],
)
def test_the_agatston_score(score: float, seed: int, spacing_mm: Point, category: str) -> None:
    phantom = _phantom("coronary_artery_calcification", score, seed=seed, spacing_mm=spacing_mm)
    (finding,) = coronary_artery_calcification(anatomy_of(phantom))
    assert finding.presence is Presence.PRESENT
    assert _value(finding, Quantity.AGATSTON_SCORE) == pytest.approx(phantom.truth[0].size, rel=0.2)
    assert f"CAC-DRS {category}" in (finding.reason or "")


def test_calcium_is_neither_seen_where_there_is_none_nor_counted_twice(normal: Anatomy) -> None:
    (coronary,) = coronary_artery_calcification(normal)
    (wall,) = arterial_wall_calcification(normal)
    assert coronary.presence is wall.presence is Presence.ABSENT
    anatomy = anatomy_of(_phantom("arterial_wall_calcification", 3000, seed=52))
    (coronary,) = coronary_artery_calcification(anatomy)
    (wall,) = arterial_wall_calcification(anatomy)
    assert coronary.presence is Presence.ABSENT
    assert wall.presence is Presence.PRESENT
    assert _value(wall, Quantity.CALCIUM_VOLUME) == pytest.approx(3000, rel=0.3)


@pytest.mark.parametrize("contrast", [True, None])
def test_calcium_is_not_assessed_with_contrast_or_where_it_is_unknown(normal: Anatomy, contrast: bool | None) -> None:
    other = replace(normal, blood_pool=BloodPool(hu=80.0, contrast=contrast, evidence="blood measures 80 HU"))
    for rule in (coronary_artery_calcification, arterial_wall_calcification):
        (finding,) = rule(other)
        assert finding.presence is Presence.NOT_ASSESSED
        assert "contrast medium" in (finding.reason or "")


VESSEL_KINDS = (
    FindingKind.CORONARY_ARTERY_CALCIFICATION,
    FindingKind.AORTIC_DILATATION,
    FindingKind.CARDIOMEGALY,
    FindingKind.PULMONARY_ARTERY_ENLARGEMENT,
    FindingKind.ARTERIAL_WALL_CALCIFICATION,
)


@pytest.mark.parametrize("kind", VESSEL_KINDS)
@pytest.mark.parametrize("left_of_it", [0.0, 0.03])
def test_an_empty_or_hardly_outlined_organ_is_not_assessed(
    normal: Anatomy, kind: FindingKind, left_of_it: float
) -> None:
    labels = np.where(np.random.default_rng(0).random(normal.labels.shape) < left_of_it, normal.labels, 0)
    (finding,) = RULES[kind](replace(normal, labels=labels.astype(np.uint8)))
    assert finding.presence is Presence.NOT_ASSESSED
    assert finding.reason
