"""What ONNX operators make of a channel that is one number everywhere, and how they name the axes they work along."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from elastic_ir.ir.graph import Argument, Literal, Node
from elastic_ir.onnx_model.evaluate import run_nodes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def elementwise(node: Node, constants: Floats, opsets: Mapping[str, int]) -> Floats:
    """A pointwise operator's results on constant channels, [channels]; NaN where a channel is not constant.

    Operands behind the first are literals. Without ``opsets`` the newest ones are meant.
    """
    import numpy as np
    import onnx

    result = np.full(constants.shape, math.nan)
    known = np.isfinite(constants)
    if not known.any():
        return result
    arrays = {"x": constants[known]}
    for place, item in enumerate(node.args[1:]):
        if isinstance(item, Literal):
            arrays[f"x{place}"] = np.array(item.values[0], np.float64)
    names = ["x", *(f"x{place}" if item is not None else "" for place, item in enumerate(node.args[1:]))]
    attributes: dict[str, Any] = dict(node.attributes)
    proto = onnx.helper.make_node(node.op.removeprefix("onnx."), names, ["result"], **attributes)
    # Errors of many kinds: an operator that the reference implementation lacks, or a form of another version.
    with np.errstate(all="ignore"), contextlib.suppress(Exception):
        result[known] = run_nodes([proto], arrays, opsets or {"": onnx.defs.onnx_opset_version()})
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
    import numpy as np

    if node.op == "onnx.AveragePool" and node.attributes.get("count_include_pad", 0) and pads(node):
        return np.where(constants == 0, 0.0, math.nan)
    return constants
