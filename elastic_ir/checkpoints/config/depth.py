"""A checkpoint's ``config.json`` in step with its depth: counts, per-layer lists, paths of layers in texts.

Entries are found by evidence, never by a table of architectures: a number that equals the number of blocks and whose
name refers to layers is a count, a list as long as the stack is a list of its layers. Where one entry would have to
state two things, or none counts a stack that changed, the change is refused. No torch here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.formats.model_folder import CONFIG
from elastic_ir.ir.numbering import COUNT, DEPTHS, is_index_list, number_of
from elastic_ir.plans.keep_beside import is_kept
from elastic_ir.safety.config_values import NOTES

__all__ = ["Entry", "Stack", "UnclearError", "check_depth", "counted", "reindexed"]

#: Names of numbers that may choose one layer, in place of a list.
_ONE = re.compile(r"(layers?|blocks?)_to_\w+")
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


class UnclearError(PlanError):
    """That a configuration cannot state a change, as far as the names of its entries show."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}; {advice}")
        self.what = what  #: without what to do, which holds only while nothing but names is known


@dataclass(frozen=True)
class Entry:
    """One entry of a configuration: the table that holds it, and its name."""

    holder: tuple[str, ...]
    name: str

    def __str__(self) -> str:
        return ".".join((*self.holder, self.name))


def check_depth(config: dict[str, Any], stacks: Sequence[Stack], names: Iterable[str], where: str) -> None:
    """SourceError where the configuration counts other numbers of layers than the weights hold."""
    reader = _Reader(config, stacks, names)
    if reader.depth_lists():
        return
    claimed = {entry for stack in stacks for entry, value in reader.counts(stack) if value == stack.before}
    for stack in stacks:
        counts = reader.counts(stack)
        if counts and not any(entry in claimed for entry, _ in counts):
            stated = ", ".join(f"{entry} = {value}" for entry, value in counts)
            raise SourceError(
                f"{where} states {stated}, but the weights hold {stack.before} layers at {stack.label}; "
                "one of the two belongs to another model"
            )


def counted(config: dict[str, Any], stacks: Sequence[Stack], names: Iterable[str]) -> dict[str, set[int]]:
    """The counts that a configuration has for each stack, by the stacks' labels."""
    reader = _Reader(config, stacks, names)
    return {stack.label: {value for _, value in reader.counts(stack)} for stack in stacks}


def counting(
    config: dict[str, Any], stacks: Sequence[Stack], names: Iterable[str]
) -> list[tuple[Stack, str]]:
    """The stacks that an entry of a configuration counts, each with the entry's name."""
    reader = _Reader(config, stacks, names)
    found = []
    for stack in stacks:
        entry = next((entry for entry, value in reader.counts(stack) if value == stack.before), None)
        if entry is not None:
            found.append((stack, str(entry)))
    return found


def reindexed(
    config: dict[str, Any],
    stacks: Sequence[Stack],
    names: Iterable[str],
    kinds: Mapping[str, Sequence[int]] | None = None,
    others: Mapping[str, dict[str, Any]] = NO_OTHERS,
    file: str = CONFIG,
    example: str = "num_hidden_layers",
) -> tuple[dict[str, Any], list[str]]:
    """The configuration of the changed stacks, and what a reader should know about entries that were kept.

    ``kinds`` has for each stack, by its label, a number for what each source layer holds; ``others`` are the
    configurations of further sources, whose layers bring their own entries of lists; ``file`` is the configuration's
    own, and ``example`` the name of a count in it. Raises PlanError where a
    stack changes its length and no entry counts it, where one entry counts two stacks that end with different lengths,
    or where layers of several kinds would stand where a rule by numbers does not put them.
    """
    reader = _Reader(config, stacks, names, others, file)
    claims: dict[Entry, tuple[Stack, Any]] = {}
    counted: set[Stack] = set()

    def claim(stack: Stack, entry: Entry, value: Any) -> None:
        other = claims.setdefault(entry, (stack, value))
        if other[1] != value:
            raise UnclearError(
                f"{file}'s {entry} applies to both {other[0].label} and {stack.label}, which would become different",
                f"change them alike, or give {file} an entry for each",
            )

    for entry in reader.depth_lists():
        claim(stacks[0], entry, [len(stack.order) for stack in stacks])
        counted.update(stacks)
    for stack in stacks:
        if stack in counted:
            continue
        for entry, value in reader.counts(stack):
            if value == stack.before:
                claim(stack, entry, len(stack.order))
                counted.add(stack)
        held = (kinds or {}).get(stack.label, ())
        explained = False
        for entry, change in reader.lists(stack):
            claim(stack, entry, change)
            explained |= _tells(reader.table(entry.holder)[entry.name], held)
        if stack.changed and not explained:
            check_kinds(stack, held, file)
        if len(stack.order) != stack.before and stack not in counted:
            raise UnclearError(
                f"{file} has no entry that counts the {stack.before} layers at {stack.label}, so it cannot state the "
                "new depth",
                f"add one, {example} for example",
            )
    made = copy.deepcopy(config)
    for entry, (_, value) in claims.items():
        reader.table(entry.holder, made)[entry.name] = value
    return made, reader.kept(claims)


