"""The options that commands share, the types of their values, and how a source is read with them."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import click
from click.shell_completion import CompletionItem

from elastic_ir.cli.app import DEBUG
from elastic_ir.errors import ElasticError
from elastic_ir.ir.numbering import number_of

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Graph

    Kind = click.ParamType[Any]
else:
    Kind = click.ParamType  # generic only in late versions of click

Function = Callable[..., Any]
_SHOWN = 8  #: keys of a checkpoint that are named

#: Any form of source; the shell completes it as a file. Whether it exists is found out by the reader of its form.
SOURCE = click.Path(readable=False)


class Shape(Kind):
    """``1,3,224,224`` as a tuple."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Click's hook: the value, or a usage error."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(number_of(part) for part in parts):
            self.fail(
                f"{value!r} is no shape; write the extents with commas, for example 1,3,224,224", param, ctx
            )
        return tuple(int(part) for part in parts)


class Indices(Kind):
    """``1,2`` or ``0-3`` as a list of block indices; words that are allowed in their place are completed."""

    name = "indices"

    def __init__(self, *words: str) -> None:
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Click's hook: a word or a list of integers, or a usage error."""
        from elastic_ir.plans.plan import parse_indices

        if isinstance(value, list) or value in self.words:
            return value
        try:
            return parse_indices(value)
        except ElasticError as error:
            said = f"; or write {' or '.join(self.words)}" if self.words else ""
            self.fail(f"{error}{said}", param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Click's hook: the words."""
        return [CompletionItem(word) for word in self.words if word.startswith(incomplete)]


class Notation(Kind):
    """Text in a notation that is checked here, so that a slip is a usage error, and read by the library."""

    def __init__(self, name: str, parser: str) -> None:
        self.name = name
        self.parser = parser  #: "module:function", imported only when a value is there

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Click's hook: the text as it is, or a usage error."""
        import importlib

        module, _, function = self.parser.partition(":")
        try:
            getattr(importlib.import_module(module), function)(value)
        except ElasticError as error:
            self.fail(str(error), param, ctx)
        return value


class Size(Kind):
    """``5GB``, ``500MB`` or ``2GiB`` as bytes."""

    name = "size"
    _UNITS: ClassVar = {
        "": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30,
    }  # fmt: skip

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Click's hook: the bytes, or a usage error."""
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B|)\s*", str(value), re.IGNORECASE)
        unit = match[2].upper() if match else "?"
        size = float(match[1]) * self._UNITS[unit] if match and unit in self._UNITS else 0
        if size < 1:
            self.fail(f"{value!r} is no size; write for example 5GB, 500MB or 2GiB", param, ctx)
        return int(size)


class Package(Kind):
    """A Python package's name, of which classes may be rebuilt; a line on the standard error says what that admits."""

    name = "package"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Click's hook: the name, or a usage error."""
        text = str(value)
        if not all(part.isidentifier() for part in text.split(".")):
            self.fail(f"{text!r} is no package's name; write it as it is imported", param, ctx)
        from elastic_ir.cli import tables

        tables.say(
            f"trusted: {text}: its code is imported, and files may name any class that it defines (not what it "
            "imports from elsewhere, and no function)",
            err=True,
        )
        return text


@dataclass(frozen=True)
class Reading:
    """How sources are read: the common options, as given."""

    arch: str | None = None
    mask: str | None = None
    mask_from_zeros: bool = False
    input_shape: tuple[tuple[int, ...], ...] = ()
    unit: int | None = None
    trust: tuple[str, ...] = ()
    key: str | None = None

    def refuse(self, why: str) -> None:
        """A usage error where any of the options is given."""
        for name, value in dataclasses.asdict(self).items():
            if value:
                raise click.UsageError(f"{why}; leave out --{name.replace('_', '-')}")

    def by_headers(self, source: str) -> bool:
        """Whether a source is a checkpoint folder, and no option asks to have its network traced."""
        from pathlib import Path

        from elastic_ir.formats.model_folder import is_checkpoint

        return self.arch is None and not self.input_shape and not self.trust and is_checkpoint(Path(source))

    def load(self, source: str, headers_only: bool = False) -> Graph:
        """Read the source of a command, with all the options."""
        from elastic_ir import api

        return api.load(
            source,
            arch=self.arch,
            masks=self.mask,
            trust=self.trust,
            mask_from_zeros=self.mask_from_zeros,
            input_shape=self.input_shape or None,
            unit=self.unit,
            headers_only=headers_only,
            key=self.key,
        )

    def load_reference(self, reference: str, source: Graph) -> Graph:
        """Read what ``--like`` names: without weights where that is possible, on the source's inputs."""
        from elastic_ir.frontends.reference import load_reference

        return load_reference(reference, source, trust=self.trust)


