"""A network's stages as the table that ``elastic-ir inspect`` prints, a notebook shows, and ``graph.summary()`` is."""

from __future__ import annotations

from collections import Counter
from html import escape

from elastic_ir.analysis.kinds import kinds_of
from elastic_ir.analysis.summary import Row, summarise
from elastic_ir.errors import StructureError, printable
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Stage, Unit
from elastic_ir.ir.tables import ABSENT, Table, aligned, indices_text, number, percent, run_of, shape_text


def stage_table(graph: Graph, rows: list[Row]) -> Table:
    """One line for each stage and for what lies around the stages, and one with the sums."""
    table = Table(
        (
            "stage",
            "blocks",
            "free",
            "unit",
            "type",
            "output",
            "layers",
            "depth",
            "parameters",
            "sparsity",
            "kinds",
            "names",
        ),
        optional=("unit", "type", "output", "sparsity", "kinds", "names"),
        numeric=("blocks", "free", "unit", "layers", "depth", "parameters", "sparsity"),
        spare=("depth", "unit", "output", "kinds", "layers", "type", "names"),
    )
    stages = graph.structure.stages
    masked = graph.sparsity() > 0
    uneven = any(stage.period != 1 for stage in stages)
    shared = len({stage.container for stage in stages}) < len(stages)
    depth = graph.structure.depth
    none = ABSENT
    for row in rows:
        stage = row.stage
        output = str(row.activation) if row.activation is not None else none
        if stage is not None and row.activation is None:
            output = shape_text(stage.shape)
        unknown = "?" if stage is not None else none
        table.rows.append(
            (
                row.name,
                str(len(stage)) if stage is not None else none,
                str(len(stage.blocks)) if stage is not None else none,
                number(stage.period, "?") if stage is not None and uneven else none,
                row.type or none,
                output,
                number(row.layers, unknown),
                share_text(row.layers, depth, unknown),
                number(row.parameters),
                percent(row.sparsity) if masked and row.prunable else none,
                _kinds(graph, stage) if stage is not None else none,
                _names(stage, shared) if stage is not None else none,
            )
        )
    blocks = sum(len(stage) for stage in stages)
    free = sum(len(stage.blocks) for stage in stages)
    table.rows.append(
        (
            "total", str(blocks), str(free), none, none, none, number(depth, "?"),
            share_text(depth, depth, "?"), number(sum(row.parameters for row in rows)),
            percent(graph.sparsity()) if masked else none, none, none,
        )
    )  # fmt: skip
    return table


def _kinds(graph: Graph, stage: Stage) -> str:
    """Which blocks are of which kind, where a stage has several."""
    kinds = kinds_of(graph, stage)
    parts = [f"{kind.name}: {indices_text(kind.blocks)}" for kind in kinds]
    return "; ".join(parts) if len(kinds) > 1 else ABSENT


def _names(stage: Stage, shared: bool) -> str:
    """How a stage's blocks are named, if its own name does not show it; of several stages in one list, which."""
    names = ", ".join(box.template for box in stage.containers)
    if shared and len(stage.containers) == 1:
        return run_of([block.path for block in stage.all_blocks])
    return names if names != f"{stage.name}.{{i}}" else ABSENT


def share_text(layers: int | None, depth: int | None, unknown: str) -> str:
    """A row's layers as a share of the depth: ``17 %``."""
    return unknown if layers is None or not depth else f"{layers / depth * 100:.0f} %"


def facts_of(graph: Graph) -> tuple[list[tuple[str, str]], Table | None]:
    """Names with what is known under them, and the table; None where nothing repeats, which is then a fact."""
    facts = [("network", graph.name)]
    table = None
    try:
        depth = graph.structure.depth
        facts.append(("depth", number(depth)))
        table = stage_table(graph, summarise(graph))
    except StructureError as error:
        facts.append(("structure", str(error)))
    facts += [("parameters", number(graph.parameter_count())), ("sparsity", percent(graph.sparsity()))]
    return facts, table


def as_text(graph: Graph) -> str:
    """Facts and table as plain text, one line each."""
    facts, table = facts_of(graph)
    lines = [f"{name + ':':12}{value}" for name, value in facts]
    if table is not None:
        columns, rows = table.shown()
        lines += ["", *aligned([columns, *rows], [name in table.numeric for name in columns])]
    return "\n".join(map(printable, lines))


def as_html(graph: Graph) -> str:
    """Facts and table as HTML without scripts and styles of its own, for notebooks."""
    facts, table = facts_of(graph)
    if table is None:
        return f"<div>{_html_facts(facts)}</div>"
    columns, rows = table.shown()

    def line(cells: list[str], tag: str) -> str:
        sides = ("right" if name in table.numeric else "left" for name in columns)
        return "".join(
            f'<{tag} style="text-align:{side}">{escape(printable(cell))}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    shown = f"<table><thead><tr>{line(columns, 'th')}</tr></thead><tbody>{body}</tbody></table></div>"
    return f"<div>{_html_facts(facts)}{shown}"


def _html_facts(facts: list[tuple[str, str]]) -> str:
    return "<br>".join(f"<b>{escape(name)}</b> {escape(printable(value))}" for name, value in facts)


def stage_as_html(stage: Stage) -> str:
    """A stage in a few lines, for notebooks."""
    ends = [(what, block.path) for what, block in (("entry", stage.entry), ("last", stage.exit)) if block]
    layers = sorted({number(block.layers) for block in stage.blocks})
    facts = [
        ("stage", stage.name),
        ("blocks", str(len(stage))),
        *ends,
        ("free", f"{len(stage.blocks)}: {run_of([block.path for block in stage.blocks])}"),
        ("unit", {1: "1 block", None: "unknown"}.get(stage.period, f"{stage.period} blocks")),
        ("layers of a block", ", ".join(layers) or ABSENT),
        ("shape", shape_text(stage.shape)),
    ]
    return f"<div>{_html_facts(facts)}</div>"


def unit_as_html(unit: Unit) -> str:
    """A unit in a few lines, for notebooks: its blocks, what flows, and its operations."""
    counts = Counter(node.op for block in unit.blocks for node in block.nodes)
    facts = [("unit", ", ".join(block.path for block in unit.blocks)), ("layers", number(unit.layers))]
    if counts:
        flows = (unit.blocks[0].inputs, unit.blocks[-1].outputs)
        takes, gives = (
            ", ".join(shape_text(value.type.shape if value.type else None) for value in values)
            for values in flows
        )
        facts += [("takes", takes or ABSENT), ("gives", gives or ABSENT)]
        facts.append(("operations", ", ".join(f"{op} x{count}" for op, count in counts.items())))
    return f"<div>{_html_facts(facts)}</div>"
