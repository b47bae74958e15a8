"""Patterns: what a pass looks for in a graph, written down as a small expression, and found in one walk.

    x = value("x")
    block = op("add", chain(x, "conv2d", "batchnorm", "relu", op("conv2d", name="last")), x, commutative=True)
    for match in find(graph, block):
        match.node("last"), match.value("x"), match.nodes

A name with a dot is one operation (``nn.Conv2d``); a name without is its kind in any dialect: ``relu`` is nn.ReLU,
torch.relu, a method, aten's and ONNX's. One pattern object that stands in two places, or one name, means the same
value there, so patterns are small DAGs. Patterns are values, and what a match computes on its way to the root is read
by nothing outside of it (after torch.fx's SubgraphMatcher, onnxscript's rewriter and PDL, Riddle et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.operations import layer_of, operation_of
from elastic_ir.ir.structure import Block, Stage, Unit

if TYPE_CHECKING:
    from elastic_ir.rewrite.rewriter import Rewriter

#: An extent of a weight's shape: a number, or None for any.
Extents = Sequence[int | None]
#: A condition on one node; it is given the graph as well.
Condition = Callable[[Node, Graph], bool]


def kinds_of(node: Node) -> set[str]:
    """What a node's operation is called in any dialect: ``conv2d`` and ``conv`` for nn.Conv2d and a Conv of images.

    Underscores and the mark of in-place operations are left out: ``iadd`` and ``add_`` are ``add``.
    """
    operation = operation_of(node)
    found = {operation.spelled, operation.name, operation.family}
    if node.kind == "onnx" and node.output.type is not None and len(node.output.type.shape) > 2:
        found.add(f"{operation.family}{len(node.output.type.shape) - 2}d")
    return found


def _weight_of(node: Node, role: str = "weight") -> str | None:
    """The name of a node's weight by its role, as its layer applies it or its module holds it."""
    layer = layer_of(node)
    applied = {"weight": layer.weight, "bias": layer.bias}.get(role) if layer is not None else None
    return applied or node.weights.get(role)


@dataclass(frozen=True)
class _State:
    """What is settled so far: each pattern's value, names, and the nodes that belong to the match."""

    settled: Mapping[Pattern, Value] = field(default_factory=dict)
    captures: Mapping[str, Value] = field(default_factory=dict)
    nodes: Mapping[Node, bool] = field(default_factory=dict)  #: whether others may read its result

    def capture(self, name: str, found: Value) -> _State | None:
        """The state with a name for a value; None where the name means another one."""
        if not name:
            return self
        same = self.captures.get(name, found) is found
        return replace(self, captures={**self.captures, name: found}) if same else None

    def take(self, node: Node, shared: bool) -> _State:
        """The state with one node more in the match."""
        return replace(self, nodes={**self.nodes, node: shared})


@dataclass(frozen=True)
class _Search:
    """Where patterns are looked for: a graph, and its nodes that no match holds."""

    graph: Graph
    free: Callable[[Node], bool]


class Pattern:
    """What a value may be: anything (:func:`value`), the result of an operation (:func:`op`), or one of several."""

    def ways(self, found: Value, state: _State, search: _Search) -> Iterator[_State]:
        """The ways in which a value can be what the pattern says, given what is settled."""
        raise NotImplementedError

    def settle(self, found: Value, state: _State, search: _Search) -> Iterator[_State]:
        """The same, for a pattern that may have been settled at another place."""
        if self not in state.settled:
            for inner in self.ways(found, state, search):
                yield replace(inner, settled={**inner.settled, self: found})
        elif state.settled[self] is found:
            yield state


@dataclass(frozen=True, eq=False)
class _Anything(Pattern):
    name: str

    def ways(self, found: Value, state: _State, search: _Search) -> Iterator[_State]:
        bound = state.capture(self.name, found)
        if bound is not None:
            yield bound


@dataclass(frozen=True, eq=False)
class _AnyOf(Pattern):
    choices: tuple[Pattern, ...]

    def ways(self, found: Value, state: _State, search: _Search) -> Iterator[_State]:
        for choice in self.choices:
            yield from choice.settle(found, state, search)


@dataclass(frozen=True, eq=False)
class _Through(Pattern):
    to: Pattern
    step: _Operation

    def ways(self, found: Value, state: _State, search: _Search) -> Iterator[_State]:
        """Every place along the way at which a path may end, the nearest first."""
        while True:
            yield from self.to.settle(found, state, search)
            node, operands = found.node, found.node.operands()
            if len(operands) != 1 or not search.free(node) or not self.step.fits(node, search.graph):
                return
            state, found = state.take(node, False), operands[0]


