"""``completion``: what has the shell complete names by the Tab key, printed or installed; and what is completed.

Nothing here imports torch: names of networks are read from their libraries' source text, stages from headers.
"""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from elastic_ir.cli import output, tables
from elastic_ir.cli.app import COMMANDS, FORCE_OPTION, run_flags
from elastic_ir.errors import OutputError
from elastic_ir.formats.files import atomic_output

#: Where each shell looks for completions of a user, below the home folder.
PLACES = {
    "bash": ".local/share/bash-completion/completions/elastic-ir",
    "zsh": ".zfunc/_elastic-ir",
    "fish": ".config/fish/completions/elastic-ir.fish",
}
EPILOG = """\
\b
Examples:
  elastic-ir completion --install
  elastic-ir completion zsh --install
  elastic-ir completion bash > elastic-ir.bash

Completed are commands, options, files, timm:NAME and torchvision:NAME, passes within --passes, and the stages of SOURCE
for --to-stages and --plan.
"""


def script_of(shell: str) -> str:
    """What a shell has to run, as click writes it; bash must not part words at the colon of ``timm:NAME``."""
    from elastic_ir.cli.app import elastic_ir

    kind = get_completion_class(shell)
    assert kind is not None
    text = kind(elastic_ir, {}, "elastic-ir", "_ELASTIC_IR_COMPLETE").source()
    return f"COMP_WORDBREAKS=${{COMP_WORDBREAKS//:/}}\n{text}" if shell == "bash" else text


@click.command("completion", short_help=COMMANDS["completion"], epilog=EPILOG)
@click.argument("shell", type=click.Choice(list(PLACES)), required=False)
@click.option("--install", is_flag=True, help="Write it to where the shell finds it, below the home folder.")
@FORCE_OPTION
@run_flags
def completion(shell: str | None, install: bool) -> None:
    """Print what has SHELL complete names by the Tab key, or install it. Without SHELL it is the one in use."""
    if shell is None:
        shell = Path(os.environ.get("SHELL", "")).name
        if shell not in PLACES:
            raise OutputError(
                f"the shell in use, {shell or 'of no name'}, is none of {', '.join(PLACES)}; name one of these"
            )
    script = script_of(shell)
    if not install:
        tables.say(*script.rstrip().split("\n"))
        tables.say_result({"shell": shell, "script": script, "wrote": []})
        return
    path = Path.home() / PLACES[shell]
    output.refuse_existing(path, other="it is installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(path) as made:
        made.write_text(script, "utf-8")
    tables.show_facts(output.wrote([path]))
    if shell == "zsh":
        tables.show_facts([("note", "~/.zshrc needs, before compinit: fpath+=~/.zfunc")])
    tables.show_facts([("note", f"a new {shell} completes elastic-ir")])
    tables.say_result({"shell": shell, "script": script, **output.written_data([path])})


def complete_source(incomplete: str) -> list[CompletionItem]:
    """The networks of a library, or the libraries; files are completed by the shell."""
    library, colon, name = incomplete.partition(":")
    if colon and library in ("timm", "torchvision"):
        from elastic_ir.frontends.library_names import network_names

        found = sorted(one for one in network_names(library) if one.startswith(name))
        return [CompletionItem(f"{library}:{one}") for one in found]
    heads = [f"{one}:" for one in ("timm", "torchvision") if incomplete and one.startswith(incomplete)]
    return [*(CompletionItem(head) for head in heads), CompletionItem(incomplete, type="file")]


def complete_pipeline(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Passes, behind those that are written already."""
    from elastic_ir.passes import registered

    head, comma, name = incomplete.rpartition(",")
    if (head + name).count("{") > (head + name).count("}"):
        return []  # within the options of a pass
    return [f"{head}{comma}{one}" for one in registered() if one.startswith(name)]


def complete_stages(ctx: click.Context, between: str, incomplete: str) -> list[str]:
    """Names of the source's stages with "=", behind what is written already up to ``between``."""
    # behind an option that lacks its value click leaves arguments where they were
    source = ctx.params.get("source") or next(iter(ctx.args), None)
    if not isinstance(source, str) or not os.path.exists(source):
        return []
    from elastic_ir import api

    try:
        stages = api.load(source, headers_only=True).structure.stages
    except Exception:
        return []
    head, mark, name = incomplete.rpartition(between)
    return [f"{head}{mark}{stage.name}=" for stage in stages if stage.name.startswith(name)]
