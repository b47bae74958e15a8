"""The operations of one run, counted from a traced graph's own shapes where all of its operations are known. No torch.

Convolutions and linear layers multiply as many times as their outputs have numbers and each has weights; what else
there is has to be among what multiplies nothing, or nothing is said: running the network on fake tensors then counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import MaskError
from elastic_ir.ir.graph import Graph, Node

if TYPE_CHECKING:
    from elastic_ir.tensors.weights import Weight

_LAYERS = frozenset({"nn.Conv1d", "nn.Conv2d", "nn.Conv3d", "nn.Linear"})
#: Modules and functions in which torch's counter counts nothing, by the last part of their names.
_QUIET = frozenset(
    """
    BatchNorm1d BatchNorm2d BatchNorm3d LayerNorm GroupNorm InstanceNorm2d Identity Dropout Dropout1d Dropout2d
    Flatten Unflatten ReLU ReLU6 LeakyReLU PReLU ELU SELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Sigmoid Tanh
    Softmax LogSoftmax Softplus MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d
    AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool2d ZeroPad2d ConstantPad2d Upsample PixelShuffle Embedding
    relu relu_ relu6 leaky_relu gelu silu sigmoid tanh softmax log_softmax hardswish hardsigmoid dropout layer_norm
    batch_norm group_norm max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d pad interpolate flatten cat
    stack add sub mul truediv neg mean sum permute transpose reshape view contiguous squeeze unsqueeze chunk split
    getitem getattr size shape stochastic_depth expand clone
    """.split()  # noqa: SIM905 - sixty words read better than sixty strings
)


@dataclass(frozen=True)
class ForwardCost:
    """Operations of one dense forward pass: those that multiply with a weight, by its plain name, and the rest."""

    weights: Mapping[str, int]
    rest: int  #: products of activations with each other (attention); no mask shrinks them

    @property
    def dense(self) -> int:
        """f_D: all of them."""
        return sum(self.weights.values()) + self.rest

    def sparse(self, masks: Mapping[str, Any]) -> float:
        """f_S: each layer's operations times its mask's density; layers without a mask count in full.

        Masks are zeros and ones of any dtype. Raises MaskError at a mask of a weight that the pass did not use.
        """
        return self.at({name: _density(mask) for name, mask in masks.items()})

    def at(self, densities: Mapping[str, float]) -> float:
        """f_S for densities by weight name, as :func:`~elastic_ir.analysis.pruning.distributions.densities` gives
        them.
        """
        for name in densities:
            if name not in self.weights:
                raise MaskError(f"{name!r} took no part in the forward pass whose cost was counted")
        return self.rest + sum(flops * densities.get(name, 1.0) for name, flops in self.weights.items())


def _density(mask: Any) -> float:
    import torch

    mask = mask if isinstance(mask, torch.Tensor) else torch.as_tensor(mask)
    return int(mask.count_nonzero()) / mask.numel() if mask.numel() else 0.0


def counted(graph: Graph) -> ForwardCost | None:
    """The operations of a graph of modules and functions; None where any of them is not known, or has no shape.

    >>> from elastic_ir import trace
    >>> from elastic_ir.zoo import cifar_resnet
    >>> found = counted(trace(cifar_resnet(20)))
    >>> found.dense if found is not None else None
    81625344
    """
    if graph.info.frontend != "fx" or not len(graph):
        return None
    first: dict[int, str] = {}
    for name, weight in graph.weights.items():
        first.setdefault(id(weight.storage), name)
    found: dict[str, int] = {}
    for node in graph:
        if node.kind in ("input", "output", "weight"):
            continue
        if node.op in _LAYERS:
            weight_of = graph.weights.get(node.weights.get("weight", ""))
            flops = _layer(node, weight_of) if weight_of is not None else None
            if weight_of is None or flops is None:
                return None
            name = first[id(weight_of.storage)]
            found[name] = found.get(name, 0) + flops
        elif node.op.rpartition(".")[2] not in _QUIET:
            return None
    return ForwardCost(found, 0)


def _layer(node: Node, weight: Weight) -> int | None:
    """Two operations for each weight of an output's row and each number of the output."""
    kind = node.output.type
    if kind is None or not kind.is_closed:
        return None
    return 2 * prod(kind.shape) * prod(weight.shape[1:])
