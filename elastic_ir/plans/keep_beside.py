"""What goes by the number of layers beside a stage: a change of depth that would leave it behind is refused, or kept.

:mod:`elastic_ir.plans.beside` finds it, as far as names and shapes show. What the user names (``--keep-beside NAME``)
stays as it is: a name fits a numbered list, a tensor, a module that holds some, and in a checkpoint folder an entry of
its configuration, a file beside it, or an entry of such a file: by the whole dotted name or by its last parts
(``norms`` fits ``encoder.norms``, ``alignment_heads`` fits ``generation_config.json.alignment_heads``). Emission
finds the names in ``graph.edits``. No torch here.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from elastic_ir.discovery.numbered_lists import NumberedList, numbered_lists
from elastic_ir.errors import PlanError
from elastic_ir.formats.files import read_json
from elastic_ir.formats.model_folder import CheckpointSource
from elastic_ir.ir.graph import Graph
from elastic_ir.plans.beside import Surroundings

#: bytes of a file beside the weights whose entries may be named; a tokenizer's are not entries
_SMALL = 1 << 20


def listed_names(given: str | Iterable[str] | None) -> tuple[str, ...]:
    """The names as they were given: none, one, several, or several in one text with commas between them."""
    if given is None:
        return ()
    parts = given.split(",") if isinstance(given, str) else given
    names = tuple(str(part).strip() for part in parts)
    if not all(names):
        raise PlanError("keep_beside (--keep-beside) has an empty name; name a list, a tensor or an entry")
    return names


def fits(name: str, dotted: str) -> bool:
    """Whether a name is a dotted name or its last parts.

    >>> fits("norms", "encoder.norms"), fits("norms", "encoder.layer_norms")
    (True, False)
    """
    return dotted == name or dotted.endswith("." + name)


def is_kept(names: Iterable[str], *dotted: str) -> bool:
    """Whether one of the names fits one of several dotted names of a thing."""
    return any(fits(name, one) for name in names for one in dotted)


def tensor_is_kept(names: Iterable[str], tensor: str) -> bool:
    """Whether one of the names fits a tensor, or the module that holds it."""
    return is_kept(names, tensor, tensor.rpartition(".")[0])


def known_names(graph: Graph, given: str | Iterable[str] | None) -> tuple[str, ...]:
    """The names given, of what a graph has. PlanError for a name that fits nothing, with what could be named."""
    names = listed_names(given)
    if not names:
        return names
    lists = [found.label for found in numbered_lists(graph.weights)]
    modules = {name[:at] for name in graph.weights for at, sign in enumerate(name) if sign == "."}
    entries = list(_entries(graph.origin)) if isinstance(graph.origin, CheckpointSource) else []
    for name in names:
        if is_kept([name], *lists, *entries, *graph.weights, *modules):
            continue
        outer = [label for label in lists if not any(part.isdigit() for part in label.split("."))]
        kinds = {"lists": outer, "entries": entries, "tensors": list(graph.weights)}
        near = difflib.get_close_matches(name, [one for known in kinds.values() for one in known], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        listing = "; ".join(
            f"{kind}: {', '.join(islice(known, 6))}{', ...' if len(known) > 6 else ''}"
            for kind, known in kinds.items()
            if known
        )
        raise PlanError(
            f"keep_beside (--keep-beside) names {name!r}, which {graph.name} does not have; what can be named are "
            f"{listing}{hint}"
        )
    return names


def _entries(source: CheckpointSource) -> Iterator[str]:
    """Entries of a folder's configurations by their dotted names, and the files beside the weights."""
    yield from _dotted(source.config, "")
    for path in sorted(source.folder.iterdir()):
        if path.name == source.layout.config or not path.is_file():
            continue
        yield path.name
        if (
            path.suffix == ".json"
            and path.stat().st_size <= _SMALL
            and path.resolve().is_relative_to(source.root)
        ):
            try:
                found = read_json(path)
            except (OSError, ValueError):
                continue  # emission copies the file as it is, and so can name it
            yield from _dotted(found, path.name)


def _dotted(table: Any, path: str, depth: int = 8) -> Iterator[str]:
    """The dotted names of all entries of a table, those of the tables inside included."""
    if not isinstance(table, dict) or not depth:
        return
    for key, value in table.items():
        name = f"{path}.{key}" if path else str(key)
        yield name
        yield from _dotted(value, name, depth - 1)


# -- what would be left behind -------------------------------------------------------------------------------------


def about_inner_list(graph: Graph, name: str) -> str:
    """Why a list that was named as a stage, and lies inside of a block, is not one: the end of a message."""
    around = Surroundings(graph.weights)
    for one in around.lists:
        slot = around.enclosing(one)
        if not slot or not fits(name, one.label):
            continue
        sized = around.tensors_indexed_by(one)
        why = "is a part of that block"
        if sized:
            shape = list(graph.weights[sized[0].name].shape)
            why = f"sizes {sized[0].name} {shape}, so that it is not changed alone"
        return f"; {one.label!r} lies inside {slot!r}, and {why}"
    return ""


