"""Targets: the five ways to state what is wanted, turned into a plan for one graph."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elastic_ir.errors import PlanError, StructureError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.numbering import DIGITS, number_of
from elastic_ir.ir.structure import Stage
from elastic_ir.plans.families import counts_for_depth
from elastic_ir.plans.plan import (
    Layer,
    Plan,
    PlanGiven,
    StagePlan,
    StageShape,
    check_drop,
    check_plan,
    drop_exactly,
    grow,
    parse_plan,
    plan_of_mapping,
    shrink,
)


@dataclass(frozen=True)
class Target:
    """What is wanted: exactly one of the fields is set."""

    to_depth: int | None = None
    to_stages: Sequence[int] | Mapping[str, int] | str | None = None
    to_units: int | None = None
    like: Graph | None = None
    plan: Any = None

    def __post_init__(self) -> None:
        counts = self.to_stages
        given: list[tuple[str, Any]] = [("to_depth", self.to_depth), ("to_units", self.to_units)]
        if isinstance(counts, Mapping):
            given += [(f"to_stages[{name!r}]", count) for name, count in counts.items()]
        elif counts is not None and not isinstance(counts, str):
            if not isinstance(counts, Iterable):
                raise PlanError(f"to_stages is a count of blocks for each stage, not {counts!r}")
            given += [("a count in to_stages", count) for count in counts]
        for name, value in given:
            if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
                raise PlanError(f"{name} is a whole number, not {value!r}")

    def check(self) -> None:
        """PlanError unless exactly one way is used."""
        names = ("to_depth", "to_stages", "to_units", "like", "plan")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            stated = ", ".join(given) or "none"
            raise PlanError(
                f"state the target in exactly one way, by one of {', '.join(names)} (given: {stated})"
            )


_SHALLOWER = (
    "{} is shallower than the source ({}): that is a squeeze, use 'squeeze' for it, "
    "or --plan to deepen some stages and shorten others"
)
_DEEPER = (
    "{} is deeper than the source ({}): that is a stretch, use 'stretch' for it, "
    "or --plan to deepen some stages and shorten others"
)


def stretch_plan(graph: Graph, target: Target, order: str, replicate: Sequence[int] | None) -> Plan:
    """The plan that makes a graph as deep as wanted; PlanError where that would be no stretch.

    What follows a reference is planned by :mod:`elastic_ir.plans.like`.
    """
    target.check()
    if target.plan is not None:
        return explicit_plan(graph, target.plan)
    depth = graph.structure.depth
    if target.to_depth is not None and depth is not None and target.to_depth < depth:
        raise PlanError(_SHALLOWER.format(f"depth {target.to_depth}", f"depth {depth}"))
    counts = target_counts(graph, target)
    shorter = [s.name for s, count in zip(graph.stages, counts, strict=True) if count < len(s)]
    if shorter:
        raise PlanError(_SHALLOWER.format(_wanted(target, counts), _now(graph)))
    plan = tuple(
        tuple(range(count))
        if count == len(stage) and stage.period is None
        else grow(StageShape.in_graph(graph, stage), count, order, replicate)
        for stage, count in zip(graph.stages, counts, strict=True)
    )
    if replicate is not None:
        return plan
    return _by_kind(graph, plan, lambda stage, count: grow(stage, count, order))


def squeeze_plan(graph: Graph, target: Target, drop: str | Sequence[int]) -> Plan:
    """The plan that makes a graph as shallow as wanted; PlanError where that would be no squeeze."""
    check_drop(drop)
    if not isinstance(drop, str) and target == Target():
        return tuple(drop_exactly(StageShape.in_graph(graph, stage), drop) for stage in graph.stages)
    target.check()
    if target.plan is not None:
        return explicit_plan(graph, target.plan)
    depth = graph.structure.depth
    if target.to_depth is not None and depth is not None and target.to_depth > depth:
        raise PlanError(_DEEPER.format(f"depth {target.to_depth}", f"depth {depth}"))
    counts = target_counts(graph, target)
    longer = [s.name for s, count in zip(graph.stages, counts, strict=True) if count > len(s)]
    if longer:
        raise PlanError(_DEEPER.format(_wanted(target, counts), _now(graph)))
    plan = tuple(
        shrink(StageShape.in_graph(graph, stage), count, drop) if count < len(stage) else tuple(range(count))
        for stage, count in zip(graph.stages, counts, strict=True)
    )
    if not isinstance(drop, str):
        return plan
    return _by_kind(graph, plan, lambda stage, count: shrink(stage, count, drop))


def _by_kind(graph: Graph, plan: Plan, spread: Callable[[StageShape, int], StagePlan]) -> Plan:
    """A plan with each layer in a place of its kind, where the source has a network that can be asked for these."""
    if graph.origin.fitting is None:
        return plan
    from elastic_ir.plans.by_kind import by_kind

    return by_kind(graph, plan, spread)


def _now(graph: Graph) -> str:
    return "stages " + ",".join(str(len(stage)) for stage in graph.stages)


def _wanted(target: Target, counts: Sequence[int]) -> str:
    return (
        f"depth {target.to_depth}" if target.to_depth is not None else "stages " + ",".join(map(str, counts))
    )


def target_counts(graph: Graph, target: Target) -> tuple[int, ...]:
    """Blocks for each stage of the target."""
    if target.to_depth is not None:
        return counts_for_depth(graph.structure, target.to_depth)
    if target.to_units is not None:
        return _counts_of_units(graph, target.to_units)
    assert target.to_stages is not None
    return _counts_of_stages(graph, target.to_stages)


def _counts_of_units(graph: Graph, units: int) -> tuple[int, ...]:
    if len(graph.stages) != 1:
        names = ", ".join(f"{stage.name}={len(stage)}" for stage in graph.stages)
        raise PlanError(f"to_units is for networks of one stage; this one has {names}: use to_stages")
    stage = StageShape.in_graph(graph, graph.stages[0])
    if units < 1:
        raise PlanError(f"to_units={units}: at least one unit has to stay")
    return (stage.fixed + units * stage.period,)


def _counts_of_stages(graph: Graph, wanted: Sequence[int] | Mapping[str, int] | str) -> tuple[int, ...]:
    if isinstance(wanted, str):
        wanted = parse_stages(wanted)
    if isinstance(wanted, Mapping):
        for name in wanted:
            known_stage(graph, name)
        counts = tuple(wanted.get(stage.name, len(stage)) for stage in graph.stages)
    else:
        counts = tuple(wanted)
    if len(counts) != len(graph.stages):
        names = ", ".join(f"{stage.name}={len(stage)}" for stage in graph.stages)
        raise PlanError(
            f"{_number(counts, 'count')} {'is' if len(counts) == 1 else 'are'} given, "
            f"the network has {_number(graph.stages, 'stage')}: {names}"
        )
    for stage, count in zip(graph.stages, counts, strict=True):
        if count < 1:
            what = "its entry" if stage.entry is not None else "one block"
            raise PlanError(f"stage {stage.name!r} cannot have {count} blocks: at least {what} has to stay")
    return counts


def known_stage(graph: Graph, name: str) -> Stage:
    """The stage of that name; StructureError lists those there are, or says that it is a list inside a block."""
    try:
        return graph.structure.stage(name)
    except StructureError as error:
        from elastic_ir.plans.keep_beside import about_inner_list

        raise StructureError(f"{error}{about_inner_list(graph, name)}") from error


def _number(things: Sequence[Any], what: str) -> str:
    return f"{len(things)} {what}" if len(things) == 1 else f"{len(things)} {what}s"


def parse_stages(text: str) -> list[int] | dict[str, int]:
    """``3,4,6,3``, or by name ``encoder.block=8,decoder.block=4``; PlanError names what is neither."""
    if "=" not in text:
        items = [item.strip() for item in text.split(",")]
        for number in items:
            if number_of(number) is None:
                raise PlanError(
                    f"{number!r} in {text!r} is not a number of blocks; write one for each stage, for example "
                    "3,4,23,3, or name those that change: encoder.block=8"
                )
        return [int(number) for number in items]
    counts: dict[str, int] = {}
    for item in text.split(","):
        match = re.fullmatch(rf"\s*([^=\s]+)\s*=\s*({DIGITS})\s*", item)
        if match is None:
            raise PlanError(
                f"{item.strip()!r} is not a number of blocks for a stage; write for example encoder.block=8"
            )
        counts[match[1]] = int(match[2])
    return counts


def explicit_plan(graph: Graph, given: PlanGiven) -> Plan:
    """A plan in any of its notations, checked against the graph's stages."""
    whole: list[StagePlan] = []
    for stage, part in zip(graph.stages, planned_layers(graph, given), strict=True):
        foreign = next((item for item in part if isinstance(item, Layer)), None)
        if foreign is not None:
            raise PlanError(
                f"the plan takes {foreign}; say which network {foreign.source!r} is, by --with {foreign.source}=SOURCE "
                "(others=...)"
            )
        order = [item for item in part if isinstance(item, int)]
        same = order == list(range(len(stage)))
        whole.append(tuple(order) if same else check_plan(StageShape.in_graph(graph, stage), order))
    return tuple(whole)


def planned_layers(graph: Graph, given: PlanGiven) -> list[list[int | Layer]]:
    """A plan in any of its notations as a list of source blocks for each stage; nothing but their number is checked."""
    stages = graph.stages
    if isinstance(given, str):
        given = parse_plan(given)
        if isinstance(given, list) and len(given) == 1 and isinstance(given[0], dict):
            given = given * len(stages)  # without "|" the paper's mapping applies to every stage
    parts: list[Any]
    if isinstance(given, Mapping):
        for name in given:
            known_stage(graph, name)
        parts = [given.get(stage.name, range(len(stage))) for stage in stages]
    else:
        parts = [given] if given and all(isinstance(item, int | Layer) for item in given) else list(given)
    if len(parts) != len(stages):
        raise PlanError(
            f"the plan has {_number(parts, 'list')}, the network {_number(stages, 'stage')} "
            f"({', '.join(stage.name for stage in stages)}); separate the stages with '|', or name those that "
            f"change: {stages[-1].name}=..."
        )
    return [
        list(plan_of_mapping(part, stage.name) if isinstance(part, dict) else part)
        for stage, part in zip(stages, parts, strict=True)
    ]
