"""Which state dict of a checkpoint is read, with which masks, what is left behind, and which tensors are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.errors import MaskError, SourceError
from elastic_ir.frontends.masks import read_masks
from elastic_ir.frontends.saved_state import choose, state_dict_of


def weights(seed: int = 0, layers: int = 4) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return {
        f"layers.{i}.{name}.weight": torch.randn(6, 6, generator=made)
        for i in range(layers)
        for name in ("a", "b")
    }


def masks(names: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: (tensor > 0).float() for name, tensor in names.items()}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_the_only_one_is_found_at_any_level_and_without_a_wrapper() -> None:
    state = {"a": torch.zeros(1), "b": torch.ones(1)}
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in wrapped.items()}
    for found in (
        state, wrapped, compiled, {"state_dict": wrapped, "epoch": 3}, {"model": state, "optimizer": {"state": {}}},
        {"student": state, "epoch": 1}, {"state": {"model": state}}, {"a": {"b": {"c": {"d": wrapped}}}},
        {"model": state, "state_dict": state}, {"module": state, "param_shapes": [{"a": torch.Size([1])}]},
    ):  # fmt: skip
        assert state_dict_of(found) == state
    assert state_dict_of({**state, "module.c": state["a"]}) is not None
    deep: dict[str, Any] = {"x": state}
    for _ in range(2000):
        deep = {"x": deep}
    others: tuple[object, ...] = (
        nn.Linear(1, 1), {}, [], None, {"a": 1}, {**state, "epoch": 3}, {1: state["a"]}, {"optimizer": None}, deep,
    )  # fmt: skip
    for nothing in others:
        assert state_dict_of(nothing) is None
    loop: dict[str, Any] = {}
    loop["x"] = loop
    assert state_dict_of(loop) is None


@pytest.mark.parametrize(
    "names",
    [("model", "ema"), ("state_dict", "state_dict_ema"), ("params", "params_ema"), ("student", "teacher"),
     ("generator", "discriminator")],
)  # fmt: skip
def test_several_that_could_be_meant_are_an_error_that_lists_them(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    one, other = names
    path = saved(tmp_path / "w.pt", {one: weights(0), other: weights(1, 5), "epoch": 3})
    with pytest.raises(SourceError) as caught:
        eir.load(path)
    assert str(caught.value) == (
        f"w.pt holds several state dicts: {one} (8 tensors), {other} (10 tensors); say which one is meant, for example "
        f"by --key {one} (in Python key={one!r})"
    )
    graph = eir.load(path, key=other)
    assert len(graph.weights) == 10
    assert graph.info.left_behind == (one, "epoch")


def test_an_optimizer_and_small_tables_are_no_candidates(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    content = {
        "net": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 7, "scheduler": None,
        "named": {"state": {"0.weight": {"exp_avg": torch.zeros(4, 4)}}, "param_groups": []},
        "normalizer": {"mean": torch.zeros(3), "std": torch.ones(3)},
    }  # fmt: skip
    graph = eir.load(saved(tmp_path / "w.pt", content))
    assert list(graph.weights) == list(model.state_dict())
    assert graph.info.left_behind == ("optimizer", "epoch", "named", "normalizer")


def test_a_key_leads_into_dictionaries_and_may_have_dots_itself(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "w.pt",
        {"state": {"model": weights(0), "ema.0.99": weights(1, 5)}, "model": weights(2, 6), "n": 1},
    )
    for key, count in (("state.model", 8), ("state.ema.0.99", 10), ("model", 12)):
        assert len(eir.load(path, key=key).weights) == count
    assert eir.load(path, key="state.model").info.left_behind == ("model", "n", "state.ema.0.99")
    for key in ("state.modul", "model.layers", "n.x", "state.model.layers.0.a.weight.x", "."):
        with pytest.raises(
            SourceError, match=r"w\.pt has nothing under the key .*; it holds .*state\.model \(8 tens"
        ):
            eir.load(path, key=key)
    with pytest.raises(SourceError, match=r"several state dicts: state\.model .*--key state\.model"):
        eir.load(path, key="state")
    with pytest.raises(SourceError, match=r"holds a dict and no state dict under 'n'"):
        eir.load(path, key="n")


def test_a_key_is_refused_where_there_is_nothing_to_choose(tmp_path: Path) -> None:
    graph = eir.load(saved(tmp_path / "w.pt", weights()))
    for name in ("ours.pt", "ours.safetensors", "ours.ticket"):
        eir.save(graph, tmp_path / name)
        with pytest.raises(SourceError, match="holds one network"):
            eir.load(tmp_path / name, key="model")
    with pytest.raises(
        SourceError, match="nothing under the key 'model'; it is not a dictionary of state dicts"
    ):
        eir.load(tmp_path / "w.pt", key="model")
    with pytest.raises(SourceError, match="holds one network"):
        eir.load("torchvision:resnet18", key="model")


@pytest.mark.parametrize("kind", ["mask", "masks", "pruning_mask"])
def test_masks_beside_the_weights_are_taken(tmp_path: Path, kind: str) -> None:
    state = weights()
    wanted = masks(state)
    suffixed = {f"module.{name}_mask": mask.numpy() for name, mask in wanted.items()}
    for content in (
        {"model": state, kind: wanted},
        {"state_dict": {f"module.{n}": t for n, t in state.items()}, kind: suffixed, "epoch": 1},
        {"run": {"model": state, kind: {n: m.bool() for n, m in wanted.items()}}},
        {"run": {"model": state}, kind: wanted},
    ):
        graph = eir.load(saved(tmp_path / "w.pt", content))
        assert {n: m.numpy().tolist() for n, m in graph.masks().items()} == {
            n: m.numpy().tolist() for n, m in wanted.items()
        }
        assert kind not in graph.info.left_behind
        eir.save(eir.stretch(graph, to_units=6), tmp_path / "out.pt")
        assert len(eir.load(tmp_path / "out.pt").masks()) == 12
    assert set(read_masks(tmp_path / "w.pt")) == set(wanted)


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = weights()
    odd = {name: tensor * 0.5 for name, tensor in state.items()}
    for content, said in (
        ({"model": state, "mask": odd}, "a mask holds only 0 and 1"),
        ({"model": state, "mask": {"elsewhere": torch.ones(6, 6)}}, "fits no weight of the network"),
        (
            {"model": state, "mask": {"layers.0.a.weight": torch.ones(6)}},
            r"has shape \[6\], its weight \[6, 6\]",
        ),
        ({"model": state, "mask": masks(state), "masks": masks(state)}, "several sets of masks: mask, masks"),
    ):
        with pytest.raises(MaskError, match=said):
            eir.load(saved(tmp_path / "w.pt", content))
    with pytest.raises(SourceError, match="no state dict"):
        eir.load(saved(tmp_path / "w.pt", {"mask": masks(state)}))


def test_a_network_beside_other_things_is_read(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)))
    path = saved(tmp_path / "w.pt", {"model": model, "epoch": 3})
    graph = eir.load(path, input_shape=[(1, 4)])
    assert [len(stage) for stage in graph.stages] == [3]
    assert graph.info.left_behind == ("epoch",)
    chosen = choose({"model": model, "ema": weights()}, "w.pt", "model")
    assert chosen is not None
    assert chosen.held is model
    with pytest.raises(SourceError, match=r"model \(a Sequential\), ema \(8 tensors\)"):
        eir.load(saved(path, {"model": model, "ema": weights()}))


@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_plain_are_refused_in_one_line(tmp_path: Path) -> None:
    flat = torch.randn(4, 4).relu()
    kinds = {
        "the meta device and has no values": flat.to("meta"),
        "a quantized tensor": torch.quantize_per_tensor(flat, 0.1, 0, torch.qint8),
        "the dtype complex32": flat.to(torch.complex64).to(torch.complex32),
    }  # fmt: skip
    for said, tensor in kinds.items():
        for content in ({"a.weight": tensor}, {"model": {"a.weight": tensor}, "epoch": 1}):
            with pytest.raises(SourceError) as caught:
                eir.load(saved(tmp_path / "w.pt", content))
            assert said in str(caught.value)
            assert str(caught.value).startswith("w.pt: 'a.weight' ")
            assert str(caught.value).endswith("and save it again")
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(SourceError, match="nothing of it was run"):
        eir.load(saved(tmp_path / "w.pt", {"a.weight": nested}))
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(SourceError, match="has no values"):
        eir.load(saved(tmp_path / "w.pt", model))


def test_tensors_that_look_odd_and_are_plain_are_read(tmp_path: Path) -> None:
    pair = torch.view_as_complex(torch.randn(3, 2))
    big = torch.arange(12.0).reshape(3, 4)
    content = {
        "conj": pair.conj(), "complex": pair, "turned": big.T, "every": big[:, ::2],
        "parameter": nn.Parameter(big), "frozen": nn.Parameter(big, requires_grad=False),
        "repeated": big[:1].expand(5, 4), "bf16": big.bfloat16(), "eight": big.to(torch.float8_e4m3fn),
        "none": torch.empty(0, 3),
    }  # fmt: skip
    negative = torch.view_as_complex(torch.randn(3, 2)).conj().imag
    assert negative.is_neg()
    assert torch.equal(
        eir.load(saved(tmp_path / "n.pt", {"n": negative})).state_dict()["n"], negative.resolve_neg()
    )
    read = eir.load(saved(tmp_path / "w.pt", content)).state_dict()
    for name, tensor in content.items():
        assert torch.equal(read[name].float() if name == "eight" else read[name],
                           tensor.float() if name == "eight" else tensor.resolve_conj().resolve_neg())  # fmt: skip


# -- a prefix that an architecture's names have in the file -------------------------------------------------------


def network() -> nn.Module:
    from elastic_ir.zoo import cifar_resnet

    return cifar_resnet(14, width=4)


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "module.", "net.encoder."])
def test_one_prefix_before_every_name_is_taken_off(tmp_path: Path, prefix: str) -> None:
    state = network().state_dict()
    under = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    pruned = {
        f"{prefix}{name}": (tensor > 0) for name, tensor in state.items() if name.endswith("conv1.weight")
    }
    counter = {"n_averaged": torch.tensor(3)}
    path = saved(tmp_path / "w.pt", {"state_dict": counter | under, "mask": pruned, "epoch": 1})
    graph = eir.load(path, arch=network())
    assert list(graph.state_dict()) == list(state)
    assert set(graph.masks()) == {name.removeprefix(prefix) for name in pruned}
    assert graph.info.left_behind == ("epoch", "n_averaged")
    network().load_state_dict(graph.state_dict())


def test_a_prefix_that_leaves_doubt_is_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    under = {f"model.{name}": tensor for name, tensor in state.items()}
    twice = under | {f"ema.{name}": tensor for name, tensor in state.items()}
    with pytest.raises(SourceError, match=r"under several prefixes \(model\., ema\.\)"):
        eir.load(saved(tmp_path / "w.pt", twice), arch=network())
    with pytest.raises(SourceError, match=r"head\.weight is unknown to it"):
        eir.load(saved(tmp_path / "w.pt", under | {"head.weight": torch.ones(2, 2)}), arch=network())
    del under["model.fc.bias"]
    with pytest.raises(SourceError, match=r"conv\.weight is missing|is missing"):
        eir.load(saved(tmp_path / "w.pt", under), arch=network())


@pytest.mark.slow
def test_the_command_line_takes_the_key_and_says_what_is_left(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"model": weights(), "ema": weights(1), "optimizer": {}, "epoch": 3})

    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "elastic_ir.cli", *words], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    code, said = run("stretch", str(path), "--to-units", "6", "--key", "ema", "-o", str(tmp_path / "out.pt"))
    assert code == 0, said
    assert "note:" in said
    assert "left behind: model, optimizer, epoch" in said
    assert torch.equal(torch.load(tmp_path / "out.pt")["layers.0.a.weight"], weights(1)["layers.0.a.weight"])
    code, said = run("diff", str(path), str(path), "--key", "model", "--key-b", "ema")
    assert code == 0, said
    assert "0 tensors are equal" in said
    code, said = run("inspect", str(path))
    assert code == 1
    assert said.count("\n") == 1
    assert said.startswith("error: w.pt holds several state dicts: model (8 tensors), ema (8 tensors)")
