"""Weights: named references to lazily read tensors, with mask and origin, and how layers apply them.

Two names that share one :class:`Storage` are tied (a shared embedding, ALBERT's layers); that is the only notion of
tying in the IR. A clone gets a storage of its own that refers to the same lazy tensor, which costs no bytes until
emission reads it. A weight is prunable by its form, not by a list of classes: it has two to five axes and belongs
neither to an embedding nor to a norm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from elastic_ir.tensors.lazy import Mask, MaskedData, TensorData

if TYPE_CHECKING:
    import torch

#: A recurrent layer's matrices: of a module of several layers, and of a cell.
_RECURRENT = re.compile(r"weight_(ih|hh|hr)(_l[0-9]+(_reverse)?)?")
_LOOKUP = re.compile(r"emb|wte|wpe|bias_table|position")  #: names of tables that are looked up


@dataclass(eq=False)
class Storage:
    """One tensor of the network: lazy data and, if it is pruned, the mask. Identity is what ties names."""

    data: TensorData
    mask: Mask | None = None

    def clone(self) -> Storage:
        """An independent tensor with the same content; nothing is read."""
        return Storage(self.data, self.mask)

    def emitted(self, masked: bool = True) -> TensorData:
        """What emission writes: the stored values, zero wherever the mask is 0 unless ``masked`` is False."""
        return MaskedData(self.data, self.mask) if masked and self.mask is not None else self.data


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer under its name in the state dict."""

    name: str
    storage: Storage = field(compare=False)
    origin: str  #: its name in its source network
    is_parameter: bool = True
    persistent: bool = True  #: False for buffers that a state dict leaves out
    prunable: bool = False  #: the weight of a convolution or linear layer, or a matrix of a recurrent one
    source: int = 0  #: the number of its source network in ``graph.edits.sources``

    @property
    def shape(self) -> tuple[int, ...]:
        return self.storage.data.shape

    @property
    def dtype(self) -> str:
        return self.storage.data.dtype

    @property
    def mask(self) -> Mask | None:
        return self.storage.mask

    def renamed(self, name: str) -> Weight:
        return replace(self, name=name)


def ties_of(weights: Mapping[str, Weight]) -> dict[str, str]:
    """For each name that shares its tensor with an earlier one, the earliest of them."""
    first: dict[int, str] = {}
    earliest = {name: first.setdefault(id(weight.storage), name) for name, weight in weights.items()}
    return {name: one for name, one in earliest.items() if one != name}


def unlike(weight: Weight, data: TensorData, whose: str, *, cast: bool = False) -> str:
    """In what a tensor is unlike a weight: in shape or, unless it may be ``cast``, in dtype; "" where in neither."""
    if data.shape != weight.shape:
        return f"{weight.name} is {list(data.shape)}, {whose} has {list(weight.shape)}"
    if data.dtype != weight.dtype and not cast:
        return f"{weight.name} is {data.dtype}, {whose} has {weight.dtype} (cast it first)"
    return ""


def misfits(
    weights: Mapping[str, Weight], tensors: Mapping[str, TensorData], whose: str, where: str = "", *,
    cast: bool = False,
) -> list[str]:  # fmt: skip
    """Why tensors by name are not those of some weights: unlike, missing, unknown, or not the same where weights are.

    The bytes of tied ones alone are read. ``whose`` and ``where`` say in the text whose the weights are, and where the
    tensors.
    """
    return [
        *(
            why
            for name, weight in weights.items()
            if name in tensors and (why := unlike(weight, tensors[name], whose, cast=cast))
        ),
        *(f"{name} is missing" for name in weights if name not in tensors),
        *(f"{name} is unknown to it" for name in tensors if name not in weights),
        *(
            f"{one} and {name} are one tied weight there, but differ{where}"
            for name, one in ties_of(weights).items()
            if {one, name} <= tensors.keys() and not _same(tensors[one], tensors[name])
        ),
    ]


def _same(one: TensorData, other: TensorData) -> bool:
    """Whether two lazy tensors hold the same bytes, so that NaN equals itself."""
    alike = (one.shape, one.dtype) == (other.shape, other.dtype)
    return alike and b"".join(one.chunks()) == b"".join(other.chunks())


def first_few(problems: Sequence[str]) -> str:
    """The first three of some problems, and how many more there are."""
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return f"{'; '.join(problems[:3])}{more}"


def is_prunable(owner: torch.nn.Module, role: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter of a module, by its name there, is prunable.

    So are fused attention's input projection and the matrices of recurrent layers.
    """
    from torch import nn

    lookup = hasattr(owner, "num_embeddings") or hasattr(owner, "normalized_shape")
    fused = isinstance(owner, nn.MultiheadAttention) and role.endswith("_proj_weight")
    recurrent = isinstance(owner, (nn.RNNBase, nn.RNNCellBase)) and _RECURRENT.fullmatch(role)
    return 2 <= parameter.ndim <= 5 and bool(fused or recurrent or (role == "weight" and not lookup))


def looks_prunable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a state dict is prunable, as far as its name and shape show.

    A table that is looked up has two axes; the convolution of a patch embedding has more.
    """
    looked_up = len(shape) == 2 and _LOOKUP.search(name.lower())
    role = name.rpartition(".")[2]
    named = role.endswith("weight") or _RECURRENT.fullmatch(role) is not None
    return named and 2 <= len(shape) <= 5 and not looked_up


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
