"""The kinds of blocks in a stage, each with a name that a reader knows them by.

Blocks are of one kind that have equal operations and weight shapes (:attr:`Block.signature`). A kind is called by the
modules that its blocks have and others lack, or as the configuration beside a checkpoint lists its layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elastic_ir.formats.model_folder import CheckpointSource
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.naming import weights_below
from elastic_ir.ir.structure import Block, Stage

_DEEPEST = 3  #: parts of a name within a block that may tell two kinds apart
_WORDS = 3  #: modules that a kind is called by


@dataclass(frozen=True)
class Kind:
    """Blocks of one kind: what they are called, and their places among all blocks of the stage, from 0."""

    name: str
    blocks: tuple[int, ...]


def kinds_of(graph: Graph, stage: Stage) -> list[Kind]:
    """The kinds of a stage's free blocks, in the order in which they first occur; one where all are alike."""
    start = stage.pinned
    told = _told(graph, stage) or [""] * len(stage)
    places: dict[tuple[str, str], list[int]] = {}
    for place, block in enumerate(stage.blocks, start):
        places.setdefault((block.signature, told[place]), []).append(place)
    if len(places) < 2:
        return [Kind("", tuple(blocks)) for blocks in places.values()]
    words = [word for _, word in places]
    if len(set(words)) < len(words):
        words = _names([stage.all_blocks[blocks[0]] for blocks in places.values()], graph)
    return [Kind(name, tuple(blocks)) for name, blocks in zip(words, places.values(), strict=True)]


def _told(graph: Graph, stage: Stage) -> list[str] | None:
    """What a list of words in the configuration says of each layer, where one has a word for every layer."""
    if not isinstance(graph.origin, CheckpointSource):
        return None
    for listed in _lists(graph.origin.config):
        if len(listed) == len(stage) and len(set(listed)) > 1:
            return listed
    return None


def _lists(table: Mapping[str, Any]) -> Iterator[list[str]]:
    for value in table.values():
        if isinstance(value, Mapping):
            yield from _lists(value)
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            yield value


def _names(blocks: Sequence[Block], graph: Graph) -> list[str]:
    """For a block of each kind the names of modules that not every one has, as few parts deep as tells them apart."""
    held = [_modules(block, graph) for block in blocks]
    found: list[str] = []
    for depth in range(1, _DEEPEST + 1):
        short = [{name for name in names if name.count(".") < depth} for names in held]
        common = set.intersection(*short)
        own = [
            sorted(name for name in names - common if name.rpartition(".")[0] not in names - common)
            for names in short
        ]
        found = ["+".join(names[:_WORDS]) for names in own]
        if len(set(found)) == len(found):
            return [name or "plain" for name in found]
    return [f"{name or 'kind'} {number}" for number, name in enumerate(found, 1)]


def _modules(block: Block, graph: Graph) -> set[str]:
    """The names of the modules with tensors in a block, and of these, relative to it."""
    paths = [child.path for child in block.children]
    names = {
        f"{number}.{name}" if len(paths) > 1 else name
        for number, held in enumerate(weights_below(graph.weights, set(paths)).values())
        for name in held
    }
    return {name.rsplit(".", cut)[0] for name in names for cut in range(name.count(".") + 1)}
