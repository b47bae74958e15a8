"""Layers of ``torch.nn`` in source: from what a module's node records, and from functional calls that are layers.

A call such as ``F.linear(x, self.weight, self.bias)``, by a module that owns just these weights, is the layer
``nn.Linear``; that is how the operations of an export, and subclasses of torch's layers, get their layers back.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from elastic_ir.emit.source.expressions.expr import Expr, lit, literal, raw
from elastic_ir.emit.source.reading.calls import identifier
from elastic_ir.errors import EmitError
from elastic_ir.ir.functions import resolve_symbol
from elastic_ir.ir.graph import Node, Symbol

#: Attributes that are one number where they are the same along every axis.
_SIZES = ("kernel_size", "stride", "padding", "dilation", "output_size", "normalized_shape", "output_padding")


def defaults(name: str) -> dict[str, Any]:
    """The constructor's defaults of ``nn.X``."""
    kind = getattr(nn, name.removeprefix("nn."), None) if name.startswith("nn.") else None
    if kind is None:
        return {}
    found = inspect.signature(kind.__init__).parameters
    return {n: p.default for n, p in found.items() if p.default is not inspect.Parameter.empty}


def layer(name: str, **options: Any) -> Expr:
    """A constructor call with all arguments by name."""
    accepted = [
        n for n in inspect.signature(getattr(nn, name.removeprefix("nn.")).__init__).parameters if n != "self"
    ]
    ordered = [n for n in accepted if n in options]
    if name == "nn.MaxPool2d" and options.get("stride") == options.get("kernel_size"):
        ordered.remove("stride")
    return Expr("new", name, tuple(_plain(n, options[n]) for n in ordered), tuple(ordered))


def _plain(name: str, value: Any) -> Expr:
    if isinstance(value, Expr):
        return value
    if isinstance(value, Symbol):
        return raw(str(resolve_symbol(value.name)))
    if name in _SIZES and isinstance(value, (tuple, list)) and value:
        if len(set(value)) == 1 and (len(value) > 1 or name != "output_size"):
            one = value[0]
            if name != "normalized_shape" or len(value) == 1:
                return lit(one)
        return lit(tuple(value))
    if isinstance(value, (tuple, list)) and all(isinstance(item, (int, float)) for item in value):
        return lit(tuple(value))
    if isinstance(value, (tuple, list, dict)):
        return literal(value)
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise EmitError(f"a layer's {name} is {value!r}, which has no text")
    return lit(value)


def layer_of(node: Node) -> Expr:
    """The constructor of a leaf module's node; EmitError for what is no layer of ``torch.nn``."""
    kind = getattr(nn, node.op.removeprefix("nn."), None) if node.op.startswith("nn.") else None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise EmitError(
            f"{node.scope} is a {node.op}, which is no layer of torch.nn, so it cannot be written as source"
        )
    accepted = inspect.signature(kind.__init__).parameters
    takes_any = any(item.kind is inspect.Parameter.VAR_POSITIONAL for item in accepted.values())
    if takes_any and node.op != "nn.Identity" and kind.__init__ is not nn.Module.__init__:
        raise EmitError(f"{node.scope} is a {node.op}, whose constructor the graph does not record")
    options = {identifier(k, "the argument"): v for k, v in node.attributes.items() if k in accepted}
    options = {k: v for k, v in options.items() if not k.startswith("_")}
    if issubclass(kind, nn.modules.batchnorm._NormBase) and not node.attributes.get("affine", True):
        options.pop("bias", None)
    elif options.get("bias") is True and defaults(node.op).get("bias") is True:
        options["bias"] = True
    if kind is nn.MultiheadAttention:
        options = {
            k: v for k, v in options.items() if k not in ("kdim", "vdim") or v != options.get("embed_dim")
        }
    return layer(node.op, **options)


@dataclass
class Layered:
    """A functional call as a layer: its constructor, its input, and the roles of the weights it takes."""

    make: Expr
    input: Expr
    roles: tuple[str, ...]


