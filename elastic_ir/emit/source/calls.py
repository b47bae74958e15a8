"""Nodes as expressions: torch's functions, methods of tensors and operators, by an allow-list of names.

The graph may come from a file, and what is made here becomes source text that is run: whatever is not a plain
identifier or a function that a file may name is refused (see :mod:`elastic_ir.ir.functions`).

ATen operations of torch.export become what an engineer writes. An export fixes what it saw: the mode, and every size.
The mode comes back with the layers (a dropout is a module again); sizes that follow the input are found by exporting a
second time (:mod:`elastic_ir.emit.source.sizes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from elastic_ir.emit.source.expr import Expr, binary, call, group, index, lit, literal, method, plain, raw
from elastic_ir.emit.source.signatures import RENAMED, parameters, schema
from elastic_ir.emit.source.text import identifier
from elastic_ir.errors import EmitError
from elastic_ir.ir.functions import attribute_read, method_allowed, resolve_function, resolve_symbol
from elastic_ir.ir.graph import Literal, Node, Symbol, Value, WeightRef
from elastic_ir.ir.operations import kind_of, written

#: Python's operators by the names of the operations.
_OPERATORS = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "floordivide": "//", "mod": "%", "remainder": "%",
    "pow": "**", "matmul": "@", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "and": "&",
    "bitwiseand": "&", "or": "|", "bitwiseor": "|", "xor": "^",
}  # fmt: skip
_UNARY = {"neg": "-", "pos": "+", "invert": "~"}
#: The functions that a graph of torch.fx may call, as the text of their modules.
_HOMES = {
    "operator": "", "math": "math.", "torch": "torch.", "torch.functional": "torch.", "torch.nn.functional": "F.",
    "torch._C._nn": "F.",
}  # fmt: skip
#: Methods that take a list of sizes as separate arguments too, as they are usually written.
_SPREAD = ("view", "reshape", "expand", "permute", "repeat")
_TRAINING = raw("self.training")
_NONE = lit(None)
_WHOLE = group("slice", (_NONE,) * 3)

#: Says whether a value or a weight is read again after the node at hand.
Later = Callable[[Value | WeightRef], bool]


class Unwritable(EmitError):
    """A call that has no counterpart among torch's functions; another reading of the network may do without it."""


def convert(item: Any) -> Expr:
    """An argument of a node; values stay locals by themselves, weights attributes by their full paths."""
    return literal(item, _leaf)


def convert_options(options: Mapping[str, Any]) -> dict[str, Expr]:
    """Arguments of a node by their names."""
    return {identifier(name, "the argument"): convert(item) for name, item in options.items()}


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
        value = resolve_symbol(item.name)
        device = f'torch.device("{value}")' if isinstance(value, torch.device) else str(value)
        return raw("..." if value is Ellipsis else device)
    if isinstance(item, Literal):
        data = torch.tensor(item.values).reshape(item.shape).tolist()
        return call("torch.tensor", literal(data), dtype=_leaf(Symbol(f"torch.{item.dtype}")))
    if item is not None and not isinstance(item, (bool, int, float, complex, str)):
        raise EmitError(f"a {type(item).__name__} stands in the graph and has no text")
    return lit(item)


def function_call(text: str, args: list[Expr], options: dict[str, Expr]) -> Expr:
    """A call of a function by its text, with all arguments by name where those are known.

    A tracer bakes in the mode that it saw; a ``training`` argument follows the module's mode again.
    """
    accepted = parameters(text)
    if not accepted:
        return call(text, *args, **options)
    given = dict(zip(accepted, args, strict=False)) | options
    by_batch = text in ("F.batch_norm", "F.instance_norm") and given.get("running_mean", _NONE) == _NONE
    if "training" in accepted and not by_batch and given.get("training", _NONE).kind == "lit":
        given["training"] = _TRAINING
    return call(text, **{name: given[name] for name in accepted if name in given})


# -- torch.fx ----------------------------------------------------------------------------------------------------------


