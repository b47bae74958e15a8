"""The baselines that tickets are compared with: one entry point, :func:`prune`, over a table of methods by name.

All start from the weights that the module holds (the rewind point) and answer with masks over its prunable weights,
of an exact number of zeros. The methods are those of figures 3 to 7 of Chen et al., *The Elastic Lottery Ticket
Hypothesis* (NeurIPS 2021), and SynFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elastic_ir.analysis.pruning.scores import Batch, Loss, grasp_scores, snip_scores, synflow_masks
from elastic_ir.errors import MaskError
from elastic_ir.tensors.torch_bridge import unwrapped
from elastic_ir.tickets.magnitude import magnitude_masks, masks_from_scores, prunable_weights, pruned_count
from elastic_ir.tickets.masked import masked_weights, plain_name


@dataclass(frozen=True)
class Request:
    """What a method may use; see :func:`prune`."""

    module: nn.Module
    sparsity: float | None
    batches: Sequence[Batch] | None
    loss: Loss | None
    reference: Mapping[str, Any] | None
    factory: Callable[[], nn.Module] | None
    input_shape: Sequence[int] | None
    seed: int
    leave_out: Collection[str] | str
    iterations: int
    temperature: float


@dataclass(frozen=True)
class Method:
    """A baseline: how it makes masks, and which parts of a request it cannot do without."""

    masks: Callable[[Request], dict[str, Tensor]]
    needs: tuple[str, ...]


#: The methods by name; others may be added.
METHODS: dict[str, Method] = {}


def prune(
    method: str,
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
) -> dict[str, Tensor]:
    """Boolean masks of a module's prunable weights by one of :data:`METHODS`, True where a weight is kept.

    ``sparsity`` is the wanted share of zeros over all prunable weights that are not left out, met to the weight.
    ``batches`` is a finite iterable of (inputs, targets), ``loss(module(inputs), targets)`` a mean over the batch;
    ``reference`` holds masks of a ticket; ``input_shape`` is one input's, without the batch (else it is read off the
    first batch). The module stays as it is, with one exception: ``reinit`` writes new weights into it.

    - ``magnitude``: the smallest go, in one shot.
    - ``random``: each of the reference's masks, permuted within its layer.
    - ``reinit``: the reference's masks; the weights are drawn anew, by ``factory()`` or layer by layer.
    - ``snip``, ``grasp``, ``synflow``: see :mod:`elastic_ir.analysis.pruning.scores`.
    - ``hybrid``: the reference's masks where it has one, and SNIP for the other weights, so that the total is met.

    For ``random`` and ``reinit`` the reference sets the sparsity; one that is given as well must agree with it.

    Raises MaskError: an unknown method, something that it needs and was not given, or masks that do not fit.
    """
    if method not in METHODS:
        raise MaskError(f"there is no pruning method {method!r}; there are {', '.join(METHODS)}")
    listed = None if batches is None else list(batches)
    if input_shape is None and listed and isinstance(listed[0][0], Tensor):
        input_shape = tuple(listed[0][0].shape[1:])
    request = Request(
        module,
        sparsity,
        listed,
        loss,
        reference,
        factory,
        input_shape,
        seed,
        leave_out,
        iterations,
        temperature,
    )
    for need in METHODS[method].needs:
        if getattr(request, need) is None:
            raise MaskError(f"pruning by {method!r} needs {need!r}: {_WHAT[need]}")
    return METHODS[method].masks(request)


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
        for path, layer in network.named_modules():
            # checked first, so that a refusal leaves the module whole
            if (
                layer._parameters
                and any(p is not None for p in layer._parameters.values())
                and not _reset_of(layer)
            ):
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


def _magnitude(request: Request) -> dict[str, Tensor]:
    return magnitude_masks(request.module, _sparsity(request), request.leave_out)


def _random(request: Request) -> dict[str, Tensor]:
    dice = torch.Generator().manual_seed(request.seed)
    permuted = {}
    for name, mask in _reference(request, total=True).items():
        order = torch.randperm(mask.numel(), generator=dice).to(mask.device)
        permuted[name] = mask.reshape(-1)[order].reshape(mask.shape)
    return permuted


def _reinit(request: Request) -> dict[str, Tensor]:
    masks = _reference(request, total=True)
    reinitialise(request.module, request.factory, seed=request.seed)
    return masks


def _snip(request: Request) -> dict[str, Tensor]:
    assert request.batches is not None and request.loss is not None
    scores = snip_scores(request.module, request.batches, request.loss, leave_out=request.leave_out)
    return _lowest(scores, request)


def _grasp(request: Request) -> dict[str, Tensor]:
    assert request.batches is not None and request.loss is not None
    scores = grasp_scores(
        request.module,
        request.batches,
        request.loss,
        temperature=request.temperature,
        leave_out=request.leave_out,
    )
    return _lowest(scores, request)


def _synflow(request: Request) -> dict[str, Tensor]:
    assert request.input_shape is not None
    return synflow_masks(
        request.module,
        _sparsity(request),
        request.input_shape,
        iterations=request.iterations,
        leave_out=request.leave_out,
    )


def _hybrid(request: Request) -> dict[str, Tensor]:
    assert request.batches is not None and request.loss is not None
    given = _reference(request, total=False)
    weights = prunable_weights(request.module, request.leave_out)
    extra = [name for name in weights if name not in given]
    if not extra:
        raise MaskError(
            "the reference has a mask for every weight, so that none is left for SNIP; use it as it is"
        )
    total = sum(weight.numel() for weight in weights.values())
    pruned = pruned_count(total, _sparsity(request)) - sum(int((~mask).sum()) for mask in given.values())
    free = sum(weights[name].numel() for name in extra)
    if not 0 <= pruned <= free:
        raise MaskError(
            f"a sparsity of {request.sparsity} would prune {pruned:,} of the {free:,} weights without a given mask; "
            f"with these masks it can be {(total - free - _kept(given)) / total:.4f} "
            f"to {(total - _kept(given)) / total:.4f}"
        )
    scores = snip_scores(
        request.module, request.batches, request.loss, masks=given, leave_out=request.leave_out
    )
    chosen = masks_from_scores({name: scores[name] for name in extra}, pruned)
    return {name: given[name] if name in given else chosen[name] for name in weights}


def _kept(masks: Mapping[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def _sparsity(request: Request) -> float:
    assert request.sparsity is not None
    return request.sparsity


def _lowest(scores: Mapping[str, Tensor], request: Request) -> dict[str, Tensor]:
    return masks_from_scores(
        scores, pruned_count(sum(score.numel() for score in scores.values()), _sparsity(request))
    )


def _reference(request: Request, total: bool) -> dict[str, Tensor]:
    """The given masks by plain name; ``total`` checks that they have the wanted sparsity, if one was given."""
    assert request.reference is not None
    left = prunable_weights(request.module, request.leave_out)
    first = {
        id(parameter): name for name, parameter in left.items()
    }  # a tied weight's name may be another one
    known = {
        first.get(id(weight.parameter), weight.name): weight.keep
        for weight in masked_weights(request.module, request.reference)
    }
    if request.leave_out:
        known = {name: mask for name, mask in known.items() if name in left}
    elif not total and (strange := [name for name in known if name not in left]):
        raise MaskError(
            f"{strange[0]!r} has a mask but is no prunable weight, so that it does not count in the total"
        )
    if not known:
        raise MaskError("the reference has no mask of a weight that is to be pruned")
    size = sum(mask.numel() for mask in known.values())
    if total and request.sparsity is not None:
        zeros = size - _kept(known)
        if zeros != pruned_count(size, request.sparsity):
            raise MaskError(
                f"the reference masks have a sparsity of {zeros / size:.4f}, not {request.sparsity}; "
                "leave the sparsity out to take theirs"
            )
    return known


METHODS.update(
    magnitude=Method(_magnitude, ("sparsity",)),
    random=Method(_random, ("reference",)),
    reinit=Method(_reinit, ("reference",)),
    snip=Method(_snip, ("sparsity", "batches", "loss")),
    grasp=Method(_grasp, ("sparsity", "batches", "loss")),
    synflow=Method(_synflow, ("sparsity", "input_shape")),
    hybrid=Method(_hybrid, ("sparsity", "batches", "loss", "reference")),
)
