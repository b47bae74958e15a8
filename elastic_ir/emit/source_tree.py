"""The module tree of a graph, for source: which paths are modules with a forward of their own, and what each runs.

A node's scope says which module's forward ran it, and a weight's name where it lives. A path whose nodes stand
together in one run, or in several equal ones, becomes a module that is called; the nodes of any other path are written
into the forward around it, and the path only holds what lies below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from elastic_ir.emit.source_aten import call_of_aten, is_nothing
from elastic_ir.emit.source_calls import call_of, convert, identifier
from elastic_ir.emit.source_expr import IDENTITY, Expr, change, walk
from elastic_ir.emit.source_layers import as_layer, layer_of
from elastic_ir.errors import EmitError
from elastic_ir.graph import Graph, Node, Value
from elastic_ir.weights import Weight

Path = tuple[str, ...]
Sizes = dict[Node, tuple[Any, ...]]


@dataclass
class Statement:
    """One operation; locals in its expression are values of the graph, paths are whole."""

    value: Any
    expr: Expr
    scope: Path


@dataclass
class Body:
    """What a module's forward does, in its own numbers: inputs come first, then each statement's results."""

    inputs: tuple[Any, ...]  #: the graph's values, or paths of weights of others, in the order of their first use
    statements: tuple[tuple[tuple[int, ...], Expr], ...]
    returns: Expr
    values: tuple[Any, ...]  #: the graph's value behind each number


@dataclass
class Part:
    """A path of the module tree. ``kind``: leaf, identity, sequential, list, dict, parameters, class."""

    path: Path
    children: dict[str, Part] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)
    kind: str = "class"
    make: Expr | None = None  #: the constructor, once it is known
    base: Expr | None = None  #: the layer of torch.nn that a class derives from
    body: Body | None = None
    hint: str = ""  #: the class's name in the source, if known
    inlined: bool = False  #: its nodes stand in the forward around it
    plain_sequential: bool = False  #: the source has a Sequential of torch there
    sequence: bool = False  #: the source has a Sequential there, or a class derived from it
    loop: bool = False  #: a list that its parent's forward runs through in order

    def below(self) -> list[Part]:
        """Itself and everything under it, children first."""
        found = [part for child in self.children.values() for part in child.below()]
        return [*found, self]


class Tree:
    """Statements and parts of a graph; see :func:`read_tree`."""

    def __init__(self, graph: Graph, sizes: Sizes) -> None:
        self.graph = graph
        self.sizes = sizes  #: arguments of exported nodes whose numbers follow the input
        self.live = getattr(graph.origin, "module", None)
        self.weights = {tuple(name.split(".")): weight for name, weight in graph.weights.items()}
        self.inputs: list[Node] = []
        self.output: Node | None = None
        self.statements: list[Statement] = []
        self.parts: dict[Path, Part] = {(): Part(())}
        self.runs: dict[Path, list[tuple[int, int]]] = {}
        self.readers: dict[Any, list[int]] = {}

    def part(self, path: Path) -> Part:
        """The part of a path, made if need be, with those above it."""
        if path not in self.parts:
            above = self.part(path[:-1])
            self.parts[path] = above.children[path[-1]] = Part(path)
        return self.parts[path]

    # -- bodies ----------------------------------------------------------------------------------------------------

    def body(self, part: Part, low: int, high: int) -> Body:
        """What a part does in the statements from ``low`` to ``high``, calls of parts below it as one statement."""
        numbers: dict[Any, int] = {}
        inputs: list[Any] = []
        made: list[tuple[list[Any], Expr]] = []
        at = low
        while at < high:
            statement = self.statements[at]
            child = self._called(part, statement.scope)
            if child is None or child.kind == "leaf":
                made.append(([statement.value], statement.expr))
                at += 1
                continue
            end = next(b for a, b in self.runs[child.path] if a <= at < b)
            body = self.body(child, at, end)
            arguments = tuple(
                Expr("local", key) if isinstance(key, Value) else Expr("attr", key) for key in body.inputs
            )
            results = [body.values[leaf.value] for leaf in walk(body.returns) if leaf.kind == "local"]
            made.append((results, Expr("self", child.path, arguments, ("",) * len(arguments))))
            at = end
        defined = {key for results, _ in made for key in results}
        depth = len(part.path)

        def outside(leaf: Expr) -> None:
            if leaf.kind == "local" and leaf.value not in defined and leaf.value not in inputs:
                inputs.append(leaf.value)
            if leaf.kind == "attr" and leaf.value[:depth] != part.path and leaf.value not in inputs:
                inputs.append(leaf.value)

        if not part.path:
            inputs += [node.output for node in self.inputs]
        for _, expr in made:
            for leaf in walk(expr):
                outside(leaf)
        for key in inputs:
            numbers[key] = len(numbers)
        for results, _ in made:
            for key in results:
                numbers[key] = len(numbers)

        def own(leaf: Expr) -> Expr | None:
            if leaf.kind == "local":
                return Expr("local", numbers[leaf.value])
            if leaf.kind == "attr":
                if leaf.value in numbers:
                    return Expr("local", numbers[leaf.value])
                return Expr("attr", leaf.value[depth:])
            if leaf.kind == "self":
                return Expr("self", leaf.value[depth:], tuple(change(p, own) for p in leaf.parts), leaf.names)
            return None

        statements = tuple(
            (tuple(numbers[key] for key in results), change(expr, own)) for results, expr in made
        )
        if part.path:
            leaving = [
                key for results, _ in made for key in results
                if any(not low <= reader < high for reader in self.readers.get(key, ()))
            ]  # fmt: skip
            parts = tuple(Expr("local", numbers[key]) for key in leaving)
            returns = parts[0] if len(parts) == 1 else Expr("tuple", None, parts)
        else:
            assert self.output is not None
            returns = change(convert(self._result()), own)
        return Body(tuple(inputs), statements, returns, tuple(numbers))

    def _result(self) -> Any:
        """What the network returns; an export wraps a single result in a tuple."""
        assert self.output is not None
        result = self.output.args[0]
        if self.graph.metadata.get("frontend") == "export" and isinstance(result, (tuple, list)) and len(result) == 1:
            return result[0]
        return result

    def _called(self, part: Part, scope: Path) -> Part | None:
        """The nearest part below ``part`` on the way to a scope that is called as a module."""
        for length in range(len(part.path) + 1, len(scope) + 1):
            found = self.parts[scope[:length]]
            if not found.inlined:
                return found
        return None


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
    _count_runs(tree)
    _layers(tree)
    for part in tree.parts[()].below():
        if part.kind == "class":
            _settle(tree, part)
    _order(tree)
    return tree


def _read_statements(tree: Tree) -> None:
    graph = tree.graph
    exported = graph.metadata.get("frontend") == "export"
    nodes = [node for node in graph if not (node.op == "torch._assert" or is_nothing(node))]
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

    from elastic_ir.emit.graph_module import _origin_path

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
            part.hint = type(module).__name__.lstrip("_")


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


def _count_runs(tree: Tree) -> None:
    """For each path the runs of statements below it."""
    for place, statement in enumerate(tree.statements):
        for length in range(len(statement.scope) + 1):
            runs = tree.runs.setdefault(statement.scope[:length], [])
            if runs and runs[-1][1] == place:
                runs[-1] = (runs[-1][0], place + 1)
            else:
                runs.append((place, place + 1))


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
                same = [as_layer(_untied(tree.statements[p].expr, path, tree), shapes, _rank(expr)) for p in places]
                if all(each is not None and each.make == found.make for each in same):
                    part.kind, part.make = "leaf", found.make
                    for p, each in zip(places, same, strict=True):
                        assert each is not None
                        tree.statements[p].expr = Expr("self", path, (each.input,), ("",))
                    break
            elif not alone and found.roles and owned and set(found.roles) == roles and len(tree.runs[path]) == 1:
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


def _settle(tree: Tree, part: Part) -> None:
    """What kind of module a part is; those below it are settled already."""
    runs = tree.runs.get(part.path, [])
    if part.path and runs:
        bodies = [tree.body(part, low, high) for low, high in runs]
        first = bodies[0]
        if any((b.statements, b.returns, len(b.inputs)) != (first.statements, first.returns, len(first.inputs))
               for b in bodies[1:]) or first.returns == Expr("tuple"):  # fmt: skip
            part.inlined = True
        else:
            part.body = first
    elif part.path:
        part.inlined = True
    else:
        part.body = tree.body(part, 0, len(tree.statements))
    if part.body is not None:
        named = part.sequence or all(name.isdigit() for name in part.children)
        named = named or any(not name.isidentifier() for name in part.children)
        if part.children and named and _is_chain(part):
            part.kind = "sequential"
            return
        numeric = part.children and all(name.isdigit() for name in part.children)
        if part.path and numeric and not part.weights:
            part.inlined, part.body = True, None  # a list, which the forward around it runs through
    if part.inlined:
        if part.children and all(name.isdigit() for name in part.children) and not part.weights:
            part.kind = "list"
        elif part.children and not part.weights:
            part.kind = "dict"
        elif not part.children and part.weights:
            part.kind = "parameters"


def _is_chain(part: Part) -> bool:
    """Whether a part runs its children one after the other, each once, and does nothing else."""
    body = part.body
    assert body is not None
    if part.weights or len(body.inputs) != 1 or not body.statements:
        return False
    current, ran = 0, []
    for results, expr in body.statements:
        plain = expr.kind == "self" and len(expr.value) == 1 and expr.parts == (Expr("local", current),)
        if not plain or len(results) != 1 or expr.names != ("",):
            return False
        current = results[0]
        ran.append(expr.value[0])
    if len(set(ran)) != len(ran) or body.returns != Expr("local", current):
        return False
    idle = [name for name in part.children if name not in ran]
    if any(part.children[name].weights or part.children[name].children for name in idle):
        return False
    if all(name.isdigit() for name in part.children):
        if [int(name) for name in ran] != sorted(int(name) for name in ran):
            return False
        for number in range(int(ran[-1])):  # what a Sequential holds and the graph does not run keeps its place
            if str(number) not in ran:
                part.children[str(number)] = Part((*part.path, str(number)), kind="identity", make=IDENTITY)
    part.children = {name: part.children[name] for name in
                     (sorted(part.children, key=int) if ran[0].isdigit() else ran)}  # fmt: skip
    return True


def _order(tree: Tree) -> None:
    """Children in the order of the state dict; those without weights where the source or the forward has them."""
    known = tree.graph.metadata.get("modules", {})
    place: dict[Path, tuple[int, int]] = {}
    for index, path in enumerate(tree.weights):
        for length in range(len(path)):
            place.setdefault(path[:length], (index, 0))
    for index, statement in enumerate(tree.statements):
        for length in range(len(statement.scope) + 1):
            place.setdefault(statement.scope[:length], (len(tree.weights), index))
    for path, part in tree.parts.items():
        if part.kind == "sequential":
            continue
        listed = {name: index for index, name in enumerate(known.get(".".join(path), ()))}
        if all(name in listed for name in part.children):
            part.children = {name: part.children[name] for name in sorted(part.children, key=lambda n: listed[n])}
        else:
            part.children = {
                name: part.children[name]
                for name in sorted(part.children, key=lambda n: place.get((*path, n), (1 << 60, 0)))
            }
        if part.kind == "list":
            part.children = {name: part.children[name] for name in sorted(part.children, key=int)}
