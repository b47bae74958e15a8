"""What ONNX operators make of a channel that is one number everywhere, and how they name the axes they work along."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from elastic_ir.ir.graph import Argument, Literal, Node

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def _gelu(x: Floats, node: Node) -> Floats:
    tanh = node.attributes.get("approximate", "none") == "tanh"
    inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)) if tanh else _erf(x / math.sqrt(2))
    result: Floats = 0.5 * x * (1 + inner)
    return result


def _erf(x: Floats) -> Floats:
    return np.array([math.erf(item) for item in x.tolist()], np.float64)


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def _factor(node: Node, name: str, default: float) -> float:
    value = node.attributes.get(name, default)
    return float(value) if isinstance(value, (int, float)) else math.nan


def _bounded(x: Floats, node: Node) -> Floats:
    low, high = clip_bounds(node)
    return np.minimum(np.maximum(x, low), high)


def clip_bounds(node: Node) -> tuple[float, float]:
    """The bounds of a Clip, from its attributes or its operands; NaN for one that is computed."""
    found = []
    for place, name, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        given = node.args[place] if len(node.args) > place else None
        if isinstance(given, Literal):
            found.append(float(given.values[0]))
        else:
            found.append(_factor(node, name, default) if given is None else math.nan)
    return found[0], found[1]


#: Element by element, from one tensor.
UNARY: dict[str, Callable[[Any, Node], Any]] = {
    "Relu": lambda x, _: np.maximum(x, 0.0),
    "LeakyRelu": lambda x, n: np.where(x < 0, _factor(n, "alpha", 0.01) * x, x),
    "ThresholdedRelu": lambda x, n: np.where(x > _factor(n, "alpha", 1.0), x, 0.0),
    "Clip": _bounded,
    "Sigmoid": lambda x, _: _sigmoid(x),
    "HardSigmoid": lambda x, n: np.clip(_factor(n, "alpha", 0.2) * x + _factor(n, "beta", 0.5), 0, 1),
    "HardSwish": lambda x, _: x * np.clip(x / 6 + 0.5, 0, 1),
    "Tanh": lambda x, _: np.tanh(x),
    "Elu": lambda x, n: np.where(x < 0, _factor(n, "alpha", 1.0) * np.expm1(x), x),
    "Celu": lambda x, n: np.where(
        x < 0, _factor(n, "alpha", 1.0) * np.expm1(x / _factor(n, "alpha", 1.0)), x
    ),
    "Selu": lambda x, n: (
        _factor(n, "gamma", 1.0507009873554805)
        * np.where(x < 0, _factor(n, "alpha", 1.6732632423543772) * np.expm1(x), x)
    ),
    "Softplus": lambda x, _: np.logaddexp(0.0, x),
    "Softsign": lambda x, _: x / (1 + np.abs(x)),
    "Mish": lambda x, _: x * np.tanh(np.logaddexp(0.0, x)),
    "Gelu": _gelu,
    "Erf": lambda x, _: _erf(x),
    "Exp": lambda x, _: np.exp(x),
    "Log": lambda x, _: np.log(x),
    "Sqrt": lambda x, _: np.sqrt(x),
    "Reciprocal": lambda x, _: 1 / x,
    "Neg": lambda x, _: -x,
    "Abs": lambda x, _: np.abs(x),
}
#: Element by element, from two tensors or more.
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": np.add, "Sum": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power,
    "Max": np.maximum, "Min": np.minimum, "PRelu": lambda x, slope: np.where(x < 0, slope * x, x),
}  # fmt: skip


def unary(node: Node, constants: Floats) -> Floats:
    """The results on constant channels; NaN stays where a channel is not constant."""
    with np.errstate(all="ignore"):
        result: Floats = UNARY[node.op.removeprefix("onnx.")](constants, node)
    return np.where(np.isfinite(constants) & np.isfinite(result), result, math.nan)


def binary(kind: str, left: Floats, right: Floats) -> Floats:
    """The results on constant channels; a product with zero is zero whatever the other is."""
    with np.errstate(all="ignore"):
        result: Floats = BINARY[kind](left, right)
        if kind == "Mul":
            result = np.where((left == 0) | (right == 0), 0.0, result)
    return np.where(np.isfinite(result), result, math.nan)


def whole_numbers(item: Argument) -> list[int] | None:
    """The integers of a literal operand, or of an attribute; None for anything else."""
    if isinstance(item, Literal) and not item.dtype.startswith("float"):
        return [int(value) for value in item.values]
    if isinstance(item, (list, tuple)) and all(isinstance(value, int) for value in item):
        return [int(value) for value in item if isinstance(value, int)]
    return None


def axes_of(node: Node, place: int, rank: int) -> list[int] | None:
    """The axes that a node names, counted from the front: as an attribute, or as an operand in later opsets."""
    given = node.args[place] if len(node.args) > place else None
    found = whole_numbers(given if given is not None else node.attributes.get("axes"))
    return None if found is None else [axis % rank for axis in found]


def operand(node: Node, place: int) -> Argument:
    """An operand, or None where the node leaves it out."""
    return node.args[place] if place < len(node.args) else None


def pads(node: Node) -> bool:
    """Whether a convolution or pool may read beyond the border."""
    given = whole_numbers(node.attributes.get("pads", [])) or []
    return any(given) or str(node.attributes.get("auto_pad", "NOTSET")).startswith("SAME")


def pooled(node: Node, constants: Floats) -> Floats:
    """A pool's results on constant channels: zeros that are averaged in make borders differ."""
    if node.op == "onnx.AveragePool" and node.attributes.get("count_include_pad", 0) and pads(node):
        return np.where(constants == 0, 0.0, math.nan)
    return constants
