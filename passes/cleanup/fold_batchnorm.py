"""Folding: a batch norm becomes part of the convolution or linear layer before it, which then has a bias.

In evaluation a batch norm scales and shifts each channel, and so can the layer before it: row ``i`` of its weight is
scaled by ``scale[i] / sqrt(variance[i] + epsilon)``, and the rest is a bias (Jacob et al. 2018, section 3.2). Zeros
stay zeros, so masks stay as they are. The norm's place is taken by an identity, so that no name changes.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from elastic_ir.channels.onnx_fold import fold_norms
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.onnx_model.layers import is_onnx
from elastic_ir.passes.infra.base import Pass, reasons
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.recipes import Norm, NormBias, ScaledRows, with_values

_LAYERS = {"nn.Conv1d": "nn.BatchNorm1d", "nn.Conv2d": "nn.BatchNorm2d", "nn.Conv3d": "nn.BatchNorm3d"}
_NORMS = {*_LAYERS.values()}


@dataclasses.dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Make each batch norm part of the convolution or linear layer before it; for networks that are trained."""

    name: ClassVar[str] = "fold-batchnorm"
    needs_structure: ClassVar[bool] = False
    preserves_function: ClassVar[bool] = True

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        self._need_layers(graph)
        if is_onnx(graph):
            folded, skipped = fold_norms(graph, rewriter)
            graph.metadata["fold-batchnorm"] = {"folded": folded, "skipped": skipped}
            return
        users = graph.users()
        uses: dict[int, int] = {}
        for node in graph:
            for name in node.weight_names():
                key = id(graph.weights[name].storage)
                uses[key] = uses.get(key, 0) + 1
        folded, skipped = [], {}
        for node in graph:
            if node.op in _NORMS and node.kind == "module":
                reason = _why_not(node, graph, users, uses)
                if reason:
                    skipped[node.scope] = reason
                else:
                    folded.append(node.scope)
                    _fold(node, graph, rewriter)
        #: Plain data for reports: paths of the norms that went, and why the others did not.
        graph.metadata["fold-batchnorm"] = {"folded": folded, "skipped": skipped}

    def summary(self, graph: Graph) -> str | None:
        """How many norms went, and why the others did not."""
        report = graph.metadata[self.name]
        folded, skipped = report["folded"], report["skipped"]
        if not folded and not skipped:
            return "there is no batch norm"
        return f"folded {len(folded)}, left {len(skipped)}{reasons(skipped)}"


def _why_not(norm: Node, graph: Graph, users: dict[Value, list[Node]], uses: dict[int, int]) -> str:
    """Why a batch norm cannot be folded; "" where it can."""
    before = norm.args[0].node if norm.args and isinstance(norm.args[0], Value) else None
    if "running_mean" not in norm.weights:
        return "it has no statistics of its own"
    if before is None or before.kind != "module" or before.op not in (*_LAYERS, "nn.Linear"):
        return "it does not directly follow a convolution or linear layer"
    kind = before.output.type
    fits = norm.op == _LAYERS.get(before.op, "nn.BatchNorm1d" if kind and len(kind.shape) == 2 else "")
    if not fits:
        return f"it normalises another axis than the outputs of {before.scope}"
    if len(users[before.output]) > 1:
        others = [user.name for user in users[before.output] if user is not norm]
        return f"%{others[0]} reads the output of {before.scope} as well"
    for node in (before, norm):
        if any(uses[id(graph.weights[name].storage)] > 1 for name in node.weights.values()):
            return f"{node.scope} is used more than once"
    if set(before.weights) - {"weight", "bias"} or "weight" not in before.weights:
        return f"the weight of {before.scope} is computed from others"
    return ""


def _fold(node: Node, graph: Graph, rewriter: Rewriter) -> None:
    value = node.args[0]
    assert isinstance(value, Value)
    layer = value.node
    parts = {role: graph.weights[name] for role, name in node.weights.items()}
    epsilon = node.attributes["eps"]
    assert isinstance(epsilon, (int, float))
    scale, shift = (parts[role].storage.emitted() if role in parts else None for role in ("weight", "bias"))
    mean, variance = (parts[role].storage.data for role in ("running_mean", "running_var"))
    norm = Norm(mean, variance, scale, shift, float(epsilon))
    weight = graph.weights[layer.weights["weight"]]
    rewriter.replace_tensor(
        weight.name,
        with_values(ScaledRows(weight.storage.data, norm), weight.storage.data, mean),
        weight.mask,
    )
    if "bias" in layer.weights:
        bias = graph.weights[layer.weights["bias"]].storage
        old, name = bias.emitted(), layer.weights["bias"]
        rewriter.replace_tensor(name, with_values(NormBias(old, norm, bias.data.dtype), bias.data, mean))
    else:
        fresh = with_values(NormBias(None, norm, weight.dtype), mean)
        source = parts.get("bias", parts["running_mean"])
        rewriter.add_weight(layer, "bias", fresh, origin=source.origin)
        rewriter.set_attributes(layer, bias=True)
    rewriter.become(node, "nn.Identity")
