"""Sizes in ONNX graphs, as Python numbers: shapes that are taken apart, computed with and put together again.

ONNX keeps sizes in tensors. Run so, every Reshape would wait for an accelerator and end a graph of torch.compile; so
what follows from Shape alone stays a number, or a list of numbers, until something reads it as a tensor.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from elastic_ir.ir.graph import Literal, Node

#: A tensor of rank 0 or 1 as Python has it.
Sizes: TypeAlias = Any  # int | bool | list[int] | list[bool]


def as_tensor(value: Sizes, dtype: torch.dtype, like: torch.Tensor | None = None) -> torch.Tensor:
    """Sizes as the tensor that ONNX means, where ``like`` is."""
    return torch.tensor(value, dtype=dtype, device=None if like is None else like.device)


def ints(value: Any) -> list[int]:
    """Numbers of a list, a single number, or a tensor of either."""
    plain = value.tolist() if isinstance(value, torch.Tensor) else value
    return list(plain) if isinstance(plain, (list, tuple)) else [plain]


def number(value: Any) -> Any:
    """The one number of a tensor, a list or a number."""
    if isinstance(value, torch.Tensor):
        return value.item()
    return value[0] if isinstance(value, (list, tuple)) else value


# -- operators on sizes ------------------------------------------------------------------------------------------------


def shape(x: torch.Tensor, *, start: int = 0, end: int | None = None) -> list[int]:
    return list(x.shape)[start:end]


def count_sizes(sizes: list[int]) -> list[int]:
    return [len(sizes)]


def size(x: torch.Tensor) -> int:
    return math.prod(x.shape)


def _quotient(a: int, b: int) -> int:
    if a >= 0 and b > 0:  # also what torch.compile knows for sizes
        return a // b
    return -(-a // b) if (a < 0) != (b < 0) else a // b


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": _quotient, "Equal": operator.eq,
    "Where": lambda condition, a, b: a if condition else b,
}  # fmt: skip


def compute_sizes(*operands: Sizes, operation: str) -> Sizes:
    """An elementwise operator of ONNX, under broadcasting."""
    compute = _ELEMENTWISE[operation]
    lengths = [len(item) for item in operands if isinstance(item, list)]
    if not lengths:
        return compute(*operands)
    length = next((own for own in lengths if own != 1), 1)
    parts = [item if isinstance(item, list) else [item] for item in operands]
    spread = [item * length if len(item) == 1 else item for item in parts]
    return [compute(*items) for items in zip(*spread, strict=True)]


def pick_sizes(sizes: list[int], indices: Sizes) -> Sizes:
    return [sizes[index] for index in indices] if isinstance(indices, list) else sizes[indices]


def slice_sizes(sizes: list[int], starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> list[int]:
    return sizes[slice(number(starts), number(ends), 1 if steps is None else number(steps))]


def join_sizes(*parts: list[int]) -> list[int]:
    return [extent for part in parts for extent in part]


def wrap_size(extent: int) -> list[int]:
    return [extent]


def only_size(sizes: list[int]) -> int:
    (extent,) = sizes
    return extent


def product_of_sizes(sizes: list[int], *, keep: bool) -> Sizes:
    return [math.prod(sizes)] if keep else math.prod(sizes)


def repeat_size(count: list[int], value: int) -> list[int]:
    return [value] * count[0]


# -- which nodes are sizes ---------------------------------------------------------------------------------------------

#: What a size is as a tensor: its dtype, its rank, and how many numbers it has (None: not known).
Kind: TypeAlias = tuple[str, int, int | None]
_WHOLE = {6: "int32", 7: "int64"}


def literal_sizes(item: Literal) -> Sizes:
    """A literal as sizes are kept."""
    return list(item.values) if item.shape else item.values[0]


def literal_kind(item: Literal) -> Kind | None:
    """What a literal is among sizes; None for what is none (factors, tables)."""
    if item.dtype not in ("int32", "int64", "bool") or len(item.shape) > 1:
        return None
    return item.dtype, len(item.shape), len(item.values)


def size_node(
    node: Node, kinds: list[Kind | None], fill: Any
) -> tuple[Callable[..., Any] | None, int, dict[str, Any], Kind] | None:
    """The function of sizes that a node is, how many operands and which keywords it takes, and what it gives.

    A node that hands its operand on is no function (None).

    ``kinds`` describe the node's operands, None for tensors; ``fill`` is the value of a ConstantOfShape.
    """
    attributes = node.attributes
    if node.op == "onnx.Shape" and not attributes and kinds[0] is not None and kinds[0][1] == 1:
        return count_sizes, 1, {}, ("int64", 1, 1)
    if node.op == "onnx.Shape":
        start, end = attributes.get("start", 0), attributes.get("end")
        window = {key: value for key, value in (("start", start), ("end", end)) if value}
        return shape, 1, window, ("int64", 1, None)
    if node.op == "onnx.Size":
        return size, 1, {}, ("int64", 0, 1)
    known = [kind for kind in kinds if kind is not None]
    if not known or len(known) < len(kinds):
        return None
    dtype, rank, count = known[0]
    ranks = [kind[1] for kind in known]
    if node.op.removeprefix("onnx.") in _ELEMENTWISE and len(known) == (3 if node.op == "onnx.Where" else 2):
        result = {"onnx.Equal": "bool", "onnx.Where": known[-1][0]}.get(node.op, dtype)
        if dtype == "bool" and node.op != "onnx.Where":
            return None
        operation = {"operation": node.op.removeprefix("onnx.")}
        return compute_sizes, len(known), operation, (result, max(ranks), None if max(ranks) else 1)
    if node.op == "onnx.Gather" and rank == 1 and known[1][0] != "bool":
        return pick_sizes, 2, {}, (dtype, ranks[1], known[1][2])
    if node.op == "onnx.Slice" and rank == 1 and all(kind[2] == 1 for kind in known[1:]) and len(known) > 2:
        return slice_sizes, len(known), {}, (dtype, 1, None)
    if node.op == "onnx.Concat" and set(ranks) == {1}:
        return join_sizes, len(known), {}, (dtype, 1, None)
    if node.op == "onnx.Unsqueeze" and rank == 0 and _one_axis(node, known):
        return wrap_size, 1, {}, (dtype, 1, 1)
    if node.op == "onnx.Squeeze" and rank == 1:
        return only_size, 1, {}, (dtype, 0, 1)
    if node.op == "onnx.Reshape" and known[1][1:] == (1, 1) and not attributes.get("allowzero"):
        return (None if rank else wrap_size), 1, {}, (dtype, 1, count)
    if node.op == "onnx.Identity":
        return None, 1, {}, known[0]
    if node.op == "onnx.Cast" and attributes.get("to") in _WHOLE and dtype != "bool":
        return None, 1, {}, (_WHOLE[int(attributes["to"])], rank, count)  # type: ignore[arg-type]
    if node.op == "onnx.ReduceProd" and rank == 1 and dtype != "bool" and len(known) == 1:
        keep = bool(attributes.get("keepdims", 1))
        return product_of_sizes, 1, {"keep": keep}, (dtype, int(keep), 1)
    if node.op == "onnx.ConstantOfShape" and rank == 1 and count == 1 and type(fill) is int:
        return repeat_size, 1, {"value": fill}, ("int64", 1, None)
    return None


def _one_axis(node: Node, known: list[Kind]) -> bool:
    axes = node.attributes.get("axes")
    return len(known) == 2 and known[1][2] == 1 if axes is None else isinstance(axes, list) and len(axes) == 1
