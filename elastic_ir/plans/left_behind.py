"""Refusing a change of depth that leaves behind what goes by the number of layers, as far as names and shapes tell."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

from elastic_ir.discovery.numbered_lists import NumberedList
from elastic_ir.errors import PlanError
from elastic_ir.formats.model_folder import CheckpointSource
from elastic_ir.ir.graph import Graph
from elastic_ir.plans.beside import Surroundings
from elastic_ir.plans.keep_beside import fits, is_kept, tensor_is_kept


def about_inner_list(graph: Graph, name: str) -> str:
    """Of a list that was taken for a stage and lies inside of a block: why it is none, as the end of a message."""
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
    """PlanError where a plan changes a stack and leaves behind what goes by its number of layers.

    ``kept`` are the names of what is said to stay as it is. Of a checkpoint folder only lists of the same module and
    what sizes a list inside of a block are a reason at once: its own network may show the rest when it is written, and
    the reasons are returned for that, each under the name of a list or tensor.
    """
    unproven: dict[str, str] = {}
    if len(graph):
        return unproven
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
            if stage.container is not container:
                continue
            blocks = [[place[child.path] for child in block.children] for block in stage.all_blocks]
            for block in blocks:
                after.update((at, []) for at in block)
            after[blocks[0][0]] = [
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
