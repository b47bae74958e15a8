"""What a configuration's entries mean, found by changing them and building the network. No torch here.

No table of names says which entry counts which stack, names kinds by layer or chooses layers by number: an entry is
given what it would be if it did, the network is built on the meta device, and what brings it nearer to the tensors that
are to be written stays. So one entry after the other, until nothing separates the two, or nothing helps.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from elastic_ir.checkpoints.config.taps import taps_of
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.ir.numbering import COUNT

#: Entries that have nothing to do with layers, whatever their values.
_APART = re.compile(
    r"_.*|.*(token|bos|eos|pad|start)_ids?|quantization_config|pretrained_cfg|id2label|label2id|vocab_size"
)
#: The names, and places in lists, that lead to an entry.
Place: TypeAlias = tuple[str | int, ...]
#: What a configuration leaves to be desired; None where no network can be built of it.
Trial: TypeAlias = Callable[[Mapping[str, Any]], "Sequence[str] | None"]

SECONDS = 20.0  #: that experiments may take
_ROUNDS = 12  #: entries that are changed one after the other
_MOST = 150  #: networks that are built
_PAIRS = 60
_LONGEST_UNIT = 4  #: layers that an entry counts as one
_MUCH = 4  #: a move that leaves no more than such a part is made at once
_BESIDE = 8  #: so much more than all layers a number may be that has to do with them
_LARGEST_LIST = 512
_NOTHING = object()
_HOPELESS = 1_000_000  #: differences of a configuration of which no network can be built


@dataclass(frozen=True)
class Move:
    """Entries that get other values together."""

    changes: tuple[tuple[Place, Any], ...]

    def of(self, config: Mapping[str, Any], unstated: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A configuration with them; one that has no such entries (any more) as it is.

        ``unstated`` has entries that the configuration need not state, which are then added.
        """
        made = dict(copy.deepcopy(config))
        for place, value in self.changes:
            _add(made, place, unstated or {})
            if _at(made, place) is _NOTHING:
                return dict(config)
            held = _at(made, place[:-1])
            held[place[-1]] = copy.deepcopy(value)
        return made

    @property
    def places(self) -> set[Place]:
        return {place for place, _ in self.changes}


