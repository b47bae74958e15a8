"""Evaluating ONNX operators in the reference implementation of the onnx package, which is what the operators mean.

It is imported when the first operator is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

LARGEST = 1024  #: elements of a result that is computed in advance
#: The operators whose result has no more elements than their operands: it may be computed before its size is known.
_SMALL = {"Identity", "Cast", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "ScatterND", "Neg", "Abs",
          "Floor", "Ceil", "Sqrt", "Not", "NonZero", "Compress"}  # fmt: skip


def is_small(kind: str, shape: Sequence[int] | None) -> bool:
    """Whether an operator's result, of a shape that may not be known, has few elements; decided before it is run."""
    if shape is None or min(shape, default=0) < 0:
        return kind in _SMALL
    return prod(shape) <= LARGEST


def run_nodes(
    nodes: Sequence[onnx.NodeProto], given: Mapping[str, Array], opsets: Mapping[str, int]
) -> Array:
    """The first result of the last of some nodes, from the arrays that they read, by their names.

    Raises whatever the reference implementation raises for operators that it lacks and operands that do not fit.
    """
    import numpy as np
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
    ]
    result = helper.make_empty_tensor_value_info(nodes[-1].output[0])
    graph = helper.make_graph(nodes, "nodes", inputs, [result])
    (array,) = ReferenceEvaluator(graph, opsets=dict(opsets)).run(None, dict(given))
    return np.asarray(array)
