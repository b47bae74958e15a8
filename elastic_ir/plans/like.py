"""Resizing after a reference: the source's stages matched with another network's, and made as many and as such.

The weights that blocks hold determine which source block takes each place. Counts alone do not suffice: in
a mixed stage (global among local attention blocks, a norm in every sixth block) each place takes a block that holds
what the reference's holds there. Blocks of one kind are spread over the places of that kind by the rules of
:mod:`elastic_ir.plans.plan`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from elastic_ir.discovery import discover
from elastic_ir.errors import ElasticError, PlanError, StructureError, VerifyError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.naming import weights_below
from elastic_ir.ir.numbering import DIGITS
from elastic_ir.ir.structure import Block, Stage, Structure
from elastic_ir.ir.verifier import verify
from elastic_ir.plans.plan import Plan, StagePlan, StageShape, grow, shrink
from elastic_ir.plans.resequence import resequence
from elastic_ir.rewrite.rewriter import Rewriter


def resize_like(
    graph: Graph, reference: Graph, direction: str, order: str = "append", drop: str | Sequence[int] = "tail",
    replicate: Sequence[int] | None = None, keep_beside: Sequence[str] | None = None,
) -> Graph:  # fmt: skip
    """A copy of a graph with the reference's names, shapes and position constants, and the graph's own tensors.

    ``direction`` is "stretch" or "squeeze", and has to be the true one. The output layer may give another number of
    outputs than the reference's; it stays as it is. Raises PlanError where a stage cannot be matched or a weight that
    the reference has is found nowhere in the source.
    """
    if not isinstance(drop, str):
        raise PlanError("with a reference, drop is tail or even: which blocks are needed follows from it")
    first: ElasticError | None = None
    for start, here, there in _attempts(graph, reference, direction, order, drop):
        target = start.copy()
        try:
            theirs = there(reference)
            with Rewriter(target, here(target)) as rewriter:
                match = match_plan(target, target.structure, reference, theirs, order, drop, replicate)
                _check_direction(target.structure, theirs, direction)
                for stage, wanted in zip(target.stages, match.plan, strict=True):
                    if stage in match.loose:
                        rewriter.loosen(stage, entry=wanted[0] != 0 or 0 in wanted[1:])
                target.resequenced = resequence(rewriter, target, match.plan, keep_beside, shown=True)
            with Rewriter(target) as rewriter:
                _conform(rewriter, reference, theirs)
            verify(target, after=direction)
        except (PlanError, StructureError, VerifyError) as error:
            first = first or error
            continue
        return target
    assert first is not None
    raise first


@dataclass(frozen=True)
class _Reading:
    """A way to see a network: as it is discovered, or by the containers that the other one shows."""

    within: frozenset[tuple[str, str]] | None = None
    whole: bool = False  #: each container as one stage

    def __call__(self, graph: Graph) -> Structure:
        return graph.structure if self.within is None else discover(graph, self.within, whole=self.whole)


def _readings(graph: Graph, reference: Graph, direction: str) -> Iterator[tuple[_Reading, _Reading]]:
    """Ways to see the two, the plainest first. The deeper one shows more of the structure, so its way goes first."""
    ours, theirs = _places(graph), _places(reference)
    if ours is None and theirs is None:
        reference.structure  # noqa: B018 - raises what there is to say
    if ours is not None and theirs is not None:
        yield _Reading(), _Reading()  # where the containers differ, what it says is the first thing to say
    order = (theirs, ours) if direction == "stretch" else (ours, theirs)
    known = [places for places in dict.fromkeys(order) if places is not None]
    for whole in (False, True):
        for places in known:
            yield _Reading(places, whole), _Reading(places, whole)


def _attempts(
    graph: Graph, reference: Graph, direction: str, order: str, drop: str
) -> Iterator[tuple[Graph, _Reading, _Reading]]:
    """What to begin with, and how to see both: the source, and where that fails, with the reference's outer lists."""
    for here, there in _readings(graph, reference, direction):
        yield graph, here, there
    counts = _outer_counts(_places(graph) or frozenset(), _places(reference) or frozenset())
    if not counts:
        return
    start = graph.copy()
    with Rewriter(start, discover(start, {(path, "") for path in counts}, whole=True)) as rewriter:
        wanted = [counts[stage.container.path] for stage in start.stages]
        _check_counts([len(stage) for stage in start.stages], wanted, direction)
        shapes = map(StageShape.of, start.stages)
        plan = [_by_number(shape, count, order, drop) for shape, count in zip(shapes, wanted, strict=True)]
        resequence(rewriter, start, tuple(plan), shown=True)
    Rewriter(start, discover(start))
    for here, there in _readings(start, reference, direction):
        yield start, here, there


def _outer_counts(ours: frozenset[tuple[str, str]], theirs: frozenset[tuple[str, str]]) -> dict[str, int]:
    """For lists around stages that are longer in one of two networks, the outermost: how many items the second has.

    HRNet's stages are the branches of its modules, of which another one has fewer as well.
    """
    here, there = _numbers_around(ours), _numbers_around(theirs)
    counts: dict[str, int] = {}
    for path in sorted(here.keys() & there.keys(), key=lambda path: path.count(".")):
        whole = all(numbers == set(range(len(numbers))) for numbers in (here[path], there[path]))
        inside = any(path.startswith(f"{outer}.") for outer in counts)
        if whole and not inside and here[path] != there[path]:
            counts[path] = len(there[path])
    return counts


def _numbers_around(places: frozenset[tuple[str, str]]) -> dict[str, set[int]]:
    """The numbers in the paths of stages, by what stands before each."""
    found: dict[str, set[int]] = {}
    for path, _ in places:
        for number in re.finditer(rf"(?<=\.){DIGITS}(?=\.|$)", path):
            found.setdefault(path[: number.start() - 1], set()).add(int(number[0]))
    return found


