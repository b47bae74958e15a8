"""Weights: named references to lazily read tensors, with mask and origin, and how layers apply them.

Two names that share one :class:`Storage` are tied (a shared embedding, ALBERT's layers); that is the only notion of
tying in the IR. A clone gets a storage of its own that refers to the same lazy tensor, which costs no bytes until
emission reads it. A weight is prunable by its form, not by a list of classes: it has two to five axes and belongs
neither to an embedding nor to a norm. Whether it is a layer, which makes a block a block, is another question: a packed
weight is one that no mask fits, and so is a parameter that the forward multiplies with by itself.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

from elastic_ir.tensors.lazy import Mask, MaskedData, TensorData

if TYPE_CHECKING:
    import torch

#: A recurrent layer's matrices: of a module of several layers, and of a cell.
_RECURRENT = re.compile(r"weight_(ih|hh|hr)(_l[0-9]+(_reverse)?)?")
_LOOKUP = re.compile(r"emb|wte|wpe|bias_table|position")  #: names of tables that are looked up
#: The number of a layer, behind which there are modules within modules.
_IN_LAYER = re.compile(r"(?:^|\.)[0-9]+\.(?=[^.]+\.[^.]+\.)")
#: Names of parameters that are no weights of layers though something is multiplied with them.
_TABLE = re.compile(_LOOKUP.pattern + r"|pos|token|rel_|_rel|codebook|prototype")
FLAX_WEIGHT = "kernel"  #: what Flax and Keras call the weight of a layer
#: Where torch stores what a weight is computed from: by hooks, and by ``torch.nn.utils.parametrize``.
_PARAMETRIZED = re.compile(
    r"(?P<owner>.*\.)?(?:parametrizations\.(?P<role>[^.]+)\.original[01]?|(?P<hooked>[^.]*weight[^.]*)_(?:v|orig))"
)
_NARROW = {"uint8", "int8", "int16", "uint16", "int32", "uint32"}  #: what packed weights are stored in
_BESIDE_PACKED = re.compile(r"scale|zero|absmax|quant_|index|ids$|mask|position|shape|token")


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


@dataclass(frozen=True, repr=False)
class Weight:
    """A parameter or buffer under its name in the state dict."""

    name: str
    storage: Storage = field(compare=False)
    origin: str  #: its name in its source network
    is_parameter: bool = True
    persistent: bool = True  #: False for buffers that a state dict leaves out
    #: the weight of a convolution or linear layer, or a matrix of a recurrent one, whose zeros are the zeros of what
    #: the layer multiplies with
    prunable: bool = False
    source: int = 0  #: the number of its source network in ``graph.edits.sources``
    layer: bool = (
        False  #: what makes a block a block: a layer multiplies with it, or with what is computed from it
    )

    @property
    def counted(self) -> bool:
        """Whether sparsity is counted over it: it is prunable, or a layer that has a mask all the same."""
        return self.prunable or (self.layer and self.mask is not None)

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

    def __repr__(self) -> str:
        """Short, and reads no tensor: ``<Weight 'fc.weight': float32 [10, 64]>``."""
        pruned = f", {self.mask.zeros / self.mask.size:.1%} pruned" if self.mask and self.mask.size else ""
        origin = f", from {self.origin!r}" if self.origin != self.name else ""
        return f"<Weight {self.name!r}: {self.dtype} {list(self.shape)}{pruned}{origin}>"


class Weights(dict[str, Weight]):
    """Weights by their names in the state dict; shown as a count, since a network has hundreds of them."""

    def __repr__(self) -> str:
        elements = sum(prod(weight.shape) for weight in self.values())
        return f"<{len(self)} weights, {elements:,} elements>"

    def emitted(self) -> dict[str, TensorData]:
        """Each tensor as it is emitted: tied names have one object, and a clone has another than its source.

        What a file keeps apart are objects (``torch.save`` writes a storage for each), whatever they read.
        """
        own = {id(weight.storage): copy.copy(weight.storage.emitted()) for weight in self.values()}
        return {name: own[id(weight.storage)] for name, weight in self.items()}


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

    fused = isinstance(owner, nn.MultiheadAttention) and role.endswith("_proj_weight")
    recurrent = isinstance(owner, (nn.RNNBase, nn.RNNCellBase)) and _RECURRENT.fullmatch(role)
    table = holds_table(owner)
    return 2 <= parameter.ndim <= 5 and bool(fused or recurrent or (role == "weight" and not table))


def holds_table(owner: torch.nn.Module) -> bool:
    """Whether a module is an embedding or a norm, whose weight of several axes is no matrix."""
    return hasattr(owner, "num_embeddings") or hasattr(owner, "normalized_shape")


def looks_prunable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a state dict is prunable, as far as its name and shape show.

    A table that is looked up has two axes; the convolution of a patch embedding has more.
    """
    plain = unparametrized(name, shape)
    role = plain.rpartition(".")[2]
    named = role.endswith("weight") or role == FLAX_WEIGHT or _RECURRENT.fullmatch(role) is not None
    return named and 2 <= len(shape) <= 5 and not _looked_up(plain, shape)


