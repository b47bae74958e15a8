"""A graph read for source: its nodes as lines, and the modules that have a forward of their own, with what each runs.

A node's scope says which module's forward ran it, and a weight's name where it lives. From the innermost paths
outwards, a path whose lines stand together in one run, or in several equal ones, becomes a module, and one line that
calls it takes their place; the lines of any other path become part of the forward around it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Any

from torch import nn

from elastic_ir.emit.module.attributes import submodule
from elastic_ir.emit.module.from_torch import _origin_path
from elastic_ir.emit.source.calls import Later, call_of_aten, call_of_fx, convert, convert_options
from elastic_ir.emit.source.expr import IDENTITY, Expr, call, change, group, locals_of, walk
from elastic_ir.emit.source.layers import Layered, as_layer, layer_of
from elastic_ir.errors import EmitError
from elastic_ir.ir.functions import CHECKS
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.numbering import is_index
from elastic_ir.ir.operations import written
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
    #: of a list that the forward around it runs through in order: "carry" for the argument that is handed on
    loop: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[Expr, ...]:
        """What its forward does, if it has one."""
        return self.body.lines if self.body is not None else ()

    @property
    def inlined(self) -> bool:
        """Whether its lines stand in the forward around it."""
        return self.kind in ("dict", "parameters") or (self.kind in ("class", "list") and self.body is None)

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

    def untied(self, scope: Path) -> Callable[[Expr], Expr | None]:
        """Gives tied weights the names that a module has for them: a graph knows a tensor by the first of its names."""

        def own(leaf: Expr) -> Expr | None:
            held = self.weights.get((*scope, leaf.value[-1])) if leaf.kind == "attr" else None
            same = held is not None and held.storage is self.weights[leaf.value].storage
            return Expr("attr", (*scope, leaf.value[-1])) if same else None

        return own

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
            if leaf.kind in ("self", "loop"):
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
    restore_layers(tree)
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
            tree.part(scope)
            tree.lines.append(Line((node.output,), change(expr, tree.untied(scope)), scope))
    if not any(node.kind == "output" for node in nodes):
        raise EmitError(f"{tree.graph.name} has no output, so there is no forward to write")


def _needed(graph: Graph) -> list[Node]:
    """The nodes that lead to the output; what only fed a check, or looked at a shape for nothing, is left out."""
    kept: set[Node] = set()
    for node in reversed(graph.nodes):
        needed = node.kind in ("input", "output") or (written(node) and not node.weight_names())
        if node in kept or (needed and node.op not in ("torch._assert", *CHECKS)):
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
            if part.kind == "class":
                made = [tree.body(part, lines, reads) for lines in mine]
                _settle(part, made)
                if not part.inlined:
                    bodies[path] = made
        tree.lines = []
        for path, lines in runs:
            tree.lines += [_call(tree.parts[path], bodies[path].pop(0))] if path in bodies else lines


def _call(part: Part, body: Body) -> Line:
    arguments = tuple(Expr("local" if isinstance(key, Value) else "attr", key) for key in body.inputs)
    results = tuple(body.values[key] for key in locals_of(body.lines[-1]))
    kind, names = ("loop", part.loop) if part.loop else ("self", ("",) * len(arguments))
    return Line(results, Expr(kind, part.path, arguments, names), part.path)


def _settle(part: Part, bodies: Sequence[Body]) -> None:
    """What kind of module a part is that runs these bodies; those below it are settled already."""
    forms = {(body.lines, len(body.inputs)) for body in bodies}
    numbered = bool(part.children) and all(map(is_index, part.children))
    if len(forms) == 1 and (not part.path or bodies[0].lines[-1].parts[0] != Expr("tuple")):
        part.body = bodies[0]
        ran, carried = _chain(part)
        inputs, children = len(part.body.inputs), list(part.children)
        named = any(not name.isidentifier() for name in children) or _is_series(children)
        rising = not numbered or ran == sorted(ran, key=int)
        if ran and rising and inputs == 1 and (part.sequence or numbered or named):
            part.kind = "sequential"
            # what a Sequential holds and the graph does not run keeps its place
            order = map(str, range(int(ran[-1]) + 1)) if numbered else ran
            identity = Part((), kind="identity", make=IDENTITY)
            part.children = {name: part.children[name] if name in ran else identity for name in order}
            return
        if part.path and numbered and not part.weights:
            part.kind = "list"
            if rising and 1 < len(ran) == len(children):
                part.loop = tuple("carry" if place == carried else "" for place in range(inputs))
            else:
                part.body = None  # the forward around it runs its children
    if part.body is None and bool(part.children) != bool(part.weights):
        part.kind = "list" if numbered else "dict" if part.children else "parameters"


def _is_series(names: Iterable[str]) -> bool:
    """Whether names are one word with numbers that count up: RegNet's ``b1``, ``b2``, ``b3``."""
    found = [re.fullmatch(r"([a-z]|block|layer)_?(\d+)", name) for name in names]
    words = {match[1] if match is not None else None for match in found}
    numbers = [int(match[2]) for match in found if match is not None]
    upwards = all(after == before + 1 for before, after in pairwise(numbers))
    return len(words) == 1 and None not in words and upwards


