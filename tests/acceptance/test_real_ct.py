"""Five real patients through the pipeline: series, sides, volumes, emphysema index, contrast, honest negatives."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from running import ROOT
from scipy import ndimage

from dicom_gateway.pipeline import process_study
from dicom_gateway.report.stored import StoredResult
from imaging.files import find_files
from imaging.geometry import Geometry
from imaging.headers import read_studies
from imaging.lungs import segment_lungs
from imaging.volume import Volume, load_volume
from models import BUNDLED_MODEL_DIR
from models.detect import Detector, unfamiliar
from models.evaluation.truth import find_labelled_studies
from models.findings import FindingKind, Presence
from models.session import ModelSession

REAL_CT = ROOT.parent / "shared" / "ct"
SERIES = {
    "covid_p001": {"slices": 148, "contrast": False, "phase": None},
    "normal_001": {"slices": 154, "contrast": False, "phase": None},
    "nodules_lidc_0063": {"slices": 133, "contrast": False, "phase": None},
    "contrast_c3n_00249": {"slices": 102, "contrast": True, "phase": "venous"},
    "effusion_lung1_024": {"slices": 95, "contrast": True, "phase": "systemic_arterial"},
}

pytestmark = [
    pytest.mark.real_ct,
    pytest.mark.acceptance,
    pytest.mark.skipif(not REAL_CT.exists(), reason="no real CT beside the project (../shared/ct)"),
]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(ModelSession.open(BUNDLED_MODEL_DIR))


@pytest.fixture(scope="module", params=SERIES)
def analysed(request: pytest.FixtureRequest, detector: Detector) -> tuple[str, StoredResult, Volume]:
    (study,), _ = read_studies(find_files([REAL_CT / request.param], Path("unused")).files)
    result = process_study(study, detector, revision=1, created=datetime(2026, 1, 1, tzinfo=UTC))
    return request.param, result, load_volume(study.series[0])


@lru_cache(maxsize=1)
def _aerated_lung(volume: Volume) -> np.ndarray:
    """A second opinion without our code: the large pockets of air in the patient, vessels and airways as they are."""
    air = volume.hu < -400
    labels, _ = ndimage.label(air)
    borders = (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1])
    touching = np.unique(np.concatenate([border.ravel() for border in borders]))
    sizes = np.bincount(labels.ravel()) * volume.geometry.voxel_volume_mm3 / 1000
    sizes[np.union1d(touching, [0])] = 0
    # The foam of a table is a large pocket too, darker (-900 HU) than the lungs of these five (-709 to -859 HU).
    large = [label for label in np.flatnonzero(sizes > 200) if np.median(volume.hu[labels == label]) > -890]
    return np.isin(labels, large)


def _emphysema(result: StoredResult) -> dict[tuple[str, str | None], float]:
    (finding,) = [f for f in result.report.findings if f.kind == "emphysema"]
    return {(m.quantity, m.laterality): m.value for m in finding.measurements}


def test_the_series_is_analysed_and_contrast_recognised(analysed) -> None:
    name, result, _ = analysed
    series = result.report.analysed_series
    assert result.report.outcome == "reported"
    assert series is not None
    known = SERIES[name]
    assert (series.slice_count, series.contrast) == (known["slices"], known["contrast"])
    assert series.contrast_phase == known["phase"]


def test_lung_volume_and_emphysema_index_agree_with_a_plain_threshold(analysed) -> None:
    """Within 8 % of the volume (we close vessels and leave the airways out) and 0.5 points of LAA-950."""
    _, result, volume = analysed
    lung = _aerated_lung(volume)
    found = _emphysema(result)
    reported_ml = found["lung_volume", "left"] + found["lung_volume", "right"]
    assert reported_ml == pytest.approx(lung.sum() * volume.geometry.voxel_volume_mm3 / 1000, rel=0.08)
    # The trachea is air below -950 HU and no lung: the threshold alone counts it.
    plain = 100 * np.count_nonzero(volume.hu[ndimage.binary_erosion(lung, iterations=2)] < -950) / lung.sum()
    assert found["low_attenuation_area_950", None] == pytest.approx(plain, abs=1.5)


def test_sides_are_the_patients(analysed) -> None:
    """The heart lies on the left: the left lung is the smaller one in these five patients."""
    _, result, _ = analysed
    found = _emphysema(result)
    assert found["lung_volume", "left"] < found["lung_volume", "right"]


def test_lungs_are_where_the_air_is(analysed) -> None:
    """Dice of the segmented lungs with the plain threshold, its vessels closed in every third slice."""
    _, _, volume = analysed
    lungs = segment_lungs(volume)
    found = (lungs.left | lungs.right)[::3]
    radius = round(3 / volume.geometry.spacing_mm[1])
    aerated = sitk.GetImageFromArray(_aerated_lung(volume)[::3].astype(np.uint8))
    closed = sitk.GetArrayFromImage(sitk.BinaryMorphologicalClosing(aerated, (radius, radius, 0), sitk.sitkBall)) > 0
    assert 2 * (found & closed).sum() / (found.sum() + closed.sum()) > 0.95


def test_nothing_is_called_that_is_known_to_be_absent(analysed) -> None:
    name, result, _ = analysed
    present = {f.kind for f in result.report.findings if f.presence == "present" and f.lesion is None}
    labelled = find_labelled_studies([ROOT / "models/evaluation/shared.toml"])
    (truth,) = [study.truth for study in labelled if study.truth.name == name]
    assert present.isdisjoint(kind.value for kind in truth.absent)
    if name == "normal_001":
        assert len(present) <= 1, present


def test_key_images_show_what_they_name(analysed) -> None:
    """Each key image belongs to a finding whose centre lies in its slice's finding region and inside the body."""
    _, result, volume = analysed
    for finding in result.report.findings:
        if finding.key_image is None:
            continue
        assert finding.key_image in result.key_images
        assert finding.key_sop_instance_uid == volume.sop_instance_uids[finding.key_slice]
        index = np.rint(volume.geometry.patient_to_index(finding.centre_mm)).astype(int)
        assert all(0 <= i < n for i, n in zip(index, volume.hu.shape, strict=True))


