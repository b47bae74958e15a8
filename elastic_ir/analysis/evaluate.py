"""Evaluating nodes whose operands are all known: plain numbers at once, tensors of weights when they are read.

Torch's functions are found by name among the pure ones; ONNX's operators run in the reference implementation of the
onnx package, which is what the operators mean.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import EmitError
from elastic_ir.ir.functions import OPERATORS, method_allowed, resolve_function
from elastic_ir.ir.graph import Argument, Literal, Node, Symbol, Value, WeightRef, map_argument
from elastic_ir.onnx_model import OnnxSource, opsets_of
from elastic_ir.onnx_model.arithmetic import LARGEST, is_small, run_operators
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.recipes import Recipe

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

_BUILTINS: dict[str, Any] = {"int": int, "float": float, "bool": bool, "len": len, "min": min, "max": max}


def plain_result(node: Node) -> Any:
    """What a node of plain numbers gives, or None where it reads anything else, fails, or is not arithmetic."""
    place, _, name = node.op.rpartition(".")
    plain = True

    def look(leaf: Argument) -> Argument:
        nonlocal plain
        plain &= leaf is None or type(leaf) in (bool, int, float)
        return leaf

    map_argument((node.args, node.kwargs), look)
    function = None
    if place == "operator" and name in OPERATORS:
        function = getattr(operator, name)
    elif place == "math":
        function = getattr(math, name, None)
    elif place in ("", "builtins"):
        function = _BUILTINS.get(name)
    if not plain or function is None or node.kind != "function":
        return None
    try:
        result = function(*node.args, **node.kwargs)
    except (ArithmeticError, TypeError, ValueError, IndexError):
        return None
    items = result if isinstance(result, (tuple, list)) else (result,)
    return result if all(type(item) in (bool, int, float) for item in items) else None


@dataclass(frozen=True, eq=False)
class Evaluated(Recipe):
    """A tensor that nodes compute from weights alone; they run when it is read."""

    nodes: tuple[Node, ...]  #: copies, in the order they run, the last the result
    weights: Mapping[str, TensorData]
    shape: tuple[int, ...]
    dtype: str
    source: OnnxSource | None = None

    def chunks(self) -> Iterator[memoryview]:
        from elastic_ir.tensors.torch_bridge import TorchData, to_torch

        if self.source is not None:
            import numpy as np

            from elastic_ir.tensors.arrays import as_array

            arrays = {name: as_array(data) for name, data in self.weights.items()}
            array = run_operators(self.nodes, arrays, {}, opsets_of(self.source.model), self.source.model)
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            return
        tensors = {name: to_torch(data) for name, data in self.weights.items()}
        yield from TorchData(run_torch(self.nodes, tensors).contiguous()).chunks()

    def carried(self, moment: torch.Tensor) -> torch.Tensor | None:
        """Refused: what was computed in training is fixed now."""
        raise EmitError(
            "fold-constants has fixed what was computed of weights, and an optimizer's state cannot "
            "follow; train before folding"
        )


def can_run_torch(node: Node) -> bool:
    """Whether a node is a function or method of torch that its name finds."""
    if node.kind == "method":
        return method_allowed(node.op.removeprefix("method."))
    if node.kind != "function":
        return False
    try:
        resolve_function(node.op)
    except EmitError:
        return False
    return True


def run_torch(
    nodes: Sequence[Node],
    weights: Mapping[str, torch.Tensor],
    given: Mapping[Value, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The result of the last of some nodes, given the weights and values that they read."""
    import torch

    from elastic_ir.ir.functions import resolve_symbol

    values: dict[Value, Any] = dict(given or {})

    def change(leaf: Argument) -> Any:
        if isinstance(leaf, Value):
            return values[leaf]
        if isinstance(leaf, WeightRef):
            return weights[leaf.name]
        return resolve_symbol(leaf.name) if isinstance(leaf, Symbol) else leaf

    result: Any = None
    with torch.no_grad():
        for node in nodes:
            args, kwargs = map_argument(node.args, change), map_argument(node.kwargs, change)
            if node.kind == "method":
                result = getattr(args[0], node.op.removeprefix("method."))(*args[1:], **kwargs)
            else:
                result = resolve_function(node.op)(*args, **kwargs)
            values[node.output] = result
    if not isinstance(result, torch.Tensor):
        raise EmitError(f"node %{nodes[-1].name} ({nodes[-1].op}) gave no tensor")
    return result


def literal_result(node: Node, source: OnnxSource) -> Literal | None:
    """What an ONNX node of literals gives, as a literal; None where it reads anything else or fails.

    Whole numbers and truths up to :data:`LARGEST` of them, and single floating-point numbers: more is a weight.
    """
    given = [item for item in node.args if item is not None]
    if node.kwargs or not given or not all(isinstance(item, Literal) for item in given):
        return None
    if any(isinstance(item, Symbol) and item.name == "body" for item in node.attributes.values()):
        return None
    kind = node.output.type
    if not is_small(node.op.removeprefix("onnx."), None if kind is None else kind.shape):
        return None
    try:
        array = run_operators((node,), {}, {}, opsets_of(source.model), source.model)
    except Exception:  # the reference raises errors of many kinds; onnxruntime may still know what to do
        return None
    whole = array.dtype.kind in "iub" and array.size <= LARGEST
    if not whole and not (array.dtype.kind == "f" and array.size == 1):
        return None
    return Literal(str(array.dtype), tuple(array.shape), tuple(array.reshape(-1).tolist()))
