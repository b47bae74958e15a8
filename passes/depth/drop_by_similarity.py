"""Dropping by similarity: the units that change least of what flows through them go.

Men et al. 2024, *ShortGPT: Layers in Large Language Models are More Redundant Than You Expect*, section 3: every unit's
influence is measured once, and those of least influence are deleted together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from elastic_ir.analysis.samples import Samples
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Resequenced, Stage, Unit
from elastic_ir.passes.depth import TargetPass
from elastic_ir.plans.resequence import resequence
from elastic_ir.plans.target import Target, target_counts
from elastic_ir.rewrite.rewriter import Rewriter


@dataclasses.dataclass(frozen=True)
class DropBySimilarity(TargetPass):
    """Delete the units that change least of what flows through them, measured on data (ShortGPT)."""

    name: ClassVar[str] = "drop-by-similarity"
    gains: ClassVar[str] = "a smaller file and lower latency, by the blocks that go"

    count: int | None = None  #: how many units go, from whatever stages
    #: A file of inputs (.npy, .npz, .safetensors), samples along the first axis; in Python also tensors. Without it the
    #: example inputs that the network was traced with.
    data: Any = None
    batch: int = 16  #: samples run at a time

    def __post_init__(self) -> None:
        if self.data is not None and not isinstance(self.data, (str, Samples)):
            object.__setattr__(self, "data", Samples.of(self.data))

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> Resequenced:
        wanted = self._wanted(graph)
        from elastic_ir.analysis.influence import block_influence

        if self.batch < 1:
            raise PlanError("batch is a number of samples, 1 or more")
        samples = Samples.of(self.data) if self.data is not None else Samples.traced(graph, self.name)
        influence = block_influence(graph, samples, self.batch)
        dropped = self._least(graph, wanted, influence)
        #: Plain data for reports: each free unit's influence, which units went, and how many samples were run.
        rewriter.report(
            {
                "influence": {unit.path: value for unit, value in influence.items()},
                "dropped": [unit.path for unit in influence if unit in dropped],
                "samples": len(samples),
            }
        )
        gone = {block for unit in dropped for block in unit.blocks}
        kept = (
            [i for i, block in enumerate(stage.all_blocks) if block not in gone] for stage in graph.stages
        )
        return resequence(rewriter, graph, tuple(map(tuple, kept)), self.keep_beside)

    def summary(self, graph: Graph) -> str | None:
        report = self.report(graph)
        listed = ", ".join(f"{path} {value:.3g}" for path, value in report["influence"].items())
        plural = "s" if report["samples"] != 1 else ""
        return f"dropped {', '.join(report['dropped'])}; influence on {report['samples']} input{plural}: {listed}"

    def _wanted(self, graph: Graph) -> dict[Stage, int] | int:
        """How many units go in each stage, or in all."""
        target = self.target
        if self.count is not None:
            if target != Target():
                raise PlanError(
                    "state in exactly one way what is dropped: count, to_depth, to_stages or to_units"
                )
            free = sum(len(stage.units) - (stage.entry is None) for stage in graph.stages if stage.blocks)
            if not 1 <= self.count <= free:
                raise PlanError(
                    f"count={self.count}: between 1 and {free} units can go, one of each stage stays"
                )
            return self.count
        if target == Target():
            raise PlanError(
                "state how many units are dropped by count, or what stays by to_depth, to_stages or to_units"
            )
        wanted = {}
        for stage, count in zip(graph.stages, target_counts(graph, target), strict=True):
            gone, step = len(stage) - count, stage.period or 1
            if gone < 0 or gone % step or gone // step > len(stage.units):
                raise PlanError(
                    f"stage {stage.name!r} has {len(stage)} blocks, {len(stage.units)} free units of {step}; "
                    f"it cannot be cut to {count}"
                )
            wanted[stage] = gone // step
        if not any(wanted.values()):
            raise PlanError("the network is as shallow already; nothing would be dropped")
        return wanted

    def _least(
        self, graph: Graph, wanted: dict[Stage, int] | int, influence: Mapping[Unit, float]
    ) -> set[Unit]:
        """The units of least influence; of equal ones the later."""
        order = {unit: place for place, unit in enumerate(influence)}

        def rank(unit: Unit) -> tuple[float, int]:
            return influence[unit], -order[unit]

        if isinstance(wanted, dict):
            units = {
                stage: [unit for unit in influence if unit.blocks[0] in stage.blocks] for stage in wanted
            }
            return {unit for stage, n in wanted.items() for unit in sorted(units[stage], key=rank)[:n]}
        left = {id(stage): len(stage.units) - (stage.entry is None) for stage in graph.stages}
        stage_of = {block: stage for stage in graph.stages for block in stage.blocks}
        gone: set[Unit] = set()
        for unit in sorted(influence, key=rank):
            stage = stage_of[unit.blocks[0]]
            if len(gone) < wanted and left[id(stage)]:
                left[id(stage)] -= 1
                gone.add(unit)
        return gone
