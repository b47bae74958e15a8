"""A graph read for source: its nodes as lines, and the modules that have a forward of their own, with what each runs.

A node's scope says which module's forward ran it, and a weight's name where it lives. From the innermost paths
outwards, a path whose lines stand together in one run, or in several equal ones, becomes a module, and one line that
calls it takes their place; the lines of any other path become part of the forward around it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Any

from torch import nn

from elastic_ir.emit.module.attributes import submodule
from elastic_ir.emit.module.from_torch import _origin_path
from elastic_ir.emit.source.expr import IDENTITY, Expr, call, change, group, locals_of, walk
from elastic_ir.emit.source.reading.calls import Later, call_of_aten, call_of_fx, convert, convert_options
from elastic_ir.emit.source.reading.layers import as_layer, layer_of
from elastic_ir.errors import EmitError
from elastic_ir.ir.functions import CHECKS
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.numbering import is_index
from elastic_ir.tensors.weights import Weight

Path = tuple[str, ...]
#: Arguments of exported nodes whose numbers follow the input.
Sizes = Mapping[Node, tuple[Any, ...]]


@dataclass
class Line:
    """One operation; ``results`` and the locals of its expression are the graph's values, its paths are whole."""

    results: tuple[Value, ...]
    expr: Expr
    scope: Path


@dataclass(frozen=True)
class Body:
    """What a module's forward does, in its own numbers: inputs come first, then each line's results."""

    #: the graph's values, or paths of weights of other modules, in the order of their first use
    inputs: tuple[Any, ...]
    lines: tuple[Expr, ...]
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
    sequence: bool = False  #: the source has a Sequential there, or a class derived from it
    loop: bool = False  #: a list that its parent's forward runs through in order

    @property
    def lines(self) -> tuple[Expr, ...]:
        """What its forward does, if it has one."""
        return self.body.lines if self.body is not None else ()

    @property
    def inlined(self) -> bool:
        """Whether its lines stand in the forward around it."""
        return self.kind in ("list", "dict", "parameters") or (self.kind == "class" and self.body is None)

    def below(self) -> list[Part]:
        """Itself and everything under it, children first."""
        found = [part for child in self.children.values() for part in child.below()]
        return [*found, self]


class Tree:
    """Lines and parts of a graph; see :func:`read_tree`."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.live = graph.origin.module
        self.weights = {tuple(name.split(".")): weight for name, weight in graph.weights.items()}
        self.inputs: list[Node] = []
        self.returns = Expr("tuple")  #: what the network returns, in the graph's values
        self.lines: list[Line] = []
        self.parts: dict[Path, Part] = {(): Part(())}

    def part(self, path: Path) -> Part:
        """The part of a path, made if need be, with those above it."""
        if path not in self.parts:
            above = self.part(path[:-1])
            self.parts[path] = above.children[path[-1]] = Part(path)
        return self.parts[path]

    def runs(self, depth: int) -> list[tuple[Path, list[Line]]]:
        """The lines in order, those together that stand together below one path of this length."""
        return [(path, list(run)) for path, run in groupby(self.lines, key=lambda line: line.scope[:depth])]

    def body(self, part: Part, lines: Sequence[Line], reads: Counter[Value]) -> Body:
        """What a part does in one run of lines; ``reads`` counts how often each value is read in the whole graph."""
        depth = len(part.path)
        results = dict.fromkeys(key for line in lines for key in line.results)
        exprs = [line.expr for line in lines]
        if part.path:
            inside = Counter(locals_of(*exprs))
            leaving = [Expr("local", key) for key in results if reads[key] > inside[key]]
            returns = leaving[0] if len(leaving) == 1 else group("tuple", leaving)
        else:
            returns = self.returns
        foreign = [
            leaf.value for leaf in walk(*exprs)
            if (leaf.kind == "local" and leaf.value not in results)
            or (leaf.kind == "attr" and leaf.value[:depth] != part.path)
        ]  # fmt: skip
        inputs = tuple(dict.fromkeys([*(node.output for node in self.inputs if not part.path), *foreign]))

        def own(leaf: Expr) -> Expr | None:
            """Weights of other modules are inputs, paths begin below the part."""
            if leaf.kind == "attr":
                return Expr("local", leaf.value) if leaf.value in inputs else Expr("attr", leaf.value[depth:])
            if leaf.kind == "self":
                return replace(
                    leaf, value=leaf.value[depth:], parts=tuple(change(p, own) for p in leaf.parts)
                )
            return None

        made = [Expr("set", line.results, (change(line.expr, own),)) for line in lines]
        return Body(inputs, numbered(inputs, [*made, Expr("return", None, (returns,))]), (*inputs, *results))


def numbered(inputs: Iterable[Any], lines: Sequence[Expr]) -> tuple[Expr, ...]:
    """The lines of a forward with its values as numbers: the inputs first, then each line's results."""
    results = [key for line in lines if line.kind == "set" for key in line.value]
    numbers = {key: number for number, key in enumerate([*inputs, *results])}

    def number(node: Expr) -> Expr | None:
        if node.kind == "set":
            kept = tuple(change(part, number) for part in node.parts)
            return Expr("set", tuple(numbers[key] for key in node.value), kept)
        return Expr("local", numbers[node.value]) if node.kind == "local" else None

    return tuple(change(line, number) for line in lines)


