"""``apply`` and ``passes``: a pipeline of passes over a network, shown pass by pass; and which passes there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from elastic_ir.cli import output, tables
from elastic_ir.cli.app import COMMANDS, FORCE_OPTION, run_flags
from elastic_ir.cli.kinds import as_path
from elastic_ir.cli.options import (
    LOAD_PASS,
    MAX_BLOCKS,
    SOURCE,
    Reading,
    gathered,
    note_source,
    source_options,
)
from elastic_ir.cli.resize import Wanted, refuse_other_state

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Graph
    from elastic_ir.passes import Pass, Pipeline

APPLY_EPILOG = """\
\b
Examples:
  elastic-ir apply model.pt --passes "stretch{to-depth=56 order=interpolate}" -o deep.pt
  elastic-ir apply ticket.pt --passes compact,fold-batchnorm --measure -o small.onnx
  elastic-ir apply ticket.pt --passes "nm-project{n=2 m=4}" --dry-run --print-after-all
  elastic-ir apply model.pt --recipe recipe.yaml --verify-each
  elastic-ir apply model.pt --load-pass my_pass.py --passes "my-pass{rate=0.5}"

A pass is its name and, in braces, its options as KEY=VALUE, apart by blanks; passes are apart by commas. What passes
there are, and their options, "elastic-ir passes" lists.

\b
A recipe is the same as YAML, "version: 1" and below "passes:" a list (docs/passes.md, Recipes):
  version: 1
  passes: [{stretch: {to-depth: 56, order: interpolate}}, compact]
"""

PASSES_EPILOG = """\
\b
Examples:
  elastic-ir passes
  elastic-ir passes squeeze
  elastic-ir passes --names
  elastic-ir passes --new drop-sparse
  elastic-ir passes --schema > recipe.schema.json

