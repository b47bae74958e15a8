"""Adapters that PEFT itself has saved, and loads again: the outputs are those of the merged layers copied by hand."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

import elastic_ir as eir
from tests.networks.transformers_families import IDS, KV

peft: Any = pytest.importorskip("peft")

GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 50, "n_positions": 64}
#: How a network is made, where its layers are, and what is adapted: with ranks of their own, and a list of layers.
NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], dict[str, Any]]] = {
    "llama": (
        lambda: t.LlamaForCausalLM(t.LlamaConfig(num_hidden_layers=4, **KV, **IDS)),
        lambda model: model.model,
        {
            "target_modules": ["q_proj", "down_proj", "lm_head"],
            "rank_pattern": {"model.layers.1.self_attn.q_proj": 5},
            "alpha_pattern": {"layers.3.mlp.down_proj": 32},
        },
    ),
    "gpt2": (
        lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT2, **IDS)),
        lambda model: model.transformer,
        {"target_modules": ["c_attn", "c_proj"], "layers_to_transform": [1, 2], "fan_in_fan_out": True},
    ),
}  # fmt: skip


def adapted(name: str, folder: Path, **more: Any) -> Any:
    """A network with an adapter of random factors; both are saved."""
    torch.manual_seed(0)
    make, _, settings = NETWORKS[name]
    model = make().eval()
    model.save_pretrained(folder / "source")
    model.name_or_path = model.config._name_or_path = str(folder / "source")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **settings, **more)).eval()
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            if "lora_" in key:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    made.save_pretrained(folder / "lora")
    return made


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.arange(1, 9)[None]).logits
    return logits


@pytest.mark.parametrize("plan", [[0, 1, 2, 1, 2, 3], [3, 1]])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_of_what_follows(name: str, plan: list[int], tmp_path: Path) -> None:
    merged = adapted(name, tmp_path).merge_and_unload()
    holder = NETWORKS[name][1](merged)
    attribute = "layers" if name == "llama" else "h"
    layers = getattr(holder, attribute)
    setattr(holder, attribute, torch.nn.ModuleList([copy.deepcopy(layers[layer]) for layer in plan]))
    for at, layer in enumerate(getattr(holder, attribute)):
        (layer.self_attn if name == "llama" else layer.attn).layer_idx = at
    merged.config.num_hidden_layers = len(plan)
    graph = eir.load(tmp_path / "source", headers_only=True)
    eir.save(eir.stretch(graph, plan=[plan]), tmp_path / "changed", check=False)
    out = eir.follow(tmp_path / "lora", tmp_path / "changed", tmp_path / "out")
    base = type(merged).from_pretrained(tmp_path / "changed").eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?is).*(missing|unexpected)")  # names of tensors
        loaded = peft.PeftModel.from_pretrained(base, out).eval()
    torch.testing.assert_close(outputs(loaded), outputs(merged), rtol=1e-4, atol=1e-5)
    automatic = peft.AutoPeftModelForCausalLM.from_pretrained(out).eval()
    torch.testing.assert_close(outputs(automatic), outputs(loaded))


@pytest.mark.parametrize("dora", [False, True])
def test_copies_that_were_multiplied(dora: bool, tmp_path: Path) -> None:
    """The same as merging first and changing the merged network then."""
    merged = adapted("llama", tmp_path, use_dora=dora).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    for name in ("source", "merged"):
        graph = eir.load(tmp_path / name, headers_only=True)
        changed = eir.stretch(graph, plan=[[0, 1, 2, 3, 2, 1]], scale={"o_proj": 0.5, "down_proj": 0.5})
        eir.save(changed, tmp_path / f"{name}-6", check=False)
    out = eir.follow(tmp_path / "lora", tmp_path / "source-6", tmp_path / "out")
    wanted: Any = t.LlamaForCausalLM.from_pretrained(tmp_path / "merged-6")
    loaded = peft.PeftModel.from_pretrained(
        t.LlamaForCausalLM.from_pretrained(tmp_path / "source-6"), out
    ).eval()
    torch.testing.assert_close(outputs(loaded), outputs(wanted.eval()), rtol=1e-4, atol=1e-5)


def test_a_folder_with_both(tmp_path: Path) -> None:
    """``from_pretrained`` of such a folder loads the base that the adapter names, and the adapter."""
    adapted("llama", tmp_path)
    folder = tmp_path / "source"
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / file).write_bytes((tmp_path / "lora" / file).read_bytes())
    graph = eir.load(folder, headers_only=True)
    eir.save(eir.stretch(graph, plan=[[0, 1, 2, 1, 2, 3]]), tmp_path / "both", check=False)
    loaded: Any = t.AutoModelForCausalLM.from_pretrained(tmp_path / "both")
    apart = eir.follow(tmp_path / "lora", tmp_path / "both", tmp_path / "out")
    eir.save(eir.stretch(graph, plan=[[0, 1, 2, 1, 2, 3]]), tmp_path / "bare", check=False)
    for path in tmp_path.joinpath("bare").glob("adapter*"):
        path.unlink()
    bare = t.LlamaForCausalLM.from_pretrained(tmp_path / "bare")
    wanted = peft.PeftModel.from_pretrained(bare, apart).eval()
    torch.testing.assert_close(outputs(loaded.eval()), outputs(wanted))


#: Further sorts of adapters whose tensors name their layers; each changes what a module computes.
KINDS: dict[str, Callable[[], Any]] = {
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda: peft.LoHaConfig(r=3, target_modules=["q_proj", "down_proj"]),
    "lokr": lambda: peft.LoKrConfig(r=3, target_modules=["q_proj", "down_proj"], decompose_factor=2),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, target_modules=["q_proj", "down_proj"]),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
}


def saved_llama(folder: Path) -> Any:
    torch.manual_seed(0)
    model = NETWORKS["llama"][0]().eval()
    model.save_pretrained(folder / "source")
    model.name_or_path = model.config._name_or_path = str(folder / "source")
    return model


def changed(folder: Path, plan: list[int]) -> Any:
    graph = eir.load(folder / "source", headers_only=True)
    eir.save(eir.stretch(graph, plan=[plan]), folder / "changed", check=False)
    model: Any = t.LlamaForCausalLM.from_pretrained(folder / "changed")
    return model.eval()


@pytest.mark.everyday(2)
@pytest.mark.parametrize("kind", KINDS)
def test_other_sorts_follow(kind: str, tmp_path: Path) -> None:
    plan = [0, 1, 2, 1, 3]
    made = peft.get_peft_model(saved_llama(tmp_path), KINDS[kind]()).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    made.save_pretrained(tmp_path / "adapter")
    plain = changed(tmp_path, plan)
    untouched = outputs(plain)
    merged = made.merge_and_unload()
    merged.model.layers = torch.nn.ModuleList([copy.deepcopy(merged.model.layers[layer]) for layer in plan])
    for at, layer in enumerate(merged.model.layers):
        layer.self_attn.layer_idx = at
    merged.config.num_hidden_layers = len(plan)
    out = eir.follow(tmp_path / "adapter", tmp_path / "changed", tmp_path / "out")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?is).*(missing|unexpected)")
        loaded = peft.PeftModel.from_pretrained(plain, out).eval()
    torch.testing.assert_close(outputs(loaded), outputs(merged), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs(loaded), untouched, atol=1e-3)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("plan", [[0, 1, 2, 1, 3], [3, 1]])
def test_prefixes_follow_their_layers(plan: list[int], projection: bool, tmp_path: Path) -> None:
    settings = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=projection, encoder_hidden_size=16
    )
    made = peft.get_peft_model(saved_llama(tmp_path), settings).eval()
    made.save_pretrained(tmp_path / "prefix")
    prefixes = made.get_prompt(1)  # for each layer a key and a value
    wanted = t.DynamicCache()
    for at, layer in enumerate(plan):
        held = prefixes.layers[layer]
        wanted.update(held.keys.detach(), held.values.detach(), at)
    base = changed(tmp_path, plan)
    with torch.no_grad():
        expected = base(torch.arange(1, 9)[None], past_key_values=wanted).logits
        untouched = base(torch.arange(1, 9)[None]).logits
    out = eir.follow(tmp_path / "prefix", tmp_path / "changed", tmp_path / "out")
    loaded = peft.PeftModel.from_pretrained(base, out).eval()
    torch.testing.assert_close(outputs(loaded), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, untouched, atol=1e-4)


def test_prompts_are_copied(tmp_path: Path) -> None:
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    made = peft.get_peft_model(saved_llama(tmp_path), settings).eval()
    made.save_pretrained(tmp_path / "prompt")
    prompts = made.get_prompt(1)
    base = changed(tmp_path, [0, 1, 2, 1, 3])
    embedded = torch.cat([prompts, base.get_input_embeddings()(torch.arange(1, 9)[None])], 1)
    with torch.no_grad():
        expected = base(inputs_embeds=embedded).logits
    out = eir.follow(tmp_path / "prompt", tmp_path / "changed", tmp_path / "out")
    loaded = peft.PeftModel.from_pretrained(base, out).eval()
    torch.testing.assert_close(outputs(loaded), expected, rtol=1e-4, atol=1e-5)
