"""The options that commands share, the types of their values, and how a source is read with them."""

from __future__ import annotations

import dataclasses
import functools
import os
import pkgutil
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from elastic_ir.cli import tables
from elastic_ir.cli.app import run_flags
from elastic_ir.cli.kinds import behind_url, fetch, hub_label, is_hub_folder, is_remote
from elastic_ir.errors import ElasticError, SourceError
from elastic_ir.ir.numbering import number_of

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Graph

    Kind = click.ParamType[Any]
else:
    Kind = click.ParamType  # generic only in late versions of click

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]
_SHOWN = 8  #: keys of a checkpoint that are named


class Source(click.Path):
    """Any form of source; whether it exists is found out by the reader of its form."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Click's hook: names of networks, and files."""
        from elastic_ir.cli.completion import complete_source

        return complete_source(incomplete)


SOURCE = Source(readable=False)


class Here(click.Path):
    """A path to write to; a URL, which would become folders of its parts, is a usage error."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Click's hook."""
        if is_remote(os.fspath(value)):
            self.fail(
                f"{value} is a URL, and this command writes here; write a file, and upload that", param, ctx
            )
        return super().convert(value, param, ctx)


class Parsed(Kind):
    """Text that a function reads: what it refuses by one of our errors or a ValueError is a usage error.

    ``words`` may stand in its place; the shell completes them.
    """

    def __init__(self, name: str, read: Callable[[str], Any], *words: str, stages: str = "") -> None:
        self.name, self.read, self.words = name, read, words
        self.stages = stages  #: what stands between parts that begin with a stage's name, if any do

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Click's hook: what was read, or a usage error."""
        if not isinstance(value, str) or value in self.words:
            return value
        try:
            return self.read(value)
        except (ElasticError, ValueError) as error:
            instead = f"; or write {' or '.join(self.words)}" if self.words else ""
            self.fail(f"{error}{instead}", param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Click's hook: the words, and the source's stages."""
        if self.stages:
            from elastic_ir.cli.completion import complete_stages

            return [CompletionItem(text) for text in complete_stages(ctx, self.stages, incomplete)]
        return [CompletionItem(word) for word in self.words if word.startswith(incomplete)]


def checked_by(reference: str) -> Callable[[str], str]:
    """A reader that leaves a text as it is once ``module:function``, imported only then, has accepted it."""

    def read(text: str) -> str:
        pkgutil.resolve_name(reference)(text)
        return text

    return read


def read_shape(text: str) -> tuple[int, ...]:
    """``1,3,224,224`` as a tuple."""
    parts = [part.strip() for part in text.split(",")]
    if not all(number_of(part) for part in parts):
        raise ValueError(f"{text!r} is not a shape; write the extents with commas, for example 1,3,224,224")
    return tuple(map(int, parts))


def read_indices(text: str) -> list[int]:
    """``1,2`` or ``0-3`` as a list of block indices."""
    from elastic_ir.plans.plan import parse_indices

    return parse_indices(text)


_UNITS = {
    "": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30,
}  # fmt: skip


def read_size(text: str) -> int:
    """``5GB``, ``500MB`` or ``2GiB`` as bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B|)\s*", text, re.IGNORECASE)
    size = float(match[1]) * _UNITS.get(match[2].upper(), 0) if match else 0
    if size < 1:
        raise ValueError(f"{text!r} is not a size; write for example 5GB, 500MB or 2GiB")
    return int(size)


def read_package(text: str) -> str:
    """A Python package's name, of which classes may be rebuilt; a line on standard error states what that admits."""
    if not all(part.isidentifier() for part in text.split(".")):
        raise ValueError(f"{text!r} is not the name of a package; write it as it is imported")
    tables.note(
        f"trusted: {text}: its code is imported, and files may name any class that it defines (not what it "
        "imports from elsewhere, and no function)"
    )
    return text


