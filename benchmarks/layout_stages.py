"""Stages as sets of weights: those that a network's code has against those that were discovered.

A block is the weights that lie in it, whatever the words in which a structure is written down. What is free and how
many blocks make a unit decide; which blocks are shown beside the free ones is told, and does not. Units of two blocks
each and blocks of two slots each are the same: what is cloned and deleted is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from benchmarks.layout_networks.entry import Network, Stage
    from elastic_ir import Graph

Names: TypeAlias = frozenset[str]


@dataclass(frozen=True)
class Shown:
    """A stage in terms of weights."""

    name: str
    blocks: tuple[Names, ...]
    free: tuple[bool, ...]  #: for each block, whether it may be cloned and deleted
    units: tuple[
        int, ...
    ] = ()  #: lengths of a unit that are right, or the one that was found; none if unknown
    optional: bool = False
    grows: int = 1  #: blocks more for each step of the network's own depth

    @property
    def key(self) -> frozenset[Names]:
        """Its free blocks: what it is known by."""
        return frozenset(block for block, free in zip(self.blocks, self.free, strict=True) if free)

    def by_units(self) -> set[frozenset[Names]]:
        """What is cloned and deleted as a whole, for each length of a unit that is right."""
        free = [block for block, free in zip(self.blocks, self.free, strict=True) if free]
        return {
            frozenset(frozenset().union(*free[at : at + step]) for at in range(0, len(free), step))
            for step in self.units
            if len(free) % step == 0
        }

    @property
    def kept(self) -> frozenset[Names]:
        """Its other blocks."""
        return frozenset(self.blocks) - self.key


@dataclass(frozen=True)
class Comparison:
    """What is missing and what is too much, and the stages that agree."""

    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    kept_differ: list[str] = field(default_factory=list)  #: stages of which other blocks are shown as kept
    pairs: dict[str, tuple[Shown, Shown]] = field(default_factory=dict)  #: by the found stage's name

    @property
    def right(self) -> bool:
        return not self.missing and not self.extra


def under(paths: Iterable[str], names: Iterable[str]) -> Names:
    """The weights that lie under some paths, or are those."""
    chosen = tuple(paths)
    return frozenset(
        name for name in names if any(name == path or name.startswith(f"{path}.") for path in chosen)
    )


def expected_stages(stated: Sequence[Stage], names: Sequence[str]) -> list[Shown]:
    """The table's stages; those without a free block are left out."""
    stages = []
    for stage in stated:
        kept = {place % len(stage.blocks) for place in stage.pinned}
        blocks = tuple(under(block, names) for block in stage.blocks)
        free = tuple(place not in kept for place in range(len(blocks)))
        units = () if stage.optional else (stage.unit, *stage.or_units)
        if any(free):
            stages.append(Shown(stage.name, blocks, free, units, stage.optional, stage.grows * stage.unit))
    return stages


def found_stages(graph: Graph, names: Sequence[str]) -> list[Shown]:
    """What was discovered: a block's slots say which weights it holds, or its nodes where those name none."""
    stages = []
    for stage in graph.stages:
        blocks = []
        for block in stage.all_blocks:
            held = under((child.origin for child in block.children), names)
            used = {name for node in block.nodes for name in node.weight_names()}
            blocks.append(held or frozenset(used & set(names)))
        kept = {id(block) for block in (stage.entry, stage.exit) if block is not None}
        free = tuple(id(block) not in kept for block in stage.all_blocks)
        units = () if stage.period is None else (stage.period,)
        if any(free):
            stages.append(Shown(stage.name, tuple(blocks), free, units))
    return stages


def compare(expected: Sequence[Shown], found: Sequence[Shown]) -> Comparison:
    """Whether both say the same of what is free, and of units where both know them."""
    have = {stage.key: stage for stage in found}
    for stage in expected:
        same = next((one for one in found if stage.by_units() & one.by_units()), None)
        if same is not None:
            have.setdefault(stage.key, same)
    known = [have[stage.key] for stage in expected if stage.key in have]
    result = Comparison(extra=[stage.name for stage in found if stage not in known])
    for stage in expected:
        other = have.get(stage.key)
        if other is None:
            if not stage.optional:
                result.missing.append(stage.name)
        elif stage.units and other.units and not stage.by_units() & other.by_units():
            result.missing.append(f"{stage.name} by {stage.units[0]}")
            result.extra.append(f"{other.name} by {other.units[0]}")
        else:
            result.pairs[other.name] = (stage, other)
            if stage.kept != other.kept:
                result.kept_differ.append(stage.name)
    return result


def best(network: Network, names: Sequence[str], found: Sequence[Shown]) -> Comparison:
    """The comparison with the table's stages, or with its other answer where that one agrees."""
    first = compare(expected_stages(network.stages, names), found)
    if first.right or not network.or_stages:
        return first
    second = compare(expected_stages(network.or_stages, names), found)
    return second if second.right else first


def table_faults(network: Network, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Blocks of the table without weights, overlaps, and free units of other shapes than their like."""
    faults: list[str] = []
    seen: dict[str, tuple[str, ...]] = {}
    for stage in network.stages:
        sizes = []
        for block in stage.blocks:
            held = under(block, shapes)
            if not held:
                faults.append(f"{block} holds no weight")
            faults += [f"{name} is in two blocks" for name in held if seen.setdefault(name, block) != block]
            sizes.append(sorted(shapes[name] for name in held))
        kept = {place % len(stage.blocks) for place in stage.pinned}
        free = [size for place, size in enumerate(sizes) if place not in kept]
        units = [free[i : i + stage.unit] for i in range(0, len(free), stage.unit)]
        if len(free) % stage.unit:
            faults.append(f"{stage.name}: {len(free)} free blocks are no whole units of {stage.unit}")
        elif "mixed kinds" not in network.kinds and any(other != units[0] for other in units[1:]):
            faults.append(f"{stage.name}: free units of different shapes")
    return faults


def second_names(network: Network, held: Mapping[str, object]) -> list[str]:
    """Weights of the table's blocks that have another name which the table does not know of."""
    places = {
        name: block for stage in network.stages for block in stage.blocks for name in under(block, held)
    }
    owners: dict[int, list[str]] = {}
    for name, tensor in held.items():
        owners.setdefault(id(tensor), []).append(name)
    faults = []
    for group in owners.values():
        blocks = {places[name] for name in group if name in places}
        if len(blocks) == 1 and not places.keys() >= set(group):  # what several blocks have is shared by all
            faults.append(f"{sorted(group)[:3]} are one tensor")
    return faults
