"""A GGUF file as a graph without nodes: names and shapes show its layers, and its metadata what belongs together."""

from __future__ import annotations

from math import lcm
from pathlib import Path

from elastic_ir.checkpoints.gguf.layers import Rules, tail_of
from elastic_ir.checkpoints.names import graph_of_tensors
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.checkpoints.uncounted_layers import set_apart
from elastic_ir.errors import SourceError
from elastic_ir.formats import ReadOptions
from elastic_ir.formats.gguf.parts import GgufSource, read_parts, stem_of
from elastic_ir.ir.graph import Graph


def read_gguf(path: Path, options: ReadOptions) -> Graph:
    """A model's file, or the first of its parts, as a graph; nothing but headers is read.

    Raises SourceError as :func:`elastic_ir.formats.gguf.parts.read_parts` does, and where a network is given for it.
    """
    if options.arch is not None or options.input_shape:
        raise SourceError(
            f"{path} is read by its names and metadata, and no network is built of it; leave out --arch and "
            "--input-shape"
        )
    return load_gguf(path)


def load_gguf(path: Path) -> Graph:
    """The graph of a model's file; see :func:`read_gguf`."""
    source = GgufSource(read_parts(path))
    tensors = source.tensors
    # by name, as folders are read: numbers then show the order of the layers, whatever the order in the file
    graph = graph_of_tensors(stem_of(path), {name: tensors[name] for name in sorted(tensors)})
    graph.origin = source
    shapes = {name: data.shape for name, data in tensors.items()}
    _set_tail_apart(graph, source)
    source.kinds = {stack.label: stack.kinds(shapes) for stack in Stack.all_of(graph)}
    _state_units(graph, source)
    return graph


def _set_tail_apart(graph: Graph, source: GgufSource) -> None:
    """Take the layers that predict further tokens out of the stage: they stay the last ones and occur once."""
    count = tail_of(source)
    structure = graph.structure_or_none
    if not count or structure is None:
        return
    tails = {
        (container.path, container.prefix): [child.path for child in container.children[-count:]]
        for container in structure.containers
        if container.path.rpartition(".")[2] == "blk" and len(container.children) > count
    }
    if tails:
        set_apart(graph, tails, f"predicts further tokens ({source.architecture}.nextn_predict_layers)")


def _state_units(graph: Graph, source: GgufSource) -> None:
    """Let stages be changed by as many layers as the metadata says that kinds of layers take turns after."""
    rules = Rules(source)
    for stage in graph.stages:
        periods = [rule.number for rule in rules.of(Stack.of(stage.containers[0])) if rule.turns]
        unit = lcm(stage.period or 1, *periods)
        if unit > 1 and stage.blocks and len(stage.blocks) % unit == 0:
            stage.period = unit
