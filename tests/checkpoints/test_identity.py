"""Copies that begin as the identity, in folders: what closes branches is found, and from_pretrained says the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

import elastic_ir as eir
from elastic_ir.checkpoints.record import read_record
from elastic_ir.errors import PlanError
from tests.checkpoints.folders import config, llama, run, write
from tests.networks.transformers_families import IDS, KV, SMALL

GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 50, "n_positions": 64}
OPT: dict[str, Any] = {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}
O_AND_DOWN = {"self_attn.o_proj.weight", "mlp.down_proj.weight"}

#: How a network is made, and which tensors of a layer close its branches.
NETWORKS: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "llama": (lambda: t.LlamaForCausalLM(t.LlamaConfig(num_hidden_layers=4, **KV, **IDS)), O_AND_DOWN),
    "qwen3": (lambda: t.Qwen3ForCausalLM(t.Qwen3Config(num_hidden_layers=4, head_dim=8, **KV, **IDS)), O_AND_DOWN),
    "gpt2": (
        lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT2, **IDS)),
        {f"{part}.c_proj.{role}" for part in ("attn", "mlp") for role in ("weight", "bias")},
    ),
    "opt": (
        lambda: t.OPTForCausalLM(t.OPTConfig(num_hidden_layers=4, **OPT, **IDS)),
        {f"{part}.{role}" for part in ("self_attn.out_proj", "fc2") for role in ("weight", "bias")},
    ),
    "phi": (  # attention beside the MLP
        lambda: t.PhiForCausalLM(t.PhiConfig(num_hidden_layers=4, **SMALL, **IDS)),
        {f"{part}.{role}" for part in ("self_attn.dense", "mlp.fc2") for role in ("weight", "bias")},
    ),
    "olmo2": (  # a norm on each branch
        lambda: t.Olmo2ForCausalLM(t.Olmo2Config(num_hidden_layers=4, **KV, **IDS)),
        {"post_attention_layernorm.weight", "post_feedforward_layernorm.weight"},
    ),
}  # fmt: skip


def made(name: str) -> Any:
    torch.manual_seed(0)
    model = NETWORKS[name][0]().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases that are no ones and zeros
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_outputs_are_the_source_s(name: str, tmp_path: Path) -> None:
    model = made(name)
    model.save_pretrained(tmp_path / "source")
    options = ("--to-units", "6", "--order", "interpolate", "--replicate", "1,3", "--identity")
    done = run("stretch", tmp_path / "source", *options, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    deeper = type(model).from_pretrained(tmp_path / "out").eval()
    tokens = torch.randint(3, 50, (2, 7))
    with torch.no_grad():
        torch.testing.assert_close(deeper(tokens).logits, model(tokens).logits, rtol=0, atol=1e-6)
    (step,) = read_record(tmp_path / "out")
    (stack,) = step.plan
    zero = {origin for origin in step.lineage if step.origin(origin).scale == 0}
    assert zero == {f"{stack}.{layer}.{part}" for layer in (2, 5) for part in NETWORKS[name][1]}


def refused(folder: Path) -> str:
    with pytest.raises(PlanError) as caught:
        eir.stretch(eir.load(folder, headers_only=True), to_units=5, zero="auto")
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: t.BertModel(t.BertConfig(num_hidden_layers=3, **SMALL)), "not from a sum with its input"),
        (
            lambda: t.Gemma2ForCausalLM(t.Gemma2Config(num_hidden_layers=3, head_dim=8, **KV, **IDS)),
            "is itself computed",  # its norm multiplies by one more than its weight
        ),
    ],
)
def test_streams_that_cannot_be_left_alone(model: Callable[[], Any], reason: str, tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "source")
    message = refused(tmp_path / "source")
    assert reason in message and "name what is to be zero by --zero (zero=): " in message
    assert "\n" not in message


def test_folders_that_transformers_cannot_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = write(tmp_path / "unknown", llama(), {**config(4), "architectures": ["NoSuchModel"]})
    message = refused(unknown)
    assert "names no architecture that transformers has (NoSuchModel, for model_type llama)" in message
    assert "); name what is to be zero by --zero (zero=): input_lay" in message
    plain = write(tmp_path / "plain", llama(), config(4))
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "its network could not be built and traced (the network of a folder needs transformers" in refused(
        plain
    )


@pytest.mark.slow
def test_names_that_the_network_does_not_have(tmp_path: Path) -> None:
    other = {name.replace("o_proj", "out"): array for name, array in llama().items()}
    folder = write(tmp_path / "other", other, config(4, max_position_embeddings=16))
    assert "the network's self_attn.o_proj.weight goes by another name in model.layers.0" in refused(folder)


def test_no_layer_is_built_that_shows_nothing_new(tmp_path: Path) -> None:
    from elastic_ir.formats.model_folder import CheckpointSource
    from elastic_ir.frontends.residual_ends import _shallow

    graph = eir.load(write(tmp_path / "deep", llama(9), config(9)), headers_only=True)
    assert isinstance(graph.origin, CheckpointSource)
    assert _shallow(graph.origin, graph)["num_hidden_layers"] == 3
    assert json.loads((tmp_path / "deep" / "config.json").read_text())["num_hidden_layers"] == 9
