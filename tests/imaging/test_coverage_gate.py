"""How much of the lungs a volume must hold: a thorax cut at an end or a side, and bodies that are no chest."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imaging.files import find_files
from imaging.geometry import Geometry
from imaging.headers import read_studies
from imaging.lungs import Lungs, segment_lungs
from imaging.morphology import bounds
from imaging.phantom import Phantom, make_phantom
from imaging.quality import QualityIssue, Verdict, check_voxels
from imaging.volume import Volume, load_volume

REAL_CT = Path(__file__).parents[3] / "shared" / "ct"
IN_PLANE, SPACING_MM = (90, 120), 3.0


def chest(first: int, last: int) -> tuple[Volume, Lungs]:
    """Slices `first` to `last` of an endless elliptic body whose two lungs reach from slice 10 to 90."""
    z, y, x = np.indices((last - first, *IN_PLANE)) * SPACING_MM
    z += SPACING_MM * first
    body = ((x - 180) / 170) ** 2 + ((y - 135) / 125) ** 2 < 1
    left, right = (((x - at) / 60) ** 2 + ((y - 135) / 85) ** 2 + ((z - 150) / 120) ** 2 < 1 for at in (260, 100))
    hu = np.where(left | right, -850, np.where(body, 40, -1000)).astype(np.int16)
    geometry = Geometry(np.array([[0, 0, 3, 0], [0, 3, 0, 0], [3, 0, 0, 3.0 * first], [0, 0, 0, 1]], float), hu.shape)
    uids = tuple(map(str, range(len(hu))))
    return Volume(hu, geometry, "1.2.3", uids, (None,) * len(hu)), Lungs(body, np.zeros_like(body), left, right)


@pytest.mark.parametrize(
    ("slices", "verdict", "words"),
    [
        ((0, 100), Verdict.PASS, "covered"),
        ((16, 100), Verdict.WARN, "bases are cut off"),
        ((0, 84), Verdict.WARN, "apices are cut off"),
        ((50, 100), Verdict.REJECT, "bases lie outside"),
        ((0, 50), Verdict.REJECT, "apices lie outside"),
        ((0, 28), Verdict.REJECT, "apices lie outside"),
        ((-60, 28), Verdict.REJECT, "an abdomen"),
        ((72, 130), Verdict.REJECT, "a neck"),
        # So much of the lungs is no mere end of them.
        ((-60, 50), Verdict.REJECT, "apices lie outside"),
        ((0, 12), Verdict.REJECT, "not a chest"),
    ],
)
def test_what_is_cut_off_is_named_or_refused(slices: tuple[int, int], verdict: Verdict, words: str) -> None:
    issues = check_voxels(*chest(*slices))
    worst = max((i for i in issues if i.check in ("coverage", "lungs")), key=lambda i: list(Verdict).index(i.verdict))
    assert worst.verdict is verdict
    assert words in worst.message


@pytest.mark.parametrize(("step_hu", "seen"), [(0, False), (100, True), (-100, True)])
def test_a_step_of_the_scale_is_refused(step_hu: int, seen: bool) -> None:
    volume, lungs = chest(0, 100)
    hu = volume.hu.copy()
    hu[:50] += step_hu
    refused = [i.message for i in check_voxels(replace(volume, hu=hu), lungs) if i.verdict is Verdict.REJECT]
    assert any("two scales" in message for message in refused) is seen


@pytest.mark.parametrize(("share", "said"), [(1.0, False), (0.4, True)])
def test_sides_that_cannot_be_checked_are_named(share: float, said: bool) -> None:
    """Fluid fills the lower part of the left lung, so that nothing tells left from right."""
    volume, lungs = chest(0, 100)
    filled = lungs.left.copy()
    filled[: round(100 - 80 * share)] = False
    hu = np.where(lungs.left & ~filled, 10, volume.hu).astype(np.int16)
    issues = check_voxels(replace(volume, hu=hu), replace(lungs, left=filled))
    assert any("left and right could not be checked" in issue.message for issue in issues) is said


@pytest.mark.parametrize(("slices", "below", "above"), [((16, 84), 20, 30), ((30, 100), 30, 0), ((-60, 28), 0, 1)])
def test_blank_images_at_the_ends_hide_no_cut(slices: tuple[int, int], below: int, above: int) -> None:
    volume, lungs = chest(*slices)
    padding = ((below, above), (0, 0), (0, 0))
    hu = np.pad(volume.hu, padding, constant_values=-1024)
    affine, uids = volume.geometry.affine.copy(), tuple(map(str, range(len(hu))))
    affine[2, 3] -= SPACING_MM * below
    padded = Volume(hu, Geometry(affine, hu.shape), "1.2.3", uids, (None,) * len(hu))
    masks = [np.pad(mask, padding) for mask in (lungs.body, lungs.airways, lungs.left, lungs.right)]
    assert coverage(padded, Lungs(*masks)) == coverage(volume, lungs)


def coverage(volume: Volume, lungs: Lungs) -> list[QualityIssue]:
    return [issue for issue in check_voxels(volume, lungs) if issue.check == "coverage"]


def cropped(volume: Volume, rows: slice, columns: slice) -> Volume:
    """The field of view without some rows and columns; it keeps its corner, which coverage does not look at."""
    hu = np.ascontiguousarray(volume.hu[:, rows, columns])
    return replace(volume, hu=hu, geometry=Geometry(volume.geometry.affine, hu.shape))


AT_EDGES = "the lungs are cut off at the edges of the images; findings there are not seen"


@pytest.mark.parametrize(
    ("rows", "columns", "cut"),
    [
        (slice(None), slice(None), False),
        # The lungs are in rows 17 to 73 and columns 14 to 106: cut beside them, and by what is nothing.
        (slice(16, 75), slice(13, 108), False),
        (slice(None), slice(14, None), False),
        (slice(None), slice(18, None), True),
        (slice(None), slice(None, 103), True),
        (slice(20, None), slice(None), True),
        (slice(None), slice(25, 95), True),
        (slice(None, 70), slice(None), True),
    ],
)
def test_lungs_beyond_the_field_of_view_are_warned_about(rows: slice, columns: slice, cut: bool) -> None:
    volume, lungs = chest(0, 100)
    masks = (
        np.ascontiguousarray(mask[:, rows, columns]) for mask in (lungs.body, lungs.airways, lungs.left, lungs.right)
    )
    issues = coverage(cropped(volume, rows, columns), Lungs(*masks))
    assert [i.message for i in issues if i.verdict is not Verdict.PASS] == [AT_EDGES] * cut


@pytest.mark.real_ct
@pytest.mark.skipif(not REAL_CT.exists(), reason="no real CT beside the project (../shared/ct)")
def test_a_real_field_of_view_may_end_beside_the_lungs_not_in_them() -> None:
    (study,), _ = read_studies(find_files([REAL_CT / "contrast_c3n_00249"], Path("unused")).files)
    whole = load_volume(study.series[0])
    lungs = segment_lungs(whole)
    _, *inside = bounds(lungs.left, lungs.right) or ()
    for beyond_mm, cut in ((3.0, False), (-6.0, True)):
        beyond = round(beyond_mm / whole.geometry.spacing_mm[2])
        volume = cropped(whole, *(slice(part.start - beyond, part.stop + beyond) for part in inside))
        issues = coverage(volume, segment_lungs(volume))
        assert [i.message for i in issues if i.verdict is not Verdict.PASS] == [AT_EDGES] * cut


@pytest.fixture(scope="module")
def trunk() -> Phantom:
    """A phantom from 390 mm below to 310 mm above the middle of the heart: its lungs are slices 44 to 94."""
    return make_phantom(3, spacing_mm=(5.0, 2.5, 2.5), shape=(140, 150, 150))


@pytest.mark.parametrize("from_head_to_feet", [False, True])
@pytest.mark.parametrize(
    ("slices", "words"),
    [
        ((30, 105), None),
        ((35, 72), "apices lie outside the images: half a thorax"),
        ((72, 110), "bases lie outside the images: half a thorax"),
        ((0, 60), "only the bases are in the images, with 220 mm of the body below them: an abdomen"),
        ((0, 42), "not a chest"),
        ((82, 140), "only the apices are in the images, with 225 mm of the body above them: a neck"),
        ((98, 140), "not a chest"),
    ],
)
def test_a_phantom_cut_short_is_refused_as_what_it_shows(trunk, slices, words, from_head_to_feet) -> None:
    volume = trunk.volume
    affine, step = volume.geometry.affine.copy(), -1 if from_head_to_feet else 1
    hu = np.ascontiguousarray(volume.hu[slice(*slices)][::step])
    affine[:3, 0] *= step
    cut = replace(
        volume,
        hu=hu,
        geometry=Geometry(affine, hu.shape, "1.2"),
        sop_instance_uids=volume.sop_instance_uids[: len(hu)],
        frame_numbers=(None,) * len(hu),
    )
    issues = check_voxels(cut, segment_lungs(cut))
    refused = [issue.message for issue in issues if issue.verdict is Verdict.REJECT]
    assert len(refused) == (words is not None)
    assert all(words in message for message in refused)


@pytest.mark.parametrize(
    ("blank", "verdict"),
    [((0, 1, 99), Verdict.WARN), ((50,), Verdict.REJECT), ((0, 50), Verdict.REJECT), (range(100), Verdict.REJECT)],
)
def test_blank_images_are_padding_at_the_ends_only(blank: Sequence[int], verdict: Verdict) -> None:
    volume, lungs = chest(0, 100)
    hu = volume.hu.copy()
    hu[list(blank)] = -1024
    issues = check_voxels(replace(volume, hu=hu), lungs)
    assert {issue.verdict for issue in issues if issue.check == "blank_images"} == {verdict}
