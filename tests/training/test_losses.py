"""Losses against what they are by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from elastic_ir.errors import PlanError
from elastic_ir.training import SoftLabels, distillation_loss, smoothed_cross_entropy


def logits(seed: int) -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def test_smoothed_labels() -> None:
    targets = 0.8 * nn.functional.one_hot(LABELS, 4) + 0.2 / 4
    by_hand = -(targets * logits(0).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(smoothed_cross_entropy(logits(0), LABELS, 0.2), by_hand)


def test_distillation_by_hand() -> None:
    own, soft = logits(0), (logits(1) / 3).softmax(1)
    apart = (soft * (soft.log() - (own / 3).log_softmax(1))).sum(1).mean()
    by_hand = 0.7 * 9 * apart + 0.3 * nn.functional.cross_entropy(own, LABELS)
    found = distillation_loss(own, logits(1), LABELS, temperature=3, weight=0.7)
    torch.testing.assert_close(found, by_hand)
    assert float(distillation_loss(own, own, LABELS, weight=1)) == pytest.approx(0, abs=1e-6)


def test_the_gradient_keeps_its_size_and_stays_out_of_the_teacher() -> None:
    sizes = []
    for temperature in (20.0, 40.0):
        own, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
        distillation_loss(own, teacher, LABELS, temperature=temperature, weight=1).backward()  # type: ignore[no-untyped-call]
        assert teacher.grad is None and own.grad is not None
        sizes.append(float(own.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_the_teacher_is_left_as_it_was() -> None:
    teacher = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)).train()
    teacher[1].eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    loss = SoftLabels(teacher, temperature=2, weight=0.5, smoothing=0.1)
    x, own = torch.randn(6, 5), logits(0).requires_grad_()
    value = loss(x, own, LABELS)
    value.backward()  # type: ignore[no-untyped-call]
    assert teacher.training and not teacher[1].training
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    soft = teacher.eval()(x)
    expected = distillation_loss(own, soft, LABELS, temperature=2, weight=0.5, smoothing=0.1)
    torch.testing.assert_close(value, expected)


def test_what_makes_no_sense() -> None:
    with pytest.raises(
        PlanError, match="smoothing=1 is not a share of a label; it must be from 0 to below 1"
    ):
        smoothed_cross_entropy(logits(0), LABELS, 1.0)
    with pytest.raises(PlanError, match="temperature=0 softens nothing; it must be above 0"):
        SoftLabels(nn.Identity(), temperature=0)
    with pytest.raises(PlanError, match=r"weight=1.5 is not a share of the loss; it must be between 0 and 1"):
        SoftLabels(nn.Identity(), weight=1.5)
    with pytest.raises(PlanError, match=r"the teacher gives \[6, 3\] logits, the network \[6, 4\]"):
        distillation_loss(logits(0), logits(1)[:, :3], LABELS)


def test_the_teacher_goes_where_the_images_are() -> None:
    """No trainer moves it, since it is no part of the module that is trained."""
    loss = SoftLabels(nn.Linear(4, 3))
    assert loss.soft(torch.zeros(2, 4)).device.type == "cpu"
    assert loss.soft(torch.zeros(2, 4, device="meta")).device.type == "meta"
