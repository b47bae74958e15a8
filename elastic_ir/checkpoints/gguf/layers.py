"""A GGUF file's metadata in step with its layers: counts, lists with an entry for each layer, rules by number.

The format has names for what a network is made of (``block_count``, ``leading_dense_block_count``), each behind the
architecture's, and a reader builds the layers by them. An entry is found by its name and its value, never by the
architecture. Where an entry could not state what a plan makes of the layers, the plan is refused. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from elastic_ir.checkpoints.config.depth import check_kinds
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.formats.gguf.header import Value
from elastic_ir.formats.gguf.parts import GgufSource
from elastic_ir.ir.numbering import is_index_list

_COUNT = re.compile(r"(?:(.*?)[._])?block_count")
#: Counts of first or last layers that are of another kind than the rest.
_FIRST = re.compile(r"(.*\.)?leading_\w+_count")
_LAST = re.compile(r"(.*\.)?shared_kv_layers")
#: How many layers lie from one of a kind to the next, and how many share a factor that their weights were divided by.
_TURNS = re.compile(r".*(pattern|interval|_step|period|_freq|every_n_layers)")
_GROUPS = re.compile(r".*rescale_every_n_layers")
_TAIL = "nextn_predict_layers"
#: Lists whose length has nothing to do with the layers.
_OTHER_LISTS = re.compile(r".*(sections|labels|tags|tokens?|languages|pinpoints|image_\w+)")
_PER_LAYER = re.compile(r".*per_layer.*")
_BY_PLACE = re.compile(r".*(layer|block)s?(_|$).*")


@dataclass(frozen=True)
class Rule:
    """A number by which a reader derives from a layer's number what it is."""

    key: str
    number: int
    how: str  #: "first", "last", "turns" or "groups"

    @property
    def turns(self) -> bool:
        return self.how == "turns"

    def classes(self, count: int) -> list[int]:
        """What each of so many layers is by the rule."""
        if self.turns:
            return [at % self.number for at in range(count)]
        if self.how == "groups":
            return [at // self.number for at in range(count)]
        bound = self.number if self.how == "first" else count - self.number
        return [int(at < bound) for at in range(count)]

    def followed(self, stack: Stack, name: str) -> int:
        """The number that states the same of the changed layers; PlanError where none does."""
        sources, count = stack.sources, stack.before + stack.tail
        own = self.classes(count)
        made = [own[source] for source in sources]
        if self.how in ("turns", "groups"):
            wanted = self.classes(len(made))
            wrong = next(
                (at for at, pair in enumerate(zip(made, wanted, strict=True)) if pair[0] != pair[1]), None
            )
            if wrong is None:
                return self.number
            why = f"by {name} = {self.number} a reader derives from a layer's number what it is"
            raise PlanError(
                f"{stack.label}: layer {wrong} of the target would be a copy of layer {sources[wrong]}, and {why}; "
                f"keep each layer's place among {self.number}: change by multiples of {self.number} "
                f"(--unit {self.number}), or choose other layers with --plan"
            )
        marked = [at for at, one in enumerate(made) if one == (self.how == "first")]
        run = range(len(marked)) if self.how == "first" else range(len(made) - len(marked), len(made))
        if marked != list(run):
            raise PlanError(
                f"{stack.label}: {name} = {self.number} states that the {self.how} layers are of another kind than the "
                f"rest, and the plan mixes the two ({self.how} would be {_few(marked)}); keep them apart with --plan"
            )
        return len(marked)


def _few(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "") or "none"


@dataclass
class Followed:
    """What becomes of a file's metadata."""

    changed: dict[str, Value] = field(default_factory=dict)  #: by the whole key
    kept: list[str] = field(default_factory=list)  #: entries that may refer to layers by their place


class Rules:
    """A file's entries about layers, and which stack each is about."""

    def __init__(self, source: GgufSource) -> None:
        self.values = source.values()
        self.architecture = source.architecture
        #: what stands before ``block_count``, as words
        self.parts = {
            tuple(filter(None, re.split(r"[._]", match[1] or ""))): key
            for key in self.values
            if (match := _COUNT.fullmatch(key)) is not None and not _FIRST.fullmatch(key)
        }

    def name(self, key: str) -> str:
        """The whole key."""
        return f"{self.architecture}.{key}"

    def part_of(self, stack: Stack) -> tuple[str, ...]:
        """Which part of the network a stack is, in the words of the keys: ``("vision",)`` for ``v.blk``."""
        words = [word for word in re.split(r"[._]", stack.series.head) if word and word != "blk"]
        fitting = [
            part for part in self.parts if all(any(_alike(one, word) for word in words) for one in part)
        ]
        return max(fitting, key=len, default=())

    def about(self, key: str, stack: Stack) -> bool:
        """Whether an entry may be about a stack: it names its part, or none where the stack is of none."""
        named = [part for part in self.parts if part and _begins(key, part)]
        return (max(named, key=len) if named else ()) == self.part_of(stack)

    def count(self, stack: Stack) -> str | None:
        """The key that counts a stack's layers."""
        return self.parts.get(self.part_of(stack))

    def of(self, stack: Stack) -> list[Rule]:
        """The numbers by which a reader derives what a stack's layers are."""
        found = []
        for key, value in self.values.items():
            if isinstance(value, bool) or not isinstance(value, int) or not self.about(key, stack):
                continue
            if _GROUPS.fullmatch(key):
                how = "groups"
            elif _TURNS.fullmatch(key):
                how = "turns"
            elif _FIRST.fullmatch(key) or _LAST.fullmatch(key):
                how = "first" if _FIRST.fullmatch(key) else "last"
            else:
                continue
            if value > (0 if how in ("first", "last") else 1):
                found.append(Rule(key, value, how))
        return found

    def hides_windows(self, stack: Stack) -> bool:
        """Whether a stack's layers have a sliding window, and the entries do not say which of them."""
        own = [key for key in self.values if self.about(key, stack)]
        stated = any(key.endswith("sliding_window") and self.values[key] for key in own)
        return stated and not any("sliding_window_pattern" in key for key in own)

    def lists(self, stack: Stack) -> dict[str, list[object]]:
        """The lists that have an entry for each of a stack's layers, or choose some by their numbers."""
        return {
            key: list(value)
            for key, value in self.values.items()
            if isinstance(value, list)
            and not _OTHER_LISTS.fullmatch(key)
            and self.about(key, stack)
            and (len(value) in (stack.before, stack.before + stack.tail) or _chooses(key, value, stack))
        }


def _alike(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _begins(key: str, part: tuple[str, ...]) -> bool:
    """Whether a key is about a part of the network: ``vision.…``, ``decoder_…``."""
    words = re.split(r"[._]", key)
    return tuple(words[: len(part)]) == part


def _chooses(key: str, value: Sequence[object], stack: Stack) -> bool:
    return is_index_list(key.rpartition(".")[2], list(value), stack.before + stack.tail)


def tail_of(source: GgufSource) -> int:
    """How many of the last layers predict further tokens; a reader does not run them with the others."""
    value = source.values().get(_TAIL)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def followed(
    source: GgufSource,
    stacks: Sequence[Stack],
    shapes: Mapping[str, tuple[int, ...]],
    others: Sequence[str] = (),
) -> Followed:
    """The metadata of the changed stacks; ``others`` are the names of further sources, ``shapes`` of all tensors.

    Raises PlanError where an entry cannot state the change, or is about two stacks that become different, SourceError
    where the file counts other numbers of layers than it holds.
    """
    rules = Rules(source)
    found = Followed()
    if not any(stack.changed for stack in stacks):
        return found
    for stack in stacks:
        changes = _changes(source, rules, stack, others) if stack.changed else _unchanged(rules, stack)
        for key, value in changes.items():
            name = rules.name(key)
            if found.changed.setdefault(name, value) != value:
                raise PlanError(
                    f"{name} of {source.path.name} is about more than one of "
                    f"{', '.join(one.label for one in stacks)}, which would become different; change them alike"
                )
    inside = {name for stack in stacks for layer in stack.contents(shapes) for name in layer.values()}
    _refuse_indexed(rules, stacks, {name: shape for name, shape in shapes.items() if name not in inside})
    found.kept = [
        f"{rules.name(key)} = {value}"
        for key, value in rules.values.items()
        if isinstance(value, int)
        and not isinstance(value, bool)
        and value > 0
        and _BY_PLACE.fullmatch(key.rpartition(".")[2])
        and not _PER_LAYER.fullmatch(key)
        and rules.name(key) not in found.changed
        and key != _TAIL
    ]
    found.changed = {name: value for name, value in found.changed.items() if source.head.value(name) != value}
    return found


def _changes(source: GgufSource, rules: Rules, stack: Stack, others: Sequence[str]) -> dict[str, Value]:
    """What becomes of the entries about one stack that changes."""
    total, file = stack.before + stack.tail, source.path.name
    key = rules.count(stack)
    if key is None:
        raise PlanError(
            f"{file} has no entry that counts the {total} layers at {stack.label}, so it cannot state the new depth"
        )
    stated = rules.values[key]
    if stated != total:
        raise SourceError(
            f"{file} states {rules.name(key)} = {stated}, and holds {total} layers at {stack.label}; one of the two "
            "belongs to another model"
        )
    changes: dict[str, Value] = {key: len(stack.sources)}
    told: list[Sequence[object]] = []
    for rule in rules.of(stack):
        changes[rule.key] = rule.followed(stack, rules.name(rule.key))
        told.append(rule.classes(stack.before))
        for name, other in zip(others, source.others, strict=True):
            if other.values().get(rule.key) != rule.number:
                raise PlanError(
                    f"{rules.name(rule.key)} is {rule.number} in {file}, and {other.values().get(rule.key)} in {name!r}"
                )
    for key, own in rules.lists(stack).items():
        changes[key] = _list(source, rules.name(key), key, own, stack, others)  # type: ignore[assignment]
        chosen = own if len(own) >= stack.before else [at in own for at in range(stack.before)]
        told.append(chosen[: stack.before])
    kinds = source.kinds.get(stack.label, ())
    if len(set(kinds)) > 1:
        rows = [repr([column[at] for column in told]) for at in range(len(kinds))]
        if len(set(rows)) != len(set(zip(rows, kinds, strict=True))):
            check_kinds(stack, kinds, f"the reader of {file}")
    return changes


def _unchanged(rules: Rules, stack: Stack) -> dict[str, Value]:
    """The entries about a stack that stays as it is: nothing else may change them."""
    key = rules.count(stack)
    return {one: rules.values[one] for one in (key, *rules.lists(stack)) if one is not None}


def _list(
    source: GgufSource, name: str, key: str, own: list[object], stack: Stack, others: Sequence[str]
) -> list[object]:
    """What becomes of a list: its entries in the order of the plan, or the new numbers of what it chooses."""
    chooses = _chooses(key, own, stack)
    places = [*stack.places(), *((0, number) for number in range(stack.before, stack.before + stack.tail))]
    places = places if chooses or len(own) == stack.before + stack.tail else stack.places()
    held: list[list[object]] = [own]
    for other, called in zip(source.others, others, strict=True):
        theirs = other.values().get(key)
        if not isinstance(theirs, list):
            raise PlanError(
                f"{name} has an entry for each layer, and {called!r} has no such list; give it one"
            )
        held.append(list(theirs))
    if chooses:
        return [at for at, (number, layer) in enumerate(places) if layer in held[number]]
    for number, layer in places:
        if layer >= len(held[number]):
            raise PlanError(
                f"{name} has an entry for each layer, and that of {others[number - 1]!r} has none for layer {layer}"
            )
    return [held[number][layer] for number, layer in places]


def _refuse_indexed(rules: Rules, stacks: Sequence[Stack], outside: Mapping[str, tuple[int, ...]]) -> None:
    """PlanError where a tensor beside the layers has a part for each of them."""
    parts = [
        (key, value)
        for key, value in rules.values.items()
        if _PER_LAYER.fullmatch(key) and isinstance(value, int) and not isinstance(value, bool) and value > 0
    ]
    for stack in stacks:
        total = stack.before + stack.tail
        if not stack.changed:
            continue
        for key, value in parts:
            for name, shape in outside.items():
                if value * total in shape:
                    raise PlanError(
                        f"{name} {list(shape)} has {value} entries ({rules.name(key)}) for each of the {total} layers, "
                        "and they cannot follow the plan"
                    )
