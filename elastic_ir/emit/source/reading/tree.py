"""The module tree of a graph, for source: which paths are modules with a forward of their own, and what each runs.

A node's scope says which module's forward ran it, and a weight's name where it lives. A path whose nodes stand
together in one run, or in several equal ones, becomes a module that is called; the nodes of any other path are written
into the forward around it, and the path only holds what lies below it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from elastic_ir.emit.source.expressions.expr import IDENTITY, Expr, change, walk
from elastic_ir.emit.source.reading.calls import convert
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.numbering import is_index
from elastic_ir.tensors.weights import Weight

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

    inputs: tuple[
        Any, ...
    ]  #: the graph's values, or paths of weights of others, in the order of their first use
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
    """Statements and parts of a graph; see :func:`elastic_ir.emit.source.reading.read.read_tree`."""

    def __init__(self, graph: Graph, sizes: Sizes) -> None:
        self.graph = graph
        self.sizes = sizes  #: arguments of exported nodes whose numbers follow the input
        self.live = graph.origin.module
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
            returns = change(convert(self.output.args[0]), own)
        return Body(tuple(inputs), statements, returns, tuple(numbers))

    def _called(self, part: Part, scope: Path) -> Part | None:
        """The nearest part below ``part`` on the way to a scope that is called as a module."""
        for length in range(len(part.path) + 1, len(scope) + 1):
            found = self.parts[scope[:length]]
            if not found.inlined:
                return found
        return None


def count_runs(tree: Tree) -> None:
    """For each path the runs of statements below it."""
    for place, statement in enumerate(tree.statements):
        for length in range(len(statement.scope) + 1):
            runs = tree.runs.setdefault(statement.scope[:length], [])
            if runs and runs[-1][1] == place:
                runs[-1] = (runs[-1][0], place + 1)
            else:
                runs.append((place, place + 1))


def settle(tree: Tree, part: Part) -> None:
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
        named = part.sequence or all(is_index(name) for name in part.children)
        named = named or _is_series(part.children) or any(not name.isidentifier() for name in part.children)
        if part.children and named and _is_chain(part):
            part.kind = "sequential"
            return
        numeric = part.children and all(is_index(name) for name in part.children)
        if part.path and numeric and not part.weights:
            part.inlined, part.body = True, None  # a list, which the forward around it runs through
    if part.inlined:
        if part.children and all(is_index(name) for name in part.children) and not part.weights:
            part.kind = "list"
        elif part.children and not part.weights:
            part.kind = "dict"
        elif not part.children and part.weights:
            part.kind = "parameters"


def _is_series(names: Iterable[str]) -> bool:
    """Whether names are one word with numbers that count up: RegNet's ``b1``, ``b2``, ``b3``."""
    found = [re.fullmatch(r"([a-z]|block|layer)_?(\d+)", name) for name in names]
    numbers = [int(match[2]) for match in found if match is not None]
    one = len({match[1] for match in found if match is not None}) == 1
    return (
        bool(found)
        and None not in found
        and one
        and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    )


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
    if all(is_index(name) for name in part.children):
        if [int(name) for name in ran] != sorted(int(name) for name in ran):
            return False
        for number in range(
            int(ran[-1])
        ):  # what a Sequential holds and the graph does not run keeps its place
            if str(number) not in ran:
                part.children[str(number)] = Part((*part.path, str(number)), kind="identity", make=IDENTITY)
    part.children = {name: part.children[name] for name in
                     (sorted(part.children, key=int) if is_index(ran[0]) else ran)}  # fmt: skip
    return True


def order_children(tree: Tree) -> None:
    """Children in the order of the state dict; those without weights where the source or the forward has them."""
    known = tree.graph.modules
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
            part.children = {
                name: part.children[name] for name in sorted(part.children, key=lambda n: listed[n])
            }
        else:
            part.children = {
                name: part.children[name]
                for name in sorted(part.children, key=lambda n: place.get((*path, n), (1 << 60, 0)))
            }
        if part.kind == "list":
            part.children = {name: part.children[name] for name in sorted(part.children, key=int)}
