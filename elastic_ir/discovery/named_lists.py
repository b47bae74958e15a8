"""Lists by their names: which ones repeat besides those of the stages, and the structure that chosen ones give.

Where a list of groups holds lists of blocks, one level is found, as a rule the outer one; the other is there by name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from elastic_ir.discovery import Reader, discover, reader_of
from elastic_ir.discovery.parts import Group
from elastic_ir.errors import StructureError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.naming import outward
from elastic_ir.ir.numbering import pattern_of
from elastic_ir.ir.structure import Container, Structure

_LISTED = 6  #: names that a refusal lists


@dataclass(frozen=True)
class RepeatedLists:
    """Lists of equal name but for numbers, whose blocks repeat: ``body.*.body``."""

    name: str
    blocks: tuple[int, ...]  #: of each list, in order

    def __str__(self) -> str:
        least, most = min(self.blocks), max(self.blocks)
        count = f"{least} blocks" if least == most else f"{least} to {most} blocks"
        return (
            f"{self.name} ({count})"
            if len(self.blocks) == 1
            else f"{self.name} ({len(self.blocks)} lists of {count})"
        )


def structure_at(graph: Graph, names: Sequence[str]) -> Structure:
    """The structure of the lists of some names; ``*`` stands for one part of a name, as in ``body.*.body``.

    Raises StructureError for a name that is no list of blocks, for lists of which one holds another, and where nothing
    in them can be cloned.
    """
    reader = reader_of(graph)
    known = list(_with_blocks(reader))
    chosen: dict[Container, list[Group]] = {}
    for name in names:
        found = {box: groups for box, groups in known if _is_called(box, name)}
        if not found:
            raise StructureError(
                f"{graph.name} has no list of blocks {name!r}; {_those_there_are(graph, reader)}"
            )
        chosen.update(found)
    for box in chosen:
        held = next((other for other in chosen if other.path != box.path and _inside(box.path, other)), None)
        if held is not None:
            raise StructureError(
                f"{box.label!r} lies in a block of {held.label!r}; change one of them, and then the other"
            )
    structure = discover(graph, {(box.path, box.prefix) for box in chosen})
    for name in names:
        stages = [
            stage for stage in structure.stages if any(_is_called(box, name) for box in stage.containers)
        ]
        if not any(stage.blocks for stage in stages):
            raise StructureError(
                f"no block of {name!r} has one shape before and behind it and gives all that it computes to the next, "
                "so none can be cloned or deleted"
            )
    return structure


def other_lists(graph: Graph) -> list[RepeatedLists]:
    """The lists whose blocks repeat, and which are not those of the stages: around their blocks, or inside of them.

    Of lists inside, those that hold at least half of their block's weights; ``conv1`` and ``conv2`` among other
    attributes are no list.
    """
    structure = graph.structure_or_none
    return _others(reader_of(graph), structure) if structure is not None else []


def _others(reader: Reader, structure: Structure) -> list[RepeatedLists]:
    taken = {(box.path, box.prefix) for box in structure.containers}
    stages = {path for box in structure.containers for path in outward(box.children[0].path)}
    weights = Counter(path for name in reader.layer_names for path in outward(name))
    blocks = {child.path for box in structure.containers for child in box.children}
    found: dict[str, list[tuple[str, int]]] = {}
    for box, groups in _with_blocks(reader):
        if (box.path, box.prefix) in taken or not _repeats(groups):
            continue
        block = next((path for path in outward(groups[0].path) if path in blocks), None)
        held = sum(weights[part.path] for group in groups for part in group.parts)
        if block is not None and (not box.native or 2 * held < weights[block]):
            continue
        if block is None and not any(part.path in stages for group in groups for part in group.parts):
            continue
        found.setdefault(pattern_of(box.label), []).append((box.label, len(groups)))
    return [
        RepeatedLists(_common([label for label, _ in alike]), tuple(count for _, count in alike))
        for alike in found.values()
    ]


def _common(labels: Sequence[str]) -> str:
    """A name for all of some names that differ in numbers: ``*`` for each number in which they do."""
    columns = zip(*(re.split(r"([0-9]+)", label) for label in labels), strict=True)
    return "".join(column[0] if len(set(column)) == 1 else "*" for column in columns)


def _with_blocks(reader: Reader) -> Iterator[tuple[Container, list[Group]]]:
    for part in reader.tree.walk():
        for box, parts in reader.containers(part):
            groups = reader.groups(box, parts)
            if groups:
                yield box, groups


def _repeats(groups: Sequence[Group]) -> bool:
    free = [group for group in groups if group.free]
    return any(group.linked for group in free[1:]) and len({group.signature for group in free}) < len(free)


def _is_called(box: Container, name: str) -> bool:
    pattern = re.compile(re.escape(name).replace(r"\*", r"[^.]+"))
    return any(pattern.fullmatch(own) for own in (box.label, box.series.head.rstrip("."), box.template))


def _inside(path: str, outer: Container) -> bool:
    """Whether a path lies in a child of a container."""
    return outer.series.number(path) is not None


def _those_there_are(graph: Graph, reader: Reader) -> str:
    structure = graph.structure_or_none
    if structure is None:
        return "nothing in it repeats"
    names = [*(box.label for box in structure.containers), *(one.name for one in _others(reader, structure))]
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"those that repeat are {', '.join(names[:_LISTED])}{more}"
