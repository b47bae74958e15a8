"""Tables and numbers as text: what commands print, and what a graph shows of itself in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from elastic_ir.ir.numbering import consecutive

ABSENT = "-"


@dataclass
class Table:
    """Rows of text under named columns; a column whose cells are all absent is not shown."""

    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    optional: Sequence[str] = ()  #: columns to leave out where no row has anything for them
    numeric: Sequence[str] = ()  #: columns that are aligned to the right
    spare: Sequence[str] = ()  #: columns to leave out where a terminal is too narrow, in this order

    def shown(self) -> tuple[list[str], list[list[str]]]:
        """The columns and rows that are worth showing."""
        places = [
            place
            for place, name in enumerate(self.columns)
            if name not in self.optional or any(row[place] != ABSENT for row in self.rows)
        ]
        return [self.columns[place] for place in places], [
            [row[place] for place in places] for row in self.rows
        ]


def aligned(rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> list[str]:
    """Rows as lines with columns of equal width, two blanks between them, none at the end."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    sides = [str.rjust if to_right else str.ljust for to_right in right or [False] * len(widths)]
    return [
        "  ".join(side(cell, width) for cell, width, side in zip(row, widths, sides, strict=True)).rstrip()
        for row in rows
    ]


def number(value: int | None, unknown: str = "unknown") -> str:
    """``1,234``, or the word for what is not known."""
    return unknown if value is None else f"{value:,}"


def percent(share: float) -> str:
    """0.9 as ``90.0 %``."""
    return f"{share * 100:.1f} %"


def shape_text(shape: Sequence[int] | None) -> str:
    """``1x16x32x32``."""
    return ABSENT if shape is None else "x".join(map(str, shape))


def run_of(paths: Sequence[str]) -> str:
    """Paths in a row as the first and the last."""
    if len(paths) > 2:
        return f"{paths[0]} .. {paths[-1]}"
    return ", ".join(paths) or ABSENT


def indices_text(indices: Sequence[int | str]) -> str:
    """Indices as ``--plan`` takes them, three or more in a row as a range: ``0-4,3,4``, ``b/0-2``."""
    parts = []
    for head, run in consecutive(map(_placed, indices)):
        parts.append(f"{head}{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(f"{head}{n}" for n in run))
    return ",".join(parts)


def _placed(index: int | str) -> tuple[str, int]:
    """``b/6`` as what names the network, and the number."""
    head, slash, number = str(index).rpartition("/")
    return head + slash, int(number)
