"""The task: a network, its loss and its optimizer as a Lightning module that may begin at any step.

Torch decides nothing here by itself: seeds, order and rates follow from the settings and the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from elastic_ir.errors import PlanError
from elastic_ir.training.data import Data
from elastic_ir.training.items import weights_dtype
from elastic_ir.training.loader import BatchStream
from elastic_ir.training.losses import ClassEntropy, SoftLabels
from elastic_ir.training.settings import Training

Loss = Callable[[Tensor, Tensor], Tensor]


class Task(pl.LightningModule):
    """Trains ``network`` on ``data`` from step ``start`` to ``stop``, with the rates and batches of the whole training.

    ``order`` seeds the order of the data and its augmentation. Where several processes train, each batch is shared out
    among them; PlanError where its size does not divide.
    """

    run_network: Any  #: the network, compiled or not

    def __init__(
        self, network: nn.Module, data: Data, training: Training, *, loss: Loss | SoftLabels | None = None,
        order: int = 0, start: int = 0, stop: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = network
        self.data, self.settings, self.order = data, training, order
        self.loss: Loss | SoftLabels = loss or ClassEntropy(label_smoothing=training.label_smoothing)
        self.start, self.stop = start, training.steps if stop is None else stop
        # not as a submodule: its state dict would list every weight twice
        run: Any = torch.compile(network) if training.compile else network
        object.__setattr__(self, "run_network", run)

    def forward(self, images: Tensor) -> Any:
        return self.run_network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        output = self.run_network(images)
        loss = (
            self.loss(images, output, labels)
            if isinstance(self.loss, SoftLabels)
            else self.loss(output, labels)
        )
        if self.trainer.loggers:
            self.log("loss", loss)
            self.log("rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def train_dataloader(self) -> BatchStream:
        world = self.trainer.world_size
        if self.settings.batch_size % world:
            raise PlanError(
                f"a batch of {self.settings.batch_size} cannot be shared out evenly among {world} processes"
            )
        return BatchStream(
            self.data, self.settings.batch_size, seed=self.order, start=self.start, stop=self.stop,
            augment=self.settings.augment, channels_last=self.settings.channels_last, device=self.device,
            rank=self.trainer.global_rank, world=world, workers=self.settings.workers,
            dtype=weights_dtype(self.network),
        )  # fmt: skip

    def configure_optimizers(self) -> Any:
        settings = self.settings
        optimizer = torch.optim.SGD(
            self.network.parameters(), lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )  # fmt: skip
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: settings.rate_at(self.start + step)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
