"""Running numbers in names (``layers.0``, ``block01``, ``h.007``), and the names of counts and lists of such numbers.

Only the ASCII digits are numbers: ``str.isdigit`` holds for superscripts and for the digits of other scripts too, which
``int`` refuses or takes for another name's number. Some networks pad with zeros, and then all of a series' numbers have
at least as many digits.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Head = TypeVar("Head")

#: Digits of a number that may count layers; a longer one is a word (a hash, a date), and ``int`` has a limit too.
LONGEST = 18
DIGITS = f"[0-9]{{1,{LONGEST}}}"  #: a regular expression of what is taken for a number
_PARTS = re.compile(f"({DIGITS})")
#: Whole names only: a count of experts, heads or channels may equal the number of blocks by chance.
COUNT = re.compile(
    r"((n|num|number_of|total)_?)?((hidden|encoder|decoder|transformer)_)?(layers?|blocks?)|(num_|encoder_|decoder_)?depth"
)
#: Names of lists that hold a number of blocks for each stage.
DEPTHS = re.compile(r"depth|layer|block")
#: Names of lists that say which blocks are of some kind: ``moe_layers``, ``full_attention_block_indices``.
_NUMBERS = "(ids?|idxs?|index|indexes|indices)"
CHOSEN = re.compile(rf".*((layers?|blocks?)(_?{_NUMBERS}|_to_\w+)?|(attn|attention)_{_NUMBERS})")
ALL_STATES = "stage_names"  #: what a backbone calls the values between its layers, in turn
#: Names of what says between which layers features are taken; the first count the layers before them.
STATES = re.compile(rf"out_(features|{_NUMBERS})|(.*_)?(feature|intermediate|select)_layers?(_{_NUMBERS})?")
TAPPED = re.compile(rf"{STATES.pattern}|.*_out_{_NUMBERS}|(.*_)?deepstack(_.*)?_{_NUMBERS}")


def number_of(text: str) -> int | None:
    """The number that a text is, zero-padded or not; None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= LONGEST else None


def is_index(text: str) -> bool:
    """Whether a text is a list's index as Python writes it: digits without padding."""
    return number_of(text) is not None and (text == "0" or text[0] != "0")


def pattern_of(path: str) -> str:
    """A dotted path with its numbers blanked: ``layers.#.blocks`` for ``layers.3.blocks``."""
    return _PARTS.sub("#", path)


def split_number(name: str) -> tuple[str, str] | None:
    """``block01`` as ``("block", "01")``; None where a name does not end in a number."""
    number = name[len(name.rstrip("0123456789")) :][-LONGEST:]
    return (name[: len(name) - len(number)], number) if number else None


def split_inside(name: str) -> tuple[str, str, str] | None:
    """``block01_norm`` as ``("block", "01", "_norm")``, around its last number; None where it ends in one."""
    parts = _PARTS.split(name)
    if len(parts) < 3 or not parts[-1]:
        return None
    return "".join(parts[:-2]), parts[-2], parts[-1]


def width_of(numbers: Iterable[str]) -> int | None:
    """The digits to which a series pads its numbers: 1 without padding; None where ``1`` stands beside ``01``."""
    texts = set(numbers)
    width = max((len(text) for text in texts if text[0] == "0"), default=1)
    return width if all(text == f"{int(text):0{width}}" for text in texts) else None


def natural_key(name: str) -> list[tuple[bool, int | str]]:
    """A sort key by which ``layer10`` stands behind ``layer2``."""
    return [
        (number is not None, part if number is None else number)
        for part in _PARTS.split(name)
        for number in [number_of(part)]
    ]


def consecutive(places: Iterable[tuple[Head, int]]) -> Iterator[tuple[Head, range]]:
    """Heads and numbers as runs: one for each maximal row of one head and numbers that rise by 1."""
    rows = itertools.groupby(enumerate(places), lambda item: (item[1][0], item[1][1] - item[0]))
    for (head, _), row in rows:
        numbers = [number for _, (_, number) in row]
        yield head, range(numbers[0], numbers[-1] + 1)


@dataclass(frozen=True)
class Series:
    """Names that are numbered through: ``path + "." + prefix + number``, the number padded to ``width`` digits.

    A ``suffix`` may stand behind the number (``weight_ih_l0_reverse``).
    """

    path: str
    prefix: str
    width: int = 1
    suffix: str = ""

    @property
    def head(self) -> str:
        """What stands before the number."""
        return f"{self.path}.{self.prefix}" if self.path else self.prefix

    def name(self, number: int) -> str:
        """The path of the child with that number."""
        return f"{self.head}{number:0{self.width}}{self.suffix}"

    def number(self, path: str) -> int | None:
        """The number of the child that a path names or lies in; None for a path outside the series."""
        head = self.head
        if not path.startswith(head):
            return None
        text = path[len(head) :].partition(".")[0]
        number = number_of(text.removesuffix(self.suffix))
        return number if number is not None and text == f"{number:0{self.width}}{self.suffix}" else None


def is_index_list(name: str, value: Any, count: int) -> bool:
    """Whether it lists block numbers: integers that rise, and all below the number of blocks."""
    if (
        not isinstance(value, (list, tuple))
        or not value
        or not CHOSEN.fullmatch(name)
        or TAPPED.fullmatch(name)
    ):
        return False
    numbers = [item for item in value if type(item) is int]
    return (
        len(numbers) == len(value)
        and numbers == sorted(set(numbers))
        and numbers[0] >= 0
        and numbers[-1] < count
    )
