"""Plans: for each stage the list of source block indices in target order, and the rules that make them.

Pure arithmetic over block counts, after section 3 of the Elastic Lottery Ticket Hypothesis (Chen et al., 2021);
nothing here knows a graph. Indices count the blocks of a stage from 0, the entry included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from elastic_ir.choices import Drop as Drop
from elastic_ir.choices import Order as Order
from elastic_ir.choices import check_choice, either, words_of
from elastic_ir.errors import PlanError
from elastic_ir.ir.numbering import DIGITS, number_of
from elastic_ir.ir.structure import Stage
from elastic_ir.safety.limits import check_blocks

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Graph

StagePlan: TypeAlias = tuple[int, ...]
Plan: TypeAlias = tuple[StagePlan, ...]

#: What a network that layers are taken from may be called.
SOURCE_NAME = re.compile(r"[A-Za-z_][\w.-]*")

_SINGLE = " (unit=1, on the command line --unit 1, allows single blocks)"


@dataclass(frozen=True)
class Layer:
    """A block of another network in a plan, written ``b/6``: that network's name, and the block's number there."""

    source: str
    index: int

    def __str__(self) -> str:
        return f"{self.source}/{self.index}"


#: One stage of a plan as it is written: source blocks in target order, or the paper's map from source to targets.
StageNotation: TypeAlias = "list[int | Layer] | dict[int, list[int]]"
#: A stage's plan as a caller gives it: source blocks in target order, or the paper's source: targets.
StageGiven: TypeAlias = "Sequence[int | Layer] | dict[int, list[int]]"
#: A plan as a caller gives it: the command line's text, one stage's list, a plan for each stage, or for those named.
PlanGiven: TypeAlias = "str | Sequence[int | Layer] | Sequence[StageGiven] | Mapping[str, StageGiven]"


@dataclass(frozen=True)
class StageShape:
    """What a plan needs to know of a stage: its blocks, how many are pinned at its ends, how many make a unit."""

    name: str
    blocks: int
    pinned: int
    period: int
    pinned_last: int = 0
    alike: bool = (
        False  #: the blocks of a unit differ only in what is made for them outside; a plan may part them
    )

    @staticmethod
    def of(stage: Stage) -> StageShape:
        """StructureError where names alone do not show the unit."""
        return StageShape(
            stage.name,
            len(stage),
            stage.pinned,
            len(stage.units and stage.units[0].blocks) or 1,
            int(stage.exit is not None),
            stage.alike,
        )

    @staticmethod
    def in_graph(graph: Graph, stage: Stage) -> StageShape:
        """The same, after the graph's source was asked for a unit that names leave open."""
        if stage.period is None and graph.origin is not None and graph.origin.learn_units is not None:
            graph.origin.learn_units(graph)
        return StageShape.of(stage)

    @property
    def units(self) -> int:
        return (self.blocks - self.fixed) // self.period

    @property
    def fixed(self) -> int:
        """How many blocks are kept as they are, at both ends."""
        return self.pinned + self.pinned_last

    def expand(self, units: Sequence[int]) -> StagePlan:
        """A list of free-unit indices as block indices, between the pinned blocks."""
        blocks = list(range(self.pinned))
        for unit in units:
            blocks += range(self.pinned + unit * self.period, self.pinned + (unit + 1) * self.period)
        return (*blocks, *range(self.blocks - self.pinned_last, self.blocks))


def grow(
    stage: StageShape, blocks: int, order: str = "append", replicate: Sequence[int] | None = None
) -> StagePlan:
    """The plan that stretches a stage to a number of blocks.

    ``replicate`` limits the copying to the blocks of those indices; the others occur once. Raises PlanError.
    """
    check_order(order)
    check_blocks(blocks, stage.blocks)
    if blocks == stage.blocks:
        return tuple(range(blocks))
    wanted = _units_wanted(stage, blocks)
    count = stage.units
    if count == 0:
        raise PlanError(f"stage {stage.name!r} has no free block to clone: its one block is the entry")
    chosen = list(range(count)) if replicate is None else _units_named(stage, replicate)
    rounds, extra = divmod(wanted - (count - len(chosen)), len(chosen))
    times = [1] * count
    for place, unit in enumerate(chosen):
        times[unit] = rounds + (place < extra)
    if order == "interpolate":
        return stage.expand([unit for unit in range(count) for _ in range(times[unit])])
    if replicate is None:
        return stage.expand(
            [unit for turn in range(max(times)) for unit in range(count) if times[unit] > turn]
        )
    copies = [unit for turn in range(1, max(times)) for unit in chosen if times[unit] > turn]
    return stage.expand([*range(count), *copies])


