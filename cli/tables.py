"""What commands print: facts and tables, by rich on a terminal, as plain aligned text everywhere else.

The plain form is stable: scripts read it and golden tests compare it. Rich is imported only for a terminal.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from elastic_ir.cli.app import JSON, QUIET, VERBOSE, given
from elastic_ir.errors import StructureError, printable, without_secrets
from elastic_ir.ir.tables import ABSENT as ABSENT
from elastic_ir.ir.tables import Table as Table
from elastic_ir.ir.tables import aligned as aligned
from elastic_ir.ir.tables import indices_text as indices_text
from elastic_ir.ir.tables import number as number
from elastic_ir.ir.tables import percent as percent
from elastic_ir.ir.tables import run_of as run_of
from elastic_ir.ir.tables import shape_text as shape_text

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Graph
    from elastic_ir.ir.structure import Structure

Tell = Callable[[int, int], None]

_SHORTEST = 12  #: characters that are left of text in a table, at the least
_TEXT = re.compile(r"[^\W\d_]{2}")  #: what numbers, shapes, plans and versions do not have
_GAP = 3  #: blanks between the columns of a table on a terminal
_EVERY = 30.0  #: seconds between two lines of progress where nobody looks at a terminal
LABEL_WIDTH = len("parameters: ")  #: at least, so that facts printed one after the other stand in one column


def say(*lines: str, bold: str = "", err: bool = False) -> None:
    """Print lines, an empty one where none is given; no name in them reaches a terminal as anything but text.

    ``-q`` and ``--json`` keep them from standard output.
    """
    if not err and silent():
        return
    for line in lines or ("",):
        head = click.style(printable(bold), bold=True) if bold else ""
        # the stream is named, as click would go round what prints above a bar; echo strips styles where none are wanted
        click.echo(f"{head}{printable(line)}".rstrip(), file=sys.stderr if err else sys.stdout)


def silent() -> bool:
    """Whether nothing is printed for people to read."""
    return given(QUIET) or given(JSON)


def note(text: str) -> None:
    """A line on standard error that is no error; ``-q`` leaves it out."""
    if not given(QUIET):
        say(text, err=True)


def _without_secrets(data: Any) -> Any:
    if isinstance(data, str):
        return without_secrets(data)
    if isinstance(data, dict):
        return {_without_secrets(key): _without_secrets(value) for key, value in data.items()}
    return [_without_secrets(one) for one in data] if isinstance(data, list | tuple) else data


def say_json(data: Any) -> None:
    """Print data as JSON, which escapes every control character; of URLs neither passwords nor queries are in it."""
    click.echo(json.dumps(_without_secrets(data), indent=2).replace("\x7f", "\\u007f"))


#: Facts that the objects of --json state as numbers and paths.
_STATED = ("depth", "parameters", "sparsity", "wrote", "dry run")


def kept() -> dict[str, list[str]]:
    """The facts of this run that were not printed, by their names."""
    found: dict[str, list[str]] = click.get_current_context().meta.setdefault("elastic_ir.facts", {})
    return found


def say_result(data: dict[str, Any]) -> None:
    """With ``--json``, print what a command found as one object; ``facts`` is what the text form says besides."""
    if given(JSON):
        say_json({**data, "facts": {name: texts for name, texts in kept().items() if name not in _STATED}})


def on_terminal() -> bool:
    """Whether a person looks at standard output."""
    return sys.stdout.isatty()


def show_table(table: Table) -> None:
    """Print a table."""
    if silent():
        return
    columns, rows = table.shown()
    columns, rows = [*map(printable, columns)], [[*map(printable, row)] for row in rows]
    if on_terminal():
        _show_rich(columns, rows, table)
    else:
        for line in aligned([columns, *rows], [name in table.numeric for name in columns]):
            say(line)


def _show_rich(columns: list[str], rows: list[list[str]], table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console()
    width = console.width - 2  # a blank at each end
    spare = [name for name in table.spare if name in columns]
    for count in range(len(spare) + 1):
        places = [place for place, name in enumerate(columns) if name not in spare[:count]]
        right = [columns[place] in table.numeric for place in places]
        chosen = [[row[place] for place in places] for row in (columns, *rows)]
        narrow = fitted(chosen, right, width)
        if narrow is not None:
            break
    else:  # too many columns: one cell a line
        for row in rows:
            say("", bold=row[0])
            for name, cell in zip(columns[1:], row[1:], strict=True):
                if cell != ABSENT:
                    first, *more = wrapped(f"{name}: {cell}", console.width - 4)
                    say(f"  {first}", *(f"    {line}" for line in more))
        return
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, to_right in zip(narrow[0], right, strict=True):
        drawn.add_column(column, no_wrap=True, justify="right" if to_right else "left")
    for row in narrow[1:]:
        drawn.add_row(*(Text(cell) for cell in row))  # Text, because brackets in a str would be markup
    console.print(drawn)
    if count:
        say(f"Not shown for want of room: {', '.join(spare[:count])}.")


def fitted(rows: Sequence[Sequence[str]], right: Sequence[bool], width: int) -> list[list[str]] | None:
    """Rows that fit into so many columns of a terminal, three between cells; the first row is the header.

    Text is shortened in its middle, the longest column first, and what is shortened least are the first column's names;
    numbers, shapes, plans and headers never are. None where that is not enough.

    >>> fitted([("name", "type"), ("a", "torch.nn.modules.conv.Conv2d")], [False, False], 22)
    [['name', 'type'], ['a', 'torch.n\u2026.Conv2d']]
    """
    cells = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in cells]
    least = []
    for place, (column, size, to_right) in enumerate(zip(cells, widths, right, strict=True)):
        whole = [len(cell) for cell in column[1:] if not _TEXT.search(cell)]
        shortest = max(len(column[0]), _SHORTEST if place else 2 * _SHORTEST, *whole)
        least.append(size if to_right else min(size, shortest))
    over = sum(widths) + _GAP * (len(widths) - 1) - width
    while over > 0:
        place = max(range(len(widths)), key=lambda at: widths[at] if widths[at] > least[at] else 0)
        if widths[place] <= least[place]:
            return None
        widths[place] -= 1
        over -= 1
    return [[shortened(cell, size) for cell, size in zip(row, widths, strict=True)] for row in rows]


def wrapped(text: str, width: int) -> list[str]:
    """A text in lines of so many characters, broken at blanks, and where there are none behind commas.

    What cannot be broken so has a longer line.

    >>> wrapped("466,906 -> 855,770", 12), wrapped("plan: 0-15,6-21,3", 10)
    (['466,906 ->', '855,770'], ['plan:', '0-15,6-21,', '3'])
    """
    lines, line = list[str](), ""
    for word in re.findall(r"\S+ *", text):
        parts = [word] if len(word.rstrip()) <= width else re.findall(r"[^,]*,|[^,]+", word)
        for part in parts:
            if line and len(f"{line}{part}".rstrip()) > width:
                lines.append(line.rstrip())
                line = ""
            line += part
    return [*lines, line.rstrip()]


def shortened(text: str, width: int) -> str:
    """A text of at most so many characters, an ellipsis in place of its middle."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}\u2026{text[len(text) - (width - 1 - head) :]}"


