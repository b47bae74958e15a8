"""Taps: entries of a configuration that say between which layers a network's features are taken. No torch here.

The state after so many layers is one, the embeddings' being that after none. Transformers' backbones number the states
or name them (``out_indices``, ``out_features`` and ``stage_names``, its ``BackboneConfigMixin``), multimodal models
choose some of a tower's (``vision_feature_layer``), others number the layer behind which one is
(``deepstack_visual_indexes``).
As many features as before are taken, since whatever reads them was trained for so many: each where all that its layers
were copied to has run, and nothing beyond. The last state stays the last.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from elastic_ir.checkpoints.config.tables import Entry, Reader
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import PlanError
from elastic_ir.ir.numbering import ALL_STATES, COUNT, STATES, TAPPED, split_number
from elastic_ir.plans.keep_beside import is_kept

_DEPTHS = re.compile("depths|stage_")  #: in the names of lists with an entry for each stage
_FEATURES = "out_features"  #: names of some


def taps_followed(
    config: dict[str, Any], reader: Reader, keep: Sequence[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """A configuration whose features are taken at their layers' new places, and the entries kept as ``keep`` says.

    ``reader`` reads the source's configuration, and ``config`` is what has become of it. Raises PlanError where two
    features would be the same, as nothing is left between them.
    """
    made, kept = copy.deepcopy(config), list[str]()
    for entry, stack, table in _entries(reader, config):
        before = reader.table(entry.holder)[entry.name]
        try:
            value = _followed(entry.name, before, table, stack)
        except _TooFewError as error:
            if not is_kept(keep, reader.file, str(entry)):
                raise PlanError(
                    f"{reader.file}'s {entry} = {before} takes features between layers of {stack.label} of which too "
                    f"few are left; another plan may fit, and --keep-beside {entry} (keep_beside=) keeps it as it is"
                ) from error
            value = None
        if value == before:
            continue
        if is_kept(keep, reader.file, str(entry)):
            kept.append(str(entry))
        else:
            reader.table(entry.holder, made)[entry.name] = value
    return made, kept


def taps_of(table: Mapping[str, Any], stack: Stack) -> dict[str, Any]:
    """What the taps in the table that counts a stack become; none where too little is left."""
    try:
        return {name: _followed(name, table[name], table, stack) for name in _names(table, stack)}
    except _TooFewError:
        return {}


class _TooFewError(Exception):
    """That two features would be one."""


def _entries(reader: Reader, config: dict[str, Any]) -> Iterator[tuple[Entry, Stack, Mapping[str, Any]]]:
    """The entries that choose or name states of a stack that has changed, each with the table that counts it."""
    for stack in reader.stacks:
        for holder in reader.holders_of(stack) if stack.changed else ():
            table, made = reader.table(holder), reader.table(holder, config)
            if not any(
                COUNT.fullmatch(name) and value == stack.before and made.get(name) == len(stack.order)
                for name, value in table.items()
            ):
                continue
            for name in _names(table, stack):
                yield Entry(holder, name), stack, table
            part = holder[-1].rpartition("_")[0] if holder else ""  # a tower's, in the table around its own
            for name in reader.table(holder[:-1]) if part else ():
                if name.startswith(f"{part}_") and TAPPED.fullmatch(name):
                    yield Entry(holder[:-1], name), stack, table


def _names(table: Mapping[str, Any], stack: Stack) -> list[str]:
    """The taps in the table that counts a stack; none where its states are those between the stages of a network."""
    staged = any(
        isinstance(value, list) and len(value) == stack.before and _DEPTHS.search(name) and name != ALL_STATES
        for name, value in table.items()
    )
    if staged or (ALL_STATES in table and _numbered(table[ALL_STATES], stack.before) is None):
        return []
    return [name for name in table if name == ALL_STATES or TAPPED.fullmatch(name)]


def _followed(name: str, value: Any, table: Mapping[str, Any], stack: Stack) -> Any:
    """What an entry becomes."""
    if name not in (ALL_STATES, _FEATURES):
        return _chosen(name, value, stack)
    prefix, first = _numbered(table.get(ALL_STATES), stack.before) or ("stage", 1)
    if name == ALL_STATES:
        return [*value[: -stack.before], *(f"{prefix}{at + first}" for at in range(len(stack.order)))]
    split = [split_number(one) if isinstance(one, str) else None for one in value or ()]
    if not value or not all(one is not None and one[0] == prefix for one in split):
        return value
    states = [int(one[1]) - first + 1 for one in split if one is not None]
    return [f"{prefix}{state + first - 1}" for state in _chosen(name, states, stack)]


def _chosen(name: str, value: Any, stack: Stack) -> Any:
    """Numbers of states, or one; those that count from the end stay."""
    several = isinstance(value, list)
    numbers = value if several else [value]
    if not numbers or not all(type(number) is int for number in numbers):
        return value
    first = 0 if STATES.fullmatch(name) else 1
    if any(number + first > stack.before for number in numbers):
        return value  # of something else
    made = [number if number < 0 else _state(number + first, stack) - first for number in numbers]
    moved = [state for _, state in sorted(set(zip(numbers, made, strict=True)))]
    if min(made) < min(0, *numbers) or moved != sorted(set(moved)):
        raise _TooFewError
    return made if several else made[0]


def _numbered(names: Any, count: int) -> tuple[str, int] | None:
    """What stands before the number in the names of the states behind so many layers, and the number of the first."""
    if not isinstance(names, list) or len(names) not in (count, count + 1):
        return None
    split = [split_number(one) if isinstance(one, str) else None for one in names[-count:]]
    found = {(one[0], int(one[1]) - at) for at, one in enumerate(split) if one is not None}
    if None in split or len(found) != 1:
        return None
    return found.pop()


def _state(state: int, stack: Stack) -> int:
    """The state of the changed stack that one of the source has become, both as numbers of layers before it."""
    own = [layer if not source else -1 for source, layer in stack.places()]
    if state == stack.before:
        return len(own)
    left = [layer for layer in own if 0 <= layer < state]
    if not left:
        return 0
    place = own.index(max(left))
    while place + 1 < len(own) and own[place + 1] == own[place]:
        place += 1
    return place + 1
