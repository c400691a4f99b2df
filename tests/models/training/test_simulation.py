import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

from imaging.phantom import LesionRequest, make_phantom
from models.findings import FindingKind
from models.training.labels import LABEL
from models.training.lesions import (
    INSERTIONS,
    add_consolidation,
    add_effusion,
    add_ground_glass,
    add_nodules,
    add_pneumothorax,
    bit,
    cavity,
    insert_lesions,
    smooth_noise,
)
from models.training.network import LESIONS, SPACING_MM
from models.training.phantoms import phantom_sample
from models.training.sources import Sample
from models.training.synthesis import deform, scan


def thorax() -> Sample:
    """Two aerated ellipsoids of about 1.2 l in a block of soft tissue; x grows to the patient's left."""
    shape = (64, 56, 80)
    z, y, x = np.ogrid[:64, :56, :80]
    hu = np.full(shape, 40.0, np.float32)
    anatomy = np.full(shape, LABEL["soft_tissue"], np.uint8)
    for name, centre in (("lung_right", 22), ("lung_left", 58)):
        lung = ((z - 32) / 26) ** 2 + ((y - 28) / 20) ** 2 + ((x - centre) / 15) ** 2 < 1
        hu[lung] = -850.0
        anatomy[lung] = LABEL[name]
    zeros = np.zeros(shape, np.uint8)
    return Sample(hu=hu, anatomy=anatomy, lesions=zeros, unknown=zeros.copy())


def changed(sample: Sample) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return np.abs(sample.hu - thorax().hu) > 1.0


def there(sample: Sample, kind: FindingKind) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (sample.lesions & bit(kind)) > 0
    return mask


@pytest.mark.parametrize(("side", "other"), [("left", "right"), ("right", "left")])
@pytest.mark.parametrize("insertion", [insertion for insertion, _ in INSERTIONS])
def test_a_lesion_stays_on_its_side(insertion: object, side: str, other: str) -> None:
    assert callable(insertion)
    for seed in range(3):
        sample = thorax()
        space = cavity(sample, side)
        assert space is not None
        insertion(sample, space, np.random.default_rng(seed))
        elsewhere = sample.anatomy == LABEL[f"lung_{other}"]
        assert not sample.lesions[elsewhere].any()
        assert not changed(sample)[elsewhere].any()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000))
def test_an_effusion_is_fluid_and_mostly_dependent(seed: int) -> None:
    sample = thorax()
    space = cavity(sample, "left")
    assert space is not None
    add_effusion(sample, space, np.random.default_rng(seed))
    fluid = there(sample, FindingKind.PLEURAL_EFFUSION)
    assert fluid.any()
    assert -30 < np.median(sample.hu[fluid]) < 60


def test_lung_pressed_by_fluid_is_collapsed_and_neither_consolidation_nor_mass() -> None:
    sample = thorax()
    collapsed = np.zeros(sample.hu.shape, bool)
    for seed in range(6):
        sample = thorax()
        space = cavity(sample, "left")
        assert space is not None
        add_effusion(sample, space, np.random.default_rng(seed))
        collapsed = there(sample, FindingKind.ATELECTASIS)
        others = (
            bit(FindingKind.CONSOLIDATION) | bit(FindingKind.GROUND_GLASS_OPACITY) | bit(FindingKind.PULMONARY_NODULE)
        )
        assert not (sample.lesions & others).any()
        assert not (sample.unknown & others).any()
        if collapsed.any():
            break
    assert collapsed.any()
    assert np.median(sample.hu[collapsed]) > -200


def test_breathing_out_changes_lung_but_not_pleural_air() -> None:
    lung_hu = []
    for seed in range(20):
        sample = thorax()
        space = cavity(sample, "right")
        assert space is not None
        add_pneumothorax(sample, space, np.random.default_rng(seed))
        air = there(sample, FindingKind.PNEUMOTHORAX)
        scanned = scan(sample, np.random.default_rng(seed))
        assert np.median(scanned.hu[air]) < -900
        lung_hu.append(float(np.median(scanned.hu[sample.anatomy == LABEL["lung_left"]])))
    assert np.ptp(lung_hu) > 60


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000))
def test_a_pneumothorax_is_air(seed: int) -> None:
    sample = thorax()
    space = cavity(sample, "right")
    assert space is not None
    add_pneumothorax(sample, space, np.random.default_rng(seed))
    air = there(sample, FindingKind.PNEUMOTHORAX)
    assert air.any()
    assert np.median(sample.hu[air]) < -950


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000))
def test_opacities_never_lower_attenuation(seed: int) -> None:
    sample = thorax()
    space = cavity(sample, "left")
    assert space is not None
    add_ground_glass(sample, space, np.random.default_rng(seed))
    add_consolidation(sample, space, np.random.default_rng(seed + 1))
    assert (sample.hu >= thorax().hu - 1e-3).all()
    dense = there(sample, FindingKind.CONSOLIDATION)
    assert not (dense & there(sample, FindingKind.GROUND_GLASS_OPACITY)).any()
    if dense.any():
        assert np.median(sample.hu[dense]) > -300


