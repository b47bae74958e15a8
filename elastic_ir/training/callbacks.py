"""Callbacks: what tickets need of a training, for any Lightning trainer and any Lightning module.

They find weights by the names they have in the Lightning module, with or without the attribute in front under which it
holds its network (``network.conv1.weight`` or ``conv1.weight``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from elastic_ir.errors import MaskError
from elastic_ir.formats.files import atomic_output
from elastic_ir.formats.torch_zip import save_torch
from elastic_ir.tickets import enforce
from elastic_ir.training.schedules import Schedule


def network_of(module: nn.Module, names: Mapping[str, Any]) -> nn.Module:
    """The module, or the child of it, in which all of these parameters are found; MaskError where there is none."""
    own = dict(module.named_parameters(remove_duplicate=False))
    if all(name in own for name in names):
        return module
    for child in module.children():
        inside = dict(child.named_parameters(remove_duplicate=False))
        if all(name in inside for name in names):
            return child
    missing = next(name for name in names if name not in own)
    raise MaskError(f"{type(module).__name__} has no parameter {missing!r}, nor has a module directly in it")


class KeepMasks(pl.Callback):
    """Keeps pruned weights at zero: see :func:`elastic_ir.tickets.enforce`, which does the work."""

    def __init__(self, masks: Mapping[str, Any], *, mask_gradients: bool = True) -> None:
        self.masks = dict(masks)
        self.mask_gradients = mask_gradients
        self._kept: list[Any] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        network = network_of(pl_module, self.masks)
        self._kept = [
            enforce(network, optimizer, self.masks, mask_gradients=self.mask_gradients)
            for optimizer in trainer.optimizers
        ]

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for each in self._kept:
            each.remove()
        self._kept = []


class TellSteps(pl.Callback):
    """Calls a function after every step, with 1."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.tell = tell

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.tell(1)


class SaveRewindPoint(pl.Callback):
    """Saves the network's state dict after a number of optimizer steps: the weights that tickets are rewound to.

    Step 0 is initialization. The file appears whole or not at all, written by the first process.
    """

    def __init__(self, step: int, path: str | os.PathLike[str], network: str = "network") -> None:
        self.step, self.path, self.network = step, Path(path), network

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == self.step:
            self._save(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            self._save(trainer, pl_module)

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            part = getattr(pl_module, self.network, pl_module)
            save_state(part.state_dict(), self.path)


class FollowSchedule(pl.Callback):
    """Sets the factors of ghosts (:mod:`elastic_ir.training.schedules`) before every step, the last ones at the end.

    A training that goes on from step ``start`` of ``steps`` begins the schedule there.
    """

    def __init__(self, schedule: Schedule, start: int, steps: int, network: str = "network") -> None:
        self.schedule, self.start, self.steps, self.network = schedule, start, steps, network

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        progress = trainer.global_step / max(self.steps - self.start, 1)
        self.schedule.apply(getattr(pl_module, self.network, pl_module), min(progress, 1.0))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.schedule.apply(getattr(pl_module, self.network, pl_module), 1.0)


def save_state(state: Mapping[str, Tensor], path: Path) -> None:
    """A state dict into a file that appears whole or not at all."""
    with atomic_output(path) as temporary:
        save_torch({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, temporary)
