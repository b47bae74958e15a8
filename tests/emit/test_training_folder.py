"""Folders of Accelerate at another depth: weights and optimizers follow, all else is as it was, training goes on."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_state

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import EmitError, SourceError
from tests.checkpoints.accelerate_folders import save_plain, save_sharded
from tests.checkpoints.dcp_folders import WIDTH, Net, groups_of, step, trained

ORDER = [0, 1, 2, 3, 1, 2]


def run(*words: object, ok: bool = True) -> str:
    result = CliRunner().invoke(elastic_ir, list(map(str, words)))
    assert (result.exit_code == 0) is ok, result.output
    return " ".join(result.output.split())


def origin_of(name: str) -> str:
    head, number, *rest = name.split(".", 2)
    return f"{head}.{ORDER[int(number)]}.{rest[0]}" if head == "layers" else name


def moments(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    return {name: optimizer.state[p] for name, p in net.named_parameters()}


def assert_followed(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Every weight and moment of the deeper network is its source's, and a step can be made."""
    before, optimizer_before = trained()
    old = moments(before, optimizer_before)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before.state_dict()[origin_of(name)]), name
    for name, held in moments(net, optimizer).items():
        for kind, moment in held.items():
            assert torch.equal(moment, old[origin_of(name)][kind]), (name, kind)
    step(net, optimizer)  # type: ignore[arg-type]


