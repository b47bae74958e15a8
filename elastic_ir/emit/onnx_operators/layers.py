"""ONNX convolutions and pools as torch functions: paddings that differ between the ends, automatic ones, round-up.

Where torch's own function means the same it is used; else inputs are padded, or windows added up, one axis at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d,
}  # fmt: skip
_MAX: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _paddings(
    auto_pad: str, pads: list[int] | None, extents: list[int], kernel: list[int], strides: list[int],
    dilations: list[int],
) -> tuple[list[int], list[int]]:  # fmt: skip
    """The widths before and behind each spatial axis."""
    rank = len(extents)
    if auto_pad in ("NOTSET", "VALID"):
        widths = [0] * (2 * rank) if pads is None or auto_pad == "VALID" else pads
        return widths[:rank], widths[rank:]
    axes = zip(extents, kernel, strides, dilations, strict=True)
    return _halves(
        auto_pad,
        [
            max((-(-extent // stride) - 1) * stride + (size - 1) * dilation + 1 - extent, 0)
            for extent, size, stride, dilation in axes
        ],
    )


def _halves(auto_pad: str, totals: list[int]) -> tuple[list[int], list[int]]:
    """Widths shared out between both ends; the odd one is behind for SAME_UPPER, else before."""
    less = [total // 2 for total in totals]
    more = [total - total // 2 for total in totals]
    return (less, more) if auto_pad == "SAME_UPPER" else (more, less)


def _padded(x: Tensor, before: list[int], after: list[int], value: float = 0.0) -> Tensor:
    if not any(before) and not any(after):
        return x
    return F.pad(
        x, [width for ends in zip(before[::-1], after[::-1], strict=True) for width in ends], value=value
    )


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, auto_pad: str = "NOTSET",
    dilations: list[int] | None = None, group: int = 1, kernel_shape: list[int] | None = None,
    pads: list[int] | None = None, strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    rank = x.dim() - 2
    step, spread = strides or [1] * rank, dilations or [1] * rank
    before, after = _paddings(auto_pad, pads, list(x.shape[2:]), list(weight.shape[2:]), step, spread)
    if before != after:
        x, before = _padded(x, before, after), [0] * rank
    return _CONV[rank](x, weight, bias, step, before, spread, group)


def conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, auto_pad: str = "NOTSET",
    dilations: list[int] | None = None, group: int = 1, kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None, output_shape: list[int] | None = None, pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    rank = x.dim() - 2
    step, spread, extra = strides or [1] * rank, dilations or [1] * rank, output_padding or [0] * rank
    before, after = _paddings("NOTSET", pads if auto_pad != "VALID" else None, [0] * rank, [], [], [])
    if auto_pad.startswith("SAME") and output_shape is None:
        output_shape = [extent * stride for extent, stride in zip(x.shape[2:], step, strict=True)]
    if output_shape is not None:
        axes = zip(x.shape[2:], weight.shape[2:], step, spread, extra, output_shape[-rank:], strict=True)
        totals = [s * (n - 1) + e + (k - 1) * d + 1 - wanted for n, k, s, d, e, wanted in axes]
        before, after = _halves(auto_pad, totals)
    small = all(more < max(stride, wide) for more, stride, wide in zip(extra, step, spread, strict=True))
    if before == after and small and min(before) >= 0:
        return _CONV_TRANSPOSE[rank](x, weight, bias, step, before, extra, group, spread)
    full_result = _CONV_TRANSPOSE[rank](x, weight, None, step, 0, 0, group, spread)
    ends = [more - width for more, width in zip(extra, after, strict=True)]
    result = _padded(full_result, [-width for width in before], ends)
    return result if bias is None else result + bias.reshape([-1] + [1] * rank)


# -- pools -------------------------------------------------------------------------------------------------------------


class _Pool:
    """The windows of a pool over one input: paddings, and how many windows each axis has."""

    def __init__(
        self, x: Tensor, kernel: list[int], auto_pad: str, ceil_mode: int, dilations: list[int] | None,
        pads: list[int] | None, strides: list[int] | None,
    ) -> None:  # fmt: skip
        rank = len(kernel)
        self.kernel, self.strides, self.dilations = kernel, strides or [1] * rank, dilations or [1] * rank
        self.extents = list(x.shape[2:])
        self.before, self.after = _paddings(
            auto_pad, pads, self.extents, kernel, self.strides, self.dilations
        )
        self.counts = []
        self.missing = []  #: how far the last window reaches behind the padding, where counts are rounded up
        for axis, extent in enumerate(self.extents):
            span, stride = self.span(axis), self.strides[axis]
            room = extent + self.before[axis] + self.after[axis] - span
            count = (-(-room // stride) if ceil_mode else room // stride) + 1
            if ceil_mode and (count - 1) * stride >= extent + self.before[axis]:
                count -= 1  # a window may not begin in the padding behind
            self.counts.append(count)
            self.missing.append(
                max((count - 1) * stride + span - (extent + self.before[axis] + self.after[axis]), 0)
            )

    def span(self, axis: int) -> int:
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    @property
    def plain(self) -> bool:
        """Whether torch's pools take these paddings."""
        fits = all(2 * width <= size for width, size in zip(self.before, self.kernel, strict=True))
        return self.before == self.after and fits and 1 <= len(self.kernel) <= 3

    def padded(self, x: Tensor, value: float) -> Tensor:
        ends = [width + rest for width, rest in zip(self.after, self.missing, strict=True)]
        return _padded(x, self.before, ends, value)

    def windows(self, x: Tensor) -> Tensor:
        """What is in each window of a padded input: [batch, channels, *windows, *kernel]."""
        for axis, count in enumerate(self.counts):
            x = x.unfold(2 + axis, self.span(axis), self.strides[axis])
            x = x.narrow(2 + axis, 0, count)[..., :: self.dilations[axis]]
        return x

    def sums(self, x: Tensor) -> Tensor:
        """The sum over each window of a padded input."""
        return self.windows(x).flatten(2 + len(self.kernel)).sum(-1)

    def sizes(self, like: Tensor, *, padding: bool) -> Tensor:
        """How many elements each window has; those of the padding count if ``padding``."""
        shape = [extent + a + b for extent, a, b in zip(self.extents, self.before, self.after, strict=True)]
        ones = torch.ones([1, 1, *(shape if padding else self.extents)], dtype=like.dtype, device=like.device)
        return self.sums(_padded(ones, [0] * len(shape), self.missing) if padding else self.padded(ones, 0))


