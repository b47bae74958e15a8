"""A graph read for source: its nodes as statements, and functional calls that are layers as layers again."""

from __future__ import annotations

from elastic_ir.emit.source.expressions.expr import Expr, change, walk
from elastic_ir.emit.source.reading.aten import call_of_aten
from elastic_ir.emit.source.reading.calls import call_of, convert, identifier
from elastic_ir.emit.source.reading.layers import as_layer, layer_of
from elastic_ir.emit.source.reading.tree import (
    Path,
    Sizes,
    Statement,
    Tree,
    count_runs,
    order_children,
    settle,
)
from elastic_ir.errors import EmitError
from elastic_ir.ir.functions import CHECKS
from elastic_ir.ir.graph import Graph, Node, Value


def read_tree(graph: Graph, sizes: Sizes) -> Tree:
    """Statements, parts and bodies of a graph; EmitError for what cannot be written."""
    tree = Tree(graph, sizes)
    _read_statements(tree)
    for path, weight in tree.weights.items():
        tree.part(path[:-1]).weights[path[-1]] = weight
    for statement in tree.statements:
        tree.part(statement.scope)
    _hints(tree)
    _borrowed(tree)
    count_runs(tree)
    _layers(tree)
    for part in tree.parts[()].below():
        if part.kind == "class":
            settle(tree, part)
    order_children(tree)
    return tree


def _read_statements(tree: Tree) -> None:
    graph = tree.graph
    exported = graph.info.frontend == "export"
    nodes = [node for node in graph if not (node.op == "torch._assert" or node.op in CHECKS)]
    needed = _needed(nodes)
    nodes = [node for node in nodes if node in needed]
    last: dict[Value, int] = {}
    for place, node in enumerate(nodes):
        for value in node.operands():
            last[value] = place
    for place, node in enumerate(nodes):
        if node.kind == "input":
            if node.op.startswith("*"):
                raise EmitError(f"{graph.name}.forward takes {node.op}, which a graph does not spell out")
            tree.inputs.append(node)
            continue
        if node.kind == "output":
            tree.output = node
            continue
        if node.kind == "constant":
            continue
        scope = tuple(node.scope.split(".")) if node.scope else ()
        if node.kind == "module":
            for option in node.kwargs:
                identifier(option, "the argument")
            args = tuple(convert(item) for item in (*node.args, *node.kwargs.values()))
            expr = Expr("self", scope, args, ("",) * len(node.args) + tuple(node.kwargs))
            part = tree.part(scope)
            part.kind, part.make = "leaf", layer_of(node)
        else:

            def later(value: Value, place: int = place) -> bool:
                return last.get(value, -1) > place

            args = tree.sizes.get(node, node.args)
            expr = call_of_aten(node, args, later) if exported else call_of(node, later)
            if exported and "device" in node.kwargs and expr.kind == "call" and tree.inputs:
                device = Expr("getattr", "device", (Expr("local", tree.inputs[0].output),))
                expr = Expr("call", expr.value, (*expr.parts, device), (*expr.names, "device"))
        tree.statements.append(Statement(node.output, expr, scope))
    for place, statement in enumerate(tree.statements):
        for leaf in walk(statement.expr):
            if leaf.kind == "local":
                tree.readers.setdefault(leaf.value, []).append(place)
    if tree.output is None:
        raise EmitError(f"{graph.name} has no output, so there is no forward to write")
    for leaf in walk(convert(tree.output.args)):
        if leaf.kind == "local":
            tree.readers.setdefault(leaf.value, []).append(-1)


def _needed(nodes: list[Node]) -> set[Node]:
    """The nodes that lead to the output; what only fed a check, or looked at a shape for nothing, is left out."""
    kept: set[Node] = set()
    for node in reversed(nodes):
        name = node.op.split(".")[1 if node.op.startswith("aten.") else -1]
        changes = name.endswith("_") and not name.endswith("__") and not node.weight_names()
        if node.kind in ("input", "output") or changes:
            kept.add(node)
        if node in kept:
            kept.update(value.node for value in node.operands())
    return kept


