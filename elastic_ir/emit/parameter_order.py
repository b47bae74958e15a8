"""Which parameter is which in an optimizer that lists them by numbers, and which numbers they get in another depth.

A number is a parameter's place in its network's order, and that is not in every file: safetensors come sorted by name.
What is known then is the shape of each parameter's moments. Where layers of equal shapes follow each other, so many as
the weights hold, and the rest is what lies beside them, the numbers of each layer are known; which of two equal shapes
in a layer is which need not be, since every copy has them in the same order. No torch here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from elastic_ir.checkpoints.names import stands_behind
from elastic_ir.checkpoints.stacks import Stack, in_module_order
from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Graph
from elastic_ir.tensors.recipes import Recipe

Shape: TypeAlias = "tuple[int, ...]"
Forms: TypeAlias = Mapping[
    str, Shape
]  #: the parameters' names with their shapes, sorted, or in the network's order

#: What there is to do where numbers do not show it.
WAY_OUT = (
    "save an optimizer of named parameters, or move its state from Python by remap_optimizer_state, which is told the "
    "names"
)
WITHOUT_ORDER = f"say which network it is, by --arch SOURCE (arch=), {WAY_OUT}"


def names_of_groups(
    groups: Sequence[Sequence[Shape | None]], forms: Forms, ordered: bool, graph: Graph, where: str
) -> list[list[str]]:
    """The names of the parameters of an optimizer's groups, of which the shapes are known, or None where they are not.

    ``forms`` has the parameters' names in the network's order where they are ``ordered``. Names of equal shapes may
    stand for each other within a layer. Raises EmitError, which says ``where``, if it is not certain.
    """
    count = sum(map(len, groups))
    if count != len(forms):
        raise EmitError(
            f"{where} has {count} of {len(forms)} parameters by numbers alone, so which parameter is which is not "
            f"known; {WAY_OUT if ordered else WITHOUT_ORDER}"
        )
    shapes = [list(group) for group in groups]
    if len(shapes) == 1:
        if ordered or all(shape is None for shape in shapes[0]):  # without any state it does not matter
            return [list(forms)]
        parts: list[Forms] = [forms]
    else:
        parts = _by_shape(shapes, forms, where)
        if ordered:
            return [list(part) for part in parts]
    if any(shape is None for group in shapes for shape in group):
        raise EmitError(
            f"{where} has parameters without moments, by numbers alone, so which ones these are is not known; "
            f"{WITHOUT_ORDER}"
        )
    stacks = [stack for stack in Stack.all_of(graph) if stack.before]
    return [
        _in_layers([shape or () for shape in group], part, stacks, where)
        for group, part in zip(shapes, parts, strict=True)
    ]


def order_of_targets(graph: Graph, names: Sequence[Sequence[str]]) -> list[str]:
    """The parameters that those of some groups have become, in the order of the groups and of the changed network.

    EmitError where one is computed, since names of equal shapes may stand for each other.
    """
    for name, weight in graph.weights.items():
        if isinstance(weight.storage.data, Recipe):
            raise EmitError(
                f"{name} is computed, and by numbers alone its moments are not known; {WITHOUT_ORDER}"
            )
    return targets_in_order(graph, names)


def targets_in_order(graph: Graph, names: Sequence[Sequence[str]]) -> list[str]:
    """The same for parameters whose names are certain, of which some may be computed."""
    targets: dict[str, list[str]] = {}
    for name, weight in graph.weights.items():
        targets.setdefault(weight.origin, []).append(name)
    stacks = Stack.all_of(graph)
    return [
        target
        for group in names
        for target in in_module_order(
            {target: name for name in group for target in targets.get(name, ())}, group, stacks
        )
    ]


def _by_shape(groups: Sequence[Sequence[Shape | None]], forms: Forms, where: str) -> list[Forms]:
    """The parameters of each group, where all of one shape are in one group; in the order that they have."""
    held = [Counter(group) for group in groups]
    wanted = Counter(forms.values())
    home: dict[Shape, int] = {}
    for shape, count in wanted.items():
        mine = [at for at, one in enumerate(held) if one[shape]]
        if len(mine) != 1 or held[mine[0]][shape] != count:
            raise EmitError(
                f"{where} has {len(groups)} groups by numbers alone, and parameters of the shape {list(shape)} are not "
                f"all in one of them, so which parameter is which is not known; {WAY_OUT}"
            )
        home[shape] = mine[0]
    return [{name: shape for name, shape in forms.items() if home[shape] == at} for at in range(len(groups))]


def _in_layers(shapes: Sequence[Shape], forms: Forms, stacks: Sequence[Stack], where: str) -> list[str]:
    """The names of parameters whose shapes are known by number, where the network's order is not."""
    if Counter(shapes) != Counter(forms.values()):
        raise EmitError(f"{where} has moments of other shapes than the network's parameters")
    mine = [
        (stack, layers)
        for stack in stacks
        if any(layers := [sorted(layer.items()) for layer in stack.contents(forms)])
    ]
    if not mine:
        return _by_places(shapes, list(forms), forms)
    slots = [[(end, forms[name]) for end, name in layer] for layer in mine[0][1]]
    if len(mine) > 1 or any(layer != slots[0] for layer in slots):
        raise EmitError(
            f"{where} lists its parameters by numbers alone, and the network has layers of several kinds, so which "
            f"parameter is which is not known; {WITHOUT_ORDER}"
        )
    stack, layers = mine[0]
    inside = {name for layer in layers for _, name in layer}
    outside = [name for name in forms if name not in inside]
    size, count = len(slots[0]), len(layers)
    starts = [
        at
        for at in range(len(shapes) - size * count + 1)
        if Counter(shapes[at : at + size]) == Counter(shape for _, shape in slots[0])
        and all(shapes[at : at + size] == shapes[at + n * size : at + (n + 1) * size] for n in range(count))
    ]
    sides = [stands_behind(name) for name in outside]
    if len(starts) > 1 and None not in sides:
        starts = [at for at in starts if at == sides.count(False)]
    if len(starts) != 1:
        raise EmitError(
            f"{where} lists its parameters by numbers alone, and their shapes do not show which of them begin the "
            f"layers of {stack.label}; {WITHOUT_ORDER}"
        )
    begin, end = starts[0], starts[0] + size * count
    before = sorted(outside, key=lambda name: stands_behind(name) is True)
    found = _by_places([*shapes[:begin], *shapes[end:]], before, forms)
    places = _by_places(shapes[begin : begin + size], [name for _, name in layers[0]], forms)
    ends = {name: suffix for suffix, name in layers[0]}
    named = [dict(layer) for layer in layers]
    run = [layer[ends[name]] for layer in named for name in places]
    return [*found[:begin], *run, *found[begin:]]


def _by_places(shapes: Sequence[Shape], names: Sequence[str], forms: Forms) -> list[str]:
    """For each shape a name that has it and was not taken."""
    left = list(names)
    found = []
    for shape in shapes:
        name = next(name for name in left if forms[name] == shape)
        left.remove(name)
        found.append(name)
    return found
