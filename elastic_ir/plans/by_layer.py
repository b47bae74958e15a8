"""Tensors beside a stage that have an entry for each of its layers follow a plan, where the source's network shows how.

A folder's network is asked (:attr:`elastic_ir.ir.info.Origin.by_layer`) where a tensor might be such a one; that takes
seconds, so it is not asked about others. What none can be asked about is as before: refused, or kept. No torch here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Hashable, Iterable, Sequence, Set

from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Container, Stage
from elastic_ir.plans.beside import channels_of
from elastic_ir.plans.keep_beside import is_kept, tensor_is_kept
from elastic_ir.plans.plan import Plan, StageShape, check_plan
from elastic_ir.tensors.gathered import ByLayer

_ROLE = re.compile(r"weight|bias|running_mean|running_var|num_batches_tracked")
#: What a module that has to do with single layers is called; a norm is one of a layer of no stack.
_NAMED = re.compile(r"layer(?!_?norm)")


def indexed_by_layer(
    graph: Graph, sequence: Sequence[Sequence[Hashable]], suspects: Iterable[str], kept: Sequence[str]
) -> dict[str, tuple[Container, ByLayer]]:
    """How tensors are indexed that a plan's change of the stages concerns, each with its stage's container.

    ``suspects`` are tensors that may be such ones for a reason of their own; ``kept`` are names of what stays as it is.
    PlanError where one has entries for the layers and what they mean is not plain.
    """
    ask = graph.origin.by_layer
    changed = [
        (stage, wanted)
        for stage, wanted in zip(graph.stages, sequence, strict=True)
        if list(wanted) != list(range(len(stage)))
    ]
    if ask is None or not changed:
        return {}
    boxes = [stage.containers[0] for stage, _ in changed]
    given, _ = channels_of(graph.weights)
    near = {name for container in boxes for name in _suspects(graph, container, given)} | set(suspects)
    if all(tensor_is_kept(kept, name) for name in near):
        return {}
    found: dict[str, tuple[Container, ByLayer]] = {}
    for name, how in ask(graph).items():
        stage, wanted = next(((s, w) for s, w in changed if not _heads(s).isdisjoint(how.heads)), (None, ()))
        if stage is None or name not in graph.weights or tensor_is_kept(kept, name):
            continue
        why = how.unclear
        if not how.heads <= _heads(stage):
            why = why or "it becomes longer with another stack, too"
        if any(not isinstance(item, int) for item in wanted):
            why = why or "the plan takes layers of several networks, whose entries are weighed otherwise"
        if why:
            raise PlanError(
                f"{name} {list(graph.weights[name].shape)} beside {stage.name!r} has an entry for each of its "
                f"layers, and cannot follow them: {why}; --keep-beside {name} (keep_beside=) with --no-check writes "
                "it as it is"
            )
        found[name] = stage.containers[0], how
    return found


def _heads(stage: Stage) -> set[str]:
    return {box.series.head for box in stage.containers}


def with_lists_between(graph: Graph, plan: Plan, kept: Sequence[str]) -> Plan:
    """A plan with what stands between the blocks of a stage, a stage of its own with one member fewer.

    It follows where the source's network shows that it grows with the stage, and the plan leaves it as it is.
    """
    ask = graph.origin.by_layer
    pairs = [
        (number, other)
        for number, (stage, wanted) in enumerate(zip(graph.stages, plan, strict=True))
        for other, (between, same) in enumerate(zip(graph.stages, plan, strict=True))
        if list(wanted) != list(range(len(stage))) and list(same) == list(range(len(between)))
        and len(between) == len(stage) - 1 and _is_whole(stage) and _is_whole(between)
        and _homes(stage) == _homes(between) and not is_kept(kept, between.name)
    ]  # fmt: skip
    shown = ask(graph) if ask is not None and pairs else {}
    made = [tuple(wanted) for wanted in plan]
    for number, other in pairs:
        stage, between = graph.stages[number], graph.stages[other]
        hows = [shown.get(head) for head in _heads(between)]
        if all(how is not None and not how.unclear and how.heads <= _heads(stage) for how in hows):
            entries = ByLayer("", 0, more=-1).gathering(plan[number], len(stage)).entries
            with contextlib.suppress(PlanError):  # the network says at the end what is amiss
                made[other] = check_plan(StageShape.in_graph(graph, between), entries)
    return tuple(made)


def _is_whole(stage: Stage) -> bool:
    """Whether a stage's lists are its own, from the first member to the last."""
    return all(len(box.children) == len(stage) for box in stage.containers)


def _homes(stage: Stage) -> set[str]:
    """The modules that the lists of a stage are attributes of."""
    return {head.rstrip(".").rpartition(".")[0] for head in _heads(stage)}


def _suspects(graph: Graph, container: Container, given: Set[int]) -> list[str]:
    """Tensors outside of the stages of which an axis may be as long as a container's children are many.

    ``given`` are the numbers of channels that anything gives.
    """
    count = container.source_count
    near = {extent for extent in (count - 1, count, count + 1) if extent > 1}
    heads = tuple(f"{child.path}." for box in graph.structure.containers for child in box.children)
    found = []
    for name, weight in graph.weights.items():
        parts = name.split(".")
        named = _NAMED.search(".".join(parts[-2:])) is not None
        if name.startswith(heads):
            continue
        if (
            weight.layer
            and len(weight.shape) == 2
            and weight.shape[1] % count == 0
            and weight.shape[1] not in given
        ):
            found.append(name)  # it may read something of every layer
            continue
        if _ROLE.fullmatch(parts[-1]) and not named:
            continue
        if not near.isdisjoint(weight.shape) or (named and any(one % count == 0 for one in weight.shape)):
            found.append(name)
    return found
