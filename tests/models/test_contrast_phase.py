"""The phase of an enhanced scan: phantoms as they are, and one phantom whose vessels and organs are given other HU."""

from dataclasses import replace

import numpy as np
import pytest
from phantom_anatomy import anatomy_of

from dicom_gateway.report.wording import PHASE_NAMES
from imaging.phantom import make_phantom
from models.anatomy import Anatomy
from models.contrast_phase import ContrastPhase, contrast_phase

COARSE_MM = (4.0, 2.0, 2.0)


@pytest.fixture(scope="module")
def enhanced() -> Anatomy:
    return anatomy_of(make_phantom(4, spacing_mm=COARSE_MM, contrast=True))


def with_organs(anatomy: Anatomy, **hu: float | None) -> Anatomy:
    """The anatomy with other HU in the named organs, each with noise of 10 HU; None takes its outline away."""
    values, labels = anatomy.grid.hu.copy(), anatomy.labels.copy()
    noise = np.random.default_rng(0).normal(0, 10, values.shape[2:]).astype(np.float32)
    for name, value in hu.items():
        mask = anatomy.mask(name)
        if value is None:
            labels[mask] = anatomy.names.index("body")
        else:
            values[0, 0][mask] = value + noise[mask]
    return replace(anatomy, grid=replace(anatomy.grid, hu=values), labels=labels)


def test_an_unenhanced_phantom_has_no_phase_and_an_enhanced_one_is_arterial(enhanced: Anatomy) -> None:
    assert contrast_phase(anatomy_of(make_phantom(4, spacing_mm=COARSE_MM))) is None
    found = contrast_phase(enhanced)
    assert found is not None
    assert found.phase in {ContrastPhase.ARTERIAL, ContrastPhase.PULMONARY_ARTERIAL, ContrastPhase.SYSTEMIC_ARTERIAL}


@pytest.mark.parametrize(
    ("trunk", "aorta", "liver", "spleen", "phase"),
    [
        (420, 150, 60, 60, "pulmonary_arterial"),
        (158, 250, 88, 136, "systemic_arterial"),
        (300, 310, 70, 110, "arterial"),
        (113, 118, 80, 99, "venous"),
        (210, 200, 140, 160, "venous"),
        # Between the limits, too weak, contradictory, or not seen.
        (200, 255, 80, 120, "not_told"),
        (110, 170, 80, 99, "not_told"),
        (140, 140, 60, 60, "not_told"),
        (80, 80, 75, 75, "not_told"),
        (220, 230, 150, 120, "not_told"),
        (300, 310, None, 110, "not_told"),
        (300, None, 70, 110, "not_told"),
    ],
)
def test_the_order_of_enhancement_tells_the_phase(enhanced, trunk, aorta, liver, spleen, phase) -> None:
    found = contrast_phase(with_organs(enhanced, pulmonary_trunk=trunk, aorta=aorta, liver=liver, spleen=spleen))
    assert found is not None
    assert found.phase == phase
    assert aorta is None or f"aorta {aorta} HU" in found.evidence


def test_an_outline_of_two_attenuations_is_not_read(enhanced: Anatomy) -> None:
    z = np.flatnonzero(enhanced.mask("aorta").any(axis=(1, 2))).mean()
    dissected = with_organs(enhanced, aorta=300, pulmonary_trunk=160)
    dissected.grid.hu[0, 0, : int(z)][enhanced.mask("aorta")[: int(z)]] = 120
    found = contrast_phase(dissected)
    assert found is not None
    assert found.phase is ContrastPhase.NOT_TOLD
    assert "aorta" not in found.evidence


def test_every_phase_has_words() -> None:
    assert set(PHASE_NAMES) == set(ContrastPhase)
