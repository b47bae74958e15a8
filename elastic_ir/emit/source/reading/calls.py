"""Nodes of torch.fx as expressions: torch's functions, methods of tensors and operators, by an allow-list of names.

The graph may come from a file, and what is made here becomes source text that is run: whatever is not a plain
identifier or a function that a file may name is refused (see :mod:`elastic_ir.ir.functions`).
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn import functional

from elastic_ir.emit.graph_modules.from_torch import _ATTRIBUTES
from elastic_ir.emit.source.expressions.expr import (
    Expr,
    binary,
    call,
    index,
    lit,
    literal,
    method,
    plain,
    raw,
)
from elastic_ir.emit.source.expressions.print import same
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
#: Arguments that are usually written without their names.
_LEADING = {
    "input", "weight", "bias", "running_mean", "running_var", "normalized_shape", "num_groups", "pad", "p",
    "attn_mask",
}  # fmt: skip
#: Arguments of ATen by the names that torch.nn.functional has for them.
RENAMED = {"self": "input", "indices": "input", "train": "training"}
_EMPTY = inspect.Parameter.empty
TRAINING = raw("self.training")


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
    """A call of a function by its text; arguments that are the function's own defaults are left out.

    torch.fx bakes in the mode that it saw; a ``training`` argument follows the module's mode again.
    """
    accepted = parameters(text)
    if not accepted:
        return call(text, *args, **options)
    given = dict(zip(accepted, args, strict=False)) | options
    if "training" in accepted:
        by_batch = text in ("F.batch_norm", "F.instance_norm") and given.get(
            "running_mean", lit(None)
        ) == lit(None)
        if given.get("training", lit(None)).kind == "lit" and not by_batch:
            given["training"] = TRAINING
    shown: list[Expr] = []
    named: dict[str, Expr] = {}
    ordered = True
    for name, default in accepted.items():
        if name not in given or same(_uniform(default), _uniform(plain(given[name]))):
            ordered = False
            continue
        placed = name in list(accepted)[: max(len(args), 1)] and name not in options
        ordered = ordered and (name in _LEADING or default is _EMPTY or placed)
        if ordered:
            shown.append(given[name])
        else:
            named[name] = given[name]
    return call(text, *shown, **named)


@cache
def parameters(text: str) -> dict[str, Any]:
    """The parameters of a function of ``torch.nn.functional`` with their defaults; empty where they are not known.

    They are those of Python's signature, or of ATen's schema, under the names that Python has for them.
    """
    home, _, name = text.partition(".")
    if home != "F" or not hasattr(functional, name):
        return {}
    try:
        found = inspect.signature(getattr(functional, name)).parameters.values()
    except (ValueError, TypeError):
        found = ()  # type: ignore[assignment]  # a function that is not written in Python
    if found and all(item.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for item in found):
        return {item.name: item.default for item in found}
    schema = getattr(getattr(getattr(torch.ops.aten, name, None), "default", None), "_schema", None)
    return {
        RENAMED.get(item.name, item.name): item.default_value if item.has_default_value() else _EMPTY
        for item in (schema.arguments if schema is not None else ())
    }


def _uniform(value: Any) -> Any:
    """One number for a size that is the same along every axis."""
    return value[0] if isinstance(value, (tuple, list)) and len(set(map(repr, value))) == 1 else value
