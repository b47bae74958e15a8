"""What a node does besides computing its result, by the traits of its operation: what clean-up passes ask.

A node may be removed or merged only where no reader can notice. An operation that is not the dialect's own may do
anything.
"""

from __future__ import annotations

from collections.abc import Iterable

from networkx.utils import UnionFind

from elastic_ir.ir.graph import Graph, Literal, Node, Symbol, Value, WeightRef
from elastic_ir.ir.operations import RANDOM_BY, Trait, has, operation_of, reads_form_only, written


def effect_of(node: Node) -> str:
    """What a node does besides computing: "random", "state", "in place", "effect", "unknown"; "" for nothing."""
    if node.kind in ("weight", "constant"):
        return ""
    if node.kind in ("input", "output"):
        return "effect"
    operation = operation_of(node)
    traits = operation.traits
    if node.kind == "onnx":
        return _effect_of_onnx(node) if operation.known else "unknown"
    if Trait.RANDOM in traits:
        rate = node.attributes.get("p", node.kwargs.get("p"))
        return "" if node.kind == "module" and rate == 0.0 and not written(node) else "random"
    if not operation.known:
        return "unknown"
    if Trait.EFFECT in traits:
        return "effect"
    option = RANDOM_BY.get(operation.name)
    if option is not None and node.attributes.get(option, node.kwargs.get(option)):
        return "random"
    if Trait.STATEFUL in traits and keeps_statistics(node):
        return "state"
    return "in place" if written(node) else ""


def _effect_of_onnx(node: Node) -> str:
    if any(isinstance(item, Symbol) and item.name == "body" for item in node.attributes.values()):
        return "unknown"  # its body may do anything
    if has(node, Trait.DROPOUT):  # in training only where it says so; an operand since opset 12
        mode = node.args[2] if len(node.args) > 2 else None
        return "" if mode is None or (isinstance(mode, Literal) and not any(mode.values)) else "random"
    if has(node, Trait.STATEFUL) and node.attributes.get("training_mode", 0):
        return "state"
    return "random" if has(node, Trait.RANDOM) else ""


def keeps_statistics(node: Node) -> bool:
    """Whether a norm updates running statistics when the network is in training."""
    if node.kind == "module":
        return "running_mean" in node.weights
    training = node.kwargs.get("training", node.args[5] if len(node.args) > 5 else False)
    statistics = node.kwargs.get("running_mean", node.args[1] if len(node.args) > 1 else None)
    return training is not False and statistics is not None


class Memory:
    """Which values may share memory, and which nodes write into it."""

    def __init__(self, graph: Graph) -> None:
        self._shared: UnionFind[Value] = UnionFind()
        self._writers: dict[Value, list[Node]] = {}
        writing = []
        outer = [node.output for node in graph if node.kind in ("input", "weight")]
        for node in graph:
            targets = written(node)
            if targets:
                writing.append((node, targets))
            if node.kind in ("onnx", "input", "output", "constant"):
                continue
            if reads_form_only(node) or (has(node, Trait.FRESH) and not targets):
                continue
            if node.kind != "module" and node.weight_names():
                outer.append(node.output)  # a view of a weight, perhaps
            for value in node.operands():
                if value.is_tensor or value in self._shared.parents:
                    self._shared.union(value, node.output)
        #: What stands for memory that is not the graph's own: inputs and weights.
        self.outer = {self.root(value) for value in outer}
        self.to_weights = {
            node for node, targets in writing if any(isinstance(t, WeightRef) for t in targets)
        }
        self.reshaped: set[Value] = set()
        for node, targets in writing:
            for target in targets:
                if isinstance(target, Value):
                    self._writers.setdefault(self.root(target), []).append(node)
                    if has(node, Trait.CHANGES_FORM) and operation_of(node).writes:
                        self.reshaped.add(self.root(target))

    def root(self, value: Value) -> Value:
        """The value that stands for all that may share memory with this one."""
        return self._shared[value]

    def writers(self, value: Value) -> list[Node]:
        """The nodes that may write into a value's memory."""
        return self._writers.get(self.root(value), [])

    def changes(self, values: Iterable[Value]) -> bool:
        """Whether any of these values may be written into."""
        return any(self.writers(value) for value in values)
