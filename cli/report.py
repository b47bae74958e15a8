"""``report``: a network, or two side by side, as one page that a browser shows."""

from __future__ import annotations

from pathlib import Path

import click

from elastic_ir.cli import output, tables
from elastic_ir.cli.app import COMMANDS, FORCE_OPTION
from elastic_ir.cli.kinds import hub_label
from elastic_ir.cli.options import SOURCE, Here, Reading, source_options

EPILOG = """\
\b
Examples:
  elastic-ir report model.pt
  elastic-ir report model-depth56.pt --against model.pt -o resnet56.html
  elastic-ir report llama-32 --against llama -o llama.html
  elastic-ir report model.pt -o model.json

The page is one file that fetches nothing: stages and blocks, copies joined to their sources, sparsity by layer, masks
as images, histograms of weights, what each stage costs, and how the network was made. Whichever of two networks has a
record of being made of the other is shown as the result. Of checkpoint folders and GGUF files the headers alone are
read: structure, shapes and bytes.
"""


@click.command("report", short_help=COMMANDS["report"], epilog=EPILOG)
@click.argument("source", type=SOURCE)
@click.option(
    "--against", type=SOURCE, metavar="OTHER", help="The network to show SOURCE beside: what it was made of."
)
@click.option(
    "-o", "--out", type=Here(), metavar="OUT",
    help="The file to write: .html, or .json for the page's document alone (docs/report.md). Without it, the source's "
    "name with .html.",
)  # fmt: skip
@click.option(
    "--values/--no-values", default=None,
    help="Read the weights for histograms, or do not. Without either, they are read where they are in one file and not "
    "larger than 256 MiB.",
)  # fmt: skip
@FORCE_OPTION
@source_options
def report(source: str, against: str | None, out: str | None, values: bool | None, reading: Reading) -> None:
    """Write a page that shows SOURCE: structure, weights, masks, cost, and where its layers come from."""
    from elastic_ir.frontends.sources import is_name
    from elastic_ir.pictures import report_of
    from elastic_ir.pictures.page import PAGE, check_name

    path = Path(out) if out is not None else output.beside(source, PAGE)
    check_name(path)
    if out is None:
        output.refuse_cache(path)
    output.refuse_overwriting(path, reading.inputs(source) | {"the --against": against})
    graphs = [
        reading.load(each, headers_only=not values and (reading.by_headers(each) or is_name(each)))
        for each in (source, against)
        if each is not None
    ]
    with tables.status(f"collecting what {path} shows"):
        made = report_of(
            *graphs, label=hub_label(source) or source, other=hub_label(against) or against if against else "",
            values=values,
        )  # fmt: skip
        made.save(path)
    if made.document["note"]:
        tables.show_facts([("note", made.document["note"])])
    tables.show_facts(output.wrote([path]))
    tables.say_result({"source": source, "against": against, **output.written_data([path])})
