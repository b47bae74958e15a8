"""Layers of ``torch.nn`` in source: from what a module's node records, and from functional calls that are layers.

A call such as ``F.linear(x, self.weight, self.bias)``, by a module that owns just these weights, is the layer
``nn.Linear``; that is how the operations of an export, and subclasses of torch's layers, get their layers back.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from elastic_ir.emit.module.layers import recorded_layer
from elastic_ir.emit.source.expr import OPAQUE, Expr, call, group, lit, literal, locals_of, method, plain, raw
from elastic_ir.emit.source.signatures import REQUIRED, is_default, parameters
from elastic_ir.emit.source.text import Printer, identifier
from elastic_ir.errors import EmitError
from elastic_ir.ir.functions import resolve_symbol
from elastic_ir.ir.graph import Node, Symbol
from elastic_ir.ir.recurrent import MODULES
from elastic_ir.tensors.lazy import ShapeOnly
from elastic_ir.tensors.torch_bridge import to_torch
from elastic_ir.tensors.weights import Weight

#: Attributes that are one number where they are the same along every axis.
_SIZES = ("kernel_size", "stride", "padding", "dilation", "output_size", "normalized_shape", "output_padding")


def constructor(name: str, **options: Any) -> Expr:
    """A constructor call with all arguments by name."""
    accepted = parameters(name)
    if accepted.get("stride", REQUIRED) is None and options.get("stride") == options.get("kernel_size"):
        options.pop("stride", None)  # pooling moves on by its window
    ordered = [option for option in accepted if option in options]
    return Expr("new", name, tuple(_option(n, options[n]) for n in ordered), tuple(ordered))


def _option(name: str, value: Any) -> Expr:
    if isinstance(value, Symbol):
        return raw(str(resolve_symbol(value.name)))
    if isinstance(value, (tuple, list)):
        whole = {"output_size": len(value) > 1, "normalized_shape": len(value) == 1}.get(name, name in _SIZES)
        if whole and len(set(value)) == 1:
            return lit(value[0])
        return lit(tuple(value)) if all(isinstance(item, (int, float)) for item in value) else literal(value)
    if value is not None and not isinstance(value, (bool, int, float, str, dict)):
        raise EmitError(f"a layer's {name} is {value!r}, which has no text")
    return literal(value)


def layer_of(node: Node) -> Expr:
    """The constructor of a leaf module's node; EmitError for what is not a layer of ``torch.nn``."""
    kind, recorded = recorded_layer(node, "written as source")
    taken = inspect.signature(kind.__init__).parameters.values()
    takes_any = node.op not in MODULES and any(item.kind is item.VAR_POSITIONAL for item in taken)
    if takes_any and kind is not nn.Identity and kind.__init__ is not nn.Module.__init__:
        raise EmitError(f"{node.scope} is a {node.op}, whose constructor the graph does not record")
    options = {identifier(k, "the argument"): v for k, v in recorded.items() if not k.startswith("_")}
    if issubclass(kind, nn.modules.batchnorm._NormBase) and not node.attributes.get("affine", True):
        options.pop("bias", None)
    if kind is nn.MultiheadAttention:
        same = [k for k in ("kdim", "vdim") if options.get(k) == options.get("embed_dim")]
        options = {k: v for k, v in options.items() if k not in same}
    return constructor(node.op, **options)


@dataclass
class Layered:
    """A functional call as a layer: its constructor, its input, and the paths of the weights it takes."""

    make: Expr
    input: Expr
    weights: Sequence[tuple[str, ...]]


def as_layer(expr: Expr, weights: Mapping[tuple[str, ...], Weight]) -> Layered | None:
    """A functional call as the layer of ``torch.nn`` that has its name, None where there is none with its weights.

    ``weights`` are the network's by their full paths.
    """
    function = expr.kind == "call" and expr.value.startswith(("F.", "torch."))
    if not function and (expr.kind != "method" or len(expr.parts) > 1):
        return None
    name = expr.value.rpartition(".")[2]
    accepted = parameters(f"F.{name}")
    order = list(accepted)
    types = [value.type for value in locals_of(expr)[:1] if value.type is not None]
    by_axes = name in ("batch_norm", "instance_norm") and types
    axes = f"{max(len(types[0].shape) - 2, 1)}d" if by_axes else ""
    kind = _layers().get(name.replace("_", "") + axes)
    if kind is None or "input" not in order or expr.names.count("") > len(order):
        return None
    given = {
        key or order[at]: part for at, (key, part) in enumerate(zip(expr.names, expr.parts, strict=True))
    }
    source = given.pop("input", lit(None))
    given.pop("training", None)
    roles = {key: part.value for key, part in given.items() if part.kind == "attr"}
    options = {key: plain(part) for key, part in given.items() if key not in roles}
    renamed = any(path[-1] != key for key, path in roles.items())
    if source.kind == "lit" or OPAQUE in options.values() or renamed:
        return None
    options = {key: value for key, value in options.items() if not is_default(value, accepted.get(key))}
    shapes = {key: weights[path].shape for key, path in roles.items() if path in weights}
    taken = parameters(f"nn.{kind.__name__}")
    # those that the function has too are spelt out, so that layers compare
    usual = {key: value for key, value in taken.items() if key in order and value is not REQUIRED}
    sizes = {key: value for key, value in _sizes(shapes, options.get("groups", 1)).items() if key in taken}
    options = usual | sizes | options
    try:
        with torch.device("meta"):
            layer = kind(**options)
    except (TypeError, ValueError, RuntimeError):
        return None  # it takes other arguments than the function
    made = {role: tuple(tensor.shape) for role, tensor in layer.state_dict().items()}
    made.pop("num_batches_tracked", None)
    if made != shapes:
        return None
    return Layered(constructor(f"nn.{kind.__name__}", **options), source, list(roles.values()))


