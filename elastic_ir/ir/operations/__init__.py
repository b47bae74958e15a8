"""What an operation is: one name for it in every dialect, its traits, and which weight a layer applies, and how.

Everything that asks about operations asks here: analyses, clean-up passes, channels, patterns, depth. What a dialect
calls an operation is known to its adapter alone (``torch_dialect.py``, ``onnx_dialect.py``). Names are
PyTorch's in lower case without underscores and without the mark of in-place forms; a *family* is a name without the
number of axes: ``conv`` of ``conv2d``. A trait is listed by family or by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Flag, auto
from functools import lru_cache
from typing import TypeAlias

from elastic_ir.ir.graph import Node, Value, WeightRef
from elastic_ir.ir.operations import torch_dialect
from elastic_ir.tensors.weights import BatchNorm, Layer

__all__ = [
    "RANDOM_BY", "BatchNorm", "Layer", "Operation", "Slot", "Trait", "bias_slot", "has", "is_product", "is_sum",
    "kind_of", "known_kind", "layer_of", "norm_of", "norm_slots", "operation_of", "reads_form_only",
    "recurrent_layers", "tensor_in", "written",
]  # fmt: skip


#: Where a node holds a tensor: the role of a module's weight, or the place of an operand.
Slot: TypeAlias = "str | int"


class Trait(Flag):
    """What is known of an operation by its name."""

    POINTWISE = auto()  #: element by element, from one tensor
    ACTIVATION = auto()  #: what networks put between layers so that these are not one linear map
    IDEMPOTENT = auto()  #: applied twice it gives what it gives once
    SAME = auto()  #: gives its first operand as it is, in evaluation
    CAST = auto()  #: gives its first operand in another type or on another device
    ARITHMETIC = auto()  #: two operands, element by element
    SUM = auto()  #: adds its operands
    PRODUCT = auto()  #: multiplies its operands
    POOL = auto()  #: channel by channel; the mean or the largest of equal values is that value
    RESIZE = auto()  #: changes extents behind the channels, and leaves a constant channel as it is
    HOMOGENEOUS = auto()  #: zeros stay zeros, and a multiple of the first operand gives that multiple
    RESHAPE = auto()  #: keeps the elements and their order
    LIKE_FIRST = auto()  #: the result has the extents of the first operand
    NONNEGATIVE = auto()  #: results are never negative
    NORMALISER = auto()  #: a part of what a norm divides by
    CONTRACTS = auto()  #: sums products with a weight, if it has one
    LOOKUP = auto()  #: looks rows of a table up
    DROPOUT = auto()  #: sets parts to zero at random in training
    RANDOM = auto()  #: draws from the random generator; dropouts do so in training
    STATEFUL = auto()  #: may keep running statistics in training
    EFFECT = auto()  #: raises, prints, or changes something that is not a tensor
    FRESH = auto()  #: always gives a tensor of its own; any other result may share memory with what was read
    FORM = auto()  #: as a method, reads a tensor's form and never its numbers
    CHANGES_FORM = auto()  #: in place, changes a tensor's shape, and so what reads its form


_NAMES: dict[Trait, str] = {
    Trait.POINTWISE: "relu relu6 leakyrelu thresholdedrelu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh"
    " sigmoid tanh softplus softsign logsigmoid neg abs exp log sqrt erf reciprocal clip clamp",
    Trait.ACTIVATION: "relu relu6 leakyrelu thresholdedrelu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh"
    " sigmoid tanh softplus softsign logsigmoid threshold prelu rrelu glu",
    Trait.IDEMPOTENT: "relu relu6 hardtanh threshold",
    Trait.SAME: "identity dropout featuredropout alphadropout featurealphadropout stochasticdepth droppath"
    " contiguous clone alias assert",
    Trait.CAST: "to tocopy float half typeas",
    Trait.ARITHMETIC: "add sub mul div",
    Trait.SUM: "add",
    Trait.PRODUCT: "mul",
    Trait.POOL: "maxpool avgpool adaptiveavgpool adaptivemaxpool",
    Trait.RESIZE: "upsample upsamplingnearest upsamplingbilinear interpolate",
    Trait.HOMOGENEOUS: "permute transpose roll getitem slice mul div chunk split pad expand narrow",
    Trait.RESHAPE: "view reshape unsafeview flatten unflatten squeeze unsqueeze",
    Trait.LIKE_FIRST: "detach roll cumsum triu tril maskedfill logsoftmax softmax layernorm groupnorm rmsnorm prelu"
    " flip scaleddotproductattention",
    Trait.NONNEGATIVE: "relu relu6 sigmoid hardsigmoid abs exp",
    Trait.NORMALISER: "rsqrt sqrt reciprocal norm linalgvectornorm",
    Trait.DROPOUT: "dropout alphadropout featuredropout featurealphadropout stochasticdepth droppath",
    Trait.RANDOM: "rand randn randint randperm randlike randnlike randintlike normal bernoulli multinomial poisson"
    " uniform exponential rrelu gumbelsoftmax fractionalmaxpool randomnormal randomuniform randomnormallike"
    " randomuniformlike",
    Trait.STATEFUL: "batchnorm syncbatchnorm instancenorm",
    Trait.EFFECT: "assert assertasync check checkissize print manualseed seed setgradenabled setdefaultdtype"
    " setnumthreads setrngstate backward registerhook apply map save symconstrainrange",
    Trait.FRESH: "conv convtranspose linear bilinear matmul bmm mm addmm baddbmm embedding add sub mul div pow neg exp"
    " abs sqrt rsqrt relu relu6 gelu silu elu selu celu mish leakyrelu prelu hardswish hardsigmoid hardtanh sigmoid"
    " tanh softplus softmax logsoftmax batchnorm layernorm groupnorm rmsnorm instancenorm localresponsenorm maxpool"
    " avgpool adaptiveavgpool adaptivemaxpool cat stack mean sum clone scaleddotproductattention",
    Trait.FORM: "size dim ndimension numel isfloatingpoint",
    Trait.CHANGES_FORM: "resize resizeas set squeeze unsqueeze t transpose swapaxes swapdims",
}
#: What one trait says of others.
_IMPLIED = {
    Trait.SAME: Trait.HOMOGENEOUS | Trait.LIKE_FIRST,
    Trait.POINTWISE: Trait.LIKE_FIRST,
    Trait.CAST: Trait.HOMOGENEOUS | Trait.LIKE_FIRST,
    Trait.RESHAPE: Trait.HOMOGENEOUS,
    Trait.DROPOUT: Trait.RANDOM,
}
#: Open classes, recognised by an operation's whole name, whoever made it: ``my.attention`` contracts.
_BY_NAME = {
    Trait.CONTRACTS: re.compile(r"conv|(?<!quantize)linear|mm|matmul|einsum|attention", re.IGNORECASE),
    Trait.LOOKUP: re.compile(r"embedding|^onnx\.Gather$", re.IGNORECASE),
}
#: Random where an option says so: the option's name.
RANDOM_BY = {
    "scaleddotproductattention": "dropout_p", "multiheadattention": "dropout", "lstm": "dropout", "gru": "dropout",
    "rnn": "dropout", "transformerencoderlayer": "dropout", "transformerdecoderlayer": "dropout",
}  # fmt: skip
#: The place of ``inplace`` among the arguments of a function of torch.
_INPLACE = {
    "relu": 1, "relu6": 1, "silu": 1, "selu": 1, "mish": 1, "hardswish": 1, "hardsigmoid": 1, "elu": 2, "celu": 2,
    "leakyrelu": 2, "hardtanh": 3, "threshold": 3, "rrelu": 4, **dict.fromkeys(_NAMES[Trait.DROPOUT].split(), 3),
}  # fmt: skip
_FORM_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad"}
_RECURRENT = {"lstm", "gru", "rnn", "rnntanh", "rnnrelu"}
_AXES = re.compile(r"\d+d$")
_NONE = Trait(0)


@dataclass(frozen=True)
class Operation:
    """What a node's operation is, whichever dialect names it."""

    name: str  #: the one name: ``conv2d``, ``add``, ``batchnorm``
    spelled: str  #: as its dialect calls it, in the same letters: ``iadd``, ``batchnormalization``
    family: str  #: without the number of axes: ``conv``
    traits: Trait
    #: the dialect's own, of which hidden effects are known; False for somebody else's of that name
    known: bool
    writes: bool  #: its name says that it writes into its first operand


