"""What mkdocs does to pages: fills in the commands' help, and names files that the site does not hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click

from elastic_ir.cli.app import COMMANDS, Program, elastic_ir

HELPS = "<!-- the help of every command -->"
#: Links out of docs/, which are links in the repository only.
_OUTSIDE = re.compile(
    r"\[([^\]]*)\]\((?:\.\./)+((?:README|SECURITY|CONTRIBUTING|CHANGELOG|studies|benchmarks)[^)#]*)[^)]*\)"
)


def helps(command: click.Command, parent: click.Context | None, name: str) -> Iterator[tuple[str, str]]:
    """Full name and help of a command and of those below it."""
    context = click.Context(command, parent=parent, info_name=name, terminal_width=100, max_content_width=100)
    yield context.command_path, command.get_help(context)
    if isinstance(command, Program):
        for below in COMMANDS:
            yield from helps(command.load(below), context, below)
    elif isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            yield from helps(found, context, below)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page as it is built."""
    if HELPS in markdown:
        parts = [
            f"## {path}\n\n```text\n{text.rstrip()}\n```\n"
            for path, text in helps(elastic_ir, None, "elastic-ir")
        ]
        markdown = markdown.replace(HELPS, "\n".join(parts))
    return _OUTSIDE.sub(r"\1 (`\2` in the repository)", markdown)