def shrink(stage: StageShape, blocks: int, drop: str | Sequence[int] = "tail") -> StagePlan:
    """The plan that squeezes a stage to a number of blocks; ``drop`` is "tail", "even" or block indices."""
    check_drop(drop)
    if not isinstance(drop, str):
        return drop_exactly(stage, drop, blocks)
    wanted, count = _units_wanted(stage, blocks), stage.units
    if drop == "tail" or wanted == 0:
        return stage.expand(range(wanted))
    step, extra = divmod(count, wanted)
    return stage.expand([index * step + min(index, extra) for index in range(wanted)])


def check_order(order: str) -> None:
    """PlanError unless ``order`` is a known word."""
    check_choice("order", order, Order)


def check_drop(drop: str | Sequence[int]) -> None:
    """PlanError unless ``drop`` is a known word or a list."""
    if isinstance(drop, str) and drop not in words_of(Drop):
        raise PlanError(f"drop is {either([*words_of(Drop), 'a list of blocks'])}, not {drop!r}")


def drop_exactly(stage: StageShape, drop: Sequence[int], blocks: int | None = None) -> StagePlan:
    """The plan that deletes exactly the blocks of those indices."""
    for index in drop:
        _check_free(stage, index, "drop")
    kept = tuple(index for index in range(stage.blocks) if index not in set(drop))
    if blocks is not None and len(kept) != blocks:
        raise PlanError(
            f"stage {stage.name!r}: dropping blocks {list(drop)} leaves {len(kept)} blocks, the target has {blocks}"
        )
    return check_plan(stage, kept)


def check_plan(stage: StageShape, plan: Sequence[int]) -> StagePlan:
    """A stage's plan if it may be carried out: known indices, the entry first and once, whole units."""
    for index in plan:
        if not 0 <= index < stage.blocks:
            raise PlanError(
                f"stage {stage.name!r} has no block {index}: its blocks are 0 to {stage.blocks - 1}"
            )
    if stage.pinned and (not plan or plan[0] != 0):
        raise PlanError(f"stage {stage.name!r}: the plan drops block 0, its entry, which has to stay first")
    if stage.pinned and 0 in plan[1:]:
        raise PlanError(
            f"stage {stage.name!r}: the plan clones block 0, the entry, which has to stay the only one"
        )
    last = stage.blocks - 1
    if stage.pinned_last and (not plan or plan[-1] != last):
        raise PlanError(
            f"stage {stage.name!r}: the plan does not end with block {last}, which lacks what the others have and has "
            "to stay last"
        )
    if stage.pinned_last and last in plan[:-1]:
        raise PlanError(
            f"stage {stage.name!r}: the plan clones block {last}, which lacks what the others have and has to stay last"
        )
    if not plan:
        raise PlanError(f"stage {stage.name!r} cannot have 0 blocks: at least one has to stay")
    if not stage.alike and not keeps_units(stage, plan):
        raise PlanError(
            f"stage {stage.name!r}: {stage.period} blocks make a unit; a plan keeps them together and in order"
            f"{_SINGLE}"
        )
    return tuple(plan)


def keeps_units(stage: StageShape, plan: Sequence[int]) -> bool:
    """Whether a plan has the blocks of each unit together and in order."""
    free = plan[stage.pinned : len(plan) - stage.pinned_last]
    return len(free) % stage.period == 0 and all(
        (index - stage.pinned) % stage.period == place % stage.period
        and (place % stage.period == 0 or index == free[place - 1] + 1)
        for place, index in enumerate(free)
    )


def _units_wanted(stage: StageShape, blocks: int) -> int:
    if blocks < max(stage.fixed, 1):
        which = "both of its ends have" if stage.fixed > 1 else "at least one, its first, has"
        raise PlanError(f"stage {stage.name!r} cannot have {blocks} blocks: {which} to stay")
    units, rest = divmod(blocks - stage.fixed, stage.period)
    if rest:
        below = stage.fixed + units * stage.period
        fitting = [str(count) for count in (below, below + stage.period) if count]
        raise PlanError(
            f"stage {stage.name!r} cannot have {blocks} blocks: {stage.period} blocks make a unit; "
            f"{' or '.join(fitting)} would do{_SINGLE}"
        )
    return units


def _check_free(stage: StageShape, index: int, what: str) -> None:
    if not 0 <= index < stage.blocks:
        raise PlanError(
            f"{what}: stage {stage.name!r} has no block {index}: its blocks are 0 to {stage.blocks - 1}"
        )
    if index < stage.pinned:
        raise PlanError(
            f"{what}: block {index} of stage {stage.name!r} is its entry, which is never cloned or dropped"
        )
    if index >= stage.blocks - stage.pinned_last:
        raise PlanError(
            f"{what}: block {index} of stage {stage.name!r} is its last, which lacks what the others have, and "
            "is never cloned or dropped"
        )