def test_a_thin_layer_of_airless_lung_is_left_open() -> None:
    """Nobody can tell it from thick pleura: no voxel is called consolidation whose surroundings of 10 mm are not."""
    left_open = 0
    for seed in range(12):
        sample = thorax()
        space = cavity(sample, "left")
        assert space is not None
        add_consolidation(sample, space, np.random.default_rng(seed))
        called = there(sample, FindingKind.CONSOLIDATION)
        core = ndi.grey_opening(called.astype(np.uint8), size=(4, 4, 4)) > 0
        assert not (called & ~ndi.binary_dilation(core)).any()
        dense = (sample.hu > -100) & (sample.anatomy == LABEL["lung_left"])
        layer = dense & ~called
        assert (
            sample.unknown[layer & ~ndi.binary_dilation(called, iterations=2)] & bit(FindingKind.CONSOLIDATION)
        ).all()
        left_open += int(layer.sum())
    assert left_open > 0


def test_nodules_are_marked_where_the_image_changed() -> None:
    sample = thorax()
    space = cavity(sample, "left")
    assert space is not None
    add_nodules(sample, space, np.random.default_rng(5))
    nodules = there(sample, FindingKind.PULMONARY_NODULE)
    assert nodules.any()
    assert changed(sample)[nodules].mean() > 0.95


def test_the_same_seed_makes_the_same_sample() -> None:
    made = []
    for _ in range(2):
        rng = np.random.default_rng(12)
        sample = deform(thorax(), (48, 48, 64), rng)
        insert_lesions(sample, rng, healthy=0.0)
        made.append(scan(sample, rng))
    np.testing.assert_array_equal(made[0].hu, made[1].hu)
    np.testing.assert_array_equal(made[0].lesions, made[1].lesions)
    assert made[0].hu.shape == made[0].anatomy.shape == (48, 48, 64)
    assert made[0].lesions.any()


def test_a_healthy_sample_stays_healthy() -> None:
    sample = thorax()
    insert_lesions(sample, np.random.default_rng(0), healthy=1.0)
    assert not sample.lesions.any()
    assert not changed(sample).any()


def test_deformation_keeps_left_left() -> None:
    sample = deform(thorax(), (64, 56, 80), np.random.default_rng(4))
    left = np.nonzero(sample.anatomy == LABEL["lung_left"])[2].mean()
    right = np.nonzero(sample.anatomy == LABEL["lung_right"])[2].mean()
    assert left > right + 20


@given(st.floats(2, 30), st.integers(0, 1000))
def test_smooth_noise_has_the_shape_it_was_asked_for(scale: float, seed: int) -> None:
    noise = smooth_noise((7, 9, 11), scale, np.random.default_rng(seed))
    assert noise.shape == (7, 9, 11)
    assert np.isfinite(noise).all()


def test_each_kind_has_a_bit_of_its_own() -> None:
    assert len({int(bit(kind)) for kind in LESIONS}) == len(LESIONS) <= 8


def test_a_phantom_leaves_open_what_fluid_does_to_the_lung_beside_it() -> None:
    request = LesionRequest(kind="pleural_effusion", size=400.0, laterality="left")
    sample = phantom_sample(make_phantom(5, [request], spacing_mm=(2 * SPACING_MM,) * 3))
    assert there(sample, FindingKind.PLEURAL_EFFUSION).any()
    open_to = (sample.unknown & bit(FindingKind.ATELECTASIS)) > 0
    assert open_to.any()
    assert not (open_to & there(sample, FindingKind.PLEURAL_EFFUSION)).any()
    assert not open_to.all()