Passes of other packages are found by the entry-point group elastic_ir.passes; those of a file by --load-pass FILE.
"""


def _complete_pipeline(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from elastic_ir.cli.completion import complete_pipeline

    return complete_pipeline(ctx, param, incomplete)


@click.command("apply", short_help=COMMANDS["apply"], epilog=APPLY_EPILOG)
@click.argument("source", type=SOURCE)
@click.option(
    "--passes", "text", metavar="PIPELINE", shell_complete=_complete_pipeline,
    help='The passes, in the order they run: "stretch{to-depth=56},compact".',
)  # fmt: skip
@click.option(
    "--recipe", type=click.Path(), metavar="FILE", help="A YAML file with the passes, in place of --passes."
)
@LOAD_PASS
@MAX_BLOCKS
@click.option(
    "-o", "--out", type=click.Path(), metavar="OUT",
    help=f"The file to write ({output.WITH_WEIGHTS}) or the folder. Without it, the source's name with "
    '"-applied".',
)  # fmt: skip
@click.option(
    "--print-after",
    multiple=True,
    metavar="PASS",
    help="Print the graph after the pass of this name. May be repeated.",
)
@click.option("--print-after-all", is_flag=True, help="Print the graph after every pass.")
@click.option(
    "--verify-each", is_flag=True,
    help="Emit and run the network after every pass: each block runs, outputs are finite, and those of passes that "
    "preserve the function stay.",
)  # fmt: skip
@click.option(
    "--time-passes", is_flag=True, help="Show the seconds that each pass took, its verification included."
)
@click.option(
    "--measure", is_flag=True,
    help="Count floating-point operations and bytes, and time both networks in onnxruntime (one thread), before and "
    "after; state what each pass can and cannot change of size and latency.",
)  # fmt: skip
@click.option("--no-check", is_flag=True, help="Do not run the result once to see that every unit executes.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and write nothing.")
@gathered("wanted", Wanted, FORCE_OPTION, only=("with_optimizer",))
@source_options
def apply(
    source: str, text: str | None, recipe: str | None, load_pass: tuple[str, ...], out: str | None,
    print_after: tuple[str, ...], print_after_all: bool, verify_each: bool, time_passes: bool, measure: bool,
    no_check: bool, dry_run: bool, wanted: Wanted, reading: Reading,
) -> None:  # fmt: skip
    """Run a pipeline of passes over SOURCE and write the result.

    The graph is verified after each pass, and with --verify-each it is run; an error names the pass. The record
    of what ran is written with the graph.
    """
    pipeline = _pipeline(text, recipe, load_pass)
    names = {item.name for item in pipeline}
    for name in print_after:
        if name not in names:
            raise click.UsageError(f"--print-after {name}: the pipeline has no such pass")
    wanted = replace(wanted, out=out, no_check=no_check, dry_run=dry_run)
    wanted.check_remote(reading.is_folder(source))
    path = as_path(out) if out is not None else output.applied(source)
    refuse_other_state(source, out, wanted.with_optimizer)
    if wanted.with_optimizer and out is None:
        from elastic_ir.cli.training_file import named

        path = named(path, source)
    if out is None and not dry_run:
        output.refuse_cache(path)
    output.refuse_source(path)
    wanted.refuse_overwriting(path, reading.inputs(source), streamed=False)
    before = reading.load(source)
    note_source(source, before, reading.pretrained, whole=wanted.with_optimizer)
    times: list[tuple[str, float]] = []
    notes: list[tuple[str, str]] = []

    def observe(item: Pass, graph: Graph, seconds: float) -> None:
        times.append((item.name, seconds))
        summary = item.summary(graph)
        if summary is not None:
            notes.append(("note", f"{item.name}: {summary}"))
        if verify_each:
            notes.append(("verified", f"{item.name}: {_verified(graph.history.verified[-1])}"))
        if print_after_all or item.name in print_after:
            tables.say(f"after {item.name}:")
            tables.say(*str(graph).split("\n"))

    after = pipeline.run(before, observe, verify_each=verify_each)
    if time_passes:
        tables.show_table(
            tables.Table(("pass", "time"), [(name, f"{seconds:.3f} s") for name, seconds in times])
        )
        tables.say()
    _show_change(before, after)
    if notes:
        tables.show_facts(notes)
    cost = {**_show_cost(before, after), **_show_gains(pipeline, before, after)} if measure else None
    written: list[Path] = []
    data: dict[str, Any] = {}
    if out is not None and wanted.remote:
        from elastic_ir.cli.remote import write_file

        data = write_file(after, out, wanted)
    elif dry_run:
        tables.show_facts([output.would_write(path)])
    elif wanted.with_optimizer:
        from elastic_ir.cli.training_file import write_training

        written = write_training(source, before, after, path, reading.key, check=not no_check)
    else:
        with tables.status(f"writing {path}"):
            written = output.save(after, path, check=not no_check)
        output.show_written(after, written)
    ran = [{"pass": name, "seconds": seconds} for name, seconds in times]
    output.say_change(source, before, after, written, path, passes=ran, measured=cost, **data)


def _pipeline(text: str | None, recipe: str | None, files: tuple[str, ...]) -> Pipeline:
    from elastic_ir.passes import Pipeline, load_passes

    if text is None and recipe is None:
        raise click.UsageError("state what to run by --passes or by --recipe")
    if text is not None and recipe is not None:
        raise click.UsageError("--passes and --recipe: both are given; give one")
    for path in files:
        load_passes(path)
    if text is not None:
        return Pipeline.parse(text)
    from elastic_ir.passes.infra.recipe import read_recipe

    assert recipe is not None
    return read_recipe(recipe)


def _verified(found: Mapping[str, Any]) -> str:
    """What a run after a pass has shown, in words."""
    blocks = found["blocks"]
    text = f"{tables.number(blocks)} blocks ran" if blocks else "it ran"
    if "drift" in found:
        text += f", outputs differ by {found['drift']:.1g} ({found['allowed']:.1g} allowed)"
    return text


def _show_cost(before: Graph, after: Graph) -> dict[str, Any]:
    """Operations as torch counts them, and the latency in onnxruntime; also as plain data."""
    from elastic_ir.analysis.cost import compare_costs
    from elastic_ir.emit.latency import compare_latency

    with tables.status("measuring"):
        change = compare_costs(before, after)
        times = compare_latency(before, after)
    low, high = times.spread
    facts = []
    if change.before.flops is not None and change.after.flops is not None:
        facts.append(("FLOPs", tables.change(*map(tables.number, (change.before.flops, change.after.flops)))))
    told = f"a factor of {times.ratio:.2f} ({low:.2f} to {high:.2f} at 95 % confidence)"
    if times.noise:
        told += "; the difference is no more than noise"
    facts.append(("latency", f"{times.before:g} ms -> {times.after:g} ms in onnxruntime, {told}"))
    tables.show_facts(facts)
    return {
        "flops": {"before": change.before.flops, "after": change.after.flops},
        "milliseconds": {"before": times.before, "after": times.after},
        "ratio": times.ratio, "spread": [low, high], "noise": times.noise,
    }  # fmt: skip


def _show_gains(pipeline: Pipeline, before: Graph, after: Graph) -> dict[str, Any]:
    """The bytes of the weights, and what each pass can and cannot do for them and for latency; also as plain data."""
    from elastic_ir.analysis.cost import stored_bytes

    old, new, packed = stored_bytes(before), stored_bytes(after), stored_bytes(after, packed=True)
    size = (
        tables.change(tables.file_size(old), tables.file_size(new)) + f", a factor of {new / max(old, 1):.2f}"
    )
    if packed < new:
        size += f"; {tables.file_size(packed)} as .ticket"
    told = {item.name: item.gains for item in pipeline if item.gains}
    tables.show_facts([("size", size), *(("gains", f"{name}: {text}") for name, text in told.items())])
    return {"bytes": {"before": old, "after": new, "packed": packed}, "gains": told}


def _show_change(before: Graph, after: Graph) -> None:
    found = [tables.structure_of(graph)[0] for graph in (before, after)]
    if all(found):
        counts = [
            {stage.name: str(len(stage)) for stage in structure.stages} for structure in found if structure
        ]
        table = tables.Table(("stage", "blocks"))
        for name in {**counts[0], **counts[1]}:
            table.rows.append(
                (name, tables.change(counts[0].get(name, tables.ABSENT), counts[1].get(name, tables.ABSENT)))
            )
        tables.show_table(table)
        tables.say()
    tables.show_facts(tables.change_facts(before, after))


_COLUMNS = ("option", "type", "default", "meaning")  #: of a pass's options


def _complete_pass(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from elastic_ir.passes import registered

    return [name for name in registered() if name.startswith(incomplete)]


@click.command("passes", short_help=COMMANDS["passes"], epilog=PASSES_EPILOG)
@click.argument("name", required=False, shell_complete=_complete_pass)
@LOAD_PASS
@click.option("--names", is_flag=True, help="Print the names only, one a line, for programs.")
@click.option(
    "--schema", is_flag=True, help="Print the JSON schema of recipes, of loaded passes too, for editors."
)
@click.option(
    "--new", metavar="NAME",
    help="Write a pass of your own to begin from, and its test, into the working folder.",
)  # fmt: skip
@FORCE_OPTION
@run_flags
def passes(name: str | None, load_pass: tuple[str, ...], names: bool, schema: bool, new: str | None) -> None:
    """List the passes, the rewrites that a network can go through, or only the one called NAME.

    Below each pass stand its options, with what can be typed for each and its default. Options that only Python can
    give, such as a graph, are left out.
    """
    from elastic_ir.passes import find_pass, load_passes, registered
    from elastic_ir.passes.infra.option_table import option_table

    for path in load_pass:
        load_passes(path)
    if new is not None:
        from elastic_ir.cli.new_pass import write_new_pass

        written = write_new_pass(new)
        run = f"elastic-ir apply MODEL --load-pass {written[0]} --passes {new}"
        tables.show_facts([*output.wrote(written), ("run", run), ("test", f"python -m pytest {written[1]}")])
        tables.say_result(output.written_data(written))
        return
    if schema:
        from elastic_ir.passes.infra.schema import recipe_schema

        tables.say_json(recipe_schema(registered()))
        return
    found = {name: find_pass(name)} if name is not None else registered()
    described = {
        title: {
            "help": kind.help(),
            "options": [dict(zip(_COLUMNS, row, strict=False)) for row in option_table(kind)],
        }
        for title, kind in found.items()
    }
    tables.say_result({"passes": described})
    for place, (title, kind) in enumerate(found.items()):
        if names:
            tables.say(title)
            continue
        if place:
            tables.say()
        tables.say(f": {kind.help()}", bold=title)
        options = [(*row[:3], row[3] or tables.ABSENT) for row in option_table(kind)]
        if options:
            tables.show_table(tables.Table(_COLUMNS, [*options], optional=("meaning",)))
