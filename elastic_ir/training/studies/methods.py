"""Methods: where a ticket's training starts, as each way of making one has it.

A method gives the weights at the rewind point, masks, and what has to happen while it trains. Those of the elastic
ticket paper (section 4): its transformations, and what they are compared with at equal sparsity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.analysis.operations import ForwardCost
from elastic_ir.analysis.pruning.flops import (
    dpf_step,
    fixed_step,
    forward_cost,
    rigl_step,
    scoring_cost,
)
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.tickets import sparsity
from elastic_ir.training.data import Data
from elastic_ir.training.losses import ClassEntropy, SoftLabels
from elastic_ir.training.pruning.baselines import Baseline, permuted, prune
from elastic_ir.training.pruning.dynamic_callbacks import DPFCallback, RigLCallback
from elastic_ir.training.studies.jobs import SPARSITY
from elastic_ir.training.studies.names import build
from elastic_ir.training.studies.transforms import brought_to
from elastic_ir.training.studies.work import Work
from elastic_ir.training.task import Loss

_SCORED = 8  # batches on which scores of weights are found
_ROUNDS = 100  # of SynFlow


@dataclass
class Start:
    """What is trained from the rewind point on, under which masks, and what is done with it in the end."""

    network: nn.Module
    masks: dict[str, Tensor]
    loss: Loss | SoftLabels | None = None
    callbacks: Sequence[Any] = ()
    masks_at_end: Callable[[], dict[str, Tensor]] | None = None  #: where training changes them
    finish: Callable[[nn.Module], nn.Module] | None = None  #: what is done to the network when it is trained
    #: floating-point operations that finding the masks (and scales) took, before the training
    scoring: float = 0.0
    beside: float = 0.0  #: operations for each sample of the training beside the network's own: a teacher's
    #: operations of one sample's step, of its forward cost and the masks; by default those of masks that do not move
    step_cost: Callable[[ForwardCost, dict[str, Tensor]], float] | None = None

    def final_masks(self) -> dict[str, Tensor]:
        return self.masks if self.masks_at_end is None else self.masks_at_end()

    def flops(self, data: Data, samples: int) -> float:
        """Operations of the training, and of what was scored for it beforehand."""
        cost = forward_cost(self.network, data.example(self.network))
        masks = self.final_masks()
        each = fixed_step(cost.sparse(masks)) if self.step_cost is None else self.step_cost(cost, masks)
        return self.scoring + (each + self.beside) * samples

    def finished(self) -> nn.Module:
        return self.network if self.finish is None else self.finish(self.network)


def of_method(work: Work) -> Start:
    """The start of a method's training; ``work.network`` holds the target's weights at the rewind point.

    ``work.options["method"]`` names it. The folder ``needs["ticket"]`` (or ``"sparsity"``, where only its sparsity is
    used) holds the target's own ticket of the level, ``needs["source"]`` that of the network that is transformed.
    Raises PlanError.
    """
    method = work.options["method"]
    if method in ("transform", "hybrid"):
        graph = transformed(_source(work), work.network, work.data, work.options)
        return _from_graph(work, graph) if method == "transform" else _hybrid(work, graph)
    folder = work.needs.get("ticket") or work.needs.get(SPARSITY)
    reference = masks_in(folder / "ticket.pt") if folder is not None else {}
    if method in ("imp", "dense"):
        return Start(work.network, reference if method == "imp" else {}, work.loss)
    wanted = sparsity(reference) if reference else work.options["sparsity"]
    if method in ("rigl", "dpf"):
        return _dynamic(work, method, wanted)
    if method in ("random", "reinit"):
        return _pruned(work, method, None, reference)
    if method == "synflow" and not work.data.first.is_floating_point():
        raise PlanError(
            f"synflow scores a network by sending ones through it as floats; the inputs of {work.data.name} are whole "
            f"numbers ({str(work.data.first.dtype)[6:]}), so that it cannot be compared here"
        )
    return _pruned(work, method, wanted)


def _source(work: Work) -> Graph:
    """The ticket to transform, over all weights of its rewind point.

    A ticket's file has zeros where it is pruned, and masks that are permuted want to know what was there.
    """
    network = build({"network": work.options["source"], "seed": work.seed})
    network.load_state_dict(work.tensors("source_rewind", "state.pt"))
    masks = masks_in(work.needs["source"] / "ticket.pt")
    return eir.trace(network.eval(), (work.data.example(network),), masks=masks)


def masks_in(path: Path) -> dict[str, Tensor]:
    """The masks of a ticket's file, as boolean tensors."""
    return {name: mask.bool() for name, mask in eir.load(path).masks().items()}


