"""A GGUF file as a graph without nodes: names and shapes show its layers, and its metadata what belongs together."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from math import lcm
from pathlib import Path

from elastic_ir.checkpoints.gguf.layers import Rules, tail_of
from elastic_ir.checkpoints.names import graph_of_tensors
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.checkpoints.uncounted_layers import set_apart
from elastic_ir.discovery import discover
from elastic_ir.discovery.signatures import shortest_period
from elastic_ir.errors import PlanError, SourceError, StructureError
from elastic_ir.formats import ReadOptions
from elastic_ir.formats.distant import Elsewhere
from elastic_ir.formats.gguf.header import Header
from elastic_ir.formats.gguf.parts import GgufSource, Tell, read_parts, stem_of
from elastic_ir.formats.ranges import AwaitedTensor, FileTensor
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.numbering import DIGITS
from elastic_ir.ir.structure import Structure
from elastic_ir.rewrite.rewriter import Rewriter

_LAYER = re.compile(rf"((?:[^.]+\.)*?blk)\.({DIGITS})\.")


def read_gguf(path: Path, options: ReadOptions) -> Graph:
    """A model's file, or the first of its parts, as a graph; nothing but headers is read.

    Raises SourceError as :func:`elastic_ir.formats.gguf.parts.read_parts` does, and where a network is given for it.
    """
    if options.arch is not None or options.input_shape:
        raise SourceError(
            f"{path} is read by its names and metadata, and no network is built of it; leave out --arch and "
            "--input-shape"
        )
    return load_gguf(path, options.elsewhere, options.url)


def load_gguf(
    path: Path,
    elsewhere: Elsewhere | None = None,
    url: str = "",
    fetch: Callable[[Tell | None], None] | None = None,
) -> Graph:
    """The graph of a model's file; see :func:`read_gguf`, and of what lies elsewhere :func:`read_parts`.

    ``fetch`` has the files here that are not yet, before a tensor in them is read.
    """
    parts = read_parts(path, elsewhere)
    if fetch is not None:
        parts = tuple(_awaited(part, fetch) if part.file is not None else part for part in parts)
    source = GgufSource(parts, url=url, fetch=fetch)
    tensors = source.tensors
    # by name, as folders are read: numbers then show the order of the layers, whatever the order in the file
    graph = graph_of_tensors(stem_of(path), {name: tensors[name] for name in sorted(tensors)})
    graph.origin = source
    shapes = {name: data.shape for name, data in tensors.items()}
    _find_layers(graph, source)
    source.learn_units = _refuse_open_units
    source.kinds = {stack.label: stack.kinds(shapes) for stack in Stack.all_of(graph)}
    return graph


def _awaited(part: Header, fetch: Callable[[Tell | None], None]) -> Header:
    """A part whose tensors are read from its file when that is here."""

    def awaited(data: FileTensor) -> FileTensor:
        return AwaitedTensor(data.path, data.offset, data.shape, data.dtype, fetch=lambda: fetch(None))

    return replace(part, tensors={name: awaited(data) for name, data in part.tensors.items()})


def _find_layers(graph: Graph, source: GgufSource) -> None:
    """State the structure: the format says which lists are layers, whatever kinds they are of (``blk``, ``enc.blk``).

    Layers that predict further tokens are set apart from the others: they stay the last ones, and occur once.
    """
    lists: dict[str, set[int]] = {}
    for name in graph.weights:
        match = _LAYER.match(name)
        if match is not None:
            lists.setdefault(match[1], set()).add(int(match[2]))
    if not lists:
        return

    def structure_of(some: Graph) -> Structure | None:
        try:
            found = discover(some, {(path, "") for path in lists}, whole=True)
        except StructureError:
            return None
        _set_units(found, source)
        return found

    count = tail_of(source)
    numbers = sorted(lists.get("blk", ()))
    if 0 < count < len(numbers):
        tails = {("blk", ""): [f"blk.{number}" for number in numbers[-count:]]}
        set_apart(
            graph,
            tails,
            f"predicts further tokens ({source.architecture}.nextn_predict_layers)",
            structure_of,
        )
        return
    found = structure_of(graph)
    if found is not None:
        Rewriter(graph, found)


def _set_units(structure: Structure, source: GgufSource) -> None:
    """Let stages be changed by as many layers as the metadata says that kinds of layers take turns after.

    A first layer unlike all others is the entry, and stays. Where a sliding window is stated and not which layers have
    it, the unit is left open.
    """
    rules = Rules(source)
    for stage in structure.stages:
        first, *others = [block.signature for block in stage.blocks]
        if stage.entry is None and len(others) > 1 and first not in others:
            stage.entry = stage.blocks.pop(0)
            stage.period = shortest_period(others)
        stack = Stack.of(stage.containers[0])
        if rules.hides_windows(stack):
            stage.period = None
            structure.note = "; ".join(filter(None, (structure.note, _windows(stage.name))))
            continue
        periods = [rule.number for rule in rules.of(stack) if rule.turns]
        unit = lcm(stage.period or 1, *periods)
        if unit > 1 and stage.blocks and len(stage.blocks) % unit == 0:
            stage.period = unit


def _refuse_open_units(graph: Graph) -> None:
    """PlanError where a stage is to change whose layers have a sliding window, and nothing says which of them."""
    source = graph.origin
    if not isinstance(source, GgufSource):
        return
    rules = Rules(source)
    for stage in graph.stages:
        if stage.period is None and rules.hides_windows(Stack.of(stage.containers[0])):
            raise PlanError(
                f"{source.path.name} states a sliding window and not which of the layers at {stage.name!r} have it: a "
                f"reader derives that from their numbers, by a period that it knows for {source.architecture!r}; state "
                "the period by --unit N (unit=N), 1 where all layers have it"
            )


def _windows(stage: str) -> str:
    return (
        f"{stage}: the metadata states a sliding window and not which layers have it, which a reader derives from "
        "their numbers"
    )
