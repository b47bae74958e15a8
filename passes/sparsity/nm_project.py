"""N:M projection: a ticket becomes one that sparse tensor cores can run, by magnitude (2:4 unless asked otherwise).

Groups, and which weights are taken, are those of NVIDIA's ASP (Mishra et al. 2021, "Accelerating Sparse Deep Neural
Networks"; apex, ``contrib/sparsity``): all convolutions and linear layers but those whose sizes sparse tensor cores do
not take (outputs no multiple of 8, inputs no multiple of 16). ASP leaves out no layer by its place; a stem of three
channels and a small head fall out by that rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from elastic_ir.analysis.input_axes import InputAxes
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.passes.infra import Pass, reasons
from elastic_ir.passes.infra.chosen import fits
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.lazy import ShapeOnly
from elastic_ir.tensors.nm_mask import PatternMask
from elastic_ir.tensors.weights import Weight


@dataclasses.dataclass(frozen=True)
class NMProject(Pass):
    """Keep at most N of every M weights along the input, by magnitude; what was pruned stays pruned."""

    name: ClassVar[str] = "nm-project"
    needs_structure: ClassVar[bool] = False

    n: int = 2  #: weights kept of each group
    m: int = 4  #: weights of a group, neighbours along the input
    skip: Sequence[str] | str = ()  #: names of weights or layers to leave alone; * stands for anything
    rows: int = 8  #: outputs must be a multiple of this; 1 takes all
    columns: int = 16  #: inputs must be a multiple of this, and of M; 1 asks for a multiple of M only

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        if not 0 < self.n < self.m:
            raise PlanError(
                f"n={self.n} m={self.m} is not a pattern: of every m weights fewer than m stay, at least 1"
            )
        if self.rows < 1 or self.columns < 1:
            raise PlanError("rows and columns are multiples, 1 or more")
        patterns = [self.skip] if isinstance(self.skip, str) else list(self.skip)
        for pattern in patterns:
            if not any(weight.prunable and fits(weight.name, pattern) for weight in graph.weights.values()):
                raise PlanError(f"skip={pattern!r} fits no weight of a convolution or linear layer")
        axis_of = InputAxes(graph)
        projected: list[str] = []
        skipped: dict[str, str] = {}
        seen: set[int] = set()
        for name, weight in graph.weights.items():
            if not weight.prunable or id(weight.storage) in seen:
                continue
            seen.add(id(weight.storage))
            axis = axis_of(weight)
            reason = self._why_not(weight, patterns, axis)
            if reason or isinstance(axis, str):
                skipped[name] = reason
                continue
            rewriter.set_mask(name, PatternMask(weight.storage.data, self.n, self.m, weight.mask, axis))
            projected.append(name)
        #: Plain data for reports: the weights that were projected, and why the others were not.
        rewriter.report({"projected": projected, "skipped": skipped})

    def summary(self, graph: Graph) -> str | None:
        report = self.report(graph)
        projected, skipped = report["projected"], report["skipped"]
        if not projected and not skipped:
            return "there is no weight of a convolution or linear layer"
        return f"{len(projected)} weights projected, {len(skipped)} left{reasons(skipped)}"

    def _why_not(self, weight: Weight, patterns: Sequence[str], axis: int | str) -> str:
        if any(fits(weight.name, pattern) for pattern in patterns):
            return "skipped as asked"
        if "float" not in weight.dtype:
            return f"its numbers are {weight.dtype}, whose size is not a magnitude"
        if isinstance(axis, str):
            return axis
        out, into = weight.shape[1 - axis], weight.shape[axis]
        if into % self.m:
            return f"{into} inputs are not a multiple of {self.m}"
        if into % self.columns:
            return f"{into} inputs are not a multiple of {self.columns}"
        if out % self.rows:
            return f"{out} outputs are not a multiple of {self.rows}"
        if isinstance(weight.storage.data, ShapeOnly):
            return "it has no values (meta device)"
        return ""
