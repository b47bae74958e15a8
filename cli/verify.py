"""``verify``: a folder or a GGUF file compared with what it was made from, tensor by tensor; nothing is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from elastic_ir.cli import tables
from elastic_ir.cli.app import COMMANDS, JSON, given, run_flags
from elastic_ir.cli.options import SOURCE, Reading, gathered
from elastic_ir.formats.model_folder import cached_model, label_of

if TYPE_CHECKING:
    from elastic_ir.checkpoints.verify import Verified

EPILOG = """\
\b
Examples:
  elastic-ir verify llama-32
  elastic-ir verify llama-32 --against models/llama
  elastic-ir verify merged --against first --against second --hashes
  elastic-ir verify llama-Q4_K_M-32.gguf
  elastic-ir verify Qwen3-0.6B-36 --against Qwen/Qwen3-0.6B

The record (elastic_ir.json in a folder, the entry elastic_ir.record of a GGUF file) states the source of each tensor
and what was done to it. Both are read to the last byte and compared. Without --against, what has the sources' names
beside it, in the hub's cache, or behind the URL that the record names, is taken; where there is none, copies of one
layer are compared with each other, and the output states that the origins were not checked. What has no record is
compared by names. The exit status is 1 where anything differs.
"""
_SHOWN = 10  #: differences that are shown one by one


@click.command("verify", short_help=COMMANDS["verify"], epilog=EPILOG)
@click.argument("folder", type=SOURCE, metavar="DIR|FILE")
@click.option(
    "--against", type=SOURCE, multiple=True, metavar="SOURCE",
    help="What it was made from; of several sources give each once, in the record's order.",
)  # fmt: skip
@click.option("--hashes", is_flag=True, help="Show the SHA-256 of every tensor's bytes.")
@click.option("--no-check", is_flag=True, help="Compare bytes alone, and nothing with the network.")
@gathered("reading", Reading, run_flags, only=("component",))
@click.pass_context
def verify(
    ctx: click.Context,
    folder: str,
    against: tuple[str, ...],
    hashes: bool,
    no_check: bool,
    reading: Reading,
) -> None:
    """Compare every tensor of a checkpoint folder or a GGUF file with its origin, byte by byte.

    It is what stretch or squeeze has written. Nothing is changed. Meanwhile names, shapes and kinds of layers of a
    folder are compared with the network that transformers, if it is installed, builds from its configuration. Of a
    GGUF file every entry of the metadata is compared too, of a pipeline every file of its other parts.
    """
    from elastic_ir import api

    with tables.transfer(f"reading {folder}") as tell:
        found = api.verify_checkpoint(
            folder, against, hashes=hashes, check=not no_check, component=reading.component, tell=tell
        )
    if given(JSON):
        tables.say_json(as_data(found))
    else:
        _show(found, given=bool(against))
    if found.differences:
        tables.say(f"error: {_said(found)}", err=True)
        ctx.exit(1)


def _said(found: Verified) -> str:
    """What is not as it should be, in a line."""
    names = {difference.tensor for difference in found.differences}
    config = ""
    if found.config in names:
        config = (
            f"the metadata of {found.label} is not as it should be"
            if found.is_file
            else f"{found.label}/{found.config} is of another network"
        )
    beside = set(found.beside.differing) if found.beside is not None else set()
    count = len(names - {found.config} - beside)
    tensors = (
        f"{count} of {found.tensors} tensors of {found.label} are not as they should be" if count else ""
    )
    others = f"{len(beside)} files beside {found.label} are not the source's" if beside else ""
    return ", and ".join(filter(None, (tensors, others, config)))


def _show(found: Verified, given: bool) -> None:
    for name, (own, _) in found.hashes.items():
        tables.say(f"{own}  {name}")
    for difference in found.differences[:_SHOWN]:
        origin = f" ({difference.origin})" if difference.origin else ""
        tables.say(f"{difference.tensor} {difference.what}{origin}")
    if len(found.differences) > _SHOWN:
        tables.say(f"and {len(found.differences) - _SHOWN} more")
    size = tables.file_size(found.nbytes)
    facts = [
        (
            "file" if found.is_file else "folder",
            f"{found.label} ({tables.number(found.tensors)} tensors, {size})",
        )
    ]
    if found.sources:
        cached = [cached_model(path) is not None for path in found.sources]
        names = ", ".join(
            label_of(path) if inside else name
            for path, inside, name in zip(found.sources, cached, found.against, strict=True)
        )
        where = "in the hub's cache" if all(cached) else "beside it"
        if any("://" in name for name in found.against):
            where = "by the record"
        facts.append(("against", names if given else f"{names} (found {where})"))
    facts.append(("compared", f"{tables.number(found.compared)} tensors, byte by byte"))
    if found.beside is not None:
        text = f"{tables.number(found.beside.compared)} files of the other parts, byte by byte"
        if found.beside.changed:
            text += f"; not {', '.join(found.beside.changed)}, which has a record of its own: give it by --component"
        facts.append(("beside", text))
    if found.left_out:
        facts.append(("not compared", ", ".join(found.left_out)))
    if found.network:
        facts.append(("network", found.network))
    if found.how == "names":
        record = "elastic_ir.record" if found.is_file else "elastic_ir.json"
        facts.append(("note", f"no record ({record}) states where the tensors come from: compared by names"))
    if found.how == "copies":
        facts.append(
            (
                "origins",
                f"not checked, as {' and '.join(found.wanted)} is not beside it: only copies of one layer were "
                "compared with each other; give --against SOURCE",
            )
        )
    equal = "equal" if found.sources else "equal, as far as could be checked"
    facts.append(("result", "differs" if found.differences else equal))
    tables.show_facts(facts)


def as_data(found: Verified) -> dict[str, Any]:
    """All that is shown, as plain data (docs/checkpoints.md)."""
    return {
        "folder": found.label,
        "against": list(found.against),
        "recorded_sources": list(found.wanted),
        "how": found.how,
        "origins_checked": bool(found.sources),
        "tensors": found.tensors,
        "bytes": found.nbytes,
        "compared": found.compared,
        "network": found.network or None,
        "beside": found.beside.compared if found.beside is not None else None,
        "not_compared": list(found.left_out),
        "equal": not found.differences,
        "differences": [
            {"tensor": one.tensor, "origin": one.origin or None, "what": one.what}
            for one in found.differences
        ],
        "sha256": {name: {"is": own, "should_be": theirs} for name, (own, theirs) in found.hashes.items()},
    }
