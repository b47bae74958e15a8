"""Writing what was read by its headers (folders, GGUF files), or showing what would be written."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.cli import output, tables
from elastic_ir.cli.app import FORCE, given

if TYPE_CHECKING:
    from elastic_ir.checkpoints.gguf.write import Plan
    from elastic_ir.checkpoints.oracle.comparison import Compared
    from elastic_ir.checkpoints.write import Plan as CheckpointPlan
    from elastic_ir.cli.resize import Wanted
    from elastic_ir.ir.graph import Graph

_SHOWN = 4  #: files of weights left out that are named


def write_folder(graph: Graph, out: Path, wanted: Wanted) -> list[Path]:
    """Write a folder that was read by its headers, or print what would be written; what was written."""
    from elastic_ir.checkpoints.resumable import KEPT, held_by, kept_files, leftover
    from elastic_ir.checkpoints.shards import Workers
    from elastic_ir.checkpoints.write import (
        SHARD_SIZE,
        check_room,
        fetch_awaited,
        plan_checkpoint,
        save_checkpoint,
    )
    from elastic_ir.formats.files import refuse_taken

    shard_size = wanted.shard_size or SHARD_SIZE
    left = leftover(out)
    if not (wanted.dry_run or wanted.resume or left):
        refuse_taken(out, given(FORCE))
    plan = plan_checkpoint(graph, shard_size, out)
    awaited = plan.source.awaited
    if wanted.dry_run:
        plan = plan.settled()
    show_plan(plan)
    if wanted.dry_run:
        check_room(plan, out, held_by(left) if left else 0)
        total = show_result(graph, plan.files)
        if left is not None:
            way = "--resume goes on with it" if wanted.resume else "without --resume it is removed"
            tables.show_facts([("begun", f"{left} holds {kept_files(left)} finished files; {way}")])
        tables.show_facts([output.would_write(out, size=f" ({total})")])
        return []
    found: list[Compared] = []
    with tables.transfer("fetching what the result needs") if awaited is not None else nullcontext() as tell:
        fetch_awaited(graph, tell)
    try:
        with tables.transfer(f"writing {out}") as tell:
            written = save_checkpoint(
                graph,
                out,
                shard_size=shard_size,
                durable=wanted.durable,
                resume=wanted.resume,
                check=not wanted.no_check,
                replace=given(FORCE),
                workers=Workers(wanted.jobs or 1, wanted.ray),
                tell=tell,
                tell_compared=found.append,
            )
    except KeyboardInterrupt:
        stopped = leftover(out)
        if stopped is not None:
            tables.say(f"{out}: {KEPT.format(kept_files(stopped))}", err=True)
        raise
    if left is not None and not wanted.resume:
        tables.show_facts([("removed", f"{left}, which an earlier run had left")])
    show_compared(plan, found)
    tables.show_facts(output.wrote([written]))
    return [written]


def show_plan(plan: CheckpointPlan) -> None:
    """Print what follows the layers of a folder, what does not, and what is left out."""
    config, awaited = plan.source.layout.config, plan.source.awaited
    facts = [("note", text) for text in plan.notes]
    if awaited is not None and awaited.unfetched:
        facts.append(("note", awaited.unfetched))
    if plan.kept:
        facts.append(("kept", f"{config}: {', '.join(plan.kept)}; see whether they fit the new depth"))
    facts += [("followed", text) for text in plan.followed]
    facts += plan.adapters
    if plan.left_out:
        more = f" and {len(plan.left_out) - _SHOWN} more" if len(plan.left_out) > _SHOWN else ""
        text = f"{', '.join(plan.left_out[:_SHOWN])}{more}, whose depth is the source's"
        facts.append(("left out", text))
    if plan.kept_beside:
        facts.append(("kept", f"{', '.join(plan.kept_beside)}, as --keep-beside states"))
    tables.show_facts(facts)


def show_compared(plan: CheckpointPlan, found: Iterable[Compared]) -> None:
    """Print what building the network has shown of a folder."""
    for one in found:
        entries = [
            ("found", f"{plan.source.layout.config}: {entry}, by building the network")
            for entry in one.entries
        ]
        constants = [("constants", clause) for clause in one.by_depth]
        tables.show_facts([*entries, *constants, ("compared", str(one))])


def show_result(graph: Graph, sizes: dict[str, int]) -> str:
    """Print where the layers of a dry run's result come from, and its files; the size of all together."""
    table = tables.Table(("file", "size"), numeric=("size",))
    table.rows += [(name, tables.file_size(size)) for name, size in sizes.items()]
    for shown in (lineage(graph), table):
        tables.say()
        tables.show_table(shown)
    tables.say()
    return tables.file_size(sum(sizes.values()))