def looks_like_layer(name: str, shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a tensor of a state dict is the weight of a layer, as far as its name, shape and type show.

    Besides what is prunable it is a packed weight: several axes of narrow integers or of float8, and no scale.
    """
    return looks_prunable(name, shape) or (is_packed(name, shape, dtype) and not _looked_up(name, shape))


def is_packed(name: str, shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a tensor holds the packed numbers of a weight, so that its extents are not those of the layer."""
    narrow = dtype.startswith(("float8", "float4")) or dtype in _NARROW
    return narrow and len(shape) > 1 and not _BESIDE_PACKED.search(name.rpartition(".")[2].lower())


def unparametrized(name: str, shape: tuple[int, ...]) -> str:
    """The name that a weight has without its parametrization, for the tensor that is stored in its place.

    ``a.weight`` for weight norm's direction (``a.weight_v``, ``a.parametrizations.weight.original1``) and for the one
    tensor of any other (``a.weight_orig``, ``a.parametrizations.weight.original``); any other name as it is.
    """
    found = _PARAMETRIZED.fullmatch(name)
    if found is None or len(shape) < 2 or (name.endswith("0") and not spans_matrix(shape)):
        return name
    return f"{found['owner'] or ''}{found['role'] or found['hooked']}"


def applied_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A weight's extents as output channels, input channels and kernel; Flax has them the other way round."""
    return (*shape[:-3:-1], *shape[:-2]) if name.rpartition(".")[2] == FLAX_WEIGHT else shape


def computes_weights(module: torch.nn.Module) -> bool:
    """Whether hooks or ``torch.nn.utils.parametrize`` may compute a module's weights from other tensors."""
    hooks = {type(hook).__name__ for hook in module._forward_pre_hooks.values()}
    return "parametrizations" in module._modules or not hooks.isdisjoint(("WeightNorm", "SpectralNorm"))


def is_table(name: str) -> bool:
    """Whether a parameter is called as tables of embeddings and positions are."""
    return _TABLE.search(name.lower()) is not None


def may_be_multiplied(weight: Weight) -> bool:
    """Whether it is a parameter that a forward may multiply with by itself, for what is known without the forward."""
    return (
        weight.is_parameter and not weight.layer and spans_matrix(weight.shape) and not is_table(weight.name)
    )


def _looked_up(name: str, shape: tuple[int, ...]) -> bool:
    # what a tower of layers is called (``embed_image.encoder.layers.0.mlp.fc1``) is not what they are
    return len(shape) == 2 and _LOOKUP.search(_IN_LAYER.split(name.lower())[-1]) is not None


def spans_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a tensor is no vector that has been given axes of 1 to be spread along (weight norm's lengths)."""
    return sum(extent > 1 for extent in shape) > 1


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
