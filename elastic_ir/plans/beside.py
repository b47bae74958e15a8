"""What lies beside a stack and goes by its number of layers, as far as names and shapes show: lists and tensors.

Without the network nothing shows which lists its forward steps through together (``zip(self.convs, self.norms)``),
nor which tensor has an entry for each layer, expert or codebook. What is recognisably one of these, and would stay as
it is, makes a change of the stack a refusal. A trace shows it, so a graph with nodes is not asked. No torch here.

Widths decide in most cases. Lists that are stepped through together work on one stream, so their members of one number
have a width in common; the stages of a pyramid (``layer1``, ``layer2``) have none, or hold blocks of one kind in two
sizes. An extent that occurs inside the stack is a width, and counts nothing. A small count meets other small numbers
by chance (two layers, two classes, two token types). Beside blocks with norms, therefore, only what holds one value
for each layer is taken for indexed, or a parameter that is no layer's; a table or layer of so many rows is so only
where what is numbered can be experts or codebooks: inside a block, or without norms.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from elastic_ir.discovery.numbered_lists import NumberedList, numbered_lists
from elastic_ir.ir.numbering import number_of
from elastic_ir.ir.structure import Container
from elastic_ir.tensors.weights import Weight

_SIDE_BY_SIDE = (
    3  #: fewer members' results side by side are a width doubled, for which there are many reasons
)
_MOST_PACKED = (
    6  #: as many times its width a layer may give for one block (shifts and scales; gates; Q, K and V)
)
_WEIGHT = re.compile(
    r"^weight|(^|_)weight$"
)  #: what layers call theirs; ``resweight`` is a parameter of its own
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Indexed:
    """A tensor beside a list with an axis as long as the list, or by one longer or shorter."""

    name: str
    axis: int
    extent: int


class Surroundings:
    """A graph's weights by name, as lists and what lies around them."""

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self.weights = weights
        self._rows = numbered_lists(weights, least=1)
        self.lists = [one for one in self._rows if len(one.slots) > 1]
        self._by_place = {(one.path, one.prefix): one for one in self.lists}

    def of(self, container: Container) -> NumberedList | None:
        """The list that a container is; None where fewer than two of its children hold weights."""
        return self._by_place.get((container.path, container.prefix))

    @cached_property
    def _below(self) -> Counter[str]:
        """How many weights lie below each module."""
        counts: Counter[str] = Counter()
        for name in self.weights:
            for at, sign in enumerate(name):
                if sign == ".":
                    counts[name[:at]] += 1
        return counts

    def home(self, one: NumberedList) -> str | None:
        """The module that a list is an attribute of; None for a list that is the network itself.

        Numbered attributes are their module's own, unless it holds nothing else (``ModuleDict``).
        """
        if one.prefix:
            held = sum(map(len, one.slots.values()))
            if held < (self._below[one.path] if one.path else len(self.weights)):
                return one.path
        return one.path.rpartition(".")[0] if one.path else None

    def enclosing(self, one: NumberedList) -> str:
        """The path of the innermost slot of another list that a list lies in; empty for none."""
        parts = one.path.split(".") if one.path else []
        for end in range(len(parts), 0, -1):
            if number_of(parts[end - 1]) is not None:
                return ".".join(parts[:end])
        return ""

    def label(self, one: NumberedList) -> str:
        """A list's name for a reader, the stages' way: of a module that holds nothing else, the module's."""
        return one.label if self._is_row_of_attributes(one) or not one.path else one.path

    def blocks_beside(self, one: NumberedList) -> list[NumberedList]:
        """Lists, of one member or more, beside numbered attributes, whose members hold more layers than the attributes.

        The blocks are then in the list, and the forward names the attributes around it one by one (``cv1``, ``cv2``
        and ``cv3`` around ``m`` in a cross-stage partial block).
        """
        if not self._is_row_of_attributes(one):
            return []
        most = max(map(self.layers, one.slots.values()))
        return [
            other
            for other in self._rows
            if self.home(other) == one.path
            and other.contiguous
            and not self._is_row_of_attributes(other)
            and not _overlap(one, other)
            and min(map(self.layers, other.slots.values())) > most
        ]

    def members(self, one: NumberedList) -> list[dict[str, tuple[int, ...]]]:
        """For each slot the shapes of its weights, by their names inside it."""
        start = one.path.count(".") + 2 if one.path else 1
        return [
            {".".join(name.split(".")[start:]): self.weights[name].shape for name in names}
            for names in one.slots.values()
        ]

    def layers(self, names: Iterable[str]) -> int:
        """How many convolutions and linear layers are among some weights."""
        return sum(self.weights[name].layer for name in names)

    # -- lists -----------------------------------------------------------------------------------------------------

    def lists_beside(self, stack: NumberedList) -> list[NumberedList]:
        """Lists of the same module that may be stepped through together with a stack."""
        home = self.home(stack)
        if home is None:
            return []
        found = [
            one
            for one in self.lists
            if self.home(one) == home and not _overlap(stack, one) and self._in_step(stack, one)
        ]
        # of lists that are numbered themselves (convs1, convs2) the lists, not their row
        inner = {one.path for one in found}
        return [
            one
            for one in found
            if not any(f"{one.path}.{one.prefix}{n}".lstrip(".") in inner for n in one.slots)
        ]

    def suspects(self, containers: Iterable[Container]) -> dict[str, list[str]]:
        """For stacks what else may be stepped through together with them, each as what stands before its numbers."""
        found = {}
        for container in containers:
            stack = self.of(container)
            near = [*self.lists_beside(stack), *self.heads_of(stack)] if stack is not None else []
            if stack is not None and near:
                found[stack.head] = [one.head for one in near]
        return found

    def _in_step(self, stack: NumberedList, one: NumberedList) -> bool:
        mine, theirs = self.members(stack), self.members(one)
        if not one.contiguous or _are_slots(stack, one):
            return False
        sizes = {stack.span, len(stack.slots)}
        equal = all(member == theirs[0] for member in theirs)
        layers = self.layers(name for names in one.slots.values() for name in names)
        if one.span not in sizes:  # norms between the layers, or around them, are one fewer or more
            near = {size + step for size in sizes for step in (-1, 1)}
            if layers or not equal or one.span not in near:
                return False
        mixed = self._is_row_of_attributes(one) and not self._is_row_of_attributes(stack)
        if mixed and (not equal or len(theirs) < 3):  # conv1 and conv2 of a stem
            return False
        return (
            _alike(theirs)
            and _widths_meet(mine, theirs)
            and not (self._several_layers(stack) and _one_kind_of_two_sizes(mine, theirs))
        )

    def _is_row_of_attributes(self, one: NumberedList) -> bool:
        return bool(one.prefix) and self.home(one) == one.path

    def _several_layers(self, one: NumberedList) -> bool:
        return any(self.layers(names) > 1 for names in one.slots.values())

    def heads_of(self, stack: NumberedList) -> list[NumberedList]:
        """Lists of other modules with one small member for each layer: heads, norms, or single values.

        The members are equal, hold norms alone, values alone, or layers without norms that read the stack's width, and
        the list's module lies around the stack: a tower of its own has blocks with norms, or a module of its own.
        """
        found = []
        home, slot = self.home(stack), self.enclosing(stack)
        for one in self.lists:
            place = self.home(one)
            if place in (None, home) or self.enclosing(one) != slot or _overlap(stack, one):
                continue
            members = self.members(one)
            if not one.contiguous or any(member != members[0] for member in members):
                continue
            values = all(prod(shape) == 1 for shape in members[0].values())
            if values and one.span - len(stack.slots) in (0, 1):
                found.append(one)
            around = not place or stack.path.startswith(f"{place}.")
            if values or not around or one.span != len(stack.slots):
                continue
            names = next(iter(one.slots.values()))
            layers = self.layers(names)
            if layers and (self._has_norms(names) or not self._reads(names, _widths(self.members(stack)))):
                continue
            if _widths_meet(self.members(stack), members):
                found.append(one)
        return found

    def _reads(self, names: Sequence[str], widths: set[int]) -> bool:
        """Whether a layer among some weights takes in one of some widths."""
        return any(
            self.weights[name].layer and self.weights[name].shape[1] in widths
            for name in names
            if len(self.weights[name].shape) > 1
        )

    def _has_norms(self, names: Iterable[str]) -> bool:
        """Whether there are scales of channels among some weights: a module whose ``weight`` has one axis."""
        return any(
            len(self.weights[name].shape) == 1 and name.rpartition(".")[2] in ("weight", *_STATISTICS)
            for name in names
        )

    # -- tensors ---------------------------------------------------------------------------------------------------

    def tensors_indexed_by(self, stack: NumberedList) -> list[Indexed]:
        """Tensors outside a list, and outside of all others, that its length sizes."""
        count = len(stack.slots)
        inside = {name for names in stack.slots.values() for name in names}
        widths = _widths(self.members(stack))
        slot = self.enclosing(stack)
        head = f"{slot}." if slot else ""
        covered = set(inside)
        for one in self.lists:
            if next(iter(one.slots.values()))[0] in covered or not f"{one.path}.".startswith(head):
                continue  # a list inside of one that has been looked at, or outside of the block
            if _alike(self.members(one)):
                covered.update(name for names in one.slots.values() for name in names if name.count(".") > 1)
        outside = [name for name in self.weights if name.startswith(head) and name not in covered]
        parallel = bool(slot) or not self._has_norms(inside)
        found = []
        for name in outside:
            axis = self._axis_of(name, count, widths, parallel, bool(slot))
            if axis is not None:
                found.append(Indexed(name, axis, self.weights[name].shape[axis]))
        if not slot:
            found += self._one_off(outside, count, widths)
            found += self._side_by_side(outside, self.members(stack))
        return [one for one in found if not self._is_of_frequencies(one)]

    def _is_of_frequencies(self, one: Indexed) -> bool:
        """Whether a vector's values are those of rotary positions, of which there may be as many as layers."""
        from elastic_ir.tensors.arrays import is_geometric

        held = self.weights[one.name]
        return prod(held.shape) == one.extent and is_geometric(held.storage.data)

    def _axis_of(self, name: str, count: int, widths: set[int], parallel: bool, nested: bool) -> int | None:
        shape, role = self.weights[name].shape, name.rpartition(".")[2]
        size = prod(shape)
        if role.endswith("weight") and len(shape) > 2:
            shape = shape[:2]  # the extents of kernels are not counts
        if count in widths or count not in shape or role in _STATISTICS:
            return None
        if size == count:
            return None if self._explained(name, count) else shape.index(count)
        if _WEIGHT.search(role):
            reads = len(shape) > 1 and shape[0] == count and shape[1] in widths and size == prod(shape)
            return 0 if parallel and reads else None
        if role.endswith("bias") or len(shape) < 2:
            return None
        if nested or (parallel and len(shape) == 2):
            if not widths.isdisjoint(shape):
                return shape.index(count)
            return 0 if shape[0] == count and not nested else None
        return 0 if shape[0] == count else None

    def _one_off(self, outside: Sequence[str], count: int, widths: set[int]) -> list[Indexed]:
        """Lone vectors with one value more or fewer than there are layers, as weighted sums of all states have.

        Lone: a mean and a deviation of three colours are two of a kind; and no layer has as many channels.
        """
        found = []
        for extent in (count - 1, count + 1):
            if extent < 2 or extent in widths:
                continue
            if any(extent in self.weights[n].shape[:2] for n in outside if self.weights[n].layer):
                continue
            vectors = [n for n in outside if prod(self.weights[n].shape) == extent]
            modules = Counter(name.rpartition(".")[0] for name in vectors)
            found += [
                Indexed(name, self.weights[name].shape.index(extent), extent)
                for name in vectors
                if modules[name.rpartition(".")[0]] == 1 and not self._explained(name, extent)
            ]
        return found

    def _side_by_side(
        self, outside: Sequence[str], members: Sequence[Mapping[str, tuple[int, ...]]]
    ) -> list[Indexed]:
        """Layers that read the results of all members side by side, and what gives each member its part of a row.

        Such an extent is as many times a width that all members have as there are members, and nothing else in the
        network gives, or takes, so many channels. Of the layers that give so many only those of one width are taken.
        """
        count = len(members)
        if count < _SIDE_BY_SIDE:
            return []
        widths = set.intersection(*(_widths([member]) for member in members))
        found = []
        for name in outside:
            shape, layer = self.weights[name].shape, self.weights[name].layer
            if len(shape) < 2 or (len(shape) > 2 and not layer):
                continue
            taken, given = (shape[1], shape[0]) if layer else (None, shape[1])
            if taken is not None and _times(taken, count) in widths and taken not in self._channels[0]:
                found.append(Indexed(name, 1, taken))
            elif given not in self._channels[1] and _times(given, count) in widths:
                packed = layer and (count <= _MOST_PACKED or given != count * shape[1])
                found += [] if packed else [Indexed(name, 0 if layer else 1, given)]
        return found

    @cached_property
    def _channels(self) -> tuple[set[int], set[int]]:
        return channels_of(self.weights)

    def _explained(self, name: str, extent: int) -> bool:
        """Whether a vector belongs to a layer or norm of its module: a bias, or one of a scale and a shift."""
        module, _, role = name.rpartition(".")
        head = f"{module}." if module else ""
        roles = {
            other: self.weights[head + other].shape
            for other in ("weight", "bias", *_STATISTICS)
            if head + other in self.weights and other != role
        }
        if role not in ("weight", "bias"):
            return False
        return any(extent in shape for shape in roles.values())


