"""``elastic-ir doctor``: what is installed, whether it fits, and what runs here; it belongs into every bug report."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import click

from elastic_ir.cli import tables
from elastic_ir.cli.app import COMMANDS, JSON, given, run_flags
from elastic_ir.errors import SourceError

DISTRIBUTION = "elastic-ir"
#: Extras that only those need who work on ElasticIR itself.
_OURS = ("dev", "demo", "docs")
#: Packages that are imported once, since builds of them that do not fit each other fail only then.
_TRIED = ("torch", "onnxruntime", "torchvision")
EPILOG = """\
\b
Examples:
  elastic-ir doctor
  elastic-ir doctor --json
"""


class Package(NamedTuple):
    """A package that ElasticIR can use."""

    name: str
    installed: str | None
    wanted: str  #: the releases that fit
    extra: str  #: empty for what is always needed
    fits: bool


def packages() -> list[Package]:
    """What the distribution asks for, needed ones first, each with what is installed."""
    from packaging.requirements import Requirement

    found = []
    for line in metadata.requires(DISTRIBUTION) or ():
        wanted = Requirement(line)
        extra = (
            "" if wanted.marker is None else str(wanted.marker).partition('extra == "')[2].partition('"')[0]
        )
        if extra in _OURS or wanted.name == DISTRIBUTION:
            continue
        try:
            installed = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            installed = None
        fits = installed is not None and wanted.specifier.contains(installed, prereleases=True)
        found.append(Package(wanted.name, installed, str(wanted.specifier) or "any", extra, fits))
    return sorted(found, key=lambda one: (one.extra, one.name.lower()))


def problems(found: list[Package]) -> Iterator[str]:
    """What does not fit: releases, and builds that cannot be imported beside each other."""
    for one in found:
        if one.installed is None and not one.extra:
            yield f"{one.name} is not installed; pip install '{one.name}{one.wanted}'"
        elif one.installed is not None and not one.fits:
            yield f"{one.name} {one.installed} does not fit; pip install '{one.name}{one.wanted}'"
    installed = {one.name for one in found if one.installed is not None}
    from elastic_ir.extras import import_library

    for name in _TRIED:
        if name in installed:
            try:
                import_library(name, "ElasticIR", f"pip install --force-reinstall {name}")
            except SourceError as error:
                yield str(error)


def devices() -> str:
    """The devices that torch has here."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return f"unknown: torch cannot be imported ({error})"
    found = [f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} threads)"]
    if torch.cuda.is_available():
        found += [f"cuda:{at} ({torch.cuda.get_device_name(at)})" for at in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return ", ".join(found)


@click.command("doctor", short_help=COMMANDS["doctor"], epilog=EPILOG)
@run_flags
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Show versions, extras and devices, and say what does not fit.

    The exit status is 1 where something has to be mended.
    """
    import elastic_ir

    found = packages()
    wrong = list(problems(found))
    facts = {
        "elastic-ir": f"{elastic_ir.__version__} ({Path(elastic_ir.__file__).parent})",
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "devices": "unknown, torch cannot be imported"
        if any("torch" in line for line in wrong)
        else devices(),
    }
    if given(JSON):
        rows: list[dict[str, Any]] = [one._asdict() for one in found]
        tables.say_json({**facts, "packages": rows, "problems": wrong})
    else:
        tables.show_facts(list(facts.items()))
        tables.say()
        table = tables.Table(("package", "installed", "fits", "extra"))
        for one in found:
            table.rows.append((one.name, one.installed or tables.ABSENT, one.wanted, one.extra or "(needed)"))
        tables.show_table(table)
        tables.say()
        for line in wrong:
            tables.say(line, bold="problem: ")
        if not wrong:
            tables.say("nothing has to be mended")
    ctx.exit(int(bool(wrong)))
