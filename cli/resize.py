"""``stretch`` and ``squeeze``: read a source, change its depth, show what changed, write the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from elastic_ir.choices import Drop, Order, words_of
from elastic_ir.cli import output, tables
from elastic_ir.cli.app import COMMANDS, FORCE_OPTION
from elastic_ir.cli.kinds import as_path, is_gguf, is_remote
from elastic_ir.cli.options import (
    MAX_BLOCKS,
    SOURCE,
    Copies,
    Options,
    Parsed,
    Reading,
    checked_by,
    copy_options,
    gathered,
    note_source,
    option,
    read_indices,
    read_size,
    refuse_given,
    source_options,
)
from elastic_ir.formats import DCP, GGUF, writable

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Graph

STRETCH_EPILOG = """\
\b
Examples:
  elastic-ir stretch model.pt --to-depth 56
  elastic-ir stretch resnet50.safetensors --to-stages 3,4,23,3 -o resnet101.safetensors
  elastic-ir stretch weights.pt --arch torchvision:resnet50 --like torchvision:resnet101
  elastic-ir stretch llama-folder --to-units 48 --order interpolate
  elastic-ir stretch Qwen/Qwen3-0.6B --to-units 36
  elastic-ir stretch llama-folder --plan 0-15,6-21 -o deeper-llama --shard-size 2GB
  elastic-ir stretch llama --plan 0-15,b/6-21 --with b=tuned-llama -o mixed-llama
  elastic-ir stretch llama --to-units 40 --order interpolate --identity -o llama-pro
  elastic-ir stretch slices.yaml -o merged
  elastic-ir stretch llama-Q4_K_M.gguf --to-units 40 -o llama-40-Q4_K_M.gguf

A stage of blocks 0 1 2, of which 0 is the entry, becomes 0 1 2 1 2 by "append" and 0 1 1 2 2 by "interpolate".
The result loads strictly into the deeper network as its own library builds it. A folder of safetensors is streamed to
another folder, its config.json brought up to date, unless --to-depth, --like, --arch, --input-shape or an OUT with
an extension asks for its network; --resume goes on with a stopped run of that kind. A GGUF file becomes another one,
its tensors as they are and its metadata brought up to date. See what a network has first,
with "elastic-ir inspect".
"""
SQUEEZE_EPILOG = """\
\b
Examples:
  elastic-ir squeeze model.pt --to-depth 20
  elastic-ir squeeze resnet50.pt --to-stages 2,2,2,2 --drop even
  elastic-ir squeeze llama-folder --drop 20-27 -o pruned-llama
  elastic-ir squeeze llama-Q4_K_M.gguf --drop 20-27