def beside_reindexed(
    document: dict[str, Any],
    file: str,
    stacks: Sequence[Stack],
    names: Iterable[str],
    keep: Sequence[str] = (),
) -> dict[str, Any]:
    """Another file's table (``params.json``, ``adapter_config.json``): its counts and lists of layers, if it has any.

    ``keep`` are names of what stays as it is. Raises PlanError where an entry applies to several stacks that become
    different, or chooses one layer that has several places then, or none.
    """
    reader = _Reader(document, stacks, names)
    made = copy.deepcopy(document)
    claims: dict[Entry, Any] = {}
    for stack in stacks:
        counts = [(entry, len(stack.order)) for entry, value in reader.counts(stack) if value == stack.before]
        for entry, value in [*counts, *reader.lists(stack), *reader.chosen(stack)]:
            if is_kept(keep, file, f"{file}.{entry}"):
                continue
            if claims.setdefault(entry, value) != value:
                raise PlanError(
                    f"{file}'s {entry} applies to several stacks, which would become different; change them alike, or "
                    f"--keep-beside {file}.{entry} (keep_beside=) keeps it as it is"
                )
    for entry, value in claims.items():
        if value is None:
            raise PlanError(
                f"{file}'s {entry} chooses one layer, which has several places in the result or none; write it anew in "
                f"the source, or --keep-beside {file}.{entry} (keep_beside=) keeps it as it is"
            )
        reader.table(entry.holder, made)[entry.name] = value
    return made


def _tells(listed: list[Any], kinds: Sequence[int]) -> bool:
    """Whether a list of layers, or of the numbers of some, differs wherever they are of another kind."""
    values = listed if len(listed) == len(kinds) else [at in listed for at in range(len(kinds))]
    return len({repr(one) for one in values}) == len(
        {(repr(one), k) for one, k in zip(values, kinds, strict=True)}
    )


def check_kinds(stack: Stack, kinds: Sequence[int], file: str) -> None:
    """PlanError where a layer would stand where the network builds one of another kind.

    Without a list of its layers a configuration states by numbers which layer is of which kind: the first ones are
    others (``first_k_dense_replace``, T5's block 0), or every n-th is (``attn_layer_period``). Whichever the source
    obeys, the target has to obey.
    """
    if len(set(kinds)) < 2:
        return
    made = [kinds[source] for source in stack.order]
    period = next(n for n in range(1, len(kinds) + 1) if all(k == kinds[i % n] for i, k in enumerate(kinds)))
    first_others = [kinds[at] if at < len(kinds) else kinds[-1] for at in range(len(made))]
    turned = [kinds[at % period] for at in range(len(made))]
    rules = [first_others] if 2 * period > len(kinds) else [turned]
    if made not in rules:
        at = next(i for i, (one, other) in enumerate(zip(made, rules[0], strict=True)) if one != other)
        raise PlanError(
            f"{stack.label}: layer {at} of the target, a copy of layer {stack.order[at]}, holds other weights than the "
            f"network builds there, as {file} derives the kinds of layers from their numbers; keep the kinds in "
            "their places with --plan"
        )


class _Reader:
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

    def _mine(self, stack: Stack) -> list[tuple[str, ...]]:
        """The tables that may concern a stack: those of its part, else those of no part."""
        own = [path for path, stem in self.owners.items() if stem in stack.path]
        return own or [path for path in self.holders if path not in self.owners]

    def _entries(self, stack: Stack, fits: Callable[[str, Any], bool]) -> list[tuple[Entry, Any]]:
        """Entries of a stack's tables; of an encoder's and a decoder's in one table only its own side's.

        An entry of no side follows the encoder where each side has its own, as transformers has it.
        """
        found: list[tuple[Entry, Any]] = []
        for path in self._mine(stack):
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
        """All entries that by their names count the stack's blocks, whatever their values."""
        return self._entries(stack, lambda name, value: type(value) is int and bool(COUNT.fullmatch(name)))

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
    if len(value) != count or count < 2 or name.startswith("_"):
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
