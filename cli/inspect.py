"""``inspect``: what a network is made of, read and shown, nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from elastic_ir.cli import output, tables
from elastic_ir.cli.app import COMMANDS, FORCE_OPTION, JSON, given
from elastic_ir.cli.kinds import hub_label
from elastic_ir.cli.options import SOURCE, Reading, left_behind, source_options

if TYPE_CHECKING:
    from elastic_ir.analysis.summary import Row
    from elastic_ir.discovery.named_lists import RepeatedLists
    from elastic_ir.ir.graph import Graph
    from elastic_ir.ir.structure import Stage

EPILOG = """\
\b
Examples:
  elastic-ir inspect model.pt
  elastic-ir inspect timm:convnext_tiny --input-shape 1,3,224,224
  elastic-ir inspect ticket.safetensors --mask mask.safetensors --json
  elastic-ir inspect model-depth56.pt --graph resnet56.svg

The table has one line for each stage, a run of blocks that share one activation shape, and one for what lies before,
between and after the stages, so that the parameters add up. Of a stage's blocks those that stretch clones and squeeze
deletes are counted as free; the others are its entry, which is kept. A unit is how many blocks are cloned or deleted
together. "256 @ 56x56" is 256 channels at a resolution of 56 by 56. Layers are the weight layers on the longest path;
the depth is all of them. A "?" stands for what names alone do not show; --arch SOURCE does. Of a folder of
safetensors only the headers are read, however large it is; --input-shape has its network built and traced.
"""


@click.command("inspect", short_help=COMMANDS["inspect"], epilog=EPILOG)
@click.argument("source", type=SOURCE)
@click.option(
    "--graph", "drawing", type=click.Path(), metavar="FILE",
    help="Draw the stages and blocks into FILE as well: .svg, .dot (Graphviz) or .mermaid (Markdown). Where SOURCE has "
    "a record of its change of depth, copies are joined to the blocks that they are of.",
)  # fmt: skip
@FORCE_OPTION
@source_options
def inspect(source: str, drawing: str | None, reading: Reading) -> None:
    """Show what repeats in SOURCE: its stages and their blocks, with type, channels, depth and parameters.

    Nothing is written but a drawing, if one is asked for. A network in which nothing repeats is not an error here; its
    structure line states it.
    """
    from elastic_ir.frontends.sources import is_name

    if drawing is not None:
        from elastic_ir.pictures.drawing import check_name

        check_name(drawing)
        output.refuse_overwriting(Path(drawing), reading.inputs(source), option="--graph FILE")
    graph = reading.load(source, headers_only=reading.by_headers(source) or is_name(source))
    with tables.status(f"reading {source}"):
        structure, sentence = tables.structure_of(graph)
        from elastic_ir.analysis.summary import summarise

        rows = summarise(graph) if structure is not None else []
    if drawing is not None:
        from elastic_ir.pictures.drawing import save_drawing

        save_drawing(graph, drawing)
    if given(JSON):
        tables.say_json(as_data(graph, source, rows))
        return
    facts = [("network", graph.name), ("source", hub_label(source) or source), *graph.origin.facts()]
    if structure is None:
        facts.append(("structure", sentence))
    else:
        facts.append(("found from", found_from(graph)))
        facts.append(("depth", tables.depth_text(graph)))
    facts.append(("parameters", tables.number(graph.parameter_count())))
    facts.append(("sparsity", tables.percent(graph.sparsity())))
    if structure is not None and notes_of(graph, structure.note):
        facts.append(("note", notes_of(graph, structure.note)))
    others = repeated_besides(graph) if structure is not None and not reading.at else []
    if others:
        facts.append(
            ("repeats too", f"{', '.join(map(str, others))}; --at {others[0].name!r} changes it instead")
        )
    if left_behind(graph):
        facts.append(("note", left_behind(graph)))
    tables.show_facts(facts)
    if structure is not None:
        tables.say()
        from elastic_ir.analysis.overview import stage_table

        tables.show_table(stage_table(graph, rows))
    if drawing is not None:
        tables.show_facts(output.wrote([Path(drawing)]))


def repeated_besides(graph: Graph) -> list[RepeatedLists]:
    """The lists that repeat inside of the stages' blocks or around them."""
    from elastic_ir.discovery.named_lists import other_lists

    return other_lists(graph)


def found_from(graph: Graph) -> str:
    """``graph (torch.fx)``, ``graph (torch.export)`` or ``names``."""
    by = graph.info.frontend
    return f"{graph.structure.form} (torch.{by})" if by and len(graph) else graph.structure.form


def unit_layers(stage: Stage) -> int | None:
    """Weight layers on the longest path of one free unit; None where that is not known or there is none."""
    return stage.units[0].layers if stage.period is not None and stage.blocks else None


def notes_of(graph: Graph, note: str) -> str:
    """What a reader should know: of the structure's limits, of what was not traced into, of a class not rebuilt."""
    return "; ".join(filter(None, (note, graph.info.sealed_note, graph.info.class_note)))


def as_data(graph: Graph, source: str, rows: list[Row]) -> dict[str, Any]:
    """All that is shown, as plain data (docs/inspect.md); ``note`` gives the reason where there are no stages."""
    structure, sentence = tables.structure_of(graph)
    depth = structure.depth if structure is not None else None
    return {
        "name": graph.name,
        "source": source,
        **({"file": facts} if (facts := dict(graph.origin.facts())) else {}),
        "form": structure.form if structure is not None else ("graph" if len(graph) else "names"),
        "frontend": (graph.info.frontend or None) if len(graph) else None,
        "depth": depth,
        "parameters": graph.parameter_count(),
        "sparsity": graph.sparsity(),
        "stem": list(structure.stem) if structure is not None else [],
        "head": list(structure.head) if structure is not None else [],
        "note": notes_of(graph, structure.note if structure is not None else sentence),
        "lists": [{"name": one.name, "blocks": list(one.blocks)} for one in repeated_besides(graph)],
        "left_behind": list(graph.info.left_behind),
        "stages": [stage_data(graph, row, row.stage, depth) for row in rows if row.stage is not None],
        "rows": [
            {"kind": row.kind, "name": row.name, "modules": list(row.modules), **row_data(row, depth)}
            for row in rows
        ],
    }


def stage_data(graph: Graph, row: Row, stage: Stage, depth: int | None) -> dict[str, Any]:
    """A stage as plain data."""
    from elastic_ir.analysis.kinds import kinds_of

    found = row.activation
    return {
        "name": stage.name,
        "blocks": len(stage),
        "entry": stage.entry.path if stage.entry is not None else None,
        "transition": stage.transition,
        "free": [block.path for block in stage.blocks],
        "last": stage.exit.path if stage.exit is not None else None,
        "names": [box.template for box in stage.containers],
        "kinds": [{"name": kind.name, "blocks": list(kind.blocks)} for kind in kinds_of(graph, stage)],
        "unit": stage.period,
        "layers": unit_layers(stage),
        "shape": list(stage.shape) if stage.shape is not None else None,
        "channels": found.channels if found is not None else None,
        "resolution": list(found.extents) if found is not None and not found.tokens else None,
        "tokens": found.extents[0] if found is not None and found.tokens else None,
        **{f"stage_{key}" if key == "layers" else key: value for key, value in row_data(row, depth).items()},
    }


def row_data(row: Row, depth: int | None) -> dict[str, Any]:
    """What every row has, as plain data."""
    return {
        "type": row.type,
        "layers": row.layers,
        "depth_share": row.layers / depth if row.layers is not None and depth else None,
        "parameters": row.parameters,
        "sparsity": row.sparsity,
    }