def show_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and what is known under them, one a line; with ``--json`` they are kept for :func:`say_result`."""
    if given(JSON):
        for name, value in facts:
            kept().setdefault(name, []).append(value)
        return
    width = max((LABEL_WIDTH, *(len(name) + 2 for name, _ in facts)))
    room = shutil.get_terminal_size().columns - width
    for name, value in facts:
        first, *more = wrapped(value, max(room, _SHORTEST)) if on_terminal() else [value]
        say(first, bold=f"{name}:".ljust(width))
        if more:
            say(*(f"{'':{width}}{line}" for line in more))


# -- progress, on standard error -----------------------------------------------------------------------------------


def _watched() -> bool:
    """Whether a person sees progress, and wants to."""
    return sys.stderr.isatty() and not given(QUIET)


@contextlib.contextmanager
def status(what: str) -> Iterator[None]:
    """Say what is going on while it lasts, on a terminal; with ``-v`` a line with the time it took stays, anywhere."""
    begun = time.perf_counter()
    if _watched():
        from elastic_ir.cli import bars

        with bars.waiting(what):
            yield
    else:
        yield
    _took(what, begun)


@contextlib.contextmanager
def transfer(what: str) -> Iterator[Tell | None]:
    """A function that shows bytes done of bytes in all, with rate and time left; None where no terminal looks."""
    begun = time.perf_counter()
    if _watched():
        from elastic_ir.cli import bars

        with bars.of_bytes(what) as tell:
            yield tell
    else:
        yield None
    _took(what, begun)


@contextlib.contextmanager
def steps(what: str) -> Iterator[Tell | None]:
    """As :func:`transfer`, of steps."""
    begun = time.perf_counter()
    if _watched():
        from elastic_ir.cli import bars

        with bars.of_steps(what) as tell:
            yield tell
    else:
        yield None
    _took(what, begun)


@contextlib.contextmanager
def progress(noun: str) -> Iterator[Callable[[int, int, str], None]]:
    """A function that shows how many of how many are done, with words behind: a bar on a terminal, else lines now and
    then.
    """
    if _watched():
        from elastic_ir.cli import bars

        with bars.of_jobs(noun) as tell:
            yield tell
        return
    shown = -_EVERY

    def line(done: int, total: int, words: str) -> None:
        nonlocal shown
        if time.monotonic() - shown >= _EVERY or done == total:
            shown = time.monotonic()
            note(f"{noun}: {done} of {total} done, {words}")

    yield line


def _took(what: str, begun: float) -> None:
    if given(VERBOSE):
        note(f"{what}: {time.perf_counter() - begun:.2f} s")


# -- numbers and names as text ------------------------------------------------------------------------------------


def file_size(size: int) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    amount, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{int(amount)} B" if unit == "B" else f"{amount:.1f} {unit}"


def change(before: str, after: str) -> str:
    """``before -> after``, or one of them where nothing changed."""
    return before if before == after else f"{before} -> {after}"


def structure_of(graph: Graph) -> tuple[Structure | None, str]:
    """The structure, or None and the sentence that gives the reason."""
    try:
        return graph.structure, ""
    except StructureError as error:
        return None, str(error)


def depth_text(graph: Graph) -> str:
    """The depth of a graph; where names alone do not show it, how many layers its stages have: ``6 + 6 layers``."""
    structure = structure_of(graph)[0]
    if structure is None or structure.depth is not None or len(graph):
        return number(structure.depth if structure is not None else None)
    return " + ".join(str(len(stage)) for stage in structure.stages) + " layers"


def change_facts(before: Graph, after: Graph) -> list[tuple[str, str]]:
    """Depth, parameters and sparsity, each before and after."""
    graphs = before, after
    one, other = map(depth_text, graphs)
    if one.endswith(" layers") and other.endswith(" layers"):
        one = one if one == other else one.removesuffix(" layers")
    return [
        ("depth", change(one, other)),
        ("parameters", change(*(number(graph.parameter_count()) for graph in graphs))),
        ("sparsity", change(*(percent(graph.sparsity()) for graph in graphs))),
    ]