"tail" undoes what stretch does by "append", "even" what it does by "interpolate". The entry of a stage is never
deleted.
"""


@dataclass(frozen=True)
class Wanted(Options):
    """The target as the options state it, and where the result goes."""

    to_depth: int | None = option(
        "--to-depth", type=click.IntRange(min=1), metavar="N",
        help="The number of weight layers on the longest path that the result shall have. They are spread over "
        "the stages as the network's family does it.",
    )  # fmt: skip
    to_stages: str | None = option(
        "--to-stages", type=Parsed("counts", checked_by("elastic_ir.plans.target:parse_stages"), stages=","),
        metavar="N,N,...",
        help="The blocks of each stage, the entry included: 3,4,23,3 for all stages, or by name "
        "encoder.block=8, which leaves the others as they are.",
    )  # fmt: skip
    to_units: int | None = option(
        "--to-units", type=click.IntRange(min=1), metavar="N",
        help="The number of units, for a network of one stage, such as most transformers.",
    )  # fmt: skip
    plan: str | None = option(
        "--plan", type=Parsed("plan", checked_by("elastic_ir.plans.plan:parse_plan"), stages="|"), metavar="PLAN",
        help='The source blocks of each stage in target order, stages joined by "|": "0-2,1,2|0,1"; or by name, '
        '"encoder.block=0-3,3", which leaves the others as they are. "b/6-21" are blocks of the network that --with '
        'names. The notation source:targets of the lottery-ticket paper, "0:0;1:1,2", is taken too. Quote it in a '
        "shell.",
    )  # fmt: skip
    like: str | None = option(
        "--like", type=SOURCE, metavar="SOURCE",
        help="Another network of the family; the result gets as many blocks in each stage as it has.",
    )  # fmt: skip
    keep_beside: tuple[str, ...] = option(
        "--keep-beside", multiple=True, metavar="NAME",
        help="A list, a tensor or, in a folder, an entry of config.json that stays as it is though something beside it "
        "changes its count; a change that is refused for it names it. May be given several times.",
    )  # fmt: skip
    out: str | None = option(
        "-o", "--out", type=click.Path(), metavar="OUT",
        help=f"The file to write ({output.WITH_WEIGHTS}) or the folder. Without it a name with the new "
        "depth is chosen beside the source, model-depth56.pt, and for a model of the hub in the working folder.",
    )  # fmt: skip
    no_check: bool = option(
        "--no-check", is_flag=True,
        help="Do not run the result once to see that every unit of the plan executes, nor compare a streamed folder "
        "with the network that its config.json names.",
    )  # fmt: skip
    dry_run: bool = option("--dry-run", is_flag=True, help="Show what would change, and write nothing.")
    shard_size: int | None = option(
        "--shard-size", type=Parsed("size", read_size), metavar="SIZE",
        help="The most bytes of tensors in one file of a folder that is streamed: 5GB, as transformers has it, or "
        "500MB, 2GiB. A GGUF file is written in parts of that size.",
    )  # fmt: skip
    durable: bool = option(
        "--durable", is_flag=True,
        help="Have a streamed folder, or a GGUF file, on the disk (fsync) before it gets its name, against power cuts.",
    )  # fmt: skip
    resume: bool = option(
        "--resume", is_flag=True,
        help="Go on with the streamed folder that an interrupted run of the same command has begun, if there is one.",
    )  # fmt: skip

    with_optimizer: bool = option(
        "--with-optimizer", is_flag=True,
        help="Write a training checkpoint (.pt, .ckpt) in the layout of the source's, so that training goes on: the "
        "optimizer's moments and averages of the weights follow the layers, and all else in it is kept.",
    )  # fmt: skip
    jobs: int | None = option(
        "--jobs", type=click.IntRange(min=1), metavar="N",
        help="Write the files of a streamed folder in so many processes, each its own; with --ray so many at once. Of "
        "use for remote storage and for several disks, not on one local disk.",
    )  # fmt: skip
    ray: str | None = option(
        "--ray", metavar="auto|local|ADDRESS",
        help="Write the files of a streamed folder on a Ray cluster, whose machines see source and target under the "
        "same paths: the one that this machine belongs to, a new one of this machine alone, or one by its address.",
    )  # fmt: skip

    def ways(self) -> dict[str, object]:
        """The options that state the target, with what each was given."""
        return self.given("to_depth", "to_stages", "to_units", "plan", "like")

    def check(self, needed: bool = True) -> None:
        """A usage error unless the target is stated in one way, or in none where none is needed."""
        given = [way for way, value in self.ways().items() if value is not None]
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(given)} state the target twice; give one of them")
        if not given and needed:
            raise click.UsageError(
                f"state how deep the result shall be, with one of {', '.join(self.ways())}"
            )

    def streams(self, source: str, reading: Reading) -> bool:
        """Whether a folder is streamed to a folder; a usage error for options that only streams have."""
        streamed = (
            reading.by_headers(source)
            and self.to_depth is None
            and self.like is None
            and (self.out is None or not writable(as_path(self.out)))
        )
        parts = is_gguf(source) and not streamed
        refuse_other_state(source, self.out, self.with_optimizer)
        for name, value in self.given("shard_size", "durable", "resume", "jobs", "ray").items():
            if value and not streamed and not (parts and name in ("--shard-size", "--durable")):
                why = f"{name} is for checkpoint folders that are written as folders"
                if parts and name == "--resume":
                    why += "; a GGUF file gets its name when all of it, parts too, is whole: a stop leaves nothing"
                raise click.UsageError(why)
        self.check_remote(streamed or reading.is_folder(source))
        return streamed

    def check_remote(self, folder: bool) -> None:
        """A usage error for what cannot be done behind a URL, if the result goes there; ``folder``: it may be one."""
        if self.remote:
            from elastic_ir.formats.remote import names_place, without_credentials

            shown = without_credentials(self.out or "")
            if not names_place(shown):
                raise click.UsageError(f"{shown} names no place behind its scheme")
            if not folder and not writable(as_path(self.out or "")):
                raise click.UsageError(
                    "behind a URL a file is written, by its suffix, or a model's folder, from one"
                )
            for name, value in self.given("durable", "resume", "jobs", "ray").items():
                if value:
                    raise click.UsageError(f"{name} is for folders that are written here, and -o is a URL")

    @property
    def remote(self) -> bool:
        """Whether the result goes behind a URL."""
        return self.out is not None and is_remote(self.out)

    def refuse_overwriting(self, out: Path, inputs: dict[str, str | None], streamed: bool) -> None:
        """OutputError where something would be written over that may not; work that was begun is another matter."""
        if self.remote and self.out is not None:
            output.refuse_own_url(self.out, inputs)
            if not self.dry_run:
                from elastic_ir.cli.remote import refuse_target

                refuse_target(self.out, streamed or not writable(as_path(self.out)))
            return
        begun = False
        if streamed:
            from elastic_ir.checkpoints.resumable import leftover

            begun = self.resume or leftover(out) is not None
        output.refuse_overwriting(out, inputs, dry_run=self.dry_run or begun)


_wanted_options = gathered("wanted", Wanted, FORCE_OPTION, MAX_BLOCKS)


@click.command("stretch", short_help=COMMANDS["stretch"], epilog=STRETCH_EPILOG)
@click.argument("source", type=SOURCE)
@_wanted_options
@click.option(
    "--order", type=click.Choice(words_of(Order)), default="append", show_default=True,
    help='Where the clones stand: "append" puts them as a group after the last block, "interpolate" each right '
    "after its source.",
)  # fmt: skip
@click.option(
    "--replicate", type=Parsed("indices", read_indices), metavar="1,2",
    help="Clone only these blocks of each stage, counted from 0; the others occur once.",
)  # fmt: skip
@copy_options
@source_options
def stretch(
    source: str, wanted: Wanted, order: Order, replicate: list[int] | None, copies: Copies, reading: Reading
) -> None:
    """Make SOURCE deeper by cloning its free units, with their weights, buffers and masks.

    State how deep by exactly one of --to-depth, --to-stages, --to-units, --plan and --like. SOURCE may be a mergekit
    recipe of slices (a .yaml), which states all of this.
    """
    if is_recipe(source):
        copies.refuse("a recipe of slices states what is scaled and which models it takes")
        _of_recipe(source, wanted, reading)
        return
    wanted.check()
    _resize("stretch", source, wanted, reading, {"order": order, "replicate": replicate}, copies)


@click.command("squeeze", short_help=COMMANDS["squeeze"], epilog=SQUEEZE_EPILOG)
@click.argument("source", type=SOURCE)
@_wanted_options
@click.option(
    "--drop", type=Parsed("indices", read_indices, *words_of(Drop)), default="tail", show_default=True,
    metavar="tail|even|3,4",
    help='Which free blocks are deleted: the last ones ("tail"), so that the rest is evenly spaced ("even"), or '
    "exactly those of these indices, counted from 0 in each stage. With indices no target is needed.",
)  # fmt: skip
@source_options
def squeeze(source: str, wanted: Wanted, drop: Drop | list[int], reading: Reading) -> None:
    """Make SOURCE shallower by deleting free units, with their weights, buffers and masks.

    State how deep by one of --to-depth, --to-stages, --to-units, --plan and --like, or name the blocks by --drop.
    """
    if is_recipe(source):
        _of_recipe(source, wanted, reading)
        return
    wanted.check(needed=isinstance(drop, str))
    _resize("squeeze", source, wanted, reading, {"drop": drop})


def refuse_other_state(source: str, out: str | None, with_optimizer: bool) -> None:
    """An error where a training's state is wanted and there is none, or a name shows one that is not wanted."""
    if with_optimizer or (out or "").endswith((".ckpt", ".bin")):
        from elastic_ir.cli.training_file import check, refuse_weights_alone

        (check if with_optimizer else refuse_weights_alone)(source, out)


