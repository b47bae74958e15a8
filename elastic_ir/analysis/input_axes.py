"""Along which axis of a weight its layers sum products: PyTorch stores outputs first, ONNX allows either order."""

from __future__ import annotations

from elastic_ir.ir.graph import Graph, Node
from elastic_ir.ir.operations import layer_of
from elastic_ir.ir.operations.onnx_dialect import is_matrix_transpose
from elastic_ir.onnx_model.layers import is_onnx, weight_readers
from elastic_ir.tensors.weights import Weight


class InputAxes:
    """Answers for the weights of one graph; a graph of names alone has PyTorch's order."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._users = graph.users()
        self._readers = weight_readers(graph)
        self._onnx = is_onnx(graph)

    def __call__(self, weight: Weight) -> int | str:
        """The axis of a weight's inputs, or why it cannot be determined."""
        axes: set[int] = set()
        for reader, _ in self._readers.get(id(weight.storage), ()):
            carried = len(weight.shape) == 2 and is_matrix_transpose(reader)
            for node in self._users.get(reader.output, ()) if carried else (reader,):
                axis = self._axis(node, weight)
                if axis is None:
                    return f"{node.op.removeprefix('onnx.')} may store its weight another way round"
                axes.add(axis)
        if len(axes) > 1:
            return "its layers take their products along different axes"
        if axes:
            return axes.pop()
        return "no layer uses it" if self._onnx else 1

    def _axis(self, node: Node, weight: Weight) -> int | None:
        layer = layer_of(node)
        if layer is None or layer.transposed or (layer.matrix and len(weight.shape) != 2):
            return None
        if layer.weight is None:  # a module that computes its weight from this one
            return layer.inputs if node.kind == "module" else None
        return layer.inputs if self._graph.weights[layer.weight].storage is weight.storage else None
