"""Ghost skips: skips around single layers while a sparse network is young, fading to nothing.

Pruning cuts paths of the gradient; a skip around each convolution and its norm, in front of the activation, gives it
others, and is gone once it has helped (Jaiswal et al. 2022, *Training Your Sparse Neural Network Better with Any
Mask*, "ghost skip connections"). The authors' code puts its skip at the same place, as a learned 1x1 convolution with
a norm. Here it is the layer's input, normed but without weights, which adds nothing to the state dict; so a layer that
changes its input's shape gets none. Without a norm skips add up: each block of a residual network would double what
it is given.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from elastic_ir.choices import check_choice
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.operations import kind_of
from elastic_ir.passes.infra import Pass
from elastic_ir.rewrite.ghosts import Decay, Fading, Ghostwriter, factors, record
from elastic_ir.rewrite.rewriter import Rewriter

KIND = "skip"
#: Each sample by its own mean and deviation, without weights and statistics.
_NORM = "torch.nn.functional.group_norm"
_CONVOLUTIONS = ("nn.Conv1d", "nn.Conv2d", "nn.Conv3d")


@dataclasses.dataclass(frozen=True)
class GhostSkips(Pass):
    """Skips around layers that keep their shape, for the early training; remove-ghosts takes them out."""

    name: ClassVar[str] = "ghost-skips"
    needs_structure: ClassVar[bool] = False
    gains: ClassVar[str] = "neither: slower while the ghosts are there, until remove-ghosts"

    start: float = 1.0  #: the skips' factor when training begins; it ends at 0
    decay: Fading = "cosine"  #: linear, cosine, or step (all at once)
    share: float = 0.5  #: of the training, over which the factor goes to 0
    linear: bool = False  #: around linear layers too

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        self._need_pytorch(graph)
        check_choice("decay", self.decay, Fading)
        decay = Decay(self.start, 0.0, self.decay, self.share)
        if KIND in factors(graph):
            raise PlanError(f"{graph.name} has ghost skips already; run remove-ghosts first")
        kinds = (*_CONVOLUTIONS, "nn.Linear") if self.linear else _CONVOLUTIONS
        layers = [node for node in graph if node.kind == "module" and node.op in kinds]
        found = [(layer, end) for layer in layers if (end := _end(layer, rewriter)) is not None]
        if not found:
            kind = "convolution or linear layer" if self.linear else "convolution"
            raise PlanError(f"no {kind} of {graph.name} keeps its input's shape, so no skip fits around one")
        writer = Ghostwriter(graph, rewriter)
        for layer, end in found:
            given = layer.args[0]
            assert isinstance(given, Value)
            factor = writer.factor(layer, "ghost_skip", self.start)
            # read where the layer reads it: what changes tensors in place may run before the norm has
            normed = writer.call(_NORM, given, 1, kind=KIND, like=given, behind=layer)
            skip = writer.call("operator.mul", normed.output, factor, kind=KIND, like=given, behind=normed)
            writer.call(
                "operator.add", end.output, skip.output, kind=KIND, like=end.output,
                behind=skip if end is layer else end, beside=end, joins=True,
            )  # fmt: skip
        record(graph, **{KIND: decay})

    def summary(self, graph: Graph) -> str | None:
        return f"{len(factors(graph)[KIND])} skips, {self.decay} to 0 over {self.share:g} of the training"


def _end(layer: Node, rewriter: Rewriter) -> Node | None:
    """What a skip around a layer is added to: its norm's result, or its own; None where the shapes do not agree."""
    given = layer.args[0] if layer.args else None
    end = layer
    readers = rewriter.users(layer.output)
    if len(readers) == 1 and "norm" in kind_of(readers[0]) and layer.output in readers[0].args[:1]:
        end = readers[0]
    if not isinstance(given, Value) or given.type is None or not given.type.fits(end.output.type):
        return None
    return end
