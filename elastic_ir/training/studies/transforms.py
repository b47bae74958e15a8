"""Transformations of tickets to the depth of a target network, and a trial of those of a study without any values.

A study searches for tickets for hours before it transforms one; whether it can is known from the networks alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

import elastic_ir as eir
from elastic_ir.errors import ElasticError, PlanError, first_line
from elastic_ir.ir.graph import Graph
from elastic_ir.passes import Pipeline
from elastic_ir.training.studies.study import FROM_SOURCE, Entry, Study

#: The tweaks that are passes over the start of a training.
GHOSTS = ("ghost-skips", "ghost-softness")
#: One input of the data that are found by name; those of functions are known when they are read.
_SHAPES = {
    "digits": (1, 8, 8),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
    "images": (3, 224, 224),
}


def brought_to(source: Graph, like: Graph, given: Mapping[str, Any]) -> Graph:
    """A graph with the depth of another one, by the transformation that these options describe."""
    counts = [len(stage) for stage in like.stages]
    if len(counts) != len(source.stages):
        raise PlanError(f"the source has {len(source.stages)} stages and the target {len(counts)}")
    if sum(counts) >= sum(len(stage) for stage in source.stages):
        return eir.stretch(
            source, to_stages=counts, order=given.get("order", "append"), replicate=given.get("replicate")
        )
    return eir.squeeze(source, to_stages=counts, drop=given.get("drop", "tail"))


def with_ghosts(graph: Graph, tweaks: Collection[str]) -> Graph:
    """A graph with the ghosts among these tweaks."""
    ghosts = [name for name in GHOSTS if name in tweaks]
    return Pipeline.parse(",".join(ghosts)).run(graph) if ghosts else graph


@dataclass(frozen=True)
class Tried:
    """What a transformation, or a tweak by passes, makes of a network of the study."""

    network: str  #: the one that is trained
    label: str
    source: str = ""  #: the one whose ticket is transformed
    blocks: tuple[tuple[int, ...], ...] = ()  #: of each stage, before and after
    depths: tuple[int | None, ...] = ()
    error: str = ""  #: what the run would end with


def try_transforms(study: Study, networks: Mapping[str, nn.Module]) -> Iterator[Tried]:
    """Every transformation and every ghost of a study, on its networks, which need no values; no data are read."""
    graphs: dict[str, Graph | ElasticError] = {}

    def graph(name: str) -> Graph:
        if name not in graphs:
            try:
                graphs[name] = _traced(networks[name], study.data)
            except ElasticError as error:
                graphs[name] = error
        found = graphs[name]
        if isinstance(found, ElasticError):
            raise found
        return found

    for entry in study.compare:
        for network in entry.targets or study.networks:
            if entry.method in FROM_SOURCE:
                for source in entry.sources or study.networks:
                    if source != network:
                        yield _tried(entry, network, source, graph)
            elif any(name in entry.tweaks for name in GHOSTS):
                yield _tried(entry, network, "", graph)


def _tried(entry: Entry, network: str, source: str, graph: Callable[[str], Graph]) -> Tried:
    label = entry.name(source)
    try:
        target = graph(network)
        before = made = target
        if source:
            before = graph(source)
            made = brought_to(before, target, entry.options)
            _check_same(made, target, network)
        with_ghosts(target, entry.tweaks)
    except ElasticError as error:
        return Tried(network, label, source, error=str(error))
    except Exception as error:  # a factory's module may raise anything
        return Tried(network, label, source, error=f"{type(error).__name__}: {first_line(error)}")
    blocks = tuple(tuple(len(stage) for stage in one.stages) for one in (before, made))
    return Tried(network, label, source, blocks, (before.depth, made.depth))


def _check_same(made: Graph, target: Graph, name: str) -> None:
    """PlanError unless a network's state dict takes the tensors of the graph made."""
    ours, theirs = ({n: w.shape for n, w in one.weights.items() if w.persistent} for one in (made, target))
    for tensor in [*ours, *theirs]:
        if ours.get(tensor) != theirs.get(tensor):
            shapes = [list(shapes[tensor]) if tensor in shapes else "absent" for shapes in (ours, theirs)]
            raise PlanError(
                f"the transformed ticket does not fit {name}: {tensor} is {shapes[0]}, and {shapes[1]} there"
            )


def _traced(network: nn.Module, data: Mapping[str, Any]) -> Graph:
    """A network's graph, on inputs of the data's shape where that is known without them."""
    shape = _SHAPES.get(data["name"].partition(":")[0])
    if shape is None:
        return eir.trace(network.eval())
    return eir.trace(network.eval(), input_shape=[(1, data.get("channels") or shape[0], *shape[1:])])
