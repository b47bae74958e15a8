"""Files of training frameworks as sources: the weights are found in each layout, and the summary names what stays."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import elastic_ir as eir

State = dict[str, torch.Tensor]


class Net(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(depth)])
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.layers(self.stem(x)))
        return out


def _trained() -> tuple[Net, dict[str, Any]]:
    torch.manual_seed(0)
    net = Net(3)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    return net, optimizer.state_dict()


def _lightning(state: State, optimizer: dict[str, Any]) -> dict[str, Any]:
    named = {f"model.{name}": tensor for name, tensor in state.items()}
    return {
        "epoch": 2,
        "global_step": 9,
        "state_dict": named,
        "optimizer_states": [optimizer],
        "lr_schedulers": [],
    }


def _composer(state: State, optimizer: dict[str, Any]) -> dict[str, Any]:
    names = list(state)
    moments = {names[number]: held for number, held in optimizer["state"].items()}
    groups = [{**group, "params": names} for group in optimizer["param_groups"]]
    inner = {
        "model": {f"module.{name}": tensor for name, tensor in state.items()},
        "optimizers": {"AdamW": {"state": moments, "param_groups": groups}},
        "timestamp": {"Timestamp": {"epoch": 1, "epoch_wct": timedelta(seconds=1)}},
        "metadata": {"torch_version": torch.__version__},
    }
    return {"state": inner, "rng": []}


def _deepspeed(state: State, optimizer: dict[str, Any]) -> dict[str, Any]:
    return {
        "module": state,
        "optimizer": optimizer,
        "lr_scheduler": None,
        "global_steps": 9,
        "dp_world_size": 1,
    }


LAYOUTS = [
    ("epoch=2-step=9.ckpt", _lightning, "state_dict", "model.", {"epoch", "global_step", "optimizer_states"}),
    ("ep1-rank0.pt", _composer, "state.model", "", {"state.optimizers"}),
    ("mp_rank_00_model_states.pt", _deepspeed, "module", "", {"optimizer", "global_steps"}),
]


@pytest.mark.parametrize(
    ("name", "layout", "key", "prefix", "left"), LAYOUTS, ids=["lightning", "composer", "deepspeed"]
)
@pytest.mark.parametrize("keyed", [False, True])
def test_weights_are_found_and_the_rest_is_named(
    tmp_path: Path,
    name: str,
    layout: Callable[[State, dict[str, Any]], dict[str, Any]],
    key: str,
    prefix: str,
    left: set[str],
    keyed: bool,
) -> None:
    net, optimizer = _trained()
    torch.save(layout(net.state_dict(), optimizer), tmp_path / name)
    graph = eir.load(tmp_path / name, key=key if keyed else None)
    found = graph.state_dict()
    assert set(found) == {prefix + each for each in net.state_dict()}
    assert all(torch.equal(found[prefix + each], tensor) for each, tensor in net.state_dict().items())
    assert left <= set(graph.info.left_behind)


def test_accelerate_s_weights_are_read_by_their_own_name(tmp_path: Path) -> None:
    net, optimizer = _trained()
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    torch.save(optimizer, tmp_path / "optimizer.bin")
    torch.save({"last_epoch": 3}, tmp_path / "scheduler.bin")
    torch.save({"step": 9}, tmp_path / "random_states_0.pkl")
    for source in (tmp_path, tmp_path / "pytorch_model.bin"):
        found = eir.load(source).state_dict()
        assert all(torch.equal(found[each], tensor) for each, tensor in net.state_dict().items())


class Module(lightning.LightningModule):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.model = Net(depth)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        out: torch.Tensor = self.model(batch[0])
        return out.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def _trainer(folder: Path, epochs: int) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs, default_root_dir=folder, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def test_a_lightning_fit_goes_on_in_the_deeper_module(tmp_path: Path) -> None:
    data = DataLoader(TensorDataset(torch.randn(16, 4)), batch_size=4)
    module = Module(3)
    trainer = _trainer(tmp_path, 2)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    names = [name for name, _ in module.named_parameters()]
    deep = eir.stretch(eir.load(tmp_path / "last.ckpt"), to_units=5)
    optimizer = saved["optimizer_states"][0]
    moved = deep.remap_optimizer_state(optimizer, names)
    torch.save(
        {**saved, "state_dict": deep.state_dict(), "optimizer_states": [moved]}, tmp_path / "deep.ckpt"
    )

    native = Module(5)
    seen: dict[str, dict[str, torch.Tensor]] = {}

    class Look(lightning.Callback):
        def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            state = trainer.optimizers[0].state
            for name, parameter in pl_module.named_parameters():
                assert torch.equal(parameter, deep.state_dict()[name]), name
                seen[name] = {key: value.clone() for key, value in state[parameter].items()}

    again = _trainer(tmp_path, 3)
    again.callbacks.append(Look())  # type: ignore[attr-defined]
    again.fit(native, data, ckpt_path=tmp_path / "deep.ckpt")
    assert again.global_step == 12
    before = {name: optimizer["state"][number] for number, name in enumerate(names)}
    assert len(seen) == 14
    for name, moments in seen.items():
        origin = deep.weights[name].origin
        for moment in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(moments[moment], before[origin][moment]), (name, moment)
