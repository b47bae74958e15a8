"""Which layers and weights a pass works on: all, those of some stages, those whose paths fit a pattern."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph, Node
from elastic_ir.ir.operations import layer_of
from elastic_ir.ir.structure import Block
from elastic_ir.onnx_model.layers import label
from elastic_ir.tensors.weights import Weight


class Chosen:
    """The options ``stages`` and ``layers`` of a pass, asked for one node after the other."""

    def __init__(self, graph: Graph, stages: Sequence[str] | str, layers: Sequence[str] | str) -> None:
        self.patterns = [layers] if isinstance(layers, str) else list(layers)
        names = [stages] if isinstance(stages, str) else list(stages)
        names_of_weights = {
            f"{label(node)}.weight"
            for node in graph
            if "weight" in node.weights or layer_of(node) is not None
        }
        for pattern in self.patterns:
            if not any(fits(name, pattern) for name in names_of_weights):
                raise PlanError(f"layers={pattern!r} fits no layer with a weight")
        self.inside: set[Node] | None = None
        if names:
            blocks = [block for name in names for block in graph.structure.stage(name).all_blocks]
            self.inside = {node for block in blocks for node in block.nodes}

    def __call__(self, node: Node) -> bool:
        if self.inside is not None and node not in self.inside:
            return False
        return not self.patterns or any(fits(f"{label(node)}.weight", pattern) for pattern in self.patterns)


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern names a weight, or the layer that it belongs to."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)


def prunable_of(graph: Graph, **options: Sequence[str] | str) -> tuple[dict[str, Weight], list[set[str]]]:
    """The prunable weights by name, tied ones once, and for each option of patterns the names that fit one.

    PlanError for a pattern that fits none.
    """
    first: dict[int, Weight] = {}
    for weight in graph.weights.values():
        if weight.prunable:
            first.setdefault(id(weight.storage), weight)
    weights = {weight.name: weight for weight in first.values()}
    found = []
    for option, given in options.items():
        named: set[str] = set()
        for pattern in [given] if isinstance(given, str) else given:
            fitting = {name for name in weights if fits(name, pattern)}
            if not fitting:
                raise PlanError(f"{option}={pattern!r} fits no weight of a convolution or linear layer")
            named |= fitting
        found.append(named)
    return weights, found


def blocks_of(graph: Graph) -> dict[Node, Block]:
    """For each node the block that it lies in; nothing where nothing repeats."""
    return {node: block for block in graph.blocks for node in block.nodes}
