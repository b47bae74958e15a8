"""Masks hold under autocast, gradient scaling, torch.compile and DDP, with and without the names these add.

Run as a script, the file is one process of the distributed test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from elastic_ir.tickets import enforce
from tests.tickets.small import MASKED, assert_dead, backward, loss_of, network, some_masks, train

ROOT = Path(__file__).parents[2]


def test_autocast_in_bfloat16() -> None:
    model, masks = network(), some_masks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    enforce(model, optimizer, masks)
    for step in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, step)
        backward(loss)
        optimizer.step()
        assert_dead(model, masks)


def test_grad_scaler_and_a_skipped_step() -> None:
    model, masks = network(), some_masks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    enforce(model, optimizer, masks)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for step in range(3):
        optimizer.zero_grad()
        loss = loss_of(model, step) * (float("inf") if step == 1 else 1)
        backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()
        assert_dead(model, masks)


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False], ids=["enforced-first", "compiled-first"])
def test_a_compiled_module(before: bool) -> None:
    model, masks, plain = network(), some_masks(), network()
    compiled: Any = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    given = masks if before else {f"_orig_mod.{name}": mask for name, mask in masks.items()}
    enforce(model if before else compiled, optimizer, given)
    train(compiled, optimizer)
    assert_dead(model, masks)
    other = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    enforce(plain, other, masks)
    train(plain, other)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter)


def test_a_compiled_part_and_prefixes_in_mask_names() -> None:
    model = network()
    model[4] = torch.compile(model[4], backend="eager")  # type: ignore[assignment]
    masks = {f"module.{name}": mask for name, mask in some_masks().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    enforcer = enforce(model, optimizer, masks)
    train(model, optimizer)
    assert set(enforcer.masks) == set(MASKED)
    assert model.get_parameter("4._orig_mod.weight")[~some_masks()["4.weight"]].count_nonzero() == 0


def test_a_compiled_optimizer_step() -> None:
    model, masks = network(), some_masks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    enforce(model, optimizer, masks)
    step = torch.compile(optimizer.step, backend="eager")
    for seed in range(3):
        backward(loss_of(model, seed))
        step()
        assert_dead(model, masks)


@pytest.mark.slow
def test_two_processes_under_ddp(tmp_path: Path) -> None:
    """Both orders of wrapping and enforcing; the replicas agree to the last bit."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        output = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], output
    ours, theirs = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for key in ("enforced-first", "wrapped-first"):
        assert all(torch.equal(ours[key][name], theirs[key][name]) for name in MASKED)
        for name, mask in some_masks().items():
            assert (ours[key][name] != 0).equal(mask)
    assert not torch.equal(ours["enforced-first"]["0.weight"], network().get_parameter("0.weight"))


def ddp_worker(rank: int, folder: Path) -> None:
    """One replica: trains on its own batches and saves the weights it ends with."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    result = {}
    for key in ("enforced-first", "wrapped-first"):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
        if key == "enforced-first":
            enforce(model, optimizer, some_masks())
        replica = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        if key == "wrapped-first":
            enforce(replica, optimizer, {f"module.{name}": mask for name, mask in some_masks().items()})
        for step in range(3):
            optimizer.zero_grad()
            backward(loss_of(replica, seed=10 * step + rank))
            for name, mask in some_masks().items():
                gradient = model.get_parameter(name).grad
                assert gradient is not None
                assert gradient[~mask].count_nonzero() == 0
            optimizer.step()
            assert_dead(model, some_masks())
        result[key] = {name: model.get_parameter(name).detach() for name in MASKED}
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    ddp_worker(int(sys.argv[1]), Path(sys.argv[2]))
