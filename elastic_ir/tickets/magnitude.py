"""Masks by magnitude: which weights are pruned when the smallest of the whole network go first.

One threshold for all layers, as in iterative magnitude pruning of lottery tickets; the count is exact, and ties are
broken by position, so that one network always gives the same masks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from elastic_ir.errors import MaskError
from elastic_ir.tensors.smallest import Ranked, pruned_count, smallest_pruned
from elastic_ir.tensors.torch_bridge import TorchData, mask_to_torch
from elastic_ir.tensors.weights import looks_prunable
from elastic_ir.tickets.masked import places
from elastic_ir.tickets.parametrizations import layer_weights


def sparsity(masks: Mapping[str, Tensor]) -> float:
    """The share of zeros in masks of any dtype (0.9 = 90 % pruned); 0 where there are no masks."""
    total = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.count_nonzero()) for mask in masks.values())
    return (total - kept) / total if total else 0.0


def magnitude_masks(
    source: nn.Module | Mapping[str, Tensor], sparsity: float, leave_out: Collection[str] | str = ()
) -> dict[str, Tensor]:
    """Boolean masks that prune the given share of a network's prunable weights, the smallest first.

    ``source`` is a module or a state dict; prunable are the weights of convolutions and linear layers, and in a state
    dict what looks like one by name and shape. ``leave_out`` names weights, or modules with all below them, that get no
    mask and do not count. Exactly ``round(sparsity * weights)`` are pruned; of equal ones the earlier go first.

    Raises MaskError: a sparsity outside 0 to 1, nothing to prune, a name to leave out that is not there, a NaN, or no
    values (meta device).

    >>> masks = magnitude_masks({"conv.weight": torch.tensor([[0.1, -3.0], [2.0, -0.2]])}, sparsity=0.5)
    >>> masks["conv.weight"].int().tolist()
    [[0, 1], [1, 0]]
    """
    weights = prunable_weights(source, leave_out)
    for name, weight in weights.items():
        if weight.is_meta:
            raise MaskError(f"{name!r} is on the meta device and has no values; load the weights first")
    pruned = pruned_count(sum(weight.numel() for weight in weights.values()), sparsity)
    masks = smallest_pruned([Ranked(name, TorchData(item.cpu())) for name, item in weights.items()], pruned)
    return {name: mask_to_torch(masks[name]).to(weight.device) for name, weight in weights.items()}


def prunable_weights(
    source: nn.Module | Mapping[str, Tensor], leave_out: Collection[str] | str = ()
) -> dict[str, Tensor]:
    """The weights that masks are made for, by plain name in the network's order; see :func:`magnitude_masks`.

    Raises MaskError: nothing to prune, or a name to leave out that is not there.
    """
    weights = _prunable(source)
    for item in [leave_out] if isinstance(leave_out, str) else leave_out:
        below = [name for name in weights if name == item or name.startswith(f"{item}.")]
        if not below:
            raise MaskError(
                f"{item!r}, to be left out, is neither a prunable weight nor a module that contains one"
            )
        for name in below:
            del weights[name]
    if not weights:
        raise MaskError("the network has no weight of a convolution or linear layer to prune")
    return weights


def masks_from_scores(scores: Mapping[str, Tensor], pruned: int) -> dict[str, Tensor]:
    """Boolean masks that prune the ``pruned`` lowest of all scores together; of equal ones the earlier go first.

    Raises MaskError where a score is NaN, or when there are fewer weights than are to be pruned.
    """
    for name, score in scores.items():
        if score.isnan().any():
            raise MaskError(f"the scores of {name!r} hold NaN, which has no rank")
    flat = torch.cat([score.reshape(-1) for score in scores.values()])
    if not 0 <= pruned <= flat.numel():
        raise MaskError(f"{pruned:,} of {flat.numel():,} weights cannot be pruned")
    gone = torch.zeros_like(flat, dtype=torch.bool)
    if pruned:
        threshold = flat.kthvalue(pruned).values
        gone = flat < threshold
        ties = (flat == threshold).nonzero().reshape(-1)
        gone[ties[: pruned - int(gone.sum())]] = True
    parts = torch.split(gone, [score.numel() for score in scores.values()])
    return {
        name: ~part.reshape(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def _prunable(source: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The prunable weights by plain name; a tied weight once, under its first name."""
    if not isinstance(source, nn.Module):
        tensors = {name: tensor for name, tensor in source.items() if isinstance(tensor, Tensor)}
        return {name: tensor for name, tensor in tensors.items() if looks_prunable(name, tuple(tensor.shape))}
    prunable = {
        (weight.owner, weight.attribute)
        for module in source.modules()
        for weight in layer_weights(module)
        if weight.prunable
    }
    found: dict[int, tuple[str, Tensor]] = {}
    for name, owner, attribute, parameter in places(source):
        if (owner, attribute) in prunable:
            found.setdefault(id(parameter), (name, parameter))
    return dict(found.values())
