"""Plans by the kinds of layers: where a network has layers of several kinds by their numbers, each kind in its places.

DeepSeek-V3's first three layers are dense and all others hold experts, whatever their number: a copy of a dense one
behind the last would stand where the network builds experts. So the layers of each kind are spread over the places that
the source's network has for them (:attr:`elastic_ir.ir.info.Origin.fitting`), as those of a stage are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from elastic_ir.ir.graph import Graph
from elastic_ir.plans.plan import Plan, StagePlan, StageShape

#: The plan that brings a stage of some shape to a number of blocks.
Spread = Callable[[StageShape, int], StagePlan]


def by_kind(graph: Graph, plan: Plan, spread: Spread) -> Plan:
    """A plan with each layer in a place of its kind; as it is where kinds and places do not agree."""
    mixed = [
        stage.name
        for stage, part in zip(graph.stages, plan, strict=True)
        if stage.period == 1 and len(part) != len(stage) and len({one.signature for one in stage.blocks}) > 1
    ]
    ask = graph.origin.fitting
    places = ask(graph, plan) if ask is not None and mixed else {}
    return tuple(
        (stage.name in mixed and _spread(StageShape.of(stage), places.get(stage.name, ()), spread)) or part
        for stage, part in zip(graph.stages, plan, strict=True)
    )


def _spread(stage: StageShape, places: Sequence[frozenset[int]], spread: Spread) -> StagePlan | None:
    """The plan that spreads the layers of each kind; None where a layer would be lost, or gained by what loses some."""
    kinds = set(places)
    more = len(places) > stage.blocks
    if not kinds or frozenset() in kinds or sum(map(len, kinds)) != len(frozenset.union(*kinds)):
        return None  # what fits in a place fits in no other, or in those of one kind
    if more and len(frozenset.union(*kinds)) < stage.blocks:
        return None
    made = [0] * len(places)
    for kind in kinds:
        layers, at = sorted(kind), [place for place, one in enumerate(places) if one == kind]
        if (len(at) < len(layers)) if more else (len(at) > len(layers)):
            return None
        chosen = spread(StageShape(stage.name, len(layers), 0, 1), len(at))
        for place, index in zip(at, chosen, strict=True):
            made[place] = layers[index]
    ends = made[: stage.pinned] + made[len(made) - stage.pinned_last :]
    kept = [*range(stage.pinned), *range(stage.blocks - stage.pinned_last, stage.blocks)]
    return tuple(made) if ends == kept else None