# -- lines -------------------------------------------------------------------------------------------------------------


def read_tree(graph: Graph, sizes: Sizes) -> Tree:
    """Lines, parts and bodies of a graph; EmitError for what cannot be written."""
    tree = Tree(graph)
    for path, weight in tree.weights.items():
        tree.part(path[:-1]).weights[path[-1]] = weight
    _read_lines(tree, sizes)
    _hints(tree)
    borrow_layers(tree)
    find_modules(tree)
    order_children(tree)
    return tree


def _read_lines(tree: Tree, sizes: Sizes) -> None:
    nodes = _needed(tree.graph)
    last = {value: place for place, node in enumerate(nodes) for value in node.operands()}
    for place, node in enumerate(nodes):
        if node.kind == "input":
            if node.op.startswith("*"):
                raise EmitError(
                    f"{tree.graph.name}.forward takes {node.op}, which a graph does not spell out"
                )
            tree.inputs.append(node)
        elif node.kind == "output":
            tree.returns = convert(node.args[0])
        elif node.kind != "constant":
            scope = tuple(node.scope.split(".")) if node.scope else ()
            expr = _expression(tree, node, scope, sizes, lambda value, at=place: last.get(value, -1) > at)  # type: ignore[misc]
            tree.lines.append(Line((node.output,), expr, scope))
            tree.part(scope)
    if not any(node.kind == "output" for node in nodes):
        raise EmitError(f"{tree.graph.name} has no output, so there is no forward to write")


def _needed(graph: Graph) -> list[Node]:
    """The nodes that lead to the output; what only fed a check, or looked at a shape for nothing, is left out."""
    kept: set[Node] = set()
    for node in reversed(graph.nodes):
        name = node.op.split(".")[1 if node.op.startswith("aten.") else -1]
        changes = name.endswith("_") and not name.endswith("__") and not node.weight_names()
        check = node.op == "torch._assert" or node.op in CHECKS
        if node in kept or ((node.kind in ("input", "output") or changes) and not check):
            kept |= {node, *(value.node for value in node.operands())}
    return [node for node in graph if node in kept]


def _expression(tree: Tree, node: Node, scope: Path, sizes: Sizes, later: Later) -> Expr:
    """What a node computes; ``later`` says whether a value is read again afterwards."""
    if node.kind == "module":
        part = tree.part(scope)
        part.kind, part.make = "leaf", layer_of(node)
        made = call("", *map(convert, node.args), **convert_options(node.kwargs))
        return replace(made, kind="self", value=scope)
    if tree.graph.info.frontend != "export":
        return call_of_fx(node, later)
    expr = call_of_aten(node, sizes.get(node, node.args), later)
    if "device" in node.kwargs and expr.kind == "call" and tree.inputs:
        device = Expr("getattr", "device", (Expr("local", tree.inputs[0].output),))
        expr = replace(expr, parts=(*expr.parts, device), names=(*expr.names, "device"))
    return expr


def _hints(tree: Tree) -> None:
    """Class names of the source's modules, where the source is at hand."""
    for path, part in tree.parts.items():
        origin = _origin_path(".".join(path), tree.graph)
        module = submodule(tree.live, origin) if tree.live is not None else None
        part.sequence = isinstance(module, nn.Sequential)
        nameless = isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Identity))
        if module is not None and not nameless and type(module) not in (nn.Sequential, nn.Module):
            part.hint = type(module).__name__.lstrip("_")


# -- modules -----------------------------------------------------------------------------------------------------------


def find_modules(tree: Tree) -> None:
    """Decide for each path what kind of module it is, the inner ones first, and put calls for what modules run."""
    for depth in range(max(map(len, tree.parts)), -1, -1):
        reads = Counter(locals_of(*(line.expr for line in tree.lines), tree.returns))
        runs = tree.runs(depth) or [((), [])]
        found: dict[Path, list[list[Line]]] = {path: [] for path in tree.parts if len(path) == depth}
        for path, lines in runs:
            if path in found:
                found[path].append(lines)
        bodies: dict[Path, list[Body]] = {}
        for path, mine in found.items():
            part = tree.parts[path]
            if part.kind == "class" and mine and path:
                _restore_layer(tree, part, mine)
            if part.kind == "class":
                made = [tree.body(part, lines, reads) for lines in mine]
                _settle(part, made)
                if not part.inlined:
                    bodies[path] = made
        tree.lines = []
        for path, lines in runs:
            tree.lines += [_call(path, bodies[path].pop(0))] if path in bodies else lines


def _call(path: Path, body: Body) -> Line:
    arguments = tuple(Expr("local" if isinstance(key, Value) else "attr", key) for key in body.inputs)
    results = tuple(body.values[key] for key in locals_of(body.lines[-1]))
    return Line(results, Expr("self", path, arguments, ("",) * len(arguments)), path)