def read_named(text: str) -> tuple[str, str]:
    """``b=SOURCE`` as a pair; the shell's own expansion has been at it already."""
    from elastic_ir.plans.plan import SOURCE_NAME

    name, equals, source = text.partition("=")
    if not equals or not source or not SOURCE_NAME.fullmatch(name):
        raise ValueError(f"{text!r} names no source; write for example b=other-llama")
    return name, source


def option(*names: str, **settings: Any) -> Any:
    """A field of a dataclass of options: the option of these names, with click's settings."""
    default = () if settings.get("multiple") else False if settings.get("is_flag") else None
    flag = next(name for name in names if name.startswith("--"))
    return dataclasses.field(
        default=default, metadata={"flag": flag, "option": click.option(*names, **settings)}
    )


def refuse_given(given: Mapping[str, object], why: str) -> None:
    """A usage error where any of these options has a value."""
    for name, value in given.items():
        if value:
            raise click.UsageError(f"{why}; leave out {name}")


@dataclass(frozen=True)
class Options:
    """Options that several commands have; a command gets them as one object, see :func:`gathered`."""

    def given(self, *names: str) -> dict[str, Any]:
        """What these fields, or all, were given, by the names of their options."""
        chosen = [field for field in fields(self) if not names or field.name in names]
        return {field.metadata["flag"]: getattr(self, field.name) for field in chosen}

    def refuse(self, why: str) -> None:
        """A usage error where any of the options is given."""
        refuse_given(self.given(), why)


