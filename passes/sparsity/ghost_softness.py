"""Ghost softness: smooth activations in place of ReLU while a sparse network is young, or for good.

A smooth activation lets gradients through where ReLU has none, which helps sparse networks most (Jaiswal et al. 2022,
*Training Your Sparse Neural Network Better with Any Mask*, "ghost soft neurons"). The activation is Swish with a
temperature, ``x * sigmoid(beta * x)`` (Ramachandran et al. 2017, *Searching for Activation Functions*, section 5.1;
ReLU is its limit for large beta), Swish itself, or Mish (Misra 2019). Each is written as
``relu(x) + factor * (soft(x) - relu(x))``: the ReLU stays in the graph, and at factor 0 the function is its, exactly,
in every dtype. A ReLU6's soft form is capped at 6 as well.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, TypeAlias

from elastic_ir.choices import check_choice
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Argument, Graph, Node, Value
from elastic_ir.ir.operations import kind_of, known_kind
from elastic_ir.passes.infra import Pass
from elastic_ir.rewrite.ghosts import (
    Decay,
    Ghostwriter,
    Shape,
    factors,
    kind_of_ghost,
    out_of_place,
    record,
)
from elastic_ir.rewrite.rewriter import Rewriter

SOFT, BETA = "soft", "beta"
Softness: TypeAlias = Literal["pswish", "swish", "mish"]
_KINDS: dict[Softness, str] = {"pswish": "", "swish": "SiLU", "mish": "Mish"}


@dataclasses.dataclass(frozen=True)
class GhostSoftness(Pass):
    """Soften every ReLU for the early training (remove-ghosts takes it out), or for good with keep."""

    name: ClassVar[str] = "ghost-softness"
    needs_structure: ClassVar[bool] = False
    gains: ClassVar[str] = "neither: slower while the ghosts are there, until remove-ghosts"

    kind: Softness = (
        "pswish"  #: pswish (its temperature moves towards ReLU), swish or mish (they fade into ReLU)
    )
    keep: bool = False  #: replace ReLU for good, by swish or mish; a ReLU6 loses its cap
    beta: float = 1.0  #: pswish: the factor inside the sigmoid when training begins
    to: float = 100.0  #: pswish: the same when the share is over; ReLU takes its place then
    decay: Shape = "cosine"  #: linear, cosine, step, or for pswish geometric
    share: float = 0.5  #: of the training, after which the activation is ReLU

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        self._need_pytorch(graph)
        check_choice("kind", self.kind, Softness)
        if self.keep and self.kind == "pswish":
            raise PlanError(
                "pswish is annealed, and no layer of torch.nn; keep takes kind=swish or kind=mish"
            )
        if SOFT in factors(graph):
            raise PlanError(f"{graph.name} has soft activations already; run remove-ghosts first")
        found = [node for node in graph if _is_relu(node)]
        if not found:
            raise PlanError(f"{graph.name} has no ReLU that could be softened")
        rewriter.report({"activations": len(found)})
        if self.keep:
            for node in found:
                _replace(node, _KINDS[self.kind], rewriter)
            return
        if not 0 < self.beta <= self.to:
            raise PlanError(f"beta={self.beta:g} to={self.to:g}: beta grows towards ReLU, from above 0")
        shape, temperature = self.decay, self.kind == "pswish"
        decays = {SOFT: Decay(1.0, 0.0, "step" if temperature else shape, self.share)}
        if temperature:
            decays[BETA] = Decay(self.beta, self.to, shape, self.share)
        writer = Ghostwriter(graph, rewriter)
        for node in found:
            self._soften(node, writer)
        record(graph, **decays)

    def summary(self, graph: Graph) -> str | None:
        until = "for good" if self.keep else f"until {self.share:g} of the training"
        return f"{self.report(graph)['activations']} activations are {self.kind} {until}"

    def _soften(self, node: Node, writer: Ghostwriter) -> None:
        given = node.operands()[0]
        restore = out_of_place(node, writer.rewriter)
        last = node

        def call(op: str, *args: Argument, kind: str = SOFT, **kwargs: Argument) -> Value:
            nonlocal last
            last = writer.call(
                op, *args, kind=kind, like=node.output, behind=last, beside=node, kwargs=kwargs
            )
            return last.output

        if self.kind == "pswish":
            beta = writer.factor(node, "ghost_beta", self.beta)
            gate = call("torch.sigmoid", call("operator.mul", given, beta, kind=BETA))
            soft = call("operator.mul", given, gate)
        else:
            soft = call(f"torch.nn.functional.{_KINDS[self.kind].lower()}", given)
        if kind_of(node) == "relu6":
            soft = call("torch.clamp", soft, max=6.0)
        factor = writer.factor(node, "ghost_soft", 1.0)
        step = call("operator.sub", soft, node.output)
        moved = call("operator.mul", step, factor)
        writer.call(
            "operator.add", node.output, moved, kind=SOFT, like=node.output, behind=last, beside=node,
            joins=True, keeps=[step.node], restore=restore,
        )  # fmt: skip


def _is_relu(node: Node) -> bool:
    """Whether a node is a ReLU or ReLU6 of a known type, as a module, a function or a method."""
    if node.output.type is None or "float" not in node.output.type.dtype or len(node.operands()) != 1:
        return False
    return known_kind(node) in ("relu", "relu6") and kind_of_ghost(node) is None


def _replace(node: Node, layer: str, rewriter: Rewriter) -> None:
    """Another activation for good."""
    if node.kind == "module":
        rewriter.become(node, f"nn.{layer}", {"inplace": False})
        return
    op = f"torch.nn.functional.{layer.lower()}"
    fresh = rewriter.insert_call(op, (node.operands()[0],), like=node.output, behind=node)
    rewriter.replace_uses(node.output, fresh.output)
    rewriter.erase(node)
