"""What moves while a command works: lines and bars on standard error, by rich, where that is a terminal.

Results are printed above them. Where standard output goes elsewhere (a pipe, a file), it is left alone.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from elastic_ir.cli.tables import shortened
from elastic_ir.errors import printable

Tell = Callable[[int, int], None]

_NARROW = 60  #: columns below which a bar would leave too little room for the numbers beside it


def _bars(what: str, *columns: ProgressColumn) -> Progress:
    """A bar that lets lines pass above it only where both go to the same place; in little room numbers alone."""
    console = Console(stderr=True)
    if console.width < _NARROW:
        what = shortened(what, console.width // 3)
        columns = tuple(one for one in columns if not isinstance(one, (BarColumn, TransferSpeedColumn)))
    title = TextColumn(escape(printable(what)))
    return Progress(title, *columns, console=console, redirect_stdout=sys.stdout.isatty())


def _tell(bar: Progress) -> Tell:
    task = bar.add_task("", total=None)
    begun = False

    def show(done: int, total: int) -> None:
        nonlocal begun
        if begun:
            bar.update(task, completed=done, total=total)
        else:  # what was there at the start took no time, and would spoil the rate
            bar.reset(task, completed=done, total=total)
        begun = True

    return show


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """A line with the time since, for work whose end cannot be told."""
    with _bars(what, TimeElapsedColumn()) as bar:
        bar.add_task("", total=None)
        yield


@contextlib.contextmanager
def of_bytes(what: str) -> Iterator[Tell]:
    """A function that shows bytes done of bytes in all, with rate and time left."""
    with _bars(what, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as bar:
        yield _tell(bar)


@contextlib.contextmanager
def of_steps(what: str) -> Iterator[Tell]:
    """A function that shows steps done of steps in all, with the time left."""
    with _bars(what, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        yield _tell(bar)


@contextlib.contextmanager
def of_jobs(noun: str) -> Iterator[Callable[[int, int, str], None]]:
    """A function that shows how many of how many are done, with words behind, and the time since."""
    words = TextColumn("{task.description}", markup=False)
    with _bars(noun, BarColumn(), MofNCompleteColumn(), words, TimeElapsedColumn()) as bar:
        task = bar.add_task("")
        yield lambda done, total, text: bar.update(
            task, completed=done, total=total, description=printable(text)
        )
