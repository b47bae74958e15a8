"""What is known of PyTorch's operations and their channels: where these are afterwards, and what becomes of constants.

An operation without a rule is taken to mix or count channels, and whatever it reads is kept.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from elastic_ir.channels import Channels, Floats, Place
from elastic_ir.errors import ElasticError
from elastic_ir.ir.graph import Argument, Node, Value
from elastic_ir.ir.operations import Layer, Slot, Trait, has, kind_of, operation_of

if TYPE_CHECKING:
    from elastic_ir.channels.flow import Flow


def admits(node: Node, flow: Flow) -> bool:
    """Whether anything may be known of a node's result: its weights are its own."""
    plain = node.kind in ("module", "function", "method")
    return plain and not any(flow.is_shared(name) for name in node.weight_names())


def terms(node: Node) -> Sequence[Argument] | None:
    """The two operands of arithmetic, values or numbers."""
    plain = len(node.args) == 2 and not node.kwargs and not node.weight_names()
    return node.args if plain and has(node, Trait.ARITHMETIC) else None


def joined(node: Node) -> tuple[Sequence[Argument], int] | None:
    """The operands of ``torch.cat`` and its axis."""
    if kind_of(node) != "cat" or not node.args:
        return None
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    values = node.args[0]
    return (values, axis) if isinstance(values, (list, tuple)) and isinstance(axis, int) else None


def is_plain(node: Node, layer: Layer, flow: Flow) -> bool:
    """Whether a layer is a module, whose weights and numbers of channels can be changed together."""
    return node.kind == "module"


def taker(node: Node, rows: int, flow: Flow) -> tuple[Node, Slot]:
    """A layer's bias takes over what constants add; it gets one where it has none."""
    return node, "bias"


def moved(node: Node, known: Channels, flow: Flow) -> Place | None:
    """Where the channels of the one tensor that a node reads are in its result."""
    operation, value = operation_of(node), source(node)
    kind, traits = operation.name, operation.traits
    if Trait.POINTWISE in traits:
        return Place(known.axis, constants=functools.partial(evaluate, node))
    if Trait.SAME in traits:
        return Place(known.axis)
    assert value is not None and value.type is not None and node.output.type is not None
    before, after = value.type.shape, len(node.output.type.shape)
    rank = len(before)
    if known.axis != 1 or before[0] != node.output.type.shape[0]:
        return None
    if Trait.POOL in traits and rank == after > 2:
        return Place(1, constants=functools.partial(pooled, node, kind))
    if (Trait.RESIZE in traits and rank == after) or (kind == "mean" and spatial(node, rank)):
        return Place(1)
    if kind in ("flatten", "view", "reshape") and after == 2 and flattens(node, kind):
        return Place(1, math.prod(before[2:]))
    return None


def only_looks(node: Node, axis: int, rank: int, readers: Sequence[Node]) -> bool:
    """Whether a node asks for a size other than that of the channels."""
    if node.op == "method.size" and len(node.args) == 2:
        wanted = node.args[1]
        return isinstance(wanted, int) and wanted >= 0 and wanted != axis
    whole = node.op == "method.size" or (node.op.endswith("getattr") and node.args[1:] == ("shape",))
    return whole and all(looks_past(reader, axis) for reader in readers)


def source(node: Node) -> Value | None:
    """The one tensor that a node reads as its first argument, beside sizes; None where it reads anything else."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(first, Value) or (node.kind != "module" and node.weight_names()):
        return None
    sized = kind_of(node) in ("view", "reshape", "interpolate") or has(node, Trait.POOL)
    others = [value for value in node.operands() if value is not first]
    plain = all(sized and not value.is_tensor for value in others)
    return first if plain and node.operands().count(first) == 1 else None


def evaluate(node: Node, constants: Floats) -> Floats:
    """A pointwise operation's results on constant channels; NaN stays where a channel is not constant."""
    import torch
    from torch import nn

    from elastic_ir.analysis.evaluate import run_torch

    varies = np.isnan(constants)
    given = torch.from_numpy(np.where(varies, 0.0, constants))
    try:
        if node.kind == "module":
            result = getattr(nn, node.op.removeprefix("nn."))(**node.attributes)(given)
        else:
            result = run_torch([node], {}, dict.fromkeys(node.operands(), given))
    except (ElasticError, TypeError, ValueError, RuntimeError):  # an argument that is not a plain number
        return np.full_like(constants, math.nan)
    return np.where(varies | ~np.isfinite(result.numpy()), math.nan, result.numpy())


def pooled(node: Node, kind: str, constants: Floats) -> Floats:
    """A pool's results on constant channels: padding with zeros that are averaged in makes borders differ."""
    if not kind.startswith("avg"):
        return constants
    options: dict[str, Any] = {**node.attributes, **node.kwargs}
    plain = node.kind == "module" or len(node.args) <= 3
    borders = any(_listed(options.get("padding", 0))) and options.get("count_include_pad", True)
    if plain and not borders and options.get("divisor_override") is None:
        return constants
    return np.where(constants == 0, 0.0, math.nan)


def pads(node: Node) -> bool:
    """Whether a convolution reads zeros beyond the border."""
    padding = node.attributes.get("padding")
    padded = padding == "same" or (padding != "valid" and any(_listed(padding)))
    return padded and node.attributes.get("padding_mode", "zeros") == "zeros"


def spatial(node: Node, rank: int) -> bool:
    """Whether a mean runs over axes behind the channels only."""
    wanted = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis"))
    axes = [wanted] if isinstance(wanted, int) else wanted
    if not isinstance(axes, (list, tuple)) or set(node.kwargs) - {"dim", "axis", "keepdim"}:
        return False
    return all(isinstance(axis, int) and axis % rank > 1 for axis in axes)


def flattens(node: Node, kind: str) -> bool:
    """Whether a node makes (batch, everything else) whatever the number of channels is."""
    if kind == "flatten":
        options = {**node.attributes, **node.kwargs}
        start = node.args[1] if len(node.args) > 1 else options.get("start_dim", 0)
        end = node.args[2] if len(node.args) > 2 else options.get("end_dim", -1)
        return start == 1 and end == -1
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)):
        sizes = tuple(sizes[0])
    return len(sizes) == 2 and sizes[1] == -1


def looks_past(node: Node, axis: int) -> bool:
    """Whether an index into a shape asks for sizes other than that of the channels."""
    place = node.args[1] if node.op == "operator.getitem" else None
    if isinstance(place, slice):
        return isinstance(place.start, int) and place.start > axis
    return isinstance(place, int) and place >= 0 and place != axis


def _listed(item: Any) -> list[Any]:
    return list(item) if isinstance(item, (list, tuple)) else [item]
