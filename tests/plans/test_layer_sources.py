"""Layers of several folders in one: bytes, configuration, masks, record, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import elastic_ir as eir
from elastic_ir.checkpoints.config.differences import differences
from elastic_ir.checkpoints.record import Origin, read_record
from elastic_ir.errors import EmitError, PlanError
from elastic_ir.frontends.masks import read_masks
from elastic_ir.zoo import cifar_resnet
from tests.checkpoints.folders import State, config, llama, run, write


def expected(sources: list[State], order: list[tuple[int, int]]) -> dict[str, bytes]:
    """The bytes of the Llama whose layers are those, each a number of a source and of a layer there."""
    found = {name: array.tobytes() for name, array in sources[0].items() if "layers" not in name}
    for at, (source, layer) in enumerate(order):
        for name, array in sources[source].items():
            if name.startswith(f"model.layers.{layer}."):
                found[name.replace(f"layers.{layer}.", f"layers.{at}.", 1)] = array.tobytes()
    return found


def made(folder: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_file(folder / "model.safetensors").items()}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    lists = {"layer_types": ["full", "full", "sliding", "full"], "mlp_only_layers": [1]}
    others = {"layer_types": list("pqrstu"), "mlp_only_layers": [2, 5], "rope_theta": 5e5, "bos_token_id": 7}
    one = write(tmp_path / "one", llama(4), config(4, **lists, rope_theta=1e4), shards=2)
    return one, write(tmp_path / "other", llama(6, seed=1), config(6, **others))


def test_layers_of_two_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("stretch", folders[0], "--with", f"b={folders[1]}", "--plan", "0-2,b/2-5,3,b/2", "-o", out)
    assert done.exit_code == 0, done.output
    assert "model.layers  4 -> 9  0-2,b/2-5,3,b/2" in done.output
    assert "note:       config.json has rope_theta = 10000.0, 'b' has 500000.0\n" in done.output
    assert "token" not in done.output
    order = [(0, 0), (0, 1), (0, 2), (1, 2), (1, 3), (1, 4), (1, 5), (0, 3), (1, 2)]
    assert made(out) == expected([llama(4), llama(6, seed=1)], order)
    told = json.loads((out / "config.json").read_text())
    assert told["num_hidden_layers"] == 9 and told["rope_theta"] == 1e4
    assert told["layer_types"] == ["full", "full", "sliding", "r", "s", "t", "u", "full", "r"]
    assert told["mlp_only_layers"] == [1, 3, 6, 8]
    (step,) = read_record(out)
    assert step.sources == ("one", "other")
    assert step.plan == {"model.layers": "0-2,b/2-5,3,b/2"}
    name = "mlp.up_proj.weight"
    assert step.origin(f"model.layers.4.{name}") == Origin(f"model.layers.3.{name}", 1)
    assert step.origin(f"model.layers.7.{name}") == Origin(f"model.layers.3.{name}", 0)
    assert run("verify", out).output.endswith("result:     equal\n")
    card = (out / "README.md").read_text()
    assert "Made from `one` and layers of `other` (`b`) by ElasticIR" in card
    assert "- `model.layers`: 3 from b/2, 4 from b/3, 5 from b/4, 6 from b/5, 7 from 3, 8 from b/2" in card


def test_all_layers_of_another_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = (eir.load(folder, headers_only=True) for folder in folders)
    eir.save(eir.stretch(one, plan="b/0-5", others={"b": other}), tmp_path / "out", check=False)
    assert made(tmp_path / "out") == expected([llama(4), llama(6, seed=1)], [(1, n) for n in range(6)])


def test_one_step_after_another(folders: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = (eir.load(folder, headers_only=True) for folder in folders)
    first = eir.stretch(one, plan="0-3,b/5", others={"b": other})
    again = eir.stretch(first, plan="0,4,c/1,4", others={"c": other})
    assert again.lineage()["model.layers.2.mlp.up_proj.weight"] == "c/model.layers.1.mlp.up_proj.weight"
    assert again.lineage()["model.layers.3.mlp.up_proj.weight"] == "b/model.layers.5.mlp.up_proj.weight"
    eir.save(again, tmp_path / "out", check=False)
    order = [(0, 0), (1, 5), (1, 1), (1, 5)]
    assert made(tmp_path / "out") == expected([llama(4), llama(6, seed=1)], order)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["layer_types"] == [
        "full",
        "u",
        "q",
        "u",
    ]
    with pytest.raises(PlanError, match="has layers of a 'b' already"):
        eir.stretch(first, plan="0,b/1", others={"b": other})
    with pytest.raises(PlanError, match="b was changed after it was read; write it"):
        eir.stretch(one, plan="0,b/1", others={"b": first})


def test_masks_come_with_the_layers(folders: tuple[Path, Path], tmp_path: Path) -> None:
    name = "model.layers.{}.mlp.up_proj.weight"
    masks = [np.random.default_rng(seed).random((16, 8)) < 0.5 for seed in range(2)]
    for folder, mask in zip(folders, masks, strict=True):
        save_file({name.format(1): mask}, folder / "model.masks.safetensors")
    done = run(
        "stretch", folders[0], "--with", f"b={folders[1]}", "--plan", "0-3,b/0-1", "-o", tmp_path / "out"
    )
    assert done.exit_code == 0, done.output
    kept = read_masks(tmp_path / "out" / "model.masks.safetensors")
    assert set(kept) == {name.format(1), name.format(5)}
    for at, mask in zip((1, 5), masks, strict=True):
        assert (kept[name.format(at)].array() == mask).all()
    assert run("verify", tmp_path / "out").exit_code == 0


@pytest.mark.parametrize(
    ("plan", "sources", "message"),
    [
        ("0,c/1", ("b",), "the plan takes c/1; say which network 'c' is, by --with c=SOURCE; given: b"),
        ("0,b/1", (), "the plan takes b/1; say which network 'b' is, by --with b=SOURCE"),
        ("0-3", ("b",), "the plan takes no layer of 'b'; write b/0-3, for example"),
        ("0,b/6", ("b",), "b's stage 'model.layers' has no block 6: its blocks are 0 to 5"),
        ("0,b/1,9", ("b",), "stage 'model.layers' has no block 9: its blocks are 0 to 3"),
    ],
)
def test_a_plan_that_does_not_fit(
    folders: tuple[Path, Path], tmp_path: Path, plan: str, sources: tuple[str, ...], message: str
) -> None:
    given = [part for name in sources for part in ("--with", f"{name}={folders[1]}")]
    done = run("stretch", folders[0], *given, "--plan", plan, "-o", tmp_path / "out")
    assert done.exit_code == 1 and f"error: {message}" in done.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_fit(folders: tuple[Path, Path]) -> None:
    done = run("stretch", folders[0], "--with", "b", "--plan", "0,b/1")
    assert done.exit_code == 2 and "'b' names no source; write for example b=other-llama" in done.output
    done = run(
        "stretch", folders[0], "--with", f"b={folders[1]}", "--with", f"b={folders[0]}", "--plan", "0,b/1"
    )
    assert done.exit_code == 2 and "--with names 'b' twice" in done.output
    done = run("stretch", folders[0], "--with", f"b={folders[1]}", "--to-units", 5)
    assert "layers of other networks are named by a plan; say --plan 0-15,b/6-21" in done.output
    done = run("stretch", folders[0], "--plan", "0,2b/1")
    assert done.exit_code == 2 and "'2b' is not a name of a network; write for example b/6-21" in done.output


def test_layers_that_differ(folders: tuple[Path, Path], tmp_path: Path) -> None:
    one = eir.load(folders[0], headers_only=True)

    def refused(state: State) -> str:
        folder = write(tmp_path / "bad", state, config(4))
        with pytest.raises(PlanError) as caught:
            eir.stretch(one, plan="0-3,b/2", others={"b": eir.load(folder, headers_only=True)})
        return str(caught.value)

    name = "model.layers.2.mlp.up_proj.weight"
    state = llama(4)
    wide = {**state, **{n: np.zeros((24, 8), np.float16) for n in state if "up_proj" in n}}
    assert refused(wide) == f"b/2 does not fit: {name} is [24, 8] in b, and {name} [16, 8] in one"
    double = {**state, **{n: state[n].astype(np.float32) for n in state if "up_proj" in n}}
    assert refused(double) == (
        f"b/2 does not fit: {name} is float32 in b, and {name} float16 in one; convert one of the two first"
    )
    biased = {**state, **{f"model.layers.{n}.mlp.up_proj.bias": np.zeros(16, np.float16) for n in range(4)}}
    assert refused(biased) == (
        "b/2 does not fit: one has no mlp.up_proj.bias in its layer, as b has with model.layers.2.mlp.up_proj.bias"
    )
    fewer = {n: array for n, array in state.items() if "up_proj" not in n}
    assert (
        refused(fewer)
        == f"b/2 does not fit: b has no mlp.up_proj.weight in its layer, as one has with {name}"
    )
    named = {n.replace("model.", "decoder."): array for n, array in state.items()}
    assert refused(named) == ("b/2: of b there is no stage 'model.layers'; the stages are 'decoder.layers'")


def test_a_layer_finds_its_like_among_layers_of_several_kinds(tmp_path: Path) -> None:
    """Dense layers before those with experts: what is cloned is of the kind that the other network's layer is of."""

    def mixed(layers: int, dense: int, seed: int) -> State:
        state = llama(layers, seed=seed)
        for layer in range(dense, layers):
            state[f"model.layers.{layer}.mlp.gate.weight"] = np.full((4, 8), seed, np.float16)
        return state

    states = [mixed(4, 1, 0), mixed(6, 3, 1)]
    one = write(tmp_path / "one", states[0], config(4, first_k_dense_replace=1))
    other = write(tmp_path / "other", states[1], config(6, first_k_dense_replace=3))
    graphs = [eir.load(folder, headers_only=True) for folder in (one, other)]
    eir.save(eir.stretch(graphs[0], plan="0-3,b/3-5", others={"b": graphs[1]}), tmp_path / "out", check=False)
    order = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 3), (1, 4), (1, 5)]
    assert made(tmp_path / "out") == expected(states, order)
    # of the dense ones the first alone is like it, and is the entry
    with pytest.raises(PlanError, match=r"b/1 does not fit: b has no mlp\.gate.weight in its layer"):
        eir.stretch(graphs[0], plan="0-3,b/1", others={"b": graphs[1]})