def refuse_left_behind(
    graph: Graph, plan: Sequence[Sequence[Hashable]], kept: Sequence[str]
) -> dict[str, str]:
    """PlanError where a plan changes a stack and leaves behind what goes by its number of layers; for bare weights.

    ``kept`` are the names of what the user keeps as it is. Of a checkpoint folder only lists of the same module and
    what sizes a list inside of a block are a reason at once: its own network may show the rest when it is written, and
    the reasons are returned for that, each under the name of a list or tensor.
    """
    unproven: dict[str, str] = {}
    around = Surroundings(graph.weights)
    orders = _orders(graph, plan, around)
    folder = isinstance(graph.origin, CheckpointSource)
    for stack, order in orders.items():
        if not _changes(stack, order):
            continue
        count, label = len(stack.slots), around.label(stack)
        heads = around.heads_of(stack)
        left: dict[str, int] = {}
        for one in around.lists_beside(stack) + heads:
            other = orders.get(one)
            if (stack.head, one.head) in graph.info.apart:
                continue
            names = [
                around.label(one),
                one.label,
                *([label] if other is not None and _changes(one, other) else []),
            ]
            if other != order and not is_kept(kept, *names):
                left[around.label(one)] = len(one.slots)
        if left:
            why = (
                f"{label!r} ({count} members) is to change, and {_listed(left)} beside it would not change with "
                f"it: names alone do not show whether the forward steps through them together; {_way_out(left)}"
            )
            if not folder or not left.keys() <= {around.label(one) for one in heads}:
                raise PlanError(why)
            unproven.update(dict.fromkeys(left, why))
        inner = [around.label(one) for one in around.blocks_beside(stack)]
        if inner and not is_kept(kept, *inner):
            raise PlanError(
                f"{label!r} are {count} attributes around the blocks of {inner[0]!r}, and a forward names such "
                "attributes one by one: a new one would not run, a missing one would be asked for; "
                f"{_way_out(inner[:1])}"
            )
        nested = around.enclosing(stack)
        found = around.tensors_indexed_by(stack)
        sized = [one for one in found if not tensor_is_kept(kept, one.name)]
        if sized:
            first = sized[0]
            more = f" (and {len(sized) - 1} more)" if len(sized) > 1 else ""
            shape = list(graph.weights[first.name].shape)
            why = (
                f"{label!r} has {count} members, and {first.name} {shape} beside it has {first.extent} entries "
                f"along axis {first.axis}{more}: it seems to be indexed by them (a router of experts, weights of "
                f"layers) and would keep its length; {_way_out([one.name for one in sized])}"
            )
            if not folder or nested:
                raise PlanError(why)
            if len(order) != count:
                unproven.update(dict.fromkeys([one.name for one in sized], why))
    return unproven


def refuse_idle_beside(graph: Graph, plan: Sequence[Sequence[Hashable]], kept: Sequence[str]) -> None:
    """PlanError where a plan changes a stack of a traced network and leaves behind a list beside it that never runs.

    Heads that run in training alone are such a list: the trace does not show with what they go.
    """
    from elastic_ir.discovery.twins import idle_weights

    idle = set(idle_weights(graph))
    around = Surroundings(graph.weights)
    orders = _orders(graph, plan, around)
    for stack, order in orders.items():
        beside = around.lists_beside(stack) if len(order) != len(stack.slots) else []
        for one in (one for one in beside if one not in orders):
            names = [name for slot in one.slots.values() for name in slot]
            label = around.label(one)
            if (
                idle.issuperset(names)
                and len(one.slots) == len(stack.slots)
                and not is_kept(kept, label, one.label)
            ):
                raise PlanError(
                    f"{around.label(stack)!r} ({len(stack.slots)} members) is to change, and {label!r} "
                    f"({len(one.slots)}) beside it does not run (it may in training), so that the trace does not show "
                    f"whether it is one for each of them; --keep-beside {label} (keep_beside=) leaves it as it is"
                )


def _changes(stack: NumberedList, order: Sequence[Hashable]) -> bool:
    return list(order) != list(range(len(stack.slots)))


def _orders(
    graph: Graph, plan: Sequence[Sequence[Hashable]], around: Surroundings
) -> dict[NumberedList, tuple[Hashable, ...]]:
    """For each list that holds stages, its members after the plan; numbers count members with weights."""
    found: dict[NumberedList, tuple[Hashable, ...]] = {}
    for container in graph.structure.containers:
        stack = around.of(container)
        if stack is None:
            continue
        place = {child.path: at for at, child in enumerate(container.children)}
        ranks = {number - container.base: rank for rank, number in enumerate(stack.slots)}
        after: dict[int, list[Hashable]] = {at: [at] for at in place.values()}
        for stage, wanted in zip(graph.stages, plan, strict=True):
            if container not in stage.containers:
                continue
            slots = [[place.get(child.path) for child in block.children] for block in stage.all_blocks]
            blocks = [[at for at in block if at is not None] for block in slots]
            members = [at for block in blocks for at in block]
            after.update((at, []) for at in members)
            after[members[0]] = [
                at for item in wanted for at in (blocks[item] if isinstance(item, int) else [item])
            ]
        order = [item for at in sorted(after) for item in after[at]]
        found[stack] = tuple(
            ranks[item] if isinstance(item, int) else item
            for item in order
            if not isinstance(item, int) or item in ranks
        )
    return found


def _listed(counts: Mapping[str, int]) -> str:
    shown = [f"{name!r} ({count})" for name, count in counts.items()][:4]
    shown += [f"{len(counts) - 4} more"] if len(counts) > 4 else []
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _way_out(names: Iterable[str]) -> str:
    flags = " ".join(f"--keep-beside {name}" for name in names)
    return f"pass --arch SOURCE (arch=), whose trace shows it, or {flags} (keep_beside=) for what is to stay as it is"