def _chain(part: Part) -> tuple[list[str], int]:
    """The children that a part runs one after the other, and which of its inputs is handed on from one to the next.

    No children where it does anything else, or holds weights that it does not run.
    """
    assert part.body is not None
    *lines, last = part.body.lines
    calls = [line.parts[0] for line in lines]
    ran = [call.value[0] for call in calls if call.kind == "self"]
    idle = [child for name, child in part.children.items() if name not in ran]
    if not ran or len(set(ran)) < len(ran) or part.weights or any(c.weights or c.children for c in idle):
        return [], 0
    given = [Expr("local", place) for place in range(len(part.body.inputs))]
    pairs = zip(given, calls[-1].parts, strict=False)
    carried = next((place for place, (one, other) in enumerate(pairs) if one != other), 0)
    chain = []
    for place, name in enumerate(ran, len(given)):
        chain.append(Expr("set", (place,), (Expr("self", (name,), tuple(given), ("",) * len(given)),)))
        given[carried : carried + 1] = [Expr("local", place)]
    return (ran, carried) if lines == chain and last.parts == (given[carried],) else ([], 0)


def order_children(tree: Tree) -> None:
    """Children in the order of the source where that is known; else those with weights are first, as they were made."""
    for path, part in tree.parts.items():
        listed = tree.graph.modules.get(".".join(path), ())
        if part.kind == "list":
            part.children = dict(sorted(part.children.items(), key=lambda item: int(item[0])))
        elif part.kind != "sequential" and all(name in listed for name in part.children):
            part.children = {name: part.children[name] for name in listed if name in part.children}


# -- layers ------------------------------------------------------------------------------------------------------------


def restore_layers(tree: Tree) -> None:
    """Put layers for functional calls: leaves where the owner of the weights does nothing else, else its base class."""
    own: defaultdict[Path, list[Line]] = defaultdict(list)
    found: defaultdict[Path, list[tuple[Line, Layered]]] = defaultdict(list)
    readers: Counter[Path] = Counter()
    for line in tree.lines:
        own[line.scope].append(line)
        readers.update({leaf.value[:-1] for leaf in walk(line.expr) if leaf.kind == "attr"})
        layer = as_layer(line.expr, tree.weights)
        if layer is not None:
            found[min((path[:-1] for path in layer.weights), default=line.scope)].append((line, layer))
    for path, layers in found.items():
        part = tree.parts[path]
        roles = {(*path, role) for role in part.weights if role != "num_batches_tracked"}
        if not path or part.kind != "class" or any(set(layer.weights) != roles for _, layer in layers):
            continue
        (first, layer), *others = layers
        alone = [line for line, _ in layers] == own[path] and all(
            other.make == layer.make for _, other in others
        )
        borrowed = not own[path] and not others and readers[path] == 1 and first.scope == path[:-1]
        attributes = [leaf for line in own[path] for leaf in walk(line.expr) if leaf.kind == "attr"]
        if not part.children and (alone or borrowed):
            part.kind, part.make = "leaf", layer.make
            for line, each in layers:
                line.scope, line.expr = path, Expr("self", path, (each.input,), ("",))
        elif roles and not others and len(attributes) == len(roles):
            part.base = layer.make
            first.expr = call("super().forward", layer.input)
