"""Texts that refer to layers by number: a path (``model.layers.3.mlp``), or a pattern of paths. No torch here.

A path follows the plan: once for each place of its layer, or nowhere. A pattern stays as it is where it means
the same of each new layer as of the layer that it is a copy of; one that writes a layer's path out is followed like
a path, if what comes out means the same. By which rule its reader matches is not known, so all rules have to agree.
"""

from __future__ import annotations

import fnmatch
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache

from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.ir.numbering import DIGITS

#: Written before a pattern by compressed-tensors, and by GPTQModel.
_MARK = re.compile(r"re:|[+-]:")
_SIGNS = re.compile(r"[*?\[\](){}|^$+\\]")
#: A dotted path of words, dots escaped or not, up to the part with a number.
_PATH = re.compile(rf"((?:[A-Za-z_]\w*?\\?\.)*)([A-Za-z_]*?)(?<![0-9])({DIGITS})(?=\\?\.|\$|$)")
_LONGEST = 1000  #: characters of a text that may be a pattern; templates and licences are longer
_REPEATED = re.compile(r"\)\s*[*+{]")  #: a group that is repeated may take for ever
_ALIKE = 16  #: experts and the like of a layer that a pattern is tried on
_SECONDS = 1.0  #: for one pattern
_STEPS = math.log(1e8)  #: of matching one path, which nothing can interrupt: about as long
_MANY = re.compile(r"(?<!\\)(?:\\\\)*[*+{]")  #: a repeat may end anywhere in a path
_EITHER = re.compile(r"(?<![*+}(\\])\?|\|")  #: what may be there or not, and one way of two


class Unclear(Exception):
    """A text that cannot be followed; the message says why, as the end of a sentence."""


class Texts:
    """How texts become those of the changed stacks; ``names`` are of the source's tensors."""

    def __init__(self, stacks: Sequence[Stack], names: Iterable[str]) -> None:
        self._stacks = stacks
        self._names = list(names)

    def followed(self, text: str) -> list[str]:
        """What a text becomes: itself, a text for each place of its layer, or nothing. Unclear where it is."""
        if len(text) > _LONGEST or "\n" in text or not re.search(r"[0-9]|\\d", text):
            return [text]
        pattern = bool(_MARK.match(text) or _SIGNS.search(text))
        try:
            made = self._renamed(text)
        except Unclear:
            if not pattern:
                raise
            made = [text]
        if not pattern or self._means_the_same(text, made):
            return made
        if made != [text] and self._means_the_same(text, [text]):
            return [text]
        raise Unclear("chooses layers by a pattern of their numbers")

    def in_full(self, text: str) -> bool:
        """Whether a text names a layer of a stack by its whole path."""
        return any(
            _is_of(stack, words, match[2], False) and ".".join(words) == stack.path
            for match in _PATH.finditer(text)
            for words in [[word for word in re.split(r"\\?\.", match[1]) if word]]
            for stack in self._stacks
        )

    def _renamed(self, text: str) -> list[str]:
        """A text with the layer's number replaced by the plan."""
        for match in _PATH.finditer(text):
            words = [word for word in re.split(r"\\?\.", match[1]) if word]
            found = {
                tuple(made)
                for stack in self._stacks
                if _is_of(stack, words, match[2], match.start() > 0 and text[match.start() - 1] not in ":")
                and (made := _places(stack, match[3])) is not None
            }
            if len(found) > 1:
                raise Unclear("names a layer by a part of its path, which several stacks have")
            for places in found:
                return [f"{text[: match.start(3)]}{number}{text[match.end(3) :]}" for number in places]
        return [text]

    def _means_the_same(self, text: str, made: Sequence[str]) -> bool:
        """Whether texts mean of every new path what one meant of the path it is a copy of."""
        end = time.monotonic() + _SECONDS
        for rule in _RULES:
            before, after = rule(text), [rule(one) for one in made]
            if before is None or None in after:
                continue
            new = [one for one in after if one is not None]
            for origin, path in self._pairs:
                if time.monotonic() > end:
                    return False
                if before(origin) != any(one(path) for one in new):
                    return False
        return True

    @cached_property
    def _pairs(self) -> list[tuple[str, str]]:
        """For each new path inside of a changed stack the source's, of modules at every depth."""
        found: dict[tuple[str, str], None] = {}
        for stack in self._stacks:
            rests: dict[int, dict[str, dict[str, None]]] = {}
            for name in self._names:
                number = stack.series.number(name)
                if number is None:
                    continue
                parts = name[len(stack.series.name(number)) :].split(".")
                held = rests.setdefault(number - stack.base, {})
                for end in range(1, len(parts) + 1):
                    rest = ".".join(parts[:end])
                    some = held.setdefault(re.sub(DIGITS, "0", rest), {})
                    if len(some) < _ALIKE:
                        some[rest] = None
            for at, source in enumerate(stack.sources):
                old, new = (stack.series.name(number + stack.base) for number in (source, at))
                for some in rests.get(source, {}).values():
                    found.update(dict.fromkeys((old + rest, new + rest) for rest in some))
        return list(found)


def _places(stack: Stack, digits: str) -> list[str] | None:
    """The numbers that a layer has after the change; None for a number that none had."""
    number = int(digits) - stack.base
    if not 0 <= number < stack.before + stack.tail:
        return None
    found = [at for at, source in enumerate(stack.sources) if source == number]
    return [f"{at + stack.base:0{stack.width}}" for at in found]


def _is_of(stack: Stack, words: Sequence[str], prefix: str, behind: bool) -> bool:
    """Whether the words before a number are a stack's path, or its last ones."""
    own = stack.path.split(".") if stack.path else []
    if prefix != stack.prefix or (not words and (own or not prefix or behind)):
        return False
    return own[len(own) - len(words) :] == list(words) if len(words) <= len(own) else False


Rule = Callable[[str], "Callable[[str], bool] | None"]


def _regular(how: str) -> Rule:
    def rule(text: str) -> Callable[[str], bool] | None:
        pattern = _MARK.sub("", text, count=1) if _MARK.match(text) else text
        if _REPEATED.search(pattern):
            return _not_tried("repeats a group, which is not tried")
        pattern = re.sub(r"(?:(?<!\\)\.\*)+", ".*", pattern)  # two in a row mean no more than one
        many, either = len(_MANY.findall(pattern)), len(_EITHER.findall(pattern))
        try:
            match = getattr(re.compile(pattern), how)
        except (re.error, RecursionError, OverflowError):
            return None

        def matches(path: str) -> bool:
            if math.log(len(path)) * (many + 1) + math.log(2) * either > _STEPS:
                raise Unclear("repeats more than is tried")
            return match(path) is not None

        return matches

    return rule


def _glob(text: str) -> Callable[[str], bool] | None:
    if _MARK.match(text):
        return None
    return lambda path: fnmatch.fnmatchcase(path, text)


def _not_tried(why: str) -> Callable[[str], bool]:
    def matches(path: str) -> bool:
        raise Unclear(why)

    return matches


_RULES: tuple[Rule, ...] = (_regular("search"), _regular("match"), _regular("fullmatch"), _glob)


_whole = lru_cache(1000)(_regular("fullmatch"))


def whole_match(pattern: str, path: str) -> bool:
    """Whether a regular expression matches a whole path; Unclear where it is none, or is not tried."""
    matches = _whole(pattern)
    if matches is None:
        raise Unclear("is no regular expression")
    return matches(path)
