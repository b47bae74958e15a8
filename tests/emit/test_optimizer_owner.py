"""Folders of Accelerate with several networks: each optimizer follows its own network, or none at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import elastic_ir as eir
from elastic_ir.errors import EmitError
from tests.checkpoints.accelerate_folders import save_plain, save_sharded
from tests.checkpoints.dcp_folders import Net, step, trained
from tests.emit.test_training_folder import assert_followed, loaded, run


def adamw(net: Net, named: bool = False) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(net.named_parameters() if named else net.parameters(), 1e-2)
    step(net, optimizer)
    return optimizer


def pair(folder: Path, other: nn.Module, *optimizers: torch.optim.Optimizer) -> Path:
    """A folder of the network of four layers, another one, and optimizers in some order."""
    net, optimizer = trained()
    save_plain(folder, net, optimizer)
    save_file(other.state_dict(), folder / "model_1.safetensors", {"format": "pt"})
    for number, one in enumerate(optimizers or (optimizer,)):
        torch.save(one.state_dict(), folder / f"optimizer{f'_{number}' * (number > 0)}.bin")
    return folder


@pytest.mark.parametrize("named", [False, True], ids=["by number", "by name"])
def test_an_optimizer_follows_the_network_that_it_fits(named: bool, tmp_path: Path) -> None:
    """They were prepared in another order than the networks: the numbers mean nothing."""
    other = Net(2)
    source = pair(tmp_path / "source", other, adamw(other, named), trained()[1])
    out, second = tmp_path / "out", tmp_path / "second"
    told = run("stretch", source, "--key", "model", "--plan", "0-3,1,2", "-o", out)
    assert "optimizer: optimizer_1 follows the layers" in told
    for name in ("optimizer.bin", "model_1.safetensors"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    (out / "optimizer_1.bin").rename(out / "optimizer.bin")
    assert_followed(*loaded(out))
    told = run("stretch", source, "--key", "model_1", "--to-units", "3", "-o", second)
    assert "optimizer: optimizer follows the layers" in told
    assert (second / "optimizer_1.bin").read_bytes() == (source / "optimizer_1.bin").read_bytes()
    deep = Net(3)
    torch.optim.AdamW(deep.parameters()).load_state_dict(
        torch.load(second / "optimizer.bin", weights_only=True)
    )


def test_a_network_without_an_optimizer_follows_alone(tmp_path: Path) -> None:
    """A teacher of another depth, which nobody trains."""
    source = pair(tmp_path / "source", Net(2))
    told = run("stretch", source, "--key", "model_1", "--to-units", "3", "-o", tmp_path / "out")
    assert "kept: model.safetensors, optimizer.bin" in told
    assert (tmp_path / "out" / "optimizer.bin").read_bytes() == (source / "optimizer.bin").read_bytes()


@pytest.mark.parametrize("form", ["twins", "both in one", "a part", "nothing known"])
def test_what_may_be_of_two_networks_or_none_is_refused(form: str, tmp_path: Path) -> None:
    other = Net(4 if form == "twins" else 2)
    whole = [*trained()[0].parameters(), *other.parameters()]
    optimizers = {
        "twins": trained()[1],
        "both in one": torch.optim.AdamW(whole),
        "a part": torch.optim.AdamW(whole[:5]),
        "nothing known": trained()[1],
    }
    one = optimizers[form]
    if form in ("both in one", "a part"):
        for parameter in whole:
            parameter.grad = torch.ones_like(parameter)
        one.step()
    source = pair(tmp_path / "source", other, one)
    if form == "nothing known":
        torch.save({"lr": 1}, source / "optimizer.bin")
    whose = (
        "may be that of model.safetensors or of model_1" if form == "twins" else "is of none of them alone"
    )
    with pytest.raises(
        EmitError, match=f"has several networks, .*, and optimizer.bin {whose}.*; write the weights"
    ):
        eir.save(eir.stretch(eir.load(source, key="model"), to_units=6), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    eir.save(eir.stretch(eir.load(source, key="model"), to_units=6), tmp_path / "out.safetensors")


def test_an_average_of_one_of_two_alike_is_refused(tmp_path: Path) -> None:
    net, _ = trained()
    source = pair(tmp_path / "source", Net(4, seed=3))
    (source / "optimizer.bin").unlink()
    torch.save({"module": net.state_dict()}, source / "custom_checkpoint_0.pkl")
    with pytest.raises(EmitError, match=r"has an average that may be of model.safetensors or of model_1"):
        eir.save(eir.stretch(eir.load(source, key="model"), to_units=6), tmp_path / "out")


def test_fsdp_pairs_by_number(tmp_path: Path) -> None:
    """Accelerate saves the optimizer of a number as that of the network of the number, whatever else is alike."""
    source = save_sharded(tmp_path / "source", *trained())
    twin = Net(4, seed=5)
    save_sharded(tmp_path / "twin", twin, adamw(twin))
    for before, after in (("pytorch_model_fsdp_0", "pytorch_model_fsdp_1"), ("optimizer_0", "optimizer_1")):
        (tmp_path / "twin" / before).rename(source / after)
    told = run("stretch", source, "--key", "pytorch_model_fsdp_1", "--to-units", "6", "-o", tmp_path / "out")
    assert "optimizer: optimizer_1 follows the layers" in told
    assert "kept: optimizer_0, pytorch_model_fsdp_0" in told
