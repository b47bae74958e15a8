"""The flow of channels through an ONNX graph: the rules of its operators, for the analysis of :mod:`channels`.

What PyTorch keeps in modules lies in operands here: a weight beside a tensor is sliced along the axis that meets the
channels, and a literal that counts them is counted anew. An operator without a rule keeps whatever it reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from elastic_ir.channels.flow import Bools, Channels, Floats, Flow, Layer, absorption
from elastic_ir.channels.onnx_axes import moved
from elastic_ir.ir.graph import Graph, Literal, Node, Value, WeightRef
from elastic_ir.ir.operations import layer_of, norm_of
from elastic_ir.onnx_model import arithmetic as numbers
from elastic_ir.onnx_model.layers import (
    plain_gemm,
    weight_name,
    weight_readers,
    zero_bias,
)
from elastic_ir.onnx_model.source import OnnxSource, opsets_of
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.recipes import Turned

_POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
#: Float to float, and nothing at inference.
_SAME = {"Identity", "Dropout", "Cast"}
_FLOATS = {1, 10, 11, 16}  #: of TensorProto.DataType

#: Where a constant weight meets channels: node, place of the operand, axis of the weight.
Meeting: TypeAlias = "tuple[Node, int, int, Channels]"
#: Where a literal counts channels: node, place of the operand, index in it.
Count: TypeAlias = "tuple[Node, int, int, Channels]"


@dataclass(frozen=True)
class OnnxLayer(Layer):
    """A layer of an ONNX graph, with the operand that can take over what constants add."""

    bias: tuple[Node, int] | None = None  #: None where nothing can take constants over


class OnnxFlow(Flow):
    """The channels of a graph that came from ONNX."""

    def __init__(self, graph: Graph) -> None:
        self.meetings: list[Meeting] = []
        self.counts: list[Count] = []
        self.readers = weight_readers(graph)
        source = graph.origin
        self.opsets = opsets_of(source.model) if isinstance(source, OnnxSource) else {}
        super().__init__(graph)

    def _made(self, node: Node) -> Channels | None:
        if node.kind != "onnx" or node.kwargs or not node.op.startswith("onnx.") or node.output.type is None:
            return None
        kind = node.op.removeprefix("onnx.")
        if kind in numbers.BINARY:
            return self._elementwise(node, kind)
        if kind == "Concat":
            return self._join(node)
        value = node.args[0] if node.args else None
        if not isinstance(value, Value) or value.type is None:
            return None
        if kind in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return self._weighted(node, value, kind)
        if kind in ("BatchNormalization", "InstanceNormalization"):
            return self._normalised(node, value, kind)
        known = self._known.get(value)
        if known is None:
            return None
        if kind in numbers.UNARY:
            return self._one(
                node, known, lambda n, constants: numbers.elementwise(n, [constants], self.opsets)
            )
        if kind in _SAME and self._stays(node, kind):
            return known
        if kind in _POOLS:
            return self._one(node, known, numbers.pooled) if known.axis == 1 else None
        place = moved(node, kind, known.axis, self)
        if place is None:
            return None
        for operand, index in place.counts:
            self.counts.append((node, operand, index, self._repeated(known, place.axis, place.times)))
        made = self._repeated(known, place.axis, place.times)
        if place.keeps == "all":
            return made
        kept = place.keeps if isinstance(place.keeps, float) else math.nan  # to which nothing is equal
        return Channels(made.axis, made.atoms, np.where(made.constants == kept, kept, math.nan))

    def _repeated(self, known: Channels, axis: int, times: int) -> Channels:
        return Channels(axis, known.atoms.repeat(times), known.constants.repeat(times))

    def _one(self, node: Node, known: Channels, evaluate: object) -> Channels | None:
        """The result of an operator that reads nothing computed beside its tensor."""
        if len(node.operands()) > 1 or node.weight_names() or not callable(evaluate):
            return None
        return Channels(known.axis, known.atoms, evaluate(node, known.constants))

    def _stays(self, node: Node, kind: str) -> bool:
        if kind == "Cast":
            return node.attributes.get("to") in _FLOATS
        training = numbers.operand(node, 2)
        plain = training is None or (isinstance(training, Literal) and not training.values[0])
        return plain and len(node.operands()) == 1

    def _only_looks(self, node: Node) -> bool:
        """Whether a Shape is asked for extents other than that of the channels."""
        value = node.args[0] if node.args else None
        if node.op != "onnx.Shape" or not isinstance(value, Value) or value.type is None or node.attributes:
            return False
        known, rank = self._known.get(value), len(value.type.shape)
        if known is None:
            return False
        for reader in self.users.get(node.output, ()):
            places = list(range(rank))
            given = [numbers.whole_numbers(item) for item in reader.args[1:]]
            if reader.op == "onnx.Gather" and given and given[0] is not None:
                seen = [place % rank for place in given[0]]
            elif reader.op == "onnx.Slice" and len(given) >= 2 and given[0] and given[1]:
                step = given[3][0] if len(given) > 3 and given[3] else 1
                seen = places[given[0][0] : given[1][0] : step]
            else:
                return False
            if known.axis in seen:
                return False
        return True

    # -- several operands ------------------------------------------------------------------------------------------

    def _elementwise(self, node: Node, kind: str) -> Channels | None:
        """Arithmetic: the channels of all computed operands are tied, constant ones are sliced along with them."""
        assert node.output.type is not None
        shape = node.output.type.shape
        values = [item for item in node.args if isinstance(item, Value)]
        found = [self._known.get(value) for value in values]
        first = found[0] if found else None
        if first is None or (len(values) > 1 and kind in ("Div", "Pow", "PRelu")):
            return None
        axis, count = first.axis, len(first.atoms)
        for value, known in zip(values, found, strict=True):
            if known is None or value.type is None or len(value.type.shape) != len(shape):
                return None
            if known.axis != axis or len(known.atoms) != count or shape[axis] != count:
                return None
        parts: list[Floats] = []
        meetings: list[Meeting] = []
        for place, item in enumerate(node.args):
            if isinstance(item, Value):
                known = self._known[item]
                parts.append(known.constants)
            elif isinstance(item, Literal) and len(item.values) == 1 and len(item.shape) <= len(shape):
                parts.append(np.full(count, float(item.values[0])))
            elif isinstance(item, WeightRef):
                constants, meeting = self._beside(item, axis, count, len(shape))
                if constants is None:
                    return None
                parts.append(constants)
                meetings += [(node, place, meeting, first)] if meeting is not None else []
            else:
                return None
        for known in found[1:]:
            assert known is not None
            self._tie(first.atoms, known.atoms)
        self.meetings += meetings
        total = parts[0]
        for part in parts[1:]:
            total = numbers.elementwise(node, [total, part], self.opsets)
        return Channels(axis, first.atoms, total)

    def _beside(self, item: WeightRef, axis: int, count: int, rank: int) -> tuple[Floats | None, int | None]:
        """The numbers of a constant operand, one for each channel, and the axis along which it has one for each."""
        extents = self.graph.weights[item.name].shape
        place = axis - (rank - len(extents))
        if len(extents) > rank or (place >= 0 and extents[place] not in (1, count)):
            return None, None
        meets = place >= 0 and extents[place] == count and count > 1
        if math.prod(extents) == (count if meets else 1):
            read = self.read(item.name)
            if read is not None:
                return np.broadcast_to(read.reshape(-1), (count,)).copy(), place if meets else None
        return np.full(count, math.nan), place if meets else None

    def _join(self, node: Node) -> Channels | None:
        """A concatenation: side by side along the channels, or tied along any other axis."""
        assert node.output.type is not None
        rank = len(node.output.type.shape)
        axis = node.attributes.get("axis", 1)
        values = [item for item in node.args if isinstance(item, Value)]
        if not isinstance(axis, int) or len(values) != len(node.args):
            return None
        axis %= rank
        if any(value.type is None or len(value.type.shape) != rank for value in values):
            return None
        known = [self._known.get(value) for value in values]
        others = {item.axis for item in known if item is not None and item.axis != axis}
        if len(others) == 1 and all(item is not None and item.axis != axis for item in known):
            parts = [item for item in known if item is not None]
            if len({len(part.atoms) for part in parts}) > 1:
                return None
            for part in parts[1:]:
                self._tie(parts[0].atoms, part.atoms)
            same = np.all([part.constants == parts[0].constants for part in parts], axis=0)
            return Channels(parts[0].axis, parts[0].atoms, np.where(same, parts[0].constants, math.nan))
        made = [self.channels(value, axis) for value in values]
        if others or not any(item is not None for item in known):
            return None
        sides = [item for item in made if item is not None]
        if len(sides) != len(made):
            return None
        return Channels(
            axis,
            np.concatenate([side.atoms for side in sides]),
            np.concatenate([side.constants for side in sides]),
        )

    # -- layers ----------------------------------------------------------------------------------------------------

    def _normalised(self, node: Node, value: Value, kind: str) -> Channels | None:
        made = self._norm(node, value) if kind == "BatchNormalization" else self._instance_norm(node, value)
        if made is not None:
            self.meetings += [(node, place, 0, made) for place in range(1, len(node.args))]
        return made

    def _instance_norm(self, node: Node, value: Value) -> Channels | None:
        """What is zero everywhere has no variance, and becomes the shift."""
        names = [weight_name(item) for item in node.args[1:]]
        known = self.channels(value, 1) if len(names) == 2 and None not in names else None
        if known is None:
            return None
        parts = [self.read(name) for name in names if name is not None]
        if any(part is not None and part.shape != (len(known.atoms),) for part in parts):
            return None
        shift = parts[1] if parts[1] is not None else math.nan
        return Channels(1, known.atoms, np.where(known.constants == 0, shift, math.nan))

    def _weighted(self, node: Node, value: Value, kind: str) -> Channels | None:
        assert value.type is not None
        rank = len(value.type.shape)
        layer, given = layer_of(node), numbers.operand(node, 1)
        if layer is None or layer.weight is None or layer.weight_first:
            return None
        carried = isinstance(given, Value)  # by a Transpose
        if isinstance(given, Value) and (kind != "MatMul" or len(self.users.get(given, ())) != 1):
            return None
        zero = kind != "MatMul" and zero_bias(node, self.users)
        if len(node.operands()) != 1 + carried + zero or (kind == "Gemm" and not plain_gemm(node)):
            return None
        name, groups, matrix, inputs_first = layer.weight, layer.groups, layer.matrix, layer.inputs == 0
        weight = self.graph.weights[name]
        shape = weight.shape
        fits = len(shape) == 2 and rank >= 2 if matrix else len(shape) == rank
        if not fits or "float" not in weight.dtype or len(self.readers[id(weight.storage)]) > 1:
            return None
        rows, width = (shape[1] * groups, shape[0] // groups) if inputs_first else shape[:2]
        bias = numbers.operand(node, 2) if kind != "MatMul" and not zero else None
        bias_name = weight_name(bias)
        if bias is not None and (
            bias_name is None or self.graph.weights[bias_name].shape not in ((rows,), (1, rows))
        ):
            return None
        inside = self.channels(value, rank - 1 if matrix else 1)
        if inside is None or len(inside.atoms) != width * groups:
            return None
        used: Bools | None = None
        if weight.mask is not None:
            used = np.any(weight.mask.array().reshape(*shape[:2], -1), axis=2)
            if inputs_first:
                used = used.reshape(groups, width, -1).transpose(0, 2, 1).reshape(rows, width)
        taker = self._taker(node, kind, rows)
        foldable = taker is not None and (matrix or (kind == "Conv" and not numbers.pads(node)))
        absorbed, still = absorption(inside, groups, rows, width, used, foldable=foldable)
        constants = np.full(rows, math.nan)
        if still.any():
            data: TensorData = weight.storage.emitted()
            heard = inside
            if kind == "ConvTranspose":  # only zeros are absorbed there, and they add nothing
                heard = Channels(inside.axis, inside.atoms, np.zeros(len(inside.atoms)))
            data = Turned(data) if inputs_first and matrix else data
            constants = self._row_constants(bias_name, data, heard, used, still)
        outside = Channels(inside.axis, self._fresh(rows), np.where(still, constants, math.nan))
        self.layers.append(
            OnnxLayer(node, inside, outside, groups, used, absorbed, name, inputs_first, taker)
        )
        if bias_name is not None:
            self.meetings.append((node, 2, len(self.graph.weights[bias_name].shape) - 1, outside))
        return outside

    def _taker(self, node: Node, kind: str, rows: int) -> tuple[Node, int] | None:
        """The operand that can take over what constants contribute; a MatMul has that of a following Add or norm."""
        if kind != "MatMul":
            return node, 2
        readers = self.users.get(node.output, [])
        if len(readers) != 1:
            return None
        kind_of = node.output.type
        if norm_of(readers[0]) and kind_of is not None and len(kind_of.shape) == 2:
            return readers[0], 3
        if readers[0].op != "onnx.Add" or readers[0].kwargs:
            return None
        for place, item in enumerate(readers[0].args):
            if isinstance(item, WeightRef):
                shape = self.graph.weights[item.name].shape
                if math.prod(shape) == rows == shape[-1]:
                    return readers[0], place
        return None