def test_a_list_that_the_other_configuration_lacks(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    plain = write(tmp_path / "plain", llama(4), config(4))
    graphs = [eir.load(folder, headers_only=True) for folder in (folders[0], plain)]
    with pytest.raises(
        PlanError, match=r"config\.json's layer_types has an entry for each layer, and that of 'b'"
    ):
        eir.save(eir.stretch(graphs[0], plan="0,b/1", others={"b": graphs[1]}), tmp_path / "out", check=False)


def test_what_configurations_say_otherwise() -> None:
    one = {
        "hidden_act": "silu",
        "rope": {"theta": 1, "type": "a"},
        "vocab_size": 3,
        "num_hidden_layers": 4,
        "x": 1,
    }
    other = {
        "hidden_act": "gelu",
        "rope": {"theta": 2, "type": "a"},
        "vocab_size": 9,
        "num_hidden_layers": 9,
        "y": 2,
    }
    assert differences(one, other, "b") == [
        'config.json has hidden_act = "silu", \'b\' has "gelu"',
        "config.json has rope.theta = 1, 'b' has 2",
        "config.json has x = 1, 'b' has none",
        "y: 'b' has 2, and the first source has none",
    ]


def test_traced_networks_too() -> None:
    torch.manual_seed(0)
    models = [cifar_resnet(depth, width=4).eval() for depth in (14, 20)]
    graphs = [eir.trace(model) for model in models]
    mixed = eir.stretch(graphs[0], plan="0,1|0,b/1,b/2,1|0,b/2", others={"b": graphs[1]})
    module = mixed.to_module().eval()
    states = [model.state_dict() for model in models]
    for name, tensor in module.state_dict().items():
        source, _, origin = mixed.lineage()[name].rpartition("/")
        assert torch.equal(tensor, states[source == "b"][origin])
    assert mixed.lineage()["layer2.1.conv1.weight"] == "b/layer2.1.conv1.weight"
    assert [len(stage) for stage in mixed.stages] == [2, 4, 2]
    assert torch.isfinite(module(torch.randn(2, 3, 32, 32))).all()
    optimizer = torch.optim.SGD(models[0].parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(EmitError, match="is of another network, whose optimizer's state is not at hand"):
        mixed.remap_optimizer_state(
            optimizer.state_dict(), [name for name, _ in models[0].named_parameters()]
        )
    with pytest.raises(PlanError, match="computes something else"):
        eir.stretch(graphs[0], plan="0|0,b/1|0", others={"b": _other_norms(graphs[1])})


def _other_norms(graph: eir.Graph) -> eir.Graph:
    from torch import nn

    torch.manual_seed(0)
    model: Any = cifar_resnet(20, width=4)
    for block in model.layer2:
        block.bn1 = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)  # the same names and shapes
    return eir.trace(model.eval())
