"""Where what is copied comes to lie in the files of a checkpoint's copy. No torch here.

In each file first what it had, then the second copies, then the third ones, each in the order of the source: what are
neighbours there stay neighbours, and are copied as one range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from elastic_ir.checkpoints.dcp.follow import Made
from elastic_ir.formats.dcp.folder import DcpSource
from elastic_ir.formats.dcp.metadata import Place
from elastic_ir.formats.parts import BUFFER, PAGE, Part


class _Copied(NamedTuple):
    """A box that is copied; in the order in which they lie in a file."""

    file: str
    copy: int  #: how many copies of it there are before
    source: int  #: the number of the checkpoint that it is of
    offset: int  #: in the source's file
    length: int
    entry: int
    box: int

    def follows(self, other: _Copied) -> bool:
        """Whether it lies right behind another one, in the source as in the copy."""
        return self[:3] == other[:3] and self.offset == other.offset + other.length


def places_of(
    entries: Sequence[Made], source: DcpSource
) -> tuple[dict[str, list[Part]], dict[tuple[int, int], int]]:
    """The parts of each file that has some, and the offset of each box by its entry and its number.

    What is computed has no place here. Long ranges lie in pages as they do in the source: so the system copies them
    page by page.
    """
    parts: dict[str, list[Part]] = {}
    moved: dict[tuple[int, int], int] = {}
    ends: dict[str, int] = {}
    for run in _runs(entries, source):
        first = run[0]
        end = ends.get(first.file, 0)
        if sum(one.length for one in run) >= BUFFER:
            end += (first.offset - end) % PAGE
        for one in run:
            made = entries[one.entry]
            place = Place(one.file, one.offset, one.length)
            parts.setdefault(one.file, []).append(Part(end, made.source.carried(place), made.name))
            moved[one.entry, one.box] = end
            end += one.length
        ends[first.file] = end
    return parts, moved


def _runs(entries: Sequence[Made], source: DcpSource) -> list[list[_Copied]]:
    """What is copied, in order, as ranges of what follows each other."""
    numbers = {id(one): number for number, one in enumerate((source, *source.others))}
    copies: dict[int, int] = {}
    found: list[_Copied] = []
    for at, made in enumerate(entries):
        if made.is_computed:
            continue
        copy = copies[id(made.of)] = copies.get(id(made.of), -1) + 1
        for number, box in enumerate(made.of.boxes):
            place = box.place
            whose = numbers[id(made.source)]
            found.append(_Copied(place.file, copy, whose, place.offset, place.length, at, number))
    runs: list[list[_Copied]] = []
    for one in sorted(found):
        if runs and one.follows(runs[-1][-1]):
            runs[-1].append(one)
        else:
            runs.append([one])
    return runs
