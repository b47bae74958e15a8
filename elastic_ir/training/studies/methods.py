"""Methods: where a ticket's training starts, as each way of making one has it.

A method gives the weights at the rewind point, masks, and what has to happen while it trains. Those of the elastic
ticket paper (section 4): its transformations, and what they are compared with at equal sparsity.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.analysis.pruning.flops import (
    ForwardCost,
    dpf_step,
    forward_cost,
    grasp_cost,
    rigl_step,
    snip_cost,
    synflow_cost,
)
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.training.data import Data
from elastic_ir.training.items.read import weights_dtype
from elastic_ir.training.loader import BatchStream
from elastic_ir.training.losses import ClassEntropy
from elastic_ir.training.settings import Training
from elastic_ir.training.studies.jobs import SPARSITY
from elastic_ir.training.studies.start import Start
from elastic_ir.training.task import Loss

_OTHER = 100_003  # added to a seed, for weights that are initialized anew
_SCORED = 8  # batches on which scores of weights are found


def starting_point(
    network: nn.Module, data: Data, training: Training, options: Mapping[str, Any], needs: Mapping[str, Path], *,
    loss: Loss | None,
) -> Start:  # fmt: skip
    """The start of a method's training, with the tweaks that ``options["tweaks"]`` names; see :func:`of_method`."""
    start = of_method(network, data, training, options, needs, loss=loss)
    if options.get("tweaks"):
        from elastic_ir.training.studies.tweaks import tweaked

        start = tweaked(start, options["tweaks"], data, training, options, needs)
    return start


def of_method(
    network: nn.Module, data: Data, training: Training, options: Mapping[str, Any], needs: Mapping[str, Path], *,
    loss: Loss | None,
) -> Start:  # fmt: skip
    """The start of a method's training; ``network`` holds the target's weights at the rewind point.

    ``options["method"]`` names it. The folder ``needs["ticket"]`` (or ``"sparsity"``, where only its sparsity is used)
    holds the target's own ticket of the level, ``needs["source"]`` that of the network that is transformed. Raises
    PlanError.
    """
    method = options["method"]
    if method in ("transform", "hybrid"):
        graph = transformed(_source(data, options, needs), network, data, options)
        if method == "transform":
            return _from_graph(graph, network, options, loss)
        return _hybrid(graph, network, data, training, options, loss)
    folder = needs.get("ticket") or needs.get(SPARSITY)
    reference = masks_in(folder / "ticket.pt") if folder is not None else {}
    if method == "imp":
        return Start(network, reference, loss)
    if method == "dense":
        return Start(network, {}, loss)
    if method in ("rigl", "dpf"):
        return _dynamic(method, network, reference, options, loss)
    return _baseline(method, network, reference, data, training, options, loss)


def _source(data: Data, options: Mapping[str, Any], needs: Mapping[str, Path]) -> Graph:
    """The ticket to transform, over all weights of its rewind point.

    A ticket's file has zeros where it is pruned, and masks that are permuted want to know what was there.
    """
    from elastic_ir.training.studies.names import build

    network = build({"network": options["source"], "seed": options["seed"]})
    network.load_state_dict(torch.load(needs["source_rewind"] / "state.pt", weights_only=True))
    masks = masks_in(needs["source"] / "ticket.pt")
    return eir.trace(network.eval(), (data.example(network),), masks=masks)


def masks_in(path: Path) -> dict[str, Tensor]:
    """The masks of a ticket's file, as boolean tensors."""
    return {name: mask.bool() for name, mask in eir.load(path).masks().items()}


def transformed(source: Graph, target: nn.Module, data: Data, options: Mapping[str, Any]) -> Graph:
    """A source's ticket brought to the depth of a target network by the transformation that the options describe."""
    like = eir.trace(target.cpu().eval(), (data.example(target),))
    counts = [len(stage) for stage in like.stages]
    if len(counts) != len(source.stages):
        raise PlanError(f"the source has {len(source.stages)} stages and the target {len(counts)}")
    given = options.get("options", {})
    if sum(counts) >= sum(len(stage) for stage in source.stages):
        return eir.stretch(
            source, to_stages=counts, order=given.get("order", "append"), replicate=given.get("replicate")
        )
    return eir.squeeze(source, to_stages=counts, drop=given.get("drop", "tail"))


def _from_graph(graph: Graph, network: nn.Module, options: Mapping[str, Any], loss: Loss | None) -> Start:
    """The transformed ticket, or what section 4.1 compares it with: random masks for the copies or for all weights,
    and the weights of another initialization.
    """
    from elastic_ir.training.studies.names import build

    given = options.get("options", {})
    if given.get("new_weights"):
        network.load_state_dict(build({**options, "seed": options["seed"] + _OTHER}).state_dict())
    else:
        network.load_state_dict(graph.state_dict(masked=False))
    masks = {name: mask.bool() for name, mask in graph.masks().items()}
    if given.get("permute_masks"):
        masks = permuted(masks, set(masks), options["seed"])
    elif given.get("permute_copies"):
        masks = permuted(masks, copies_in(graph), options["seed"])
    return Start(network, masks, loss)