@dataclass(frozen=True, eq=False)
class _Operation(Pattern):
    ops: tuple[str, ...]
    operands: tuple[Pattern | EllipsisType, ...] | None = None
    name: str = ""
    weight: Extents | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    where: Condition | None = None
    shared: bool = False
    commutative: bool = False

    def fits(self, node: Node, graph: Graph) -> bool:
        """Whether a node by itself is what is looked for."""
        if node.op not in self.ops and kinds_of(node).isdisjoint(self.ops):
            return False
        for name, expected in self.attributes.items():
            given = node.attributes.get(name, node.kwargs.get(name))
            if not (expected(given) if callable(expected) else _plain(given) == _plain(expected)):
                return False
        if self.weight is not None and not _has_shape(node, graph, self.weight):
            return False
        return self.where is None or self.where(node, graph)

    def ways(self, found: Value, state: _State, search: _Search) -> Iterator[_State]:
        node = found.node
        bound = state.capture(self.name, found)
        if bound is None or not search.free(node) or not self.fits(node, search.graph):
            return
        for operands in self._orders(node):
            states: Iterator[_State] = iter((bound.take(node, self.shared),))
            for pattern, value in operands:
                states = _each(states, pattern, value, search)
            yield from states

    def _orders(self, node: Node) -> Iterator[list[tuple[Pattern, Value]]]:
        """The ways to match operands: in order, and the other way round where order does not matter."""
        given = node.operands()
        patterns = [item for item in self.operands or () if isinstance(item, Pattern)]
        more = self.operands is None or len(patterns) < len(self.operands)
        if len(given) < len(patterns) or (len(given) > len(patterns) and not more):
            return
        yield list(zip(patterns, given, strict=False))
        if self.commutative:
            yield list(zip(patterns, reversed(given), strict=True))


def _each(states: Iterator[_State], pattern: Pattern, found: Value, search: _Search) -> Iterator[_State]:
    """The ways in which one operand more can be what its pattern says."""
    for state in states:
        yield from pattern.settle(found, state, search)


def _plain(item: Any) -> Any:
    return tuple(_plain(part) for part in item) if isinstance(item, (list, tuple)) else item


def _has_shape(node: Node, graph: Graph, wanted: Extents) -> bool:
    name = _weight_of(node)
    shape = graph.weights[name].shape if name is not None else None
    return (
        shape is not None
        and len(shape) == len(wanted)
        and all(extent is None or extent == own for extent, own in zip(wanted, shape, strict=True))
    )


def _spelled(ops: Sequence[str]) -> tuple[str, ...]:
    """Operations as they are written, kinds without what dialects spell differently."""
    return tuple(item if "." in item else item.replace("_", "").lower() for item in ops)


def value(name: str) -> Pattern:
    """Any value, captured under a name; the same name elsewhere in a pattern means the same value."""
    return _Anything(name)


def op(
    ops: str | Sequence[str],
    *operands: Pattern | str | EllipsisType,
    name: str = "",
    weight: Extents | None = None,
    attributes: Mapping[str, Any] | None = None,
    where: Condition | None = None,
    shared: bool = False,
    commutative: bool = False,
) -> Pattern:
    """The result of an operation.

    ``ops`` is an operation or a kind, or several of which any will do. ``operands`` are matched with the values that
    the node reads, in order; weights and plain data are not values. A string captures one by that name, ``...`` at the
    end allows more, and none at all says nothing about them. ``weight`` is the shape of its weight, None for any
    extent: ``(None, None, 1, 1)``. ``attributes`` are what the node records, each a value or a function of it.
    ``where`` is a condition on the node. ``shared`` lets others read its result too; ``commutative`` matches two
    operands in either order. ``name`` captures the node. Raises PlanError for a pattern that cannot be.

    >>> op("nn.Conv2d", "x", weight=(None, None, 1, 1), attributes={"stride": (1, 1)}, name="pointwise").ops
    ('nn.Conv2d',)
    """
    listed = (ops,) if isinstance(ops, str) else tuple(ops)
    if not listed:
        raise PlanError("a pattern names no operation")
    if ... in operands[:-1]:
        raise PlanError(f"in the pattern of {listed[0]!r}, ... stands before other operands; it ends them")
    if commutative and (len(operands) != 2 or ... in operands):
        raise PlanError(f"the pattern of {listed[0]!r} is commutative, which takes two operands")
    found = tuple(value(item) if isinstance(item, str) else item for item in operands)
    return _Operation(
        _spelled(listed), found or None, name, weight, dict(attributes or {}), where, shared, commutative
    )


def any_of(*choices: Pattern | str) -> Pattern:
    """One of several patterns, the first that matches: ``any_of(op("relu", x), x)`` is x with or without a ReLU."""
    return _AnyOf(tuple(value(item) if isinstance(item, str) else item for item in choices))


