"""Nodes of torch.fx as expressions: torch's functions, methods of tensors and operators, by an allow-list of names.

The graph may come from a file, and what is made here becomes source text that is run: whatever is no plain identifier
or no function that a file may name is refused (see :mod:`elastic_ir.ir.functions`).
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from elastic_ir.emit.graph_modules.from_torch import _ATTRIBUTES
from elastic_ir.emit.source.expressions.expr import Expr, lit, literal, raw
from elastic_ir.emit.source.expressions.print import same
from elastic_ir.errors import EmitError
from elastic_ir.ir.functions import method_allowed, resolve_function, resolve_symbol
from elastic_ir.ir.graph import Literal, Node, Symbol, Value, WeightRef

#: Python's operators by the names of their functions; in-place ones become plain ones where that is the same.
BINARY = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "and_": "&", "or_": "|", "xor": "^",
    "iadd": "+", "isub": "-", "imul": "*", "itruediv": "/",
}  # fmt: skip
_UNARY = {"neg": "-", "pos": "+", "invert": "~"}
IN_PLACE = {"iadd": "add_", "isub": "sub_", "imul": "mul_", "itruediv": "div_"}
_HELPERS = {"torchvision.ops.stochastic_depth.stochastic_depth": "stochastic_depth"}
#: Arguments that are usually written without their names.
_LEADING = {
    "input",
    "weight",
    "bias",
    "running_mean",
    "running_var",
    "normalized_shape",
    "num_groups",
    "pad",
    "p",
}
TRAINING = raw("self.training")


def identifier(name: str, what: str) -> str:
    """A name that may stand in source text; EmitError for anything else."""
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        raise EmitError(f"{what} {name!r} is no name in Python, so it cannot be written as source")
    return name


class Unwritable(EmitError):
    """A call that has no counterpart among torch's functions; another reading of the network may do without it."""


def convert(item: Any) -> Expr:
    """An argument of a node; values stay locals by themselves, weights attributes by their full paths."""
    if isinstance(item, Expr):
        return item
    if isinstance(item, Value):
        if item.node.kind == "constant":
            if not item.node.args:
                raise Unwritable("the network holds a constant tensor whose values the graph does not have")
            return convert(item.node.args[0])
        return Expr("local", item)
    if isinstance(item, WeightRef):
        return Expr("attr", tuple(item.name.split(".")))
    if isinstance(item, Symbol):
        return raw(_symbol(item.name))
    if isinstance(item, Literal):
        data = torch.tensor(item.values).reshape(item.shape).tolist()
        return Expr(
            "call", "torch.tensor", (literal(data), raw(_symbol(f"torch.{item.dtype}"))), ("", "dtype")
        )
    if isinstance(item, (tuple, list)):
        return Expr(
            "tuple" if isinstance(item, tuple) else "list", None, tuple(convert(part) for part in item)
        )
    if isinstance(item, dict):
        for key in item:
            if not isinstance(key, str):
                raise EmitError(f"a dictionary has the key {key!r}, which is no string")
        return Expr("dict", None, tuple(convert(part) for part in item.values()), tuple(item))
    if isinstance(item, slice):
        return Expr("slice", None, tuple(convert(part) for part in (item.start, item.stop, item.step)))
    if item is not None and not isinstance(item, (bool, int, float, complex, str)):
        raise EmitError(f"a {type(item).__name__} stands in the graph and has no text")
    return lit(item)


def _symbol(name: str) -> str:
    value = resolve_symbol(name)
    if value is Ellipsis:
        return "..."
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    return str(value)


