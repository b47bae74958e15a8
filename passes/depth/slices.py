"""Recipes of slices, as mergekit's users write them: layers of one or several models in a row, scaled perhaps.

    slices:
      - sources: [{model: llama, layer_range: [0, 24]}]
      - sources: [{model: tuned, layer_range: [8, 32], parameters: {scale: [{filter: o_proj, value: 0.5}]}}]
    merge_method: passthrough
    dtype: bfloat16

The format, and what it means, is mergekit's (Goddard et al. 2024, *Arcee's MergeKit: A Toolkit for Merging Large
Language Models*), for its passthrough method alone: a range leaves out its end; a filter is a part of a tensor's name,
and the first that fits counts; settings of a source go before those of its slice, of its module and of the file; a
list of numbers rises or falls along the slice. What stands before the layers is the first slice's, what stands behind
them the last one's. All that would need more than copying and scaling is refused, with the line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from elastic_ir.checkpoints.names import stands_behind
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.naming import weights_below
from elastic_ir.ir.structure import Resequenced, Stage
from elastic_ir.passes.infra import Pass
from elastic_ir.plans.copy_edits import set_scaled
from elastic_ir.plans.layer_sources import plan_layers, take_layers
from elastic_ir.plans.plan import Layer
from elastic_ir.plans.resequence import resequence
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.safety.limits import check_blocks

#: A number, numbers along the slice, or numbers for the tensors whose names hold a text; None fits every name.
Scale = tuple[tuple[str | None, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Slice:
    """Layers of one model, from ``first`` up to and without ``last``; all of them where ``last`` is None."""

    model: int
    first: int
    last: int | None
    scales: tuple[Scale, ...]  #: the settings that hold for it, those that count first before the others
    where: str  #: file and line, for messages

    def factor(self, name: str, place: float) -> float | None:
        """What a tensor is multiplied by, at a place between 0 and 1 along the slice; None where no setting applies."""
        for scale in self.scales:
            for part, numbers in scale:
                if part in (None, "*") or (part and part in name):
                    if numbers:
                        return _along(numbers, place)
                    break
        return None


def _along(numbers: Sequence[float], place: float) -> float:
    """The number at a place between 0 and 1 along a list, straight between neighbours."""
    if len(numbers) == 1:
        return numbers[0]
    at = place * (len(numbers) - 1)
    low = int(at)
    share = at - low
    return (1 - share) * numbers[low] + share * numbers[min(len(numbers) - 1, low + 1)]


@dataclass(frozen=True)
class Slices:
    """A recipe: its models, and for each module the slices in a row; a recipe without modules has one, ``""``."""

    models: tuple[Path, ...]
    modules: Mapping[str, tuple[Slice, ...]]
    dtypes: tuple[tuple[str, str], ...] = ()  #: dtypes that are asked for, and where

    def merged(self, graphs: Sequence[Graph], keep_beside: Sequence[str] | None = None) -> Graph:
        """The network that the recipe describes, of its models as they were read, in their order. Raises PlanError.

        ``keep_beside`` names what stays as it is beside the layers, as for stretch.
        """
        for dtype, where in self.dtypes:
            for graph in graphs:
                for weight in graph.weights.values():
                    if weight.dtype != dtype:
                        raise PlanError(
                            f"{where}: {weight.name} of {graph.name} is {weight.dtype}, and is not converted to "
                            f"{dtype}; convert the model first, or leave the dtype out"
                        )
        labels = tuple(_labels(self.models, graphs[0].name))
        return _Merge(self, tuple(graphs), labels, keep_beside).run(graphs[0])


def _labels(models: Sequence[Path], first: str) -> list[str]:
    """A name for each model in plans: its folder's, as far as it may stand there and no two are equal."""
    names = [first]
    for at, path in enumerate(models[1:], start=2):
        name = re.sub(r"[^\w.-]", "-", path.resolve().name)
        while not re.match(r"[A-Za-z_]", name) or name in names:
            name, at = f"model-{at}", at + 1
        names.append(name)
    return names


