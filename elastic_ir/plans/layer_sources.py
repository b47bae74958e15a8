"""Layers of several networks in one: a plan that names them, checked against names, shapes and dtypes, and carried out.

A layer of another network takes the place of its like: a block of the first network with the same names, shapes and
dtypes is cloned where the plan wants it, and then gets the other's tensors and masks. What lies outside of the layers
stays the first network's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elastic_ir.errors import PlanError, StructureError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.naming import weights_below
from elastic_ir.ir.structure import Block, Stage
from elastic_ir.plans.plan import SOURCE_NAME, Layer, Plan, StagePlan, StageShape, check_plan
from elastic_ir.plans.target import planned_layers
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.weights import Weight


@dataclass(frozen=True)
class Layers:
    """A plan over several networks: the blocks that are cloned, and for each place the layer it is given, if any."""

    plan: Plan
    taken: tuple[tuple[Layer | None, ...], ...]

    @property
    def sequence(self) -> list[list[int | Layer]]:
        """The plan as it was written: for each stage, numbers of its own blocks and layers of others."""
        return [
            [layer or index for index, layer in zip(order, taken, strict=True)]
            for order, taken in zip(self.plan, self.taken, strict=True)
        ]

    @property
    def sources(self) -> list[str]:
        """The names of the networks that layers are taken from, in the order of the plan."""
        return list(
            dict.fromkeys(layer.source for stage in self.taken for layer in stage if layer is not None)
        )


def plan_layers(graph: Graph, given: Any, others: Mapping[str, Graph]) -> Layers:
    """A plan in any notation, with what it takes from other networks, checked against all of them.

    Raises PlanError, one line: a name that is not given or not used, a layer that the other network lacks, names,
    shapes or dtypes that differ.
    """
    if given is None:
        raise PlanError("layers of other networks are named by a plan; say --plan 0-15,b/6-21 (plan=...)")
    parts = planned_layers(graph, given)
    used = {item.source: item for part in parts for item in part if isinstance(item, Layer)}
    for name, layer in used.items():
        if name not in others:
            known = f"; given: {', '.join(others)}" if others else ""
            raise PlanError(
                f"the plan takes {layer}; say which network {name!r} is, by --with {name}=SOURCE{known}"
            )
    for name, other in others.items():
        if not SOURCE_NAME.fullmatch(name):
            raise PlanError(f"{name!r} is not a name for a network; write letters and digits, for example b")
        if name not in used:
            raise PlanError(f"the plan takes no layer of {name!r}; write {name}/0-3, for example")
        _check_other(graph, other, name)
    whole: list[StagePlan] = []
    taken = []
    for stage, part in zip(graph.stages, parts, strict=True):
        like = _Likes(graph, stage, others)
        order = [like.place(item) if isinstance(item, Layer) else item for item in part]
        same = order == list(range(len(stage)))
        whole.append(tuple(order) if same else check_plan(StageShape.in_graph(graph, stage), order))
        taken.append(tuple(item if isinstance(item, Layer) else None for item in part))
    return Layers(tuple(whole), tuple(taken))


def take_layers(rewriter: Rewriter, graph: Graph, layers: Layers, others: Mapping[str, Graph]) -> None:
    """Give the blocks of a graph that has its planned sequence the tensors of the layers that the plan names."""
    known = graph.edits.sources
    for name in layers.sources:
        if name in known[1:]:
            raise PlanError(
                f"{graph.name} has layers of a {name!r} already; call the other network another name"
            )
    number = dict(zip(layers.sources, rewriter.add_sources(layers.sources), strict=True))
    for stage, taken in zip(graph.stages, layers.taken, strict=True):
        for block, layer in zip(stage.all_blocks, taken, strict=True):
            if layer is not None:
                other = others[layer.source]
                twin = other.structure.stage(stage.name).all_blocks[layer.index]
                rewriter.take_over(block, other, twin, number[layer.source])
    if graph.origin.streamed:
        others_read = tuple(others[name].origin for name in layers.sources)
        graph.origin = dataclasses.replace(graph.origin, others=(*graph.origin.others, *others_read))


def _check_other(graph: Graph, other: Graph, name: str) -> None:
    """PlanError where another network was read in another way, or changed before."""
    for one, whose in ((graph, graph.name), (other, name)):
        if one.info.frontend == "onnx":
            raise PlanError(
                f"{whose} is an ONNX graph, whose weights stay in one file; take layers of checkpoints"
            )
    streamed = graph.origin.streamed or other.origin.streamed
    if bool(len(graph)) != bool(len(other)) or (streamed and type(graph.origin) is not type(other.origin)):
        raise PlanError(
            f"{name} and {graph.name} were not read in the same way; read both as folders, or both as GGUF files, or "
            "trace both networks"
        )
    try:
        edited = any(
            child.path != child.origin
            or child.taken is not None
            or len(box.children) != box.source_count + box.tail
            for box in other.structure.containers
            for child in box.children
        )
    except StructureError as error:
        raise PlanError(f"{name}: {error}") from error
    if edited:
        raise PlanError(
            f"{name} was changed after it was read; write it, and take the layers of what is written"
        )


class _Likes:
    """For the layers of other networks, blocks of one stage that hold the same."""

    def __init__(self, graph: Graph, stage: Stage, others: Mapping[str, Graph]) -> None:
        self.graph = graph
        self.stage = stage
        self.shape = StageShape.of(stage)
        self.others = others
        self.held: dict[str, dict[str, dict[str, Weight]]] = {"": _weights(graph, stage)}

    def place(self, layer: Layer) -> int:
        """The number of the block that is cloned for a layer; its own number where that block is like it."""
        other, twin = self._twin(layer)
        theirs = _weights_of(twin, self.held[layer.source])
        pinned, period = self.shape.pinned, self.shape.period
        unit, rest = divmod(layer.index - pinned, period)
        if layer.index < pinned:
            places = [layer.index]
        else:
            units = sorted(range(self.shape.units), key=lambda one: (one != unit, one))
            places = [pinned + one * period + rest for one in units]
        blocks = self.stage.all_blocks
        first = ""
        for place in places:
            difference = _difference(
                _weights_of(blocks[place], self.held[""]),
                theirs,
                (self.graph.name, layer.source),
                self.graph.origin.mixed_types,
            )
            if not difference and blocks[place].signature != twin.signature and len(other):
                difference = f"{blocks[place].path} computes something else than {layer.source}'s {twin.path}"
            if not difference:
                return place
            first = first or difference
        raise PlanError(f"{layer} does not fit: {first or f'{self.stage.name} has no free block to clone'}")

    def _twin(self, layer: Layer) -> tuple[Graph, Block]:
        other = self.others[layer.source]
        try:
            stage = other.structure.stage(self.stage.name)
        except StructureError as error:
            raise PlanError(f"{layer}: of {layer.source} {error}") from error
        mine, theirs = ([(box.series, box.base) for box in one.containers] for one in (self.stage, stage))
        if mine != theirs:
            raise PlanError(
                f"{layer}: its layers are numbered in another way than those of {self.graph.name}"
            )
        if layer.source not in self.held:
            self.held[layer.source] = _weights(other, stage)
        if not layer.index < len(stage):
            raise PlanError(
                f"{layer.source}'s stage {stage.name!r} has no block {layer.index}: its blocks are 0 to "
                f"{len(stage) - 1}"
            )
        return other, stage.all_blocks[layer.index]


def _weights(graph: Graph, stage: Stage) -> dict[str, dict[str, Weight]]:
    """The weights of each child of a stage's blocks, by their names within it."""
    return weights_below(
        graph.weights, (child.path for block in stage.all_blocks for child in block.children)
    )