def call_of(node: Node, later: Callable[[Value], bool]) -> Expr:
    """A function or method node as an expression; ``later`` says whether a value is read again afterwards."""
    args = tuple(convert(item) for item in node.args)
    names = tuple(identifier(name, "the argument") for name in node.kwargs)
    options = tuple(convert(item) for item in node.kwargs.values())
    if node.kind == "method":
        name = node.op.removeprefix("method.")
        if not method_allowed(name):
            raise EmitError(f"node %{node.name} calls {node.op}, which cannot be written as source")
        return Expr("method", name, args + options, ("",) * len(args) + names)
    owner, _, last = node.op.rpartition(".")
    if node.op in _HELPERS:
        return function_call(_HELPERS[node.op], (*args[:3], TRAINING), {})
    if owner not in (
        "operator",
        "math",
        "torch",
        "torch.functional",
        "torch.nn.functional",
        "torch._C._nn",
    ) and (node.op not in ("getattr", "builtins.getattr")):
        raise Unwritable(f"the network calls {node.op}, which is no function of torch")
    resolve_function(node.op)
    if last == "getattr":
        if len(node.args) < 2 or node.args[1] not in _ATTRIBUTES:
            raise EmitError(
                f"node %{node.name} reads the attribute {node.args[1:]!r}, which is no plain tensor attribute"
            )
        return Expr("getattr", node.args[1], (args[0],))
    if owner == "operator":
        return _operator(last, args, node, later)
    if owner == "torch.nn.functional" or (owner == "torch._C._nn" and hasattr(functional, last)):
        return function_call(f"F.{last}", args, dict(zip(names, options, strict=True)))
    if owner == "torch._C._nn":
        raise Unwritable(f"the network calls {node.op}, which torch does not show to its users")
    owner = "torch" if owner == "torch.functional" else owner
    return function_call(f"{owner}.{last}", args, dict(zip(names, options, strict=True)))


def _operator(name: str, args: tuple[Expr, ...], node: Node, later: Callable[[Value], bool]) -> Expr:
    if (
        name in IN_PLACE
        and isinstance(node.args[0], Value)
        and node.args[0].is_tensor
        and later(node.args[0])
    ):
        return Expr(
            "method", IN_PLACE[name], args, ("", "")
        )  # who reads the old value afterwards finds it changed
    if name in BINARY:
        return Expr("binary", BINARY[name], args)
    if name == "getitem":
        return Expr("index", None, args)
    if name in _UNARY:
        return Expr("unary", _UNARY[name], args)
    if name == "abs":
        return Expr("call", "abs", args, ("",))
    raise EmitError(f"node %{node.name} calls operator.{name}, which cannot be written as source")


def function_call(text: str, args: tuple[Expr, ...], options: dict[str, Expr]) -> Expr:
    """A call of a function by its text; arguments that are the function's own defaults are left out.

    torch.fx bakes in the mode that it saw; a ``training`` argument follows the module's mode again.
    """
    accepted = _parameters(text)
    if accepted is None:
        return Expr("call", text, (*args, *options.values()), ("",) * len(args) + tuple(options))
    given = dict(zip(accepted, args, strict=False)) | options
    if "training" in accepted:
        current = given.get("training", lit(accepted["training"]))
        norm = text in ("F.batch_norm", "F.instance_norm")
        kept = norm and _is_none(given.get("running_mean", lit(None)))
        if current.kind == "lit" and not kept:
            given["training"] = TRAINING
    shown: list[Expr] = []
    names: list[str] = []
    positional = True
    for name, default in accepted.items():
        if name not in given or (given[name].kind == "lit" and same(default, given[name].value)):
            positional = False
            continue
        positional = positional and (
            name in _LEADING or (len(shown) < max(len(args), 1) and name not in options)
        )
        shown.append(given[name])
        names.append("" if positional else name)
    return Expr("call", text, tuple(shown), tuple(names))


def _parameters(text: str) -> dict[str, Any] | None:
    """The parameters of a function of ``torch.nn.functional`` with defaults; None where Python cannot tell."""
    if not text.startswith("F."):
        return None
    try:
        found = inspect.signature(getattr(functional, text[2:])).parameters
    except (ValueError, TypeError):
        return None
    if any(item.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD for item in found.values()):
        return None
    return {name: item.default for name, item in found.items()}


def positional_names(text: str) -> tuple[str, ...]:
    """The names of a function's positional arguments, where Python knows them."""
    known = {"torch.permute": ("input", "dims"), "stochastic_depth": ("x", "p", "mode", "training"),
             "torch.roll": ("input", "shifts", "dims")}  # fmt: skip
    return known.get(text) or tuple(_parameters(text) or ())


def _is_none(expr: Expr) -> bool:
    return expr.kind == "lit" and expr.value is None
