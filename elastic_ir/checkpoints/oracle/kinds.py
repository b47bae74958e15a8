"""What a layer is beyond its tensors: the classes of its modules, and the plain values that they keep.

Names and shapes do not show whether a layer attends to a window, rotates positions or shares another's keys; the
modules that a configuration builds do. A layer's number may differ, and what is computed from it: a value that no two
layers have in common (a scale by the depth, a rate of dropping). So may the number of a layer that it refers to, and
what all layers have in common where there are more or fewer of them (a scale by the root of their number).
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.ir.numbering import DIGITS

if TYPE_CHECKING:
    from torch import nn

#: What only training reads.
_TRAINING = re.compile(r".*drop.*|.*checkpointing.*|.*jitter.*")
_DIGITS = re.compile("[0-9]+")
_PLAIN = (bool, int, float, str, type(None))
#: Attributes that may hold the number of another layer.
_REFERS = re.compile(r"layer|block|idx|index|number|_id$")

#: A module's class and values, by its path within the layer.
Kind: TypeAlias = Mapping[str, tuple[str, Mapping[str, Any]]]
#: For each head of numbered modules (``model.layers.``) what each number holds.
Lists: TypeAlias = Mapping[str, Mapping[int, Kind]]
#: The numbers and texts that layers hold, by the path and name within the layer, each by the layer's number.
Numbers: TypeAlias = Mapping[tuple[str, str], Mapping[int, Any]]


def kinds(network: nn.Module) -> Lists:
    """What the numbered modules of a network are."""
    found: dict[str, dict[int, Kind]] = {}
    for path, module in network.named_modules():
        match = re.fullmatch(rf"(.*?)({DIGITS})", path)
        if match is not None:
            found.setdefault(match[1], {})[int(match[2])] = kind_of(module)
    return found


def kind_of(layer: nn.Module) -> Kind:
    """The classes and plain values of a layer and of all modules in it."""
    return {
        path: (f"{type(module).__module__}.{type(module).__qualname__}", dict(_values(module)))
        for path, module in layer.named_modules()
        if not any(_TRAINING.fullmatch(part) for part in path.split("."))
    }


def _values(module: nn.Module) -> Iterator[tuple[str, Any]]:
    own = _of_every_module()
    for name, value in vars(module).items():
        if name in own or _TRAINING.fullmatch(name):
            continue
        if callable(value) and hasattr(value, "__qualname__"):
            yield name, value.__qualname__
        elif _plain(value):
            yield name, value


@functools.cache
def _of_every_module() -> frozenset[str]:
    from torch import nn

    return frozenset((*vars(nn.Module()), "training"))


def _plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    return isinstance(value, _PLAIN)


def same_list(stored: str, built: str) -> bool:
    """Whether two heads of lists are of one list, in full or but for what stands before them in one of the two."""
    return f".{stored}".endswith(f".{built}") or f".{built}".endswith(f".{stored}")


def heads(lists: Lists, stacks: Sequence[Stack]) -> dict[str, str]:
    """For stacks, by their labels, what stands before the numbers of their modules, where the names agree.

    They do in full, or but for what stands before them in one of the two. A list is of the stack that it is nearest to
    by its name.
    """
    nearest: dict[str, str] = {}
    for head in lists:
        own = [stack.series.head for stack in stacks if same_list(stack.series.head, head)]
        if own:
            nearest[head] = min(own, key=lambda stored: abs(len(stored) - len(head)))
    found = {}
    for stack in stacks:
        mine = [head for head, stored in nearest.items() if stored == stack.series.head]
        named = [head for head in mine if len(lists[head]) == stack.before + stack.tail]
        named = [head for head in named if head == stack.series.head] or named
        if len(named) == 1:
            found[stack.label] = named[0]
    return found


def differences(source: Lists, target: Lists, stacks: Sequence[Stack], heads: Mapping[str, str]) -> list[str]:
    """Layers of the target that are of another kind than those that they are copies of, a sentence each."""
    return [
        told
        for stack in stacks
        if stack.changed and stack.label in heads
        for told in _of_stack(source[heads[stack.label]], target.get(heads[stack.label], {}), stack)
    ]


def of_depth(source: Lists, target: Lists, stacks: Sequence[Stack], heads: Mapping[str, str]) -> list[str]:
    """What all layers of a stack have in common, and have otherwise in the target of another depth, a clause each."""
    found = []
    for stack in stacks:
        old, new = (lists.get(heads.get(stack.label, ""), {}) for lists in (source, target))
        for path, key in sorted(_of_depth(old, new)):
            before, after = (_constants(layers)[path, key] for layers in (old, new))
            name = ".".join(filter(None, (stack.label, path, key)))
            found.append(f"{name} is {after:.6g} with {len(new)} layers, {before:.6g} with {len(old)}")
    return found


def _of_depth(old: Mapping[int, Kind], new: Mapping[int, Kind]) -> frozenset[tuple[str, str]]:
    """The fractions that are one in all layers of a list and another in all layers of one of another length."""
    if len(old) == len(new):
        return frozenset()
    before, after = _constants(old), _constants(new)
    return frozenset(at for at in before.keys() & after.keys() if before[at] != after[at])


def _constants(layers: Mapping[int, Kind]) -> dict[tuple[str, str], float]:
    """The fractions that all layers of a list have alike, by the path and name within the layer."""
    held = {at: list(one.values()) for at, one in _numbers(layers).items() if len(one) == len(layers)}
    return {
        at: values[0] for at, values in held.items() if type(values[0]) is float and len(set(values)) == 1
    }


def fitting(old: Mapping[int, Kind], new: Mapping[int, Kind], stack: Stack) -> dict[int, set[int]]:
    """For each layer of a list the layers of another, by number, that are of its kind."""
    numbers, by_depth = _numbers(old), _of_depth(old, new)
    return {
        at: {
            number
            for number, kind in old.items()
            if not _difference(kind, new[at], numbers, stack, (number, at), by_depth)
        }
        for at in sorted(new)
    }


def alike(layers: Mapping[int, Kind], count: int) -> list[int]:
    """For each of the first layers of a list a number that layers of one kind share."""
    numbers = _numbers(layers)
    seen: dict[str, int] = {}
    found = []
    for number in sorted(layers)[:count]:
        kind = []
        for path, (name, values) in sorted(layers[number].items()):
            plain = [
                (key, repr(_renumbered(value, number, "#", numbers.get((path, key), {}))))
                for key, value in sorted(values.items())
                if not _goes_by_number(key, numbers.get((path, key), {}), value)
            ]
            kind.append((path, name, plain))
        found.append(seen.setdefault(repr(kind), len(seen)))
    return found


def _of_stack(old: Mapping[int, Kind], new: Mapping[int, Kind], stack: Stack) -> Iterator[str]:
    if len(new) != len(stack.sources):
        return  # which the names of their tensors show
    numbers, by_depth = _numbers(old), _of_depth(old, new)
    places = stack.places()
    first = min(old)  # the modules may be numbered from another number than the tensors
    for at, source in enumerate(stack.sources):
        before, after = old.get(source + first), new.get(at + first)
        another = (
            at < len(places) and places[at][0]
        )  # of a checkpoint whose configuration says what the layer is
        if another or before is None or after is None:
            continue
        told = _difference(before, after, numbers, stack, (source + first, at + first), by_depth)
        if told:
            yield f"layer {at} of {stack.label}, a copy of layer {source}, would be of another kind: {told}"


def _difference(
    old: Kind, new: Kind, numbers: Numbers, stack: Stack, moved: tuple[int, int],
    by_depth: Collection[tuple[str, str]],
) -> str:  # fmt: skip
    """How a layer differs from the one that it is a copy of, given the numbers of both; nothing where it does not.

    What goes by the number of layers (``by_depth``) does not make a difference.
    """
    if old.keys() != new.keys():
        return f"{min(old.keys() ^ new.keys())} is in one of them only"
    for path, (name, values) in old.items():
        other, changed = new[path]
        if name != other:
            return f"{path or 'it'} is a {other.rpartition('.')[2]}, not a {name.rpartition('.')[2]}"
        for key in sorted(values.keys() | changed.keys()):
            one, two = values.get(key), changed.get(key)
            if one == two or (path, key) in by_depth:
                continue
            if _moved(key, numbers.get((path, key), {}), one, two, moved):
                continue
            if not (_refers(key, one, two, stack) or _lists_layers(one, two, stack)):
                return f"{'.'.join(filter(None, (path, key)))} is {two!r}, not {one!r}"
    return ""


def _numbers(layers: Mapping[int, Kind]) -> Numbers:
    found: dict[tuple[str, str], dict[int, Any]] = {}
    for number, kind in layers.items():
        for path, (_, values) in kind.items():
            for key, value in values.items():
                if type(value) in (int, float, str):
                    found.setdefault((path, key), {})[number] = value
    return found


def _step(held: Mapping[int, Any]) -> int | None:
    """By how much a value rises from a layer to the next, if it does so evenly; None where it does not."""
    numbers = sorted(held)
    if len(numbers) < 2 or {type(value) for value in held.values()} != {int}:
        return None
    first, second = numbers[:2]
    step, rest = divmod(held[second] - held[first], second - first)
    even = all(held[number] == held[first] + step * (number - first) for number in numbers)
    return step if even and step and not rest else None


def _goes_by_number(key: str, held: Mapping[int, Any], value: Any) -> bool:
    """Whether a value is the layer's number, counted in any way, or a fraction that is computed from it."""
    if type(value) is int:  # of two, 0 and 1 may be a shift of windows
        return _step(held) is not None and (len(held) > 2 or _REFERS.search(key) is not None)
    return type(value) is float and len(set(held.values())) == len(held) > 1


