"""N:M projection: a ticket becomes one that sparse tensor cores can run, by magnitude (2:4 unless asked otherwise).

Groups, and which weights are taken, are those of NVIDIA's ASP (Mishra et al. 2021, "Accelerating Sparse Deep Neural
Networks"; apex, ``contrib/sparsity``): all convolutions and linear layers but those whose sizes sparse tensor cores do
not take (outputs no multiple of 8, inputs no multiple of 16). ASP leaves out no layer by its place; a stem of three
channels and a small head fall out by that rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from elastic_ir.analysis.input_axes import InputAxes
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.passes.infra import Pass, reasons
from elastic_ir.passes.infra.chosen import prunable_of
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.lazy import ShapeOnly
from elastic_ir.tensors.nm_mask import PatternMask
from elastic_ir.tensors.weights import Weight


@dataclasses.dataclass(frozen=True)
class NMProject(Pass):
    """Keep at most N of every M weights along the input, by magnitude; what was pruned stays pruned."""

    name: ClassVar[str] = "nm-project"
    needs_structure: ClassVar[bool] = False
    gains: ClassVar[str] = (
        "neither here: files store the zeros and CPU kernels compute with them; sparse tensor "
        "cores alone (TensorRT, cuSPARSELt) run 2:4 faster"
    )

    n: int = 2  #: weights kept of each group
    m: int = 4  #: weights of a group, neighbours along the input
    skip: Sequence[str] | str = ()  #: names of weights or layers to leave alone; * stands for anything
    rows: int = 8  #: outputs must be a multiple of this; 1 takes all
    columns: int = 16  #: inputs must be a multiple of this, and of M; 1 asks for a multiple of M only

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        weights, (asked,) = prunable_of(graph, skip=self.skip)
        axes, skipped = pattern_axes(graph, weights, self.n, self.m, self.rows, self.columns, asked)
        for name, axis in axes.items():
            weight = weights[name]
            rewriter.set_mask(name, PatternMask(weight.storage.data, self.n, self.m, weight.mask, axis))
        #: Plain data for reports: the weights that were projected, and why the others were not.
        rewriter.report({"projected": list(axes), "skipped": skipped})

    def summary(self, graph: Graph) -> str | None:
        report = self.report(graph)
        projected, skipped = report["projected"], report["skipped"]
        if not projected and not skipped:
            return "there is no weight of a convolution or linear layer"
        return f"{len(projected)} weights projected, {len(skipped)} left{reasons(skipped)}"


def pattern_axes(
    graph: Graph, weights: Mapping[str, Weight], n: int, m: int, rows: int = 8, columns: int = 16,
    asked: Collection[str] = (),
) -> tuple[dict[str, int], dict[str, str]]:  # fmt: skip
    """Along which axis the groups of m lie for those of some weights that suit n:m, and why the others do not.

    ``asked`` names weights to leave alone. Raises PlanError for what is no pattern.
    """
    if not 0 < n < m:
        raise PlanError(f"n={n} m={m} is not a pattern: of every m weights fewer than m stay, at least 1")
    if rows < 1 or columns < 1:
        raise PlanError("rows and columns are multiples, 1 or more")
    axis_of = InputAxes(graph)
    axes: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for name, weight in weights.items():
        axis = axis_of(weight)
        reason = "skipped as asked" if name in asked else _why_not(weight, axis, m, rows, columns)
        if reason or isinstance(axis, str):
            skipped[name] = reason
        else:
            axes[name] = axis
    return axes, skipped


def _why_not(weight: Weight, axis: int | str, m: int, rows: int, columns: int) -> str:
    if "float" not in weight.dtype:
        return f"its numbers are {weight.dtype}, whose size is not a magnitude"
    if isinstance(axis, str):
        return axis
    out, into = weight.shape[1 - axis], weight.shape[axis]
    if into % m:
        return f"{into} inputs are not a multiple of {m}"
    if into % columns:
        return f"{into} inputs are not a multiple of {columns}"
    if out % rows:
        return f"{out} outputs are not a multiple of {rows}"
    if isinstance(weight.storage.data, ShapeOnly):
        return "it has no values (meta device)"
    return ""
