"""Tensors that a state dict leaves out, written as source: what makes them, where that shows, else their numbers."""

from __future__ import annotations

import torch

from elastic_ir.emit.source.expressions.expr import Expr, lit, literal, raw
from elastic_ir.errors import EmitError
from elastic_ir.tensors.lazy import ShapeOnly
from elastic_ir.tensors.torch_bridge import to_torch
from elastic_ir.tensors.weights import Weight

LIMIT = 512  #: numbers that are still written out one by one


def value_of(weight: Weight) -> Expr:
    """An expression that makes a buffer's tensor, exactly; EmitError where its numbers show no rule and are many."""
    data = weight.storage.data
    if isinstance(data, ShapeOnly):
        raise EmitError(
            f"the buffer {weight.name!r} is in no state dict and has no values on the meta device"
        )
    tensor = to_torch(data)
    dtype = Expr("raw", str(tensor.dtype))
    if not tensor.numel():
        return _make("torch.zeros", [lit(n) for n in tensor.shape], dtype, tensor.dtype)
    for made, expr in _rules(tensor, dtype):
        if made.dtype == tensor.dtype and made.shape == tensor.shape and torch.equal(made, tensor):
            return expr
    if tensor.numel() > LIMIT:
        raise EmitError(
            f"the buffer {weight.name!r} ({tensor.numel():,} numbers) is in no state dict, and its numbers show no "
            "rule by which source could make them; register it as a persistent buffer"
        )
    return _make("torch.tensor", [literal(tensor.tolist())], dtype, tensor.dtype)


def _make(name: str, parts: list[Expr], dtype: Expr, kind: torch.dtype) -> Expr:
    if name in ("torch.zeros", "torch.ones") and not parts:
        parts = [Expr("tuple")]
    plain = kind == torch.float32
    names = ("",) * len(parts) + (() if plain else ("dtype",))
    return Expr("call", name, (*parts, *(() if plain else (dtype,))), names)


def _rules(tensor: torch.Tensor, dtype: Expr) -> list[tuple[torch.Tensor, Expr]]:
    """Candidates: constants, counting, tables of attention, the frequencies of rotary positions."""
    shape = [lit(n) for n in tensor.shape]
    found: list[tuple[torch.Tensor, Expr]] = []
    kind = tensor.dtype
    first = tensor.reshape(-1)[0].item()
    if first == 0:
        found.append((torch.zeros_like(tensor), _make("torch.zeros", shape, dtype, kind)))
    if first == 1:
        found.append((torch.ones_like(tensor), _make("torch.ones", shape, dtype, kind)))
    found.append(
        (torch.full_like(tensor, first),
         Expr("call", "torch.full", (Expr("tuple", None, tuple(shape)), lit(first), dtype), ("", "", "dtype")))
    )  # fmt: skip
    if tensor.dim() >= 1 and not kind.is_complex and kind != torch.bool:
        count = tensor.shape[-1]
        counting = torch.arange(count, dtype=kind).expand(tensor.shape)
        base = _make(
            "torch.arange", [lit(count)], Expr("raw", str(kind)), torch.int64 if kind == torch.int64 else kind
        )
        if kind == torch.int64:
            base = Expr("call", "torch.arange", (lit(count),), ("",))
        elif kind == torch.float32:
            base = Expr("call", "torch.arange", (lit(count), dtype), ("", "dtype"))
        if tensor.dim() > 1:
            base = Expr(
                "method",
                "repeat",
                (base, *(lit(n) for n in tensor.shape[:-1]), lit(1)),
                ("",) * (tensor.dim() + 1),
            )
        found.append((counting.contiguous(), base))
    if tensor.dim() >= 2 and tensor.shape[-1] == tensor.shape[-2]:
        side = tensor.shape[-1]
        lower = torch.ones(side, side, dtype=kind).tril()
        text = f"torch.ones({side}, {side}, dtype={kind}).tril()"
        if tensor.dim() > 2:
            text += f".view({', '.join(str(n) for n in tensor.shape)})"
        if tensor.numel() == side * side:
            found.append((lower.view(tensor.shape), raw(text)))
    for pairs in (tensor.numel(),):
        side = round(pairs**0.25)
        if kind == torch.int64 and side > 1 and side**4 == pairs:
            steps = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
            rows, columns = (step[:, None] - step[None, :] + side - 1 for step in steps)
            text = f"relative_positions({side})" + ("" if tensor.dim() == 2 else ".flatten()")
            found.append(((rows * (2 * side - 1) + columns).view(tensor.shape), raw(text)))
    if tensor.dim() == 1 and kind == torch.float32 and first == 1.0 and tensor.numel() > 1:
        size = 2 * tensor.numel()
        for theta in (10000.0, 500000.0, 1000000.0, 100.0):
            made = 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
            text = f"1.0 / ({theta} ** (torch.arange(0, {size}, 2, dtype=torch.float32) / {size}))"
            found.append((made, raw(text)))
    return found
