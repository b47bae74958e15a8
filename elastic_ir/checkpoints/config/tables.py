"""The tables of one configuration, and what their entries have to do with a stack, as far as names and numbers show.

A number whose name refers to layers is a count, a list as long as the stack is a list of its layers. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import PlanError
from elastic_ir.formats.model_folder import CONFIG
from elastic_ir.ir.numbering import COUNT, DEPTHS, is_index_list, number_of
from elastic_ir.safety.config_values import NOTES

#: Names of numbers that may choose one layer, in place of a list.
_ONE = re.compile(r"(layers?|blocks?)_to_\w+")
#: Names of counts that say which of several stacks they count.
_OF_SOME = re.compile(r"((n|num|number_of|total)_)?(?P<which>\w+)_(layers?|blocks?|depth)")
#: Names of lists with an entry for each layer, whatever their length.
_PER_LAYER = re.compile(r"layer|block|attention|mlp")
_LONG = 12  #: a list as long as a stack of so many layers is one of its layers, whatever its name
_TOKENS = re.compile(r"token|language|label|bucket|stage")
#: Numbers that may refer to layers by their place; they are kept, and reported.
_BY_PLACE = re.compile(
    r".*(layer|block)s?(_|$).*|.*(pattern|interval|_freq|frequency|sparse_step|first_k\w*|_every(_n)?|period|offset)"
)
#: Names of configurations inside a configuration, and of such tables that have nothing to do with layers.
_TABLE = re.compile(r"_?config$|_cfg$|_args$")
_NO_TABLES = {"quantization_config", *NOTES}
#: The configurations of further sources, by name, where there is none.
NO_OTHERS: Mapping[str, dict[str, Any]] = {}
_SIDES = (("decoder", "encoder"), ("encoder", "decoder"))


@dataclass(frozen=True)
class Entry:
    """One entry of a configuration: the table that holds it, and its name."""

    holder: tuple[str, ...]
    name: str

    def __str__(self) -> str:
        return ".".join((*self.holder, self.name))


class Reader:
    """The tables of one configuration, and which stack may look where."""

    def __init__(
        self,
        config: dict[str, Any],
        stacks: Sequence[Stack],
        names: Iterable[str],
        others: Mapping[str, dict[str, Any]] = NO_OTHERS,
        file: str = CONFIG,
    ) -> None:
        self.config = config
        self.file = file
        self.others = others
        self.stacks = stacks
        words = {part for name in names for part in name.split(".") if number_of(part) is None}
        self.holders = [(), *_tables(config)]
        #: tables that concern one part of the network, by the word that its weights' names share with them
        self.owners: dict[tuple[str, ...], str] = {}
        for path in self.holders:
            for key in path:
                stem = _TABLE.sub("", key)
                if any(stem in word for word in words):
                    self.owners[path] = stem

    def table(self, path: tuple[str, ...], config: dict[str, Any] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = self.config if config is None else config
        for key in path:
            found = found[key]
        return found

    def holders_of(self, stack: Stack) -> list[tuple[str, ...]]:
        """The tables that may concern a stack: those of its part, else those of no part."""
        own = [path for path, stem in self.owners.items() if stem in stack.path]
        return own or [path for path in self.holders if path not in self.owners]

    def _entries(self, stack: Stack, fits: Callable[[str, Any], bool]) -> list[tuple[Entry, Any]]:
        """Entries of a stack's tables; of an encoder's and a decoder's in one table only its own side's.

        An entry of no side follows the encoder where each side has its own, as transformers has it.
        """
        found: list[tuple[Entry, Any]] = []
        for path in self.holders_of(stack):
            table = self.table(path)
            names = [name for name, value in table.items() if fits(name, value)]
            for side, other in _SIDES:
                if side in stack.path and other not in stack.path:
                    names = [name for name in names if other not in name]
                    own = [name for name in names if side in name]
                    if own and side == "decoder":
                        names = own
            found += [(Entry(path, name), table[name]) for name in names]
        return found

    def counts(self, stack: Stack) -> list[tuple[Entry, int]]:
        """All entries that by their names count the stack's blocks, whatever their values.

        One that names what only some stacks are called (``num_single_layers`` of ``single_transformer_blocks``) goes
        before those that name none, where it has the stack's number.
        """
        own = self._entries(
            stack, lambda name, value: value == stack.before and type(value) is int and _names(name, stack)
        )
        return own or self._entries(
            stack, lambda name, value: type(value) is int and bool(COUNT.fullmatch(name))
        )

    def lists(self, stack: Stack) -> list[tuple[Entry, Any]]:
        """Per-layer lists with what they become: chosen numbers, one entry a layer, runs of patterns."""
        found: list[tuple[Entry, Any]] = []
        for entry, value in self._entries(stack, lambda name, value: isinstance(value, list)):
            if is_index_list(entry.name, value, stack.before):
                chosen = self._by_source(entry, value, stack)
                found.append((entry, [at for at, (layer, own) in enumerate(chosen) if layer in own]))
            elif _layer_list(entry.name, value, stack.before):
                found.append((entry, [own[layer] for layer, own in self._by_source(entry, value, stack)]))
            elif (whole := _runs(entry.name, value)) is not None and len(whole) == stack.before:
                runs = self._by_source(entry, whole, stack, runs=True)
                found.append((entry, _as_runs([own[layer] for layer, own in runs])))
        return found

    def chosen(self, stack: Stack) -> list[tuple[Entry, int | None]]:
        """Numbers that choose one layer (``layers_to_transform``), with what they become; None where it is not one."""
        found: list[tuple[Entry, int | None]] = []
        for entry, value in self._entries(stack, lambda name, value: bool(_ONE.fullmatch(name))):
            if type(value) is int and 0 <= value < stack.before:
                places = [at for at, source in enumerate(stack.order) if source == value]
                found.append((entry, places[0] if len(places) == 1 else None))
        return found

    def _by_source(
        self, entry: Entry, value: list[Any], stack: Stack, runs: bool = False
    ) -> list[tuple[int, list[Any]]]:
        """For each target layer its number in its source, and that source's list; PlanError where it has none."""
        found = []
        names = list(self.others)
        for source, layer in stack.places():
            own: Any = value
            if source:
                own = self.others[names[source - 1]]
                for key in (*entry.holder, entry.name):
                    own = own.get(key) if isinstance(own, dict) else None
                if not isinstance(own, list):
                    own = None
                elif runs:
                    own = _runs(entry.name, own)
                by_number = is_index_list(entry.name, value, stack.before)
                if own is None or (not by_number and layer >= len(own)):
                    raise PlanError(
                        f"{self.file}'s {entry} has an entry for each layer, and that of {names[source - 1]!r} has "
                        f"none for layer {layer}; give it such a list"
                    )
            found.append((layer, own))
        return found

    def depths(self, stack: Stack) -> list[list[Any]]:
        """The lists of a stack's tables that have a depth for each of its blocks."""
        found = self._entries(
            stack,
            lambda name, value: "depth" in name and isinstance(value, list) and len(value) == stack.before,
        )
        return [value for _, value in found]

    def depth_lists(self) -> list[Entry]:
        """Lists of all stacks' depths (Swin's and ConvNeXt's ``depths``), recognised by name and values."""
        before = [stack.before for stack in self.stacks]
        return [
            Entry(path, name)
            for path in self.holders
            for name, value in self.table(path).items()
            if len(before) > 1 and value == before and isinstance(value, list) and DEPTHS.search(name)
        ]

    def kept(self, claims: Iterable[Entry]) -> list[str]:
        """Entries that may refer to layers by their numbers, and were left as they are."""
        done, kept = set(claims), []
        if not any(stack.changed for stack in self.stacks):
            return []
        for path in self.holders:
            for name, value in self.table(path).items():
                entry = Entry(path, name)
                if (
                    entry not in done
                    and type(value) is int
                    and value > 0
                    and _BY_PLACE.fullmatch(name)
                    and not COUNT.fullmatch(name)
                ):
                    kept.append(f"{entry} = {value}")
        return kept


