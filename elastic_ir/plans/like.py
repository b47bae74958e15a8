"""Resizing after a reference: the source's stages matched with another network's, and made as many and as such."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from elastic_ir.discovery import discover
from elastic_ir.errors import ElasticError, PlanError, StructureError, VerifyError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Structure
from elastic_ir.ir.verifier import verify
from elastic_ir.plans.matching import differing_names, match_plan
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
    for here, there in _readings(graph, reference, direction):
        target = graph.copy()
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


def _places(graph: Graph) -> frozenset[tuple[str, str]] | None:
    """The containers that hold a network's stages; None where nothing in it repeats."""
    try:
        return frozenset((box.path, box.prefix) for box in graph.structure.containers)
    except StructureError:
        return None


def _check_direction(ours: Structure, theirs: Structure, direction: str) -> None:
    """PlanError where a stretch makes nothing deeper, or a squeeze nothing shallower."""
    here, there = [len(stage) for stage in ours.stages], [len(stage) for stage in theirs.stages]
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
