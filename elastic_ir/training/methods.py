"""Methods: where a ticket's training starts, as each way of making one has it.

A method gives the weights at the rewind point, masks, and what has to happen while it trains. Those of the elastic
ticket paper (section 4): its transformations, and what they are compared with at equal sparsity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.errors import PlanError
from elastic_ir.graph import Graph
from elastic_ir.training.data import Data
from elastic_ir.training.loader import BatchStream
from elastic_ir.training.settings import Training
from elastic_ir.training.task import Loss


@dataclass
class Start:
    """What is trained from the rewind point on, and under which masks."""

    network: nn.Module
    masks: dict[str, Tensor]
    loss: Loss | None = None
    callbacks: Sequence[Any] = ()
    masks_at_end: Callable[[], dict[str, Tensor]] | None = None  #: where training changes them
    finish: Callable[[nn.Module], nn.Module] | None = None  #: what is done to the network when it is trained
    notes: dict[str, Any] = field(default_factory=dict)

    def final_masks(self) -> dict[str, Tensor]:
        return self.masks if self.masks_at_end is None else self.masks_at_end()

    def finished(self) -> nn.Module:
        return self.network if self.finish is None else self.finish(self.network)


def starting_point(
    network: nn.Module, data: Data, training: Training, options: Mapping[str, Any], needs: Mapping[str, Path], *,
    loss: Loss | None,
) -> Start:  # fmt: skip
    """The start of a method's training; ``network`` holds the target's weights at the rewind point.

    ``options["method"]`` names it. The folder ``needs["ticket"]`` holds the target's own ticket of the level that the
    sparsity is taken from, ``needs["source"]`` that of the network that is transformed. Raises PlanError.
    """
    method = options["method"]
    if method in ("transform", "hybrid"):
        graph = transformed(_source(data, options, needs), network, data, options)
        if method == "transform":
            return _from_graph(graph, network, options)
        return _hybrid(graph, network, data, training, options, loss)
    reference = masks_in(needs["ticket"] / "ticket.pt") if "ticket" in needs else {}
    if method == "imp":
        return Start(network, reference, loss)
    if method == "dense":
        return Start(network, {}, loss)
    return _baseline(method, network, reference, data, training, options, loss)


def _source(data: Data, options: Mapping[str, Any], needs: Mapping[str, Path]) -> Graph:
    """The ticket to transform, over all weights of its rewind point.

    A ticket's file has zeros where it is pruned, and masks that are permuted want to know what was there.
    """
    from elastic_ir.training.kinds import build

    network = build({"network": options["source"], "seed": options["seed"]})
    network.load_state_dict(torch.load(needs["source_rewind"] / "state.pt", weights_only=True))
    masks = masks_in(needs["source"] / "ticket.pt")
    return eir.trace(network.eval(), (torch.zeros(1, *data.shape),), masks=masks)


def masks_in(path: Path) -> dict[str, Tensor]:
    """The masks of a ticket's file, as boolean tensors."""
    return {name: mask.bool() for name, mask in eir.load(path).masks().items()}


def transformed(source: Graph, target: nn.Module, data: Data, options: Mapping[str, Any]) -> Graph:
    """A source's ticket brought to the depth of a target network by the transformation that the options describe."""
    like = eir.trace(target.cpu().eval(), (torch.zeros(1, *data.shape),))
    counts = [len(stage) for stage in like.stages]
    if len(counts) != len(source.stages):
        raise PlanError(f"the source has {len(source.stages)} stages and the target {len(counts)}")
    given = options.get("options", {})
    if sum(counts) >= sum(len(stage) for stage in source.stages):
        return eir.stretch(
            source, to_stages=counts, order=given.get("order", "append"), replicate=given.get("replicate")
        )
    return eir.squeeze(source, to_stages=counts, drop=given.get("drop", "tail"))


def _from_graph(graph: Graph, network: nn.Module, options: Mapping[str, Any]) -> Start:
    network.load_state_dict(graph.state_dict(masked=False))
    masks = {name: mask.bool() for name, mask in graph.masks().items()}
    if options.get("options", {}).get("permute_copies"):
        masks = permuted(masks, copies_in(graph), options["seed"])
    return Start(network, masks)


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
    data: Data, training: Training, options: Mapping[str, Any], count: int
) -> list[tuple[Tensor, Tensor]]:
    """Batches for scores that need data, with an order of their own."""
    return list(BatchStream(data, training.batch_size, seed=options["seed"] + 10_007, stop=count))


def _hybrid(
    graph: Graph,
    network: nn.Module,
    data: Data,
    training: Training,
    options: Mapping[str, Any],
    loss: Loss | None,
) -> Start:
    """The source's masks for the blocks that it has, SNIP's for the extra ones, at the transform's sparsity (4.1)."""
    from elastic_ir.tickets import sparsity
    from elastic_ir.training.baselines import prune

    masks = {name: mask.bool() for name, mask in graph.masks().items()}
    extra = copies_in(graph)
    kept = {name: mask for name, mask in masks.items() if name not in extra}
    network.load_state_dict(graph.state_dict(masked=False))
    found = prune(
        "hybrid", network, sparsity(masks), reference=kept, seed=options["seed"],
        batches=_batches(data, training, options, 8), loss=loss or nn.CrossEntropyLoss(),
    )  # fmt: skip
    return Start(network, found, loss)


def _baseline(
    method: str, network: nn.Module, reference: dict[str, Tensor], data: Data, training: Training,
    options: Mapping[str, Any], loss: Loss | None,
) -> Start:  # fmt: skip
    from elastic_ir.tickets import sparsity
    from elastic_ir.training.baselines import prune

    wanted = sparsity(reference) if reference else options["sparsity"]
    if method == "reinit":
        from elastic_ir.training.kinds import build

        fresh = build({**options, "seed": options["seed"] + 100_003})
        return Start(fresh, reference, loss)
    found = prune(
        method, network, wanted, reference=reference or None, seed=options["seed"],
        batches=_batches(data, training, options, 8), loss=loss or nn.CrossEntropyLoss(),
    )  # fmt: skip
    return Start(network, found, loss)
