"""``undo``: the network that a change of depth was made from, out of its result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from elastic_ir.cli import output, tables
from elastic_ir.cli.app import COMMANDS, FORCE_OPTION, run_flags
from elastic_ir.cli.kinds import as_path, fetch
from elastic_ir.cli.options import SOURCE, Reading, gathered
from elastic_ir.cli.resize import Wanted, show_change, write

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Graph

EPILOG = """\
\b
Examples:
  elastic-ir undo llama-32
  elastic-ir undo llama-32 -o llama-again
  elastic-ir undo llama-Q4_K_M-32.gguf --dry-run
  elastic-ir undo model-depth56.pt
  elastic-ir undo deep.ckpt --with-optimizer

What stretch, squeeze and pipelines of them write states where each tensor comes from (elastic_ir.json in a folder,
the entry elastic_ir.record of a GGUF file, the graph in a .pt, .safetensors or .ticket file). undo takes the first
copy of each of the source's layers, with its name there, and brings the configuration back; the record then has one
change less, so the change before can be undone next. Where layers were deleted, or are there only scaled, it lists
what is missing and writes nothing. Weights that were trained since stay as they are now: copies of one layer that are
not equal any more show it, and the first one is taken.
"""
_SHOWN = 5  #: tensors that a note names


@click.command("undo", short_help=COMMANDS["undo"], epilog=EPILOG)
@click.argument("source", type=SOURCE, metavar="DIR|FILE")
@gathered(
    "wanted", Wanted, FORCE_OPTION, run_flags,
    only=(
        "keep_beside", "out", "no_check", "dry_run", "shard_size", "durable", "resume", "with_optimizer", "jobs", "ray",
    ),
)  # fmt: skip
@gathered("reading", Reading, only=("trust", "key", "component", "variant"))
def undo(source: str, wanted: Wanted, reading: Reading) -> None:
    """Restore what a checkpoint folder or file was made from, by the record of its last change of depth."""
    from elastic_ir import api

    streamed = wanted.streams(source, reading)
    if wanted.out is not None:
        output.refuse_source(as_path(wanted.out))
        wanted.refuse_overwriting(Path(wanted.out), {"the source": source}, streamed)
        output.refuse_other_form(source, as_path(wanted.out))
    fetch(source, reading.variant, reading.component)
    before = reading.load(source, headers_only=streamed or reading.by_headers(source))
    with tables.status(f"undo of {source}"):
        after = api.undo(before, keep_beside=wanted.keep_beside)
    show_change(before, after)
    if not wanted.no_check:
        _compare_copies(before, after)
    write(source, before, after, wanted, {"the source": source}, streamed, reading.key)


def _compare_copies(before: Graph, after: Graph) -> None:
    """Say whether what is left out equals what is taken in its place."""
    from elastic_ir.checkpoints.undo import copies_left_out

    with tables.status("comparing copies"):
        copies = copies_left_out(before, after)
    unlike = [name for name, equal in copies.items() if not equal]
    if not unlike:
        found = f"{tables.number(len(copies))} tensors are left out, each equal to the one that is taken"
        tables.show_facts([("copies", found if copies else "none to compare")])
        return
    some = ", ".join(unlike[:_SHOWN])
    more = f" and {len(unlike) - _SHOWN} more" if len(unlike) > _SHOWN else ""
    text = (
        f"weights were changed since: {len(unlike)} of {len(copies)} copies do not equal the first one, which is taken "
        f"({some}{more}); the result has the source's layers, and not all of its values"
    )
    tables.show_facts([("note", text)])
