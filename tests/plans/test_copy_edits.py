"""Copies that are scaled, or start at zero: bytes, record, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import elastic_ir as eir
from elastic_ir.checkpoints.record import Origin, read_record
from elastic_ir.errors import PlanError
from elastic_ir.frontends.masks import read_masks
from elastic_ir.plans.copy_edits import parse_names, parse_scale
from elastic_ir.zoo import cifar_resnet
from tests.checkpoints.folders import config, llama, run, write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", llama(), config(4), shards=2)


def test_copies_are_scaled_and_originals_are_not(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("stretch", source, "--plan", "0-3,1,2,1", "--scale", "o_proj=0.1,mlp.down_proj=3", "-o", out)
    assert done.exit_code == 0, done.output
    state, made = llama(), load_file(out / "model.safetensors")
    for at, layer in enumerate([0, 1, 2, 3, 1, 2, 1]):
        for name in (n for n in state if n.startswith(f"model.layers.{layer}.")):
            wanted = state[name]
            if at > 3 and "o_proj" in name:
                wanted = (wanted.astype(np.float32) * np.float32(0.1)).astype(np.float16)
            elif at > 3 and "down_proj" in name:
                wanted = wanted.astype(np.float16) * np.float16(3)
            assert made[name.replace(f"layers.{layer}.", f"layers.{at}.")].tobytes() == wanted.tobytes()
    (step,) = read_record(out)
    name = "model.layers.{}.self_attn.o_proj.weight"
    assert step.origin(name.format(6)) == Origin(name.format(1), 0, 0.1)
    assert step.origin(name.format(1)) == Origin(name.format(1))
    assert "one of the source's, but for multiples (6);" in (out / "README.md").read_text()
    assert not eir.verify_checkpoint(out, check=False).differences


def test_zeros_are_not_read(source: Path, tmp_path: Path) -> None:
    done = run("stretch", source, "--to-units", 6, "--zero", "o_proj,down_proj", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    made = load_file(tmp_path / "out" / "model.safetensors")
    zero = {name for name, array in made.items() if not array.any()}
    assert zero == {f"model.layers.{n}.{p}_proj.weight" for n in (4, 5) for p in ("self_attn.o", "mlp.down")}
    assert all(made[name].tobytes() == bytes(made[name].nbytes) for name in zero)
    (step,) = read_record(tmp_path / "out")
    assert {step.origin(name).scale for name in zero} == {0.0}
    assert not eir.verify_checkpoint(tmp_path / "out", check=False).differences


def test_one_copy_after_every_second_layer(source: Path, tmp_path: Path) -> None:
    """LLaMA-Pro's interleaving, said by --replicate or by a plan."""
    for number, way in enumerate(
        (("--to-units", 6, "--order", "interpolate", "--replicate", "1,3"), ("--plan", "0,1,1,2,3,3"))
    ):
        out = tmp_path / f"out{number}"
        assert run("stretch", source, *way, "--zero", "o_proj", "-o", out).exit_code == 0
        (step,) = read_record(out)
        assert step.plan == {"model.layers": "0-1,1-3,3"}
        assert [
            n for n in range(6) if step.origin(f"model.layers.{n}.self_attn.o_proj.weight").scale == 0
        ] == [2, 5]


def test_masks_stay(source: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    mask = np.random.default_rng(0).random((8, 8)) < 0.5
    save_file({name: mask}, source / "model.masks.safetensors")
    run("stretch", source, "--plan", "0-3,1", "--scale", "o_proj=0.5", "-o", tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    twin = name.replace(".1.", ".4.")
    assert (made[twin] == np.where(mask, llama()[name].astype(np.float16) * np.float16(0.5), 0)).all()
    assert (read_masks(tmp_path / "out" / "model.masks.safetensors")[twin].array() == mask).all()
    assert not eir.verify_checkpoint(tmp_path / "out", check=False).differences


def test_what_is_refused(source: Path, tmp_path: Path) -> None:
    graph = eir.load(source, headers_only=True)
    with pytest.raises(
        PlanError, match=r"'wo' is in no copied block; model.layers has input_layernorm, mlp\.down_proj, "
    ):
        eir.stretch(graph, to_units=5, scale={"wo": 0.5})
    with pytest.raises(PlanError, match="no block occurs twice, so there is no copy"):
        eir.stretch(graph, plan="0-3", zero=["o_proj"])
    with pytest.raises(PlanError, match=r"o_proj\.weight cannot be both scaled \(self_attn\) and zero"):
        eir.stretch(graph, to_units=5, scale={"self_attn": 0.5}, zero="o_proj")
    once = eir.stretch(graph, to_units=5, scale="o_proj=0.5")
    with pytest.raises(
        PlanError, match="was scaled before; write the network, and start from what is written"
    ):
        eir.stretch(once, plan="0-4,4", scale="o_proj=0.5")
    done = run("stretch", source, "--to-units", 5, "--zero", "o_proj", "--identity")
    assert done.exit_code == 2 and "--zero and --identity mean the same" in done.output


def test_packed_layers_are_refused(tmp_path: Path) -> None:
    state = {name: array.view(np.int16) if "o_proj" in name else array for name, array in llama().items()}
    graph = eir.load(write(tmp_path / "packed", state, config(4)), headers_only=True)
    with pytest.raises(
        PlanError, match=r"model\.layers\.0\.self_attn\.o_proj\.weight is int16, which cannot be scaled"
    ):
        eir.stretch(graph, to_units=5, scale="o_proj=0.5")
    with pytest.raises(PlanError, match="is int16, whose zeros may not mean zero; its layer is packed"):
        eir.stretch(graph, to_units=5, zero="o_proj")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("o_proj", "'o_proj' in 'o_proj' is not a factor; write for example o_proj=0.5"),
        ("o_proj=x", "is not a factor"),
        ("o_proj=inf", "is not a factor"),
        ("o-proj=1", "'o-proj' in 'o-proj' is not a name inside a block"),
        ("a=1,a=2", "'a' is scaled twice"),
    ],
)
def test_bad_factors(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_scale(text)
    assert message in str(caught.value)


def test_notations() -> None:
    assert parse_scale("o_proj=0.5, mlp.down_proj=2e-1") == {"o_proj": 0.5, "mlp.down_proj": 0.2}
    assert parse_names("o_proj, mlp.down_proj") == ("o_proj", "mlp.down_proj")


def test_traced_networks_begin_as_the_identity() -> None:
    import torch

    torch.manual_seed(0)
    model = cifar_resnet(14, width=4).eval()
    images = torch.randn(2, 3, 32, 32)
    deeper = eir.stretch(eir.trace(model), to_stages=(3, 3, 3), zero="auto")
    assert torch.equal(deeper.to_module().eval()(images), model(images))
