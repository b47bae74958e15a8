"""How a total sparsity is spread over layers before anything is trained: uniform, Erdos-Renyi, Erdos-Renyi-Kernel.

They determine how many weights a layer keeps; which ones is random (:func:`random_masks`; :func:`rigl_masks` as RigL
has it). The layers' counts add up to the total exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from elastic_ir.choices import check_choice
from elastic_ir.errors import MaskError
from elastic_ir.tensors.smallest import pruned_count

if TYPE_CHECKING:
    from torch import Tensor, nn

Distribution: TypeAlias = Literal["uniform", "erdos-renyi", "erk"]
#: What a layer's density is proportional to, given its weight's shape (outputs, inputs, kernel).
DISTRIBUTIONS: dict[Distribution, Callable[[Sequence[int]], float]] = {
    "uniform": lambda shape: 1.0,
    "erdos-renyi": lambda shape: (shape[0] + shape[1]) / (shape[0] * shape[1]),
    "erk": lambda shape: sum(shape) / math.prod(shape),
}


def densities(
    shapes: Mapping[str, Sequence[int]],
    sparsity: float,
    distribution: Distribution = "erk",
    *,
    dense: Collection[str] | str = (),
) -> dict[str, float]:
    """The share of weights that each layer keeps, between 0 and 1, for weights of the given shapes.

    - ``uniform``: the same for all.
    - ``erdos-renyi``: proportional to ``(outputs + inputs) / (outputs * inputs)`` (Mocanu et al. 2018, SET).
    - ``erk``: to ``sum(shape) / product(shape)``, the kernel's extents included (Evci et al. 2020, RigL, section 3).

    A layer that would exceed 1 stays dense, and the others give what it takes too much: as in RigL's code, which makes
    the layer of the largest share dense and starts again until all fit. A grouped convolution counts the inputs of a
    group, as its weight's shape does.

    ``dense`` names weights that keep all (or modules, with all below them); the others give what these take, so that
    the total is the same.

    Raises MaskError: an unknown distribution, a sparsity outside 0 to 1, nothing to spread over, a shape without
    inputs, a name in ``dense`` that does not exist, or a sparsity that is out of reach beside the dense ones.
    """
    check_choice("distribution", distribution, Distribution, MaskError)
    if not shapes:
        raise MaskError("there are no weights to spread a sparsity over")
    for name, shape in shapes.items():
        if len(shape) < 2 or not all(shape):
            raise MaskError(
                f"{name!r} has shape {list(shape)}; a sparsity is spread over weights of outputs and inputs"
            )
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    share = {name: DISTRIBUTIONS[distribution](shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    kept = total - pruned_count(total, sparsity)
    full = _named(shapes, dense)
    if (most := sum(sizes[name] for name in full)) > kept:
        raise MaskError(
            f"a sparsity of {sparsity:g} leaves {kept:,} of {total:,} weights, fewer than the {most:,} of "
            f"{', '.join(sorted(full))}, to be kept dense"
        )
    while True:
        free = [name for name in shapes if name not in full]
        if not free:
            return dict.fromkeys(shapes, 1.0)
        left = kept - sum(sizes[name] for name in full)
        scale = left / sum(share[name] * sizes[name] for name in free)
        largest = max(share[name] for name in free)
        if scale * largest <= 1:
            return {name: 1.0 if name in full else scale * share[name] for name in shapes}
        full |= {name for name in free if share[name] == largest}


def _named(shapes: Mapping[str, Sequence[int]], dense: Collection[str] | str) -> set[str]:
    """The weights that names stand for: their own, or those of modules above them."""
    found: set[str] = set()
    for item in [dense] if isinstance(dense, str) else dense:
        below = {name for name in shapes if name == item or name.startswith(f"{item}.")}
        if not below:
            raise MaskError(
                f"{item!r}, to be kept dense, is neither a prunable weight nor a module that holds one"
            )
        found |= below
    return found


def kept_counts(
    shapes: Mapping[str, Sequence[int]],
    sparsity: float,
    distribution: Distribution = "erk",
    *,
    dense: Collection[str] | str = (),
) -> dict[str, int]:
    """How many weights each layer keeps: :func:`densities` in whole numbers that add up to the total exactly.

    Largest remainders are rounded up, ties in favour of earlier layers.
    """
    shares = densities(shapes, sparsity, distribution, dense=dense)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    exact = {name: shares[name] * sizes[name] for name in shapes}
    # a hair is added, or 36.0 that came out as 35.999999999 would be a layer's largest remainder
    counts = {name: min(sizes[name], math.floor(exact[name] + 1e-9)) for name in shapes}
    missing = total - pruned_count(total, sparsity) - sum(counts.values())
    order = sorted(shapes, key=lambda name: counts[name] - exact[name])
    for name in [name for name in order if counts[name] < sizes[name]][:missing]:
        counts[name] += 1
    return counts


def random_masks(
    source: nn.Module | Mapping[str, Tensor],
    sparsity: float,
    distribution: Distribution = "erk",
    *,
    seed: int = 0,
    leave_out: Collection[str] | str = (),
    dense: Collection[str] | str = (),
) -> dict[str, Tensor]:
    """Boolean masks drawn at random within each layer; ``source`` and ``leave_out`` as for ``magnitude_masks``.

    Layers named in ``dense`` have masks of ones and count in the total, unlike those that are left out.

    >>> from torch import nn
    >>> masks = random_masks(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4)), 0.75, "uniform")
    >>> {name: int(mask.sum()) for name, mask in masks.items()}
    {'0.weight': 5, '1.weight': 5}
    """
    import torch

    from elastic_ir.tickets.magnitude import prunable_weights

    weights = prunable_weights(source, leave_out)
    counts = kept_counts(
        {name: tuple(weight.shape) for name, weight in weights.items()}, sparsity, distribution, dense=dense
    )
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, weight in weights.items():
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[torch.randperm(weight.numel(), generator=generator)[: counts[name]]] = True
        masks[name] = mask.reshape(weight.shape).to(weight.device)
    return masks


def rigl_masks(
    source: nn.Module | Mapping[str, Tensor],
    sparsity: float,
    distribution: Distribution = "erk",
    *,
    seed: int = 0,
    leave_out: Collection[str] | str = (),
) -> dict[str, Tensor]:
    """The random masks that RigL starts from: under ``uniform`` the network's first layer stays dense.

    Evci et al. 2020, section 3: sparsifying it costs much accuracy and saves next to nothing. The other layers are all
    a little sparser for it, so that the total is met, where the paper lets it fall short. First is what the network
    registers first; where that is left out, nothing else takes its place. The arguments are those of
    :func:`random_masks`.

    Raises MaskError, for a sparsity that is out of reach beside the first layer, too.
    """
    from elastic_ir.tickets.magnitude import prunable_weights

    first = next(iter(prunable_weights(source)))
    kept = [first] if distribution == "uniform" and first in prunable_weights(source, leave_out) else []
    return random_masks(source, sparsity, distribution, seed=seed, leave_out=leave_out, dense=kept)
