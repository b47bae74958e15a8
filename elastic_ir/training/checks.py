"""What can be known before a training is paid for: whether network, data and settings fit each other."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from elastic_ir.errors import PlanError, first_line
from elastic_ir.tensors.torch_bridge import dtype_name
from elastic_ir.tickets.magnitude import prunable_weights
from elastic_ir.training.data import Data, check_splits
from elastic_ir.training.items import extents, weights_dtype
from elastic_ir.training.loader import batches_of
from elastic_ir.training.losses import IGNORED, ClassEntropy, first_of
from elastic_ir.training.settings import Pruning, Training
from elastic_ir.training.task import Loss

#: A layer that a forward pass has begun: its path, and the shape of what it was given.
_Begun = tuple[str, nn.Module, tuple[int, ...]]


def check_search(
    network: nn.Module, data: Data, training: Training, pruning: Pruning, loss: Loss | None
) -> None:
    """Check that a search can be done; raises what :func:`check_fit` does.

    PlanError also for a rewind step that the training does not have, MaskError for a name to leave out that does not
    exist.
    """
    if pruning.rewind >= training.steps:
        raise PlanError(
            f"a training of {training.steps} steps cannot be rewound to step {pruning.rewind}; "
            "rewind to an earlier step"
        )
    prunable_weights(network, pruning.leave_out)
    check_fit(network, data, training, loss)


def check_fit(network: nn.Module, data: Data, training: Training, loss: Loss | None) -> None:
    """Check that a copy of the network takes a batch of the images, and has an output for every class.

    A loss of the user's own may take any labels; PlanError only where torch would compare each output with the target
    of every other item. Raises SourceError where images and labels do not fit each other, PlanError
    where the network does not fit them.
    """
    check_splits(data)
    shape = data.shape
    if training.augment and not data.augmented and (reason := _not_augmented(data)):
        raise PlanError(f"augment moves and mirrors images, and {reason}; set augment: false")
    # rows of numbers, tokens and volumes have no such layout and are left alone; pictures may lack an axis
    flat = len(shape) == 2 and data.first.is_floating_point()
    if (flat and training.channels_last) or (len(shape) != 3 and training.augment):
        what = "channels_last: false" if not training.augment else "channels_last: false and augment: false"
        like = f"1x{extents(shape)}" if len(shape) == 2 else "channels x height x width"
        raise PlanError(
            f"an image of {data.name} is {extents(shape)}, without an axis of channels; make each {like} "
            f"(images[:, None] for grey ones), or set {what}"
        )
    inputs, targets = _two(network, data)
    given = _forward(network, data, inputs)
    try:
        outputs: Any = first_of(given)
    except (KeyError, IndexError, TypeError):
        outputs = given
    if not isinstance(outputs, Tensor) or (outputs.ndim < 2 and loss is None):
        what = extents(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise PlanError(
            f"{type(network).__name__} returns {what} for a batch of {data.name}; expected a tensor, "
            "batch x classes"
        )
    if loss is None:
        _check_labels(type(network).__name__, data, outputs, targets)
    else:
        _check_loss(type(network).__name__, data, given, outputs, targets, loss)


def _two(network: nn.Module, data: Data) -> tuple[Tensor, Tensor]:
    """The first two items of the training split (one, where it has no more), as the network and a loss take them."""
    return next(iter(batches_of(data.train, 2, "cpu", weights_dtype(network))))


def _not_augmented(data: Data) -> str:
    """Why the images of some data cannot be moved and mirrored; empty where they can."""
    _, target = next(iter(batches_of(data.train, 1, "cpu")))
    if target.ndim > 2 and target.shape[-2:] == data.shape[-2:]:
        return f"the targets of {data.name} are {extents(target.shape[1:])} each, which would stay where they are"
    if len(data.shape) == 3 and not data.first.is_floating_point() and data.first.dtype != torch.uint8:
        return f"the inputs of {data.name} are {dtype_name(data.first.dtype)}, which are not images"
    return ""


def _check_loss(name: str, data: Data, given: Any, outputs: Tensor, targets: Tensor, loss: Loss) -> None:
    """PlanError where a loss would spread outputs and targets of other shapes over each other, as torch warns then."""
    with warnings.catch_warnings(record=True) as caught, torch.random.fork_rng():
        warnings.simplefilter("always")
        try:
            copy.deepcopy(loss)(given, targets.to(outputs.device))
        except Exception:  # the loss's own error, which a training will report
            return
    if any("different to the input size" in str(one.message) for one in caught):
        kind = type(loss).__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", "the loss")
        raise PlanError(
            f"the outputs of {name} for a batch of two of {data.name} are {extents(outputs.shape)}, its targets "
            f"{extents(targets.shape)}: {kind} would compare every output with every target; give them one shape "
            "(targets[:, None], or squeeze the output)"
        )


def _check_labels(name: str, data: Data, outputs: Tensor, targets: Tensor) -> None:
    """Whether cross-entropy takes the targets: numbers of classes that there are outputs for, or shares of each."""
    count, shares = outputs.shape[1], targets.is_floating_point()
    if shares and not (targets.shape == outputs.shape and count > 1 and _sum_to_one(data, targets)):
        raise PlanError(
            f"the targets of {data.name} are {dtype_name(targets.dtype)}, {extents(targets.shape)} for a batch of two, "
            "which are neither numbers of classes nor shares of them that add up to 1, one for each of the outputs of "
            f"{name} ({extents(outputs.shape)}); name a loss that takes them (loss: torch.nn:MSELoss), or give classes "
            "as int64"
        )
    for split, role in () if shares else ((data.train, "training"), (data.test, "test")):
        low, high = 0, data.classes - 1
        if split.labels is not None:
            labels = split.labels[split.labels != IGNORED]
            if not len(labels):
                continue
            low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= count:
            raise PlanError(
                f"the {role} labels of {data.name} go from {low} to {high}, and {name} has {count} outputs, for "
                f"labels 0 to {count - 1}; give it as many as there are classes, and count those from 0"
            )
    try:
        ClassEntropy()(outputs, targets.to(outputs.device))
    except (RuntimeError, ValueError, IndexError) as error:
        raise PlanError(
            f"the outputs of {name} for a batch of {data.name} are {extents(outputs.shape)}, its labels "
            f"{extents(targets.shape)} ({first_line(error)}); expected batch x classes and batch"
        ) from error


def _sum_to_one(data: Data, few: Tensor) -> bool:
    """Whether targets are shares of classes; of a dataset that is read, the first few."""
    targets = few if data.train.labels is None else data.train.labels
    return bool((targets >= 0).all()) and bool(((targets.sum(1) - 1).abs() < 1e-3).all())


def _forward(network: nn.Module, data: Data, batch: Tensor) -> Any:
    """The output of a copy of the network for two images, in evaluation mode; global generators keep their states."""
    first = next(network.parameters(), None)
    tried = copy.deepcopy(network).eval()
    seen: list[_Begun] = []  # the last one being where it broke
    for name, layer in tried.named_modules():
        if not any(True for _ in layer.children()):
            layer.register_forward_pre_hook(
                lambda layer, given, name=name: seen.append((name, layer, _shape_of(given)))
            )
    with torch.no_grad(), torch.random.fork_rng():
        try:
            output = tried(batch if first is None else batch.to(first.device))
        except Exception as error:
            raise PlanError(_refusal(type(network).__name__, data, batch, seen, error)) from error
    return output


def _refusal(name: str, data: Data, images: Tensor, seen: list[_Begun], error: Exception) -> str:
    """One line on a forward pass that failed: the images' shape, and the layer's where one can be named."""
    batch, floats = tuple(images.shape), images.is_floating_point()
    of = "" if images.dtype == torch.float32 else f" of {dtype_name(images.dtype)}"
    start = f"{name} cannot take the images of {data.name}, {extents(batch)}{of} as a batch of two: "
    hint = ""
    if seen:
        place, layer, shape = seen[-1]
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor):
            start += f"{place or 'it'} has a weight of {extents(weight.shape)} and got {extents(shape)}; "
            lookup = isinstance(layer, (nn.Embedding, nn.EmbeddingBag))
            # the inputs' own kind, not that of something made of them
            if len(seen) == 1 and lookup == floats:
                what = (
                    "token ids, int64"
                    if lookup
                    else f"{dtype_name(weight.dtype)}, as images.float() / 255 gives them"
                )
                return f"{start}{place or 'it'} takes {what}; the data's function has to return that"
        wanted = getattr(layer, "in_channels", None)
        if isinstance(wanted, int) and len(seen) == 1 and len(batch) == 4 and batch[1] == 1 < wanted:
            return (
                f"{start}the images are grey and it wants {wanted} channels: give --channels {wanted} "
                f"(in a study data: {{..., channels: {wanted}}}, in Python load_data(name, channels={wanted}))"
            )
        features = getattr(layer, "in_features", None)
        if isinstance(features, int) and shape and shape[-1] != features:
            hint = f"; it wants {features} values each, an image has {math.prod(batch[1:])}"
    return f"{start}{first_line(error)}{hint}"


def _shape_of(given: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(given[0].shape) if given and isinstance(given[0], Tensor) else ()
