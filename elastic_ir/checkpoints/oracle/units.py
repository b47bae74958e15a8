"""How many blocks make a unit, where a checkpoint's names do not show it but the modules of its network do. No torch.

Swin's plain and shifted windows have the same names and shapes. The network is asked for once a stage is to change
whose unit is not known.
"""

from __future__ import annotations

from collections.abc import Sequence

from elastic_ir.checkpoints.oracle.comparison import kinds_of_layers
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.formats.model_folder import CheckpointSource
from elastic_ir.ir.graph import Graph
from elastic_ir.rewrite.rewriter import Rewriter


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
    seen = [period for held in free.values() if 2 * (period := _period(held)) <= len(held)]
    Rewriter(graph).state_units({name: _unit(held, seen) for name, held in free.items()})


def _period(kinds: Sequence[int]) -> int:
    """The shortest period of the kinds of layers; all of them where none is seen twice."""
    count = len(kinds)
    return next(
        (n for n in range(1, count) if count % n == 0 and list(kinds[n:]) == list(kinds[:-n])), max(count, 1)
    )


def _unit(kinds: Sequence[int], seen: Sequence[int]) -> int:
    """The unit of a stage; one that is no longer than a unit of others is that unit once."""
    period = _period(kinds)
    return period if 2 * period <= len(kinds) or len(kinds) in seen else max(len(kinds), 1)
