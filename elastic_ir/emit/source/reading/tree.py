"""The module tree of a graph, for source: which paths are modules with a forward of their own, and what each runs.

A node's scope says which module's forward ran it, and a weight's name where it lives. A path whose nodes stand
together in one run, or in several equal ones, becomes a module that is called; the nodes of any other path are written
into the forward around it, and the path only holds what lies below it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from elastic_ir.emit.source.expressions.expr import IDENTITY, Expr, change, group, walk
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
        self.bodies: dict[tuple[Path, int], Body] = {}  #: by the path and the first statement

    def part(self, path: Path) -> Part:
        """The part of a path, made if need be, with those above it."""
        if path not in self.parts:
            above = self.part(path[:-1])
            self.parts[path] = above.children[path[-1]] = Part(path)
        return self.parts[path]

    # -- bodies ----------------------------------------------------------------------------------------------------

    def body(self, part: Part, low: int, high: int) -> Body:
        """What a part does in the statements from ``low`` to ``high``, calls of parts below it as one statement."""
        if (part.path, low) in self.bodies:
            return self.bodies[part.path, low]
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
        depth = len(part.path)
        results = [key for made_keys, _ in made for key in made_keys]
        defined = set(results)
        foreign = [
            leaf.value for _, expr in made for leaf in walk(expr)
            if (leaf.kind == "local" and leaf.value not in defined)
            or (leaf.kind == "attr" and leaf.value[:depth] != part.path)
        ]  # fmt: skip
        inputs = dict.fromkeys([*(node.output for node in self.inputs if not part.path), *foreign])
        numbers = {key: number for number, key in enumerate([*inputs, *results])}

        def own(leaf: Expr) -> Expr | None:
            if leaf.kind in ("local", "attr") and leaf.value in numbers:
                return Expr("local", numbers[leaf.value])
            if leaf.kind == "attr":
                return Expr("attr", leaf.value[depth:])
            if leaf.kind == "self":
                return replace(
                    leaf, value=leaf.value[depth:], parts=tuple(change(p, own) for p in leaf.parts)
                )
            return None

        statements = tuple((tuple(numbers[key] for key in keys), change(expr, own)) for keys, expr in made)
        if part.path:
            leaving = [
                Expr("local", numbers[key]) for key in results
                if any(not low <= reader < high for reader in self.readers.get(key, ()))
            ]  # fmt: skip
            returns = leaving[0] if len(leaving) == 1 else group("tuple", leaving)
        else:
            assert self.output is not None
            returns = change(convert(self.output.args[0]), own)
        found = self.bodies[part.path, low] = Body(tuple(inputs), statements, returns, tuple(numbers))
        return found

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
    runs = tree.runs.get(part.path, []) if part.path else [(0, len(tree.statements))]
    bodies = [tree.body(part, low, high) for low, high in runs]
    forms = {(body.statements, body.returns, len(body.inputs)) for body in bodies}
    numbered = bool(part.children) and all(map(is_index, part.children))
    if len(forms) == 1 and (not part.path or bodies[0].returns != Expr("tuple")):
        part.body = bodies[0]
        named = any(not name.isidentifier() for name in part.children) or _is_series(part.children)
        if part.children and (part.sequence or numbered or named) and _is_chain(part):
            part.kind = "sequential"
            return
        if part.path and numbered and not part.weights:
            part.body = None  # a list, which the forward around it runs through
    part.inlined = part.body is None
    if part.inlined and (part.children or part.weights) and not (part.children and part.weights):
        part.kind = "list" if numbered else "dict" if part.children else "parameters"


def _is_series(names: Iterable[str]) -> bool:
    """Whether names are one word with numbers that count up: RegNet's ``b1``, ``b2``, ``b3``."""
    found = [re.fullmatch(r"([a-z]|block|layer)_?(\d+)", name) for name in names]
    words = {match[1] if match is not None else None for match in found}
    numbers = [int(match[2]) for match in found if match is not None]
    upwards = all(after == before + 1 for before, after in pairwise(numbers))
    return len(words) == 1 and None not in words and upwards


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
    idle = [part.children[name] for name in part.children if name not in ran]
    if len(set(ran)) != len(ran) or body.returns != Expr("local", current):
        return False
    if any(child.weights or child.children for child in idle):
        return False
    if all(map(is_index, part.children)):
        if ran != sorted(ran, key=int):
            return False
        # what a Sequential holds and the graph does not run keeps its place
        for name in map(str, range(int(ran[-1]))):
            if name not in ran:
                part.children[name] = Part((*part.path, name), kind="identity", make=IDENTITY)
    order = sorted(part.children, key=int) if is_index(ran[0]) else ran
    part.children = {name: part.children[name] for name in order}
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
        names = list(part.children)
        listed = known.get(".".join(path), ())
        if part.kind == "list":
            names.sort(key=int)
        elif all(name in listed for name in names):
            names.sort(key=listed.index)
        else:
            names.sort(key=lambda name: place.get((*path, name), (1 << 60, 0)))
        part.children = {name: part.children[name] for name in names}