def call_of_fx(node: Node, later: Later) -> Expr:
    """A function or method node of torch.fx as an expression."""
    args, options = [convert(item) for item in node.args], convert_options(node.kwargs)
    owner, _, last = node.op.rpartition(".")
    if node.kind == "method":
        if not method_allowed(last):
            raise EmitError(f"node %{node.name} calls {node.op}, which cannot be written as source")
        return method(last, *args, **options)
    if node.op == "torchvision.ops.stochastic_depth.stochastic_depth":
        return call("stochastic_depth", args[0], p=args[1], mode=args[2], training=_TRAINING)
    if last == "getattr" and owner in ("", "builtins"):
        return Expr("getattr", attribute_read(node), (args[0],))
    if owner not in _HOMES:
        raise Unwritable(f"the network calls {node.op}, which is not a function of torch")
    resolve_function(node.op)
    if owner == "torch._C._nn" and not hasattr(functional, last):
        raise Unwritable(f"the network calls {node.op}, which torch does not show to its users")
    if owner != "operator":
        return function_call(_HOMES[owner] + last, args, options)
    name = kind_of(node)
    if any(map(later, written(node))):  # who reads the old value afterwards finds it changed
        return method(f"{name}_", *args)
    if name in _OPERATORS:
        return binary(_OPERATORS[name], *args)
    if last in _UNARY:
        return Expr("unary", _UNARY[last], tuple(args))
    if last not in ("getitem", "abs"):
        raise EmitError(f"node %{node.name} calls {node.op}, which cannot be written as source")
    return index(*args) if last == "getitem" else call("abs", *args)


# -- torch.export ------------------------------------------------------------------------------------------------------


def call_of_aten(node: Node, given: tuple[Any, ...], later: Later) -> Expr:
    """A node of an exported graph as an expression; raises Unwritable for what has no plain counterpart.

    ``given`` are its arguments, with expressions where a number follows the input.
    """
    args = [convert(item) for item in given]
    if "getitem" in node.op:
        return index(*args)
    unwritable = Unwritable(f"the network runs {node.op}, which has no counterpart among torch's functions")
    if not node.op.startswith("aten.") or node.op.count(".") != 2:
        raise unwritable
    _, name, overload = node.op.split(".")
    identifier(name, "the operation")
    unsaid = ("device", "pin_memory", "layout")
    options = convert_options({k: v for k, v in node.kwargs.items() if k not in unsaid and v is not None})
    if any(map(later, written(node))):
        return method(name, *args, **options)
    accepted, base = schema(name, overload), name.removesuffix("_")
    if callable(getattr(functional, base, None)) and (base == "relu" or not hasattr(torch.Tensor, base)):
        named: dict[str, Expr] = dict(zip((item.name for item in accepted), args, strict=False)) | options
        if base == "pad" and not any(plain(named["pad"])):
            return args[0]
        # another order than ATen's, in part other names, and other defaults
        usual = {item.name: lit(item.default_value) for item in accepted if item.has_default_value()}
        known = parameters(f"F.{base}")
        said = {RENAMED.get(key, key): part for key, part in named.items() if part != usual.get(key)}
        return function_call(f"F.{base}", [], {key: part for key, part in said.items() if key in known})
    special = _special(name, overload, args, options, node)
    if special is not None:
        return special
    if kind_of(node) in _OPERATORS and len(args) == 2 and not options:
        return binary(_OPERATORS[kind_of(node)], *args)
    ordered = not accepted or accepted[0].name == "self"  # ``where`` puts the condition first
    if args and isinstance(node.args[0], (Value, WeightRef)) and hasattr(torch.Tensor, name) and ordered:
        spread = name in _SPREAD and len(args) == 2 and args[1].kind == "list"
        return method(name, args[0], *(args[1].parts if spread else args[1:]), **options)
    if not hasattr(torch._C._VariableFunctions, name):
        raise unwritable
    return call(f"torch.{name}", *args, **options)


def _special(name: str, overload: str, args: list[Expr], options: dict[str, Expr], node: Node) -> Expr | None:
    """Operations that are an index, a method of another name, or nothing in Python."""
    if name in ("slice", "select") and not options and (len(args) < 2 or args[1].kind == "lit"):
        axis, taken = args[1].value if len(args) > 1 else 0, args[-1]
        if axis < 0:
            return None
        if name == "slice":
            start, stop, step = (*args[2:], *[_NONE] * (5 - max(len(args), 2)))
            endless = stop.kind == "lit" and stop.value is not None and stop.value >= 2**62
            taken = group("slice", (_NONE if start == lit(0) else start, _NONE if endless else stop, step))
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
