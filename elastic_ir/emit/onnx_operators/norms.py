"""ONNX normalisations and dropout. What acts otherwise in training is a module, so that it follows its network's mode.

ONNX files describe inference; in training, batch norms use and update their statistics and dropouts drop, as the
network did that was exported. These modules hold no tensors: the statistics are buffers under the graph's names.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.Module):
    """BatchNormalization; ONNX's momentum is the share of the old statistics, torch's that of the new ones."""

    def __init__(
        self, *, epsilon: float = 1e-5, momentum: float = 0.9, spatial: int = 1, training_mode: int = 0
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.momentum = momentum

    def forward(self, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Normalise; in training by the batch, whose statistics are taken into ``mean`` and ``var``."""
        return F.batch_norm(x, mean, var, scale, bias, self.training, 1 - self.momentum, self.epsilon)

    def extra_repr(self) -> str:
        return f"epsilon={self.epsilon}, momentum={self.momentum}"


def batch_norm_training(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5, momentum: float = 0.9,
    training_mode: int = 1, outputs: int,
) -> Any:  # fmt: skip
    """With training_mode=1 a file asks for the batch's statistics always, and gives the running ones as results."""
    axes = [0, *range(2, x.dim())]
    now, spread = x.mean(axes), x.var(axes, correction=0)
    y = F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
    running = [old * momentum + new * (1 - momentum) for old, new in ((mean, now), (var, spread))]
    return (y, *running)[:outputs] if outputs > 1 else y


class Dropout(nn.Module):
    """Dropout; its second result is the mask of what was kept."""

    def __init__(self, rate: float, outputs: int) -> None:
        super().__init__()
        self.rate = rate
        self.outputs = outputs

    def forward(self, x: Tensor, rate: Tensor | None = None) -> Any:
        """Drop, in training; at another rate where the file computes it."""
        share = self.rate if rate is None else float(rate)
        if self.outputs == 1:
            return F.dropout(x, share, self.training)
        keep = F.dropout(torch.ones_like(x), share, self.training)
        return x * keep, keep.bool()

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1,
    outputs: int = 1,
) -> Any:  # fmt: skip
    dims = list(range(axis % x.dim(), x.dim()))
    shape = list(x.shape[dims[0] :])
    if outputs == 1 and list(scale.shape) == shape and (bias is None or list(bias.shape) == shape):
        return F.layer_norm(x, shape, scale, bias, epsilon)
    wide = x.float() if stash_type == 1 else x
    mean = wide.mean(dims, keepdim=True)
    inverse = torch.rsqrt(wide.var(dims, correction=0, keepdim=True) + epsilon)
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    y = y if bias is None else y + bias
    return (y, mean, inverse)[:outputs] if outputs > 1 else y


def rms_norm(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    dims = list(range(axis % x.dim(), x.dim()))
    wide = x.float() if stash_type == 1 else x
    return (wide * torch.rsqrt((wide * wide).mean(dims, keepdim=True) + epsilon)).to(x.dtype) * scale


def skip_layer_norm(
    x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor | None = None, bias: Tensor | None = None, *,
    epsilon: float = 1e-12, outputs: int,
) -> Any:  # fmt: skip
    """The sum is the fourth result; the second and third are not used by anyone (onnxruntime leaves them out)."""
    added = x + skip if bias is None else x + skip + bias
    y = F.layer_norm(added, [added.shape[-1]], gamma, beta, epsilon)
    return (y, None, None, added)[:outputs] if outputs > 1 else y


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def group_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    opset: int,
) -> Tensor:
    """Before opset 21 scale and bias are those of groups, from then on of channels."""
    if opset < 21:
        scale, bias = (item.repeat_interleave(x.shape[1] // num_groups) for item in (scale, bias))
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def mean_variance_norm(x: Tensor, *, axes: list[int] | None = None) -> Tensor:
    dims = [0, 2, 3] if axes is None else axes
    centred = x - x.mean(dims, keepdim=True)
    return centred / (torch.sqrt((centred * centred).mean(dims, keepdim=True)) + 1e-9)


def lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    return F.normalize(x, p, axis, eps=torch.finfo(x.dtype).tiny)


def local_response_norm(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """The window of an even size reaches further to the later channels, unlike torch's."""
    before = (size - 1) // 2
    squares = F.pad((x * x).flatten(2), [0, 0, before, size - 1 - before])
    total = sum(
        (squares[:, place : place + x.shape[1]] for place in range(1, size)), squares[:, : x.shape[1]]
    )
    return x / (bias + alpha / size * total.reshape(x.shape)) ** beta
