import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.training.labels import ALLOWED, LABEL, PARTIAL
from models.training.losses import anatomy_loss, lesion_loss
from models.training.network import ANATOMY, LESIONS

SHAPE = (4, 4, 4)


def logits_of(name: str, strength: float = 12.0) -> torch.Tensor:
    logits = torch.zeros(1, len(ANATOMY), *SHAPE)
    logits[:, ANATOMY.index(name)] = strength
    return logits


def labels_of(name: str) -> torch.Tensor:
    return torch.full((1, *SHAPE), LABEL[name], dtype=torch.uint8)


def test_every_label_leaves_a_class_open_and_full_labels_leave_one() -> None:
    assert ALLOWED.shape == (len(LABEL), len(ANATOMY))
    assert (ALLOWED.sum(axis=1) >= 1).all()
    assert (ALLOWED[: len(ANATOMY)] == np.eye(len(ANATOMY), dtype=bool)).all()


@pytest.mark.parametrize("partial", sorted(PARTIAL))
def test_a_partial_label_accepts_each_of_its_classes_and_no_other(partial: str) -> None:
    for name in ANATOMY:
        loss = float(anatomy_loss(logits_of(name), labels_of(partial)))
        if name in PARTIAL[partial]:
            assert loss < 0.01
        else:
            assert loss > 5.0


def test_the_right_anatomy_costs_less_than_the_wrong_one() -> None:
    right = float(anatomy_loss(logits_of("heart"), labels_of("heart")))
    wrong = float(anatomy_loss(logits_of("liver"), labels_of("heart")))
    assert right < 0.05 < wrong


@given(st.integers(0, len(LESIONS) - 1))
def test_unknown_voxels_do_not_count(index: int) -> None:
    torch.manual_seed(index)
    logits = torch.randn(1, len(LESIONS), *SHAPE, requires_grad=True)
    bits = torch.full((1, *SHAPE), 1 << index, dtype=torch.uint8)
    unknown = torch.full((1, *SHAPE), 255, dtype=torch.uint8)
    lesion_loss(logits, bits, unknown).backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) == 0.0


@given(st.integers(0, len(LESIONS) - 1))
def test_finding_a_lesion_costs_less_than_missing_it(index: int) -> None:
    bits = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    bits[0, 1:3, 1:3, 1:3] = 1 << index
    unknown = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    none = torch.full((1, len(LESIONS), *SHAPE), -8.0)
    found = none.clone()
    found[0, index, 1:3, 1:3, 1:3] = 8.0
    elsewhere = none.clone()
    elsewhere[0, (index + 1) % len(LESIONS), 1:3, 1:3, 1:3] = 8.0
    assert float(lesion_loss(found, bits, unknown)) < float(lesion_loss(none, bits, unknown))
    assert float(lesion_loss(none, bits, unknown)) < float(lesion_loss(elsewhere, bits, unknown))
