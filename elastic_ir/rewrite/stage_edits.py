"""Edits of what counts as a unit: how many blocks are cloned at once, and whether the first one is kept.

The rewriter's part that changes no node and no weight, but what later plans may do with the blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from elastic_ir.errors import StructureError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.naming import head_in
from elastic_ir.ir.structure import Child, Container, Stage


class StageEdits:
    """What the rewriter can do to a stage as a whole."""

    graph: Graph
    _paths: dict[str, Child]
    _homes: dict[Child, Container]
    _names_of: dict[int, set[str]]

    def set_unit(self, blocks: int) -> None:
        """Set the unit size, in blocks, of every stage that has free blocks.

        It overrides what was found; where it cuts units apart, the structure's note says so. StructureError where
        nothing repeats, or where a stage's free blocks are not a multiple of it.
        """
        structure = self.graph.structure
        stages = [stage for stage in structure.stages if stage.blocks]
        for stage in stages:
            if stage.period != blocks and len(stage.blocks) % blocks:
                raise StructureError(
                    f"stage {stage.name!r} has {len(stage.blocks)} free blocks, not a multiple of unit={blocks}"
                )
        cut = [stage for stage in stages if stage.period is not None and blocks % stage.period]
        if cut:
            note = (
                f"{', '.join(stage.name for stage in cut)}: {cut[0].period} blocks were found to make a unit, and "
                f"{blocks} are cloned and deleted at a time as asked (unit={blocks}); a natively built network may "
                "alternate its blocks in another way"
            )
            structure.note = "; ".join(filter(None, (structure.note, note)))
        for stage in structure.stages:
            stage.period = blocks

    def state_units(self, periods: Mapping[str, int]) -> None:
        """Set the unit sizes, in blocks, of stages by their names, where none was found."""
        for stage in self.graph.structure.stages:
            if stage.period is None:
                stage.period = periods.get(stage.name)

    def loosen(self, stage: Stage, *, entry: bool) -> None:
        """Let a stage be put together block by block; with ``entry`` its first block is as free as the others."""
        stage.period = 1
        if entry and stage.entry is not None:
            stage.blocks.insert(0, stage.entry)
            stage.entry = None

    def leave_list(self, container: Container) -> None:
        """Let a list that holds a stage's blocks a second time stay as it is: its members are no slots any more."""
        inside = set(container.children)
        for stage in self.graph.structure.stages:
            if container in stage.containers:
                stage.containers = tuple(box for box in stage.containers if box is not container)
                for block in stage.all_blocks:
                    block.children = [child for child in block.children if child not in inside]
        for child in inside:
            self._paths.pop(child.path, None)
            self._homes.pop(child, None)
        heads = {child.path for child in inside}
        for name, weight in self.graph.weights.items():  # clones have tensors of their own
            if head_in(name, heads) is not None:
                self._names_of[id(weight.storage)].discard(name)

    def add_sources(self, names: Iterable[str]) -> list[int]:
        """Enter other networks whose tensors the graph is to take; their numbers, for :meth:`take_over`."""
        known = self.graph.edits.sources or (self.graph.name,)
        fresh = list(names)
        self.graph.edits = replace(self.graph.edits, sources=(*known, *fresh))
        return list(range(len(known), len(known) + len(fresh)))