def _hints(tree: Tree) -> None:
    """Class names of the source's modules, where the source is at hand."""
    from torch import nn

    from elastic_ir.emit.graph_modules.from_torch import _origin_path

    for path, part in tree.parts.items():
        if tree.live is None:
            continue
        try:
            module = tree.live.get_submodule(_origin_path(".".join(path), tree.graph))
        except AttributeError:
            continue
        if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Identity)):
            continue
        part.plain_sequential = type(module) is nn.Sequential
        part.sequence = isinstance(module, nn.Sequential)
        if not part.plain_sequential:
            part.hint = type(module).__name__.lstrip("_") if type(module) is not nn.Module else ""


def _borrowed(tree: Tree) -> None:
    """Layers whose weights the forward around them uses in a functional call: the layer is called instead."""
    shapes = {path: weight.shape for path, weight in tree.weights.items()}
    running = {statement.scope for statement in tree.statements}
    readers: dict[Path, int] = {}
    for statement in tree.statements:
        for path in {leaf.value[:-1] for leaf in walk(statement.expr) if leaf.kind == "attr"}:
            readers[path] = readers.get(path, 0) + 1
    for statement in tree.statements:
        owners = {leaf.value[:-1] for leaf in walk(statement.expr) if leaf.kind == "attr"}
        if len(owners) != 1:
            continue
        owner = owners.pop()
        part = tree.parts.get(owner)
        if part is None or owner in running or part.children or readers[owner] != 1 or not owner:
            continue
        found = as_layer(statement.expr, shapes, _rank(statement.expr))
        if found is None or set(found.roles) != set(part.weights) or owner[:-1] != statement.scope:
            continue
        part.kind, part.make = "leaf", found.make
        statement.scope, statement.expr = owner, Expr("self", owner, (found.input,), ("",))


def _layers(tree: Tree) -> None:
    """Functional calls that are layers: a leaf where a path does nothing else, a base class where it does more."""
    shapes = {path: weight.shape for path, weight in tree.weights.items()}
    own: dict[Path, list[int]] = {}
    for place, statement in enumerate(tree.statements):
        own.setdefault(statement.scope, []).append(place)
    for path, places in own.items():
        part = tree.parts[path]
        if part.kind == "leaf" or not path:
            continue
        alone = len(places) == len(tree.runs[path]) and not part.children
        alone = alone and all(high - low == 1 for low, high in tree.runs[path])
        for place in places if not alone else places[:1]:
            statement = tree.statements[place]
            expr = _untied(statement.expr, path, tree)
            found = as_layer(expr, shapes, _rank(expr))
            if found is None:
                continue
            roles = set(part.weights) - {"num_batches_tracked"}
            owned = all((*path, role) in shapes for role in found.roles)
            if alone and owned and set(found.roles) == roles and not part.children:
                same = [
                    as_layer(_untied(tree.statements[p].expr, path, tree), shapes, _rank(expr))
                    for p in places
                ]
                if all(each is not None and each.make == found.make for each in same):
                    part.kind, part.make = "leaf", found.make
                    for p, each in zip(places, same, strict=True):
                        assert each is not None
                        tree.statements[p].expr = Expr("self", path, (each.input,), ("",))
                    break
            elif (
                not alone
                and found.roles
                and owned
                and set(found.roles) == roles
                and len(tree.runs[path]) == 1
            ):
                used = sum(1 for p in places for leaf in walk(tree.statements[p].expr) if leaf.kind == "attr")
                if used == len(found.roles):
                    part.base = found.make
                    statement.expr = Expr("call", "super().forward", (found.input,), ("",))
                break


def _untied(expr: Expr, path: Path, tree: Tree) -> Expr:
    """Tied weights under the names of the module that runs: a graph knows a tensor by the first of its names."""

    def own(leaf: Expr) -> Expr | None:
        if leaf.kind == "attr" and leaf.value[:-1] != path and leaf.value in tree.weights:
            mine = tree.weights.get((*path, leaf.value[-1]))
            if mine is not None and mine.storage is tree.weights[leaf.value].storage:
                return Expr("attr", (*path, leaf.value[-1]))
        return None

    return change(expr, own)


def _rank(expr: Expr) -> int | None:
    first = next((leaf.value for leaf in walk(expr) if leaf.kind == "local"), None)
    return len(first.type.shape) if first is not None and first.type is not None else None