def channels_of(weights: Mapping[str, Weight]) -> tuple[set[int], set[int]]:
    """All numbers of channels that layers, or the rows of a table, give, and all that layers take."""
    gives, takes = set(), set()
    for weight in weights.values():
        if weight.layer and len(weight.shape) > 1:
            gives.add(weight.shape[0])
            takes.add(weight.shape[1])
        elif len(weight.shape) == 2:
            gives.add(weight.shape[1])
    return gives, takes


def _widths(members: Iterable[Mapping[str, tuple[int, ...]]]) -> set[int]:
    """Extents that are channels, of members' tensors; the kernels of convolutions are none."""
    return {
        extent
        for member in members
        for name, shape in member.items()
        for extent in (shape[:2] if name.endswith("weight") else shape)
        if extent > 1
    }


def _times(extent: int, count: int) -> int:
    """A count-th part of an extent; 0 where it has none."""
    return 0 if extent % count else extent // count


def _widths_meet(
    mine: Sequence[Mapping[str, tuple[int, ...]]], theirs: Sequence[Mapping[str, tuple[int, ...]]]
) -> bool:
    """Whether members of one number have a width in common; single values fit any."""
    for own, other in zip(mine, theirs, strict=False):
        widths = _widths([other])
        if widths and widths.isdisjoint(_widths([own])):
            return False
    return True