@pytest.fixture(scope="module")
def normal() -> Volume:
    (study,), _ = read_studies(find_files([REAL_CT / "normal_001"], Path("unused")).files)
    return load_volume(study.series[0])


def test_a_field_of_view_cut_to_the_lungs_changes_no_answer(normal: Volume, detector: Detector) -> None:
    """Reconstructions of the lungs alone show no skin; of the series here, this one is then the least familiar."""
    lungs = segment_lungs(normal)
    rows, columns = (
        slice(max(0, int(hit[0] - 3 / mm)), int(hit[-1] + 3 / mm))
        for hit, mm in zip(
            (np.flatnonzero((lungs.left | lungs.right).any(axis=axes)) for axes in ((0, 2), (0, 1))),
            normal.geometry.spacing_mm[1:],
            strict=True,
        )
    )
    affine = normal.geometry.affine.copy()
    affine[:3, 3] += affine[:3, 1] * rows.start + affine[:3, 2] * columns.start
    hu = np.ascontiguousarray(normal.hu[:, rows, columns])
    narrow = replace(normal, hu=hu, geometry=Geometry(affine, hu.shape))
    detection = detector.detect(narrow, segment_lungs(narrow), sharp_kernel=False)
    assert detection.quality == ()
    truth = next(
        s.truth for s in find_labelled_studies([ROOT / "models/evaluation/shared.toml"]) if s.truth.name == "normal_001"
    )
    absent = {kind for kind in FindingKind if truth.of(kind).presence == "absent"}
    answers = {f.kind: f.presence for f in detection.findings if f.kind in absent and f.lesion is None}
    assert set(answers) == absent
    assert Presence.PRESENT not in answers.values()
    assert list(answers.values()).count(Presence.ABSENT) >= len(absent) - 1


@pytest.mark.parametrize(("size", "added_hu"), [(0.6, 0), (1.0, 150)], ids=["the size of a child", "a wrong intercept"])
def test_what_the_model_was_not_made_for_is_unfamiliar(
    normal: Volume, detector: Detector, size: float, added_hu: int
) -> None:
    affine = normal.geometry.affine @ np.diag([size, size, size, 1.0])
    strange = replace(normal, hu=normal.hu + np.int16(added_hu), geometry=Geometry(affine, normal.hu.shape))
    grid = detector.network_grid(strange, segment_lungs(strange))
    (issue,) = unfamiliar(detector.manifest, detector.session.run(grid.hu))
    assert issue.check == "familiarity"
