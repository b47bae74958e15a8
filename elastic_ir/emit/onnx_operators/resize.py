"""ONNX's Resize, and GridSample, as torch functions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elastic_ir.emit.onnx_operators.sizes import ints

ONLY: dict[str, tuple[Any, ...]] = {
    "antialias": (0,), "mode": ("nearest", "linear", "cubic"),
    "coordinate_transformation_mode": (
        "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners",
        "asymmetric", "tf_half_pixel_for_nn",
    ),
}  # fmt: skip


def resize(
    x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None, *, antialias: int = 0,
    axes: list[int] | None = None, coordinate_transformation_mode: str = "half_pixel", cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0, extrapolation_value: float = 0.0, keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest", nearest_mode: str = "round_prefer_floor",
) -> Tensor:  # fmt: skip
    """Axis by axis, with weights computed in Python: exact for every mode, where torch.interpolate has a few."""
    places = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
    factors = [] if scales is None else [float(factor) for factor in ints(scales)]
    wanted = [] if sizes is None else ints(sizes)
    if wanted:
        factors = [wanted[i] / x.shape[axis] for i, axis in enumerate(places)]
        if keep_aspect_ratio_policy != "stretch":
            factor = (min if keep_aspect_ratio_policy == "not_larger" else max)(factors)
            factors = [factor] * len(places)
            wanted = [math.floor(factor * x.shape[axis] + 0.5) for axis in places]
    else:
        wanted = [math.floor(x.shape[axis] * factor) for axis, factor in zip(places, factors, strict=True)]
    for axis, target, factor in zip(places, wanted, factors, strict=True):
        if target == x.shape[axis] and factor == 1:
            continue
        extent = x.shape[axis]
        at = [_coordinate(i, extent, target, factor, coordinate_transformation_mode) for i in range(target)]
        if mode == "nearest":
            picked = [min(max(_nearest(place, nearest_mode), 0), extent - 1) for place in at]
            x = x.index_select(axis, torch.tensor(picked, device=x.device))
        elif mode == "linear":
            x = _blend(x, axis, [_linear_taps(place) for place in at], exclude=False)
        else:
            x = _blend(
                x, axis, [_cubic_taps(place, cubic_coeff_a) for place in at], exclude=bool(exclude_outside)
            )
    return x


def upsample(x: Tensor, scales: Any, *, mode: str = "nearest") -> Tensor:
    """Resize as it was before opset 10."""
    return resize(
        x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )


def _coordinate(place: int, extent: int, target: int, factor: float, mode: str) -> float:
    if mode == "asymmetric":
        return place / factor
    if mode == "align_corners":
        return place * (extent - 1) / (target - 1) if target > 1 else 0.0
    if mode == "pytorch_half_pixel" and target <= 1:
        return 0.0
    if mode == "tf_half_pixel_for_nn":
        return (place + 0.5) / factor
    at = (place + 0.5) / factor - 0.5
    if mode == "half_pixel_symmetric":
        return extent / 2 * (1 - target / (factor * extent)) + at
    return at


def _nearest(place: float, mode: str) -> int:
    if mode == "floor":
        return math.floor(place)
    if mode == "ceil":
        return math.ceil(place)
    return math.ceil(place - 0.5) if mode == "round_prefer_floor" else math.floor(place + 0.5)


def _linear_taps(place: float) -> list[tuple[int, float]]:
    first = math.floor(place)
    return [(first, 1 - (place - first)), (first + 1, place - first)]


def _cubic_taps(place: float, a: float) -> list[tuple[int, float]]:
    first = math.floor(place)
    near, far = place - first, 1 - (place - first)

    def inner(t: float) -> float:
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def outer(t: float) -> float:
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    weights = (outer(near + 1), inner(near), inner(far), outer(far + 1))
    return [(first - 1 + i, weight) for i, weight in enumerate(weights)]


def _blend(x: Tensor, axis: int, taps: list[list[tuple[int, float]]], *, exclude: bool) -> Tensor:
    """Weighted sums of what is at the taps; those outside take the edge's value, or count nothing if ``exclude``."""
    extent = x.shape[axis]
    result: Tensor | None = None
    weights = [[w if not exclude or 0 <= place < extent else 0.0 for place, w in row] for row in taps]
    if exclude:
        weights = [[w / sum(row) for w in row] for row in weights]
    for number_of_tap in range(len(taps[0])):
        at = [min(max(row[number_of_tap][0], 0), extent - 1) for row in taps]
        factor = torch.tensor([row[number_of_tap] for row in weights], dtype=x.dtype, device=x.device)
        part = x.index_select(axis, torch.tensor(at, device=x.device))
        part = part * factor.reshape([-1 if place == axis else 1 for place in range(x.dim())])
        result = part if result is None else result + part
    assert result is not None
    return result


def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    names = {"linear": "bilinear", "cubic": "bicubic"}
    return F.grid_sample(x, grid, names.get(mode, mode), padding_mode, bool(align_corners))
