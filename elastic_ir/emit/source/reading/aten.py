"""ATen operations of torch.export as what an engineer writes: functions, methods of tensors, operators.

An export fixes what it saw: the mode, and every size. The mode comes back with the layers (a dropout is a module
again); sizes that follow the input are found by exporting a second time (:mod:`elastic_ir.emit.source.reading.sizes`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from elastic_ir.emit.source.expressions.expr import Expr, binary, call, group, index, lit, method, plain
from elastic_ir.emit.source.expressions.signatures import RENAMED, parameters
from elastic_ir.emit.source.reading.calls import (
    OPERATORS,
    Unwritable,
    convert,
    function_call,
    identifier,
)
from elastic_ir.ir.graph import Node, Value, WeightRef

_NONE = lit(None)
_WHOLE = group("slice", (_NONE,) * 3)


def call_of_aten(node: Node, given: tuple[Any, ...], later: Callable[[Value], bool]) -> Expr:
    """A node of an exported graph as an expression; raises Unwritable for what has no plain counterpart.

    ``given`` are its arguments, with expressions where a number follows the input.
    """
    args = [convert(item) for item in given]
    if "getitem" in node.op:
        return index(*args)
    parts = node.op.split(".")
    if parts[0] != "aten" or len(parts) != 3:
        raise Unwritable(f"the network runs {node.op}, which has no counterpart among torch's functions")
    name, overload = identifier(parts[1], "the operation"), parts[2]
    options = {
        identifier(key, "the argument"): convert(item)
        for key, item in node.kwargs.items()
        if key not in ("device", "pin_memory", "layout") and item is not None
    }
    if name.endswith("_") and isinstance(node.args[0], Value) and later(node.args[0]):
        return method(name, *args, **options)
    operation = getattr(getattr(torch.ops.aten, name, None), overload, None)
    schema = operation._schema.arguments if operation is not None else ()
    base = name.removesuffix("_")
    if callable(getattr(functional, base, None)) and (base == "relu" or not hasattr(torch.Tensor, base)):
        return _functional(base, args, options, schema)
    special = _special(name, overload, args, options, node)
    if special is not None:
        return special
    if name in OPERATORS and len(args) == 2 and not options:
        return binary(OPERATORS[name], *args)
    ordered = not schema or schema[0].name == "self"  # ``where`` puts the condition first
    if args and isinstance(node.args[0], (Value, WeightRef)) and hasattr(torch.Tensor, name) and ordered:
        return _method(name, args, options)
    if not hasattr(torch._C._VariableFunctions, name):
        raise Unwritable(f"the network runs {node.op}, which has no counterpart among torch's functions")
    return call(f"torch.{name}", *args, **options)


def _functional(name: str, args: list[Expr], options: dict[str, Expr], schema: Any) -> Expr:
    """A call of torch.nn.functional, whose arguments have another order, and in part other names, than ATen's."""
    given: dict[str, Expr] = dict(zip((item.name for item in schema), args, strict=False)) | options
    if name == "pad" and not any(plain(given["pad"])):
        return args[0]
    usual = {item.name: lit(item.default_value) for item in schema if item.has_default_value()}
    named = {RENAMED.get(key, key): part for key, part in given.items() if part != usual.get(key)}
    accepted = parameters(f"F.{name}")
    return function_call(f"F.{name}", [], {key: part for key, part in named.items() if key in accepted})


def _method(name: str, args: list[Expr], options: dict[str, Expr]) -> Expr:
    """A method call; a list of sizes stands as separate arguments, as it is usually written."""
    if (
        name in ("view", "reshape", "expand", "permute", "repeat")
        and len(args) == 2
        and args[1].kind == "list"
    ):
        args = [args[0], *args[1].parts]
    return method(name, *args, **options)


def _special(name: str, overload: str, args: list[Expr], options: dict[str, Expr], node: Node) -> Expr | None:
    """Operations that are an index, a method of another name, or nothing in Python."""
    if name in ("slice", "select") and not options and (len(args) < 2 or args[1].kind == "lit"):
        axis = args[1].value if len(args) > 1 else 0
        if axis < 0:
            return None
        taken = args[2] if name == "select" else _slice(args[2:])
        return index(args[0], group("tuple", [*[_WHOLE] * axis, taken]) if axis else taken)
    if name == "index" and len(args) == 2 and args[1].kind == "list":
        places = [_WHOLE if part == _NONE else part for part in args[1].parts]
        return index(args[0], places[0] if len(places) == 1 else group("tuple", places))
    if name in ("softmax", "log_softmax") and overload == "int":
        return method(name, *args[:3])
    if name in ("to", "_to_copy"):
        kinds = [part for part in (*args[1:], *options.values()) if str(part.value).startswith("torch.")]
        return method("to", args[0], kinds[0]) if kinds else method("clone", args[0])
    if name == "alias" or (name in ("add", "sub") and args[1:] == [lit(0)]):
        return args[0]
    if name in ("detach_", "lift_fresh_copy", "lift_fresh"):
        return method("clone", args[0])
    if name == "rsub" and len(args) == 2:
        return binary("-", args[1], args[0])
    if name == "unsafe_split":
        return method("split", *args, **options)
    if name == "numpy_T" and node.output.type is not None and len(node.output.type.shape) <= 2:
        return method("t", *args)  # of more axes T is on its way out of torch
    return None


def _slice(given: list[Expr]) -> Expr:
    start, stop, step = (*given, *[_NONE] * (3 - len(given)))
    start = _NONE if start == lit(0) else start
    stop = _NONE if stop.kind == "lit" and stop.value is not None and stop.value >= 2**62 else stop
    return group("slice", (start, stop, step))
