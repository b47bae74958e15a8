"""Folding: a batch norm becomes part of the convolution or linear layer before it, which then has a bias.

In evaluation a batch norm scales and shifts each channel, and so can the layer before it: row ``i`` of its weight is
scaled by ``scale[i] / sqrt(variance[i] + epsilon)``, and the rest is a bias (Jacob et al. 2018, section 3.2). Zeros
stay zeros, so masks stay as they are. The place of a PyTorch norm is taken by an identity, so that no name changes; an
ONNX norm's node goes, with its weights, or becomes the addition that a MatMul lacks.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import ClassVar

from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.operations import BatchNorm, Layer, bias_slot, kind_of, layer_of, norm_of, operation_of
from elastic_ir.onnx_model.layers import count_reads, label, plain_gemm, weight_readers, zero_bias
from elastic_ir.passes.infra import Pass, reasons
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.recipes import Norm, NormBias, ScaledRows, Turned, with_values


@dataclasses.dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Make each batch norm part of the convolution or linear layer before it; for networks that are trained."""

    name: ClassVar[str] = "fold-batchnorm"
    needs_structure: ClassVar[bool] = False
    preserves_function: ClassVar[bool] = True
    gains: ClassVar[str] = (
        "fewer operations and a slightly smaller file; onnxruntime folds such norms itself when it "
        "loads a file"
    )

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        self._need_layers(graph)
        folder = _Folder(graph, rewriter)
        folded: list[str] = []
        skipped: dict[str, str] = {}
        for node in graph:
            if not _is_norm(node):
                continue
            reason = folder.why_not(node)
            if reason:
                skipped[label(node)] = reason
            else:
                folded.append(label(node))
                folder.fold(node)
        folder.drop_idle_weights()
        #: Plain data for reports: names of the norms that went, and why the others did not.
        rewriter.report({"folded": folded, "skipped": skipped})

    def summary(self, graph: Graph) -> str | None:
        report = self.report(graph)
        folded, skipped = report["folded"], report["skipped"]
        if not folded and not skipped:
            return "there is no batch norm"
        return f"folded {len(folded)}, left {len(skipped)}{reasons(skipped)}"


def _is_norm(node: Node) -> bool:
    operation = operation_of(node)
    return operation.known and operation.family == "batchnorm" and node.kind in ("module", "onnx")


class _Folder:
    def __init__(self, graph: Graph, rewriter: Rewriter) -> None:
        self.graph = graph
        self.rewriter = rewriter
        self.users = graph.users()
        self.readers = weight_readers(graph)
        self.reads: Counter[str] = count_reads(graph)
        self.idle: list[str] = []

    def why_not(self, norm: Node) -> str:
        """Why a batch norm cannot be folded; "" where it can."""
        if norm_of(norm) is None:
            computed = "running_mean" in norm.weights
            return "its scale is computed from others" if computed else "it has no statistics of its own"
        given = norm.args[0] if norm.args else None
        before = given.node if isinstance(given, Value) else None
        layer = layer_of(before) if before is not None and before.kind in ("module", "onnx") else None
        if before is None or layer is None or layer.transposed or layer.weight_first:
            return "it does not directly follow a convolution or linear layer"
        name = label(before)
        others = [user.name for user in self.users[before.output] if user is not norm]
        if others:
            return f"%{others[0]} reads the output of {name} as well"
        if before.op == "onnx.Gemm" and not plain_gemm(before):
            return f"{name} has factors of its own"
        if not self._same_axis(layer, before, norm):
            return f"it normalises another axis than the outputs of {name}"
        carried = [value for value in before.operands()[1:] if value.node.op == "onnx.Transpose"]
        if layer.weight is None or any(len(self.users[value]) > 1 for value in carried):
            return f"the weight of {name} is computed from others"
        for node, held in ((before, [layer.weight, *before.weights.values()]), (norm, norm.weights.values())):
            if any(len(self.readers[id(self.graph.weights[each].storage)]) > 1 for each in held):
                return f"{label(node)} is used more than once"
        return "" if self._bias_fits(layer, before) else f"the bias of {name} is not a weight of its own"

    def _same_axis(self, layer: Layer, before: Node, norm: Node) -> bool:
        """Whether the norm's axis, the second, is that of the layer's outputs."""
        rank = len(before.output.type.shape) if before.output.type is not None else None
        if layer.matrix:
            return rank == 2 or before.op == "onnx.Gemm"
        if layer.weight is None:
            return True
        axes = len(self.graph.weights[layer.weight].shape) - 2
        return rank in (None, axes + 2) and kind_of(norm) in ("batchnorm", f"batchnorm{axes}d")

    def _bias_fits(self, layer: Layer, before: Node) -> bool:
        """Whether the bias can take what the norm adds: there is none, or one number for each output."""
        if before.kind == "module" or len(before.args) < 3 or before.args[2] is None:
            return True
        assert layer.weight is not None
        count = self.graph.weights[layer.weight].shape[layer.outputs]
        held = layer.bias is not None and self.graph.weights[layer.bias].shape in ((count,), (1, count))
        return held or zero_bias(before, self.users)

    def fold(self, norm: Node) -> None:
        """Fold one norm that can be."""
        value, held = norm.args[0], norm_of(norm)
        assert isinstance(value, Value) and held is not None
        before, layer = value.node, layer_of(value.node)
        assert layer is not None and layer.weight is not None
        factors = self._factors(held)
        weight = self.graph.weights[layer.weight]
        data: TensorData = weight.storage.data
        scaled: TensorData = ScaledRows(data, factors)
        if layer.inputs == 0:
            scaled = Turned(ScaledRows(Turned(data), factors))
        self.rewriter.replace_tensor(weight.name, with_values(scaled, data, factors.mean), weight.mask)
        origin = self.graph.weights[held.shift or held.mean].origin
        fresh = with_values(NormBias(None, factors, weight.dtype), factors.mean)
        if norm.kind == "onnx":
            self.idle += norm.weight_names()
        if before.op == "onnx.MatMul":  # it has no bias: an addition takes the norm's place
            self.rewriter.become(norm, "onnx.Add", args=(value,))
            name = self.rewriter.add_operand(norm, 1, fresh, beside=held.shift or held.mean, origin=origin)
            self.reads[name] += 1
            return
        slot = bias_slot(before)
        if zero_bias(before, self.users):
            self.rewriter.drop_operand(before, 2)
        if layer.bias is not None:
            name = self.rewriter.own_tensor(before, slot, self.reads)
            old = self.graph.weights[name].storage.emitted()
            moved = with_values(NormBias(old, factors, old.dtype), old, factors.mean)
            self.rewriter.replace_tensor(name, moved)
        else:
            name = self.rewriter.give_tensor(before, slot, fresh, beside=weight.name, origin=origin)
            self.reads[name] += 1
        if norm.kind == "module":
            self.rewriter.become(norm, "nn.Identity")
        else:
            self.rewriter.dissolve(norm, value)

    def _factors(self, norm: BatchNorm) -> Norm:
        def emitted(name: str | None) -> TensorData | None:
            return self.graph.weights[name].storage.emitted() if name is not None else None

        mean, variance = (self.graph.weights[name].storage.emitted() for name in (norm.mean, norm.variance))
        return Norm(mean, variance, emitted(norm.scale), emitted(norm.shift), norm.epsilon)

    def drop_idle_weights(self) -> None:
        """Drop the weights of ONNX norms that went, where nothing else reads them."""
        used = {name for node in self.graph for name in node.weight_names()}
        self.rewriter.drop_weights(name for name in dict.fromkeys(self.idle) if name not in used)
