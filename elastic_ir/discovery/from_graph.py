"""Groups of a container read from the graph: who reads what, which shapes go in and out, what repeats."""

from __future__ import annotations

import hashlib
from typing import Any

from elastic_ir.discovery.parts import Group, Part, form_of, group_children, relative_weights
from elastic_ir.ir.graph import Graph, Literal, Node, Symbol, TensorType, Value, WeightRef
from elastic_ir.ir.structure import Container


class GraphReader:
    """Answers questions about groups from one graph; built once for a whole discovery."""

    form = "graph"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.order = {node: index for index, node in enumerate(graph)}
        self.users = graph.users()
        self.prunable = {name for name, weight in graph.weights.items() if weight.prunable}
        #: what depends on an input; weights made ready may stand anywhere before
        self.live: set[Node] = set()
        for node in graph:
            if node.kind == "input" or any(value.node in self.live for value in node.operands()):
                self.live.add(node)

    def groups(self, container: Container, parts: list[Part]) -> list[Group]:
        """The groups of a container with links, shapes and signatures filled in; [] if nothing chains."""
        if not any(part.nodes for part in parts):
            return []
        groups = group_children(parts, self._weighted, lambda part: bool(part.weights), self._separates)
        for group in groups:
            group.nodes = sorted((n for part in group.parts for n in part.nodes), key=self.order.__getitem__)
        groups = [group for group in groups if group.nodes]
        if not groups:
            return []
        self._absorb(container, groups)
        starts = [self.position(group) for group in groups]
        if starts != sorted(starts):
            return []  # the children do not run in the order of their numbers
        self._link(groups)
        for group in groups:
            group.weights = relative_weights(group.parts, self.graph)
            group.form = form_of(group)
            group.signature, group.kind = self._signatures(group)
        return groups

    def on_trunk(self, groups: list[Group]) -> bool:
        """False where what enters the container is read again behind it: it is a branch beside a shortcut."""
        value = groups[0].input
        if value is None:
            return False
        end = self.order[groups[-1].nodes[-1]]
        return all(self.order[reader] <= end for reader in self.users.get(value, ()))

    def position(self, group: Group) -> int:
        """Where the group runs, to order stages."""
        return self.order[next((node for node in group.nodes if node in self.live), group.nodes[0])]

    def between(self, left: Group, right: Group) -> list[Node]:
        """The nodes that run after one group and before another."""
        first, last = self.order[left.nodes[-1]], self.order[right.nodes[0]]
        nodes = []
        node = left.nodes[-1]._next
        for _ in range(last - first - 1):
            assert node is not None
            nodes.append(node)
            node = node._next
        return nodes

    def _weighted(self, part: Part) -> bool:
        return any(name in self.prunable for name in part.weights)

    def _separates(self, part: Part) -> bool:
        """Whether a part without weights changes the activation's shape."""
        if part.weights or not part.nodes:
            return False
        end = part.nodes[-1].output.type
        start = next((v.type for v in part.nodes[0].operands() if v.type is not None), None)
        return start is not None and end is not None and not _same_extents(start, end)

    def _absorb(self, container: Container, groups: list[Group]) -> None:
        """What the caller does between all children alike (an activation, a residual sum) joins the one before.

        The same after the last child joins it; anything else there is the caller's own.
        """
        scopes = {container.path, container.path.rpartition(".")[0]}
        starts = {group.nodes[0] for group in groups}
        runs = [self._run_behind(group, scopes, starts) for group in groups]
        pattern = [node.op for node in runs[0]]
        if any([node.op for node in run] != pattern for run in runs[:-1]):
            return
        last = runs[-1][: len(pattern)]
        if len(groups) < 2 or [node.op for node in last] != pattern:
            return
        for group, run in zip(groups, [*runs[:-1], last], strict=True):
            group.nodes.extend(run)

    def _run_behind(self, group: Group, scopes: set[str], starts: set[Node]) -> list[Node]:
        """The weightless, shape-preserving operations of the caller that follow a group, each on the one before."""
        run: list[Node] = []
        last, node = group.nodes[-1], group.nodes[-1]._next
        while node is not None and node.scope in scopes and node.kind in ("function", "method", "onnx"):
            source = next((value.type for value in node.operands() if value.type is not None), None)
            same = (
                node.output.type is not None
                and source is not None
                and _same_extents(source, node.output.type)
            )
            if node in starts or node.weight_names() or not same:
                break
            if not any(value.node is last for value in node.operands()):
                break
            run.append(node)
            last, node = node, node._next
        return run

    def _link(self, groups: list[Group]) -> None:
        """Find each group's one input and output, and whether neighbours chain."""
        owner = {node: index for index, group in enumerate(groups) for node in group.nodes}
        readers: list[dict[Value, set[int]]] = []
        for index, group in enumerate(groups):
            leaving: dict[Value, set[int]] = {}
            for node in group.nodes:
                if not node.output.is_tensor:
                    continue
                who = {owner.get(reader, -1) for reader in self.users.get(node.output, ())} - {index}
                if who:
                    leaving[node.output] = who
            readers.append(leaving)
        for index, group in enumerate(groups):
            leaving = readers[index]
            following = [value for value, who in leaving.items() if index + 1 in who]
            if len(following) == 1:
                group.output = following[0]
            elif len(leaving) == 1 or (leaving and index + 1 == len(groups)):
                group.output = next(iter(leaving))
            elif leaving:
                group.output = max(leaving, key=lambda value: self.order[value.node])
            group.sound = (
                len(leaving) == 1 and len(leaving.get(group.output, ())) <= 1 if group.output else False
            )
        outside: dict[Value, int] = {}
        reads: list[dict[Value, None]] = []
        for index, group in enumerate(groups):
            seen: dict[Value, None] = {}
            for node in group.nodes:
                for value in node.operands():
                    if value.is_tensor and owner.get(value.node) != index:
                        seen[value] = None
            reads.append(seen)
            for value in seen:
                outside[value] = outside.get(value, 0) + 1
        for index, group in enumerate(groups):
            previous = groups[index - 1] if index else None
            siblings = {owner[value.node] for value in reads[index] if value.node in owner}
            if previous is not None and previous.output in reads[index]:
                group.input, group.linked = previous.output, True
                # what the first block made for all others to read (T5's position bias) is not flow
                if siblings - {index - 1, 0}:
                    group.sound = False
            else:
                candidates = [value for value in reads[index] if outside[value] == 1] or list(reads[index])
                same = [v for v in candidates if group.output and v.type and v.type.fits(group.output.type)]
                chosen = same or candidates
                group.input = chosen[0] if chosen else None
            if group.input is None or group.output is None:
                group.sound = False
                continue
            group.preserving = group.input.type is not None and group.input.type.fits(group.output.type)

    def _signatures(self, group: Group) -> tuple[str, str]:
        """Hashes of what a group computes: with integers and weight shapes, and of its operations alone.

        Float literals are left out: rates (stochastic depth) differ in every block.
        """
        place = {node.output: index for index, node in enumerate(group.nodes)}
        exact, kinds = hashlib.sha256(), hashlib.sha256()
        for node in group.nodes:
            if node.op == "torch._assert":  # computes nothing, and its message names the traced values
                continue
            kinds.update(node.op.encode() + b";")
            shapes = [self.graph.weights[name].shape for name in node.weight_names()]
            text = f"{node.op}{self._plain((node.args, node.kwargs, node.attributes), place)}{shapes};"
            exact.update(text.encode())
        exact.update(repr(sorted(group.weights.items())).encode())
        return exact.hexdigest(), kinds.hexdigest()

    def _plain(self, item: Any, place: dict[Value, int]) -> str:
        if isinstance(item, Value):
            return f"%{place.get(item, 'x')}"
        if isinstance(item, WeightRef):
            return "@"
        if isinstance(item, Symbol):
            return item.name
        if isinstance(item, Literal):
            return f"{item.shape}{self._plain(item.values, place)}"
        if isinstance(item, (float, complex)):
            return "~"
        if isinstance(item, (tuple, list)):
            return "(" + ",".join(self._plain(part, place) for part in item) + ")"
        if isinstance(item, dict):
            return "{" + ",".join(f"{key}:{self._plain(part, place)}" for key, part in item.items()) + "}"
        if isinstance(item, slice):
            return self._plain((item.start, item.stop, item.step), place)
        return repr(item)


def _same_extents(left: TensorType, right: TensorType) -> bool:
    """Whether two shapes agree as far as they are known, whatever the dtypes."""
    return left.fits(TensorType(right.shape, left.dtype))
