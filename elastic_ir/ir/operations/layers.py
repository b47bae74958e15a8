"""Which tensors a layer holds and how it applies them, whichever dialect says so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """How a node applies a weight: ``inputs`` is the axis along which products are summed, ``outputs`` the other one.

    The axes are those of the weight as it is stored, also where an ONNX Transpose stands between. With ``groups``,
    the axis of the outputs (of a transposed convolution: of the inputs) counts all groups, the other one a single
    group.
    """

    weight: str | None  #: by name in :attr:`Graph.weights`; None where it is computed
    bias: str | None  #: None where there is none, or it is computed
    outputs: int
    inputs: int
    groups: int
    matrix: bool  #: a linear layer, whose weight has two axes; False for a convolution
    transposed: bool = False  #: a transposed convolution
    #: a product of the weight with the tensor, which then has its channels along rows
    weight_first: bool = False


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm in evaluation, with its tensors by name in :attr:`Graph.weights`; its channels lie along axis 1."""

    scale: str | None
    shift: str | None
    mean: str
    variance: str
    epsilon: float
