"""Fitting: one training from any step to any step, and how well it did: its accuracy, or its loss.

Lightning runs the loop (devices, precision, processes); this file gives it the stream of steps and nothing to guess.
"""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from elastic_ir.analysis.pruning.scores import modes
from elastic_ir.choices import check_choice
from elastic_ir.errors import PlanError
from elastic_ir.extras import install, missing
from elastic_ir.training.callbacks import KeepMasks, TellSteps
from elastic_ir.training.data import Data, Split
from elastic_ir.training.items import weights_dtype
from elastic_ir.training.loader import batches_of
from elastic_ir.training.losses import IGNORED, ClassEntropy, SoftLabels, first_of
from elastic_ir.training.settings import Log, Training
from elastic_ir.training.task import Loss, Task

_DIVERGED = "the training diverged; a smaller lr or a warmup may help"


@dataclass(frozen=True)
class Engine:
    """On what a training runs, as Lightning names it; the result does not depend on it but for rounding."""

    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"  #: "ddp_spawn" for several processes that this one starts
    nodes: int = 1
    logger: Any = None  #: a Lightning logger, or None
    progress: bool = False
    tell: Callable[[int], None] | None = None  #: called after every step, with the number of steps since: 1


def logger_in(kind: Log, folder: Path, name: str = "log") -> Any:
    """Lightning's logger of that kind ("csv" or "tensorboard"), which writes below ``folder/name``.

    Raises PlanError for another kind, SourceError where TensorBoard's writer is not installed.
    """
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    check_choice("log", kind, Log)
    if kind == "csv":
        return CSVLogger(folder, name=None, version=name)
    try:
        return TensorBoardLogger(folder, name=None, version=name)
    except ModuleNotFoundError as error:
        raise missing("tensorboard", "this log", install("tensorboard"), error) from error


