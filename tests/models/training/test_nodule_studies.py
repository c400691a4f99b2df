"""Studies of nodules put into scans: on the scan's own grid, and nowhere but where the truth says."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dicom_gateway.evaluate import Scan, inserted_cases
from imaging.phantom import Phantom, make_phantom
from models.findings import FindingKind
from models.training.dataset import read_config
from models.training.nodule_studies import nodule_hosts, nodule_study

SPACING_MM = (4.0, 2.0, 2.0)
CONFIGURATION = """
data_root = "."
seed = 20
steps = 1
batch = 1
precision = "float32"
crop = [64, 96, 144]
learning_rate = 3e-3
features = [8, 8, 8, 8, 8]
healthy = 0.15
phantom_folder = "phantoms"
phantom_first_seed = 1
phantoms = 0
mix = { real = 1.0, painted = 0.0, phantom = 0.0 }
[[held_out]]
name = "a patient"
path = "patient.nii.gz"
licence = "none"
"""


@pytest.fixture(scope="module")
def patient() -> Phantom:
    return make_phantom(3, (), spacing_mm=SPACING_MM)


@pytest.fixture(scope="module")
def configuration(patient: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held_out")
    image = sitk.GetImageFromArray(patient.volume.hu)
    image.SetSpacing(SPACING_MM[::-1])
    image.SetOrigin([float(v) for v in patient.volume.geometry.affine[:3, 3]])
    sitk.WriteImage(image, str(folder / "patient.nii.gz"))
    (folder / "training.toml").write_text(CONFIGURATION)
    return folder / "training.toml"


@pytest.fixture(scope="module")
def scans(configuration: Path) -> list[Scan]:
    cases = [case for case in inserted_cases(configuration, 3, 5) if case.name.startswith("nodules")]
    assert len(cases) == len({case.identity for case in cases}) == 3
    return [case.read(lambda stage: None) for case in cases]


def test_the_scan_changes_at_its_nodules_and_nowhere_else(patient: Phantom, scans: list[Scan]) -> None:
    assert any(not scan.truth.of(FindingKind.PULMONARY_NODULE).lesions for scan in scans)
    assert any(len(scan.truth.of(FindingKind.PULMONARY_NODULE).lesions) > 1 for scan in scans)
    before = patient.volume.hu
    centres_mm = patient.volume.geometry.index_to_patient(np.moveaxis(np.indices(before.shape), 0, -1))
    for scan in scans:
        assert scan.volume.geometry.spacing_mm == pytest.approx(SPACING_MM)
        away = np.ones(before.shape, bool)
        for lesion in scan.truth.of(FindingKind.PULMONARY_NODULE).lesions:
            assert lesion.diameter_mm is not None
            distance_mm = np.linalg.norm(centres_mm - lesion.centre_lps_mm, axis=-1)
            away &= distance_mm > 2 * lesion.diameter_mm + 3 * SPACING_MM[0]
            if lesion.mean_diameter_mm > 2 * SPACING_MM[0]:
                middle = np.unravel_index(np.argmin(distance_mm), before.shape)
                assert scan.volume.hu[middle] > before[middle] + 100
        assert np.array_equal(scan.volume.hu[away], before[away])


def test_a_study_without_nodules_says_that_there_are_none_and_nothing_of_other_kinds(scans: list[Scan]) -> None:
    for scan in scans:
        nodules = scan.truth.of(FindingKind.PULMONARY_NODULE)
        counted = any(lesion.counts for lesion in nodules.lesions)
        assert nodules.presence == ("present" if counted else "unknown" if nodules.lesions else "absent")
        others = {scan.truth.of(kind).presence for kind in FindingKind if kind is not FindingKind.PULMONARY_NODULE}
        assert others == {"unknown"}


def test_the_seed_decides_the_study(configuration: Path) -> None:
    config = read_config(configuration)
    hosts = nodule_hosts(config)
    studies = [nodule_study(hosts, config, index) for index in (7, 7, 8)]
    assert np.array_equal(studies[0].volume.hu, studies[1].volume.hu)
    assert studies[0].nodules == studies[1].nodules != studies[2].nodules


def test_a_scan_without_lungs_is_named(configuration: Path) -> None:
    empty = configuration.parent / "empty"
    empty.mkdir()
    image = sitk.GetImageFromArray(np.full((40, 40, 40), 40, np.int16))
    sitk.WriteImage(image, str(empty / "patient.nii.gz"))
    (empty / "training.toml").write_text(CONFIGURATION)
    with pytest.raises(ValueError, match=r"patient\.nii\.gz shows no lungs"):
        nodule_hosts(read_config(empty / "training.toml"))