def _all_traits() -> dict[str, Trait]:
    table: dict[str, Trait] = {}
    for trait, names in _NAMES.items():
        for name in names.split():
            table[name] = table.get(name, _NONE) | trait | _IMPLIED.get(trait, _NONE)
    return table


_TRAITS = _all_traits()


@lru_cache(maxsize=4096)
def _operation(op: str, kind: str) -> Operation:
    spelled = torch_dialect.spelled(op).replace("_", "")
    if kind == "onnx":
        from elastic_ir.ir.operations import onnx_dialect  # networks of PyTorch do without it

        name, known, writes = onnx_dialect.canonical(op), onnx_dialect.is_known(op), False
    else:
        name, known = torch_dialect.canonical(op), torch_dialect.is_known(op, kind)
        writes = torch_dialect.writes_by_name(op, kind)
    family = _AXES.sub("", name)
    traits = _TRAITS.get(name, _NONE) | _TRAITS.get(family, _NONE)
    for trait, pattern in _BY_NAME.items():
        if pattern.search(op):
            traits |= trait
    return Operation(name, spelled, family, traits, known, writes)


def operation_of(node: Node) -> Operation:
    """A node's operation: its name in every dialect, its traits, and whether it is the dialect's own."""
    return _operation(node.op, node.kind)


