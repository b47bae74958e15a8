"""Functions and constants by their names: what a graph in a file may name, and nothing else.

Only pure functions are found, so naming one in a file can do no harm: ``torch.load`` is not among them.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import EmitError

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Node

#: Functions outside torch that networks call as one node; pure, so naming one in a file can do no harm.
NAMED_FUNCTIONS = {
    "torchvision.ops.stochastic_depth.stochastic_depth",
    "torchvision.models.swin_transformer.shifted_window_attention",
    "torchvision.models.swin_transformer._get_relative_position_bias",
    "torchvision.models.swin_transformer._patch_merging_pad",
}
#: Among torch's own arithmetic, and no arithmetic: these reach files, or call what they are given.
_IMPURE = {"from_file", "frombuffer", "boolean_dispatch", "handle_torch_function"}
#: Methods of tensors that a file may not name: they lead out of tensors, or call what they are given.
_IMPURE_METHODS = {
    "apply_", "backward", "map_", "map2_", "module_load", "numpy", "register_hook",
    "register_post_accumulate_grad_hook", "set_", "share_memory_", "storage", "untyped_storage",
}  # fmt: skip
#: Functions of the module ``operator`` that compute, from numbers or from tensors.
OPERATORS = {
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "matmul", "getitem", "eq", "ne", "lt", "le",
    "gt", "ge", "and_", "or_", "xor", "not_", "iadd", "isub", "imul", "itruediv", "ifloordiv", "abs", "pos", "invert",
}  # fmt: skip

#: Attributes of tensors that a graph may read.
_ATTRIBUTES = {
    "shape", "dtype", "device", "T", "mT", "H", "mH", "ndim", "real", "imag", "is_cuda", "requires_grad",
}  # fmt: skip
#: What an export runs only to check what it assumed; nothing comes of them.
CHECKS = {
    "aten._assert_tensor_metadata.default",
    "aten._assert_scalar.default",
    "aten.sym_constrain_range.default",
}
#: ATen's operations that compute and have no function of their name in torch.
_ATEN = {
    "_unsafe_view", "alias", "lift_fresh", "lift_fresh_copy", "slice", "sym_numel", "sym_size", "sym_storage_offset",
    "sym_stride",
}  # fmt: skip
#: Torch's modules of arithmetic: ``torch.fft.rfft`` is ``torch._C._fft.fft_rfft``, and ``aten.fft_rfft`` in exports.
_ARITHMETIC = ("fft", "linalg", "special")


def resolve_symbol(name: str) -> Any:
    """``torch.float32`` and the like; EmitError for anything else."""
    import torch

    if name == "...":
        return Ellipsis
    if name.startswith("device."):
        return torch.device(name.removeprefix("device."))
    value = getattr(torch, name.removeprefix("torch."), None)
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        return value
    raise EmitError(f"{name} is not a constant of torch")


def method_allowed(name: str) -> bool:
    """Whether a graph from a file may call a method of this name: those of tensors that compute."""
    import torch

    plain = name.isidentifier() and not name.startswith("_") and name not in _IMPURE_METHODS
    return plain and callable(getattr(torch.Tensor, name, None))


def attribute_read(node: Node) -> str:
    """The attribute of a tensor that a ``getattr`` node reads; EmitError for what is not plain data of it."""
    name = node.args[1] if len(node.args) > 1 else None
    if name not in _ATTRIBUTES:
        raise EmitError(
            f"node %{node.name} reads the attribute {node.args[1:]!r}, which is not a plain tensor attribute"
        )
    return str(name)


def resolve_function(name: str, trusted: bool = False) -> Callable[..., Any]:
    """A function by its name: torch's own arithmetic, operators, and the few in ``NAMED_FUNCTIONS``.

    ``trusted`` graphs come from a live module of this process and may name any function that is loaded already.
    Nothing that reads files or runs code can be named from a file: ``torch.load`` is not found.
    """
    import torch

    owner, _, last = name.rpartition(".")
    found: Any = None
    if last in _IMPURE or last.startswith("__"):  # torch.__setattr__ would change torch itself
        found = None
    elif owner == "operator" and last in OPERATORS:
        found = getattr(operator, last)
    elif name in ("getattr", "builtins.getattr"):
        return getattr  # which attributes, the caller checks
    elif name.startswith("aten."):
        found = _aten_operation(name)
    elif owner == "math":
        found = getattr(math, last, None)
    elif (owner in ("torch", "torch.functional") and last in (*torch.functional.__all__, "_assert")) or (
        owner == "torch" and hasattr(torch._C._VariableFunctions, last)
    ):
        found = getattr(torch, last, None)
    elif owner == "torch.nn.functional":
        candidate = getattr(torch.nn.functional, last, None)
        if getattr(candidate, "__module__", "").startswith("torch") and not last.startswith("_"):
            found = candidate
    elif owner == "torch._C._nn":
        found = getattr(torch._C._nn, last, None)
    elif owner.removeprefix("torch._C._") in _ARITHMETIC:
        found = _arithmetic(last)
    elif trusted or name in NAMED_FUNCTIONS:
        if name in NAMED_FUNCTIONS:
            try:
                __import__(owner)
            except ImportError as error:
                raise EmitError(
                    f"the network calls {name}, and {owner} cannot be imported ({error})"
                ) from error
        found = getattr(sys.modules.get(owner), last, None)
    if found is None or not callable(found) or (isinstance(found, type) and not trusted):
        raise EmitError(f"the network calls {name}, which is not among the functions that a file may name")
    return found  # type: ignore[no-any-return]


def _aten_operation(name: str) -> Callable[..., Any] | None:
    """An operation of a torch.export, ``aten.add.Tensor``: those that are functions or methods of tensors as well."""
    import torch

    _, base, overload = name.split(".") if name.count(".") == 2 else ("", "", "")
    homes = (torch._C._VariableFunctions, torch._C._nn)
    known = base in _ATEN or method_allowed(base) or any(hasattr(home, base) for home in homes)
    known = known or _arithmetic(base) is not None
    if not base.isidentifier() or base in (*_IMPURE, *_IMPURE_METHODS) or not known:
        return None
    found = getattr(getattr(torch.ops.aten, base, None), overload, None)
    return found if isinstance(found, torch._ops.OpOverload) else None


def _arithmetic(name: str) -> Callable[..., Any] | None:
    """A built-in function of ``torch.fft``, ``torch.linalg`` or ``torch.special``: ``linalg_norm``; None for others."""
    import torch

    home = name.partition("_")[0]
    if home not in _ARITHMETIC or not name.isidentifier():
        return None
    return getattr(getattr(torch._C, f"_{home}"), name, None)