@cache
def _layers() -> dict[str, type[nn.Module]]:
    """The layers of ``torch.nn`` by their names in lower case."""
    kinds = [kind for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    return {kind.__name__.lower(): kind for kind in kinds}


def _sizes(shapes: Mapping[str, tuple[int, ...]], groups: int) -> dict[str, Any]:
    """What layers call the sizes of their weights, which are of these shapes."""
    first = next(iter(shapes.values()), ())
    rows, columns, *window = (*shapes.get("weight", first), 0, 0)
    return {
        "in_features": columns, "out_features": rows, "out_channels": rows, "num_channels": rows, "num_features": rows,
        "in_channels": columns * groups, "num_embeddings": rows, "embedding_dim": columns, "bias": "bias" in shapes,
        "affine": "weight" in shapes, "elementwise_affine": "weight" in shapes,
    } | ({"kernel_size": tuple(window[:-2])} if window[:-2] else {})  # fmt: skip


def zeros(shape: tuple[int, ...], dtype: str = "float32") -> Expr:
    """``torch.zeros(...)`` of a shape. Raises EmitError where torch has no such dtype."""
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise EmitError(f"{dtype!r} is not a dtype of torch")
    return _filled("torch.zeros", shape, dtype)


def _filled(function: str, shape: Sequence[int], dtype: str) -> Expr:
    return call(function, *map(lit, shape) if shape else [group("tuple", ())], **_typed(dtype))


def _typed(dtype: str, usual: str = "float32") -> dict[str, Expr]:
    return {} if dtype == usual else {"dtype": raw(f"torch.{dtype}")}


# -- buffers -----------------------------------------------------------------------------------------------------------

LIMIT = 512  #: numbers that are still written out one by one

RELATIVE_POSITIONS = '''
def relative_positions(side: int) -> Tensor:
    """For each pair of places in a square window the row of its table (Swin, Liu et al. 2021)."""
    rows = torch.arange(side).repeat_interleave(side)
    columns = torch.arange(side).repeat(side)
    down, right = (steps[:, None] - steps[None, :] + side - 1 for steps in (rows, columns))
    return down * (2 * side - 1) + right
'''


def value_of(weight: Weight) -> Expr:
    """An expression that makes a buffer's tensor, exactly; EmitError where its numbers show no rule and are many."""
    data = weight.storage.data
    if isinstance(data, ShapeOnly):
        raise EmitError(
            f"the buffer {weight.name!r} is in no state dict and has no values on the meta device"
        )
    tensor = to_torch(data)
    scope: dict[str, Any] = {"torch": torch, "Tensor": torch.Tensor}
    exec(RELATIVE_POSITIONS, scope)
    for expr in _rules(tensor, weight.dtype):
        made = eval(Printer().text(expr), scope)
        if made.dtype == tensor.dtype and torch.equal(made, tensor):
            return expr
    if tensor.numel() > LIMIT:
        raise EmitError(
            f"the buffer {weight.name!r} ({tensor.numel():,} numbers) is in no state dict, and its numbers show no "
            "rule by which source could make them; register it as a persistent buffer"
        )
    return call("torch.tensor", literal(tensor.tolist()), **_typed(weight.dtype))


def _rules(tensor: torch.Tensor, dtype: str) -> Iterator[Expr]:
    """Candidates: constants, counting, tables of attention, the frequencies of rotary positions."""
    shape, count = tuple(tensor.shape), tensor.numel()
    yield _filled("torch.zeros", shape, dtype)
    yield _filled("torch.ones", shape, dtype)
    if not count:
        return
    first = tensor.reshape(-1)[0].item()
    yield call("torch.full", literal(shape), lit(first), dtype=raw(f"torch.{dtype}"))
    if shape and not tensor.is_complex() and dtype != "bool":
        counting = call("torch.arange", lit(shape[-1]), **_typed(dtype, "int64"))
        yield counting if len(shape) == 1 else method("repeat", counting, *map(lit, shape[:-1]), lit(1))
    if len(shape) >= 2 and count == shape[-1] ** 2:
        view = "" if len(shape) == 2 else f".view({', '.join(map(str, shape))})"
        yield raw(f"torch.ones({shape[-1]}, {shape[-1]}, dtype=torch.{dtype}).tril(){view}")
    side = round(count**0.25)
    if dtype == "int64" and side > 1 and side**4 == count:
        yield raw(f"relative_positions({side})" + ("" if len(shape) == 2 else ".flatten()"))
    if len(shape) == 1 and dtype == "float32" and first == 1.0 and count > 1:
        for theta in (10000.0, 500000.0, 1000000.0, 100.0):
            steps = f"torch.arange(0, {2 * count}, 2, dtype=torch.float32) / {2 * count}"
            yield raw(f"1.0 / ({theta} ** ({steps}))")
