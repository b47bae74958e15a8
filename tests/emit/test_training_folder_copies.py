"""Folders of Accelerate that hold their network in several files, or twice: nothing stays at the source's depth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import elastic_ir as eir
from elastic_ir.errors import EmitError, SourceError
from tests.checkpoints.accelerate_folders import save_plain, save_sharded
from tests.checkpoints.dcp_folders import Net, groups_of, trained
from tests.emit.test_training_folder import assert_followed, origin_of, run


def split(folder: Path, parts: int = 2) -> None:
    """The network's file as ``save_model`` of Accelerate has it with a small ``max_shard_size``."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(state)
    places: dict[str, str] = {}
    for number in range(parts):
        file = f"model-{number + 1:05}-of-{parts:05}.safetensors"
        held = {name: state[name] for name in names[number::parts]}
        save_file(held, folder / file, {"format": "pt"})
        places |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_read_and_written(tmp_path: Path) -> None:
    source, out = save_plain(tmp_path / "source", *trained()), tmp_path / "out"
    split(source)
    told = run("stretch", source, "--plan", "0-3,1,2", "-o", out)
    assert "kept: random_states_0.pkl, scheduler.bin as before" in told and "left out" not in told
    places = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert {path.name for path in out.glob("*.safetensors")} == set(places.values()) and len(places) == 39
    state: dict[str, torch.Tensor] = {}
    for file in set(places.values()):
        held = load_file(out / file)
        assert {name for name, home in places.items() if home == file} == held.keys()
        state |= held
    net = Net(6, seed=1)
    optimizer = torch.optim.AdamW(groups_of(net), 1e-2)
    net.load_state_dict(state, strict=True)
    optimizer.load_state_dict(torch.load(out / "optimizer.bin", weights_only=True))
    assert_followed(net, optimizer)
    assert "equal" in run("verify", out, "--against", source)
    run("undo", out, "-o", tmp_path / "again")
    run("verify", tmp_path / "again", "--against", source)
    run("squeeze", source, "--to-units", "1", "-o", tmp_path / "one")
    assert [path.name for path in (tmp_path / "one").glob("model*")] == ["model.safetensors"]


def test_a_lacking_shard_is_named(tmp_path: Path) -> None:
    source = save_plain(tmp_path / "source", *trained())
    split(source)
    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceError, match=r"is not complete: model-00002-of-00002.safetensors of 2 shards"):
        eir.load(source)


def test_a_second_file_of_the_network_follows(tmp_path: Path) -> None:
    """The same in another form, and an average under the same names in a file of its own."""
    net, optimizer = trained()
    source, out = save_plain(tmp_path / "source", net, optimizer), tmp_path / "out"
    torch.save(net.state_dict(), source / "pytorch_model.bin")
    save_file({name: tensor + 1 for name, tensor in net.state_dict().items()}, source / "ema.safetensors")
    told = run("stretch", source, "--plan", "0-3,1,2", "-o", out)
    assert "copy: ema.safetensors, pytorch_model.bin follows the layers" in told
    saved = torch.load(out / "pytorch_model.bin", weights_only=True)
    average = load_file(out / "ema.safetensors")
    Net(6).load_state_dict(saved, strict=True)
    assert average.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(tensor, net.state_dict()[origin_of(name)]), name
        assert torch.equal(average[name], net.state_dict()[origin_of(name)] + 1), name


@pytest.mark.parametrize("form", ["other depth", "damaged", "shards", "computed"])
def test_a_second_file_that_cannot_follow_is_left_out(form: str, tmp_path: Path) -> None:
    net, optimizer = trained()
    source, out = save_plain(tmp_path / "source", net, optimizer), tmp_path / "out"
    names = ["pytorch_model.bin"]
    if form == "shards":
        split(source)
        save_file(net.state_dict(), source / "model.safetensors", {"format": "pt"})
        names = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
        names.append("model.safetensors.index.json")
    elif form == "damaged":
        (source / "pytorch_model.bin").write_bytes(b"PK")
    else:
        torch.save(Net(4 if form == "computed" else 5).state_dict(), source / "pytorch_model.bin")
    ways = ["--scale", "down=0.5"] if form == "computed" else []
    if form == "computed":
        (source / "optimizer.bin").unlink()
    told = run("stretch", source, "--plan", "0-3,1,2", "-o", out, *ways)
    assert f"left out: {', '.join(names)}, whose depth is the source's" in told
    assert not any((out / name).exists() for name in names)


def test_what_is_of_no_layer_stays(tmp_path: Path) -> None:
    source, out = save_plain(tmp_path / "source", *trained()), tmp_path / "out"
    save_file({"value.weight": torch.ones(8, 1)}, source / "critic.safetensors")
    told = run("stretch", source, "--plan", "0-3,1,2", "-o", out)
    assert "kept: critic.safetensors, random_states_0.pkl" in told
    assert (out / "critic.safetensors").read_bytes() == (source / "critic.safetensors").read_bytes()


@pytest.mark.parametrize("sharded", ["network", "optimizer"])
def test_one_network_in_two_forms_of_training_is_refused(sharded: str, tmp_path: Path) -> None:
    net, optimizer = trained()
    source = save_plain(tmp_path / "source", net, optimizer)
    save_sharded(tmp_path / "fsdp", net, optimizer)
    if sharded == "network":
        (tmp_path / "fsdp" / "pytorch_model_fsdp_0").rename(source / "pytorch_model_fsdp_0")
        said = "holds its network as model.safetensors and as pytorch_model_fsdp_0; take away the one"
    else:
        (tmp_path / "fsdp" / "optimizer_0").rename(source / "optimizer_0")
        said = "optimizer_0 is in shards, and model.safetensors is not; write the weights alone"
    with pytest.raises(EmitError, match=said):
        eir.save(eir.stretch(eir.load(source), to_units=6), tmp_path / "out")
    assert not (tmp_path / "out").exists()
