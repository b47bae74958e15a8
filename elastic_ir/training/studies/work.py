"""A job's work: its options, the folders of what it needs, and what the options name, made when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elastic_ir.analysis.operations import ForwardCost
from elastic_ir.analysis.pruning.flops import forward_cost
from elastic_ir.training.data import Data, load_data
from elastic_ir.training.fit import Engine
from elastic_ir.training.items import weights_dtype
from elastic_ir.training.loader import BatchStream
from elastic_ir.training.settings import Place, Training, read
from elastic_ir.training.studies.names import build, loss_of
from elastic_ir.training.task import Loss

_OTHER = 100_003  # added to a seed, for weights that are initialized anew


class Work:
    """What a job computes with; ``needs`` has the folder of a finished job for each role, ``place`` is its own."""

    def __init__(
        self, options: Mapping[str, Any], needs: Mapping[str, Path], place: Path = Path(), engine: Engine | None = None
    ) -> None:  # fmt: skip
        self.options, self.needs, self.place, self.engine = options, needs, place, engine
        self.seed: int = options["seed"]
        self.leave_out: list[str] = options.get("leave_out", [])

    @cached_property
    def network(self) -> nn.Module:
        """The job's network, freshly initialized when it is first asked for."""
        return build(self.options)

    @cached_property
    def data(self) -> Data:
        """The data, held by the process, since the next job most likely wants the same."""
        entry = self.options["data"]
        return _data(entry["name"], entry.get("channels", 0), entry.get("limit", 0))

    @cached_property
    def training(self) -> Training:
        return read(Training, self.options["training"], Place("training"))

    @cached_property
    def loss(self) -> Loss | None:
        return loss_of(self.options)

    def another(self) -> nn.Module:
        """The network from another initialization."""
        return build({**self.options, "seed": self.seed + _OTHER})

    def tensors(self, role: str, file: str) -> dict[str, Tensor]:
        """What a needed job has saved."""
        found: dict[str, Tensor] = torch.load(self.needs[role] / file, weights_only=True)
        return found

    def batches(self, network: nn.Module, count: int, size: int, purpose: int) -> list[tuple[Tensor, Tensor]]:
        """Training batches [size, ...] for scores that need data, in an order of that purpose's own."""
        stream = BatchStream(
            self.data, size, seed=self.seed + purpose, stop=count, dtype=weights_dtype(network)
        )
        return list(stream)

    def cost(self, network: nn.Module) -> ForwardCost:
        """The operations of one input's forward pass."""
        return forward_cost(network, self.data.example(network))


@lru_cache(maxsize=2)
def _data(name: str, channels: int, limit: int) -> Data:
    return load_data(name, channels, limit)
