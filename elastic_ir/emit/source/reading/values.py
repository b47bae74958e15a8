"""Tensors that a state dict leaves out, written as source: what makes them, where that shows, else their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from elastic_ir.emit.source.expr import Expr, call, group, lit, literal, method, raw
from elastic_ir.emit.source.text import Printer
from elastic_ir.errors import EmitError
from elastic_ir.tensors.lazy import ShapeOnly
from elastic_ir.tensors.torch_bridge import to_torch
from elastic_ir.tensors.weights import Weight

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
    for expr in _rules(tensor):
        made = eval(Printer().text(expr), scope)
        if made.dtype == tensor.dtype and torch.equal(made, tensor):
            return expr
    if tensor.numel() > LIMIT:
        raise EmitError(
            f"the buffer {weight.name!r} ({tensor.numel():,} numbers) is in no state dict, and its numbers show no "
            "rule by which source could make them; register it as a persistent buffer"
        )
    return call("torch.tensor", literal(tensor.tolist()), **_typed(tensor, torch.float32))


def _typed(tensor: torch.Tensor, usual: torch.dtype) -> dict[str, Expr]:
    return {} if tensor.dtype == usual else {"dtype": raw(str(tensor.dtype))}


def _rules(tensor: torch.Tensor) -> Iterator[Expr]:
    """Candidates: constants, counting, tables of attention, the frequencies of rotary positions."""
    kind, shape = tensor.dtype, [lit(extent) for extent in tensor.shape]
    for name in ("torch.zeros", "torch.ones"):
        yield call(name, *shape or [group("tuple", ())], **_typed(tensor, torch.float32))
    count = tensor.numel()
    if not count:
        return
    first = tensor.reshape(-1)[0].item()
    yield call("torch.full", group("tuple", shape), lit(first), dtype=raw(str(kind)))
    if shape and not kind.is_complex and kind != torch.bool:
        counting = call("torch.arange", shape[-1], **_typed(tensor, torch.int64))
        yield counting if len(shape) == 1 else method("repeat", counting, *shape[:-1], lit(1))
    side = tensor.shape[-1] if shape else 0
    if len(shape) >= 2 and count == side * side:
        view = "" if len(shape) == 2 else f".view({', '.join(map(str, tensor.shape))})"
        yield raw(f"torch.ones({side}, {side}, dtype={kind}).tril(){view}")
    side = round(count**0.25)
    if kind == torch.int64 and side > 1 and side**4 == count:
        yield raw(f"relative_positions({side})" + ("" if len(shape) == 2 else ".flatten()"))
    if len(shape) == 1 and kind == torch.float32 and first == 1.0 and count > 1:
        for theta in (10000.0, 500000.0, 1000000.0, 100.0):
            steps = f"torch.arange(0, {2 * count}, 2, dtype=torch.float32) / {2 * count}"
            yield raw(f"1.0 / ({theta} ** ({steps}))")
