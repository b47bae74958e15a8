"""Carrying out a plan: the stage's blocks become the planned sequence, by clones and deletions of the rewriter."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from elastic_ir.discovery.parts import has_idle
from elastic_ir.discovery.signatures import TAKING
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.operations import known_kind
from elastic_ir.ir.structure import Block, Container, Resequenced
from elastic_ir.plans.plan import Plan, StageShape, keeps_units
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.safety.limits import check_blocks

if TYPE_CHECKING:
    from elastic_ir.plans.layer_rows import Rows
    from elastic_ir.tensors.gathered import ByLayer, Gathering


def resequence(
    rewriter: Rewriter,
    graph: Graph,
    plan: Plan,
    keep_beside: str | Iterable[str] | None = None,
    *,
    written: Sequence[Sequence[Hashable]] | None = None,
    shown: bool = False,
) -> Resequenced:
    """Bring every stage into its planned sequence.

    An original stays in place at its first use if that keeps the order; every other place gets a clone, and
    originals that stay unused are deleted. Which is which does not show in the result: clones equal their source. What
    has an entry for each block follows, where the source's network shows how. What ``keep_beside`` names stays as it
    is, which is noted in ``graph.edits``. ``written`` is the plan with layers of other networks, where it has some;
    ``shown`` says that another network shows what changes together. Returns what became of the stages.

    Raises PlanError for a name that fits nothing, and where what lies beside a stage would be left behind.
    """
    check_blocks(sum(map(len, plan)), sum(map(len, graph.stages)))
    stays: tuple[str, ...] = ()
    if keep_beside is not None and keep_beside != ():
        from elastic_ir.plans.keep_beside import is_kept, known_names

        stays = known_names(graph, keep_beside)
        for container in graph.structure.containers:
            second = all(stage.container is not container for stage in graph.stages)
            if second and is_kept(stays, container.label, container.path):
                rewriter.leave_list(container)
    named = not shown and not len(graph)  # nodes show themselves what changes together
    if named and written is None:
        from elastic_ir.plans.by_layer import with_lists_between

        plan = with_lists_between(graph, plan, stays)
    sums: dict[str, Gathering] = {}
    if any(block.taps for stage in graph.stages for block in stage.all_blocks):
        from elastic_ir.plans.layer_sums import weights_of_sums

        sums = weights_of_sums(graph, plan)
    rows: list[Rows] = []
    if any(known_kind(node) in TAKING for node in graph):
        from elastic_ir.plans.layer_rows import rows_of_blocks

        rows = rows_of_blocks(rewriter, plan, stays)
    if len(graph) and not shown and has_idle(graph):
        from elastic_ir.plans.keep_beside import refuse_idle_beside

        refuse_idle_beside(graph, plan, stays)
    sequence = plan if written is None else written
    unproven: dict[str, str] = {}
    indexed: dict[str, tuple[Container, ByLayer]] = {}
    if named:
        from elastic_ir.plans.by_layer import indexed_by_layer
        from elastic_ir.plans.keep_beside import refuse_left_behind

        unproven = refuse_left_behind(graph, sequence, stays)
        indexed = indexed_by_layer(graph, sequence, unproven, stays)
    earlier = graph.edits
    rewriter.note(
        replace(
            earlier,
            keep_beside=tuple(dict.fromkeys((*earlier.keep_beside, *stays))),
            unproven_beside={
                name: why
                for name, why in {**earlier.unproven_beside, **unproven}.items()
                if name not in indexed
            },
        )
    )
    made = Resequenced(
        tuple(tuple(item if isinstance(item, int) else str(item) for item in stage) for stage in sequence),
        tuple(len(stage) for stage in graph.stages),
    )
    for stage, wanted in zip(graph.stages, plan, strict=True):
        originals = list(stage.all_blocks)
        if list(wanted) == list(range(len(originals))):
            continue
        parted = stage.alike and not keeps_units(StageShape.of(stage), wanted)
        kept: set[int] = set()
        last_kept = -1
        for index in wanted:  # which originals stay where they are
            if index > last_kept and index not in kept:
                kept.add(index)
                last_kept = index
        placed: set[int] = set()
        last_placed = -1
        after: Block | None = None
        doomed = [block for index, block in enumerate(originals) if index not in kept]
        for index in wanted:
            block = originals[index]
            if index in kept and index not in placed and index > last_placed:
                placed.add(index)
                last_placed = index
                after = block
            else:
                assert after is not None  # the first of a plan always stays
                after = rewriter.clone_block(block, after=after)
        for block in doomed:
            rewriter.delete_block(block)
        if parted:
            rewriter.loosen(stage, entry=False)
    for row in rows:
        row.follow(rewriter)
    for name, gathering in sums.items():
        rewriter.gather(name, gathering)
    for name, (container, how) in indexed.items():
        count = len(container.children) - container.tail
        order = [container.source_index(child.origin) for child in container.children[:count]]
        whole = order == list(range(container.source_count))
        rewriter.gather(name, None if whole else how.gathering(order, container.source_count))
    return made
