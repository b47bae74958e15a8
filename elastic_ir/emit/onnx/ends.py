"""The names of a model's inputs and outputs where a pass has made more of them, or fewer.

A past key and value, or a hidden state, exists once for each block: ``present.0.key``, ``present.1.key``. These names
are numbered afresh in order, with the step and the first number that they have. Names in which nothing counts stay, and
a new one is made after its like's.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_NUMBER = re.compile(r"\d+")


@dataclass
class _Counting:
    """Names that agree but for one number, in their order."""

    head: str
    tail: str
    names: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> list[int]:
        return [int(self.text(name)) for name in self.names]

    def text(self, name: str) -> str:
        return name[len(self.head) : len(name) - len(self.tail)]

    @property
    def step(self) -> int:
        """By how much the number rises from one to the next; 0 where it does not do so evenly."""
        numbers = self.numbers
        steps = {after - before for before, after in itertools.pairwise(numbers)}
        step = steps.pop() if len(steps) == 1 else 0 if steps else 1
        return max(step, 0)


def renumber(before: Sequence[str], now: Sequence[str], fresh: Callable[[str], str]) -> list[str]:
    """What inputs or outputs are called, of which ``now`` has the names of the source's that they are or are like.

    ``before`` are the source's, in order; ``fresh`` makes a name after another.
    """
    if list(now) == list(before):
        return list(now)
    counting = _counting(before)
    found: list[str] = []
    seen: Counter[str] = Counter()
    places: Counter[int] = Counter()
    for name in now:
        series = counting.get(name)
        if series is None:
            found.append(name if not seen[name] else fresh(name))
            seen[name] += 1
            continue
        number = series.numbers[0] + series.step * places[id(series)]
        places[id(series)] += 1
        padded = str(number).zfill(len(series.text(series.names[0])) if _padded(series) else 0)
        found.append(f"{series.head}{padded}{series.tail}")
    return found


def _counting(names: Sequence[str]) -> dict[str, _Counting]:
    """For each name in which a number counts the names that count with it."""
    series: dict[tuple[str, str], _Counting] = {}
    of_name: dict[str, list[_Counting]] = defaultdict(list)
    for name in names:
        for match in _NUMBER.finditer(name):
            head, tail = name[: match.start()], name[match.end() :]
            if re.search(r"[^\W\d_]", head + tail):  # a bare number says nothing
                one = series.setdefault((head, tail), _Counting(head, tail))
                one.names.append(name)
                of_name[name].append(one)
    found: dict[str, _Counting] = {}
    for name, candidates in of_name.items():
        even = [one for one in candidates if one.step]
        longest = max(even, key=lambda one: len(one.names), default=None)
        if longest is not None and (len(longest.names) > 1 or len(candidates) == 1):
            found[name] = longest
    return found


def _padded(series: _Counting) -> bool:
    return any(len(text) > 1 and text[0] == "0" for text in map(series.text, series.names))