def _weights_of(block: Block, held: Mapping[str, Mapping[str, Weight]]) -> list[Mapping[str, Weight]]:
    return [held[child.path] for child in block.children]


def _difference(
    mine: Sequence[Mapping[str, Weight]],
    theirs: Sequence[Mapping[str, Weight]],
    names: tuple[str, str],
    mixed: bool,
) -> str:
    """The first difference between the tensors of two blocks; empty where they are alike.

    Types do not count where they are ``mixed``.
    """
    if len(mine) != len(theirs):
        return f"a block has {len(theirs)} parts in {names[1]}, {len(mine)} in {names[0]}"
    for own, other in zip(mine, theirs, strict=True):
        for rest, weight in other.items():
            twin = own.get(rest)
            if twin is None:
                return f"{names[0]} has no {rest} in its layer, as {names[1]} has with {weight.name}"
            if twin.shape != weight.shape:
                shapes = list(weight.shape), list(twin.shape)
                return (
                    f"{weight.name} is {shapes[0]} in {names[1]}, and {twin.name} {shapes[1]} in {names[0]}"
                )
            if twin.dtype != weight.dtype and not mixed:
                return (
                    f"{weight.name} is {weight.dtype} in {names[1]}, and {twin.name} {twin.dtype} in {names[0]}; "
                    "convert one of the two first"
                )
        for rest, weight in own.items():
            if rest not in other:
                return f"{names[1]} has no {rest} in its layer, as {names[0]} has with {weight.name}"
    return ""
