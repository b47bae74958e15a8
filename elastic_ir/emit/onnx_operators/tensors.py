"""ONNX operators that move data: shapes, slices, gathers and scatters, paddings, as torch functions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elastic_ir.emit.onnx_operators.math import DTYPES
from elastic_ir.emit.onnx_operators.sizes import ints, number

# -- shapes ------------------------------------------------------------------------------------------------------------


def reshape(x: Tensor, shape: Any, *, allowzero: int = 0) -> Tensor:
    """A zero stands for the extent that is there, unless ``allowzero``."""
    extents = ints(shape)
    if not allowzero:
        extents = [x.shape[axis] if extent == 0 else extent for axis, extent in enumerate(extents)]
    return x.reshape(extents)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Into a matrix, whatever the rank."""
    first = axis if axis >= 0 else axis + x.dim()
    return x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:]))


def squeeze(x: Tensor, axes: Any = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


def unsqueeze(x: Tensor, axes: Any) -> Tensor:
    places = ints(axes)
    for axis in sorted(axis % (x.dim() + len(places)) for axis in places):
        x = x.unsqueeze(axis)
    return x


def transpose(x: Tensor, *, perm: list[int] | None = None) -> Tensor:
    return x.permute(list(range(x.dim()))[::-1] if perm is None else perm)


def expand(x: Tensor, shape: Any) -> Tensor:
    """Broadcasting goes both ways: extents of 1 in ``shape`` keep what is there."""
    common: tuple[int, ...] = torch.broadcast_shapes(x.shape, tuple(ints(shape)))  # type: ignore[no-untyped-call]
    return x.expand(common)


def tile(x: Tensor, repeats: Any) -> Tensor:
    return x.repeat(ints(repeats))


def concat(*operands: Tensor, axis: int) -> Tensor:
    return torch.cat(operands, axis)


def split(x: Tensor, split: Any = None, *, axis: int = 0, num_outputs: int = 0, outputs: int) -> Any:
    if split is None:
        extent = x.shape[axis]
        step = -(-extent // outputs)
        sizes = [step] * (outputs - 1) + [extent - step * (outputs - 1)]
    else:
        sizes = ints(split)
    parts = torch.split(x, sizes, axis)
    return parts if outputs > 1 else parts[0]


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    batch, depth, height, width = x.shape
    blocks = x.reshape(batch, blocksize, blocksize, depth // blocksize**2, height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, height * blocksize, width * blocksize)


def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_unshuffle(x, blocksize)
    batch, depth, height, width = x.shape
    blocks = x.reshape(batch, depth, height // blocksize, blocksize, width // blocksize, blocksize)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // blocksize, width // blocksize)


# -- made from nothing -------------------------------------------------------------------------------------------------


def constant_of_shape(shape: Any, *, value: Any = 0.0, result: torch.dtype, like: Tensor | None) -> Tensor:
    return torch.full(ints(shape), value, dtype=result, device=None if like is None else like.device)


def arange(start: Any, limit: Any, delta: Any, *, result: torch.dtype, like: Tensor | None) -> Tensor:
    ends = number(start), number(limit), number(delta)
    return torch.arange(*ends, dtype=result, device=None if like is None else like.device)


def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    ones = torch.ones(x.shape, dtype=x.dtype if dtype is None else DTYPES[dtype], device=x.device)
    return ones.tril(k).triu(k)


def one_hot(indices: Tensor, depth: Any, values: Tensor, *, axis: int = -1) -> Tensor:
    count = int(number(depth))
    places = torch.arange(count, device=indices.device)
    at = axis if axis >= 0 else axis + indices.dim() + 1
    wanted = indices.to(torch.int64).unsqueeze(at)
    wanted = torch.where(wanted < 0, wanted + count, wanted)
    hit = wanted == places.reshape([-1] + [1] * (indices.dim() - at))
    return torch.where(hit, values[1], values[0])


def trilu(x: Tensor, k: Any = 0, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(number(k))
    return x.triu(diagonal) if upper else x.tril(diagonal)


def non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x).t()


# -- parts -------------------------------------------------------------------------------------------------------------


def slice_(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    first, last = ints(starts), ints(ends)
    places = list(range(len(first))) if axes is None else ints(axes)
    strides = [1] * len(first) if steps is None else ints(steps)
    cut: list[slice] = [slice(None)] * x.dim()
    for start, end, axis, step in zip(first, last, places, strides, strict=True):
        if step > 0:
            cut[axis] = slice(start, end, step)
        else:  # torch steps forwards only
            picked = range(*slice(start, end, step).indices(x.shape[axis]))
            x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64, device=x.device))
    return x[tuple(cut)]


def _wrapped(indices: Tensor, extent: int) -> Tensor:
    """Indices without negative ones, as torch wants them."""
    wide = indices.to(torch.int64)
    return torch.where(wide < 0, wide + extent, wide)


def gather(x: Tensor, indices: Any, *, axis: int = 0) -> Tensor:
    if not isinstance(indices, Tensor):
        if not isinstance(indices, list):
            return x.select(axis, indices)
        indices = torch.tensor(indices, dtype=torch.int64, device=x.device)
    axis = axis % x.dim()
    flat = _wrapped(indices, x.shape[axis]).reshape(-1)
    return x.index_select(axis, flat).reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


def _linear(indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Tuples of indices (in the last axis) as places in the flattened axes of ``shape``."""
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for axis, extent in enumerate(shape):
        place = place * extent + _wrapped(indices[..., axis], extent)
    return place


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    depth = indices.shape[-1]
    batch = x.shape[:batch_dims]
    inner, rest = x.shape[batch_dims : batch_dims + depth], x.shape[batch_dims + depth :]
    many = math.prod(batch)
    place = _linear(indices, inner).reshape(many, -1)
    place = place + torch.arange(many, device=x.device).unsqueeze(1) * math.prod(inner)
    rows = x.reshape((many * math.prod(inner), *rest)).index_select(0, place.reshape(-1))
    return rows.reshape((*indices.shape[:-1], *rest))


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    places = _wrapped(indices, x.shape[axis])
    if reduction == "none":
        return torch.scatter(x, axis, places, updates)
    return torch.scatter_reduce(x, axis, places, updates, _REDUCTIONS[reduction])


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    depth = indices.shape[-1]
    rest = math.prod(x.shape[depth:])
    rows = x.reshape(math.prod(x.shape[:depth]), rest)
    place = _linear(indices, x.shape[:depth]).reshape(-1, 1).expand(-1, rest)
    return scatter_elements(rows, place, updates.reshape(-1, rest), reduction=reduction).reshape(x.shape)


def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


def reverse_sequence(x: Tensor, sequence_lens: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    moved = x.movedim((batch_axis, time_axis), (0, 1))
    steps = torch.arange(moved.shape[1], device=x.device).unsqueeze(0)
    lengths = sequence_lens.to(torch.int64).unsqueeze(1)
    order = torch.where(steps < lengths, lengths - 1 - steps, steps)
    rows = torch.arange(moved.shape[0], device=x.device).unsqueeze(1)
    return moved[rows, order].movedim((0, 1), (batch_axis, time_axis))


# -- padding -----------------------------------------------------------------------------------------------------------


def pad(
    x: Tensor, pads: Any, constant_value: Any = None, axes: Any = None, *, mode: str = "constant", value: float = 0.0
) -> Tensor:  # fmt: skip
    """Negative pads crop. ``value`` is the filling as an attribute, before opset 11."""
    widths = ints(pads)
    places = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in ints(axes)]
    before = dict(zip(places, widths[: len(places)], strict=True))
    after = dict(zip(places, widths[len(places) :], strict=True))
    if mode == "constant":
        fill = value if constant_value is None else number(constant_value)
        flat = [
            width for axis in reversed(range(x.dim())) for width in (before.get(axis, 0), after.get(axis, 0))
        ]
        return F.pad(x, flat, value=fill)
    for axis in places:
        if before[axis] or after[axis]:
            x = _extend(x, axis, before[axis], after[axis], mode)
    return x


def _extend(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    extent = x.shape[axis]
    at = torch.arange(-before, extent + after, device=x.device)
    if mode == "edge":
        at = at.clamp(0, extent - 1)
    elif mode == "wrap":
        at = at % extent
    else:  # reflect, without the edge itself
        period = max(2 * (extent - 1), 1)
        at = at % period
        at = torch.where(at >= extent, period - at, at)
    return x.index_select(axis, at)
