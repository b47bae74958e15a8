"""What closes the residual branches of a checkpoint's layers: found in its network, traced on the meta device.

Names alone do not show which layer's output is added to the stream. The network does: transformers builds it from the
configuration with as few layers as show every kind of them, and no weight is allocated or read.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, NoReturn

from elastic_ir.analysis.branches import branches_of
from elastic_ir.checkpoints.config.depth import Stack
from elastic_ir.checkpoints.config.restated import restated
from elastic_ir.errors import ElasticError, PlanError, first_line
from elastic_ir.formats.model_folder import CONFIG, CheckpointSource
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Stage
from elastic_ir.plans.copy_edits import candidates, weights_in

_LEAST = 3  #: layers that show what repeats


def residual_ends(graph: Graph) -> dict[str, tuple[str, ...]]:
    """For each stage of a folder read by its headers the tensors, by their names inside a block, that close branches.

    Raises PlanError, one line with the names to choose from: transformers is not there or does not know the model, a
    block is not residual (BERT, whose stream goes through a norm), or the folder names its tensors otherwise.
    """
    source = graph.origin
    if not isinstance(source, CheckpointSource):
        _refuse(graph, "names alone do not show what closes its residual branches")
    try:
        traced = _traced(source, graph)
    except (
        ElasticError,
        ImportError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        _refuse(graph, f"its network could not be built and traced ({first_line(error)})")
    return {stage.name: _ends_of(stage, graph, traced) for stage in graph.stages}


def _refuse(graph: Graph, why: str, stage: Stage | None = None) -> NoReturn:
    shown = stage or graph.stages[0]
    raise PlanError(
        f"{graph.name}: copies cannot start as the identity: {why}; name what is to be zero by --zero (zero=): "
        f"{candidates(shown.all_blocks[0], graph)}"
    )


def _traced(source: CheckpointSource, graph: Graph) -> Graph:
    from elastic_ir.checkpoints.libraries.find import library_of
    from elastic_ir.frontends.trace import trace

    config = {key: value for key, value in _shallow(source, graph).items() if key != "quantization_config"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trace(library_of(config).described(config, CONFIG))


def _shallow(source: CheckpointSource, graph: Graph) -> dict[str, Any]:
    """The configuration with as many layers as show every kind; as it is where it cannot say fewer."""
    stacks = []
    for container in graph.structure.containers:
        whole = Stack.of(container)
        kinds = source.kinds.get(whole.label, ())
        count = min(whole.before, max(_LEAST, *(kinds.index(kind) + 1 for kind in set(kinds)), 0))
        stacks.append(replace(whole, order=tuple(range(count)), taken=(), tail=0))
    try:
        return restated(source.config, stacks, [weight.origin for weight in graph.weights.values()])
    except PlanError:
        return source.config


def _ends_of(stage: Stage, graph: Graph, traced: Graph) -> tuple[str, ...]:
    """The tensors that close the branches of a stage's blocks, by their names inside a block."""
    twins = [other for other in traced.stages if _same_name(stage.name, other.name)]
    if len(twins) != 1:
        _refuse(graph, f"its network has no layers {stage.name}, but {traced.stages[0].name}", stage)
    ends: dict[str, None] = {}
    for block, twin in zip(stage.all_blocks, twins[0].all_blocks, strict=False):
        found, reason = branches_of(twin, traced)
        if not found:
            _refuse(graph, f"in {block.path} {reason}", stage)
        held = {name for _, name in weights_in(block, graph)}
        inside = {weight.name: name for weight, name in weights_in(twin, traced)}
        for branch in found:
            for name in branch.weights:
                rest = inside.get(name, name)
                if rest not in held:
                    _refuse(graph, f"the network's {rest} goes by another name in {block.path}", stage)
                ends[rest] = None
    return tuple(ends)


def _same_name(one: str, other: str) -> bool:
    """Whether two stages are the same, where a base model's names lack the head's prefix."""
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")
