"""Folders as Accelerate's ``save_state`` leaves them, written without it: plain ones, and sharded ones of FSDP."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as save_state


def save_plain(
    folder: Path, net: nn.Module, optimizer: torch.optim.Optimizer, safe: bool = True, **custom: Any
) -> Path:
    """A folder of one process; ``custom`` are objects that were registered for checkpointing."""
    folder.mkdir(parents=True)
    state = net.state_dict()
    if safe:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    else:
        torch.save(state, folder / "pytorch_model.bin")
    torch.save(optimizer.state_dict(), folder / "optimizer.bin")
    _others(folder)
    for number, item in enumerate(custom.values()):
        torch.save(item, folder / f"custom_checkpoint_{number}.pkl")
    return folder


def save_sharded(folder: Path, net: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    """A folder of FSDP with the state dict type SHARDED_STATE_DICT."""
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        save_state({"model": get_model_state_dict(net)}, checkpoint_id=folder / "pytorch_model_fsdp_0")
        save_state(
            {"optimizer": get_optimizer_state_dict(net, optimizer)}, checkpoint_id=folder / "optimizer_0"
        )
    _others(folder)
    return folder


def _others(folder: Path) -> None:
    torch.save({"last_epoch": 3, "base_lrs": [0.01, 0.01]}, folder / "scheduler.bin")
    states = {
        "step": 7,
        "random_state": random.getstate(),
        "numpy_random_seed": np.random.get_state(),
        "torch_manual_seed": torch.get_rng_state(),
    }
    torch.save(states, folder / "random_states_0.pkl")
