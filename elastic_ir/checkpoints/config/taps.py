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
from collections.abc import Iterator, Sequence
from typing import Any

from elastic_ir.checkpoints.config.depth import reindexed
from elastic_ir.checkpoints.config.tables import Entry, Reader
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import PlanError
from elastic_ir.ir.counts import Count
from elastic_ir.ir.numbering import COUNT, STATES, TAPPED, split_number
from elastic_ir.plans.keep_beside import is_kept

_DEPTHS = re.compile("depths|stage_")  #: in the names of lists with an entry for each stage
NAMES = "stage_names"  #: of all states in turn
_FEATURES = "out_features"  #: names of some


def taps_followed(
    config: dict[str, Any], reader: Reader, keep: Sequence[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """A configuration whose features are taken at their layers' new places, and the entries kept as ``keep`` says.

    ``reader`` reads the source's configuration, and ``config`` is what has become of it. Raises PlanError where two
    features would be the same, as nothing is left between them.
    """
    made, kept = copy.deepcopy(config), list[str]()
    for entry, stack in _entries(reader):
        before = reader.table(entry.holder)[entry.name]
        try:
            value = _followed(entry, before, reader, stack)
        except PlanError:
            if not is_kept(keep, reader.file, str(entry)):
                raise
            value = None
        if value == before:
            continue
        if is_kept(keep, reader.file, str(entry)):
            kept.append(str(entry))
        else:
            reader.table(entry.holder, made)[entry.name] = value
    return made, kept


def restated(
    config: dict[str, Any], stacks: Sequence[Stack], names: Sequence[str], counts: Sequence[Count] = ()
) -> dict[str, Any]:
    """The configuration of the changed stacks, features included; PlanError where it cannot state the change."""
    made, _ = reindexed(config, stacks, names, counts=counts)
    return taps_followed(made, Reader(config, stacks, names))[0]


def _entries(reader: Reader) -> Iterator[tuple[Entry, Stack]]:
    """The entries that choose or name states of a stack that has changed."""
    for stack in reader.stacks:
        for holder in reader.holders_of(stack) if stack.changed else ():
            table = reader.table(holder)
            if not any(COUNT.fullmatch(name) and value == stack.before for name, value in table.items()):
                continue
            staged = any(
                isinstance(value, list)
                and len(value) == stack.before
                and _DEPTHS.search(name)
                and name != NAMES
                for name, value in table.items()
            )
            if staged or (NAMES in table and _numbered(table[NAMES], stack.before) is None):
                continue  # of a network in stages, whose states lie between these
            yield from (
                (Entry(holder, name), stack) for name in table if name == NAMES or TAPPED.fullmatch(name)
            )
            part = holder[-1].rpartition("_")[0] if holder else ""  # a tower's, in the table around its own
            for name in reader.table(holder[:-1]) if part else ():
                if name.startswith(f"{part}_") and TAPPED.fullmatch(name):
                    yield Entry(holder[:-1], name), stack


def _followed(entry: Entry, value: Any, reader: Reader, stack: Stack) -> Any:
    """What an entry becomes; PlanError where too little is left."""
    if entry.name not in (NAMES, _FEATURES):
        return _chosen(entry, value, stack, reader.file)
    names = reader.table(entry.holder).get(NAMES)
    prefix, first = _numbered(names, stack.before) or ("stage", 1)
    if entry.name == NAMES:
        return [*value[: -stack.before], *(f"{prefix}{at + first}" for at in range(len(stack.order)))]
    split = [split_number(one) if isinstance(one, str) else None for one in value or ()]
    if not value or not all(one is not None and one[0] == prefix for one in split):
        return value
    states = [int(one[1]) - first + 1 for one in split if one is not None]
    made = _chosen(entry, states, stack, reader.file, value)
    return [f"{prefix}{state + first - 1}" for state in made]


def _chosen(entry: Entry, value: Any, stack: Stack, file: str, stated: Any = None) -> Any:
    """Numbers of states, or one, which the file has as ``stated``; those that count from the end stay."""
    several = isinstance(value, list)
    numbers = value if several else [value]
    if not numbers or not all(type(number) is int for number in numbers):
        return value
    first = 0 if STATES.fullmatch(entry.name) else 1
    if any(number + first > stack.before for number in numbers):
        return value  # of something else
    made = [number if number < 0 else _state(number + first, stack) - first for number in numbers]
    moved = [state for _, state in sorted(set(zip(numbers, made, strict=True)))]
    if min(made) < min(0, *numbers) or moved != sorted(set(moved)):
        told = value if stated is None else stated
        raise PlanError(
            f"{file}'s {entry} = {told} takes features between layers of {stack.label} of which too few are left; "
            f"another plan may fit, and --keep-beside {entry} (keep_beside=) keeps it as it is"
        )
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
