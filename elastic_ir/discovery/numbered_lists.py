"""Numbered lists read from the names of weights alone: ``convs.0``, ``norm1`` and ``norm2``, parameters of a list."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from elastic_ir.ir.numbering import split_number


@dataclass(eq=False)
class NumberedList:
    """What stands under one path and prefix with numbers: for each number the weights of that slot."""

    path: str
    prefix: str
    slots: dict[int, list[str]] = field(default_factory=dict)  #: in rising order

    @property
    def head(self) -> str:
        """What stands before the numbers: ``encoder.convs.``, or ``block.norm``."""
        return f"{self.path}.{self.prefix}" if self.path else self.prefix

    @property
    def label(self) -> str:
        """Its name for a reader: ``encoder.convs``, or ``block.norm`` for ``block.norm1`` and ``block.norm2``."""
        return ".".join(part for part in (self.path, self.prefix.rstrip("_.")) if part) or "network"

    @property
    def span(self) -> int:
        """How many members it has, those before the last that hold no weights counted too."""
        numbers = list(self.slots)
        return numbers[-1] + 1 - (min(numbers[0], 1) if self.prefix else 0)

    @property
    def contiguous(self) -> bool:
        """Whether every member holds weights, from the first to the last; a row with activations has gaps."""
        return self.span == len(self.slots)


def numbered_lists(names: Iterable[str], least: int = 2) -> list[NumberedList]:
    """All lists of so many slots or more, in the order in which their first weights stand."""
    found: dict[tuple[str, str], NumberedList] = {}
    for name in names:
        parts = name.split(".")
        for at, part in enumerate(parts):
            split = split_number(part)
            if split is None:
                continue
            key = ".".join(parts[:at]), split[0]
            found.setdefault(key, NumberedList(*key)).slots.setdefault(int(split[1]), []).append(name)
    lists = [one for one in found.values() if len(one.slots) >= least]
    for one in lists:
        one.slots = dict(sorted(one.slots.items()))
    return lists
