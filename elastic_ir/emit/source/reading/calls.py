"""Nodes of torch.fx as expressions: torch's functions, methods of tensors and operators, by an allow-list of names.

The graph may come from a file, and what is made here becomes source text that is run: whatever is not a plain
identifier or a function that a file may name is refused (see :mod:`elastic_ir.ir.functions`).
"""

from __future__ import annotations

import keyword
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from elastic_ir.emit.module.from_torch import _ATTRIBUTES
from elastic_ir.emit.source.expressions.expr import (
    Expr,
    binary,
    call,
    index,
    lit,
    literal,
    method,
    raw,
)
from elastic_ir.emit.source.expressions.signatures import parameters
from elastic_ir.errors import EmitError
from elastic_ir.ir.functions import method_allowed, resolve_function, resolve_symbol
from elastic_ir.ir.graph import Literal, Node, Symbol, Value, WeightRef

#: Python's operators by the names of their functions, and by those of ATen; those in place as what they compute.
OPERATORS = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "and_": "&", "or_": "|", "xor": "^",
    "iadd": "+", "isub": "-", "imul": "*", "itruediv": "/", "add_": "+", "sub_": "-", "mul_": "*", "div_": "/",
    "div": "/", "floor_divide": "//", "remainder": "%", "bitwise_and": "&", "bitwise_or": "|", "__and__": "&",
    "__or__": "|",
}  # fmt: skip
_UNARY = {"neg": "-", "pos": "+", "invert": "~"}
_IN_PLACE = {"iadd": "add_", "isub": "sub_", "imul": "mul_", "itruediv": "div_"}
TRAINING = raw("self.training")
_NONE = lit(None)


def identifier(name: str, what: str) -> str:
    """A name that may stand in source text; EmitError for anything else."""
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        raise EmitError(f"{what} {name!r} is not a name in Python, so it cannot be written as source")
    return name


class Unwritable(EmitError):
    """A call that has no counterpart among torch's functions; another reading of the network may do without it."""


def convert(item: Any) -> Expr:
    """An argument of a node; values stay locals by themselves, weights attributes by their full paths."""
    return literal(item, _leaf)


def _leaf(item: Any) -> Expr:
    if isinstance(item, Value):
        if item.node.kind != "constant":
            return Expr("local", item)
        if not item.node.args:
            raise Unwritable("the network holds a constant tensor whose values the graph does not have")
        return convert(item.node.args[0])
    if isinstance(item, WeightRef):
        return Expr("attr", tuple(item.name.split(".")))
    if isinstance(item, Symbol):
        return raw(_symbol(item.name))
    if isinstance(item, Literal):
        data = torch.tensor(item.values).reshape(item.shape).tolist()
        return call("torch.tensor", literal(data), dtype=raw(_symbol(f"torch.{item.dtype}")))
    if item is not None and not isinstance(item, (bool, int, float, complex, str)):
        raise EmitError(f"a {type(item).__name__} stands in the graph and has no text")
    return lit(item)


def _symbol(name: str) -> str:
    value = resolve_symbol(name)
    if value is Ellipsis:
        return "..."
    return f'torch.device("{value}")' if isinstance(value, torch.device) else str(value)


def call_of(node: Node, later: Callable[[Value], bool]) -> Expr:
    """A function or method node as an expression; ``later`` says whether a value is read again afterwards."""
    args = [convert(item) for item in node.args]
    options = {identifier(name, "the argument"): convert(item) for name, item in node.kwargs.items()}
    if node.kind == "method":
        name = node.op.removeprefix("method.")
        if not method_allowed(name):
            raise EmitError(f"node %{node.name} calls {node.op}, which cannot be written as source")
        return method(name, *args, **options)
    if node.op == "torchvision.ops.stochastic_depth.stochastic_depth":
        return call("stochastic_depth", *args[:3], TRAINING)
    owner, _, last = node.op.rpartition(".")
    if last == "getattr" and owner in ("", "builtins"):
        if len(node.args) < 2 or node.args[1] not in _ATTRIBUTES:
            raise EmitError(
                f"node %{node.name} reads the attribute {node.args[1:]!r}, which is not a plain tensor attribute"
            )
        return Expr("getattr", node.args[1], (args[0],))
    homes = {"operator": "", "math": "math", "torch": "torch", "torch.functional": "torch",
             "torch.nn.functional": "F", "torch._C._nn": "F"}  # fmt: skip
    if owner not in homes:
        raise Unwritable(f"the network calls {node.op}, which is not a function of torch")
    resolve_function(node.op)
    if owner == "operator":
        return _operator(last, args, node, later)
    if owner == "torch._C._nn" and not hasattr(functional, last):
        raise Unwritable(f"the network calls {node.op}, which torch does not show to its users")
    return function_call(f"{homes[owner]}.{last}", args, options)


def _operator(name: str, args: list[Expr], node: Node, later: Callable[[Value], bool]) -> Expr:
    first = node.args[0]
    if name in _IN_PLACE and isinstance(first, Value) and first.is_tensor and later(first):
        return method(_IN_PLACE[name], *args)  # who reads the old value afterwards finds it changed
    if name in OPERATORS:
        return binary(OPERATORS[name], *args)
    if name == "getitem":
        return index(*args)
    if name in _UNARY:
        return Expr("unary", _UNARY[name], tuple(args))
    if name == "abs":
        return call("abs", *args)
    raise EmitError(f"node %{node.name} calls operator.{name}, which cannot be written as source")


def function_call(text: str, args: list[Expr], options: dict[str, Expr]) -> Expr:
    """A call of a function by its text, with all arguments by name where those are known.

    torch.fx bakes in the mode that it saw; a ``training`` argument follows the module's mode again.
    """
    accepted = parameters(text)
    if not accepted:
        return call(text, *args, **options)
    given = dict(zip(accepted, args, strict=False)) | options
    by_batch = text in ("F.batch_norm", "F.instance_norm") and given.get("running_mean", _NONE) == _NONE
    if "training" in accepted and not by_batch and given.get("training", _NONE).kind == "lit":
        given["training"] = TRAINING
    return call(text, **{name: given[name] for name in accepted if name in given})
