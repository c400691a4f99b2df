"""What of a phantom's findings may be asked for."""

from dataclasses import replace

import numpy as np
import pytest

from imaging.phantom import LesionRequest, Phantom, make_phantom, truth_document
from models.evaluation.phantoms import _without_cut_vertebra
from models.evaluation.truth import StudyTruth, phantom_truth
from models.findings import FindingKind

FRACTURE = FindingKind.VERTEBRAL_COMPRESSION_FRACTURE


@pytest.fixture(scope="module")
def fractured() -> tuple[StudyTruth, Phantom]:
    phantom = make_phantom(5, (LesionRequest(kind=FRACTURE.value, size=40.0),), spacing_mm=(4.0, 4.0, 4.0))
    return phantom_truth(truth_document(phantom), name="one"), phantom


def test_a_fracture_well_inside_the_scan_counts(fractured: tuple[StudyTruth, Phantom]) -> None:
    truth, phantom = fractured
    assert truth.of(FRACTURE).presence == "present"
    assert _without_cut_vertebra(truth, phantom) == truth


@pytest.mark.parametrize("first", [0, 1, -6])
def test_a_fracture_at_an_end_of_the_scan_is_unknown(fractured: tuple[StudyTruth, Phantom], first: int) -> None:
    truth, phantom = fractured
    mask = np.zeros_like(phantom.lesions[FRACTURE.value])
    mask[first % len(mask) :][:5] = True
    cut = replace(phantom, lesions={**phantom.lesions, FRACTURE.value: mask})
    assert _without_cut_vertebra(truth, cut).of(FRACTURE).presence == "unknown"
    assert _without_cut_vertebra(truth, cut).absent == truth.absent