def write_gguf_file(graph: Graph, out: Path, wanted: Wanted) -> list[Path]:
    """Write a GGUF file, or its parts, or print what would be written; what was written."""
    from elastic_ir.checkpoints.gguf.write import check_room, save_gguf

    plan = show_gguf_plan(graph, out, wanted)
    if wanted.dry_run:
        check_room(plan)
        total = show_result(graph, plan.sizes)
        tables.show_facts([output.would_write(out, *plan.files, size=f" ({total})")])
        return []
    output.refuse_existing(*plan.files)
    fetch_gguf(graph)
    with tables.transfer(f"writing {out}") as tell:
        written = save_gguf(plan, tell, wanted.durable)
    tables.show_facts(output.wrote(written))
    return written


def fetch_gguf(graph: Graph) -> None:
    """Have the files here that the tensors of a GGUF result lie in, with a bar, where they are of a hub."""
    from elastic_ir.formats.gguf.parts import GgufSource

    for source in (graph.origin, *graph.origin.others):
        if isinstance(source, GgufSource) and source.fetch is not None:
            with tables.transfer("fetching what the result needs") as tell:
                source.fetch(tell)


def show_gguf_plan(graph: Graph, out: Path, wanted: Wanted) -> Plan:
    """Plan a GGUF file, or its parts, and print what follows the layers."""
    from elastic_ir.checkpoints.gguf.write import plan_gguf

    plan = plan_gguf(graph, out, wanted.shard_size)
    if plan.notes:
        tables.show_facts([("note", text) for text in plan.notes])
    if plan.changed:
        changed = [
            f"{key} {_value(before)} -> {_value(after)}" for key, (before, after) in plan.changed.items()
        ]
        tables.show_facts([("metadata", text) for text in changed])
    if plan.kept:
        tables.show_facts([("kept", f"{', '.join(plan.kept)}; see whether they fit the new depth")])
    return plan


def write_dcp_folder(graph: Graph, out: Path, wanted: Wanted) -> list[Path]:
    """Write a training checkpoint of torch.distributed, or print what would be written; what was written."""
    from elastic_ir.checkpoints.dcp.write import check_room, plan_dcp, save_dcp

    plan = plan_dcp(graph)
    tables.show_facts(list(plan.facts))
    if wanted.dry_run:
        check_room(plan, out)
        total = show_result(graph, plan.sizes)
        tables.show_facts([output.would_write(out, size=f" ({total})")])
        return []
    with tables.transfer(f"writing {out}") as tell:
        written = save_dcp(plan, out, check=not wanted.no_check, replaced=given(FORCE), tell=tell)
    tables.show_facts(output.wrote(written))
    return written


def _value(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"[{text}]" if isinstance(value, list) else text


def lineage(graph: Graph) -> tables.Table:
    """Which layers of the result come from which of the source."""
    from elastic_ir.checkpoints.card import moves
    from elastic_ir.checkpoints.config.depth import Stack

    names = graph.edits.sources
    table = tables.Table(("layers", "target", "source"))
    for container in graph.structure.containers:
        stack = Stack.of(container)
        table.rows += [(stack.label, target, source) for target, source in moves(stack, names)]
    return table
