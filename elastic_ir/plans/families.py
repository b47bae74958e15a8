"""How a wanted depth is spread over the stages: published layouts first, then equal stages, then proportion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from elastic_ir.errors import PlanError
from elastic_ir.ir.structure import Stage, Structure


@dataclass(frozen=True)
class Family:
    """A published family, recognized by structure and not by name: layers in a free block, entries, block counts."""

    layers: int
    entries: bool
    layouts: tuple[tuple[int, ...], ...]


# ResNet: He et al. 2016, table 1 (18 to 152 layers); 26 = 2,3,4,3 of basic blocks as in the elastic ticket paper's
# ImageNet experiments; 26 = 2,2,2,2 of bottlenecks and 200 = 3,24,36,3 (He et al. 2016, "Identity Mappings").
# VGG: Simonyan & Zisserman 2015, table 1, configurations B, D and E.
FAMILIES = (
    Family(2, True, ((2, 2, 2, 2), (2, 3, 4, 3), (3, 4, 6, 3))),
    Family(3, True, ((2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3), (3, 24, 36, 3))),
    Family(1, True, ((2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4))),
)


def counts_for_depth(structure: Structure, depth: int) -> tuple[int, ...]:
    """Blocks for each stage so that the network has exactly that depth; PlanError names the nearest that it can."""
    stages = structure.stages
    if structure.depth is None:
        raise PlanError(
            "the depth does not show from names alone, so --to-depth cannot be used; "
            "give --to-stages or --to-units, or --arch SOURCE"
        )
    for rule in (_published(stages), _equal(stages, structure.depth, depth)):
        for counts in rule:
            if _depth(structure, counts) == depth:
                return counts
    found = _proportional(stages, depth - structure.depth)
    if found is not None:
        return found
    if depth == structure.depth:  # where units differ in layers, what it has already is still possible
        return tuple(len(stage) for stage in stages)
    raise PlanError(_refusal(structure, depth))


def _layers(stage: Stage) -> int | None:
    """Weight layers in a unit of a stage, where they are the same in all."""
    layers = {unit.layers for unit in stage.units}
    return layers.pop() if len(layers) == 1 else None


def _depth(structure: Structure, counts: Sequence[int]) -> int | None:
    assert structure.depth is not None
    depth = structure.depth
    for stage, count in zip(structure.stages, counts, strict=True):
        if count == len(stage):
            continue
        layers = _layers(stage)
        if layers is None or stage.period is None:
            return None
        depth += (count - len(stage)) * layers // stage.period
    return depth


def _published(stages: Sequence[Stage]) -> Iterator[tuple[int, ...]]:
    for family in FAMILIES:
        fits = len(stages) == len(family.layouts[0]) and all(
            stage.period == 1
            and (stage.entry is not None) == family.entries
            and all(block.layers == family.layers for block in stage.blocks)
            for stage in stages
        )
        if fits:
            yield from family.layouts


def _equal(stages: Sequence[Stage], now: int, wanted: int) -> Iterator[tuple[int, ...]]:
    layers = [_layers(stage) for stage in stages]
    if len({len(stage) for stage in stages}) != 1 or None in layers:
        return
    round_ = sum(count or 0 for count in layers)
    more, rest = divmod(wanted - now, round_)
    counts = tuple(len(stage) + more * (stage.period or 1) for stage in stages)
    if rest == 0 and all(_possible(stage, count) for stage, count in zip(stages, counts, strict=True)):
        yield counts


def _possible(stage: Stage, count: int) -> bool:
    return count >= max(1, stage.fixed)


def _proportional(stages: Sequence[Stage], more: int) -> tuple[int, ...] | None:
    """Largest remainder over the free units, ties to the earlier stage."""
    growing = [stage for stage in stages if stage.blocks]
    layers = {_layers(stage) for stage in growing}
    step = layers.pop() if len(layers) == 1 else None
    if step is None or step == 0 or more % step:
        return None
    now = [len(stage.units) for stage in growing]
    total = sum(now) + more // step
    if total < 0:
        return None
    shares = [divmod(units * total, sum(now)) for units in now]
    given = [whole for whole, _ in shares]
    order = sorted(range(len(now)), key=lambda index: (-shares[index][1], index))
    for index in order[: total - sum(given)]:
        given[index] += 1
    free = dict(zip(growing, given, strict=True))
    counts = tuple(stage.fixed + free.get(stage, 0) * (stage.period or 1) for stage in stages)
    return counts if all(_possible(s, c) for s, c in zip(stages, counts, strict=True)) else None


def _refusal(structure: Structure, depth: int) -> str:
    assert structure.depth is not None
    near = nearest_depths(structure, depth)
    text = f"depths are {near[0]} and {near[1]}" if len(near) == 2 else f"depth is {near[0]}"
    lone = len(structure.stages) == 1 and structure.stages[0].entry is None
    if lone:
        stage = structure.stages[0]
        return (
            f"depth {depth} is not possible: a unit of {stage.name!r} has {_layers(stage)} weight layers; the nearest "
            f"{text}. Count its {len(stage.units)} units instead: --to-units N"
        )
    return (
        f"depth {depth} is not possible for this family: the nearest {text}; "
        "or state how many blocks each stage gets with --to-stages"
    )


def nearest_depths(structure: Structure, depth: int) -> list[int]:
    """The nearest possible depth below and above a wanted one, as far as there are any."""
    assert structure.depth is not None
    found = {structure.depth}
    for counts in _published(structure.stages):
        reached = _depth(structure, counts)
        if reached is not None:
            found.add(reached)
    around = max(depth, 1)  # also where a depth below any network's is asked for
    for candidate in range(max(1, around - 200), around + 201):
        equal = any(True for _ in _equal(structure.stages, structure.depth, candidate))
        if equal or _proportional(structure.stages, candidate - structure.depth) is not None:
            found.add(candidate)
    below = [value for value in found if value < depth]
    above = [value for value in found if value > depth]
    return ([max(below)] if below else []) + ([min(above)] if above else [])
