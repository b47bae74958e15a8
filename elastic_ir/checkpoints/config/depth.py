"""A checkpoint's ``config.json`` in step with its depth: counts, per-layer lists, paths of layers in texts.

Entries are found by evidence, never by a table of architectures: a number that equals the number of blocks and whose
name refers to layers is a count, a list as long as the stack is a list of its layers. Where one entry would have to
state two things, or none counts a stack that changed, the change is refused. No torch here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from elastic_ir.checkpoints.config.tables import NO_OTHERS, Entry, Reader
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.formats.model_folder import CONFIG
from elastic_ir.ir.counts import Count, with_entry
from elastic_ir.plans.keep_beside import is_kept

__all__ = ["Entry", "Stack", "UnclearError", "check_depth", "counted", "reindexed"]


class UnclearError(PlanError):
    """That a configuration cannot state a change, as far as the names of its entries show."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}; {advice}")
        self.what = what  #: without what to do, which holds only while nothing but names is known


def check_depth(config: dict[str, Any], stacks: Sequence[Stack], names: Iterable[str], where: str) -> None:
    """SourceError where the configuration counts other numbers of layers than the weights hold."""
    reader = Reader(config, stacks, names)
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
    reader = Reader(config, stacks, names)
    return {stack.label: {value for _, value in reader.counts(stack)} for stack in stacks}


def counting(
    config: dict[str, Any], stacks: Sequence[Stack], names: Iterable[str]
) -> list[tuple[Stack, str]]:
    """The stacks that an entry of a configuration counts, each with the entry's name."""
    reader = Reader(config, stacks, names)
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
    counts: Sequence[Count] = (),
) -> tuple[dict[str, Any], list[str]]:
    """The configuration of the changed stacks, and what a reader should know about entries that were kept.

    ``kinds`` has for each stack, by its label, a number for what each source layer holds; ``others`` are the
    configurations of further sources, whose layers bring their own entries of lists; ``file`` is the configuration's
    own, and ``example`` the name of a count in it; ``counts`` is what entries count as the network has shown. Raises
    PlanError where a
    stack changes its length and no entry counts it, where one entry counts two stacks that end with different lengths,
    or where layers of several kinds would stand where a rule by numbers does not put them.
    """
    reader = Reader(config, stacks, names, others, file)
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
    changes, shown = _shown(counts, stacks)
    for stack in stacks:
        if stack in counted:
            continue
        for entry, value in reader.counts(stack) if stack not in shown else ():
            if value == stack.before:
                claim(stack, entry, len(stack.order))
                counted.add(stack)
        held = (kinds or {}).get(stack.label, ())
        explained = (
            stack in shown
        )  # the network will show whether each layer is of the kind that it builds there
        counted.update({stack} & shown.keys())
        for entry, change in reader.lists(stack) if not shown.get(stack) else ():
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
    for count, step in changes:
        made = with_entry(made, count.place, count.value + step, count.outermost)
    stated = [Entry(tuple(map(str, count.place[:-1])), str(count.place[-1])) for count, _ in changes]
    return made, reader.kept([*claims, *stated])


def _shown(
    counts: Sequence[Count], stacks: Sequence[Stack]
) -> tuple[list[tuple[Count, int]], dict[Stack, bool]]:
    """The entries that state the change of all that they count, by how much they change, and these stacks: whether each
    is one of several that its entry counts, of which no list has an entry for each layer.

    One that counts more lists goes before one that counts fewer, as a number does before the list in its place.
    """
    by_head = {stack.series.head: stack for stack in stacks}
    changes: list[tuple[Count, int]] = []
    shown: dict[Stack, bool] = {}
    for count in sorted(counts, key=lambda one: -len(one.lists)):
        mine = [by_head.get(one.head) for one in count.lists]
        steps = {len(stack.order) - stack.before if stack is not None else 0 for stack in mine}
        held = {stack for stack in mine if stack is not None}
        if len(steps) == 1 and any(stack.changed for stack in held) and not held & shown.keys():
            changes += [(count, step) for step in steps if step]
            shown |= dict.fromkeys(held, len(count.lists) > 1)
    return changes, shown


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
    reader = Reader(document, stacks, names)
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