def note_source(source: str, graph: Graph) -> None:
    """Say what a reader of a source should know: fresh weights, of which only the form is trained, or what was left."""
    from elastic_ir.cli import tables
    from elastic_ir.frontends.sources import is_name

    if is_name(source) and source.partition(":")[0] in ("timm", "torchvision"):
        text = f"{source} has fresh weights; for trained ones give their file, with --arch {source}"
        tables.show_facts([("note", text)])
    if left_behind(graph):
        tables.show_facts([("note", left_behind(graph))])


def left_behind(graph: Graph) -> str:
    """What a checkpoint holds beside the weights, which is not carried on: ``left behind: optimizer, epoch``."""
    keys = graph.info.left_behind
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"left behind: {', '.join(keys[:_SHOWN])}{more}" if keys else ""


def _note_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[DEBUG] = True


def _allow_blocks(ctx: click.Context, _param: click.Parameter, value: int | None) -> None:
    from elastic_ir.safety.limits import allowing_blocks

    ctx.find_root().with_resource(allowing_blocks(value))  # a usage error leaves its own context open


ARCH = click.option(
    "--arch", type=SOURCE, metavar="SOURCE",
    help="The network that a bare state dict belongs to, for example timm:resnet50. Without it the structure is "
    "found from names and shapes alone.",
)  # fmt: skip
MASK = click.option(
    "--mask", type=SOURCE, metavar="FILE",
    help="A file of masks, each with 0 and 1 in its weight's shape under its weight's name.",
)  # fmt: skip
MASK_FROM_ZEROS = click.option(
    "--mask-from-zeros", is_flag=True,
    help="Take every weight that is exactly zero as pruned.",
)  # fmt: skip
INPUT_SHAPE = click.option(
    "--input-shape", type=Shape(), multiple=True, metavar="1,3,224,224",
    help="The shape of an input to trace the network with, the batch first. Give it once for each input. Without "
    "it the shape is guessed.",
)  # fmt: skip
UNIT = click.option(
    "--unit", type=click.IntRange(min=1), metavar="N",
    help="How many blocks are cloned or deleted together: needed where names alone do not show it, and overrides what "
    "was found. 1 lets one block of a pair go, as in Swin.",
)  # fmt: skip
TRUST = click.option(
    "--trust", multiple=True, type=Package(), metavar="PACKAGE",
    help="Import this package, and let files name the classes that it defines: their code runs. It covers no other "
    "package, and no function. May be given several times.",
)  # fmt: skip
KEY = click.option(
    "--key", metavar="NAME",
    help="Which state dict of a checkpoint is meant where it holds several: ema, or with dots where it is nested, "
    "state.model.",
)  # fmt: skip
MAX_BLOCKS = click.option(
    "--max-blocks", type=click.IntRange(min=1), metavar="N", expose_value=False, is_eager=True, callback=_allow_blocks,
    help="The most blocks of all stages together that the result may have, 10000 by default: a plan with a slip in it "
    "is refused before it fills the memory.",
)  # fmt: skip
LOAD_PASS = click.option(
    "--load-pass", multiple=True, type=click.Path(), metavar="FILE",
    help="A Python file that defines passes of your own; it is run. May be given several times.",
)  # fmt: skip
DEBUG_OPTION = click.option(
    "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_note_debug,
    help="Show the traceback of an error in place of one line.",
)  # fmt: skip


def gathered(
    name: str, kind: type[Any], options: Sequence[Callable[[Function], Function]]
) -> Callable[[Function], Function]:
    """Add options that a command gets as one argument of that name: an object of a dataclass of them."""

    def decorate(command: Function) -> Function:
        @functools.wraps(command)
        def called(**given: Any) -> Any:
            taken = {
                field.name: given.pop(field.name) for field in dataclasses.fields(kind) if field.name in given
            }
            return command(**{name: kind(**taken)}, **given)

        decorated: Function = called
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def reading_options(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Add source options and ``--debug``; the command gets them as one argument, ``reading``."""
    return gathered("reading", Reading, (*options, DEBUG_OPTION))


source_options = reading_options(ARCH, MASK, MASK_FROM_ZEROS, INPUT_SHAPE, UNIT, TRUST, KEY)