def transformed(source: Graph, target: nn.Module, data: Data, options: Mapping[str, Any]) -> Graph:
    """A source's ticket brought to the depth of a target network by the transformation that the options describe."""
    like = eir.trace(target.cpu().eval(), (data.example(target),))
    return brought_to(source, like, options.get("options", {}))


def _from_graph(work: Work, graph: Graph) -> Start:
    """The transformed ticket, or what section 4.1 compares it with: random masks for the copies or for all weights,
    and the weights of another initialization.
    """
    given = work.options.get("options", {})
    new = given.get("new_weights")
    work.network.load_state_dict(work.another().state_dict() if new else graph.state_dict(masked=False))
    masks = {name: mask.bool() for name, mask in graph.masks().items()}
    if given.get("permute_masks"):
        masks = permuted(masks, work.seed)
    elif given.get("permute_copies"):
        masks = permuted(masks, work.seed, copies_in(graph))
    return Start(work.network, masks, work.loss)


def copies_in(graph: Graph) -> set[str]:
    """The weights that are copies: all but the first that comes from one source weight."""
    seen: set[str] = set()
    found = set()
    for name, origin in graph.lineage().items():
        if origin in seen:
            found.add(name)
        seen.add(origin)
    return found


def _hybrid(work: Work, graph: Graph) -> Start:
    """The source's masks for the blocks that it has, SNIP's for the extra ones, at the transform's sparsity (4.1).

    A source that is deeper has all blocks; its hybrid is the transformed ticket.
    """
    masks = {name: mask.bool() for name, mask in graph.masks().items()}
    extra = copies_in(graph)
    kept = {name: mask for name, mask in masks.items() if name not in extra}
    work.network.load_state_dict(graph.state_dict(masked=False))
    if len(kept) == len(masks):
        return Start(work.network, masks, work.loss)
    return _pruned(work, "hybrid", sparsity(masks), kept)


def _pruned(
    work: Work, method: Baseline, wanted: float | None, reference: Mapping[str, Tensor] | None = None
) -> Start:
    """The network under the masks of one of the baselines; see :func:`prune`."""
    size = work.training.batch_size
    masks = prune(
        method, work.network, wanted, reference=reference, seed=work.seed,
        batches=work.batches(work.network, _SCORED, size, 10_007), loss=work.loss or ClassEntropy(),
        leave_out=work.leave_out, input_shape=work.data.shape, factory=work.another, iterations=_ROUNDS,
    )  # fmt: skip
    dense = work.cost(work.network).dense
    scoring = scoring_cost(method, dense, _ROUNDS if method == "synflow" else _SCORED * size)
    return Start(work.network, masks, work.loss, scoring=scoring)


def _dynamic(work: Work, method: str, wanted: float) -> Start:
    """RigL from random masks, or DPF from the dense network, to a sparsity."""
    given: dict[str, Any] = {
        "leave_out": work.leave_out,
        "network": "network",
        **work.options.get("options", {}),
    }
    callback: RigLCallback | DPFCallback
    callback = (
        RigLCallback(sparsity=wanted, seed=work.seed, **given)
        if method == "rigl"
        else DPFCallback(wanted, **given)
    )

    def masks() -> dict[str, Tensor]:
        assert callback.method is not None
        return {name: mask.bool() for name, mask in callback.method.masks.items()}

    def step_cost(cost: ForwardCost, found: dict[str, Tensor]) -> float:
        sparse = cost.sparse(found)
        if isinstance(callback, RigLCallback):
            return rigl_step(sparse, cost.dense, given.get("interval", 100))
        assert callback.method is not None
        # DPF prunes little by little: on its way the last masks' saving is made in part only
        made = callback.method
        steps = range(made.total_steps)
        share = sum(made.sparsity_at(step) for step in steps) / (len(steps) * made.sparsity)
        return dpf_step(cost.dense - share * (cost.dense - sparse), cost.dense)

    return Start(work.network, {}, work.loss, [callback], masks, step_cost=step_cost)