def copies_in(graph: Graph) -> set[str]:
    """The weights that are copies: all but the first that comes from one source weight."""
    seen: set[str] = set()
    found = set()
    for name, origin in graph.lineage().items():
        if origin in seen:
            found.add(name)
        seen.add(origin)
    return found


def permuted(masks: Mapping[str, Tensor], chosen: set[str], seed: int) -> dict[str, Tensor]:
    """Some of the masks with their entries in random places; each keeps its sparsity."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, mask in masks.items():
        if name in chosen:
            mask = mask.reshape(-1)[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)
        found[name] = mask
    return found


def _batches(
    network: nn.Module, data: Data, training: Training, options: Mapping[str, Any]
) -> list[tuple[Tensor, Tensor]]:
    """Batches for scores that need data, with an order of their own."""
    seed, dtype = options["seed"] + 10_007, weights_dtype(network)
    return list(BatchStream(data, training.batch_size, seed=seed, stop=_SCORED, dtype=dtype))


def _hybrid(
    graph: Graph,
    network: nn.Module,
    data: Data,
    training: Training,
    options: Mapping[str, Any],
    loss: Loss | None,
) -> Start:
    """The source's masks for the blocks that it has, SNIP's for the extra ones, at the transform's sparsity (4.1).

    A source that is deeper has all blocks; its hybrid is the transformed ticket.
    """
    from elastic_ir.tickets import sparsity
    from elastic_ir.training.pruning.baselines import prune

    masks = {name: mask.bool() for name, mask in graph.masks().items()}
    extra = copies_in(graph)
    kept = {name: mask for name, mask in masks.items() if name not in extra}
    network.load_state_dict(graph.state_dict(masked=False))
    if len(kept) == len(masks):
        return Start(network, masks, loss)
    found = prune(
        "hybrid", network, sparsity(masks), reference=kept, seed=options["seed"],
        batches=_batches(network, data, training, options), loss=loss or ClassEntropy(),
        leave_out=options.get("leave_out", ()),
    )  # fmt: skip
    scoring = snip_cost(forward_cost(network, data.example(network)).dense, _SCORED * training.batch_size)
    return Start(network, found, loss, scoring=scoring)


def _baseline(
    method: str, network: nn.Module, reference: dict[str, Tensor], data: Data, training: Training,
    options: Mapping[str, Any], loss: Loss | None,
) -> Start:  # fmt: skip
    from elastic_ir.tickets import sparsity
    from elastic_ir.training.pruning.baselines import prune
    from elastic_ir.training.studies.names import build

    if method == "synflow" and not data.first.is_floating_point():
        raise PlanError(
            f"synflow scores a network by sending ones through it as floats; the inputs of {data.name} are whole "
            f"numbers ({str(data.first.dtype)[6:]}), so that it cannot be compared here"
        )
    wanted = sparsity(reference) if reference else options["sparsity"]
    found = prune(
        method, network, None if method in ("random", "reinit") else wanted,
        reference=reference if method in ("random", "reinit") else None,
        seed=options["seed"], batches=_batches(network, data, training, options), loss=loss or ClassEntropy(),
        leave_out=options.get("leave_out", ()), input_shape=data.shape,
        factory=lambda: build({**options, "seed": options["seed"] + _OTHER}),
    )  # fmt: skip
    dense = forward_cost(network, data.example(network)).dense
    samples = _SCORED * training.batch_size
    costs = {
        "snip": snip_cost(dense, samples),
        "grasp": grasp_cost(dense, samples),
        "synflow": synflow_cost(dense),
    }
    return Start(network, found, loss, scoring=costs.get(method, 0.0))


def _dynamic(
    method: str,
    network: nn.Module,
    reference: dict[str, Tensor],
    options: Mapping[str, Any],
    loss: Loss | None,
) -> Start:
    """RigL from random masks, or DPF from the dense network, to the reference's sparsity."""
    from elastic_ir.tickets import sparsity
    from elastic_ir.training.pruning.dynamic_callbacks import DPFCallback, RigLCallback

    wanted = sparsity(reference) if reference else options["sparsity"]
    given = dict(options.get("options", {}))
    leave_out = options.get("leave_out", ())
    callback: RigLCallback | DPFCallback
    if method == "rigl":
        callback = RigLCallback(
            sparsity=wanted, seed=options["seed"], leave_out=leave_out, network="network", **given
        )
    else:
        callback = DPFCallback(wanted, leave_out=leave_out, network="network", **given)

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

    return Start(network, {}, loss, [callback], masks, step_cost=step_cost)
