"""``--with-optimizer``: a training checkpoint that is one file, written again in the layout of its source."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from elastic_ir.cli import output, tables
from elastic_ir.cli.kinds import is_remote
from elastic_ir.errors import OutputError
from elastic_ir.formats import ACCELERATE, PYTORCH, folder_format

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Graph

_OTHERS = (".ckpt", ".bin")  #: suffixes of such files, beside those that weights alone are written with


def is_training_file(path: Path) -> bool:
    """Whether a name is one of a training checkpoint that is one file."""
    return PYTORCH.names(path) or path.suffix in _OTHERS


def is_training_folder(source: str) -> bool:
    """Whether a source is a folder of Accelerate's; a graph over an architecture does not know that it is of one."""
    return folder_format(Path(source)) is ACCELERATE


def check(source: str, out: str | None) -> None:
    """A usage error unless source and result may be training checkpoints of ``torch.save``."""
    if os.path.isdir(source) or not os.path.exists(source) or not is_training_file(Path(source)):
        raise click.UsageError(
            "--with-optimizer is for training checkpoints of torch.save (.pt, .pth, .ckpt); folders of "
            "torch.distributed.checkpoint and of Accelerate carry their optimizer without it"
        )
    if out is not None and is_remote(out):
        raise click.UsageError("--with-optimizer writes a file here, and -o is a URL")
    if out is not None and not is_training_file(Path(out)):
        raise click.UsageError("--with-optimizer writes .pt, .pth or .ckpt; -o has another suffix")


def refuse_weights_alone(source: str, out: str | None) -> None:
    """OutputError where weights alone would get a name that says there is a training's state with them."""
    path = Path(out or "")
    if path.suffix in _OTHERS and os.path.isfile(source):
        raise OutputError(
            f"{path} would hold weights alone, and who reads a {path.suffix} looks for a training's state; write "
            f"{path.with_suffix(PYTORCH.suffixes[0])}, or give --with-optimizer to write all of it"
        )


def named(out: Path, source: str) -> Path:
    """A chosen name with the source's own suffix."""
    kept = output.kept_suffix(Path(source))  # which the name ends with
    return out.with_name(out.name[: len(out.name) - len(kept)] + Path(source).suffix)


def write_training(
    source: str, before: Graph, after: Graph, out: Path, key: str | None, check: bool
) -> list[Path]:
    """Write a training checkpoint with its optimizer, and say what was written."""
    from elastic_ir import api

    with tables.status(f"writing {out}"):
        written = api.save_training(after, out, source, before, key, check=check)
    output.show_written(after, written)
    return written