def is_recipe(source: str) -> bool:
    """Whether a source is a file of YAML, and so a recipe of slices."""
    return source.lower().endswith((".yaml", ".yml"))


def _of_recipe(source: str, wanted: Wanted, reading: Reading) -> None:
    """Write what a mergekit recipe of slices describes."""
    from elastic_ir import api

    refuse_given(wanted.ways(), "a recipe of slices states the target")
    reading.refuse("a recipe of slices takes folders as they are")
    if wanted.out is None and not wanted.dry_run:
        raise click.UsageError("state where the result goes, by -o OUT")
    if wanted.with_optimizer:
        raise click.UsageError(
            "--with-optimizer is for training checkpoints, and a recipe of slices takes folders"
        )
    if wanted.out is not None and writable(as_path(wanted.out)):
        raise click.UsageError(
            "what a recipe of slices describes is a folder, and -o has the suffix of a file"
        )
    wanted.check_remote(folder=True)
    if wanted.out is not None:
        wanted.refuse_overwriting(Path(wanted.out), {"the recipe": source}, streamed=True)
    with tables.status(f"reading {source}"):
        after = api.merge(source, keep_beside=wanted.keep_beside)
    show_change(None, after)
    out = Path(wanted.out) if wanted.out is not None else output.named_after(source)[0]
    wanted.refuse_overwriting(out, {"the recipe": source}, streamed=True)
    _put(source, None, after, out, wanted, streamed=True)


