"""Names: dotted paths and their prefixes, and the canonical names of nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from elastic_ir.ir.graph import Argument, Graph, Node, WeightRef, map_argument
from elastic_ir.tensors.weights import Weight


def head_in(path: str, heads: Collection[str]) -> str | None:
    """The prefix of a dotted path, itself included, that is among ``heads``."""
    end = len(path)
    while end != -1:
        if path[:end] in heads:
            return path[:end]
        end = path.rfind(".", 0, end)
    return None


def outward(path: str) -> list[str]:
    """A dotted path and those around it, the nearest first; the last is "", the root."""
    found = [path]
    while path:
        path = path.rpartition(".")[0]
        found.append(path)
    return found


def rename_path(path: str, renames: dict[str, str]) -> str:
    """A dotted path with its longest renamed prefix (whole components only) replaced."""
    head = head_in(path, renames)
    return path if head is None else renames[head] + path[len(head) :]


def weights_below(weights: Mapping[str, Weight], paths: Iterable[str]) -> dict[str, dict[str, Weight]]:
    """For each of some paths the weights that lie in it, by their names within it; "" for one of that name itself."""
    found: dict[str, dict[str, Weight]] = {path: {} for path in paths}
    for name, weight in weights.items():
        head = head_in(name, found)
        if head is not None:
            found[head][name[len(head) + 1 :]] = weight
    return found


def module_order(names: Iterable[str]) -> list[str]:
    """Names in the order of a module that holds them: its own before those of its children, first come, first."""
    listed = list(names)
    place: dict[str, int] = {}
    for index, name in enumerate(listed):
        end = len(name)
        while end != -1:
            place.setdefault(name[:end], index)
            end = name.rfind(".", 0, end)

    def key(name: str) -> list[tuple[bool, int]]:
        ends = [at for at, letter in enumerate(name) if letter == "."]
        return [(True, place[name[:end]]) for end in ends] + [(False, place[name])]

    return sorted(listed, key=key)


def rename_references(node: Node, renames: dict[str, str]) -> bool:
    """Let a node use weights under their new names; whether it uses one of them."""
    if renames.keys().isdisjoint(node.weight_names()):
        return False

    def change(leaf: Argument) -> Argument:
        return WeightRef(renames[leaf.name]) if isinstance(leaf, WeightRef) and leaf.name in renames else leaf

    node.weights = {role: renames.get(name, name) for role, name in node.weights.items()}
    node.args = map_argument(node.args, change)
    node.kwargs = map_argument(node.kwargs, change)
    return True


def name_nodes(graph: Graph) -> None:
    """Give every node its canonical name: a module's path, an operation's name, numbered where repeated.

    The names follow from the graph alone, so stretching and squeezing back gives the same text again.
    """
    taken: Counter[str] = Counter()
    for node in graph:
        if node.kind == "input" or node.kind == "output":
            base = node.name
        elif node.kind == "module":
            base = node.scope.replace(".", "_")
        elif node.kind == "weight":
            base = "_".join(node.weight_names()).replace(".", "_")
        else:
            parts = node.op.split(".")
            base = parts[-2] if parts[0] == "aten" and len(parts) > 2 else parts[-1]
        if base[:1].isdigit():
            base = "_" + base
        count = taken[base]
        taken[base] += 1
        node.name = f"{base}_{count}" if count else base
        if count:
            taken[node.name] += 1
