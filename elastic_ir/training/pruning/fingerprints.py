"""Fingerprints: what distinguishes tensors, images and a loss from others, short enough to be noted beside a search."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from elastic_ir.training.data import Split
from elastic_ir.training.items import read_item

_PLAIN = (bool, int, float, str)


def of_tensors(tensors: Iterable[Tensor | None]) -> str:
    """Twelve digits that stand for the values of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            found.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:12]


def of_images(split: Split) -> str:
    """Digits that stand for the images of a split: for all in memory, else for five, with their labels."""
    if split.images is not None:
        return of_tensors([split.images])
    count = len(split.dataset)
    places = sorted({count * part // 4 for part in range(4)} | {count - 1}) if count else []
    return of_tensors(tensor for place in places for tensor in _sample(split.dataset, place))


def _sample(dataset: Any, place: int) -> list[Tensor]:
    """An item of a dataset, augmented as with fixed seeds; of one that is random even so its shape alone."""
    (image, label), (again, _) = (read_item(dataset, place) for _ in range(2))
    same = torch.equal(image, again)
    return [image if same else torch.tensor(image.shape), label]


def of_loss(loss: Any) -> str:
    """What distinguishes a loss from others: its qualified name; of an object that of its class, and its settings."""
    if loss is None:
        return "cross-entropy"
    if isinstance(loss, functools.partial):
        given = [_value_text(value) for value in loss.args]
        given += [f"{name}={_value_text(value)}" for name, value in sorted(loss.keywords.items())]
        return " ".join([of_loss(loss.func), *given])
    named = loss if hasattr(loss, "__qualname__") else type(loss)
    parts = [f"{named.__module__}.{named.__qualname__}"]
    if isinstance(loss, nn.Module):  # most losses of torch leave their settings out of their repr
        parts += [" ".join(repr(loss).split())]
        for part in loss.modules():
            parts += _settings(part)
        state = loss.state_dict().values()
        parts += [of_tensors(state)] if state else []
    elif named is not loss:
        parts += _settings(loss)
    return " ".join(parts)


def _settings(thing: object) -> list[str]:
    """The plain attributes of an object and its tensors, but for private ones and a module's mode."""
    return [
        f"{name}={_value_text(value)}"
        for name, value in sorted(getattr(thing, "__dict__", {}).items())
        if isinstance(value, (*_PLAIN, Tensor)) and not name.startswith("_") and name != "training"
    ]


def _value_text(value: object) -> str:
    if isinstance(value, Tensor):
        return of_tensors([value])
    return repr(value) if isinstance(value, _PLAIN) else of_loss(value)
