"""The module tree as discovery sees it, from nodes or from names alone, and the groups of a container.

A :class:`Part` is a module scope with its children in the order they run (or stand in the state dict). A
:class:`Group` is a candidate block: one child that holds a convolution or linear layer, with the norms and
activations that belong to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.numbering import is_index, number_of, split_inside, split_number, width_of
from elastic_ir.ir.structure import Child, Container
from elastic_ir.safety.limits import GAPS


@dataclass(eq=False)
class Part:
    """A module scope, or an entry of a ParameterList: its nodes (its children's included), the weights under its path.

    The nodes of an entry are those that read it, whoever runs them.
    """

    path: str
    name: str
    children: dict[str, Part] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    entry: bool = False  #: whether it is a parameter

    def child(self, name: str) -> Part:
        """The child of that name, made if it is not there."""
        if name not in self.children:
            self.children[name] = Part(f"{self.path}.{name}" if self.path else name, name)
        return self.children[name]

    def walk(self) -> Iterator[Part]:
        """This part and all below it."""
        yield self
        for part in self.children.values():
            yield from part.walk()


@dataclass(eq=False)
class Group:
    """A candidate block of a container."""

    parts: list[Part]
    nodes: list[Node] = field(default_factory=list)
    boundary: bool = False  #: a weightless layer that changes the shape (a pool) runs right before it
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    shared: frozenset[Value] = frozenset()  #: values made outside that it and other groups read
    taps: tuple[Value, ...] = ()  #: what something outside collects from every group in turn
    given: tuple[Value, ...] = ()  #: inputs of the network of which each group has its own
    linked: bool = False  #: it reads all that flows out of the group before it
    sound: bool = (
        True  #: nothing but its outputs and taps leaves it, and it reads no sibling but the one before
    )
    preserving: bool = False  #: what flows in and out has equal types
    torn: bool = False  #: it lacks a slot, or an operation of the caller, that other blocks have
    #: hashes of what it computes, with integers and weight shapes, and of its operations alone; or how to get them
    hashes: tuple[str, str] | Callable[[Group], tuple[str, str]] = ("", "")
    form: frozenset[str] = frozenset()
    weights: dict[str, tuple[int, ...]] = field(default_factory=dict)  #: shapes by name within the group

    @property
    def signature(self) -> str:
        """The hash of all that it computes; most of what is looked at is never compared, so it is made when asked."""
        if callable(self.hashes):
            self.hashes = self.hashes(self)
        return self.hashes[0]

    @property
    def kind(self) -> str:
        """The hash of its operations alone."""
        if callable(self.hashes):
            self.hashes = self.hashes(self)
        return self.hashes[1]

    @property
    def free(self) -> bool:
        return self.preserving and self.sound

    @property
    def path(self) -> str:
        return self.parts[0].path


def module_tree(graph: Graph) -> Part:
    """The tree of module scopes. Where the front end listed modules, those that ran nothing are there too."""
    root = Part("", "")
    weights = {node: node.weight_names() for node in graph}
    at_home = {name for node, names in weights.items() for name in names if _owner(name) == node.scope}
    for node in graph:
        if node.kind in ("input", "output", "weight", "constant"):
            continue
        part = root
        part.nodes.append(node)
        scope = _place(node, weights[node], at_home) if weights[node] else node.scope
        for name in scope.split(".") if scope else ():
            part = part.child(name)
            part.nodes.append(node)
    entries: dict[str, Part] = {}
    attributes = _numbered_attributes(graph) if len(graph) else set()
    for name, weight in graph.weights.items():
        if not weight.persistent:
            continue
        part = root
        part.weights.append(name)
        path = name.split(".")
        listed = name in attributes or (len(path) > 1 and is_index(path[-1]))
        for component in path if listed else path[:-1]:
            part = part.child(component)
            part.weights.append(name)
        if listed:
            entries[name] = part
            part.entry = True
    for node in graph if entries else ():
        for name in dict.fromkeys(weights[node]):
            if name in entries:
                entries[name].nodes.append(node)
    return root


def _numbered_attributes(graph: Graph) -> set[str]:
    """Tensors that are attributes of one module, numbered alike from 0 or 1: ``W0``, ``W1`` and ``W2``.

    Two may be of one layer (``gamma_1`` and ``gamma_2``), and so may all that are not numbered through.
    """
    series: dict[tuple[str, str], dict[int, str]] = {}
    for name, weight in graph.weights.items():
        path, _, role = name.rpartition(".")
        found = split_number(role)
        if weight.persistent and found is not None and found[0]:
            series.setdefault((path, found[0]), {})[int(found[1])] = name
    through = [
        names
        for names in series.values()
        if len(names) > 2 and min(names) < 2 and max(names) - min(names) == len(names) - 1
    ]
    if not through:
        return set()
    from elastic_ir.ir.recurrent import numbered  # few networks have any

    whole = {name for names in through for name in names.values()}
    return {name for name in whole if numbered(name.rpartition(".")[2]) is None}


def has_idle(graph: Graph) -> bool:
    """Whether a graph's state dict has weights that no node reads."""
    read = {name for node in graph for name in node.weight_names()}
    return any(weight.persistent and name not in read for name, weight in graph.weights.items())


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _place(node: Node, names: Sequence[str], at_home: set[str]) -> str:
    """The module that a node runs in: its scope, or the one below whose weights it reads and nobody else does.

    A caller runs other methods of a module than its forward, or computes with the module's weights itself. Weights that
    are read at home (``at_home``) are lent to others.
    """
    owner = _owner(names[0])
    below = owner.startswith(f"{node.scope}." if node.scope else "") and owner != node.scope
    return owner if below and not any(_owner(n) != owner or n in at_home for n in names) else node.scope


def containers(part: Part, listed: dict[str, list[str]]) -> Iterator[tuple[Container, list[Part]]]:
    """The containers that a part is, or holds among other children, with their children in order.

    ``listed`` has, for each module path, the names of its registered children where a front end knows them.
    """
    order = list(part.children)
    names = listed.get(part.path) or order
    names = [*names, *(name for name in order if part.children[name].entry and name not in names)]
    numbered = [found for name in names if (found := split_number(name)) is not None]
    prefixes = list(dict.fromkeys(prefix for prefix, _ in numbered))
    if len(prefixes) == 1 and len(numbered) == len(names) and not _holds_weights(part):
        # parameters that are attributes of a module are no list of it
        attributes = bool(prefixes[0]) and any(part.children[name].entry for name in order)
        yield from _container(part, prefixes[0], names, native=not attributes)
        return
    series = [(prefix, "") for prefix in prefixes if prefix or _apart(part, names)]
    if part.nodes:  # names alone do not show which numbers in the middle of names count blocks
        inside = (split for name in names if (split := split_inside(name)) is not None)
        series += dict.fromkeys((prefix, suffix) for prefix, _, suffix in inside)
    for prefix, suffix in series:
        at = [place for place, name in enumerate(order) if _numbered_by(prefix, name, suffix)]
        if len(at) < 2:
            continue
        members = [order[place] for place in at]
        if at == list(range(at[0], at[0] + len(at))) or _in_turn(members, order[at[0] :]):
            yield from _container(part, prefix, members, native=False, suffix=suffix)


def _apart(part: Part, names: list[str]) -> bool:
    """Whether children called by a number alone hold nothing by the names of what the others hold.

    Else the others may be of the list, too.
    """
    held: tuple[set[str], set[str]] = (set(), set())
    for name in names:
        child = part.children.get(name)
        if child is not None:
            own = {weight[len(child.path) :] for weight in child.weights}
            held[number_of(name) is None].update(own)
    return held[0].isdisjoint(held[1])


def _holds_weights(part: Part) -> bool:
    """Whether a module has weights of its own, besides those of its children."""
    depth = part.path.count(".") + 1 if part.path else 0
    return any(
        name.count(".") == depth and name.rpartition(".")[2] not in part.children for name in part.weights
    )


def _in_turn(series: list[str], following: list[str]) -> bool:
    """Whether attributes are registered in turn with others that are numbered alike: conv1, bn1, conv2, bn2, conv3.

    Two are a block's, whose forward names them.
    """
    turn = following.index(series[1])
    rows = [following[place : place + turn] for place in range(0, turn * (len(series) - 1), turn)]
    if len(rows) < 2 or any(len(row) < turn for row in rows) or [row[0] for row in rows] != series[:-1]:
        return False
    for column in zip(*rows, strict=True):
        numbered = [_split(name) for name in column]
        numbers = [int(found[1]) for found in numbered if found]
        alike = len({(found[0], found[2]) for found in numbered if found}) == 1 and all(numbered)
        if not alike or numbers != list(range(numbers[0], numbers[0] + len(rows))):
            return False
    return True


def _split(name: str) -> tuple[str, str, str] | None:
    """A name's prefix, number and suffix; None where it has no number."""
    found = split_number(name)
    return (*found, "") if found is not None else split_inside(name)


def _container(
    part: Part, prefix: str, names: list[str], native: bool, suffix: str = ""
) -> Iterator[tuple[Container, list[Part]]]:
    def number(name: str) -> str:
        return name[len(prefix) : len(name) - len(suffix)]

    members = [name for name in part.children if _numbered_by(prefix, name, suffix)]
    width = width_of(number(name) for name in (*members, *names))
    if not members or width is None:  # 1 beside 01: no rule shows how another one would be named
        return
    present = {int(number(name)): part.children[name] for name in members}
    # registered children count even where they ran nothing and hold nothing (an Identity at the end)
    indices = sorted({int(number(name)) for name in names})
    base = 0 if not prefix or 0 in present else min(indices)
    if prefix and base > 1:
        return
    if indices[-1] - base >= len(indices) + GAPS:  # what is made below follows the number, not what is there
        return
    steps = {right - left for left, right in itertools.pairwise(indices)}
    if (
        len(steps) == 1
    ):  # numbers of every second layer (``cross.0``, ``cross.2``): nothing stands behind the last, too
        indices.append(indices[-1] + steps.pop() - 1)
    container = Container(part.path, prefix, base, native=native, width=width, suffix=suffix)
    parts = []
    for offset in range(max(indices) - base + 1):
        path = container.child_path(offset)
        container.children.append(Child(path, path))
        parts.append(present.get(base + offset) or Part(path, path.rpartition(".")[2]))
    # children must run in the order of their numbers, or copies could not be named
    firsts = [p.nodes[0] for p in parts if p.nodes]
    if firsts and len({id(n) for n in firsts}) != len(firsts):
        return
    yield container, parts


def _numbered_by(prefix: str, name: str, suffix: str = "") -> bool:
    inside = name[len(prefix) : len(name) - len(suffix)]
    return name.startswith(prefix) and name.endswith(suffix) and number_of(inside) is not None


def relative_weights(parts: list[Part], graph: Graph) -> dict[str, tuple[int, ...]]:
    """Shapes of a group's weights, named relative to it: ``0.conv1.weight``, the number telling the child."""
    found = {}
    for offset, part in enumerate(parts):
        for name in part.weights:
            found[f"{offset}.{name[len(part.path) + 1 :]}"] = graph.weights[name].shape
    return found


def form_of(group: Group) -> frozenset[str]:
    """The names of the first-level children that hold weights: what blocks of one kind have in common."""
    found = set()
    for name, shape in group.weights.items():
        parts = name.split(".")
        if (
            len(parts) == 2
        ):  # a bare layer has no names to recognize it by: a convolution and a linear layer differ in rank
            found.add(f"{parts[0]}:{len(shape)}")
        else:
            found.add(parts[1] if len(group.parts) == 1 else f"{parts[0]}.")
    return frozenset(found)


def kin(left: frozenset[str], right: frozenset[str]) -> bool:
    """Whether two forms belong to one kind of block (an entry has a projection more, or a norm less)."""
    if not left or not right:
        return False
    return left <= right or right <= left or 2 * len(left & right) >= len(left | right)


def group_children(
    parts: list[Part],
    weighted: Callable[[Part], bool],
    has_weights: Callable[[Part], bool],
    separates: Callable[[Part], bool],
) -> list[Group]:
    """Cut a container's children into groups, each around one child that holds the weight of a layer.

    Norms and activations join the layer before them, or the one after where the container opens with a norm
    (pre-activation), or lets a norm alone follow its first layer. A child that changes the shape and has no weights (a
    pool) joins none; it is a boundary.
    """
    active = [part for part in parts if part.nodes or part.weights]
    if all(weighted(part) for part in active):
        return _evenly(parts, active)
    first = next((part for part in active if has_weights(part)), None)
    leading = (first is not None and not weighted(first)) or _norms_lead(parts, weighted, has_weights)
    groups: list[Group] = []
    current: Group | None = None
    pending: list[Part] = []
    usual = 0  #: how many children between a layer and the next norm
    boundary = False
    for part in parts:
        if separates(part):
            current, boundary = None, True
            pending = []
        elif weighted(part):
            current = Group([*pending, part], boundary=boundary)
            groups.append(current)
            pending, boundary = [], False
        elif leading:
            if current is not None and has_weights(
                part
            ):  # what stands before the norm is of the layer before
                current.parts += pending
                usual, current, pending = len(pending), None, []
            pending.append(part)
        elif current is not None:
            current.parts.append(part)
    if leading and current is not None:
        current.parts += pending[:usual]
    _leave_the_rest(groups, has_weights)
    return groups


def running(groups: list[Group], graph: Graph) -> list[Group]:
    """The groups that run; a module that stands twice in a row runs under its first number, and has both."""

    def storages(group: Group) -> list[int]:
        return [id(graph.weights[name].storage) for part in group.parts for name in part.weights]

    found = [group for group in groups if any(part.nodes for part in group.parts)]
    modules = {tuple(storages(group)) for group in found}
    if len(modules) < max(2, len(found)):  # one module in all places (heads that are shared)
        return found
    some, before = set(map(id, found)), None
    for group in groups:
        if id(group) in some:
            before = group
        elif before is not None and (held := storages(group)) and held == storages(before)[: len(held)]:
            before.parts += group.parts
    return found


def _evenly(parts: list[Part], active: list[Part]) -> list[Group]:
    """A group for each of some parts, with what does nothing behind it, where all have as much of that."""
    some = set(active)
    at = [place for place, part in enumerate(parts) if part in some]
    steps = {right - left for left, right in itertools.pairwise(at)}
    step = steps.pop() if len(steps) == 1 else 1
    groups = [Group(parts[place : place + step]) for place in at]
    for group in groups[-1:]:
        group.torn = len(group.parts) < step
    return groups


def _norms_lead(
    parts: list[Part], weighted: Callable[[Part], bool], has_weights: Callable[[Part], bool]
) -> bool:
    """Whether a norm alone follows the first layer, and an activation and such a norm each of the others.

    Then the norm is of the layer behind it: else the first layer would lack the activation in its middle.
    """
    at = [place for place, part in enumerate(parts) if weighted(part)]
    gaps = [parts[left + 1 : right] for left, right in itertools.pairwise(at)]
    normed = [[has_weights(part) for part in gap] for gap in gaps]
    return len(gaps) > 2 and normed[0] == [True] and all(found == [False, True] for found in normed[1:])


def _leave_the_rest(groups: list[Group], has_weights: Callable[[Part], bool]) -> None:
    """Take out the one norm that stands behind a layer where an equal layer before it has none: it is the head's."""

    def behind(one: Group) -> int | None:
        return next((at for at, part in enumerate(one.parts) if at and has_weights(part)), None)

    def inside(part: Part) -> list[str]:
        return [name[len(part.path) :] for name in part.weights]

    normed = [index for index, group in enumerate(groups) if behind(group) is not None]
    if len(normed) == 1 and normed[0]:
        before, group = groups[normed[0] - 1 : normed[0] + 1]
        if inside(before.parts[0]) == inside(group.parts[0]):
            del group.parts[behind(group) :]
