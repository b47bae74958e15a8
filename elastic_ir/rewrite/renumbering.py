"""Renumbering: what an edit's end does to names, so that they are those of the natively built network.

The rewriter's third part. Clones get provisional paths while they are made; here the children of each touched
container are numbered afresh, in order, and nodes, weights and the list of modules follow in one walk.
"""

from __future__ import annotations

from collections.abc import Iterable

from elastic_ir.errors import VerifyError
from elastic_ir.ir.graph import Graph, Node
from elastic_ir.ir.naming import head_in, rename_path, rename_references
from elastic_ir.ir.numbering import Series
from elastic_ir.ir.structure import Container
from elastic_ir.tensors.weights import Weight, Weights


class Renumbering:
    """What the rewriter does to names when an edit ends."""

    graph: Graph
    _touched: dict[Container, None]
    edited: dict[Node, None]
    _copied_from: dict[str, str]

    def _owner(self, name: str) -> str | None:
        raise NotImplementedError

    def _renumber(self) -> None:
        """Number the children of touched containers afresh and rename what lies in them."""
        renames: dict[str, str] = {}
        for container in self._touched:
            for index, child in enumerate(container.children):
                renames[child.path] = container.child_path(index)
        self._rename_weights(renames)
        self._list_modules(renames)
        for container in self._touched:
            for child in container.children:
                child.path = renames[child.path]
        self._rename_structure({old: new for old, new in renames.items() if old != new})
        self._touched.clear()
        self._copied_from.clear()

    def _rename_weights(self, renames: dict[str, str]) -> None:
        """Rename the weights and put them into the order of the natively built network's state dict."""
        old_weights = self.graph.weights
        container_of = {child.path: box for box in self._touched for child in box.children}
        by_child: dict[str, list[Weight]] = {path: [] for path in container_of}
        plan: list[Weight | list[Container]] = []
        begun: set[Container] = set()
        changed: dict[str, str] = {}
        for name, weight in old_weights.items():
            owner = self._owner(name)
            if owner is None or owner not in container_of:
                plan.append(weight)
                continue
            by_child[owner].append(weight.renamed(renames[owner] + name[len(owner) :]))
            if by_child[owner][-1].name != name:
                changed[name] = by_child[owner][-1].name
            if container_of[owner] not in begun:
                together = _in_turn(container_of[owner], self._touched)
                begun.update(together)
                plan.append(together)
        fresh: dict[str, Weight] = {}
        for item in plan:
            if isinstance(item, Weight):
                group = [item]
            else:
                rows = zip(*(box.children for box in item), strict=True)
                group = [weight for row in rows for child in row for weight in by_child[child.path]]
            for weight in group:
                if weight.name in fresh:
                    raise VerifyError(f"two weights would be named {weight.name!r}")
                fresh[weight.name] = weight
        self.graph.weights = Weights(fresh)
        moved = {old: new for old, new in renames.items() if old != new}
        for node in self.graph:
            node.scope = rename_path(node.scope, moved)
            if changed and rename_references(node, changed):
                self.edited[node] = None

    def _list_modules(self, renames: dict[str, str]) -> None:
        """Keep the front end's list of registered modules in step with the containers."""
        listed = self.graph.modules
        if not listed:
            return
        below: dict[str, list[tuple[str, list[str]]]] = {}
        fresh: dict[str, list[str]] = {}
        stems = {container.path for container in self._touched if not container.parameters}
        heads = {self._copied_from.get(path, path) for path in renames}
        deleted = {
            f"{box.path}.{name}" if box.path else name
            for box in self._touched
            if not box.parameters
            for name in _members(box, listed)
        }
        ends = heads | deleted
        for path, names in listed.items():
            head = head_in(path, ends)
            if head is not None:
                below.setdefault(head, []).append((path[len(head) :], names))
            elif path not in stems:
                fresh[path] = names
        for container in self._touched:
            if container.parameters:
                continue
            lead = len(container.path) + 1 if container.path else 0
            old = listed.get(container.path, [])
            there = [
                child
                for child in container.children
                if not old or self._copied_from.get(child.path, child.path)[lead:] in old
            ]
            names = [renames[child.path][lead:] for child in there]
            if not container.native:  # other children stand beside the series; it keeps its place among them
                members = dict.fromkeys(_members(container, listed))
                at = (
                    old.index(next(iter(members))) if members else len(old)
                )  # none, where they are parameters
                others = [n for n in old if n not in members]
                names = [*others[:at], *names, *others[at:]]
            fresh[container.path] = names
            for child in container.children:
                for rest, inner in below.get(self._copied_from.get(child.path, child.path), ()):
                    fresh[renames[child.path] + rest] = inner
        self.graph.modules = fresh

    def _rename_structure(self, moved: dict[str, str]) -> None:
        structure = self.graph.structure
        for stage in structure.stages:
            if stage.transition is not None:
                stage.transition = rename_path(stage.transition, moved)
        structure.stem = tuple(rename_path(path, moved) for path in structure.stem)
        structure.head = tuple(rename_path(path, moved) for path in structure.head)


def _in_turn(container: Container, touched: Iterable[Container]) -> list[Container]:
    """The containers whose slots stand by turns in the state dict: the parameters of one recurrent module."""
    if not container.parameters:
        return [container]
    return [box for box in touched if box.parameters and box.path == container.path]


def _members(container: Container, listed: dict[str, list[str]]) -> list[str]:
    """The registered children of a container that are of its series, by their names in it."""
    series = Series("", container.prefix, container.width, container.suffix)
    return [name for name in listed.get(container.path, ()) if series.number(name) is not None]