def _moved(key: str, held: Mapping[int, Any], old: Any, new: Any, moved: tuple[int, int]) -> bool:
    """Whether a value differs as the numbers of two layers do."""
    source, target = moved
    if isinstance(old, str) and isinstance(new, str):
        return bool(_renumbered(old, source, str(target), held) == new)
    if type(old) is not type(new) or not _goes_by_number(key, held, old):
        return False
    risen: bool = type(old) is float or new - old == (_step(held) or 0) * (target - source)
    return risen


def _renumbered(value: Any, number: int, to: str, held: Mapping[int, Any]) -> Any:
    """A text with another number in the place of a layer's; any other value as it is.

    Which of its numbers is the layer's, the texts of the other layers show (``layers.0.blocks.2``).
    """
    if not isinstance(value, str):
        return value
    found = {layer: _DIGITS.findall(text) for layer, text in held.items() if isinstance(text, str)}
    own = len(_DIGITS.findall(value))
    places = {
        at
        for at in range(own)
        if found and all(len(one) == own and one[at] == str(layer) for layer, one in found.items())
    }
    counted = itertools.count()

    def replaced(match: re.Match[str]) -> str:
        mine = next(counted) in places if places else match[0] == str(number)
        return to if mine else match[0]

    return _DIGITS.sub(replaced, value)


def _lists_layers(old: Any, new: Any, stack: Stack) -> bool:
    """Whether a value is a list of all layers, or their number, which each of them holds."""
    if type(old) is int and type(new) is int:
        return old == stack.before and new == len(stack.order)
    lists = isinstance(old, list | tuple) and isinstance(new, list | tuple)
    return lists and len(old) == stack.before != len(new) == len(stack.order)


def _refers(key: str, old: Any, new: Any, stack: Stack) -> bool:
    """Whether a value is the number of a layer, in the source and of a copy of that in the target."""
    if type(old) is not int or type(new) is not int or not _REFERS.search(key):
        return False
    return 0 <= new < len(stack.order) and stack.order[new] == old