def as_layer(expr: Expr, shapes: dict[tuple[str, ...], tuple[int, ...]], rank: int | None) -> Layered | None:
    """A functional call as a layer of ``torch.nn``, None where it is none.

    ``shapes`` are those of the weights by their full paths, ``rank`` the number of the input's axes.
    """
    if expr.kind == "method" and len(expr.parts) == 1 and expr.value in ("tanh", "sigmoid", "relu"):
        return Layered(
            layer({"tanh": "nn.Tanh", "sigmoid": "nn.Sigmoid", "relu": "nn.ReLU"}[expr.value]),
            expr.parts[0],
            (),
        )
    if expr.kind != "call" or not expr.value.startswith(("F.", "torch.")):
        return None
    name = expr.value.rpartition(".")[2]
    order = _ORDER.get(name)
    if order is None:
        return None
    given: dict[str, Expr] = {}
    for place, (key, part) in enumerate(zip(expr.names, expr.parts, strict=True)):
        if not key and place >= len(order):
            return None
        given[key or order[place]] = part
    source = given.pop("input", None)
    if source is None or source.kind == "lit":
        return None
    roles = {key: part.value for key, part in given.items() if part.kind == "attr"}
    if any(path[-1] != key for key, path in roles.items()):
        return None
    plain = {key: _value(part) for key, part in given.items() if part.kind != "attr"}
    if any(value is _OPAQUE for value in plain.values()):
        return None
    plain.pop("training", None)
    found = _BUILD[name](plain, {key: shapes.get(path, ()) for key, path in roles.items()}, rank)
    return None if found is None else Layered(found, source, tuple(roles))


_OPAQUE = object()


def _value(part: Expr) -> Any:
    if part.kind == "lit":
        return part.value
    if part.kind == "raw" and part.value == "self.training":
        return True
    if part.kind in ("tuple", "list"):
        items = [_value(item) for item in part.parts]
        return _OPAQUE if _OPAQUE in items else tuple(items)
    return _OPAQUE


Shapes = dict[str, tuple[int, ...]]


def _linear(plain: dict[str, Any], shapes: Shapes, rank: int | None) -> Expr | None:
    if len(shapes.get("weight", ())) != 2:
        return None
    outputs, inputs = shapes["weight"]
    return layer("nn.Linear", in_features=inputs, out_features=outputs, bias="bias" in shapes)


def _conv(plain: dict[str, Any], shapes: Shapes, rank: int | None) -> Expr | None:
    weight = shapes.get("weight", ())
    if len(weight) not in (3, 4, 5):
        return None
    groups = plain.get("groups", 1)
    return layer(
        f"nn.Conv{len(weight) - 2}d", in_channels=weight[1] * groups, out_channels=weight[0], kernel_size=weight[2:],
        stride=plain.get("stride", 1), padding=plain.get("padding", 0), dilation=plain.get("dilation", 1),
        groups=groups, bias="bias" in shapes,
    )  # fmt: skip


def _layer_norm(plain: dict[str, Any], shapes: Shapes, rank: int | None) -> Expr | None:
    size = plain["normalized_shape"]
    if shapes and shapes.get("weight") != tuple(size):
        return None
    options: dict[str, Any] = {"normalized_shape": tuple(size), "eps": plain.get("eps", 1e-5)}
    options |= {"elementwise_affine": bool(shapes), "bias": "bias" in shapes} if len(shapes) < 2 else {}
    return layer("nn.LayerNorm", **options)


def _rms_norm(plain: dict[str, Any], shapes: Shapes, rank: int | None) -> Expr | None:
    return layer("nn.RMSNorm", normalized_shape=tuple(plain["normalized_shape"]), eps=plain.get("eps"),
                 elementwise_affine="weight" in shapes)  # fmt: skip


