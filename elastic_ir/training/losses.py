"""Losses for sparse training: smoothed labels, and the soft labels of the dense network that the ticket came from.

A sparse network does better with labels that say less than 0 and 1: smoothed evenly (Szegedy et al. 2016, *Rethinking
the Inception Architecture*, section 7; for sparse networks Jaiswal et al. 2022, *Training Your Sparse Neural Network
Better with Any Mask*), or by what its dense teacher believes (Hinton et al. 2015, *Distilling the Knowledge in a Neural
Network*, section 2; for tickets Jaiswal et al. 2021, *Good Students Play Big Lottery Better*).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from elastic_ir.analysis.pruning.scores import modes
from elastic_ir.errors import PlanError

IGNORED = -100  #: the label that torch's cross-entropy passes over


class ClassEntropy(nn.CrossEntropyLoss):
    """Cross-entropy of class numbers, which torch takes as int64 alone, in any whole dtype; or of their shares.

    Of a network with several outputs the first one counts.
    """

    def forward(self, input: Any, target: Tensor) -> Tensor:
        classes = target if target.is_floating_point() else target.long()
        return super().forward(first_of(input), classes)


def first_of(output: Any) -> Tensor:
    """A network's output, the first of several."""
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy with a share of each label spread evenly over all classes; the batch's mean.

    ``logits`` are [batch, classes, ...], ``labels`` class numbers [batch, ...]. PlanError for a smoothing that is
    not from 0 to below 1.
    """
    _check(smoothing=smoothing)
    loss: Tensor = ClassEntropy(label_smoothing=smoothing)(logits, labels)
    return loss


def distillation_loss(
    logits: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 4.0, weight: float = 0.9,
    smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """``weight`` of the distance from the teacher's soft labels, and the rest of it cross-entropy; the batch's mean.

    ``logits`` and ``teacher`` are [batch, classes, ...], ``labels`` class numbers [batch, ...]. The distance is the
    Kullback-Leibler divergence of both softened by ``temperature``, times its square, so that gradients keep their size
    (Hinton et al. 2015, section 2). No gradient flows into the teacher. Raises PlanError for a temperature not above
    0, a weight outside 0 to 1, a smoothing not from 0 to below 1, or a teacher of another shape.
    """
    _check(temperature=temperature, weight=weight, smoothing=smoothing)
    if teacher.shape != logits.shape:
        raise PlanError(f"the teacher gives {list(teacher.shape)} logits, the network {list(logits.shape)}")
    soft = nn.functional.log_softmax(teacher.detach() / temperature, 1)
    own = nn.functional.log_softmax(logits / temperature, 1)
    distances = nn.functional.kl_div(own, soft, reduction="none", log_target=True).sum(1)
    hard = smoothed_cross_entropy(logits, labels, smoothing)
    return weight * temperature**2 * distances.mean() + (1 - weight) * hard


class SoftLabels:
    """The loss against a teacher's soft labels: ``loss(inputs, logits, labels)``; see :func:`distillation_loss`.

    The teacher, the dense network, runs in evaluation mode without gradients and keeps its own mode. It is not part of
    any module, so that no optimizer and no checkpoint takes it for the network's own.
    """

    def __init__(
        self, teacher: nn.Module, *, temperature: float = 4.0, weight: float = 0.9, smoothing: float = 0.0
    ) -> None:
        _check(temperature=temperature, weight=weight, smoothing=smoothing)
        self.teacher = teacher
        self.temperature, self.weight, self.smoothing = temperature, weight, smoothing

    def __call__(self, inputs: Tensor, logits: Any, labels: Tensor) -> Tensor:
        return distillation_loss(
            first_of(logits), self.soft(inputs), labels, temperature=self.temperature, weight=self.weight,
            smoothing=self.smoothing,
        )  # fmt: skip

    def soft(self, inputs: Tensor) -> Tensor:
        """The teacher's logits; all its modules keep their modes, and its norms their statistics."""
        weight = next(self.teacher.parameters(), None)
        if weight is not None and weight.device != inputs.device:
            self.teacher.to(inputs.device)  # a trainer moves only what is part of its module
        with torch.no_grad(), modes(self.teacher):
            return first_of(self.teacher(inputs))


def _check(temperature: float = 1.0, weight: float = 0.0, smoothing: float = 0.0) -> None:
    if not temperature > 0:
        raise PlanError(f"temperature={temperature:g} softens nothing; it must be above 0")
    if not 0 <= weight <= 1:
        raise PlanError(f"weight={weight:g} is not a share of the loss; it must be between 0 and 1")
    if not 0 <= smoothing < 1:
        raise PlanError(f"smoothing={smoothing:g} is not a share of a label; it must be from 0 to below 1")