def loaded(folder: Path) -> tuple[Net, torch.optim.Optimizer]:
    """What ``load_state`` does with a folder of one process."""
    net = Net(6, seed=1)
    optimizer = torch.optim.AdamW(groups_of(net), 1e-2)
    whole = folder / "model.safetensors"
    state = (
        load_file(whole) if whole.exists() else torch.load(folder / "pytorch_model.bin", weights_only=True)
    )
    net.load_state_dict(state, strict=True)
    optimizer.load_state_dict(torch.load(folder / "optimizer.bin", weights_only=True))
    return net, optimizer


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_weights_and_optimizer_follow_and_all_else_is_copied(safe: bool, tmp_path: Path) -> None:
    """Two groups by numbers; the file of safetensors does not have the network's order."""
    source, out = save_plain(tmp_path / "source", *trained(), safe), tmp_path / "out"
    told = run("stretch", source, "--plan", "0-3,1,2", "-o", out)
    assert "optimizer: optimizer follows the layers" in told
    assert "kept: random_states_0.pkl, scheduler.bin as before" in told
    assert {path.name for path in out.iterdir()} == {
        *(path.name for path in source.iterdir()), "elastic_ir.json",
    }  # fmt: skip
    for name in ("random_states_0.pkl", "scheduler.bin"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert_followed(*loaded(out))
    text = run("verify", out, "--against", source)
    assert "equal" in text and re.search("not compared: .*optimizer", text)
    again = tmp_path / "again"
    run("undo", out, "-o", again)
    assert (again / "optimizer.bin").exists() and not (again / "elastic_ir.json").exists()
    state = torch.load(again / "optimizer.bin", weights_only=True)
    first = torch.load(source / "optimizer.bin", weights_only=True)
    assert state["param_groups"] == first["param_groups"]
    for number, held in first["state"].items():
        assert all(torch.equal(moment, state["state"][number][kind]) for kind, moment in held.items())


def test_shards_of_fsdp_follow(tmp_path: Path) -> None:
    source, out = save_sharded(tmp_path / "source", *trained()), tmp_path / "out"
    told = run("stretch", source, "--plan", "0-3,1,2", "-o", out)
    assert "optimizer: optimizer_0 follows the layers" in told
    net = Net(6, seed=1)
    optimizer = torch.optim.AdamW(groups_of(net), 1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: dict[str, Any] = {"model": get_model_state_dict(net)}
        load_state(model, checkpoint_id=out / "pytorch_model_fsdp_0")
        set_model_state_dict(net, model["model"])
        held: dict[str, Any] = {"optimizer": get_optimizer_state_dict(net, optimizer)}
        load_state(held, checkpoint_id=out / "optimizer_0")
        set_optimizer_state_dict(net, optimizer, held["optimizer"])
    assert_followed(net, optimizer)
    assert "equal" in run("verify", out, "--against", source)


def test_averages_in_registered_objects_follow(tmp_path: Path) -> None:
    """By names, as a module's state; by places, as averages of parameters are often kept; another's stays."""
    net, optimizer = trained()
    by_name = {"module": {name: tensor + 1 for name, tensor in net.state_dict().items()}, "decay": 0.9}
    by_place = {"shadow_params": [p.detach() + 2 for p in net.parameters()], "decay": 0.9}
    source = save_plain(
        tmp_path / "source", net, optimizer, by_name=by_name, by_place=by_place, other={"x": torch.ones(3)}
    )
    told = run("stretch", source, "--plan", "0-3,1,2", "-o", tmp_path / "out")
    assert "average: custom_checkpoint_0.module, custom_checkpoint_1.shadow_params follow" in told
    assert "kept: custom_checkpoint_2.pkl" in told
    made = torch.load(tmp_path / "out" / "custom_checkpoint_0.pkl", weights_only=True)
    assert made["decay"] == 0.9
    for name in Net(6).state_dict():
        assert torch.equal(made["module"][name], net.state_dict()[origin_of(name)] + 1), name
    listed = torch.load(tmp_path / "out" / "custom_checkpoint_1.pkl", weights_only=True)["shadow_params"]
    names = [name for name, _ in Net(6).named_parameters()]
    assert len(listed) == len(names)
    for name, tensor in zip(names, listed, strict=True):
        assert torch.equal(tensor, net.state_dict()[origin_of(name)] + 2), name


class Attention(nn.Module):
    """Four layers of one shape, in another order than their names'."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q", "k", "v", "o"):
            self.add_module(name, nn.Linear(WIDTH, WIDTH, bias=False))


class Ends(nn.Module):
    """Layers between a stem and a head of parameters that have the shapes of those in the layers."""

    def __init__(self, layers: int, behind: str = "final_norm") -> None:
        super().__init__()
        self.emb = nn.Embedding(30, WIDTH)
        self.layers = nn.ModuleList(Attention() for _ in range(layers))
        self.add_module(behind, nn.Linear(WIDTH, WIDTH, bias=False))


def marked(net: nn.Module) -> torch.optim.Optimizer:
    """An optimizer whose moments are unlike each other."""
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for place, parameter in enumerate(net.parameters()):
        parameter.grad = torch.full_like(parameter, place + 1.0)
    optimizer.step()
    return optimizer


def test_parameters_of_one_shape_keep_their_places_in_the_layer(tmp_path: Path) -> None:
    net = Ends(4)
    optimizer = marked(net)
    old = moments(net, optimizer)
    source = save_plain(tmp_path / "source", net, optimizer)
    run("stretch", source, "--plan", "0-3,1,2", "-o", tmp_path / "out")
    deep = Ends(6)
    after = torch.optim.AdamW(deep.parameters())
    after.load_state_dict(torch.load(tmp_path / "out" / "optimizer.bin", weights_only=True))
    for name, held in moments(deep, after).items():
        assert torch.equal(held["exp_avg"], old[origin_of(name)]["exp_avg"]), name


def test_what_shapes_and_names_do_not_show_is_refused(tmp_path: Path) -> None:
    net = Ends(4, "mixer")  # behind the layers or before them?
    source, out = save_plain(tmp_path / "source", net, marked(net)), tmp_path / "out"
    told = run("stretch", source, "--to-units", "6", "-o", out, ok=False)
    assert "do not show which of them begin the layers of layers; say which network it is, by --arch" in told
    assert not out.exists()
    run("stretch", source, "--to-units", "6", "-o", tmp_path / "bare.safetensors")


def test_an_architecture_has_the_order(tmp_path: Path) -> None:
    source, out = save_plain(tmp_path / "source", *trained()), tmp_path / "out"
    arch = "tests.checkpoints.dcp_folders:Net"
    told = run("stretch", source, "--arch", arch, "--plan", "0-3,1,2", "-o", out)
    assert "optimizer: optimizer follows the layers" in told
    assert_followed(*loaded(out))


@pytest.mark.parametrize("form", ["net", "numbers"])
def test_what_is_not_understood_is_refused(form: str, tmp_path: Path) -> None:
    net, optimizer = trained()
    source = save_plain(tmp_path / "source", net, optimizer)
    if form == "net":
        (source / "model_1.safetensors").write_bytes((source / "model.safetensors").read_bytes())
        with pytest.raises(SourceError, match=r"holds several networks, model.safetensors, model_1"):
            eir.load(source)
        with pytest.raises(EmitError, match=r"may be that of model_1.safetensors or of model.safetensors"):
            eir.save(eir.stretch(eir.load(source, key="model_1"), to_units=6), tmp_path / "out")
    else:
        half = torch.optim.AdamW(list(net.parameters())[:4])
        torch.save(half.state_dict(), source / "optimizer.bin")
        with pytest.raises(EmitError, match="optimizer has 4 of 27 parameters by numbers alone"):
            eir.save(eir.stretch(eir.load(source), to_units=6), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pieces_of_ranks_are_refused(tmp_path: Path) -> None:
    source = save_plain(tmp_path / "source", *trained())
    (source / "model.safetensors").rename(source / "pytorch_model_fsdp_0_rank0.bin")
    with pytest.raises(
        SourceError, match=r"holds the pieces of single ranks \(pytorch_model_fsdp_0_rank0.bin\)"
    ):
        eir.load(source)


@pytest.mark.slow
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_accelerate_goes_on_in_the_deeper_network(safe: bool, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")

    def prepared(layers: int) -> tuple[Any, Net, torch.optim.Optimizer, Any]:
        accelerate.state.AcceleratorState._reset_state(True)
        accelerator = accelerate.Accelerator(cpu=True)
        net = Net(layers)
        optimizer = torch.optim.AdamW(groups_of(net), 1e-2)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return accelerator, *accelerator.prepare(net, optimizer, schedule)

    accelerator, net, optimizer, schedule = prepared(4)
    for _ in range(2):
        step(net, optimizer)
        schedule.step()
    accelerator.save_state(str(tmp_path / "source"), safe_serialization=safe)
    old = {name: dict(optimizer.state[p]) for name, p in net.named_parameters()}
    run("stretch", tmp_path / "source", "--plan", "0-3,1,2", "-o", tmp_path / "out")
    accelerator, deep, after, schedule = prepared(6)
    accelerator.load_state(str(tmp_path / "out"))
    assert schedule.get_last_lr() == [0.0025, 0.0025]
    for name, parameter in deep.named_parameters():
        assert torch.equal(parameter, net.state_dict()[origin_of(name)]), name
        for kind, moment in old[origin_of(name)].items():
            assert torch.equal(after.state[parameter][kind], moment), (name, kind)
    step(deep, after)


def test_layers_of_another_folder_come_along_and_their_absence_is_seen(tmp_path: Path) -> None:
    for name, depth in (("one", 4), ("two", 6)):
        net = Net(depth, seed=depth)
        save_plain(tmp_path / name, net, torch.optim.SGD(net.parameters()))
        (tmp_path / name / "optimizer.bin").unlink()
    run(
        "stretch",
        tmp_path / "one",
        "--plan",
        "0-3,b/4-5",
        "--with",
        f"b={tmp_path / 'two'}",
        "-o",
        tmp_path / "out",
    )
    made, other = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "two"))
    Net(6).load_state_dict(made, strict=True)
    assert all(
        torch.equal(made[name], other[name]) for name in made if name.startswith(("layers.4.", "layers.5."))
    )
    run("verify", tmp_path / "out")
    save_file({name: tensor for name, tensor in made.items() if not name.startswith("layers.5.")},
              tmp_path / "out" / "model.safetensors", {"format": "pt"})  # fmt: skip
    assert "is missing" in run("verify", tmp_path / "out", ok=False)


def test_networks_in_folders_inside_are_named(tmp_path: Path) -> None:
    """As diffusers' training scripts have ``save_state`` leave them."""
    net, optimizer = trained()
    folder = save_plain(tmp_path / "checkpoint-7", net, optimizer)
    for name in ("unet", "unet_ema"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text('{"_class_name": "Unet", "num_layers": 4}')
        shutil.copy(folder / "model.safetensors", folder / name / "diffusion_pytorch_model.safetensors")
    (folder / "model.safetensors").unlink()
    for words in (["inspect", folder], ["stretch", folder, "--component", "unet", "--to-units", 6]):
        said = run(*words, ok=False)
        assert f"give one of these: {folder / 'unet'}, {folder / 'unet_ema'}" in said
        assert "the optimizer's state follows in Python" in said


def test_names_that_are_given_have_the_networks_order(tmp_path: Path) -> None:
    """A file of safetensors is sorted by name, which is not the order in which an optimizer lists its parameters."""
    net, optimizer = trained()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    names = [name for name, _ in net.named_parameters()]
    assert names != sorted(names)
    deep = eir.stretch(eir.load(tmp_path / "net.safetensors"), plan=[ORDER])
    made = Net(len(ORDER))
    made.load_state_dict(deep.state_dict())
    fresh = torch.optim.AdamW(groups_of(made))
    own = {id(p): name for name, p in net.named_parameters()}
    listed = [own[id(p)] for group in optimizer.param_groups for p in group["params"]]
    fresh.load_state_dict(deep.remap_optimizer_state(optimizer.state_dict(), listed))
    assert_followed(made, fresh)
