"""Undoing: a network of the depth that it had before its last change, which its record states."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import ClassVar

from elastic_ir.checkpoints.record import Step
from elastic_ir.checkpoints.undo import (
    changed_lists,
    check_undone,
    names_in_source,
    steps_of_graph,
    way_back,
)
from elastic_ir.discovery.named_lists import structure_at
from elastic_ir.errors import StructureError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Resequenced
from elastic_ir.passes.depth import DepthPass
from elastic_ir.plans.resequence import resequence
from elastic_ir.rewrite.rewriter import Rewriter


@dataclasses.dataclass(frozen=True)
class Undo(DepthPass):
    """Take back the last change of depth that the source's record states, where the layers are all there."""

    name: ClassVar[str] = "undo"

    def run_on(self, target: Graph) -> Graph:
        """As :meth:`run`, on a graph that nobody else holds; its stages are those that were changed.

        Of repeats within repeats one level is found, and the change may have been of the other.
        """
        steps = steps_of_graph(target)
        lists = changed_lists(steps[-1]) if steps else []
        structure = target.structure_or_none
        found = [box.series.head.rstrip(".") for box in structure.containers] if structure is not None else []
        if not set(lists) <= set(found):
            with contextlib.suppress(
                StructureError
            ):  # whatever cannot be taken back then is said by the work
                Rewriter(target, structure_at(target, lists))
        return super().run_on(target)

    def precondition(self, graph: Graph) -> tuple[Step, set[str]] | None:
        """What is taken back, and the names that the source had; None where there is nothing, as the work reports."""
        step = next(reversed(steps_of_graph(graph)), None)
        return (step, names_in_source(graph, step)) if step is not None else None

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> Resequenced:
        back = way_back(graph)
        made = resequence(rewriter, graph, back.plan, self.keep_beside, shown=True)
        for name, gathering in back.beside.items():
            rewriter.gather(name, gathering)
        rewriter.note(dataclasses.replace(graph.edits, undone=True))
        return made

    def postcondition(self, graph: Graph, noted: tuple[Step, set[str]] | None) -> None:
        if noted is not None:
            check_undone(graph, *noted)
