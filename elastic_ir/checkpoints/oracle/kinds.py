"""What a layer is beyond its tensors: the classes of its modules, and the plain values that they keep.

Names and shapes do not show whether a layer attends to a window, rotates positions or shares another's keys; the
modules that a configuration builds do. A layer's number may differ, and what is computed from it: a value that no two
layers have in common (a scale by the depth, a rate of dropping). So may the number of a layer that it refers to.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.ir.numbering import DIGITS

if TYPE_CHECKING:
    from torch import nn

#: What only training reads.
_TRAINING = re.compile(r".*drop.*|.*checkpointing.*|.*jitter.*")
_PLAIN = (bool, int, float, str, type(None))
#: Attributes that may hold the number of another layer.
_REFERS = re.compile(r"layer|block|idx|index|_id$")

#: A module's class and values, by its path within the layer.
Kind: TypeAlias = Mapping[str, tuple[str, Mapping[str, Any]]]


def kinds(network: nn.Module) -> dict[str, dict[int, Kind]]:
    """For each head of numbered modules (``model.layers.``) what each number holds."""
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


def differences(
    source: Mapping[str, Mapping[int, Kind]],
    target: Mapping[str, Mapping[int, Kind]],
    stacks: Sequence[Stack],
) -> list[str]:
    """Layers of the target that are of another kind than those that they are copies of, a sentence each."""
    found: list[str] = []
    for stack in stacks:
        if not stack.changed:
            continue
        heads = [
            head for head in source if head in target and _is_of(stack, source[head], target[head], head)
        ]
        exact = [head for head in heads if head == stack.series.head]
        for head in exact or heads:
            found += _of_stack(source[head], target[head], stack)
    return found


def alike(lists: Mapping[str, Mapping[int, Kind]], stack: Stack) -> list[int]:
    """For each layer of a stack a number that layers of one kind share; none where its layers are not found."""
    heads = [head for head in lists if _named(stack, head) and len(lists[head]) == stack.before + stack.tail]
    heads = [head for head in heads if head == stack.series.head] or heads
    if len(heads) != 1:
        return []
    layers = lists[heads[0]]
    numbers = _numbers(layers)
    seen: dict[str, int] = {}
    found = []
    for number in sorted(layers)[: stack.before]:
        kind = {
            path: (name, _without_numbers(path, values, numbers))
            for path, (name, values) in layers[number].items()
        }
        found.append(seen.setdefault(repr(sorted(kind.items())), len(seen)))
    return found


def _without_numbers(
    path: str, values: Mapping[str, Any], numbers: Mapping[tuple[str, str], Mapping[int, Any]]
) -> dict[str, Any]:
    """A module's values but for those that go by the layer's number."""
    return {k: v for k, v in values.items() if not _by_number(k, numbers.get((path, k), {}), v, v, 0)}


def _named(stack: Stack, head: str) -> bool:
    """Whether a list of modules has a stack's name, in full or without what stands before it."""
    own = f".{stack.series.head}"
    return own.endswith(f".{head}") or f".{head}".endswith(own)


def _is_of(stack: Stack, old: Mapping[int, Kind], new: Mapping[int, Kind], head: str) -> bool:
    """Whether a list of modules is a stack's before and after: by its name and its lengths."""
    named = _named(stack, head)
    return named and len(old) == stack.before + stack.tail and len(new) == len(stack.sources)


def _of_stack(old: Mapping[int, Kind], new: Mapping[int, Kind], stack: Stack) -> Iterator[str]:
    numbers = _numbers(old)
    places = stack.places()
    for at, source in enumerate(stack.sources):
        before, after = old.get(source + stack.base), new.get(at + stack.base)
        taken = (
            at < len(places) and places[at][0]
        )  # of another checkpoint, whose configuration says what it is
        if taken or before is None or after is None:
            continue
        told = _difference(before, after, numbers, stack, at - source)
        if told:
            yield f"layer {at} of {stack.label}, a copy of layer {source}, would be of another kind: {told}"


def _difference(
    old: Kind, new: Kind, numbers: Mapping[tuple[str, str], Mapping[int, Any]], stack: Stack, step: int
) -> str:
    """How a layer differs from the one that it is a copy of, ``step`` places before; nothing where it does not."""
    if old.keys() != new.keys():
        return f"{min(old.keys() ^ new.keys())} is in one of them only"
    for path, (name, values) in old.items():
        other, changed = new[path]
        if name != other:
            return f"{path or 'it'} is a {other.rpartition('.')[2]}, not a {name.rpartition('.')[2]}"
        for key in sorted(values.keys() | changed.keys()):
            one, two = values.get(key), changed.get(key)
            if one == two or _by_number(key, numbers.get((path, key), {}), one, two, step):
                continue
            if not (_refers(key, one, two, stack) or _lists_layers(one, two, stack)):
                return f"{'.'.join(filter(None, (path, key)))} is {two!r}, not {one!r}"
    return ""


def _numbers(layers: Mapping[int, Kind]) -> dict[tuple[str, str], dict[int, Any]]:
    """The numbers that layers hold, by the path and name within the layer, each with what layer has which."""
    found: dict[tuple[str, str], dict[int, Any]] = {}
    for number, kind in layers.items():
        for path, (_, values) in kind.items():
            for key, value in values.items():
                if type(value) in (int, float):
                    found.setdefault((path, key), {})[number] = value
    return found


def _by_number(key: str, held: Mapping[int, Any], old: Any, new: Any, step: int) -> bool:
    """Whether a value is the layer's number, counted from anywhere, or a fraction that is computed from it."""
    if type(old) is int and type(new) is int:
        shown = len(held) > 2 or _REFERS.search(key)  # of two, 0 and 1 may be a shift of windows
        return (
            bool(shown) and new == old + step and len({value - number for number, value in held.items()}) == 1
        )
    return type(old) is float and type(new) is float and len(set(held.values())) == len(held) > 1


def _lists_layers(old: Any, new: Any, stack: Stack) -> bool:
    """Whether a value is a list of all layers, which each of them holds."""
    lists = isinstance(old, list | tuple) and isinstance(new, list | tuple)
    return lists and len(old) == stack.before != len(new) == len(stack.order)


def _refers(key: str, old: Any, new: Any, stack: Stack) -> bool:
    """Whether a value is the number of a layer, in the source and of a copy of that in the target."""
    if type(old) is not int or type(new) is not int or not _REFERS.search(key):
        return False
    return 0 <= new < len(stack.order) and stack.order[new] == old
