"""PyTorch's operations in the terms of :mod:`elastic_ir.ir.operations`: names, in-place forms, and layers' weights.

An operation is a module (``nn.Conv2d``), a function (``torch.nn.functional.relu``, ``operator.add``), a method
(``method.add_``), or one of ATen's (``aten.add.Tensor``). No torch is imported: everything is known by its name.
"""

from __future__ import annotations

import re

from elastic_ir.ir.graph import Argument, Node, WeightRef
from elastic_ir.tensors.weights import BatchNorm, Layer

#: Where functions without hidden effects live; a module is one of ``torch.nn``.
_HOMES = {
    "torch", "torch.functional", "torch.nn.functional", "torch._C._nn", "torch._C._fft", "torch._C._linalg",
    "torch._C._special", "operator", "math", "method", "builtins", "",
}  # fmt: skip
#: Several names of one operation.
_SYNONYMS = {
    "multiply": "mul", "truediv": "div", "divide": "div", "subtract": "sub", "concat": "cat", "concatenate": "cat",
}  # fmt: skip
#: Operators of Python that write into a tensor on their left, without the ``i``; ``setitem`` is one as well.
_AUGMENTED = {"add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"}
_NORM_ROLES = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
_CONVOLUTION = re.compile(r"conv(transpose)?[123]d$")


def spelled(op: str) -> str:
    """The last part of an operation's name in lower case, without ATen's overload: ``add_`` of ``aten.add_.Tensor``."""
    parts = op.split(".")
    return (parts[1] if parts[0] == "aten" and len(parts) > 2 else parts[-1]).lower()


def canonical(op: str) -> str:
    """An operation's one name: ``add`` for ``operator.iadd``, ``torch.add`` and ``aten.add_.Tensor``."""
    plain = spelled(op).replace("_", "")
    if plain[:1] == "i" and plain[1:] in _AUGMENTED:
        plain = plain[1:]
    return _SYNONYMS.get(plain, plain)


def is_known(op: str, kind: str) -> bool:
    """Whether it is PyTorch's or Python's own operation of that name, and not somebody else's."""
    place = op.rpartition(".")[0]
    if kind == "module":
        return place == "nn"
    if op.startswith("aten.") or place in _HOMES:
        return True
    from elastic_ir.ir.functions import NAMED_FUNCTIONS

    return op in NAMED_FUNCTIONS


def writes_by_name(op: str, kind: str) -> bool:
    """Whether the name says that it writes into its first operand: ``add_``, ``operator.iadd``, ``setitem``."""
    if kind == "module":
        return False
    name = spelled(op)
    plain = name.replace("_", "")
    augmented = plain == "setitem" or (plain[:1] == "i" and plain[1:] in _AUGMENTED)
    trailing = name.endswith("_") and not name.endswith("__")
    return trailing or (op.startswith("operator.") and augmented)


def layer_of(node: Node) -> Layer | None:
    """How a convolution or linear layer, a module or a function, applies its weight; None for anything else."""
    name = canonical(node.op)
    found = _CONVOLUTION.match(name)
    if not is_known(node.op, node.kind) or not (found or name in ("linear", "convolution")):
        return None
    transposed = bool(found and found[1])
    given: dict[str, Argument] = {}
    if node.kind == "module":
        plain = set(node.weights) <= {"weight", "bias"}  # a parametrization computes the weight from others
        given = {role: WeightRef(held) for role, held in node.weights.items() if plain or role == "bias"}
        given["groups"] = node.attributes.get("groups", 1)
    else:
        names = ["", "weight", "bias"]
        if name == "convolution":
            names += ["stride", "padding", "dilation", "transposed", "output_padding", "groups"]
        elif transposed:
            names += ["stride", "padding", "output_padding", "groups"]
        elif found:
            names += ["stride", "padding", "dilation", "groups"]
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        transposed = transposed or bool(given.get("transposed", False))
    groups = given.get("groups", 1)
    if not isinstance(groups, int):
        return None
    weight, bias = (
        item.name if isinstance(item, WeightRef) else None
        for item in (given.get("weight"), given.get("bias"))
    )
    outputs, inputs = (1, 0) if transposed else (0, 1)
    return Layer(weight, bias, outputs, inputs, groups, matrix=name == "linear", transposed=transposed)


def norm_of(node: Node) -> BatchNorm | None:
    """The tensors of a batch norm that is a module and keeps statistics; None for anything else.

    None also where a scale or shift is computed from other weights.
    """
    held, epsilon = node.weights, node.attributes.get("eps")
    plain = node.kind == "module" and {"running_mean", "running_var"} <= set(held) <= _NORM_ROLES
    if not plain or not isinstance(epsilon, (int, float)):
        return None
    return BatchNorm(
        held.get("weight"), held.get("bias"), held["running_mean"], held["running_var"], float(epsilon)
    )
