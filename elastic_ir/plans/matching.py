"""Matching: which source block stands at each place of a reference network, told by the weights that blocks hold.

Counts alone do not do: in a mixed stage (global among local attention blocks, a norm in every sixth block) each place
takes a block that holds what the reference's holds there. Blocks of one kind are spread over the places of that
kind by the rules of :mod:`elastic_ir.plans.plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Block, Stage, Structure
from elastic_ir.plans.plan import Plan, StagePlan, StageShape, grow, shrink

#: The weights of a block, relative to it, with their shapes.
Form: TypeAlias = frozenset[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Match:
    """How the source's stages become the reference's."""

    plan: Plan
    loose: tuple[
        Stage, ...
    ]  #: whose blocks are taken one by one, out of their units or where the entry is like all


def match_plan(
    graph: Graph, ours: Structure, reference: Graph, theirs: Structure, order: str = "append", drop: str = "tail",
    replicate: Sequence[int] | None = None,
) -> Match:  # fmt: skip
    """For each stage the source blocks in the reference's order.

    Raises PlanError that says which stage cannot be matched, what both sides hold, and which weights have no
    counterpart.
    """
    here, there = _weights_by_child(graph, ours), _weights_by_child(reference, theirs)
    count = max(len(ours.stages), len(theirs.stages))
    for index in range(count):
        left = ours.stages[index] if index < len(ours.stages) else None
        right = theirs.stages[index] if index < len(theirs.stages) else None
        if left is None or right is None or _place(left) != _place(right):
            raise PlanError(
                f"stage {index + 1} cannot be matched: the source has {_describe(left)}, "
                f"the reference {_describe(right)}"
            )
    plan = []
    loose = []
    for index, (left, right) in enumerate(zip(ours.stages, theirs.stages, strict=True)):
        forms = [_form(block, here) for block in left.all_blocks]
        wanted = [_form(block, there) for block in right.all_blocks]
        if len(graph) and len(reference):  # a block that downsamples never stands where none does
            forms = [_with_shape(form, block) for form, block in zip(forms, left.all_blocks, strict=True)]
            wanted = [_with_shape(form, block) for form, block in zip(wanted, right.all_blocks, strict=True)]
        found = _by_count(left, forms, wanted, order, drop, replicate)
        if found is None:
            found = _by_kind(index, left, right, forms, wanted, order, drop)
            loose.append(left)
        plan.append(found)
    return Match(tuple(plan), tuple(loose))


def _place(stage: Stage) -> tuple[str, str]:
    return stage.container.path, stage.container.prefix


def _describe(stage: Stage | None) -> str:
    return "nothing" if stage is None else f"{stage.name} ({len(stage)} blocks)"


def _weights_by_child(graph: Graph, structure: Structure) -> dict[str, Form]:
    """What each numbered child holds, relative to it."""
    paths = {child.path for container in structure.containers for child in container.children}
    found: dict[str, set[tuple[str, tuple[int, ...]]]] = {path: set() for path in paths}
    for name, weight in graph.weights.items():
        if not weight.persistent:
            continue
        end = name.find(".")
        while end != -1:
            if name[:end] in paths:
                found[name[:end]].add((name[end + 1 :], weight.shape))
            end = name.find(".", end + 1)
    return {path: frozenset(form) for path, form in found.items()}


def _form(block: Block, held: Mapping[str, Form]) -> Form:
    return frozenset(
        (f"{place}.{name}", shape)
        for place, child in enumerate(block.children)
        for name, shape in held.get(child.path, frozenset())
    )


def _with_shape(form: Form, block: Block) -> Form:
    return form | {
        (
            "0.(keeps the activation's shape)" if block.preserving else "0.(changes the activation's shape)",
            (),
        )
    }


def _by_count(
    stage: Stage, forms: list[Form], wanted: list[Form], order: str, drop: str, replicate: Sequence[int] | None
) -> StagePlan | None:  # fmt: skip
    """The plan that counts alone give, if it puts the right kind of block at every place."""
    shape = StageShape.of(stage)
    try:
        if len(wanted) >= len(forms):
            plan = grow(shape, len(wanted), order, replicate)
        else:
            plan = shrink(shape, len(wanted), drop)
    except PlanError:
        return None
    return plan if [forms[index] for index in plan] == wanted else None


def _by_kind(
    index: int, left: Stage, right: Stage, forms: list[Form], wanted: list[Form], order: str, drop: str
) -> StagePlan:  # fmt: skip
    """Each place of the target takes a block of its kind; blocks of one kind are spread by the usual rules."""
    keeps_entry = left.entry is not None and right.entry is not None and forms[0] == wanted[0]
    first = 1 if keeps_entry else 0
    plan: dict[int, int] = {0: 0} if keeps_entry else {}
    kinds = dict.fromkeys(wanted[first:])
    for kind in kinds:
        places = [place for place in range(first, len(wanted)) if wanted[place] == kind]
        sources = [place for place in range(first, len(forms)) if forms[place] == kind]
        if not sources and first and forms[0] == kind and left.all_blocks[0].preserving:
            sources = [
                0
            ]  # kept by convention only: it does not downsample, and all that is needed is like it
        if not sources:
            sources = _fuller(kind, forms, first)
        if not sources:
            raise PlanError(_refusal(index, left, right, kind, forms, places[0]))
        shape = StageShape(left.name, len(sources), 0, 1)
        grown = len(places) >= len(sources)
        spread = grow(shape, len(places), order) if grown else shrink(shape, len(places), drop)
        plan.update(zip(places, (sources[item] for item in spread), strict=True))
    return tuple(plan[place] for place in range(len(wanted)))


def _fuller(kind: Form, forms: list[Form], first: int) -> list[int]:
    """The blocks that hold all that is needed and least besides (an attention that only a stage's last block has)."""
    holders = [place for place in range(first, len(forms)) if kind < forms[place]]
    least = min((len(forms[place]) for place in holders), default=0)
    return [place for place in holders if len(forms[place]) == least]


def _refusal(index: int, left: Stage, right: Stage, kind: Form, forms: list[Form], place: int) -> str:
    nearest = max(forms, key=lambda form: len(form & kind))
    lacking = sorted(kind - nearest)
    names = ", ".join(f"{name.partition('.')[2]} {list(shape) or ''}".strip() for name, shape in lacking[:3])
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    reason = (
        f"block {place} of the reference needs {names}{more}, which no block of the source's stage has"
        if lacking
        else f"the source's only such block is {left.all_blocks[0].path}, the entry, which is never cloned"
    )
    sides = f"the source has {_describe(left)}, the reference {_describe(right)}"
    return f"stage {index + 1} cannot be matched: {sides}; {reason}"


def differing_names(graph: Graph, reference: Graph) -> Iterator[tuple[str, str]]:
    """Names of the state dict on one side only, or of other shapes: ("missing" | "extra" | "shape", name)."""
    ours = {name: weight.shape for name, weight in graph.weights.items() if weight.persistent}
    theirs = {name: weight.shape for name, weight in reference.weights.items() if weight.persistent}
    for name, shape in theirs.items():
        if name not in ours:
            yield "missing", name
        elif ours[name] != shape:
            yield "shape", name
    for name in ours:
        if name not in theirs:
            yield "extra", name
