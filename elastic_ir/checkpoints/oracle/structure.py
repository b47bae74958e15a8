"""What a checkpoint's names leave open of its structure, and the modules of its network show. No torch.

Swin's plain and shifted windows have the same names and shapes: how many blocks make a unit is asked once a stage is to
change of which it is not known. Which of several lists advance together is asked where there are such lists.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from elastic_ir.checkpoints.config.restated import restated
from elastic_ir.checkpoints.oracle.comparison import (
    growing_together,
    indexed_by_layer,
    kinds_of_layers,
    layers_in_places,
    lists_counted,
)
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.discovery.numbered_lists import numbered_lists
from elastic_ir.discovery.signatures import shortest_period
from elastic_ir.errors import PlanError
from elastic_ir.formats.model_folder import CheckpointSource
from elastic_ir.ir.counts import Count
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Stage
from elastic_ir.plans.beside import Surroundings
from elastic_ir.plans.resequence import resequence
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.gathered import ByLayer


def learn_units(graph: Graph) -> None:
    """State the units of a checkpoint's stages that names left open, where its network can be built and shows them."""
    source = graph.origin
    open_stages = [stage for stage in graph.stages if stage.period is None]
    if not isinstance(source, CheckpointSource) or not open_stages:
        return
    stacks = {stage.name: Stack.of(stage.containers[0]) for stage in open_stages}
    kinds = kinds_of_layers(source.config, source.shapes, list(stacks.values()))
    free = {
        stage.name: held[stage.pinned : len(held) - (stage.exit is not None)]
        for stage in open_stages
        if (held := kinds.get(stacks[stage.name].label))
    }
    Rewriter(graph).state_units({name: _unit(held) for name, held in free.items()})


def learn_lists(graph: Graph) -> None:
    """State which lists of a checkpoint advance together, where names leave it open and its network shows it.

    A forward may step through several lists at once (``zip(self.attentions, self.norms)``); a count in the
    configuration then makes all of them longer.
    """
    source, structure = graph.origin, graph.structure_or_none
    if not isinstance(source, CheckpointSource) or structure is None:
        return
    beside = Surroundings(graph.weights).suspects(structure.containers)
    if not beside:
        return
    stacks = [stack for stack in Stack.all_of(graph) if stack.series.head in beside]
    groups: list[dict[str, None]] = []
    grown = growing_together(source.config, source.shapes, stacks, beside)
    for head, others in grown.items():
        mine = dict.fromkeys((head, *others))
        for group in [group for group in groups if not mine.keys().isdisjoint(group)]:
            groups.remove(group)
            mine = {**group, **mine}
        groups.append(mine)
    apart = frozenset(
        (head, one) for head, others in grown.items() for one in beside[head] if one not in others
    )
    together = tuple(tuple(group) for group in groups if len(group) > 1)
    graph.info = replace(graph.info, together=together, apart=apart)
    if together:
        graph._structure = None


def fitting(graph: Graph, plan: Sequence[Sequence[int]]) -> dict[str, list[frozenset[int]]]:
    """For stages to which a plan gives layers of kinds that the network does not build there: what fits in each place.

    By the stages' names, where the network of no configuration takes the plan.
    """
    source, stages = graph.origin, graph.stages
    if not isinstance(source, CheckpointSource) or any(stack.changed for stack in Stack.all_of(graph)):
        return {}
    twin = graph.copy()
    try:
        with Rewriter(twin) as rewriter:
            resequence(rewriter, twin, tuple(map(tuple, plan)))
    except PlanError:  # which is told when the plan is carried out
        return {}
    stacks, counted = Stack.all_of(twin), source.counted or ()
    config = source.config
    with contextlib.suppress(PlanError):  # whatever layers would be where
        config = restated(source.config, stacks, list(source.shapes), counted)
    shapes = {name: weight.shape for name, weight in twin.weights.items()}
    found = layers_in_places((source.config, source.shapes), (config, shapes), stacks)
    return {
        stage.name: places
        for stage, part in zip(stages, plan, strict=True)
        if (places := _places_of(stage, len(part), found))
        and sum(one.container is stage.container for one in stages) == 1
    }


def _places_of(stage: Stage, count: int, found: Mapping[str, list[list[int]]]) -> list[frozenset[int]]:
    """Which blocks of a stage fit in each of so many places, in all lists of its slots; empty where it is unclear.

    ``found`` has the same of the lists' members.
    """
    fits = [frozenset(range(len(stage)))] * count
    for box in stage.containers:
        places = found.get(Stack.of(box).label, [])
        slots = [one for block in stage.all_blocks for one in block.children if one in box.children]
        own = [box.source_index(slot.origin) for slot in slots]
        row = range(own[0], own[0] + len(stage)) if own else range(0)
        wanted = places[row.start : row.start + count]
        if own != list(row) or len(wanted) != count:
            return []
        fits = [one & {at - row.start for at in some} for one, some in zip(fits, wanted, strict=True)]
    return fits


def by_layer(graph: Graph) -> Mapping[str, ByLayer]:
    """How tensors beside a checkpoint's stacks are indexed by their layers, as its network shows it; asked once."""
    source = graph.origin
    if not isinstance(source, CheckpointSource):
        return {}
    if source.indexed is None:
        stacks = [replace(stack, order=tuple(range(stack.before)), taken=()) for stack in Stack.all_of(graph)]
        source.indexed = indexed_by_layer(source.config, source.shapes, stacks)
    return source.indexed


def counts(graph: Graph) -> tuple[Count, ...]:
    """What the entries of a checkpoint's configuration count, as its network shows it; asked once.

    Only what counts lists that the checkpoint has under the names of the network.
    """
    source = graph.origin
    if not isinstance(source, CheckpointSource):
        return ()
    if source.counted is None:
        held = {one.head: len(one.slots) for one in numbered_lists(source.shapes, least=1)}
        source.counted = tuple(
            count
            for count in lists_counted(source.config, source.shapes)
            if all(held.get(one.head) == one.members for one in count.lists)
        )
    return source.counted


def _unit(kinds: Sequence[int]) -> int:
    """The unit of a stage: the shortest period of its layers' kinds, or all of them where none is seen twice."""
    period = shortest_period(kinds)
    return period if period > 1 or len(set(kinds)) < 2 else len(kinds)
