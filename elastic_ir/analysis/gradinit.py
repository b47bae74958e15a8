"""Scales of layers that make the first step of training a good one: GradInit, for sparse networks.

One factor for each parameter tensor (the weight and the bias of every convolution, linear layer and norm) is found by
gradient descent on the loss after the first step of the optimizer, with the gradient's norm held below a bound (Zhu et
al. 2021, *GradInit: Learning to Initialize Neural Networks for Stable and Efficient Training*, algorithm 1). Jaiswal et
al. 2022 (*Training Your Sparse Neural Network Better with Any Mask*) use it for tickets as layer-wise re-scaled
initialization; the defaults are theirs. As in the code of both, batch norms take the batch's statistics and change none
of their own, and the step itself counts as constant. Gradients of pruned weights are 0 here, as they are in training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from elastic_ir.choices import Optimizer, check_choice
from elastic_ir.errors import PlanError, first_line
from elastic_ir.ir.graph import Graph

#: Inputs and targets.
Batch = tuple[Tensor, Tensor]
#: What training minimises: a number from the network's outputs and the targets.
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class GradInit:
    """How scales are searched; PlanError for a setting that makes no sense."""

    steps: int = 180
    lr: float = 0.01  #: of the scales, by Adam
    eta: float = 0.1  #: the learning rate of the first step that is looked ahead
    gamma: float = 1.0  #: the bound of the gradient's norm (of its sum of sizes, for adam)
    minimum: float = 0.01  #: no weight's scale gets smaller; biases may go to 0
    optimizer: Optimizer = "sgd"  #: the training's: sgd, or adam (whose first step is the gradient's sign)
    normalise: bool = True  #: sgd: a first step of length eta, whatever the gradient's norm
    clip: float = 1.0  #: of each scale's own gradient

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, Optimizer)
        if self.steps < 1:
            raise PlanError(f"steps={self.steps}: the scales take one step or more to find")
        for name in ("lr", "eta", "gamma", "clip"):
            if not getattr(self, name) > 0:
                raise PlanError(f"{name}={getattr(self, name):g}: it is above 0")
        if not 0 <= self.minimum <= 1:
            raise PlanError(f"minimum={self.minimum:g}: scales begin at 1, so it is between 0 and 1")


def find_scales(
    graph: Graph,
    batches: Iterable[Batch],
    loss: Loss = nn.functional.cross_entropy,
    settings: GradInit | None = None,
) -> dict[str, float]:
    """A factor for each trained parameter of a graph's network, by name; the graph stays as it was.

    ``batches`` are pairs of inputs and targets, gone through again where there are few; each step takes three. Apply
    the scales by the pass ``layerwise-rescale``. Raises PlanError where there is no batch, or the loss is not finite.
    """
    settings = settings or GradInit()
    data = _endless(batches)
    module = graph.to_module()
    _fix_modes(module)
    weights = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    if not weights:
        raise PlanError(f"{graph.name} has no parameter that is trained, so there is nothing to scale")
    kept = {name: mask != 0 for name, mask in graph.masks().items() if name in weights}
    scales = {name: torch.ones((), dtype=w.dtype, requires_grad=True) for name, w in weights.items()}
    # steps for the bound and steps for the loss differ too much in size to share moments
    optimizers = [torch.optim.Adam(scales.values(), lr=settings.lr) for _ in range(2)]
    for number in range(settings.steps):
        one, two, three = next(data), next(data), next(data)
        scaled = {name: scales[name] * weight for name, weight in weights.items()}
        first = _loss(module, scaled, _join(one, two), loss, number)
        found = torch.autograd.grad(first, list(scaled.values()), create_graph=True, allow_unused=True)
        gradients = {
            name: torch.zeros_like(weight) if grad is None else grad * kept[name] if name in kept else grad
            for (name, weight), grad in zip(weights.items(), found, strict=True)
        }
        norm = _norm(gradients.values(), settings)
        above = norm.item() > settings.gamma
        if above:
            goal = norm
        else:
            length = norm.item() if settings.normalise and norm.item() > 0 else 1.0
            ahead = {name: scaled[name] - _step(grad, length, settings) for name, grad in gradients.items()}
            goal = _loss(module, ahead, _join(one, three), loss, number) / settings.eta
        _descend(goal, scales, optimizers[above], settings)
    return {name: float(scale.detach()) for name, scale in scales.items()}


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    held = list(batches)
    if not held:
        raise PlanError("the scales are found on data, and there is no batch of it")
    return itertools.cycle(held)


def _join(one: Batch, other: Batch) -> Batch:
    """Two batches as one; a batch beside itself stays one, which has the same mean."""
    if one is other:
        return one
    return torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]])


def _fix_modes(module: nn.Module) -> None:
    """No dropout, and batch norms on the batch's statistics."""
    module.eval()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.training, part.track_running_stats = True, False


def _loss(module: nn.Module, weights: dict[str, Tensor], batch: Batch, loss: Loss, step: int) -> Tensor:
    try:
        value = loss(torch.func.functional_call(module, weights, (batch[0],)), batch[1])
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise PlanError(
            f"the network and its loss do not run on inputs of {list(batch[0].shape)} and targets of "
            f"{list(batch[1].shape)}: {first_line(error)}"
        ) from error
    if value.ndim or not bool(value.isfinite()):
        what = "no single number" if value.ndim else f"{value.item()}"
        raise PlanError(f"the loss at step {step} of the search for scales is {what}; a smaller lr may help")
    return value


def _norm(gradients: Iterable[Tensor], settings: GradInit) -> Tensor:
    """Of the gradient as the optimizer's step meets it: Euclid's for sgd, the sum of sizes for adam."""
    if settings.optimizer == "adam":
        return torch.stack([grad.abs().sum() for grad in gradients]).sum()
    squared = torch.stack([grad.square().sum() for grad in gradients]).sum()
    return (squared + torch.finfo(squared.dtype).tiny).sqrt()  # its derivative at 0 is not finite


def _step(gradient: Tensor, length: float, settings: GradInit) -> Tensor:
    """The first step of the optimizer for one parameter, as a constant."""
    grad = gradient.detach()
    return settings.eta * (grad.sign() if settings.optimizer == "adam" else grad / length)


def _descend(
    goal: Tensor, scales: dict[str, Tensor], optimizer: torch.optim.Optimizer, settings: GradInit
) -> None:
    try:
        grads = torch.autograd.grad(goal, list(scales.values()), allow_unused=True)
    except RuntimeError as error:  # some operators have no second derivative
        raise PlanError(
            f"the search for scales differentiates the loss twice: {first_line(error)}"
        ) from error
    for scale, grad in zip(scales.values(), grads, strict=True):
        scale.grad = torch.zeros_like(scale) if grad is None else grad.clamp(-settings.clip, settings.clip)
    optimizer.step()
    with torch.no_grad():
        for name, scale in scales.items():
            scale.clamp_(min=0.0 if name.rpartition(".")[2].endswith("bias") else settings.minimum)
