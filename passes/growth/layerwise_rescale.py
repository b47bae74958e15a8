"""Layer-wise rescaling: each parameter tensor times a number, so that the first step of training is a good one.

The numbers are found by :func:`elastic_ir.training.find_scales` (GradInit, Zhu et al. 2021), which needs data; as
"layer-wise re-scaled initialization" it is one of the tweaks of Jaiswal et al. 2022, *Training Your Sparse Neural
Network Better with Any Mask*. Zeros stay zeros, so masks stay as they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

from elastic_ir.choices import Optimizer
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.passes.infra import Pass
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.recipes import Scaled, with_values


@dataclasses.dataclass(frozen=True)
class LayerwiseRescale(Pass):
    """Rescale a fresh ticket's layers for the first step of training, by GradInit on labelled data."""

    name: ClassVar[str] = "layerwise-rescale"
    needs_structure: ClassVar[bool] = False
    gains: ClassVar[str] = "neither: it changes numbers, not how many there are"

    data: str | None = None  #: a .npz or .safetensors file with inputs and labels (class numbers)
    scales: Mapping[str, float] | None = None  #: from Python, in place of data: what find_scales gave
    batch: int = 64  #: examples in a batch; each step of the search takes three batches
    steps: int = 180  #: of the search for the scales
    lr: float = 0.01  #: of the scales
    eta: float = 0.1  #: the learning rate of the first step that is looked ahead
    gamma: float = 1.0  #: the bound of the gradient's norm
    minimum: float = 0.01  #: no weight's scale gets smaller
    optimizer: Optimizer = "sgd"  #: of the training: sgd or adam
    normalise: bool = True  #: sgd: look a step of length eta ahead, whatever the gradient's norm

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        if (self.data is None) == (self.scales is None):
            raise PlanError(
                "layerwise-rescale needs data=FILE, or from Python the scales that find_scales gave"
            )
        scales = self._find(graph) if self.scales is None else dict(self.scales)
        for name, scale in scales.items():
            if name not in graph.weights or not graph.weights[name].is_parameter:
                raise PlanError(f"{graph.name} has no parameter {name!r} to scale")
            if not (math.isfinite(scale) and scale >= 0):
                raise PlanError(
                    f"the scale {scale} of {name!r} is not valid; a scale is a number of 0 or more"
                )
        done: set[int] = set()
        for name, scale in scales.items():
            storage = graph.weights[name].storage
            if scale != 1 and id(storage) not in done:
                rewriter.set_data(name, with_values(Scaled(storage.data, scale), storage.data))
            done.add(id(storage))
        rewriter.report(scales)

    def _find(self, graph: Graph) -> dict[str, float]:
        from elastic_ir.analysis.gradinit import GradInit, find_scales
        from elastic_ir.analysis.samples import read_batches

        self._need_pytorch(graph)
        assert self.data is not None
        settings = GradInit(
            self.steps, self.lr, self.eta, self.gamma, self.minimum, self.optimizer, self.normalise
        )
        return find_scales(graph, read_batches(self.data, self.batch), settings=settings)

    def summary(self, graph: Graph) -> str | None:
        scales = self.report(graph).values()
        return f"{len(scales)} tensors scaled by {min(scales):.3g} to {max(scales):.3g}" if scales else None
