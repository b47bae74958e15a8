"""Fitting: one training from any step to any step, and the accuracy of what it made.

Lightning runs the loop (devices, precision, processes); this file gives it the stream of steps and nothing to guess.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from elastic_ir.errors import PlanError
from elastic_ir.training.callbacks import KeepMasks
from elastic_ir.training.data import Data, Split
from elastic_ir.training.loader import batches_of
from elastic_ir.training.losses import SoftLabels
from elastic_ir.training.settings import Training
from elastic_ir.training.task import Loss, Task


@dataclass(frozen=True)
class Engine:
    """On what a training runs, as Lightning names it; the result does not depend on it but for rounding."""

    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"  #: "ddp_spawn" for several processes that this one starts
    nodes: int = 1
    logger: Any = None  #: a Lightning logger, or None
    progress: bool = False


def fit(
    network: nn.Module, data: Data, training: Training, *, order: int = 0, start: int = 0, stop: int | None = None,
    masks: Mapping[str, Any] | None = None, loss: Loss | SoftLabels | None = None,
    callbacks: Sequence[pl.Callback] = (),
    engine: Engine | None = None,
) -> float:  # fmt: skip
    """Train a network in place from step ``start`` to ``stop`` and return the seconds that the steps took.

    ``order`` seeds the order of the data, and what is random in the network (dropout). ``masks`` maps parameter names
    to 0/1 tensors; pruned weights stay zero. The generators of the caller are left as they were. Raises PlanError for a
    range of steps that the training does not have.
    """
    stop = training.steps if stop is None else stop
    if not 0 <= start <= stop <= training.steps:
        raise PlanError(f"a training of {training.steps} steps has no steps {start} to {stop}")
    if start == stop:
        return 0.0
    engine = engine or Engine()
    if training.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = Task(network, data, training, loss=loss, order=order, start=start, stop=stop)
    kept = [KeepMasks(masks)] if masks else []
    network.train()
    with _quiet(), torch.random.fork_rng():
        torch.manual_seed(order)
        trainer = pl.Trainer(
            accelerator=engine.accelerator, devices=engine.devices, strategy=engine.strategy, num_nodes=engine.nodes,
            precision=training.precision, max_epochs=1, max_steps=stop - start, logger=engine.logger or False,  # type: ignore[arg-type]
            callbacks=[*kept, *callbacks], enable_checkpointing=False, enable_model_summary=False,
            enable_progress_bar=engine.progress, use_distributed_sampler=False, num_sanity_val_steps=0,
        )  # fmt: skip
        begun = time.perf_counter()
        trainer.fit(task)
        seconds = time.perf_counter() - begun
    if trainer.interrupted:
        raise KeyboardInterrupt
    return seconds


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice on loaders and devices is for people who set them up by hand."""
    logs = [
        logging.getLogger(name)
        for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    ]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)


@torch.no_grad()
def accuracy(network: nn.Module, split: Split, *, batch_size: int = 500) -> float:
    """The share of images whose largest output is their label's, in evaluation mode; the mode is put back."""
    was, device = network.training, next(network.parameters()).device
    network.eval()
    right = 0
    for images, labels in batches_of(split, batch_size, device):
        right += int((_scores(network(images)).argmax(1) == labels).sum())
    network.train(was)
    return right / len(split)


@torch.no_grad()
def mean_loss(network: nn.Module, split: Split, loss: Loss, *, batch_size: int = 500) -> float:
    """The loss over a split in evaluation mode."""
    was, device = network.training, next(network.parameters()).device
    network.eval()
    total = sum(
        float(loss(_scores(network(images)), labels)) * len(labels)
        for images, labels in batches_of(split, batch_size, device)
    )
    network.train(was)
    return total / len(split)


def _scores(output: Any) -> Tensor:
    scores: Tensor = output if isinstance(output, Tensor) else output[0]
    return scores
