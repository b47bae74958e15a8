"""The options of ``stretch`` that say what copies are made of: other networks, factors, and tensors that are zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from elastic_ir.cli import tables
from elastic_ir.cli.options import Function, Notation, Reading, gathered

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Graph


class Named(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``b=SOURCE`` as a pair; the shell's own expansion has been at it already."""

    name = "source"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Click's hook: name and source, or a usage error."""
        from elastic_ir.plans.plan import SOURCE_NAME

        if isinstance(value, tuple):
            return value
        name, equals, source = str(value).partition("=")
        if not equals or not source or not SOURCE_NAME.fullmatch(name):
            self.fail(f"{value!r} names no source; write for example b=other-llama", param, ctx)
        return name, source


@dataclass(frozen=True)
class Copies:
    """What the options say."""

    sources: tuple[tuple[str, str], ...] = ()
    scale: str | None = None
    zero: str | None = None
    identity: bool = False

    def given(self) -> list[str]:
        """The options that are used."""
        said = {
            "--with": self.sources,
            "--scale": self.scale,
            "--zero": self.zero,
            "--identity": self.identity,
        }
        return [name for name, value in said.items() if value]

    def refuse(self, why: str) -> None:
        """A usage error where any of the options is given."""
        for name in self.given():
            raise click.UsageError(f"{why}; leave out {name}")

    def read(self, reading: Reading, streamed: bool) -> dict[str, Any]:
        """As the library takes it: the other networks read as the first one is."""
        if self.zero is not None and self.identity:
            raise click.UsageError("--zero and --identity say the same; give one of them")
        said: dict[str, Any] = {}
        if self.sources:
            others: dict[str, Graph] = {}
            for name, source in self.sources:
                if name in others:
                    raise click.UsageError(f"--with names {name!r} twice")
                with tables.status(f"reading {source}"):
                    plain = Reading(input_shape=reading.input_shape, unit=reading.unit, trust=reading.trust)
                    others[name] = plain.load(source, headers_only=streamed)
            said["others"] = others
        if self.scale is not None:
            said["scale"] = self.scale
        if self.zero is not None or self.identity:
            said["zero"] = "auto" if self.identity else self.zero
        return said


OPTIONS = (
    click.option(
        "--with", "sources", type=Named(), multiple=True, metavar="NAME=SOURCE",
        help='Another network, whose layers the plan names: --with b=OTHER --plan "0-15,b/6-21". Names, shapes and '
        "dtypes have to agree; what lies outside the layers is SOURCE's. May be given several times.",
    ),
    click.option(
        "--scale", type=Notation("factors", "elastic_ir.plans.copy_edits:parse_scale"), metavar="NAME=F,...",
        help="Multiply tensors of the copies (every occurrence of a block after its first), by the names of modules in "
        "a block: o_proj=0.5,down_proj=0.5.",
    ),
    click.option(
        "--zero", type=Notation("names", "elastic_ir.plans.copy_edits:parse_names"), metavar="NAME,...",
        help="Let such tensors of the copies be zero, weights and biases: o_proj,down_proj.",
    ),
    click.option(
        "--identity", is_flag=True,
        help="Let the copies start as the identity (LLaMA Pro): zero is what closes their residual branches, as the "
        "network itself shows it. For a folder, transformers builds it without its weights.",
    ),
)  # fmt: skip


def copy_options(command: Function) -> Function:
    """Add the options; the command gets them as one argument, ``copies``."""
    return gathered("copies", Copies, OPTIONS)(command)


def is_recipe(source: str) -> bool:
    """Whether a source is a file of YAML, and so a recipe of slices."""
    return source.lower().endswith((".yaml", ".yml"))
