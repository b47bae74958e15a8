"""What a network costs: parameters, weights that are not masked, and floating-point operations of one run.

The operations are those that torch counts (``torch.utils.flop_counter``: two for each multiplication with addition, in
convolutions and products of matrices), on the inputs that the network was traced with. Only shapes are run.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elastic_ir.errors import EmitError
from elastic_ir.ir.example_inputs import map_tensors
from elastic_ir.ir.graph import Graph
from elastic_ir.onnx_model import OnnxSource

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Cost:
    """Parameters and operations of one network; ``flops`` is None where no network can be run."""

    parameters: int
    pruned: int  #: prunable weights that a mask makes zero
    flops: int | None


@dataclass(frozen=True)
class CostChange:
    """Two costs side by side, for a reader and for programs."""

    before: Cost
    after: Cost

    def lines(self) -> list[str]:
        """One line for each figure: before, after, and the share that is left."""
        rows = [("parameters", self.before.parameters, self.after.parameters)]
        rows.append(("pruned", self.before.pruned, self.after.pruned))
        if self.before.flops is not None and self.after.flops is not None:
            rows.append(("FLOPs", self.before.flops, self.after.flops))
        return [
            f"{name + ':':<11} {old:,} -> {new:,}" + (f" ({new / old:.1%})" if old else "")
            for name, old, new in rows
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def cost(graph: Graph) -> Cost:
    """The cost of a graph; its module is run once on fake tensors if its front end left inputs for it."""
    pruned: dict[int, int] = {}
    for weight in graph.weights.values():
        if weight.prunable and weight.mask is not None:
            pruned[id(weight.storage)] = weight.mask.zeros
    return Cost(graph.parameter_count(), sum(pruned.values()), _flops(graph))


def compare_costs(before: Graph, after: Graph) -> CostChange:
    """What a pass has changed in cost."""
    return CostChange(cost(before), cost(after))


def _flops(graph: Graph) -> int | None:
    inputs = graph.origin.inputs
    shaped = isinstance(graph.origin, OnnxSource)
    if (inputs is None and not shaped) or not len(graph):
        return None
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    try:
        module = graph._module_for_shapes().eval()
    except EmitError:
        if shaped:  # an operator that has no form in PyTorch
            return None
        raise
    on_meta = any(tensor.is_meta for tensor in module.parameters())
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    counter = FlopCounterMode(display=False)

    def fake(item: object) -> object:
        return map_tensors(item, lambda tensor: tensor.to("meta") if on_meta else mode.from_tensor(tensor))

    positional = _examples(graph) if inputs is None else inputs.args
    if positional is None:
        return None
    arguments = [fake(item) for item in positional]
    options = {name: fake(item) for name, item in inputs.kwargs.items()} if inputs is not None else {}
    try:
        with torch.no_grad(), contextlib.nullcontext() if on_meta else mode, counter:
            module(*arguments, **options)
    except RuntimeError:
        if shaped:  # extents that follow from numbers cannot be known without running
            return None
        raise
    return int(counter.get_total_flops())


def _examples(graph: Graph) -> list[torch.Tensor] | None:
    """Tensors of the shapes that the inputs of an ONNX graph were read with; None where one is not known."""
    import torch

    found = []
    for node in graph:
        if node.kind == "input":
            kind = node.output.type
            if kind is None or min(kind.shape, default=0) < 0:
                return None
            found.append(torch.ones(kind.shape, dtype=getattr(torch, kind.dtype)))
    return found