def fit(
    network: nn.Module, data: Data, training: Training, *, order: int = 0, start: int = 0, stop: int | None = None,
    masks: Mapping[str, Any] | None = None, loss: Loss | SoftLabels | None = None,
    callbacks: Sequence[pl.Callback] = (),
    engine: Engine | None = None,
) -> float:  # fmt: skip
    """Train a network in place from step ``start`` to ``stop`` and return the seconds that the steps took.

    ``order`` seeds the order of the data, and what is random in the network (dropout). ``masks`` maps parameter names
    to 0/1 tensors; pruned weights stay zero. The generators of the caller are left as they were. Raises PlanError for a
    range of steps that the training does not have, and for one that diverged;
    KeyboardInterrupt at Ctrl-C, and at a SIGTERM SystemExit with the status that a shell gives it, 143.
    """
    stop = training.steps if stop is None else stop
    if not 0 <= start <= stop <= training.steps:
        raise PlanError(f"a training of {training.steps} steps has no steps {start} to {stop}")
    if start == stop:
        return 0.0
    engine = engine or Engine()
    if training.channels_last and len(data.shape) == 3:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = Task(network, data, training, loss=loss, order=order, start=start, stop=stop)
    kept = [KeepMasks(masks)] if masks else []
    told = [TellSteps(engine.tell)] if engine.tell is not None else []
    network.train()
    with _quiet(), torch.random.fork_rng():
        torch.manual_seed(order)
        trainer = pl.Trainer(
            accelerator=engine.accelerator, devices=engine.devices, strategy=engine.strategy, num_nodes=engine.nodes,
            precision=training.precision, max_epochs=1, max_steps=stop - start, logger=engine.logger or False,
            callbacks=[*kept, *callbacks, *told], enable_checkpointing=False, enable_model_summary=False,
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
    for name, weight in network.named_parameters():
        if weight.requires_grad and not bool(weight.isfinite().all()):
            raise PlanError(
                f"the training of {type(network).__name__} diverged: after step {stop} {name} is not finite; "
                "a smaller lr or a warmup may help"
            )
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


@dataclass(frozen=True)
class Measured:
    """How well a network does on a split: by its accuracy, or by its loss, where targets are not classes."""

    measure: str  #: "accuracy", a share of 1, or "loss", the lower the better
    value: float

    def __str__(self) -> str:
        return (
            f"accuracy {100 * self.value:.2f} %" if self.measure == "accuracy" else f"loss {self.value:.4g}"
        )


@torch.no_grad()
def measured(
    network: nn.Module, split: Split, loss: Loss | None = None, *, batch_size: int = 500, engine: Engine | None = None
) -> Measured:  # fmt: skip
    """The accuracy on a split, where its targets are classes that the network distinguishes, else the loss.

    They are where targets are whole numbers [batch, ...] from 0 to below the number of classes and outputs are
    [batch, classes, ...] of two classes or more; the first few are examined. Without ``loss`` it is cross-entropy.
    Raises PlanError where the outputs are not a number, or the loss is not finite.
    """
    loss = loss or ClassEntropy()
    ignored = getattr(loss, "ignore_index", IGNORED)
    with _measured(network, engine) as device:
        inputs, targets = next(iter(batches_of(split, 2, device, weights_dtype(network))))
        if split.labels is not None:
            few = torch.cat([targets.cpu().reshape(-1), split.labels[:batch_size].cpu().reshape(-1)])
        else:
            few = targets.reshape(-1)
        classes = are_classes(first_of(network(inputs)), targets, few, ignored)
    if classes:
        found = accuracy(network, split, batch_size=batch_size, engine=engine, ignored=ignored)
        return Measured("accuracy", found)
    return Measured("loss", mean_loss(network, split, loss, batch_size=batch_size, engine=engine))


def are_classes(outputs: Tensor, targets: Tensor, values: Tensor, ignored: int = IGNORED) -> bool:
    """Whether targets of these shapes and values are numbers of the classes that outputs distinguish."""
    if targets.is_floating_point() or outputs.ndim != targets.ndim + 1 or outputs.shape[1] < 2:
        return False
    if (outputs.shape[0], *outputs.shape[2:]) != tuple(targets.shape):
        return False
    values = values[values != ignored]
    return not len(values) or bool((values >= 0).all() & (values < outputs.shape[1]).all())


@torch.no_grad()
def accuracy(
    network: nn.Module, split: Split, *, batch_size: int = 500, engine: Engine | None = None,
    ignored: int = IGNORED,
) -> float:  # fmt: skip
    """The share of labels that are a network's largest output, in evaluation mode and full precision.

    Every label counts, of a mask that of each pixel, but for ``ignored``. Lightning leaves a trained network on the
    CPU; it is measured where ``engine`` trains it, and comes back as it was. Raises PlanError for targets that are not
    class numbers, and for outputs that are not a number.
    """
    right = counted = 0
    with _measured(network, engine) as device:
        for images, labels in batches_of(split, batch_size, device, weights_dtype(network)):
            outputs = first_of(network(images))
            if labels.is_floating_point():
                raise PlanError(
                    f"an accuracy is of class numbers, and the targets are {str(labels.dtype)[6:]}; measure the loss"
                )
            if outputs.isnan().any():
                raise PlanError(f"the outputs of {type(network).__name__} are not a number: {_DIVERGED}")
            counts = labels != ignored
            right += int(((outputs.argmax(1) == labels) & counts).sum())
            counted += int(counts.sum())
    return right / max(counted, 1)


@torch.no_grad()
def mean_loss(
    network: nn.Module, split: Split, loss: Loss, *, batch_size: int = 500, engine: Engine | None = None
) -> float:
    """The loss over a split in evaluation mode, where ``engine`` trains: the mean of its batches by their sizes.

    The loss is given the network's output, as in training. PlanError where it is not finite.
    """
    with _measured(network, engine) as device:
        total = sum(
            float(loss(network(images), labels)) * len(labels)
            for images, labels in batches_of(split, batch_size, device, weights_dtype(network))
        )
    if not math.isfinite(total):
        raise PlanError(f"the loss of {type(network).__name__} is {total}: {_DIVERGED}")
    return total / len(split)


@contextmanager
def _measured(network: nn.Module, engine: Engine | None) -> Iterator[torch.device]:
    """The network in evaluation mode on the engine's device; afterwards as it was."""
    home = next(network.parameters()).device
    wanted = (engine or Engine()).accelerator
    faster = home.type == "cpu" and wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if faster else home
    with modes(network):
        try:
            network.to(device)
            yield device
        finally:
            network.to(home)
