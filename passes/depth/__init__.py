"""Passes that change how many blocks a network has, and the options that they share: the target, what stays beside."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from elastic_ir.errors import StructureError
from elastic_ir.ir.collector import uncollected
from elastic_ir.ir.graph import Graph
from elastic_ir.passes.infra import Pass
from elastic_ir.plans.target import Target


@dataclasses.dataclass(frozen=True)
class DepthPass(Pass):
    """A pass that changes how many blocks there are."""

    #: lists, tensors or entries of a configuration beside a stage that stay as they are
    keep_beside: Sequence[str] | None = dataclasses.field(default=None, kw_only=True)


@dataclasses.dataclass(frozen=True)
class TargetPass(DepthPass):
    """A pass that is given the number of blocks."""

    to_depth: int | None = None  #: the network's depth, as its name counts it (ResNet-56)
    #: blocks of every stage, or of those named
    to_stages: Sequence[int] | Mapping[str, int] | str | None = None
    to_units: int | None = None  #: units of a network of one stage

    @property
    def target(self) -> Target:
        """What is wanted, in whichever way it is given."""
        return Target(self.to_depth, self.to_stages, self.to_units)

    def run_on(self, target: Graph) -> Graph:
        """As :meth:`run`, on a graph that nobody else holds; a target by an entry of the configuration first."""
        counts = None
        if target.origin.counts is not None:
            from elastic_ir.plans.counted import at_counted_lists

            counts = at_counted_lists(target, self.target)
        if counts is not None:
            wanted = dataclasses.replace(self, to_units=None, to_stages=counts)
            return wanted.run_on(target)
        super()._discover(target)
        return super().run_on(target)

    def _discover(self, graph: Graph) -> None:
        with contextlib.suppress(StructureError) if graph.origin.counts else contextlib.nullcontext():
            super()._discover(graph)  # of a network that shows what entries count, its lists may be found yet


@dataclasses.dataclass(frozen=True)
class ResizePass(TargetPass):
    """A pass whose target may also be a plan, or another network whose depth, names and constants are taken over."""

    like: Graph | None = None
    plan: Any = None  #: each stage's blocks by their source, 0,1,1|0,1, or sources and targets, 0:0;1:1,2

    @property
    def target(self) -> Target:
        """What is wanted, in whichever way it is given."""
        return Target(self.to_depth, self.to_stages, self.to_units, self.like, self.plan)

    def after_reference(self, graph: Graph, reference: Graph) -> Graph:
        """A copy of a graph, made like the reference."""
        raise NotImplementedError

    @uncollected
    def run(self, graph: Graph) -> Graph:
        """The rewritten and verified copy of a graph; the graph given stays as it was."""
        return super().run(graph) if self.like is None else self._like(graph)

    @uncollected
    def run_on(self, target: Graph) -> Graph:
        """As :meth:`run`, on a graph that nobody else holds."""
        return super().run_on(target) if self.like is None else self._like(target)

    def _like(self, graph: Graph) -> Graph:
        self.target.check()
        assert self.like is not None
        return self.after_reference(graph, self.like)
