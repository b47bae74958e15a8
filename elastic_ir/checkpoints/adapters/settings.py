"""An adapter's settings in step with its base: they mean of each new module what they meant of the one it is a copy of.

PEFT makes the adapter's modules anew by its settings, and fills them from the file. So of each entry that chooses
modules the first form is taken that means the same: as it is; with the numbers of layers renumbered; or a list of the
modules by name, which is always exact. By which rule PEFT reads an entry is known, and followed here
(``check_target_module_exists`` and ``get_pattern_key`` in its sources). No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elastic_ir.checkpoints.config.entries import followed
from elastic_ir.checkpoints.config.patterns import Unclear, whole_match
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.formats.adapter_folder import ADAPTER_CONFIG

Entries = Mapping[str, Any]

_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_ALL = "all-linear"
#: Other entries that choose modules, or parameters: lists of ends of paths, or an expression.
_CHOOSING = re.compile(r"modules_to_save|target_parameters|\w+_modules")
_PATTERN = re.compile(r"\w+_pattern")  #: tables of expressions and what holds for the modules that they match
_ANY_NUMBER = re.compile(r"(\\d|\[\\d\]|\[0-9\])([+*]|\{[01]?,\})")
#: What may match one layer's number and not another's: a digit that belongs to no word, or one character of any kind.
_SOME_NUMBER = re.compile(r"\\d|\[|(?<![A-Za-z_0-9])[0-9]|\\?\.\.(?![*+?{])")


@dataclass(frozen=True)
class Modules:
    """The modules of a base that has changed, by their paths in the network."""

    #: of its layers: what each is a copy of, None for one that another network brought, and its own path
    pairs: Sequence[tuple[str | None, str]]
    beside: Sequence[str]  #: those that lie in no layer
    adapted: Sequence[str]  #: those of both, as they are now, that the adapter has tensors of

    def old(self, of: Callable[[str], Any], nothing: Any) -> list[Any]:
        """What something is for what each module was made from."""
        return [nothing if one is None else of(one) for one, _ in self.pairs] + [of(m) for m in self.beside]

    @property
    def new(self) -> list[str]:
        """The modules as they are now, in that order."""
        return [*(path for _, path in self.pairs), *self.beside]


def settings_followed(
    config: Entries, stacks: Sequence[Stack], names: Iterable[str], modules: Modules
) -> tuple[dict[str, Any], list[str]]:
    """The settings, and for each entry that another form was found for what it is now.

    ``stacks`` are those that have tensors of the adapter, under their paths in the network; ``names`` are the base's
    under those paths. Raises PlanError where an entry cannot be read as PEFT does.
    """
    made, notes, names = dict(config), list[str](), list(names)
    _check(config)

    def settle(keys: Sequence[str], rule: _Rule, within: Modules) -> None:
        own = {key: config[key] for key in keys if config.get(key) is not None}
        if not own:
            return
        found, how = _form(own, rule, within, stacks, names)
        if found != own:
            made.update(found)
            notes.append(f"{', '.join(key for key in found if found[key] != config.get(key))}: {how}")

    if config.get("target_modules") is not None:
        settle(_TARGETS, _Rule(_is_target, lambda paths, _: _targets(config, modules.adapted)), modules)
    adapted = set(modules.adapted)
    pairs = [pair for pair in modules.pairs if pair[1] in adapted]
    within = Modules(pairs, [path for path in modules.beside if path in adapted], modules.adapted)
    for key, value in config.items():
        if _PATTERN.fullmatch(key) and isinstance(value, dict):
            settle([key], _value_in(key), within)
        elif _CHOOSING.fullmatch(key) and key not in _TARGETS:
            settle([key], _is_in(key), modules)
    return made, notes


def _check(config: Entries) -> None:
    """SourceError where an entry is not of the kind that PEFT writes."""
    for key, value in config.items():
        items = value if isinstance(value, list) else [value]
        numbers = key == "layers_to_transform"
        chooses = key in _TARGETS or _CHOOSING.fullmatch(key)
        if (
            chooses
            and value is not None
            and not all(type(item) is (int if numbers else str) for item in items)
        ):
            raise SourceError(f"{ADAPTER_CONFIG} is damaged: {key} is {value!r}")


# -- forms ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rule:
    """What entries mean of a module, and entries that mean as much of each module by name."""

    means: Callable[[Entries], Callable[[str], Any]]
    by_name: Callable[[Sequence[str], Sequence[Any]], Entries]
    nothing: Any = False  #: what they mean of a module that they do not choose


def _form(
    own: Entries,
    rule: _Rule,
    modules: Modules,
    stacks: Sequence[Stack],
    names: Sequence[str],
) -> tuple[Entries, str]:
    """The first form of entries that means the same, and how it differs."""
    try:
        old = modules.old(rule.means(own), rule.nothing)
    except Unclear as error:
        numbers = own.get("layers_to_transform") not in (None, [])
        texts = (text for value in own.values() for text in _texts(value))
        if (
            not numbers
            and all(map(_names_no_layer, texts))
            and all(one is not None for one, _ in modules.pairs)
        ):
            return own, ""
        if "target_modules" in own:
            return rule.by_name([], []), "the modules that have tensors, by name"
        raise PlanError(
            f"{ADAPTER_CONFIG}'s {', '.join(own)} {error}, so it cannot be brought to the new depth; write it anew "
            "with the names of the modules"
        ) from error
    for found, how in ((_renumbered(own, stacks, names), "renumbered"), (own, "")):
        if found is not None and _means(found, rule, modules.new, old):
            return found, how
    return rule.by_name(modules.new, old), "the modules by name"


def _means(found: Entries, rule: _Rule, modules: Sequence[str], old: Sequence[Any]) -> bool:
    try:
        return list(map(rule.means(found), modules)) == old
    except Unclear:
        return False


def _renumbered(own: Entries, stacks: Sequence[Stack], names: Sequence[str]) -> Entries | None:
    """Entries with the layers' numbers brought to the new places; None where that is not plain."""
    layers = own.get("layers_to_transform")
    try:
        made = dict(
            followed(
                {k: v for k, v in own.items() if v is not layers}, ADAPTER_CONFIG, stacks, names
            ).document
        )
    except PlanError:
        return None
    if layers is not None:
        if len(stacks) != 1:
            return None
        stack, wanted = stacks[0], [layers] if isinstance(layers, int) else layers
        made["layers_to_transform"] = [
            at + stack.base
            for at, source in enumerate(stack.sources)
            if source >= 0 and source + stack.base in wanted
        ]
    return made