def _settle(part: Part, bodies: Sequence[Body]) -> None:
    """What kind of module a part is that runs these bodies; those below it are settled already."""
    forms = {(body.lines, len(body.inputs)) for body in bodies}
    numbered = bool(part.children) and all(map(is_index, part.children))
    if len(forms) == 1 and (not part.path or bodies[0].lines[-1].parts[0] != Expr("tuple")):
        part.body = bodies[0]
        named = any(not name.isidentifier() for name in part.children) or _is_series(part.children)
        if part.children and (part.sequence or numbered or named) and _is_chain(part):
            part.kind = "sequential"
            return
        if part.path and numbered and not part.weights:
            part.body = None  # a list, which the forward around it runs through
    if part.body is None and bool(part.children) != bool(part.weights):
        part.kind = "list" if numbered else "dict" if part.children else "parameters"


def _is_series(names: Iterable[str]) -> bool:
    """Whether names are one word with numbers that count up: RegNet's ``b1``, ``b2``, ``b3``."""
    found = [re.fullmatch(r"([a-z]|block|layer)_?(\d+)", name) for name in names]
    words = {match[1] if match is not None else None for match in found}
    numbers = [int(match[2]) for match in found if match is not None]
    upwards = all(after == before + 1 for before, after in pairwise(numbers))
    return len(words) == 1 and None not in words and upwards


def _is_chain(part: Part) -> bool:
    """Whether a part runs its children one after the other, each once, and does nothing else; orders them if so."""
    assert part.body is not None
    *lines, last = part.body.lines
    ran = [line.parts[0].value[0] for line in lines if line.parts[0].kind == "self"]
    chain = [Expr("set", (place + 1,), (Expr("self", (name,), (Expr("local", place),), ("",)),))
             for place, name in enumerate(ran)]  # fmt: skip
    once = bool(ran) and len(set(ran)) == len(ran) and last.parts == (Expr("local", len(ran)),)
    if part.weights or len(part.body.inputs) != 1 or not once or lines != chain:
        return False
    if any(child.weights or child.children for name, child in part.children.items() if name not in ran):
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
    """Children in the order of the source where that is known; else those with weights are first, as they were made."""
    for path, part in tree.parts.items():
        listed = tree.graph.modules.get(".".join(path), ())
        if part.kind == "list":
            part.children = dict(sorted(part.children.items(), key=lambda item: int(item[0])))
        elif part.kind != "sequential" and all(name in listed for name in part.children):
            part.children = {name: part.children[name] for name in listed if name in part.children}


# -- layers ------------------------------------------------------------------------------------------------------------


def borrow_layers(tree: Tree) -> None:
    """Give functional calls that are layers to the modules that own their weights, where those run nothing else."""
    running = {line.scope for line in tree.lines}
    owners = [{leaf.value[:-1] for leaf in walk(line.expr) if leaf.kind == "attr"} for line in tree.lines]
    readers = Counter(path for paths in owners for path in paths)
    for line, paths in zip(tree.lines, owners, strict=True):
        owner = min(paths, default=())
        part = tree.parts.get(owner)
        alone = len(paths) == 1 and readers[owner] == 1 and owner not in running and owner[:-1] == line.scope
        if alone and owner and part is not None and not part.children:
            found = as_layer(line.expr, tree.weights)
            if found is not None and set(found.roles) == set(part.weights):
                line.scope = owner


def _restore_layer(tree: Tree, part: Part, runs: Sequence[Sequence[Line]]) -> None:
    """A functional call that is a layer: a leaf where a path does nothing else, a base class where it does more."""
    own = [line for lines in runs for line in lines if line.scope == part.path]
    roles = set(part.weights) - {"num_batches_tracked"}
    found = [(line, as_layer(_untied(line.expr, part.path, tree), tree.weights)) for line in own]
    layers = [(line, layer) for line, layer in found if layer is not None and set(layer.roles) == roles]
    if not part.children and len(own) == len(runs):
        if len(layers) == len(own) and len({layer.make for _, layer in layers}) == 1:
            part.kind, part.make = "leaf", layers[0][1].make
            for line, layer in layers:
                line.expr = Expr("self", part.path, (layer.input,), ("",))
    elif layers and roles and len(runs) == 1:
        line, layer = layers[0]
        if len(roles) == sum(leaf.kind == "attr" for leaf in walk(*(each.expr for each in own))):
            part.base = layer.make
            line.expr = call("super().forward", layer.input)


def _untied(expr: Expr, path: Path, tree: Tree) -> Expr:
    """Tied weights under the names of the module that runs: a graph knows a tensor by the first of its names."""

    def own(leaf: Expr) -> Expr | None:
        if leaf.kind == "attr" and leaf.value[:-1] != path and leaf.value in tree.weights:
            mine = tree.weights.get((*path, leaf.value[-1]))
            if mine is not None and mine.storage is tree.weights[leaf.value].storage:
                return Expr("attr", (*path, leaf.value[-1]))
        return None

    return change(expr, own)
