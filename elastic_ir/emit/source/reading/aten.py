"""ATen operations of torch.export as what an engineer writes: functions, methods of tensors, operators.

An export fixes what it saw: the mode, and every size. The mode comes back with the layers (a dropout is a module
again); sizes that follow the input are found by exporting a second time (:mod:`elastic_ir.emit.source.reading.sizes`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from elastic_ir.emit.source.expressions.expr import Expr, lit
from elastic_ir.emit.source.reading.calls import Unwritable, convert, function_call, identifier
from elastic_ir.ir.functions import CHECKS
from elastic_ir.ir.graph import Node, Value, WeightRef

_BINARY = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**", "matmul": "@", "eq": "==", "ne": "!=", "lt": "<",
    "le": "<=", "gt": ">", "ge": ">=", "bitwise_and": "&", "bitwise_or": "|", "__and__": "&", "__or__": "|",
    "remainder": "%", "floor_divide": "//", "add_": "+", "mul_": "*", "div_": "/", "sub_": "-",
}  # fmt: skip
_DROPPED = {"device", "pin_memory", "layout"}
#: Arguments in the order of torch.nn.functional's own, by their places among ATen's.
_FUNCTIONS = {
    "linear": ("linear", ("input", "weight", "bias")),
    "conv1d": ("conv1d", ("input", "weight", "bias", "stride", "padding", "dilation", "groups")),
    "conv2d": ("conv2d", ("input", "weight", "bias", "stride", "padding", "dilation", "groups")),
    "conv3d": ("conv3d", ("input", "weight", "bias", "stride", "padding", "dilation", "groups")),
    "layer_norm": ("layer_norm", ("input", "normalized_shape", "weight", "bias", "eps")),
    "group_norm": ("group_norm", ("input", "num_groups", "weight", "bias", "eps")),
    "rms_norm": ("rms_norm", ("input", "normalized_shape", "weight", "eps")),
    "batch_norm": (
        "batch_norm",
        ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")),
    "embedding": ("embedding", ("weight", "input", "padding_idx")),
    "dropout": ("dropout", ("input", "p", "training")),
    "gelu": ("gelu", ("input",)),
    "relu": ("relu", ("input",)), "relu_": ("relu", ("input",)),
    "relu6": ("relu6", ("input",)), "relu6_": ("relu6", ("input",)),
    "silu": ("silu", ("input",)), "silu_": ("silu", ("input",)),
    "mish": ("mish", ("input",)),
    "elu": ("elu", ("input", "alpha")),
    "leaky_relu": ("leaky_relu", ("input", "negative_slope")),
    "hardswish": ("hardswish", ("input",)), "hardswish_": ("hardswish", ("input",)),
    "hardsigmoid": ("hardsigmoid", ("input",)), "hardsigmoid_": ("hardsigmoid", ("input",)),
    "softplus": ("softplus", ("input", "beta", "threshold")),
    "adaptive_avg_pool1d": ("adaptive_avg_pool1d", ("input", "output_size")),
    "adaptive_avg_pool2d": ("adaptive_avg_pool2d", ("input", "output_size")),
    "max_pool2d": ("max_pool2d", ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    "avg_pool2d": ("avg_pool2d", ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")),
    "pad": ("pad", ("input", "pad", "mode", "value")),
    "normalize": ("normalize", ("input",)),
    "pixel_shuffle": ("pixel_shuffle", ("input", "upscale_factor")),
}  # fmt: skip


def is_nothing(node: Node) -> bool:
    """Whether a node only checks what an export assumed."""
    return node.op in CHECKS


def call_of_aten(node: Node, given: tuple[Any, ...], later: Callable[[Value], bool]) -> Expr:
    """A node of an exported graph as an expression; raises Unwritable for what has no plain counterpart.

    ``given`` are its arguments, with expressions where a number follows the input.
    """
    if "getitem" in node.op:
        return Expr("index", None, tuple(convert(item) for item in given))
    parts = node.op.split(".")
    if parts[0] != "aten" or len(parts) != 3:
        raise Unwritable(f"the network runs {node.op}, which has no counterpart among torch's functions")
    name, overload = identifier(parts[1], "the operation"), parts[2]
    args = [convert(item) for item in given]
    options = {
        identifier(key, "the argument"): convert(item)
        for key, item in node.kwargs.items()
        if key not in _DROPPED and item is not None
    }
    if name.endswith("_") and isinstance(node.args[0], Value) and later(node.args[0]):
        return _method(name, args, options)
    if name in _FUNCTIONS:
        text, order = _FUNCTIONS[name]
        if name == "pad" and args[1].kind == "list" and all(part == lit(0) for part in args[1].parts):
            return args[0]
        return function_call(f"F.{text}", (), dict(zip(order, args, strict=False)) | options)
    if name == "numpy_T" and _rank(node) <= 2:
        return _method("t", args, options)  # of more axes T is on its way out of torch
    special = _special(name, overload, args, options)
    if special is not None:
        return special
    if name in _BINARY and len(args) == 2 and not options:
        return Expr("binary", _BINARY[name], tuple(args))
    if name == "scaled_dot_product_attention":
        return Expr("call", "F.scaled_dot_product_attention", (*args, *options.values()),
                    ("",) * len(args) + tuple(options))  # fmt: skip
    if name == "index" and len(args) == 2 and args[1].kind == "list":
        whole = Expr("slice", None, (lit(None),) * 3)
        taken = tuple(whole if part == lit(None) else part for part in args[1].parts)
        return Expr("index", None, (args[0], taken[0] if len(taken) == 1 else Expr("tuple", None, taken)))
    if args and isinstance(node.args[0], (Value, WeightRef)) and _is_method(name, overload):
        return _method(name, args, options)
    if hasattr(torch._C._VariableFunctions, name):
        text = f"torch.{name}"
    elif callable(getattr(functional, name, None)):
        text = f"F.{name}"
    else:
        raise Unwritable(f"the network runs {node.op}, which has no counterpart among torch's functions")
    return Expr("call", text, (*args, *options.values()), ("",) * len(args) + tuple(options))


def _rank(node: Node) -> float:
    """The number of axes of what a node gives; infinite where it is not known."""
    return len(node.output.type.shape) if node.output.type is not None else math.inf


def _is_method(name: str, overload: str) -> bool:
    """Whether a method of tensors takes the arguments in their order: ``where`` puts the condition before ``self``."""
    if not callable(getattr(torch.Tensor, name, None)):
        return False
    operation = getattr(getattr(torch.ops.aten, name, None), overload, None)
    return operation is None or operation._schema.arguments[0].name == "self"


def _method(name: str, args: list[Expr], options: dict[str, Expr]) -> Expr:
    """A method call; a list of sizes stands as separate arguments, as it is usually written."""
    spread = (
        name in ("view", "reshape", "expand", "permute", "repeat")
        and len(args) == 2
        and args[1].kind == "list"
    )
    if spread:
        args = [args[0], *args[1].parts]
    return Expr("method", name, (*args, *options.values()), ("",) * len(args) + tuple(options))


def _special(name: str, overload: str, args: list[Expr], options: dict[str, Expr]) -> Expr | None:
    """Operations that are an index, a plain method or nothing in Python."""
    if name in ("slice", "select") and not options and all(arg.kind == "lit" for arg in args[1:2]):
        axis = args[1].value if len(args) > 1 else 0
        if axis < 0:
            return None
        taken: Expr
        if name == "select":
            taken = args[2]
        else:
            start, stop = (args[2] if len(args) > 2 else lit(None)), (args[3] if len(args) > 3 else lit(None))
            step = args[4] if len(args) > 4 else lit(None)
            start = lit(None) if start.kind == "lit" and start.value == 0 else start
            stop = (
                lit(None) if stop.kind == "lit" and stop.value is not None and stop.value >= 2**62 else stop
            )
            taken = Expr("slice", None, (start, stop, step))
        whole = Expr("slice", None, (lit(None),) * 3)
        return Expr(
            "index", None, (args[0], Expr("tuple", None, (*[whole] * axis, taken)) if axis else taken)
        )
    if name in ("softmax", "log_softmax") and overload == "int":
        return Expr("method", name, tuple(args[:2]) + tuple(args[2:3]), ("",) * min(len(args), 3))
    if name == "to" or name == "_to_copy":
        dtypes = [
            arg
            for arg in (*args[1:], *options.values())
            if arg.kind == "raw" and arg.value.startswith("torch.")
        ]
        if len(dtypes) >= 1:
            return Expr("method", "to", (args[0], dtypes[0]), ("", ""))
        return Expr("method", "clone", (args[0],), ("",))
    if name in ("add", "sub") and args[1:] == [lit(0)]:
        return args[0]
    if name == "alias":
        return args[0]
    if name in ("detach_", "lift_fresh_copy", "lift_fresh"):
        return Expr("method", "clone", (args[0],), ("",))
    if name == "arange" and args:
        return Expr("call", "torch.arange", (*args, *options.values()), ("",) * len(args) + tuple(options))
    if name == "rsub":
        return Expr("binary", "-", (args[1], args[0])) if len(args) == 2 else None
    if name == "unsafe_split":
        return _method("split", args, options)
    if name == "sum" and overload == "dim_IntList" and len(args) > 1:
        return _method("sum", args, options)
    return None