def _units_named(stage: StageShape, blocks: Sequence[int]) -> list[int]:
    """The free units that hold the named blocks, in order; a unit counts if all its blocks are named."""
    for index in blocks:
        _check_free(stage, index, "replicate")
    if not blocks:
        raise PlanError("replicate names no block")
    named = set(blocks)
    units = sorted({(index - stage.pinned) // stage.period for index in blocks})
    for unit in units:
        whole = range(stage.pinned + unit * stage.period, stage.pinned + (unit + 1) * stage.period)
        if not named.issuperset(whole):
            raise PlanError(
                f"replicate: stage {stage.name!r} clones whole units of {stage.period} blocks; "
                f"name all of {list(whole)}{_SINGLE}"
            )
    return units


# -- the notations of a plan --------------------------------------------------------------------------------------


def parse_plan(text: str) -> list[StageNotation] | dict[str, StageNotation]:
    """Read ``0,1,1|0,1`` (a list per stage; ranges ``0-3`` allowed) or the paper's ``0:0;1:1,2`` (source: targets).

    ``b/6-21`` are blocks of another network. With names, ``encoder.block=0-3|decoder.block=0,1``, the stages that are
    not named stay as they are. Returns for each stage a list, or a map from source to target indices, in a table by
    stage where they are named. Raises PlanError.
    """
    parts = [part.partition("=") for part in text.split("|")]
    if not any(equals for _, equals, _ in parts):
        return [_parse_stage(part) for part, _, _ in parts]
    named: dict[str, StageNotation] = {}
    for head, equals, rest in parts:
        name = head.strip()
        if not equals or not name:
            raise PlanError(
                f"{head.strip()!r} in {text!r} names no stage; name all of them, NAME=0-3, or none"
            )
        if name in named:
            raise PlanError(f"the stage {name!r} is planned twice in {text!r}")
        named[name] = _parse_stage(rest)
    return named


def _parse_stage(text: str) -> StageNotation:
    return _parse_mapping(text) if ":" in text else parse_layers(text)


def parse_layers(text: str) -> list[int | Layer]:
    """``0-2,b/1,b/4-5`` as numbers, and those of other networks as :class:`Layer`."""
    found: list[int | Layer] = []
    if "/" not in text:
        return [*parse_indices(text)]
    for item in text.split(","):
        head, slash, numbers = item.rpartition("/")
        name = head.strip()
        if not slash:
            found += parse_indices(item)
        elif SOURCE_NAME.fullmatch(name):
            found += [Layer(name, index) for index in parse_indices(numbers)]
        else:
            raise PlanError(
                f"{item.strip()!r}: {name!r} is not a name of a network; write for example b/6-21"
            )
    return found


def parse_indices(text: str) -> list[int]:
    """``0,1,4-6`` as ``[0, 1, 4, 5, 6]``; PlanError names what is not a number."""
    found: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(rf"\s*({DIGITS})\s*(?:-\s*({DIGITS})\s*)?", item)
        if match is None:
            raise PlanError(
                f"{item.strip()!r} in {text!r} is not a block index; write for example 0,1,1 or 0-3,2-5, "
                "and | between the stages"
            )
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first:
            raise PlanError(f"the range {item.strip()!r} runs backwards")
        check_blocks(len(found) + last - first + 1)
        found += range(first, last + 1)
    return found


def _parse_mapping(text: str) -> dict[int, list[int]]:
    mapping: dict[int, list[int]] = {}
    for item in text.split(";"):
        if not item.strip():
            continue
        source, colon, targets = item.partition(":")
        number = number_of(source.strip())
        if not colon or number is None:
            raise PlanError(
                f"{item.strip()!r} in {text!r} is not a mapping; write source:targets, for example 1:1,2"
            )
        if number in mapping:
            raise PlanError(f"block {number} is mapped twice in {text!r}")
        mapping[number] = parse_indices(targets)
    return mapping


def plan_of_mapping(mapping: dict[int, list[int]], name: str) -> list[int]:
    """The paper's mapping (source: targets) as a list of sources in target order."""
    source_of: dict[int, int] = {}
    for source, targets in mapping.items():
        for target in targets:
            if target in source_of:
                raise PlanError(f"stage {name!r}: target block {target} is given two sources")
            source_of[target] = source
    for target in range(len(source_of)):
        if target not in source_of:
            raise PlanError(f"stage {name!r}: the mapping leaves target block {target} without a source")
    return [source_of[target] for target in range(len(source_of))]