def _batch_norm(plain: dict[str, Any], shapes: Shapes, rank: int | None) -> Expr | None:
    size = next(iter(shapes.values()), None)
    tracked = "running_mean" in shapes and "running_var" in shapes
    if size is None or not tracked or rank not in (2, 3, 4, 5) or ("weight" in shapes) != ("bias" in shapes):
        return None
    return layer(f"nn.BatchNorm{max(rank - 2, 1)}d", num_features=size[0], eps=plain.get("eps", 1e-5),
                 momentum=plain.get("momentum", 0.1), affine="weight" in shapes)  # fmt: skip


def _group_norm(plain: dict[str, Any], shapes: Shapes, rank: int | None) -> Expr | None:
    if "weight" not in shapes:
        return None
    return layer("nn.GroupNorm", num_groups=plain["num_groups"], num_channels=shapes["weight"][0],
                 eps=plain.get("eps", 1e-5))  # fmt: skip


def _embedding(plain: dict[str, Any], shapes: Shapes, rank: int | None) -> Expr | None:
    if "weight" not in shapes or set(plain) - {"padding_idx"}:
        return None
    rows, size = shapes["weight"]
    padding = plain.get("padding_idx")
    padding = None if padding is not None and padding < 0 else padding
    return layer("nn.Embedding", num_embeddings=rows, embedding_dim=size, padding_idx=padding)


def _plain_layer(kind: str, *accepted: str) -> Any:
    def build(plain: dict[str, Any], shapes: Shapes, rank: int | None) -> Expr | None:
        if shapes or set(plain) - set(accepted) - {"inplace"}:
            return None
        return layer(f"nn.{kind}", **{key: value for key, value in plain.items() if value is not False})

    return build


_BUILD: dict[str, Any] = {
    "linear": _linear, "conv1d": _conv, "conv2d": _conv, "conv3d": _conv, "layer_norm": _layer_norm,
    "rms_norm": _rms_norm, "batch_norm": _batch_norm, "group_norm": _group_norm, "embedding": _embedding,
    "relu": _plain_layer("ReLU"), "relu6": _plain_layer("ReLU6"), "gelu": _plain_layer("GELU", "approximate"),
    "silu": _plain_layer("SiLU"), "mish": _plain_layer("Mish"), "hardswish": _plain_layer("Hardswish"),
    "hardsigmoid": _plain_layer("Hardsigmoid"), "sigmoid": _plain_layer("Sigmoid"), "tanh": _plain_layer("Tanh"),
    "elu": _plain_layer("ELU", "alpha"), "leaky_relu": _plain_layer("LeakyReLU", "negative_slope"),
    "dropout": _plain_layer("Dropout", "p"), "softmax": _plain_layer("Softmax", "dim"),
    "max_pool2d": _plain_layer("MaxPool2d", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool2d": _plain_layer("AvgPool2d", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "adaptive_avg_pool2d": _plain_layer("AdaptiveAvgPool2d", "output_size"),
}  # fmt: skip
_ORDER = {
    "linear": ("input", "weight", "bias"),
    **{f"conv{n}d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups") for n in (1, 2, 3)},
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "embedding": ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    "gelu": ("input", "approximate"), "elu": ("input", "alpha"), "leaky_relu": ("input", "negative_slope"),
    "dropout": ("input", "p", "training"), "softmax": ("input", "dim"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "adaptive_avg_pool2d": ("input", "output_size"),
    **dict.fromkeys(("relu", "relu6", "silu", "mish", "hardswish", "hardsigmoid", "sigmoid", "tanh"), ("input",)),
}  # fmt: skip


def zeros(shape: tuple[int, ...], dtype: str | None = None) -> Expr:
    """``torch.zeros(...)`` of a shape."""
    parts = tuple(lit(extent) for extent in shape) if shape else (Expr("tuple"),)
    if dtype is None:
        return Expr("call", "torch.zeros", parts, ("",) * len(parts))
    return Expr(
        "call", "torch.zeros", (*parts, raw(f"torch.{_dtype(dtype)}")), ("",) * len(parts) + ("dtype",)
    )


def _dtype(name: str) -> str:
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise EmitError(f"{name!r} is no dtype of torch")
    return name
