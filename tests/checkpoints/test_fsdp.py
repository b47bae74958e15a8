"""What FSDP itself saves in two processes: stretched, and loaded into the deeper network under FSDP again."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import elastic_ir as eir
from tests.checkpoints.dcp_folders import Net, groups_of, step

ORDER = [0, 1, 2, 3, 1, 2, 0]
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def _sharded(layers: int) -> tuple[Net, torch.optim.Optimizer]:
    net = Net(layers)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in net.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net, torch.optim.AdamW(groups_of(net), 1e-2)


def _state(
    net: Net, optimizer: torch.optim.Optimizer, options: StateDictOptions | None = None
) -> dict[str, Any]:
    return dict(zip(("model", "optim"), get_state_dict(net, optimizer, options=options), strict=True))


def _origin(name: str) -> str:
    head, number, *rest = name.split(".", 2)
    return f"{head}.{ORDER[int(number)]}.{rest[0]}" if head == "layers" else name


def _train(rank: int, folder: Path) -> None:
    """Train, save, have the first process stretch what was saved, and go on with the deeper network."""
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    net, optimizer = _sharded(4)
    for _ in range(2):
        step(net, optimizer)
    state = _state(net, optimizer)
    pending: Any = async_save({**state, "step": 2}, checkpoint_id=folder / "saved")
    pending.result()
    saved = _state(net, optimizer, WHOLE)
    if rank == 0:
        eir.save(eir.stretch(eir.load(folder / "saved"), plan=[ORDER]), folder / "deeper")
    dist.barrier()
    net, optimizer = _sharded(len(ORDER))
    state = _state(net, optimizer)
    load(state, checkpoint_id=folder / "deeper")
    set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    made = _state(net, optimizer, WHOLE)
    if rank == 0:  # which alone has all of it
        after, before = made["model"], saved["model"]
        assert len(after) == len(before) + 3 * 6  # tensors of a layer
        for name in after:
            assert torch.equal(after[name], before[_origin(name)]), name
            own, wanted = made["optim"]["state"][name], saved["optim"]["state"][_origin(name)]
            assert all(torch.equal(own[kind], wanted[kind]) for kind in wanted), name
        groups = [{_origin(name) for name in group["params"]} for group in made["optim"]["param_groups"]]
        assert groups == [{*group["params"]} for group in saved["optim"]["param_groups"]]
    assert step(net, optimizer) > 0
    if rank == 0:
        (folder / "done").touch()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="gloo over a file")
def test_training_goes_on_in_the_deeper_network(tmp_path: Path) -> None:
    start: Any = importlib.import_module("torch.multiprocessing").start_processes
    start(_train, args=(tmp_path,), nprocs=2, start_method="spawn")
    assert (tmp_path / "done").exists()
