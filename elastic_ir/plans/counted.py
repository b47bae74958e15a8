"""Targets by an entry of the configuration: all lists that it counts change by what it does.

One entry may count the layers of many lists (a U-Net's ``layers_per_block``), and then states nothing but that all of
them change alike. So it is named in place of a stage, ``--to-stages layers_per_block=3``; where one entry alone counts
several lists, ``--to-units 3`` means it. Which these are, and which of their layers can be copied, the source's network
shows (:attr:`elastic_ir.ir.info.Origin.counts`). No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from elastic_ir.discovery import discover, reader_of
from elastic_ir.errors import PlanError
from elastic_ir.formats.model_folder import CheckpointSource
from elastic_ir.ir.counts import Count, CountedList, together
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Stage, Structure
from elastic_ir.plans.target import Target, parse_stages
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.weights import Weights

_SHOWN = 4  #: entries and lists that a refusal names


def at_counted_lists(graph: Graph, target: Target) -> dict[str, int] | None:
    """Have a graph's stages be the lists that the entries named by a target count, and return the stages' new counts.

    None, and nothing happens, where the target names no entry. Raises PlanError where of one of the lists no layer can
    be copied, and where entries and stages are named together.
    """
    wanted = _wanted(graph, target)
    if not wanted:
        return None
    lists: dict[str, tuple[CountedList, int]] = {}
    for count, value in wanted:
        for one in count.lists:
            if one.head in lists:
                raise PlanError(f"several of the entries that are named count {one.name}; name one of them")
            if value != count.value and not one.free:
                raise PlanError(
                    f"{count.name} counts {_listed([each.name for each in count.lists])}, and of {one.name} "
                    f"({_number(one.members)}) none can be copied or left out: {one.why}"
                )
            lists[one.head] = one, value - count.value
    moved = [one for one, step in lists.values() if step]
    if not moved:
        raise PlanError(f"{_listed([f'{count.name} is {value}' for count, value in wanted])} already")
    for one in moved:
        outer = next((other for other in moved if other is not one and one.head.startswith(other.head)), None)
        if outer is not None:
            raise PlanError(
                f"{one.name} lies in the layers of {outer.name}, so both cannot change at once; change the outer ones, "
                "write them, and change the inner ones of the result"
            )
    structure = _structure(graph, moved)
    Rewriter(graph, structure)
    return {stage.name: len(stage) + lists[stage.container.series.head][1] for stage in structure.stages}


def _wanted(graph: Graph, target: Target) -> list[tuple[Count, int]]:
    """The entries that a target names, with what each becomes."""
    source, ask = graph.origin, graph.origin.counts
    if ask is None or not isinstance(source, CheckpointSource):
        return []
    structure = graph.structure_or_none
    stages = {stage.name for stage in structure.stages} if structure is not None else set()
    if target.to_units is not None and len(stages) != 1:
        several = [count for count in ask(graph) if len(together(count.lists)) > 1]
        whole = [count for count in several if not _is_part(count, several)]
        if len(whole) > 1:
            known = ", ".join(f"{count.name}={count.value}" for count in whole[:_SHOWN])
            raise PlanError(
                "to_units is for networks whose layers one number counts; this one has several, of which each "
                f"may be named in place of a stage: {known}: use to_stages"
            )
        return [(count, target.to_units) for count in whole]
    counts = target.to_stages
    if isinstance(counts, str):
        counts = parse_stages(counts)
    if not isinstance(counts, Mapping):
        return []
    unknown = [name for name in counts if name not in stages]
    if not any(name.partition(".")[0] in source.config for name in unknown):
        return []
    found = {count.name: count for count in ask(graph)}
    entries = [name for name in unknown if name in found]
    if not entries:
        return []
    if len(entries) < len(counts):
        other = next(name for name in counts if name not in entries)
        raise PlanError(
            f"{entries[0]} is an entry of the configuration and {other} is none; name either alone"
        )
    return [(found[name], counts[name]) for name in entries]


def _is_part(count: Count, others: Sequence[Count]) -> bool:
    """Whether an entry counts a part of what another one does: one member of a list in a number's place."""
    mine = {one.head for one in count.lists}
    return any(mine < {one.head for one in other.lists} for other in others)


def _structure(graph: Graph, lists: Sequence[CountedList]) -> Structure:
    """The structure of some lists, those that are stepped through together as one stage."""
    groups = together(lists)
    joined = tuple(tuple(one.head for one in group) for group in groups if len(group) > 1)
    plain = Graph(graph.name, replace(graph.info, together=joined))
    plain.weights = Weights(graph.weights)
    by_lead = {group[0].head: group for group in groups}
    reader = reader_of(plain)
    boxes = [box for part in reader.tree.walk() for box, _ in reader.containers(part)]
    within = {(box.path, box.prefix) for box in boxes if box.series.head in by_lead}
    structure = discover(plain, within, whole=True)
    shown = {stage.container.series.head for stage in structure.stages}
    lost = next((group[0] for head, group in by_lead.items() if head not in shown), None)
    if lost is not None:
        raise PlanError(f"{lost.name} holds no layers that can be told apart by their names")
    for stage in structure.stages:
        _pin(stage, by_lead[stage.container.series.head])
    return structure


def _pin(stage: Stage, lists: Sequence[CountedList]) -> None:
    """Keep the first and the last block of a stage apart where a copy of them would not fit."""
    free = set.intersection(*(set(one.free) for one in lists))
    first, last = min(free, default=0), max(free, default=-1)
    count = len(stage.blocks)
    if count != lists[0].members or free != set(range(first, last + 1)) or first > 1 or last < count - 2:
        names = _listed([one.name for one in lists])
        raise PlanError(
            f"of the layers of {names} only {sorted(free) or 'none'} can be copied, and a stage has at most one at "
            "each end that cannot"
        )
    if first:
        stage.entry = stage.blocks.pop(0)
    if last < count - 1:
        stage.exit = stage.blocks.pop()
    stage.period = 1  # one layer more is what the network has with a number that is one more


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _number(count: int) -> str:
    return f"{count} layer{'s' if count != 1 else ''}"
