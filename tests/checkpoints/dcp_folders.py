"""Training checkpoints as torch.distributed.checkpoint writes them: by one process, or the shards of several ranks.

The shards are written by torch's own planner and writer, rank by rank, in one process.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

WIDTH = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 3 * WIDTH)
        self.down = nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return made


class Net(nn.Module):
    """A residual stack between an embedding and a head."""

    def __init__(self, layers: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.emb = nn.Embedding(30, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.head = nn.Linear(WIDTH, 30)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.emb(tokens)
        for layer in self.layers:
            x = layer(x)
        made: torch.Tensor = self.head(x)
        return made


def groups_of(net: Net) -> list[dict[str, Any]]:
    """Matrices with weight decay, the rest without, as trainings have it."""
    parameters = list(net.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def step(net: Net, optimizer: torch.optim.Optimizer) -> float:
    loss = net(torch.arange(20).reshape(4, 5)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def trained(layers: int = 4, steps: int = 2) -> tuple[Net, torch.optim.Optimizer]:
    net = Net(layers)
    optimizer = torch.optim.AdamW(groups_of(net), 1e-2)
    for _ in range(steps):
        step(net, optimizer)
    return net, optimizer


def state_of(net: Net, optimizer: torch.optim.Optimizer, flat: bool) -> dict[str, Any]:
    """What a training saves: the network, its optimizer by names of parameters, and some of its own."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optim = get_state_dict(net, optimizer, options=options)
    return {"model": model, "optim": optim, "lr": {"last_epoch": 3}, "step": 7}


def save(folder: Path, *, flat: bool = False, ranks: int = 1, extra: dict[str, Any] | None = None) -> Path:
    """Save a trained network of four layers."""
    net, optimizer = trained()
    state = {**state_of(net, optimizer, flat), **(extra or {})}
    if ranks > 1:
        save_sharded(state, folder, ranks)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no process group
            save_state(state, checkpoint_id=folder)
    return folder


class Shards(DefaultSavePlanner):
    """The plan of one of several ranks, each of which has a run of rows, or of columns, of every tensor."""

    def __init__(self, rank: int, ranks: int, axis: int) -> None:
        super().__init__()
        self.rank, self.ranks, self.axis = rank, ranks, axis

    def create_local_plan(self) -> SavePlan:
        items: list[WriteItem] = []
        for name, item in self.state_dict.items():
            if not isinstance(item, torch.Tensor):
                if self.rank == 0:
                    items.append(WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO))
                continue
            axis = min(self.axis, item.ndim - 1)
            at, size = [0] * item.ndim, list(item.shape)
            if item.ndim:
                rows = -(-item.shape[axis] // self.ranks)
                at[axis] = min(item.shape[axis], self.rank * rows)
                size[axis] = min(rows, item.shape[axis] - at[axis])
                if not size[axis]:
                    continue
            elif self.rank:
                continue
            chunk = ChunkStorageMetadata(torch.Size(at), torch.Size(size))
            data = TensorWriteData(chunk, TensorProperties.create_from_tensor(item), item.size())
            items.append(WriteItem(MetadataIndex(name, at), WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items, planner_data=self.mappings)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.type == WriteItemType.BYTE_IO:
            return super().resolve_data(write_item)
        tensor = self.state_dict[write_item.index.fqn]
        assert write_item.tensor_data is not None
        chunk = write_item.tensor_data.chunk
        for axis, (at, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
            tensor = tensor.narrow(axis, at, size)
        return tensor.detach().clone()


def save_sharded(state: dict[str, Any], folder: Path, ranks: int, axis: int = 0) -> None:
    """Write a state as so many ranks would."""
    writer = FileSystemWriter(folder, sync_files=False)
    writer.set_up_storage_writer(True)
    planners = [Shards(rank, ranks, axis) for rank in range(ranks)]
    plans = []
    for planner in planners:
        planner.set_up_planner(state, None, planner.rank == 0)
        plans.append(writer.prepare_local_plan(planner.create_local_plan()))
    plans, metadata = create_default_global_save_plan(plans)
    metadata = dataclasses.replace(metadata, planner_data=planners[0].mappings)
    results = []
    for planner, plan in zip(planners, writer.prepare_global_plan(plans), strict=True):
        results.append(writer.write_data(planner.finish_plan(plan), planner).wait())
    writer.finish(metadata, results)


def loaded(
    folder: Path, layers: int, flat: bool = False
) -> tuple[Net, torch.optim.Optimizer, dict[str, Any]]:
    """A network of so many layers and its optimizer, as torch restores them from a folder; strict."""
    net = Net(layers, seed=1)
    optimizer = torch.optim.AdamW(groups_of(net), 1e-2)
    state = state_of(net, optimizer, flat)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_state(state, checkpoint_id=folder)
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        set_state_dict(
            net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"], options=options
        )
    return net, optimizer, state


def metadata_of(folder: Path) -> Any:
    """A folder's metadata, as torch reads it."""
    return FileSystemReader(folder).read_metadata()
