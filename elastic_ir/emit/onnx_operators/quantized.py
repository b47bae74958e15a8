"""ONNX operators of quantised networks as torch functions. Rounding has no gradient: nothing before it learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elastic_ir.emit.onnx_operators.layers import conv
from elastic_ir.emit.onnx_operators.math import DTYPES


def _along(item: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """Scales or zero points laid out over a tensor: one for all, one for each place of an axis, one for each block."""
    if item.numel() == 1 and item.dim() <= 1:
        return item.reshape(())
    if block_size:
        return item.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    return item.reshape([-1 if place == axis % x.dim() else 1 for place in range(x.dim())])


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    saturate: int = 1,
    output_dtype: int = 0,
) -> Tensor:
    kind = DTYPES[output_dtype or 2] if zero_point is None else zero_point.dtype
    steps = torch.round(x.to(scale.dtype) / _along(scale, x, axis, block_size)).to(torch.int32)
    if zero_point is not None:
        steps = steps + _along(zero_point.to(torch.int32), x, axis, block_size)
    limits = torch.iinfo(kind)
    return steps.clamp(limits.min, limits.max).to(kind)


def dequantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1, block_size: int = 0
) -> Tensor:
    steps = x.to(torch.int32)
    if zero_point is not None:
        steps = steps - _along(zero_point.to(torch.int32), x, axis, block_size)
    return steps.to(scale.dtype) * _along(scale, x, axis, block_size)


def dynamic_quantize(x: Tensor, *, outputs: int) -> Any:
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.round(-low / scale).clamp(0, 255).to(torch.uint8)
    found = quantize(x, scale, zero), scale, zero
    return found[:outputs] if outputs > 1 else found[0]


def matmul_integer(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    wide, other = a.to(torch.int32), b.to(torch.int32)
    if a_zero_point is not None:
        zero = a_zero_point.to(torch.int32)
        wide = wide - (zero.unsqueeze(-1) if zero.dim() == 1 and zero.numel() > 1 else zero)
    if b_zero_point is not None:
        other = other - b_zero_point.to(torch.int32)
    return torch.matmul(wide, other)


def conv_integer(
    x: Tensor, weight: Tensor, x_zero_point: Tensor | None = None, w_zero_point: Tensor | None = None, *,
    auto_pad: str = "NOTSET", dilations: list[int] | None = None, group: int = 1,
    kernel_shape: list[int] | None = None, pads: list[int] | None = None, strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    """In doubles, which hold every sum of such products exactly; zeros are padded where the zero point is one."""
    wide, kernel = x.to(torch.float64), weight.to(torch.float64)
    if x_zero_point is not None:
        wide = wide - x_zero_point.to(torch.float64)
    if w_zero_point is not None:
        kernel = kernel - _along(w_zero_point.to(torch.float64), kernel, 0, 0)
    return conv(
        wide, kernel, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides
    ).to(torch.int32)
