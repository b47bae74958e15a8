"""``passes``: every pass there is, with its options, as it describes itself."""

from __future__ import annotations

import click

from elastic_ir.cli import tables
from elastic_ir.cli.app import COMMANDS
from elastic_ir.cli.options import DEBUG_OPTION, LOAD_PASS

EPILOG = """\
\b
Examples:
  elastic-ir passes
  elastic-ir passes squeeze
  elastic-ir passes --names

Passes of other packages are found by the entry-point group elastic_ir.passes; those of a file by --load-pass FILE.
"""


def _complete_pass(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from elastic_ir.passes import registered

    return [name for name in registered() if name.startswith(incomplete)]


@click.command("passes", short_help=COMMANDS["passes"], epilog=EPILOG)
@click.argument("name", required=False, shell_complete=_complete_pass)
@LOAD_PASS
@click.option("--names", is_flag=True, help="Print the names only, one a line, for programs.")
@DEBUG_OPTION
def passes(name: str | None, load_pass: tuple[str, ...], names: bool) -> None:
    """List the passes, the rewrites that a network can go through, or only the one called NAME.

    Below each pass stand its options, with what can be typed for each and its default. Options that only Python can
    give, such as a graph, are left out.
    """
    from elastic_ir.passes import find_pass, load_passes, registered
    from elastic_ir.passes.infra.option_table import option_table

    for path in load_pass:
        load_passes(path)
    found = {name: find_pass(name)} if name is not None else registered()
    for place, (title, kind) in enumerate(found.items()):
        if names:
            tables.say(title)
            continue
        if place:
            tables.say()
        tables.say(f": {kind.help()}", bold=title)
        options = [(*row[:3], row[3] or tables.ABSENT) for row in option_table(kind)]
        if options:
            columns = ("option", "type", "default", "meaning")
            tables.show_table(tables.Table(columns, [*options], optional=("meaning",)))