def _resize(
    command: str,
    source: str,
    wanted: Wanted,
    reading: Reading,
    how: dict[str, Any],
    copies: Copies = Copies(),  # noqa: B008 - frozen
) -> None:
    from elastic_ir import api

    inputs = reading.inputs(source) | {"the --like": wanted.like}
    streamed = wanted.streams(source, reading)
    if wanted.out is not None:
        output.refuse_source(as_path(wanted.out))
        wanted.refuse_overwriting(Path(wanted.out), inputs, streamed)  # before minutes go into reading it
        output.refuse_other_form(source, as_path(wanted.out))
    reading.refuse_absent(source, wanted.like, *(other for _, other in copies.sources))
    before = reading.load(source, headers_only=streamed)
    note_source(source, before, reading.pretrained, whole=wanted.with_optimizer)
    how |= copies.read(reading, streamed)
    like = reading.load_reference(wanted.like, before) if wanted.like is not None else None
    with tables.status(f"{command} of {source}"):
        after: Graph = getattr(api, command)(
            before,
            wanted.to_depth,
            to_stages=wanted.to_stages,
            to_units=wanted.to_units,
            plan=wanted.plan,
            like=like,
            keep_beside=wanted.keep_beside,
            **how,
        )
    show_change(before, after)
    write(source, before, after, wanted, inputs, streamed, reading.key)


def write(
    source: str,
    before: Graph,
    after: Graph,
    wanted: Wanted,
    inputs: dict[str, str | None],
    streamed: bool,
    key: str | None = None,
) -> None:
    """Write a changed network as the options state it, and print what was written; ``inputs`` are not written over."""
    out = Path(wanted.out) if wanted.out is not None else output.default_output(source, before, after)
    if wanted.out is None and wanted.with_optimizer:
        from elastic_ir.cli.training_file import named

        out = named(out, source)
    if wanted.out is None and not wanted.dry_run:
        output.refuse_cache(out)
    wanted.refuse_overwriting(out, inputs, streamed)
    _put(source, before, after, out, wanted, streamed, key)


def _put(
    source: str,
    before: Graph | None,
    after: Graph,
    out: Path,
    wanted: Wanted,
    streamed: bool,
    key: str | None = None,
) -> None:
    """Write what was made to a path, or behind a URL, and say so."""
    if wanted.remote and wanted.out is not None:
        from elastic_ir.cli.remote import write_file, write_folder

        put = write_folder if streamed else write_file
        output.say_change(source, before, after, [], out, **put(after, wanted.out, wanted))
        return
    training = wanted.with_optimizer
    if before is not None and before.is_program and Path(source).is_dir():
        from elastic_ir.cli.training_file import is_training_folder

        training = is_training_folder(source) and not writable(out)
    if training and before is not None and not wanted.dry_run:
        from elastic_ir.cli.training_file import write_training

        written = write_training(source, before, after, out, key, check=not wanted.no_check)
    else:
        written = _write(after, out, wanted, streamed)
    output.say_change(source, before, after, written, out)


def _write(after: Graph, out: Path, wanted: Wanted, streamed: bool) -> list[Path]:
    """Write what was made, or show what would be written; what was written."""
    if streamed:
        from elastic_ir.cli.streamed import write_folder

        return write_folder(after, out, wanted)
    if GGUF.names(out) and after.origin.streamed:
        from elastic_ir.cli.streamed import write_gguf_file

        return write_gguf_file(after, out, wanted)
    if after.origin.folder_format == DCP.name and not writable(out):
        from elastic_ir.cli.streamed import write_dcp_folder

        return write_dcp_folder(after, out, wanted)
    if wanted.dry_run:
        tables.show_facts([output.would_write(out)])
        return []
    with tables.status(f"writing {out}"):
        written = output.save(after, out, check=not wanted.no_check)
    constants = after.emitted.constants
    if constants:
        changed = "; ".join(f"{name} {how}" for name, how in sorted(constants.items()))
        tables.show_facts([("constants", changed)])
    output.show_written(after, written)
    return written


def show_change(before: Graph | None, after: Graph) -> None:
    """The table of stages, and depth, parameters and sparsity, each before and after."""
    made = after.resequenced
    table = tables.Table(
        ("stage", "entry", "blocks", "plan", "shape"), optional=("entry", "shape"), spare=("shape", "entry")
    )
    # the target's stages, because a reference may show some that the source alone does not
    for stage, count, indices in zip(after.structure.stages, made.before, made.plan, strict=True):
        table.rows.append(
            (
                stage.name,
                stage.entry.path if stage.entry is not None else tables.ABSENT,
                tables.change(str(count), str(len(stage))),
                tables.indices_text(indices),
                tables.shape_text(stage.shape),
            )
        )
    tables.show_table(table)
    tables.say()
    # an empty graph is false
    facts = tables.change_facts(after if before is None else before, after)
    tables.show_facts([*facts, *([("note", after.structure.note)] if after.structure.note else [])])
