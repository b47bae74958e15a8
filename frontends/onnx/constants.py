"""The constants of an ONNX model, wherever it keeps them, and which of them are literals of the program.

Initializers, dense and sparse, Constant nodes, tensors that ConstantOfShape fills, and other names that an Identity
gives to one of these: an exporter that keeps one of equal tensors leaves such a node for each of the others. Few
integers, and scalars that no layer has as its weight, are literals; all else is a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import SourceError
from elastic_ir.frontends.onnx.file import OnnxFile
from elastic_ir.ir.graph import Literal
from elastic_ir.onnx_model import DTYPES, Constant, captured, constant_tensor, listed_numbers, operator
from elastic_ir.tensors.lazy import ITEM_SIZES, TensorData

if TYPE_CHECKING:
    import onnx

#: Operands that are read as numbers, not as tensors to compute with.
_NUMBERS = {
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "Pad": (1, 2),
    "Slice": (1, 2, 3, 4),
    "Expand": (1,),
    "Tile": (1,),
}
_LITERAL = 64  #: the most integers that are a literal; more are a table


@dataclass(frozen=True)
class Filled:
    """A tensor of one value throughout, as ConstantOfShape makes it; its bytes are made when they are read."""

    shape: tuple[int, ...]
    dtype: str
    element: bytes

    def chunks(self) -> Iterator[memoryview]:
        left, step = prod(self.shape), 1 << 20
        while left > 0:
            yield memoryview(self.element * min(left, step))
            left -= step


def count_uses(graph: onnx.GraphProto) -> dict[str, list[tuple[int, int]]]:
    """For each name the nodes that read it, with the operand's place (-1: in a body)."""
    uses: dict[str, list[tuple[int, int]]] = {}
    for index, node in enumerate(graph.node):
        for place, name in enumerate(node.input):
            uses.setdefault(name, []).append((index, place))
        for name in captured(node):
            uses.setdefault(name, []).append((index, -1))
    return uses


class ConstantReader:
    """Collects a model's constants; no large one is read."""

    def __init__(
        self, opened: OnnxFile, uses: dict[str, list[tuple[int, int]]], layers: dict[str, tuple[int, ...]]
    ) -> None:
        self.opened = opened
        self.proto = opened.model.graph
        self.file = opened.path.name
        self.found: dict[str, Constant] = {}
        self._uses = uses
        self._readers = {name: list(found) for name, found in uses.items()}
        self._layers = layers

    def read(self) -> dict[str, Constant]:
        """All constants by name, with their literals."""
        self._constants()
        self._literals()
        return self.found

    def _constants(self) -> None:
        for tensor in self.proto.initializer:
            self._add(
                Constant(tensor.name, tensor, self.opened.data(tensor, f"the initializer {tensor.name!r}"))
            )
        if self.proto.sparse_initializer:
            from elastic_ir.frontends.onnx.sparse import SparseReader

            reader = SparseReader(self.opened)
            for sparse in self.proto.sparse_initializer:
                data, mask = reader.read(sparse)
                self._add(Constant(sparse.values.name, None, data, mask=mask))
        for index, node in enumerate(self.proto.node):
            if node.domain in ("", "ai.onnx") and len(node.output) == 1:
                made = self._constant_node(index, node)
                if made is not None:
                    self._add(made)

    def _add(self, constant: Constant) -> None:
        if not constant.name:
            raise SourceError(f"{self.file}: an initializer has no name")
        if constant.name in self.found:
            raise SourceError(f"{self.file}: two constants are named {constant.name!r}")
        self.found[constant.name] = constant

    def _constant_node(self, index: int, node: onnx.NodeProto) -> Constant | None:
        """A Constant, a ConstantOfShape whose shape is one, an Identity of one; None for all other nodes."""
        name = node.output[0]
        if node.op_type == "Identity":
            of = self.found.get(node.input[0]) if node.input else None
            return Constant(name, None, of.data, index, of.mask, alias=of.root) if of is not None else None
        value = constant_tensor(node)
        if value is not None:
            return Constant(name, value, self.opened.data(value, f"the constant {name!r}"), index)
        if node.op_type == "Constant":
            return Constant(name, None, None, index, literal=listed_numbers(node))
        if node.op_type == "ConstantOfShape" and node.input:
            shape = self.found.get(node.input[0])
            extents = _small(shape.data) if shape is not None and shape.data is not None else None
            if extents is None or any(extent < 0 for extent in extents):
                return None
            fill = next((a.t for a in node.attribute if a.name == "value"), None)
            dtype = "float32" if fill is None else DTYPES.get(fill.data_type)
            if dtype is None or not extents:
                return None
            data = self.opened.data(fill, f"the constant {name!r}") if fill is not None else None
            element = b"".join(map(bytes, data.chunks())) if data is not None else b"\0" * 4
            if len(element) != ITEM_SIZES[dtype]:
                raise SourceError(f"{self.file}: the constant {name!r} is filled with {len(element)} bytes")
            return Constant(name, None, Filled(tuple(map(int, extents)), dtype, element), index)
        return None

    def _literals(self) -> None:
        """Constants that are part of the program: few integers, and scalars that no layer has as its weight."""
        for constant in self.found.values():
            if (
                constant.alias is not None
            ):  # what reads a tensor under any of its names decides for all of them
                self._readers.setdefault(constant.alias, []).extend(self._uses.get(constant.name, ()))
        for constant in self.found.values():
            name = constant.root
            data = constant.data
            if data is None or constant.mask is not None:
                continue
            size = prod(data.shape)
            whole = not data.dtype.startswith(("float", "bfloat", "complex")) or self._is_number(name)
            scalar = size == 1 and not self._is_weight_operand(name)
            if (
                size
                and (scalar or (whole and size <= _LITERAL))
                and not data.dtype.startswith(("float8", "complex"))
            ):
                numbers = _small(data)
                if numbers is not None:
                    constant.literal = Literal(data.dtype, data.shape, tuple(numbers))

    def _is_number(self, name: str) -> bool:
        """Whether all that read a constant read it as numbers."""
        uses = [use for use in self._readers.get(name, ()) if not self._hands_on(use[0])]
        return bool(uses) and all(
            place in _NUMBERS.get(operator(self.proto.node[index]), ()) for index, place in uses
        )

    def _hands_on(self, index: int) -> bool:
        """Whether a node is one that gives a constant another name."""
        made = self.found.get(self.proto.node[index].output[0]) if self.proto.node[index].output else None
        return made is not None and made.node == index and made.alias is not None

    def _is_weight_operand(self, name: str) -> bool:
        for index, place in self._readers.get(name, ()):
            kind = operator(self.proto.node[index])
            if kind in self._layers or (kind == "BatchNormalization" and place > 0):
                return True
        return False


def _small(data: TensorData) -> list[Any] | None:
    """The numbers of a small tensor; None where numpy has no such dtype."""
    import numpy as np

    try:
        kind = np.dtype(data.dtype)
    except TypeError:
        return None
    if prod(data.shape) > _LITERAL:
        return None
    found: list[Any] = np.frombuffer(b"".join(map(bytes, data.chunks())), kind).tolist()
    return found
