"""ONNX operators that compute element by element, multiply matrices, or reduce, as torch functions.

Attributes are keywords under ONNX's names. An operand that older opsets keep as an attribute (``axes``, ``min``) has
one parameter for both forms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elastic_ir import onnx_model
from elastic_ir.emit.onnx_operators.sizes import ints, number

#: TensorProto.DataType by number; floats of eight bits are not computed with.
DTYPES: dict[int, torch.dtype] = {
    number: getattr(torch, name)
    for number, name in onnx_model.DTYPES.items()
    if not name.startswith("float8")
}


# -- two operands ------------------------------------------------------------------------------------------------------


def div(a: Any, b: Any) -> Tensor:
    """Quotient; of whole numbers it is cut towards zero."""
    first = a if isinstance(a, Tensor) else b
    whole = not (first.is_floating_point() or first.is_complex())
    return torch.div(a, b, rounding_mode="trunc" if whole else None)


def power(a: Tensor, b: Any) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def mod(a: Any, b: Any, *, fmod: int = 0) -> Tensor:
    compute: Callable[..., Tensor] = torch.fmod if fmod else torch.remainder
    return compute(a, b)


def bit_shift(a: Tensor, b: Tensor, *, direction: str) -> Tensor:
    wide = a.to(torch.int64)
    moved = wide << b.to(torch.int64) if direction == "LEFT" else wide >> b.to(torch.int64)
    return moved.to(a.dtype)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def fold(*operands: Tensor, operation: str) -> Tensor:
    """An operation of torch's on two tensors (``add``, ``maximum``, ``minimum``), over any number of them."""
    return functools.reduce(getattr(torch, operation), operands)


def mean(*operands: Tensor) -> Tensor:
    return functools.reduce(torch.add, operands) / len(operands)


# -- one operand -------------------------------------------------------------------------------------------------------


def identity(x: Tensor) -> Tensor:
    return x


def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    negative, positive = torch.isneginf(x), torch.isposinf(x)
    return (negative & bool(detect_negative)) | (positive & bool(detect_positive))


def cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    return x.to(DTYPES[to])


def cast_like(x: Tensor, target: Tensor, *, saturate: int = 1) -> Tensor:
    return x.to(target.dtype)


def clip(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    if min is None and max is None:
        return x
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        low, high = (
            None if end is None else torch.as_tensor(end, dtype=x.dtype, device=x.device)
            for end in (min, max)
        )
        return torch.clamp(x, low, high)
    return torch.clamp(x, min, max)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


def selu(
    x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> Tensor:
    return gamma * F.elu(x, alpha)


def biased_gelu(x: Tensor, bias: Tensor | None = None, *, approximate: str = "none") -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate=approximate)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    below = torch.where(x < -lambd, x + bias, torch.zeros_like(x))
    return torch.where(x > lambd, x - bias, below).to(x.dtype)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


_BY_AXIS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "softmax": torch.softmax, "log_softmax": torch.log_softmax, "hardmax": _hardmax,
}  # fmt: skip


def along_axis(x: Tensor, *, function: str, axis: int | None = None, opset: int) -> Tensor:
    """A softmax, log_softmax or hardmax; before opset 13 all axes from ``axis`` on count as one."""
    compute = _BY_AXIS[function]
    if opset >= 13:
        return compute(x, -1 if axis is None else axis)
    first = 1 if axis is None else axis % max(x.dim(), 1)
    rows = x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:]))
    return compute(rows, 1).reshape(x.shape)


# -- matrices ----------------------------------------------------------------------------------------------------------


def gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
    transB: int = 0,
) -> Tensor:  # fmt: skip
    if not transA and transB and alpha == 1 and beta == 1 and (c is None or c.dim() == 1):
        return F.linear(a, b, c)
    product = (a.t() if transA else a) @ (b.t() if transB else b)
    if alpha != 1:
        product = (alpha * product).to(a.dtype)
    if c is None:
        return product
    return product + (c if beta == 1 else (beta * c).to(a.dtype))


def fused_matmul(a: Tensor, b: Tensor, *, alpha: float = 1.0, transA: int = 0, transB: int = 0) -> Tensor:
    return alpha * torch.matmul(a.mT if transA else a, b.mT if transB else b)


def einsum(*operands: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *operands)


# -- reductions --------------------------------------------------------------------------------------------------------


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return x.sum(dims, keep, dtype=x.dtype)


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(dims, keep)
    count = math.prod(x.shape[dim] for dim in dims)
    return torch.div(_sum(x, dims, keep), count, rounding_mode="trunc")


def _extreme(x: Tensor, dims: list[int], keep: bool, *, largest: bool) -> Tensor:
    """The maximum or minimum; of nothing, the least or the greatest number of the dtype."""
    if all(x.shape[dim] for dim in dims):
        return x.amax(dims, keep) if largest else x.amin(dims, keep)
    if x.is_floating_point():
        fill: float = -math.inf if largest else math.inf
    elif x.dtype == torch.bool:
        fill = not largest
    else:
        fill = torch.iinfo(x.dtype).min if largest else torch.iinfo(x.dtype).max
    return torch.full_like(_sum(x, dims, keep), fill)


def _prod(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, keep, dtype=x.dtype)
    return x


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "sum": _sum, "mean": _mean, "prod": _prod, "log_sum_exp": torch.logsumexp,
    "max": functools.partial(_extreme, largest=True), "min": functools.partial(_extreme, largest=False),
    "l1": lambda x, dims, keep: _sum(x.abs(), dims, keep),
    "l2": lambda x, dims, keep: torch.sqrt((x * x).sum(dims, keep)).to(x.dtype),
    "sum_square": lambda x, dims, keep: _sum(x * x, dims, keep),
    "log_sum": lambda x, dims, keep: torch.log(_sum(x, dims, keep)).to(x.dtype),
}  # fmt: skip


def reduce(
    x: Tensor, axes: Any = None, *, function: str, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """What a Reduce operator does; ``function`` is its name without "Reduce"."""
    compute = _REDUCTIONS[function]
    dims = [] if axes is None else ints(axes)
    if not dims and noop_with_empty_axes:  # only the work on the elements is left: each is reduced by itself
        return compute(x.unsqueeze(-1), [x.dim()], False)
    dims = dims or list(range(x.dim()))
    if not dims:  # of rank 0, a single element
        return compute(x.reshape(1), [0], False)
    return compute(x, [dim % x.dim() for dim in dims], bool(keepdims))


def arg_extreme(
    x: Tensor, *, function: str, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    """torch's ``argmax`` or ``argmin``, of equal ones the first or the last."""
    compute: Callable[..., Tensor] = getattr(torch, function)
    if select_last_index:
        return x.shape[axis] - 1 - compute(x.flip(axis), axis, bool(keepdims))
    return compute(x, axis, bool(keepdims))


def top_k(x: Tensor, k: Any, *, axis: int = -1, largest: int = 1, sorted: int = 1, outputs: int) -> Any:
    """Sorted, the first of equal ones first, which torch.topk leaves open."""
    count = int(number(k))
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    found = values.narrow(axis, 0, count), indices.narrow(axis, 0, count)
    return found if outputs > 1 else found[0]


def cum_sum(x: Tensor, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    dim = int(number(axis))
    if reverse:
        x = x.flip(dim)
    result = torch.cumsum(x, dim, dtype=x.dtype)
    if exclusive:
        result = result - x
    return result.flip(dim) if reverse else result
