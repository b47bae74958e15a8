"""Entries of JSON files that refer to layers by number: texts and keys with paths, tables, pairs of layer and head.

What is plain is followed along the plan: a copy gets what its source has. What is not is refused, with the file and
the entry, unless the user wants it to stay as it is (``--keep-beside``). Counts and lists of layers are
:mod:`elastic_ir.checkpoints.config.depth`'s. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elastic_ir.checkpoints.config.patterns import Texts, Unclear
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import PlanError
from elastic_ir.ir.numbering import number_of, split_number, width_of
from elastic_ir.plans.keep_beside import is_kept

#: Names of what is numbered otherwise: classes, tokens, buckets. A tower's stages are not layers.
NOT_LAYERS = re.compile(r"token|language|label|lang|bucket|stage|class|vocab|beam|expert|group|device")
_LAYERS = re.compile(r"layer|block|head|bits|quant|module|attention|attn|mlp|skip")
_LONG = 12  #: a table of so many numbers, as many as there are layers, is one of layers whatever its name
_SIDES = ("encoder", "decoder")


@dataclass
class Followed:
    """A document of the changed stacks, and the entries in it that were kept because the user asked for it."""

    document: Any
    kept: list[str] = field(default_factory=list)


def followed(
    document: Any,
    file: str,
    stacks: Sequence[Stack],
    names: Iterable[str],
    keep: Sequence[str] = (),
    is_config: bool = False,
) -> Followed:
    """A document of a file beside the weights, with the layers that it refers to renumbered by the plan.

    ``names`` are those of the source's tensors, ``keep`` what the user wants to stay as it is, where the entries of the
    configuration go by their own names. Raises PlanError, which
    names the file and the entry, for what cannot be followed.
    """
    if not any(stack.changed for stack in stacks):
        return Followed(document)
    if is_kept(keep, file) and not is_config:
        return Followed(document, [file])
    follower = _Follower(file, stacks, Texts(stacks, names), keep, is_config)
    return Followed(follower.item(document, ()), follower.kept)


class _Follower:
    def __init__(
        self, file: str, stacks: Sequence[Stack], texts: Texts, keep: Sequence[str], is_config: bool
    ) -> None:
        self.file = file
        self.stacks = stacks
        self.texts = texts
        self.keep = keep
        self.is_config = is_config
        self.kept: list[str] = []

    def item(self, item: Any, path: tuple[str, ...]) -> Any:
        """An entry, whatever it is, as it has to be."""
        if path and self.keep and is_kept(self.keep, self.name(path)):
            if self.changed(item, path):
                self.kept.append(self.name(path))
            return item
        if isinstance(item, dict):
            return self.table(item, path)
        if isinstance(item, list):
            return self.listed(item, path)
        if isinstance(item, str):
            made = self.text(item, path)
            if len(made) == 1:
                return made[0]
            raise self.refusal(
                path, f"names one layer ({item!r}), which has {len(made)} places in the result"
            )
        return item

    def changed(self, item: Any, path: tuple[str, ...]) -> bool:
        """Whether an entry would not stay as it is."""
        try:
            return bool(
                _Follower(self.file, self.stacks, self.texts, (), self.is_config).item(item, path) != item
            )
        except PlanError:
            return True

    def name(self, path: Sequence[str]) -> str:
        """The dotted name of an entry, as --keep-beside takes it."""
        return ".".join(path if self.is_config else (self.file, *path))

    def refusal(self, path: Sequence[str], why: str) -> PlanError:
        entry = ".".join(path)
        return PlanError(
            f"{self.file}'s {entry} {why}, so it cannot be brought to the new depth; write it anew in the source, or "
            f"--keep-beside {self.name(path)} (keep_beside=) keeps it as it is"
        )

    def text(self, text: str, path: Sequence[str]) -> list[str]:
        try:
            return self.texts.followed(text)
        except Unclear as error:
            raise self.refusal(path, f"{error} ({text!r})") from error

    # -- lists -----------------------------------------------------------------------------------------------------

    def listed(self, items: list[Any], path: tuple[str, ...]) -> list[Any]:
        if _are_pairs(items) and path and "head" in path[-1]:
            return self.pairs(items, path)
        made: list[Any] = []
        for item in items:
            made += self.text(item, path) if isinstance(item, str) else [self.item(item, path)]
        return made

    def pairs(self, items: list[list[int]], path: tuple[str, ...]) -> list[list[int]]:
        """Pairs of a layer and a head."""

        def renumbered(stack: Stack) -> list[list[int]]:
            return [
                [at, head]
                for at, source in enumerate(stack.order)
                for layer, head in items
                if layer == source
            ]

        most = max(layer for layer, _ in items)
        made: list[list[int]] = self.of_one_stack(path, lambda stack: most < stack.before, renumbered, items)
        if not made:
            raise self.refusal(path, "names heads of layers of which none is left")
        return made

    # -- tables ----------------------------------------------------------------------------------------------------

    def table(self, table: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        numbered = self.numbered(table, path)
        if numbered is not None:
            return {key: self.item(value, (*path, key)) for key, value in numbered.items()}
        made: dict[str, Any] = {}
        for key, value in table.items():
            # a configuration in memory may have numbers for keys, its file has none
            for name in self.text(key, path) if isinstance(key, str) else [key]:
                stages = self.is_config and self.names_stages(table, value)
                made[name] = value if stages else self.item(value, (*path, str(key)))
        return made

    def names_stages(self, table: Mapping[str, Any], value: Any) -> bool:
        """Whether a value is some of what its table lists as the names of a tower's stages (timm's ``layers.0``).

        A text with the whole path of a stack is a layer of it, whatever the list is called.
        """
        if not isinstance(value, list):
            return False
        listed = [one for key, one in table.items() if "stage" in str(key) and isinstance(one, list)]
        names = {text for one in listed for text in one if isinstance(text, str)}
        if not all(isinstance(text, str) and text in names for text in value):
            return False
        return not any(map(self.texts.in_full, value))

    def numbered(self, table: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any] | None:
        """A table whose keys are layers' numbers; None where it is another."""
        if not path or len(table) < 1:
            return None
        split = [split_number(key) if isinstance(key, str) else None for key in table]
        numbers = [number_of(parts[1]) for parts in split if parts is not None]
        prefixes = {parts[0] for parts in split if parts is not None}
        if None in split or len(prefixes) != 1 or None in numbers:
            return None
        prefix = prefixes.pop()
        texts = [parts[1] for parts in split if parts is not None]
        width = width_of(texts) or 1
        found = sorted(number for number in numbers if number is not None)
        own = path[-1] + prefix
        if NOT_LAYERS.search(own) or (prefix and not re.search(r"layer|block|\bh\W", prefix)):
            return None
        by_layer = bool(_LAYERS.search(".".join((*path, prefix))))
        whole = found == list(range(found[0], found[0] + len(found)))

        def fits(stack: Stack) -> bool:
            every = whole and len(found) == stack.before and found[0] in (0, 1, stack.base)
            return every or (by_layer and found[-1] < stack.before)

        if not any(fits(stack) for stack in self.stacks):
            return None
        if not by_layer and len(found) < max(2, _LONG):
            if any(stack.changed and fits(stack) for stack in self.stacks) and len(found) > 1:
                raise self.refusal(path, f"is a table of {len(found)} numbers, which may be layers or not")
            return None

        def renumbered(stack: Stack) -> dict[str, Any]:
            first = found[0] if whole and len(found) == stack.before else 0
            values = dict(zip((number_of(text) for text in texts), table.values(), strict=True))
            return {
                f"{prefix}{at + first:0{width}}": values[source + first]
                for at, source in enumerate(stack.order)
                if source + first in values
            }

        made: dict[str, Any] = self.of_one_stack(path, fits, renumbered, table)
        return made

    def of_one_stack(
        self,
        path: Sequence[str],
        fits: Callable[[Stack], bool],
        renumbered: Callable[[Stack], Any],
        item: Any,
    ) -> Any:
        """What an entry without a path becomes; refused where it may be of several stacks that change differently."""
        words = [word for word in _SIDES if any(word in part for part in path)]
        if not words and self.file.startswith("generation"):
            words = ["decoder"]  # what generates
        sided = [stack for stack in self.stacks if any(word in stack.path for word in words)]
        found: list[Any] = []
        for stack in filter(fits, sided or self.stacks):
            made = renumbered(stack) if stack.changed else item
            if made not in found:
                found.append(made)
        if len(found) > 1:
            raise self.refusal(
                path, "chooses layers by number, and does not state of which of several stacks"
            )
        return found[0] if found else item


def _are_pairs(items: Sequence[Any]) -> bool:
    return bool(items) and all(
        isinstance(item, list) and len(item) == 2 and all(type(n) is int and n >= 0 for n in item)
        for item in items
    )
