"""The baselines that tickets are compared with: one entry point, :func:`prune`, over a table of methods by name.

All start from the weights that the module holds (the rewind point) and return masks over its prunable weights,
of an exact number of zeros. The methods are those of figures 3 to 7 of Chen et al., *The Elastic Lottery Ticket
Hypothesis* (NeurIPS 2021), and SynFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from elastic_ir.analysis.pruning.scores import Batch, Loss, grasp_scores, snip_scores, synflow_masks
from elastic_ir.choices import check_choice
from elastic_ir.errors import MaskError
from elastic_ir.tensors.smallest import pruned_count
from elastic_ir.tensors.torch_bridge import unwrapped
from elastic_ir.tickets.magnitude import magnitude_masks, masks_from_scores, prunable_weights
from elastic_ir.tickets.masked import masked_weights, plain_name

Masks = dict[str, Tensor]
Baseline: TypeAlias = Literal["magnitude", "random", "reinit", "snip", "grasp", "synflow", "hybrid"]


@dataclass(frozen=True)
class Method:
    """A baseline: how it makes masks, and which arguments of :func:`prune` it cannot do without.

    ``masks`` is called with the module and all arguments of :func:`prune` by name; it takes those that it uses.
    """

    masks: Callable[..., Masks]
    needs: tuple[str, ...]


def prune(
    method: Baseline,
    module: nn.Module,
    sparsity: float | None = None,
    *,
    batches: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    reference: Mapping[str, Any] | None = None,
    factory: Callable[[], nn.Module] | None = None,
    input_shape: Sequence[int] | None = None,
    seed: int = 0,
    leave_out: Collection[str] | str = (),
    iterations: int = 100,
    temperature: float = 200.0,
) -> Masks:
    """Boolean masks of a module's prunable weights by one of :data:`METHODS`, True where a weight is kept.

    ``sparsity`` is the wanted share of zeros over all prunable weights that are not left out, met to the weight.
    ``batches`` is a finite iterable of (inputs, targets), ``loss(module(inputs), targets)`` a mean over the batch;
    ``reference`` holds masks of a ticket; ``input_shape`` is one input's, without the batch (else it is read off the
    first batch). The module is not changed, except by ``reinit``, which writes new weights into it.

    - ``magnitude``: the smallest go, in one shot.
    - ``random``: each of the reference's masks, permuted within its layer.
    - ``reinit``: the reference's masks; the weights are drawn anew, by ``factory()`` or layer by layer.
    - ``snip``, ``grasp``, ``synflow``: see :mod:`elastic_ir.analysis.pruning.scores`.
    - ``hybrid``: the reference's masks where it has one, and SNIP for the other weights, so that the total is met.

    For ``random`` and ``reinit`` the reference sets the sparsity; one that is given as well must agree with it.

    Raises MaskError: an unknown method, something that it needs and was not given, or masks that do not fit.
    """
    check_choice("method", method, Baseline, MaskError)
    listed = None if batches is None else list(batches)
    if input_shape is None and listed and isinstance(listed[0][0], Tensor):
        input_shape = tuple(listed[0][0].shape[1:])
    given = {
        "sparsity": sparsity, "batches": listed, "loss": loss, "reference": reference, "factory": factory,
        "input_shape": input_shape, "seed": seed, "leave_out": leave_out, "iterations": iterations,
        "temperature": temperature,
    }  # fmt: skip
    for need in METHODS[method].needs:
        if given[need] is None:
            raise MaskError(f"pruning by {method!r} needs {need!r}: {_WHAT[need]}")
    return METHODS[method].masks(module, **given)


_WHAT = {
    "sparsity": "the share of weights to prune, such as 0.9",
    "batches": "an iterable of (inputs, targets)",
    "loss": "a function of the network's outputs and the targets",
    "reference": "masks of a ticket by weight name",
    "input_shape": "the shape of one input without the batch, or batches to read it off",
}


def reinitialise(module: nn.Module, factory: Callable[[], nn.Module] | None = None, *, seed: int = 0) -> None:
    """Draw a module's weights anew, in place; buffers (running statistics) start again too.

    With ``factory`` they are those of a network that it builds: its own initialization, whatever that is. Without one
    every layer's ``reset_parameters`` is called, which is PyTorch's default and not what a network may have done after.
    The global random state stays as it was.

    Raises MaskError when the built network has other names or shapes, or a parameter's module cannot reset it.
    """
    network = unwrapped(module)
    devices = sorted({p.device.index for p in network.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        if factory is not None:
            _load(network, factory())
            return
        for path, layer in network.named_modules():  # checked first: a refusal leaves the module whole
            if any(True for _ in layer.parameters(recurse=False)) and not _reset_of(layer):
                where = plain_name(path) or "the network itself"
                raise MaskError(
                    f"{where} ({type(layer).__name__}) has parameters and no reset_parameters(); "
                    "give a factory that builds the network anew"
                )
        for layer in reversed(list(network.modules())):  # as they were built: parents after their children
            if reset := _reset_of(layer):
                reset()


def _reset_of(layer: nn.Module) -> Callable[[], None] | None:
    for name in ("reset_parameters", "_reset_parameters"):  # the second is MultiheadAttention's
        found = getattr(layer, name, None)
        if callable(found):
            return found  # type: ignore[no-any-return]
    return None


def _load(network: nn.Module, fresh: nn.Module) -> None:
    ours = {plain_name(name): tensor for name, tensor in network.state_dict().items()}
    theirs = {plain_name(name): tensor for name, tensor in unwrapped(fresh).state_dict().items()}
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            raise MaskError(f"the factory builds another network: {name!r} is not in both with one shape")
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(theirs[name])


def _magnitude(module: nn.Module, sparsity: float, leave_out: Collection[str] | str, **_: Any) -> Masks:
    return magnitude_masks(module, sparsity, leave_out)


def _random(module: nn.Module, seed: int, **given: Any) -> Masks:
    return permuted(_reference_of_total(module, **given), seed)


def permuted(masks: Masks, seed: int, chosen: Collection[str] | None = None) -> Masks:
    """Masks with the entries of all, or of those of the chosen names, in random places; each keeps its sparsity."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, mask in masks.items():
        if chosen is None or name in chosen:
            order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
            mask = mask.reshape(-1)[order].reshape(mask.shape)
        found[name] = mask
    return found


