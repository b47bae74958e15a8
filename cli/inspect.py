"""``inspect``: what a network is made of, read and shown, nothing written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from elastic_ir.cli import tables
from elastic_ir.cli.app import COMMANDS
from elastic_ir.cli.options import SOURCE, Reading, source_options

if TYPE_CHECKING:
    from elastic_ir.graph import Graph
    from elastic_ir.structure import Stage

EPILOG = """\
\b
Examples:
  elastic-ir inspect model.pt
  elastic-ir inspect timm:convnext_tiny --input-shape 1,3,224,224
  elastic-ir inspect ticket.safetensors --mask mask.safetensors --json

The table has one line for each stage, a run of blocks that share one activation shape. The entry is the block that
opens a stage: it is kept as it is. The free blocks are those that stretch clones and squeeze deletes, a unit at a
time; the count of blocks includes the entry. Depth counts the weight layers on the longest path. A "?" stands for
what names alone do not tell; --arch SOURCE tells it.
"""


@click.command("inspect", short_help=COMMANDS["inspect"], epilog=EPILOG)
@click.argument("source", type=SOURCE)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object, for programs.")
@source_options
def inspect(source: str, as_json: bool, reading: Reading) -> None:
    """Show what repeats in SOURCE: its stages, entries and free blocks, with depth, parameters and sparsity.

    Nothing is written. A network in which nothing repeats is no error here: its structure line says so.
    """
    with tables.status(f"reading {source}"):
        graph = reading.load(source)
        summary = summarise(graph, source)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    structure, sentence = tables.structure_of(graph)
    facts = [("network", graph.name), ("source", source)]
    if structure is None:
        facts.append(("structure", sentence))
    else:
        facts.append(("found from", structure.form))
        facts.append(("depth", tables.number(structure.depth)))
    facts.append(("parameters", tables.number(graph.parameter_count())))
    facts.append(("sparsity", tables.percent(graph.sparsity())))
    if structure is not None:
        facts.append(("stem", tables.run_of(structure.stem)))
        facts.append(("head", tables.run_of(structure.head)))
        if notes_of(graph, structure.note):
            facts.append(("note", notes_of(graph, structure.note)))
    tables.show_facts(facts)
    if structure is not None:
        click.echo()
        tables.show_table(stage_table(structure.stages))


def stage_table(stages: list[Stage]) -> tables.Table:
    """One line for each stage."""
    columns = ("stage", "blocks", "transition", "entry", "free", "unit", "layers", "shape")
    table = tables.Table(columns, optional=("transition", "entry", "shape"))
    for stage in stages:
        table.rows.append(
            (
                stage.name,
                str(len(stage)),
                stage.transition or tables.ABSENT,
                stage.entry.path if stage.entry is not None else tables.ABSENT,
                tables.run_of([block.path for block in stage.blocks]),
                tables.number(stage.period, "?"),
                tables.number(unit_layers(stage), "?" if stage.blocks else tables.ABSENT),
                tables.shape_text(stage.shape),
            )
        )
    return table


def unit_layers(stage: Stage) -> int | None:
    """Weight layers on the longest path of one free unit; None where that is not known or there is none."""
    return stage.units[0].layers if stage.period is not None and stage.blocks else None


def notes_of(graph: Graph, note: str) -> str:
    """What a reader should know: of the structure's limits, and of a class that could not be rebuilt."""
    return "; ".join(filter(None, (note, graph.metadata.get("class_note"))))


def summarise(graph: Graph, source: str) -> dict[str, Any]:
    """All that is shown, as plain data; ``stages`` is empty and ``note`` says why where nothing repeats."""
    structure, sentence = tables.structure_of(graph)
    stages = structure.stages if structure is not None else []
    return {
        "name": graph.name,
        "source": source,
        "form": structure.form if structure is not None else ("graph" if len(graph) else "names"),
        "depth": structure.depth if structure is not None else None,
        "parameters": graph.parameter_count(),
        "sparsity": graph.sparsity(),
        "stem": list(structure.stem) if structure is not None else [],
        "head": list(structure.head) if structure is not None else [],
        "note": notes_of(graph, structure.note if structure is not None else sentence),
        "stages": [
            {
                "name": stage.name,
                "blocks": len(stage),
                "entry": stage.entry.path if stage.entry is not None else None,
                "transition": stage.transition,
                "free": [block.path for block in stage.blocks],
                "unit": stage.period,
                "layers": unit_layers(stage),
                "shape": list(stage.shape) if stage.shape is not None else None,
            }
            for stage in stages
        ],
    }