def kind_of(node: Node) -> str:
    """The one name of a node's operation: ``relu`` for ``nn.ReLU``, ``method.relu_`` and ``aten.relu.default``."""
    return operation_of(node).name


def known_kind(node: Node) -> str:
    """The name of a node's operation where it is the dialect's own; "" for somebody else's, inputs and weights."""
    operation = operation_of(node)
    return operation.name if operation.known and node.kind in ("module", "function", "method", "onnx") else ""


def has(node: Node, trait: Trait) -> bool:
    """Whether a node's operation has a trait, or any of several."""
    return bool(operation_of(node).traits & trait)


def is_sum(node: Node) -> bool:
    """Whether a node is an addition of the dialect's own."""
    operation = operation_of(node)
    return operation.known and Trait.SUM in operation.traits


def is_product(node: Node) -> bool:
    """Whether a node is a multiplication, element by element, of the dialect's own."""
    operation = operation_of(node)
    return operation.known and Trait.PRODUCT in operation.traits


def reads_form_only(node: Node) -> bool:
    """Whether a node reads a tensor's shape or type, and none of its numbers."""
    if node.kind == "onnx":
        return known_kind(node) in ("shape", "size")
    if kind_of(node) == "getattr":
        return len(node.args) > 1 and node.args[1] in _FORM_ATTRIBUTES
    return node.kind == "method" and has(node, Trait.FORM)


def written(node: Node) -> list[Value | WeightRef]:
    """The operands that a node writes into; none for ONNX, whose values never change."""
    if node.kind in ("onnx", "input", "output", "weight", "constant"):
        return []
    found: list[Value | WeightRef] = []
    operation = operation_of(node)
    flagged = node.attributes.get("inplace", node.kwargs.get("inplace", False))
    at = _INPLACE.get(operation.name, _INPLACE.get(operation.family))
    if node.op.startswith("torch.") and at is not None and len(node.args) > at:
        flagged = flagged or node.args[at]
    if operation.writes or flagged:
        target = node.args[0] if node.args else node.kwargs.get("input")
        if isinstance(target, WeightRef) or (isinstance(target, Value) and target.is_tensor):
            found.append(target)
    out = node.kwargs.get("out")
    for item in out if isinstance(out, (list, tuple)) else (out,):
        if isinstance(item, (Value, WeightRef)):
            found.append(item)
    return found


def layer_of(node: Node) -> Layer | None:
    """How a node applies its weight: of a convolution, a linear layer or an ONNX product with a matrix; else None."""
    if node.kind != "onnx":
        return torch_dialect.layer_of(node)
    from elastic_ir.ir.operations import onnx_dialect

    return onnx_dialect.layer_of(node)


def norm_of(node: Node) -> BatchNorm | None:
    """The tensors of a batch norm that applies the statistics it holds, a module or ONNX's; None for anything else."""
    operation = operation_of(node)
    if operation.family != "batchnorm" or not operation.known:
        return None
    if node.kind != "onnx":
        return torch_dialect.norm_of(node)
    from elastic_ir.ir.operations import onnx_dialect

    return onnx_dialect.norm_of(node)


def recurrent_layers(node: Node) -> int:
    """How many recurrent layers a node runs; 0 where it is none of them."""
    if known_kind(node).removesuffix("cell") not in _RECURRENT:
        return 0
    count = node.attributes.get("num_layers", 1)
    if node.op.startswith(("aten.", "torch.")) and not node.op.endswith("_cell.default"):
        count = node.args[4] if len(node.args) > 4 else 1
    return count if isinstance(count, int) else 1


def bias_slot(node: Node) -> Slot:
    """Where a convolution or linear layer holds its bias, or would hold one."""
    return "bias" if node.kind == "module" else 2


def norm_slots(node: Node) -> tuple[Slot, Slot, Slot, Slot]:
    """Where a batch norm holds its scale, shift, mean and variance."""
    return (1, 2, 3, 4) if node.kind == "onnx" else ("weight", "bias", "running_mean", "running_var")


def tensor_in(node: Node, slot: Slot) -> str | None:
    """The name of the weight in a slot of a node; None where there is none, or something computed."""
    if isinstance(slot, str):
        return node.weights.get(slot)
    given = node.args[slot] if slot < len(node.args) else None
    return given.name if isinstance(given, WeightRef) else None
