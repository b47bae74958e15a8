"""What can be known before a training is paid for: whether network, data and settings fit each other."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from elastic_ir.errors import PlanError
from elastic_ir.tickets.magnitude import prunable_weights
from elastic_ir.training.data import Data, check_splits
from elastic_ir.training.settings import Pruning, Training
from elastic_ir.training.task import Loss

_IGNORED = -100  # the label that torch's cross-entropy passes over


def check_search(
    network: nn.Module, data: Data, training: Training, pruning: Pruning, loss: Loss | None
) -> None:
    """Whether a search can be done; raises what :func:`check_fit` does.

    PlanError also for a rewind step that the training does not have, MaskError for a name to leave out that is not
    there.
    """
    if pruning.rewind >= training.steps:
        raise PlanError(
            f"a training of {training.steps} steps cannot be rewound to step {pruning.rewind}; "
            "rewind to an earlier step"
        )
    prunable_weights(network, pruning.leave_out)
    check_fit(network, data, training, loss)


def check_fit(network: nn.Module, data: Data, training: Training, loss: Loss | None) -> None:
    """Whether a copy of the network takes a batch of the images, and its outputs are as many as the labels ask for.

    A loss of the user's own is not called: what labels mean to it is its affair. Raises SourceError where images and
    labels do not fit each other, PlanError where the network does not fit them.
    """
    check_splits(data)
    shape = data.shape
    if len(shape) != 3 and (training.channels_last or training.augment):
        what = "channels_last: false" if not training.augment else "channels_last: false and augment: false"
        like = f"1x{_told(shape)}" if len(shape) == 2 else "channels x height x width"
        raise PlanError(
            f"an image of {data.name} is {_told(shape)}, without an axis of channels; make each {like} "
            f"(images[:, None] for grey ones), or set {what}"
        )
    outputs = _forward(network, data)
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        what = _told(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise PlanError(
            f"{type(network).__name__} gives {what} for a batch of {data.name}; wanted is a tensor, "
            "batch x classes"
        )
    if loss is None:
        _check_labels(type(network).__name__, data, outputs)


def _check_labels(name: str, data: Data, outputs: Tensor) -> None:
    count = outputs.shape[1]
    for split, role in ((data.train, "training"), (data.test, "test")):
        low, high = 0, data.classes - 1
        if split.labels is not None:
            labels = split.labels[split.labels != _IGNORED]
            if not len(labels):
                continue
            low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= count:
            raise PlanError(
                f"the {role} labels of {data.name} go from {low} to {high}, and {name} has {count} outputs, for "
                f"labels 0 to {count - 1}; give it as many as there are classes, and count those from 0"
            )
    if data.train.labels is None:
        return
    labels = data.train.labels[: len(outputs)].to(outputs.device)
    try:
        nn.functional.cross_entropy(outputs, labels)
    except (RuntimeError, ValueError, IndexError) as error:
        raise PlanError(
            f"the outputs of {name} for a batch of {data.name} are {_told(outputs.shape)}, its labels "
            f"{_told(labels.shape)} ({_line(error)}); wanted are batch x classes and batch"
        ) from error


def _forward(network: nn.Module, data: Data) -> Any:
    """What a copy of the network gives for two images, in evaluation; the caller's dice are left as they were."""
    images = data.train.images
    batch = torch.zeros(2, *data.shape) if images is None else images[:2]
    first = next(network.parameters(), None)
    tried = copy.deepcopy(network).eval()
    seen: list[
        tuple[str, nn.Module, tuple[int, ...]]
    ] = []  # the layers begun, the last one being where it broke
    for name, layer in tried.named_modules():
        if not any(True for _ in layer.children()):
            layer.register_forward_pre_hook(
                lambda layer, given, name=name: seen.append((name, layer, _shape_of(given)))
            )
    with torch.no_grad(), torch.random.fork_rng():
        try:
            output = tried(batch if first is None else batch.to(first.device))
        except Exception as error:
            raise PlanError(
                _refusal(type(network).__name__, data, tuple(batch.shape), seen, error)
            ) from error
    return output if isinstance(output, Tensor) or not isinstance(output, (tuple, list)) else output[0]


def _refusal(
    name: str, data: Data, batch: tuple[int, ...], seen: list[tuple[str, nn.Module, tuple[int, ...]]],
    error: Exception,
) -> str:  # fmt: skip
    """One line on a forward pass that failed: the images' shape, and the layer's where one can be named."""
    said = f"{name} cannot take the images of {data.name}, {_told(batch)} as a batch of two: "
    hint = ""
    if seen:
        place, layer, shape = seen[-1]
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor):
            said += f"{place or 'it'} has a weight of {_told(weight.shape)} and got {_told(shape)}; "
        wanted = getattr(layer, "in_channels", None)
        if isinstance(wanted, int) and len(seen) == 1 and len(batch) == 4 and batch[1] == 1 < wanted:
            return (
                f"{said}the images are grey and it wants {wanted} channels: give --channels {wanted} "
                f"(in a study data: {{..., channels: {wanted}}}, in Python load_data(name, channels={wanted}))"
            )
        features = getattr(layer, "in_features", None)
        if isinstance(features, int) and shape and shape[-1] != features:
            hint = f"; it wants {features} values each, an image has {math.prod(batch[1:])}"
    return f"{said}{_line(error)}{hint}"


def _shape_of(given: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(given[0].shape) if given and isinstance(given[0], Tensor) else ()


def _told(shape: Any) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
