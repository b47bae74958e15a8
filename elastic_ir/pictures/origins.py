"""Where each block of a network comes from: by what passes did to it, or by the record of the file that it is of.

A block's origin shows in its weights: where ``layer1.7.conv1.weight`` is a copy of ``layer1.3.conv1.weight``,
``layer1.7`` is one of ``layer1.3``. Weights whose lineage is stated nowhere are of nothing: equal names prove nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from elastic_ir.checkpoints.record import Step
from elastic_ir.checkpoints.undo import steps_of_graph
from elastic_ir.errors import SourceError, StructureError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.naming import weights_below
from elastic_ir.ir.structure import Block, Stage


@dataclass(frozen=True)
class Origins:
    """The last change of depth that led to a network, or those since another network."""

    sources: tuple[
        str, ...
    ] = ()  #: the names of the networks that its weights are from; none where nothing is stated
    #: for each weight the number of its network, and its name there
    names: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    gone: tuple[str, ...] = ()  #: weights of the first network of which this one has no copy

    def __bool__(self) -> bool:
        """Whether anything is stated."""
        return bool(self.sources)


@dataclass(frozen=True)
class Place:
    """A block of a source: the number of the network, its path there, and its index among the slots of its list."""

    source: int
    path: str
    index: int


def origins_of(graph: Graph, since: str = "") -> Origins:
    """What is stated of a graph's weights: by the passes that changed it, else by its file's record.

    ``since`` is the name of the network at which to stop going back, where the record has several changes.
    """
    own = {name: (weight.source, weight.origin) for name, weight in graph.weights.items()}
    label = graph.info.file or graph.name
    if graph.edits.sources or any(origin != (0, name) for name, origin in own.items()) or _dropped(graph):
        kept = {name for number, name in own.values() if not number}
        gone = tuple(name for name in graph.info.source_names if name not in kept)
        return Origins(graph.edits.sources or (label,), own, gone)
    return _of_record(graph, since)


def _dropped(graph: Graph) -> bool:
    """Whether blocks were deleted, and all that is left is where it was."""
    return any(box.changed for box in graph.structure.containers) if graph.blocks else False


def _of_record(graph: Graph, since: str) -> Origins:
    try:
        steps = steps_of_graph(graph)
    except SourceError:  # a damaged record is refused by what needs it; a picture can do without
        return Origins()
    if not steps:
        return Origins()
    names = {name: (0, name) for name in graph.weights}
    for step in reversed(steps):
        names = {name: _before(step, origin) for name, origin in names.items()}
        if not since or since in step.sources or any(number for number, _ in names.values()):
            break
    return Origins(step.sources, names, step.gone or ())


def _before(step: Step, origin: tuple[int, str]) -> tuple[int, str]:
    """Where a tensor that a step's result has was before that step; one of another source stays as it is."""
    number, name = origin
    if number:
        return origin
    found = step.origin(name)
    return found.source, found.name


def places_of(graph: Graph, origins: Origins) -> dict[Block, Place]:
    """The block of a source that each block of the stages is a copy of; those whose weights do not tell are left out.

    >>> from elastic_ir import stretch, trace
    >>> from elastic_ir.zoo import cifar_resnet
    >>> deeper = stretch(trace(cifar_resnet(20)), to_depth=32)
    >>> [place.index for place in places_of(deeper, origins_of(deeper)).values()][:5]
    [0, 1, 2, 1, 2]
    """
    if not origins:
        return {}
    blocks = {block: stage for stage in graph.stages for block in stage.all_blocks}
    below = weights_below(graph.weights, [block.path for block in blocks])
    found: dict[Block, Place] = {}
    for block, stage in blocks.items():
        paths = [
            _path(origins.names[weight.name], inner)
            for inner, weight in below[block.path].items()
            if weight.name in origins.names
        ]
        told = Counter(path for path in paths if path is not None)
        place = max(told, key=lambda each: told[each], default=None)
        index = _index(stage, place[1]) if place is not None else None
        if place is not None and index is not None:
            found[block] = Place(*place, index)
    return found


def gone_indices(stage: Stage, origins: Origins) -> set[int]:
    """The indices of the first source's blocks of a stage's list of which nothing is left, as lost weights show it."""
    return {index for name in origins.gone if (index := _index(stage, name)) is not None}


def _path(origin: tuple[int, str], inner: str) -> tuple[int, str] | None:
    """The path of the block that holds a weight of a source, from the weight's name within the block."""
    number, name = origin
    tail = f".{inner}" if inner else ""
    return (number, name.removesuffix(tail)) if name.endswith(tail) else None


def _index(stage: Stage, path: str) -> int | None:
    """The index of the slot of a stage's list that a path of the source names or lies in."""
    try:
        return stage.container.source_index(path)
    except StructureError:
        return None
