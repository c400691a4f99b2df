"""The weights in the repository, as the product uses them."""

from pathlib import Path

import numpy as np
import pytest

from imaging.phantom import ANATOMY, LesionRequest, make_phantom
from models.evaluation.card import tables, write_tables
from models.findings import FindingKind
from models.manifest import load_manifest
from models.session import HeadOutputs, ModelSession
from models.training.network import LESIONS

FOLDER = Path(__file__).parents[2] / "models" / "weights"
CARD = FOLDER.parent / "MODEL_CARD.md"


@pytest.fixture(scope="module")
def session() -> ModelSession:
    return ModelSession.open(FOLDER, threads=2)


@pytest.fixture(scope="module")
def effusion(session: ModelSession) -> HeadOutputs:
    return answer(session, [LesionRequest(kind="pleural_effusion", size=400.0, laterality="left")])


def answer(session: ModelSession, requests: list[LesionRequest]) -> HeadOutputs:
    phantom = make_phantom(8123, requests, spacing_mm=(2.5, 2.5, 2.5))
    hu = phantom.volume.hu.astype(np.float32)
    fill = [(0, -n % session.manifest.input.multiple_of) for n in hu.shape]
    return session.run(np.pad(hu, fill, constant_values=-1024.0)[None, None])


def test_the_manifest_fits_the_code() -> None:
    manifest = load_manifest(FOLDER)
    assert manifest.anatomy == ANATOMY
    assert manifest.lesions == LESIONS
    assert (FOLDER / manifest.weights).stat().st_size < 10_000_000


def test_no_licence_forbids_the_release() -> None:
    for source in load_manifest(FOLDER).training_data:
        assert source.use == "validation" or "NC" not in source.licence


def test_the_model_card_says_what_the_manifest_says() -> None:
    assert tables(load_manifest(FOLDER)) in CARD.read_text()


def test_a_card_without_marks_is_left_alone(tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        write_tables(load_manifest(FOLDER), card)
    assert card.read_text() == "no marks"


def test_an_effusion_lies_on_its_side(session: ModelSession, effusion: HeadOutputs) -> None:
    channel = session.manifest.lesions.index(FindingKind.PLEURAL_EFFUSION)
    fluid = effusion.lesions[channel] >= 0.5
    left = effusion.anatomy == ANATOMY.index("lung_left")
    right = effusion.anatomy == ANATOMY.index("lung_right")
    assert left.any() and right.any()
    assert (fluid & left).sum() > 10 * (fluid & right).sum()
    volume_ml = fluid.sum() * session.manifest.input.spacing_mm**3 / 1000
    assert 200 < volume_ml < 600


def test_the_study_score_knows_a_phantom_with_an_effusion_from_one_without(
    session: ModelSession, effusion: HeadOutputs
) -> None:
    point = session.manifest.operating_points[FindingKind.PLEURAL_EFFUSION]
    channel = session.manifest.lesions.index(FindingKind.PLEURAL_EFFUSION)
    without = answer(session, [])
    assert point.probability(float(effusion.study_logits[channel])) >= point.present_probability
    assert point.probability(float(without.study_logits[channel])) < point.present_probability