@dataclass(frozen=True)
class _Merge(Pass):
    """Carry a recipe of slices out on its first model."""

    name: ClassVar[str] = "merge"

    slices: Slices
    graphs: tuple[Graph, ...]
    labels: tuple[str, ...] = field(default=())
    keep_beside: Sequence[str] | None = None

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> Resequenced:
        stages = [(stage, self._of_stage(stage, graph)) for stage in graph.stages]
        plan: list[list[int | Layer]] = []
        places: list[list[tuple[Slice, float]]] = []
        for stage, slices in stages:
            plan.append([])
            places.append([])
            for item in slices:
                numbers = self._numbers(item, stage)
                check_blocks(len(plan[-1]) + len(numbers))
                plan[-1] += [Layer(self.labels[item.model], n) if item.model else n for n in numbers]
                count = len(numbers)
                places[-1] += [(item, at / (count - 1) if count > 1 else 1) for at in range(count)]
        used = {layer.source for order in plan for layer in order if isinstance(layer, Layer)}
        others = {
            name: one for name, one in zip(self.labels[1:], self.graphs[1:], strict=True) if name in used
        }
        layers = plan_layers(graph, plan, others)
        made = resequence(rewriter, graph, layers.plan, self.keep_beside, written=layers.sequence)
        take_layers(rewriter, graph, layers, others)
        inside: set[str] = set()
        for stage, along in zip(graph.stages, places, strict=True):
            owners = {child.path: at for at, b in enumerate(stage.all_blocks) for child in b.children}
            for path, held in weights_below(graph.weights, owners).items():
                item, place = along[owners[path]]
                for weight in held.values():
                    inside.add(weight.name)
                    _scale(rewriter, graph, weight.name, item.factor(weight.origin, place))
        self._outside(rewriter, graph, [slices for _, slices in stages], inside)
        return made

    def _of_stage(self, stage: Stage, graph: Graph) -> tuple[Slice, ...]:
        """The slices of a stage: the only ones, or those of the module that its name contains."""
        modules = self.slices.modules
        where = next(iter(modules.values()))[0].where
        names = ", ".join(one.name for one in graph.stages)
        if len(graph.stages) == 1 and len(modules) == 1:
            return next(iter(modules.values()))
        if "" in modules:
            raise PlanError(
                f"{where}: the model has several stacks ({names}); give each its slices, under modules"
            )
        found = [key for key in modules if key == stage.name or key in stage.name.split(".")]
        if len(found) != 1 or len(modules) != len(graph.stages):
            raise PlanError(
                f"{where}: the modules {', '.join(modules)} do not tell the stacks of layers apart; call them {names}"
            )
        return modules[found[0]]

    def _numbers(self, item: Slice, stage: Stage) -> range:
        """The blocks of a slice."""
        graph = self.graphs[item.model]
        count = len(graph.structure.stage(stage.name))
        if item.last is not None and item.last > count:
            raise PlanError(
                f"{item.where}: {graph.name} has {count} layers at {stage.name}, and the range goes to {item.last}"
            )
        return range(item.first, count if item.last is None else item.last)

    def _outside(
        self, rewriter: Rewriter, graph: Graph, stages: Sequence[Sequence[Slice]], inside: set[str]
    ) -> None:
        """What stands before the layers as the first slice has it, what stands behind them as the last one has it."""
        last = stages[0][-1]
        apart = {slices[at].model for slices in stages for at in (0, -1)} != {0}
        if apart:
            self._same_outside(graph, self.graphs[last.model], inside, last)
        sources = graph.edits.sources
        for name in [name for name in graph.weights if name not in inside]:
            ends = (stages[0][0], last)
            factors = {item.factor(name, 0) for item in ends}
            behind: bool | None = False
            if apart or factors != {None}:
                behind = stands_behind(name)
            if behind is None or ((apart or factors != {None}) and len(stages) > 1):
                raise PlanError(
                    f"{last.where}: it does not show whether {name} stands before or behind the layers, so not "
                    "which slice it belongs to; let the first and the last slice be of one model, and scale by filters"
                )
            item = ends[behind]
            if item.model:
                number = 1 + sources[1:].index(self.labels[item.model])
                rewriter.take_weight(name, self.graphs[item.model], name, number)
            _scale(rewriter, graph, name, item.factor(name, 0))

    def _same_outside(self, graph: Graph, other: Graph, inside: set[str], item: Slice) -> None:
        """PlanError where the model of the last slice has other tensors behind its layers."""
        series = [stage.container.series for stage in other.stages]
        mine = {name: graph.weights[name] for name in graph.weights if name not in inside}
        theirs = {
            name: weight
            for name, weight in other.weights.items()
            if all(one.number(name) is None for one in series)
        }
        for name in sorted({*mine, *theirs}):
            if stands_behind(name) is False:
                continue
            if name not in mine or name not in theirs:
                has = graph.name if name in mine else other.name
                raise PlanError(
                    f"{item.where}: of the first and the last slice's models only {has} has {name}"
                )
            if (mine[name].shape, mine[name].dtype) != (theirs[name].shape, theirs[name].dtype):
                raise PlanError(
                    f"{item.where}: {name} is {list(theirs[name].shape)} {theirs[name].dtype} in {other.name}, and "
                    f"{list(mine[name].shape)} {mine[name].dtype} in {graph.name}"
                )


def _scale(rewriter: Rewriter, graph: Graph, name: str, factor: float | None) -> None:
    if factor is not None and factor != 1:
        set_scaled(rewriter, graph.weights[name], factor)