def _tables(config: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The configurations inside a configuration."""
    for key, value in config.items():
        is_table = _TABLE.search(key) is not None and key not in _NO_TABLES
        if isinstance(value, dict) and (is_table or key in ("encoder", "decoder")):
            yield (*path, key)
            yield from _tables(value, (*path, key))


def _layer_list(name: str, value: list[Any], count: int) -> bool:
    if len(value) != count or count < 2 or name.startswith("_") or "stage" in name:
        return False
    return bool(_PER_LAYER.search(name)) or (count >= _LONG and not _TOKENS.search(name))


def _runs(name: str, value: list[Any]) -> list[Any] | None:
    """``[[["global", "local"], 12]]`` written out (GPT-Neo's ``attention_types``); None where it is not such a list."""
    if not value or not _PER_LAYER.search(name):
        return None
    whole: list[Any] = []
    for item in value:
        if not (
            isinstance(item, list) and len(item) == 2 and isinstance(item[0], list) and type(item[1]) is int
        ):
            return None
        whole += item[0] * item[1]
    return whole


def _as_runs(whole: list[Any]) -> list[Any]:
    """The shortest pattern that repeats to the whole, and how often it does."""
    count = len(whole)
    size = next(n for n in range(1, count + 1) if count % n == 0 and whole[:n] * (count // n) == whole)
    return [[whole[:size], count // size]]


def _names(name: str, stack: Stack) -> bool:
    """Whether a count's name has a word more, which the stack's own name has too."""
    match = _OF_SOME.fullmatch(name)
    if match is None or COUNT.fullmatch(name):
        return False
    return set(match["which"].split("_")) <= set(re.split(r"[._]", f"{stack.path}.{stack.prefix}"))
