"""How much a source may ask for, in one place: what is beyond was made to fill memory or to run for ever. No torch.

Each limit is far above what networks have, and low enough that whatever keeps to it is answered in seconds and a few
hundred megabytes. ONNX's own limits, which are about its operators, are in :mod:`elastic_ir.onnx_model.limits`. The
table in docs/files.md is for users.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from elastic_ir.errors import ElasticError, PlanError, SourceError

#: Bytes of a pickle, or of a record that ElasticIR wrote, that are read into memory.
RECORD_BYTES = 256 << 20
#: Instructions of a pickle, of which a tensor has some thirty and each may take a hundred bytes of memory; and so many
#: bytes of the file give it one more.
PICKLE_STEPS = 800_000
BYTES_A_STEP = 200
#: Bytes of a JSON file; the header of a ``.safetensors`` file has the format's own limit.
JSON_BYTES = 128 << 20
#: Entries of JSON (lists, tables and what they hold): each takes a hundred bytes and more as a Python object.
JSON_ENTRIES = 2_000_000
#: Lists and tables of JSON in one another: what is deeper cannot be copied.
JSON_LEVELS = 100
#: Bytes of a YAML file, which is read at some hundred thousand a second, and the brackets in it.
YAML_BYTES = 256 << 10
YAML_BRACKETS = 10_000
#: Brackets of a YAML file in one another, which PyYAML takes seconds for, and its entries with all aliases written out.
YAML_LEVELS = 50
YAML_ENTRIES = 100_000
#: Numbers that a tensor may have more of than its storage, by steps of no length (``expand``).
REPEATED = 1 << 24
#: Numbers of a sparse tensor for each that is stored; up to :data:`REPEATED` it may store as few as it likes.
SPARSE = 10_000
#: Parts of a name (``a.b.c`` has three), and its letters: a tree is built of them.
NAME_PARTS = 100
NAME_LENGTH = 10_000
#: Levels of dictionaries in which a state dict is looked for.
STATE_LEVELS = 5
#: Children that a list of layers may lack among those that it has (a pruned one, an empty place).
GAPS = 1_000
#: Blocks of all stages together in what is made; a caller may ask for more.
BLOCKS = 10_000
#: Numbers in the example inputs that a file describes, some of which are made anew from their shapes.
INPUT_NUMBERS = 1 << 25
#: Bytes of memory and seconds of the processor, beside what importing libraries takes, for building the network of a
#: configuration and holding its names against a file's; and how much each tensor of the file adds.
NETWORK_BYTES, NETWORK_BYTES_EACH = 280e6, 40e3
NETWORK_SECONDS, NETWORK_SECONDS_EACH = 10.0, 0.01

_blocks: ContextVar[int] = ContextVar("max_blocks", default=BLOCKS)


@contextlib.contextmanager
def allowing_blocks(count: int | None) -> Iterator[None]:
    """Let plans have so many blocks in all while this lasts; None leaves the limit as it is."""
    token = _blocks.set(count) if count is not None else None
    try:
        yield
    finally:
        if token is not None:
            _blocks.reset(token)


def check_blocks(count: int, there: int = 0) -> None:
    """PlanError where a plan has more blocks than are allowed, and more than the source has."""
    allowed = _blocks.get()
    if count > max(allowed, there):
        raise PlanError(
            f"the plan has {count:,} blocks, and up to {allowed:,} are made; if so many are meant, allow them "
            f"(--max-blocks {count}, in Python max_blocks={count})"
        )


def check_names(names: Iterable[str], where: str) -> None:
    """SourceError where a name of a tensor is longer or deeper than any that a network has."""
    for name in names:
        if len(name) > NAME_LENGTH or name.count(".") >= NAME_PARTS:
            raise SourceError(
                f"{where}: the name {name[:40]!r}... has {name.count('.') + 1} parts and {len(name)} letters; up to "
                f"{NAME_PARTS} and {NAME_LENGTH} are read"
            )


def yaml_text(file: BinaryIO, where: str) -> str:
    """The text of a YAML file; SourceError where it is larger or of more brackets than any that a person writes."""
    raw = file.read(YAML_BYTES + 1)
    if len(raw) > YAML_BYTES:
        raise SourceError(f"{where} has more than {YAML_BYTES >> 10} KiB, which no such file needs")
    if sum(raw.count(mark) for mark in (b"[", b"{")) > YAML_BRACKETS:
        raise SourceError(f"{where} has more than {YAML_BRACKETS:,} brackets, which no such file needs")
    return raw.decode("utf-8")


def refuse_special(path: Path, kind: type[ElasticError] = SourceError) -> None:
    """An error where a path is neither a file nor a folder: reading a pipe or a device may never end."""
    with contextlib.suppress(OSError, ValueError):  # whoever reads it reports that it is missing
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise kind(
                f"{path} is not a regular file (it is a pipe, a device or a socket); copy its contents into a file"
            )


def open_plain(path: Path, kind: type[ElasticError] = SourceError) -> BinaryIO:
    """A plain file opened for reading, as ``path.open("rb")`` does it; an error of that kind for anything special."""
    refuse_special(path, kind)
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
