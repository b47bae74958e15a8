"""What a network costs: parameters, weights that are not masked, and floating-point operations of one run.

The operations are those that torch counts (``torch.utils.flop_counter``: two for each multiplication with addition, in
convolutions and products of matrices), on the inputs that the network was traced with. Only shapes are run.
"""

from __future__ import annotations

from dataclasses import dataclass

from elastic_ir.analysis.operations import ForwardCost, counted
from elastic_ir.errors import EmitError
from elastic_ir.ir.example_inputs import Inputs
from elastic_ir.ir.graph import Graph
from elastic_ir.onnx_model import OnnxSource
from elastic_ir.tensors.lazy import nbytes


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
        if weight.counted and weight.mask is not None:
            pruned[id(weight.storage)] = weight.mask.zeros
    return Cost(graph.parameter_count(), sum(pruned.values()), _flops(graph))


def compare_costs(before: Graph, after: Graph) -> CostChange:
    """What a pass has changed in cost."""
    return CostChange(cost(before), cost(after))


def stored_bytes(graph: Graph, packed: bool = False) -> int:
    """Bytes of all weights and buffers as files store them, tied ones once; zeros take as much as other numbers.

    ``packed`` is what a ``.ticket`` file stores of them: one bit for each weight under a mask, and the kept ones.
    """
    total = 0
    for storage in {id(weight.storage): weight.storage for weight in graph.weights.values()}.values():
        size = nbytes(storage.data)
        mask = storage.mask if packed else None
        total += size if mask is None else size * mask.ones // max(mask.size, 1) + len(mask.bits)
    return total


def _flops(graph: Graph) -> int | None:
    counted = operations(graph)
    return counted.dense if counted is not None else None


def operations(graph: Graph) -> ForwardCost | None:
    """The operations of one run, by weight; None where no network can be run, or none has inputs."""
    if (known := counted(graph)) is not None:
        return known
    inputs = examples(graph)
    if inputs is None or not len(graph):
        return None
    from elastic_ir.analysis.pruning.flops import forward_cost

    try:
        module = graph._module_for_shapes()
        if any(tensor.is_meta for tensor in module.parameters()):
            inputs = inputs.to("meta")
        return forward_cost(module, *inputs.args, **inputs.kwargs)
    except (EmitError, RuntimeError):
        # an operator that has no form in PyTorch, or extents that follow from numbers: not known without running
        if isinstance(graph.origin, OnnxSource):
            return None
        raise


def examples(graph: Graph) -> Inputs | None:
    """What a network was traced with; of an ONNX graph ones of its inputs' shapes, None where one is not known."""
    if graph.origin.inputs is not None:
        return graph.origin.inputs
    import torch

    kinds = [node.output.type for node in graph if node.kind == "input"]
    if not isinstance(graph.origin, OnnxSource):
        return None
    known = [kind for kind in kinds if kind is not None and min(kind.shape, default=0) >= 0]
    tensors = tuple(torch.ones(kind.shape, dtype=getattr(torch, kind.dtype)) for kind in known)
    return Inputs(tensors) if len(known) == len(kinds) else None
