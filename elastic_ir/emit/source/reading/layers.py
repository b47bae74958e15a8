"""Layers of ``torch.nn`` in source: from what a module's node records, and from functional calls that are layers.

A call such as ``F.linear(x, self.weight, self.bias)``, by a module that owns just these weights, is the layer
``nn.Linear``; that is how the operations of an export, and subclasses of torch's layers, get their layers back.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from elastic_ir.emit.module.layers import recorded_layer
from elastic_ir.emit.source.expressions.expr import OPAQUE, Expr, call, group, lit, literal, plain, raw
from elastic_ir.emit.source.expressions.signatures import REQUIRED, is_default, parameters
from elastic_ir.emit.source.reading.calls import identifier
from elastic_ir.errors import EmitError
from elastic_ir.ir.functions import resolve_symbol
from elastic_ir.ir.graph import Node, Symbol
from elastic_ir.tensors.weights import Weight

Shape = tuple[int, ...]
#: Attributes that are one number where they are the same along every axis.
_SIZES = ("kernel_size", "stride", "padding", "dilation", "output_size", "normalized_shape", "output_padding")


def constructor(name: str, **options: Any) -> Expr:
    """A constructor call with all arguments by name."""
    ordered = [option for option in parameters(name) if option in options]
    if name == "nn.MaxPool2d" and options.get("stride") == options.get("kernel_size"):
        ordered.remove("stride")
    return Expr("new", name, tuple(_option(n, options[n]) for n in ordered), tuple(ordered))


def _option(name: str, value: Any) -> Expr:
    if isinstance(value, Symbol):
        return raw(str(resolve_symbol(value.name)))
    uniform = name in _SIZES and isinstance(value, (tuple, list)) and len(set(value)) == 1
    if uniform and {"output_size": len(value) > 1, "normalized_shape": len(value) == 1}.get(name, True):
        return lit(value[0])
    if isinstance(value, (tuple, list)) and all(isinstance(item, (int, float)) for item in value):
        return lit(tuple(value))
    if value is not None and not isinstance(value, (bool, int, float, str, tuple, list, dict)):
        raise EmitError(f"a layer's {name} is {value!r}, which has no text")
    return literal(value)


def layer_of(node: Node) -> Expr:
    """The constructor of a leaf module's node; EmitError for what is not a layer of ``torch.nn``."""
    kind, recorded = recorded_layer(node, "written as source")
    takes_any = any(
        item.kind is item.VAR_POSITIONAL for item in inspect.signature(kind.__init__).parameters.values()
    )
    if takes_any and kind is not nn.Identity and kind.__init__ is not nn.Module.__init__:
        raise EmitError(f"{node.scope} is a {node.op}, whose constructor the graph does not record")
    options = {identifier(k, "the argument"): v for k, v in recorded.items() if not k.startswith("_")}
    if issubclass(kind, nn.modules.batchnorm._NormBase) and not node.attributes.get("affine", True):
        options.pop("bias", None)
    if kind is nn.MultiheadAttention:
        options = {
            k: v for k, v in options.items() if k not in ("kdim", "vdim") or v != options.get("embed_dim")
        }
    return constructor(node.op, **options)


@dataclass
class Layered:
    """A functional call as a layer: its constructor, its input, and the roles of the weights it takes."""

    make: Expr
    input: Expr
    roles: tuple[str, ...]


def as_layer(expr: Expr, weights: Mapping[tuple[str, ...], Weight], rank: int | None) -> Layered | None:
    """A functional call as the layer of ``torch.nn`` that has its name, None where there is none with its weights.

    ``weights`` are the network's by their full paths, ``rank`` is the number of the input's axes.
    """
    if expr.kind == "call" and expr.value.startswith(("F.", "torch.")):
        name = expr.value.rpartition(".")[2]
    elif expr.kind == "method" and len(expr.parts) == 1:
        name = expr.value
    else:
        return None
    accepted = parameters(f"F.{name}")
    order = list(accepted)
    if "input" not in order or expr.names.count("") > len(order):
        return None
    given = {
        key or order[at]: part for at, (key, part) in enumerate(zip(expr.names, expr.parts, strict=True))
    }
    source = given.pop("input", lit(None))
    given.pop("training", None)
    roles = {key: part.value for key, part in given.items() if part.kind == "attr"}
    options = {key: plain(part) for key, part in given.items() if part.kind != "attr"}
    options = {key: value for key, value in options.items() if not is_default(value, accepted.get(key))}
    renamed = any(path[-1] != key for key, path in roles.items())
    if source.kind == "lit" or OPAQUE in options.values() or renamed:
        return None
    norm = name in ("batch_norm", "instance_norm") and rank is not None
    kind = _layers().get(name.replace("_", "") + (f"{max(rank - 2, 1)}d" if norm and rank else ""))
    shapes = {key: weights[path].shape for key, path in roles.items() if path in weights}
    if kind is None:
        return None
    made = _with_weights(kind, order, options, shapes)
    return Layered(made, source, tuple(roles)) if made is not None else None


@cache
def _layers() -> dict[str, type[nn.Module]]:
    """The layers of ``torch.nn`` by their names in lower case."""
    kinds = [kind for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    return {kind.__name__.lower(): kind for kind in kinds}


def _with_weights(
    kind: type[nn.Module], order: list[str], options: dict[str, Any], shapes: dict[str, Shape]
) -> Expr | None:
    """A layer's constructor from its options and the shapes of its weights; None where they do not fit.

    ``order`` are the arguments of the function: those that the layer has too are spelt out, so that layers compare.
    """
    accepted = parameters(f"nn.{kind.__name__}")
    usual = {key: value for key, value in accepted.items() if key in order and value is not REQUIRED}
    first = next(iter(shapes.values()), ())
    rows, columns, *window = (*shapes.get("weight", first), 0, 0)
    window = window[:-2]
    sizes = {
        "in_features": columns, "out_features": rows, "out_channels": rows, "num_channels": rows, "num_features": rows,
        "in_channels": columns * options.get("groups", 1), "num_embeddings": rows, "embedding_dim": columns,
        "bias": "bias" in shapes, "affine": "weight" in shapes, "elementwise_affine": "weight" in shapes,
    }  # fmt: skip
    sizes |= {"kernel_size": tuple(window)} if window else {}
    options = usual | {key: value for key, value in sizes.items() if key in accepted} | options
    try:
        with torch.device("meta"):
            layer = kind(**options)
    except (TypeError, ValueError, RuntimeError):
        return None  # it takes other arguments than the function
    made = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    made.pop("num_batches_tracked", None)
    return constructor(f"nn.{kind.__name__}", **options) if made == shapes else None


def zeros(shape: Shape, dtype: str = "float32") -> Expr:
    """``torch.zeros(...)`` of a shape. Raises EmitError where torch has no such dtype."""
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise EmitError(f"{dtype!r} is not a dtype of torch")
    sizes = [lit(extent) for extent in shape] or [group("tuple", ())]
    return call("torch.zeros", *sizes, **({} if dtype == "float32" else {"dtype": raw(f"torch.{dtype}")}))