def _targets(config: Entries, adapted: Sequence[str]) -> Entries:
    """Entries that choose modules by name; a name that is chosen whole needs no layer's number."""
    others = {key: None for key in _TARGETS if config.get(key) is not None}
    return {**others, "target_modules": list(adapted)}


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list | dict) else []


def _names_no_layer(text: str) -> bool:
    """Whether an expression holds for any number of a layer or for none, as far as its letters show."""
    return _SOME_NUMBER.search(_ANY_NUMBER.sub("", text)) is None


# -- as PEFT reads them --------------------------------------------------------------------------------------------


def _ends(listed: Any) -> Callable[[str], bool]:
    """Whether a path is one of a list, or ends like one; a text in place of a list is an expression for the whole."""
    if isinstance(listed, str):
        return lambda path: whole_match(listed, path)
    names = set(listed)
    return lambda path: any(end in names for end in _tails(path))


def _tails(path: str) -> Iterator[str]:
    """A path, and what is behind each of its dots."""
    yield path
    at = path.find(".")
    while at >= 0:
        yield path[at + 1 :]
        at = path.find(".", at + 1)


def _is_target(entries: Entries) -> Callable[[str], bool]:
    wanted, layers = entries["target_modules"], entries.get("layers_to_transform")
    given = entries.get("layers_pattern") or r"[^.]*"
    patterns = [given] if isinstance(given, str) else given
    whole = set() if isinstance(wanted, str) else set(wanted)
    excluded, chosen = _ends(entries.get("exclude_modules") or []), _ends(wanted)

    def number(path: str) -> int | None:
        if not all(re.fullmatch(r"[\w.]+|\[\^\.\]\*", pattern) for pattern in patterns):
            raise Unclear("finds layers by an expression")
        found = (re.match(rf".*\.{pattern}\.(\d+)\.", path) for pattern in patterns)
        return next((int(match[1]) for match in found if match is not None), None)

    def target(path: str) -> bool:
        if excluded(path):
            return False
        if isinstance(wanted, str):
            return wanted.lower() == _ALL or chosen(path)
        if path in whole or not chosen(path) or layers is None or layers == []:
            return chosen(path)
        return number(path) in ([layers] if isinstance(layers, int) else layers)

    return target


def _value_in(key: str) -> _Rule:
    """The value of the first expression in a table that a path ends like; AdaLoRA's keys are names of tensors."""

    def means(entries: Entries) -> Callable[[str], Any]:
        table = [(end.partition(".lora_E")[0], value) for end, value in entries[key].items()]
        places = {end: place for place, (end, _) in reversed(list(enumerate(table)))}
        expressions = [end for end in places if not re.fullmatch(r"[\w.]+", end)]  # most are names

        def value(path: str) -> Any:
            found = [places[end] for end in _tails(path) if end in places]
            found += [places[end] for end in expressions if whole_match(rf"(.*\.)?({end})", path)]
            return table[min(found)][1] if found else None

        return value

    def by_name(paths: Sequence[str], values: Sequence[Any]) -> Entries:
        return {key: {re.escape(path): v for path, v in zip(paths, values, strict=True) if v is not None}}

    return _Rule(means, by_name, None)


def _is_in(key: str) -> _Rule:
    def by_name(paths: Sequence[str], values: Sequence[Any]) -> Entries:
        return {key: [path for path, value in zip(paths, values, strict=True) if value]}

    return _Rule(lambda entries: _ends(entries[key]), by_name)