def _alike(members: Sequence[Mapping[str, tuple[int, ...]]]) -> bool:
    """Whether members hold the same; of three or more one may be of another form (a first or last one)."""
    forms = Counter(frozenset((name, len(shape)) for name, shape in one.items()) for one in members)
    return forms.most_common(1)[0][1] >= len(members) - (len(members) > 2)


def _one_kind_of_two_sizes(
    mine: Sequence[Mapping[str, tuple[int, ...]]], theirs: Sequence[Mapping[str, tuple[int, ...]]]
) -> bool:
    """Whether two lists hold blocks of the same names in different shapes: stages or towers, and not partners."""
    return set(mine[-1]) == set(theirs[-1]) and mine[-1] != theirs[-1]


def _overlap(one: NumberedList, other: NumberedList) -> bool:
    """Whether two lists are one, or one lies in the other (``layer2`` in ``layer1``, ``layer2``, ``layer3``)."""
    names = {name for held in one.slots.values() for name in held}
    return any(not names.isdisjoint(held) for held in other.slots.values())


def _are_slots(one: NumberedList, other: NumberedList) -> bool:
    """Whether two lists are members of a third (``stages.0`` and ``stages.1``), which run one after the other."""
    paths = [each.path.rpartition(".") for each in (one, other)]
    numbers = {number_of(path[2]) for path in paths}
    return paths[0][0] == paths[1][0] and len(numbers) == 2 and None not in numbers
