"""Which operations leave channels apart, and what they make of a channel that is constant.

An operation that is not named here is taken to mix or count channels, and whatever it reads is kept.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import ElasticError
from elastic_ir.ir.functions import resolve_function
from elastic_ir.ir.graph import Node, Value
from elastic_ir.ir.operations import Trait, has, kind_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def sole_operand(node: Node) -> Value | None:
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
    import numpy as np
    import torch
    from torch import nn

    varies = np.isnan(constants)
    given = torch.from_numpy(np.where(varies, 0.0, constants))
    try:
        if node.kind == "module":
            result = getattr(nn, node.op.removeprefix("nn."))(**node.attributes)(given)
        else:
            arguments = [given if isinstance(item, Value) else item for item in node.args]
            options = {k: given if isinstance(v, Value) else v for k, v in node.kwargs.items()}
            if node.kind == "method":
                result = getattr(given, node.op.removeprefix("method."))(*arguments[1:], **options)
            else:
                result = resolve_function(node.op)(*arguments, **options)
    except (ElasticError, TypeError, ValueError, RuntimeError):  # an argument that is no plain number
        return np.full_like(constants, math.nan)
    return np.where(varies, math.nan, result.numpy())


def pooled(node: Node, kind: str, constants: Floats) -> Floats:
    """A pool's results on constant channels: padding with zeros that are averaged in makes borders differ."""
    import numpy as np

    if not kind.startswith("avg"):
        return constants
    options: dict[str, Any] = {**node.attributes, **node.kwargs}
    plain = node.kind == "module" or len(node.args) <= 3
    borders = any(_listed(options.get("padding", 0))) and options.get("count_include_pad", True)
    if plain and not borders and options.get("divisor_override") is None:
        return constants
    return np.where(constants == 0, 0.0, math.nan)


def combined(kind: str, left: Floats | float, right: Floats | float) -> Floats:
    """The result of arithmetic on constant channels; a product with zero is zero whatever the other is."""
    import numpy as np

    with np.errstate(all="ignore"):
        if kind == "add":
            result = np.add(left, right)
        elif kind == "sub":
            result = np.subtract(left, right)
        elif kind == "div":
            result = np.divide(left, right)
        else:
            zero = (np.asarray(left) == 0) | (np.asarray(right) == 0)
            result = np.where(zero, 0.0, np.multiply(left, right))
    return np.where(np.isfinite(result), result, math.nan)


def reads_no_zeros(node: Node) -> bool:
    """Whether a convolution never reads zeros beyond the border, so that a constant gives the same everywhere."""
    padding = node.attributes.get("padding")
    plain = padding == "valid" or not any(_listed(padding)) if padding != "same" else False
    return bool(plain) or node.attributes.get("padding_mode", "zeros") != "zeros"


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
