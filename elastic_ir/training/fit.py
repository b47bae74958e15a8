"""Fitting: one training from any step to any step, and the accuracy of what it made.

Lightning runs the loop (devices, precision, processes); this file gives it the stream of steps and nothing to guess.
"""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from elastic_ir.errors import PlanError, SourceError
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


def logger_in(kind: str, folder: Path, name: str = "log") -> Any:
    """Lightning's logger of that kind ("csv" or "tensorboard"), which writes below ``folder/name``.

    Raises PlanError for another kind, SourceError where TensorBoard's writer is not installed.
    """
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    if kind == "csv":
        return CSVLogger(folder, name=None, version=name)
    if kind != "tensorboard":
        raise PlanError(f"logs are csv or tensorboard, not {kind!r}")
    try:
        return TensorBoardLogger(folder, name=None, version=name)
    except ModuleNotFoundError as error:
        raise SourceError("these logs need TensorBoard: pip install 'elastic-ir[tensorboard]'") from error


def fit(
    network: nn.Module, data: Data, training: Training, *, order: int = 0, start: int = 0, stop: int | None = None,
    masks: Mapping[str, Any] | None = None, loss: Loss | SoftLabels | None = None,
    callbacks: Sequence[pl.Callback] = (),
    engine: Engine | None = None,
) -> float:  # fmt: skip
    """Train a network in place from step ``start`` to ``stop`` and return the seconds that the steps took.

    ``order`` seeds the order of the data, and what is random in the network (dropout). ``masks`` maps parameter names
    to 0/1 tensors; pruned weights stay zero. The generators of the caller are left as they were. Raises PlanError for a
    range of steps that the training does not have, KeyboardInterrupt at Ctrl-C, and at a SIGTERM SystemExit with the
    status that a shell gives it, 143.
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
            log_every_n_steps=max(1, min(50, (stop - start) // 50)),
            enable_progress_bar=engine.progress, use_distributed_sampler=False, num_sanity_val_steps=0,
        )  # fmt: skip
        begun = time.perf_counter()
        try:
            trainer.fit(task)
        except SystemExit as error:  # Lightning's end at Ctrl-C, and at a SIGTERM, there with status 0
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            if isinstance(error, SIGTERMException):
                raise SystemExit(128 + signal.SIGTERM) from error
            raise
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
def accuracy(
    network: nn.Module, split: Split, *, batch_size: int = 500, engine: Engine | None = None
) -> float:
    """The share of images whose largest output is their label's, in evaluation mode and full precision.

    Lightning leaves a trained network on the CPU; it is measured where ``engine`` trains it, and comes back as it was.
    """
    with _measured(network, engine) as device:
        right = 0
        for images, labels in batches_of(split, batch_size, device):
            right += int((_scores(network(images)).argmax(1) == labels).sum())
    return right / len(split)


@torch.no_grad()
def mean_loss(
    network: nn.Module, split: Split, loss: Loss, *, batch_size: int = 500, engine: Engine | None = None
) -> float:
    """The loss over a split in evaluation mode, where ``engine`` trains."""
    with _measured(network, engine) as device:
        total = sum(
            float(loss(_scores(network(images)), labels)) * len(labels)
            for images, labels in batches_of(split, batch_size, device)
        )
    return total / len(split)


@contextmanager
def _measured(network: nn.Module, engine: Engine | None) -> Iterator[torch.device]:
    """The network in evaluation on the engine's device; every part has its own mode again behind it."""
    modes = {part: part.training for part in network.modules()}
    home = next(network.parameters()).device
    wanted = (engine or Engine()).accelerator
    faster = home.type == "cpu" and wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if faster else home
    try:
        network.eval().to(device)
        yield device
    finally:
        network.to(home)
        for part, mode in modes.items():
            part.training = mode


def _scores(output: Any) -> Tensor:
    scores: Tensor = output if isinstance(output, Tensor) else output[0]
    return scores