@dataclass(frozen=True)
class Reading(Options):
    """How sources are read: the common options, as given."""

    arch: str | None = option(
        "--arch", type=SOURCE, metavar="SOURCE",
        help="The network that a bare state dict belongs to, for example timm:resnet50. Without it the structure is "
        "found from names and shapes alone.",
    )  # fmt: skip
    mask: str | None = option(
        "--mask", type=SOURCE, metavar="FILE",
        help="A file of masks (.safetensors, .ticket, .pt, .npz), of 0 and 1 in its weight's shape under its name.",
    )  # fmt: skip
    mask_from_zeros: bool = option(
        "--mask-from-zeros", is_flag=True,
        help="Take every weight that is exactly zero as pruned.",
    )  # fmt: skip
    input_shape: tuple[tuple[int, ...], ...] = option(
        "--input-shape", type=Parsed("shape", read_shape), multiple=True, metavar="1,3,224,224",
        help="The shape of an input to trace the network with, the batch first. Give it once for each input. Without "
        "it the shape is guessed.",
    )  # fmt: skip
    at: tuple[str, ...] = option(
        "--at", multiple=True, metavar="LIST",
        help="The list whose blocks are meant, in place of the stages that were found: of repeats within repeats the "
        "inner one, body.0.body, or those of every group, 'body.*.body'. May be given several times.",
    )  # fmt: skip
    unit: int | None = option(
        "--unit", type=click.IntRange(min=1), metavar="N",
        help="How many blocks are cloned or deleted together: needed where names alone do not show it, and overrides "
        "what was found. 1 lets one block of a pair go, as in Swin.",
    )  # fmt: skip
    trust: tuple[str, ...] = option(
        "--trust", multiple=True, type=Parsed("package", read_package), metavar="PACKAGE",
        help="Import this package, and let files name the classes that it defines: their code runs. It covers no other "
        "package, and no function. May be given several times.",
    )  # fmt: skip
    key: str | None = option(
        "--key", metavar="NAME",
        help="Which state dict of a checkpoint is meant where it holds several: ema, or with dots where it is nested, "
        "state.model.",
    )  # fmt: skip
    pretrained: bool = option(
        "--pretrained", is_flag=True,
        help="Take the trained weights of timm:NAME or torchvision:NAME, as the library itself fetches them.",
    )  # fmt: skip
    component: str | None = option(
        "--component", metavar="NAME",
        help="Which network of a pipeline of diffusers, or of a model of sentence-transformers, is meant, by its "
        "folder: transformer. The others are written with it as they are.",
    )  # fmt: skip
    variant: str | None = option(
        "--variant", metavar="NAME",
        help="Which weights of a folder are meant where it has several: fp16 for model.fp16.safetensors. Without it "
        "those without a variant, or the only ones.",
    )  # fmt: skip

    def inputs(self, source: str) -> dict[str, str | None]:
        """The files that a command reads, by what they are to it; none is written over."""
        return {"the source": source, "the --arch": self.arch, "the --mask": self.mask}

    def by_headers(self, source: str) -> bool:
        """Whether a source is a checkpoint folder, here or on a hub, and no option asks to have its network traced."""
        return not (self.arch is not None or self.input_shape or self.trust) and self.is_folder(source)

    def is_folder(self, source: str) -> bool:
        """Whether a source is a model's folder, here, behind a URL or on a hub."""
        if not Path(source).is_dir():
            if os.path.exists(source):
                return False
            from elastic_ir.formats.remote import is_url

            return behind_url(source) is None if is_url(source) else is_hub_folder(source)
        from elastic_ir.formats import ACCELERATE, folder_format
        from elastic_ir.formats.model_folder import is_checkpoint, is_compound

        if folder_format(Path(source)) is ACCELERATE:
            return False
        return is_checkpoint(Path(source)) or is_compound(Path(source))

    def refuse_absent(self, *sources: str | None) -> None:
        """SourceError where one of these, the architecture or the masks is not there, before torch is imported."""
        from elastic_ir.frontends.sources import refuse_absent

        for source in (*sources, self.arch):
            if source is not None:
                refuse_absent(source)
        if self.mask is not None and "://" not in self.mask and not os.path.exists(self.mask):
            raise SourceError(f"--mask {self.mask} does not exist")

    def load(self, source: str, headers_only: bool = False) -> Graph:
        """Read the source of a command, with all the options."""
        from elastic_ir import api

        self.refuse_absent(source)
        if not headers_only:
            fetch(source, self.variant, self.component)
        with tables.status(f"reading {source}"):
            return api.load(
                source,
                arch=self.arch,
                masks=self.mask,
                trust=self.trust,
                mask_from_zeros=self.mask_from_zeros,
                input_shape=self.input_shape or None,
                at=self.at or None,
                unit=self.unit,
                headers_only=headers_only,
                key=self.key,
                pretrained=self.pretrained,
                component=self.component,
                variant=self.variant,
            )

    def load_reference(self, reference: str, source: Graph) -> Graph:
        """Read what ``--like`` names: without weights where that is possible, on the source's inputs."""
        from elastic_ir.frontends.reference import load_reference

        with tables.status(f"reading {reference}"):
            return load_reference(reference, source, trust=self.trust)