def _reinit(module: nn.Module, factory: Callable[[], nn.Module] | None, seed: int, **given: Any) -> Masks:
    masks = _reference_of_total(module, **given)
    reinitialise(module, factory, seed=seed)
    return masks


def _snip(
    module: nn.Module, sparsity: float, batches: Sequence[Batch], loss: Loss, leave_out: Collection[str] | str,
    **_: Any,
) -> Masks:  # fmt: skip
    return _without_lowest(snip_scores(module, batches, loss, leave_out=leave_out), sparsity)


def _grasp(
    module: nn.Module, sparsity: float, batches: Sequence[Batch], loss: Loss, leave_out: Collection[str] | str,
    temperature: float, **_: Any,
) -> Masks:  # fmt: skip
    scores = grasp_scores(module, batches, loss, temperature=temperature, leave_out=leave_out)
    return _without_lowest(scores, sparsity)


def _synflow(
    module: nn.Module, sparsity: float, input_shape: Sequence[int], leave_out: Collection[str] | str,
    iterations: int, **_: Any,
) -> Masks:  # fmt: skip
    return synflow_masks(module, sparsity, input_shape, iterations=iterations, leave_out=leave_out)


def _hybrid(
    module: nn.Module, sparsity: float, batches: Sequence[Batch], loss: Loss, reference: Mapping[str, Any],
    leave_out: Collection[str] | str, **_: Any,
) -> Masks:  # fmt: skip
    weights = prunable_weights(module, leave_out)
    given = _reference(module, reference, leave_out)
    if not leave_out and (strange := [name for name in given if name not in weights]):
        raise MaskError(
            f"{strange[0]!r} has a mask but is not a prunable weight, so that it does not count in the total"
        )
    extra = [name for name in weights if name not in given]
    if not extra:
        raise MaskError(
            "the reference has a mask for every weight, so that none is left for SNIP; use it as it is"
        )
    total = sum(weight.numel() for weight in weights.values())
    pruned = pruned_count(total, sparsity) - sum(int((~mask).sum()) for mask in given.values())
    free = sum(weights[name].numel() for name in extra)
    if not 0 <= pruned <= free:
        kept = _kept(given)
        raise MaskError(
            f"a sparsity of {sparsity} would prune {pruned:,} of the {free:,} weights without a given mask; "
            f"with these masks it can be {(total - free - kept) / total:.4f} to {(total - kept) / total:.4f}"
        )
    scores = snip_scores(module, batches, loss, masks=given, leave_out=leave_out)
    chosen = masks_from_scores({name: scores[name] for name in extra}, pruned)
    return {name: given[name] if name in given else chosen[name] for name in weights}


def _kept(masks: Masks) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def _without_lowest(scores: Masks, sparsity: float) -> Masks:
    return masks_from_scores(scores, pruned_count(sum(score.numel() for score in scores.values()), sparsity))


def _reference(module: nn.Module, reference: Mapping[str, Any], leave_out: Collection[str] | str) -> Masks:
    """The given masks by plain name, but for those of weights that are left out."""
    left = prunable_weights(module, leave_out)
    # a tied weight may have its mask under another of its names
    first = {id(parameter): name for name, parameter in left.items()}
    known = {
        first.get(id(weight.parameter), weight.name): weight.keep
        for weight in masked_weights(module, reference)
    }
    if leave_out:
        known = {name: mask for name, mask in known.items() if name in left}
    if not known:
        raise MaskError("the reference has no mask of a weight that is to be pruned")
    return known


def _reference_of_total(
    module: nn.Module, sparsity: float | None, reference: Mapping[str, Any], leave_out: Collection[str] | str,
    **_: Any,
) -> Masks:  # fmt: skip
    """The given masks by plain name; MaskError where a sparsity is given and they have another one."""
    known = _reference(module, reference, leave_out)
    size = sum(mask.numel() for mask in known.values())
    zeros = size - _kept(known)
    if sparsity is not None and zeros != pruned_count(size, sparsity):
        raise MaskError(
            f"the reference masks have a sparsity of {zeros / size:.4f}, not {sparsity}; "
            "leave the sparsity out to take theirs"
        )
    return known


#: The methods by name; others may be added.
METHODS: dict[Baseline, Method] = {
    "magnitude": Method(_magnitude, ("sparsity",)),
    "random": Method(_random, ("reference",)),
    "reinit": Method(_reinit, ("reference",)),
    "snip": Method(_snip, ("sparsity", "batches", "loss")),
    "grasp": Method(_grasp, ("sparsity", "batches", "loss")),
    "synflow": Method(_synflow, ("sparsity", "input_shape")),
    "hybrid": Method(_hybrid, ("sparsity", "batches", "loss", "reference")),
}