def settled(
    source: Mapping[str, Any],
    proposed: Mapping[str, Any],
    stacks: Sequence[Stack],
    trial: Trial,
    stated: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The configuration that leaves least to be desired of those that were tried, from a proposed one on.

    ``source`` is the configuration before the change, which says what the entries were; ``stated`` is the same with
    those that it leaves to the class.
    """
    budget = _Budget(trial)
    config, best = dict(proposed), budget.left(proposed)
    stated = stated or source
    unstated = _less(stated, source)
    moves = list(_moves(stated, stacks))
    for _ in range(_ROUNDS):
        if not best:
            return _with_twins(config, source, stacks, budget)
        of_effect: list[tuple[int, Move]] = []
        left, made = best, config
        for move in moves:
            changed = move.of(config, unstated)
            if changed == config or budget.spent:
                continue
            now = budget.left(changed)
            if now != best or best == _HOPELESS:
                of_effect.append((now, move))
            if now < left:
                left, made = now, changed
            if now <= best // _MUCH:
                break
        else:  # what changed nothing here does not change anything beside another entry either
            moves = [move for _, move in of_effect]
        if left >= best:  # nothing helps by itself
            bound = [move for now, move in of_effect if now == _HOPELESS]  # another entry does not allow it
            pairs = (pair.of(config, unstated) for pair in itertools.islice(_pairs(bound), _PAIRS))
            left, made = _first_better(pairs, config, best, budget)
        if left >= best:
            break
        best, config = left, made
    return config


def raised(config: Mapping[str, Any], stack: Stack, near: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Configurations in which one entry that may count a stack has one more, alone and with the lists of its table.

    The entry's name stands before. ``near`` is by how much it may differ from the number of layers.
    """
    longer = replace(stack, order=(*range(stack.before), stack.before - 1), taken=())
    for place, value in entries(config):
        if type(value) is int and abs(value - stack.before) <= near:
            for move in (Move(((place, value + 1),)), *_with_lists(config, place, value + 1, longer)):
                yield ".".join(map(str, place)), move.of(config)


class _Budget:
    """A trial that is made so often and so long, and no more."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._built = 0
        self._end = time.process_time() + SECONDS

    @property
    def spent(self) -> bool:
        return self._built >= _MOST or time.process_time() > self._end

    def left(self, config: Mapping[str, Any]) -> int:
        """How much a configuration leaves to be desired."""
        self._built += 1
        found = self._trial(config)
        return _HOPELESS if found is None else len(found)


def _first_better(
    changed: Iterable[dict[str, Any]], config: dict[str, Any], least: int, budget: _Budget
) -> tuple[int, dict[str, Any]]:
    """The first configuration that leaves less, behind what it leaves; what there is where none does."""
    for made in changed:
        if budget.spent:
            break
        left = budget.left(made)
        if left < least:
            return left, made
    return least, config


def _pairs(moves: Sequence[Move]) -> Iterator[Move]:
    """Moves two by two, those of one table first: two lists that are read together, an entry that another bounds."""

    def apart(pair: tuple[Move, Move]) -> bool:
        one, two = (min(move.places, key=str)[:-1] for move in pair)
        return one != two

    for one, two in sorted(itertools.combinations(moves, 2), key=apart):
        if not one.places & two.places:
            yield Move(one.changes + two.changes)


def _with_twins(
    config: dict[str, Any], source: Mapping[str, Any], stacks: Sequence[Stack], budget: _Budget
) -> dict[str, Any]:
    """A configuration where a count's other name in the same table, which nothing reads, states the same."""
    for place, value in entries(source):
        now = _at(config, place)
        if type(value) is not int or now != value or not COUNT.fullmatch(str(place[-1])):
            continue
        table = _at(config, place[:-1])
        for name, old in dict(_at(source, place[:-1])).items():
            new = table[name]
            is_twin = type(old) is int and old == value and new != old and COUNT.fullmatch(name)
            if is_twin and any(new == old + len(s.order) - s.before for s in stacks if s.changed):
                made = Move(((place, new),)).of(config)
                if not budget.spent and not budget.left(made):
                    config = made
                break
    return config


def changes(config: Mapping[str, Any], other: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Where a configuration differs from another, an entry with its value each."""
    for name, value in config.items():
        before = other.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            yield from changes(value, before, f"{place}{name}.")
        elif isinstance(value, Mapping) and before is None:
            yield from changes(value, {}, f"{place}{name}.")
        elif value != before:
            yield f"{place}{name} = {json.dumps(value)}"


# -- what an entry may have to become ----------------------------------------------------------------------------------


def _moves(config: Mapping[str, Any], stacks: Sequence[Stack]) -> Iterator[Move]:
    """What each entry would be if it had to do with one of the stacks, counts of layers first."""
    changed = list({(stack.before, stack.order): stack for stack in stacks if stack.changed}.values())
    most = sum(stack.before for stack in stacks) + _BESIDE
    fitting = [(place, value) for place, value in entries(config) if type(value) is list or value <= most]
    ranked = sorted(fitting, key=lambda item: _rank(item, changed))
    for place, value in ranked:
        seen = [value]
        for stack in changed:
            for new in _meanings(value, stack):
                if new not in seen:
                    seen.append(new)
                    yield Move(((place, new),))
                    if type(value) is int and new == value + len(stack.order) - stack.before:
                        yield from _with_lists(config, place, new, stack)
        if len(seen) > 1:
            yield Move(((place, value),))


def _rank(item: tuple[Place, Any], stacks: Sequence[Stack]) -> int:
    place, value = item
    name = next(str(key) for key in reversed(place) if isinstance(key, str))
    named = COUNT.fullmatch(name) is not None
    return 2 * (not any(value == stack.before for stack in stacks)) + (not named)


def _with_lists(config: Mapping[str, Any], place: Place, count: int, stack: Stack) -> Iterator[Move]:
    """A count with the lists of its table that have an entry for each layer, and with what is taken between layers."""
    table = _at(config, place[:-1])
    if isinstance(table, Mapping):
        lists = [
            ((*place[:-1], name), [value[layer] for layer in stack.order])
            for name, value in table.items()
            if isinstance(value, list) and len(value) == stack.before
        ]
        taps = [
            ((*place[:-1], name), value)
            for name, value in taps_of(table, stack).items()
            if value != table[name]
        ]
        if lists or taps:
            yield Move(((place, count), *lists, *taps))


def _meanings(value: Any, stack: Stack) -> Iterator[Any]:
    """What a value becomes if it counts the layers of a stack, or some of them, or chooses one or more of them."""
    order, before = stack.order, stack.before
    if type(value) is int:
        if value > 0:
            yield value + len(order) - before
            yield from (value + more for more in _of_units(value, before, len(order) - before))
        if 0 < value <= before:
            yield sum(layer < value for layer in order)  # so many first ones
            yield sum(layer >= before - value for layer in order)  # so many last ones
        if value in order:
            yield order.index(value)
            yield len(order) - 1 - order[::-1].index(value)
    elif isinstance(value, list) and value:
        if len(value) == before:
            yield [value[layer] for layer in order]
        if len(value) == before + 1:
            yield [value[0], *(value[layer + 1] for layer in order)]
            yield [*(value[layer] for layer in order), value[-1]]
        if all(type(item) is int for item in value) and len(set(value)) == len(value):
            yield [at for at, layer in enumerate(order) if layer in value]
            yield [at + 1 for at, layer in enumerate(order) if layer + 1 in value]


def _of_units(count: int, layers: int, more: int) -> Iterator[int]:
    """By how much a count of units rises, each an attention and an MLP for example, if few layers are of no unit."""
    for unit in range(2, _LONGEST_UNIT + 1):
        if more % unit == 0 and 0 <= layers // unit - count <= 1:
            yield more // unit


def entries(item: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """The numbers and short lists of a configuration, with what leads to them."""
    if isinstance(item, Mapping):
        for name, value in item.items():
            if not _APART.fullmatch(str(name)):
                yield from entries(value, (*place, name))
    elif isinstance(item, list):
        if place and 0 < len(item) <= _LARGEST_LIST:
            yield place, item
            for number, value in enumerate(item):
                if type(value) is int or isinstance(value, Mapping):
                    yield from entries(value, (*place, number))
    elif type(item) is int and place:
        yield place, item


def _less(item: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a table, and of the tables in it, that another has not."""
    found: dict[str, Any] = {}
    for name, value in item.items():
        if name not in other:
            found[name] = value
        elif isinstance(value, Mapping) and isinstance(other[name], Mapping):
            found[name] = _less(value, other[name])
    return found


def _add(config: dict[str, Any], place: Place, unstated: Mapping[str, Any]) -> None:
    """Give a configuration the outermost entry at a place or above it that it has not, where that is to be had."""
    table: Any = config
    for at, key in enumerate(place):
        if not isinstance(table, dict) or not isinstance(key, str):
            return
        if key not in table:
            found = _at(unstated, place[: at + 1])
            if found is not _NOTHING:
                # of a table that is new, the entry alone
                table[key] = {} if isinstance(found, Mapping) else copy.deepcopy(found)
            if found is _NOTHING or not isinstance(found, Mapping):
                return
        table = table[key]


def _at(config: Mapping[str, Any], place: Place) -> Any:
    """The entry at a place; a mark where there is none."""
    found: Any = config
    for key in place:
        try:
            found = found[key]
        except (KeyError, IndexError, TypeError):
            return _NOTHING
    return found