def max_pool(
    x: Tensor, *, kernel_shape: list[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: list[int] | None = None, pads: list[int] | None = None, storage_order: int = 0,
    strides: list[int] | None = None, outputs: int,
) -> Any:  # fmt: skip
    pool = _Pool(x, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides)
    rank = len(kernel_shape)
    real = x if x.is_floating_point() else x.to(torch.float32)  # eight-bit numbers
    if outputs == 1 and not pool.plain:
        return pool.windows(pool.padded(real, -math.inf)).flatten(2 + rank).amax(-1).to(x.dtype)
    if outputs == 1:
        values = _MAX[rank](real, pool.kernel, pool.strides, pool.before, pool.dilations, bool(ceil_mode))
        return values.to(x.dtype)
    padding, offset = (pool.before, [0] * rank) if pool.plain else ([0] * rank, pool.before)
    real = real if pool.plain else pool.padded(real, -math.inf)
    values, places = _MAX[rank](
        real, pool.kernel, pool.strides, padding, pool.dilations, bool(ceil_mode) and pool.plain, True
    )
    return values.to(x.dtype), _flat_places(places, x, list(real.shape[2:]), offset, storage_order)


def _flat_places(
    places: Tensor, x: Tensor, padded: list[int], offset: list[int], column_major: int
) -> Tensor:
    """Indices within padded planes as indices into the whole input."""
    coordinates = []
    for axis in reversed(range(len(padded))):
        coordinates.append(places % padded[axis] - offset[axis])
        places = places // padded[axis]
    coordinates.reverse()
    order = range(len(padded))
    flat = torch.zeros_like(coordinates[0])
    for axis in reversed(order) if column_major else order:
        flat = flat * x.shape[2 + axis] + coordinates[axis]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device)
    return flat + planes.reshape([x.shape[0], x.shape[1]] + [1] * len(padded)) * math.prod(x.shape[2:])


def average_pool(
    x: Tensor, *, kernel_shape: list[int], auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
    dilations: list[int] | None = None, pads: list[int] | None = None, strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    pool = _Pool(x, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides)
    if pool.plain and set(pool.dilations) == {1}:
        return _AVERAGE[len(kernel_shape)](
            x, pool.kernel, pool.strides, pool.before, bool(ceil_mode), bool(count_include_pad)
        )
    return pool.sums(pool.padded(x, 0)) / pool.sizes(x, padding=bool(count_include_pad))


def lp_pool(
    x: Tensor, *, kernel_shape: list[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: list[int] | None = None, p: int = 2, pads: list[int] | None = None, strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    pool = _Pool(x, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides)
    return pool.sums(pool.padded(x.abs() ** p, 0)) ** (1 / p)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(_spatial(x), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(_spatial(x), keepdim=True)


def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    return (x.abs() ** p).sum(_spatial(x), keepdim=True) ** (1 / p)


# -- with an activation, as onnxruntime writes them --------------------------------------------------------------------


#: What onnxruntime fuses with a convolution; each takes its parameters behind the input.
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "Clip": torch.clamp,
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "LeakyRelu": F.leaky_relu,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
}


def fused_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, added: Tensor | None = None, *, activation: str,
    activation_params: list[float] | None = None, auto_pad: str = "NOTSET", dilations: list[int] | None = None,
    group: int = 1, kernel_shape: list[int] | None = None, pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    result = conv(
        x, weight, bias, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides
    )
    return ACTIVATIONS[activation](result if added is None else result + added, *(activation_params or []))