def chain(start: Pattern | str, *steps: str | Sequence[str] | Pattern) -> Pattern:
    """Operations one after the other, each reading the one before; a step is a name, names, or an op of no operands.

    >>> chain("x", "conv2d", "batchnorm", op("relu", name="last")).name
    'last'
    """
    at = value(start) if isinstance(start, str) else start
    for step in steps:
        if not isinstance(step, Pattern):
            at = op(step, at)
        elif isinstance(step, _Operation) and step.operands is None:
            at = replace(step, operands=(at,))
        else:
            raise PlanError(
                "a step of a chain is an operation without operands; they come from the step before"
            )
    return at


def through(to: Pattern | str, *ops: str) -> Pattern:
    """A value behind any number of nodes of these kinds, none included: ``through(x, "identity", "dropout")``."""
    return _Through(value(to) if isinstance(to, str) else to, _Operation(_spelled(ops)))


@dataclass(frozen=True, eq=False)
class Match:
    """Where a pattern was found: its nodes in the order they run, the last the root, and what was captured."""

    graph: Graph
    nodes: tuple[Node, ...]
    captures: Mapping[str, Value]

    @property
    def root(self) -> Node:
        """The node whose result the whole pattern describes."""
        return self.nodes[-1]

    def value(self, name: str) -> Value:
        """A captured value, or the result of a captured node; PlanError for a name that the pattern has not."""
        if name not in self.captures:
            raise PlanError(
                f"the pattern captures no {name!r}; it captures {', '.join(map(repr, self.captures)) or 'nothing'}"
            )
        return self.captures[name]

    def node(self, name: str) -> Node:
        """The node that computes a captured value."""
        return self.value(name).node

    def weight(self, name: str, role: str = "weight") -> str:
        """The name of a captured node's weight; PlanError where it has none of that role."""
        found = _weight_of(self.node(name), role)
        if found is None:
            raise PlanError(f"node %{self.node(name).name} ({self.node(name).op}) has no {role}")
        return found

    def __contains__(self, name: str) -> bool:
        return name in self.captures


def find(
    graph: Graph,
    pattern: Pattern,
    *,
    within: Stage | Unit | Block | str | None = None,
    rewriter: Rewriter | None = None,
) -> Iterator[Match]:
    """The matches of a pattern, in the order their last nodes run; no node is in two, but for shared ones.

    ``within`` takes only nodes of a stage, unit or block, or of the module at a path. Every inner node of a match is
    read by the match alone, unless its pattern is ``shared``; the root may be read by anything. While matches are
    taken one by one, the graph may be edited through the rewriter that is given: what is found next is of the graph
    as it then is, and nodes inserted behind a root are not looked at. Time goes with the nodes times the pattern.
    Raises PlanError for a pattern whose root is not an operation.
    """
    if not isinstance(pattern, _Operation):
        raise PlanError("the root of a pattern is an operation: op(...) or chain(...)")
    readers = _readers(graph, rewriter)
    inside = _inside(within)
    taken: set[Node] = set()

    def free(node: Node) -> bool:
        return node not in taken and inside(node)

    search = _Search(graph, free)
    for node in graph:
        for state in pattern.settle(node.output, _State(), search):
            if _closed(state, node, readers):
                taken.update(part for part, shared in state.nodes.items() if not shared)
                yield Match(graph, _in_order(state.nodes, node), dict(state.captures))
                break


def _readers(graph: Graph, rewriter: Rewriter | None) -> Callable[[Value], Iterable[Node]]:
    if rewriter is not None:
        return rewriter.users
    users = graph.users()
    return lambda found: users.get(found, ())


def _inside(within: Stage | Unit | Block | str | None) -> Callable[[Node], bool]:
    if within is None:
        return lambda _: True
    if isinstance(within, str):
        path = within
        return lambda node: node.scope == path or node.scope.startswith(f"{path}.")
    if isinstance(within, Block):
        blocks: Sequence[Block] = [within]
    else:
        blocks = within.blocks if isinstance(within, Unit) else within.all_blocks
    nodes = {node for block in blocks for node in block.nodes}
    return nodes.__contains__


def _in_order(nodes: Iterable[Node], root: Node) -> tuple[Node, ...]:
    """The nodes in the order they run: all run before the root, so a walk back from it meets them."""
    waiting = set(nodes)
    found: list[Node] = []
    at: Node | None = root
    while waiting and at is not None:
        if at in waiting:
            waiting.discard(at)
            found.append(at)
        at = at._prev
    return tuple(reversed(found))


def _closed(state: _State, root: Node, readers: Callable[[Value], Iterable[Node]]) -> bool:
    """Whether nothing outside of a match reads what is computed inside it, but for its root and shared nodes."""
    for node, shared in state.nodes.items():
        if (
            node is not root
            and not shared
            and any(reader not in state.nodes for reader in readers(node.output))
        ):
            return False
    return True