def _places(graph: Graph) -> frozenset[tuple[str, str]] | None:
    """The containers that hold a network's stages; None where nothing in it repeats."""
    structure = graph.structure_or_none
    return frozenset((box.path, box.prefix) for box in structure.containers) if structure else None


def _check_direction(ours: Structure, theirs: Structure, direction: str) -> None:
    """PlanError where a stretch makes nothing deeper, or a squeeze nothing shallower."""
    here, there = [len(stage) for stage in ours.stages], [len(stage) for stage in theirs.stages]
    _check_counts(here, there, direction)


def _check_counts(here: Sequence[int], there: Sequence[int], direction: str) -> None:
    changed = [after - before for before, after in zip(here, there, strict=True) if after != before]
    if not changed:
        return
    wrong = all(step < 0 for step in changed) if direction == "stretch" else all(step > 0 for step in changed)
    if wrong:
        kind, other = ("shallower", "squeeze") if direction == "stretch" else ("deeper", "stretch")
        counts = ",".join(map(str, there)), ",".join(map(str, here))
        raise PlanError(
            f"the reference with stages {counts[0]} is {kind} than the source (stages {counts[1]}): "
            f"that is a {other}, use '{other}' for it"
        )


def _conform(rewriter: Rewriter, reference: Graph, theirs: Structure) -> None:
    """Drop what the reference has not, take its constants, and refuse where a weight has no counterpart."""
    target = rewriter.graph
    differing: dict[str, list[str]] = {"missing": [], "extra": [], "shape": []}
    for what, name in differing_names(target, reference):
        differing[what].append(name)
    outputs = {name for name in differing["shape"] if _is_output(name, target, reference, theirs)}
    shapes = [name for name in differing["shape"] if name not in outputs]
    if differing["missing"]:
        listed = ", ".join(
            f"{name} {list(reference.weights[name].shape)}" for name in differing["missing"][:3]
        )
        raise PlanError(
            f"the reference has {len(differing['missing'])} weights without a counterpart in the source, "
            f"{listed} for example"
        )
    if shapes:
        listed = ", ".join(
            f"{name} is {list(target.weights[name].shape)}, the reference's {list(reference.weights[name].shape)}"
            for name in shapes[:3]
        )
        raise PlanError(f"the source and the reference differ in {len(shapes)} shapes: {listed}")
    inside = [child.path + "." for box in target.structure.containers for child in box.children]
    kept = [name for name in differing["extra"] if not name.startswith(tuple(inside))]
    if kept:
        raise PlanError(
            f"the source has {len(kept)} weights that the reference lacks, {', '.join(kept[:3])} for example"
        )
    _check_kept(target, reference, theirs)
    rewriter.graft(reference, theirs)
    rewriter.drop_weights(differing["extra"])


def _is_output(name: str, target: Graph, reference: Graph, theirs: Structure) -> bool:
    """Whether a weight belongs to the last layer, and differs in nothing but the number of outputs."""
    owner = name.rpartition(".")[0]
    mine, other = target.weights[name].shape, reference.weights[name].shape
    return bool(theirs.head) and owner == theirs.head[-1] and mine[1:] == other[1:]


#: What rates and modes put in and leave out.
_RATES = re.compile(r"(Identity|[dD]rop\w*|torch\._assert)$")


def _check_kept(target: Graph, reference: Graph, theirs: Structure) -> None:
    """PlanError where the two differ in a layer that is kept (stem, entries, head): then not in depth alone."""
    if not len(target) or target.info.frontend != reference.info.frontend:
        return
    mine, others = (
        _kept_layers(graph, found) for graph, found in ((target, target.structure), (reference, theirs))
    )
    for scope in {**mine, **others}:
        if scope in theirs.head[-1:]:
            continue  # the output layer has been looked at
        if mine.get(scope) != others.get(scope):
            left, right = (", ".join(layers.get(scope, ["nothing"])) for layers in (mine, others))
            raise PlanError(
                f"the source and the reference differ in more than their depth: {scope} is {left} in the source, "
                f"{right} in the reference"
            )


def _kept_layers(graph: Graph, structure: Structure) -> dict[str, list[str]]:
    """The leaf modules outside the free blocks, with their configuration but for rates, by path."""
    free = {
        node
        for stage in structure.stages
        for block in stage.blocks
        if block.preserving
        for node in block.nodes
    }
    found: dict[str, list[str]] = {}
    for node in graph:
        if node not in free and node.kind == "module" and not _RATES.search(node.op):
            options = [
                f"{name}={value}" for name, value in node.attributes.items() if not isinstance(value, float)
            ]
            found.setdefault(node.scope, []).append(f"{node.op.rpartition('.')[2]}({', '.join(options)})")
    return found


# -- matching -----------------------------------------------------------------------------------------------------


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
    return {
        path: frozenset((name, weight.shape) for name, weight in held.items() if weight.persistent)
        for path, held in weights_below(graph.weights, paths).items()
    }


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
        plan = _by_number(shape, len(wanted), order, drop, replicate)
    except PlanError:
        return None
    return plan if [forms[index] for index in plan] == wanted else None


def _by_number(
    shape: StageShape, wanted: int, order: str, drop: str, replicate: Sequence[int] | None = None
) -> StagePlan:
    """The plan that makes a stage so many blocks; PlanError where it cannot become that many."""
    grown = wanted >= shape.blocks
    return grow(shape, wanted, order, replicate) if grown else shrink(shape, wanted, drop)


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
        spread = _by_number(shape, len(places), order, drop)
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