@dataclass(frozen=True)
class Copies(Options):
    """What copies are made of, as the options of ``stretch`` state it: other networks, factors, and zeros."""

    sources: tuple[tuple[str, str], ...] = option(
        "--with", "sources", type=Parsed("source", read_named), multiple=True, metavar="NAME=SOURCE",
        help='Another network, whose layers the plan names: --with b=OTHER --plan "0-15,b/6-21". Names, shapes and '
        "dtypes have to agree; what lies outside the layers is SOURCE's. May be given several times.",
    )  # fmt: skip
    scale: str | None = option(
        "--scale", type=Parsed("factors", checked_by("elastic_ir.plans.copy_edits:parse_scale")), metavar="NAME=F,...",
        help="Multiply tensors of the copies (every occurrence of a block after its first), by the names of modules in "
        "a block: o_proj=0.5,down_proj=0.5.",
    )  # fmt: skip
    zero: str | None = option(
        "--zero", type=Parsed("names", checked_by("elastic_ir.plans.copy_edits:parse_names")), metavar="NAME,...",
        help="Let such tensors of the copies be zero, weights and biases: o_proj,down_proj.",
    )  # fmt: skip
    identity: bool = option(
        "--identity", is_flag=True,
        help="Let the copies start as the identity (LLaMA Pro): zero is what closes their residual branches, as the "
        "network itself shows it. For a folder, transformers builds it without its weights.",
    )  # fmt: skip

    def read(self, reading: Reading, streamed: bool) -> dict[str, Any]:
        """As the library takes it: the other networks read as the first one is."""
        if self.zero is not None and self.identity:
            raise click.UsageError("--zero and --identity mean the same; give one of them")
        wanted: dict[str, Any] = {}
        if self.sources:
            others: dict[str, Graph] = {}
            for name, source in self.sources:
                if name in others:
                    raise click.UsageError(f"--with names {name!r} twice")
                plain = Reading(
                    input_shape=reading.input_shape, at=reading.at, unit=reading.unit, trust=reading.trust,
                    pretrained=reading.pretrained and source.startswith(("timm:", "torchvision:")),
                )  # fmt: skip
                others[name] = plain.load(source, headers_only=streamed)
            wanted["others"] = others
        if self.scale is not None:
            wanted["scale"] = self.scale
        if self.zero is not None or self.identity:
            wanted["zero"] = "auto" if self.identity else self.zero
        return wanted


def note_source(source: str, graph: Graph, pretrained: bool = False, whole: bool = False) -> None:
    """Say what a reader of a source should know: fresh weights, of which only the form is trained, or what was left.

    With ``whole`` nothing is left: what is beside the network is written as well.
    """
    from elastic_ir.frontends.sources import is_name

    if is_name(source) and source.partition(":")[0] in ("timm", "torchvision") and not pretrained:
        text = (
            f"{source} has fresh weights; --pretrained takes the library's, and for those of a file give it with "
            f"--arch {source}"
        )
        tables.show_facts([("note", text)])
    if label := hub_label(source):
        tables.show_facts([("source", label)])
    if not whole and left_behind(graph):
        tables.show_facts([("note", left_behind(graph))])


def left_behind(graph: Graph) -> str:
    """What a checkpoint holds beside the weights, which is not carried on: ``left behind: optimizer, epoch``."""
    keys = graph.info.left_behind
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"left behind: {', '.join(keys[:_SHOWN])}{more}" if keys else ""


def _allow_blocks(ctx: click.Context, _param: click.Parameter, value: int | None) -> None:
    from elastic_ir.safety.limits import allowing_blocks

    ctx.find_root().with_resource(allowing_blocks(value))  # a usage error leaves its own context open


MAX_BLOCKS = click.option(
    "--max-blocks", type=click.IntRange(min=1), metavar="N", expose_value=False, is_eager=True, callback=_allow_blocks,
    help="The most blocks of all stages together that the result may have, 10000 by default: a plan with a slip in it "
    "is refused before it fills the memory.",
)  # fmt: skip
LOAD_PASS = click.option(
    "--load-pass", multiple=True, type=click.Path(), metavar="FILE",
    help="A Python file that defines passes of your own; it is run. May be given several times.",
)  # fmt: skip


def gathered(name: str, kind: type[Options], *further: Decorator, only: Collection[str] = ()) -> Decorator:
    """Add the options of a dataclass, which the command gets as one argument of that name, and further ones.

    ``only`` names the fields to take where not all are wanted.
    """
    taken = [field for field in fields(kind) if not only or field.name in only]

    def decorate(command: Function) -> Function:
        @functools.wraps(command)
        def called(**given: Any) -> Any:
            values = {field.name: given.pop(field.name) for field in taken}
            return command(**{name: kind(**values)}, **given)

        decorated: Function = called
        for add in reversed([*(field.metadata["option"] for field in taken), *further]):
            decorated = add(decorated)
        return decorated

    return decorate


source_options = gathered("reading", Reading, run_flags)
copy_options = gathered("copies", Copies)
