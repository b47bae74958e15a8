"""transformers' families, resized: the class, the configuration, the outputs, generation and the files stay native."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.plans.plan import Order
from tests.networks.transformers_families import FAMILIES, make

GENERATING = [name for name, family in FAMILIES.items() if family.generates]


@cache
def traced(name: str) -> eir.Graph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return eir.trace(make(name))


Way = Order | Literal["squeeze"]


def resized(name: str, way: Way) -> eir.Graph:
    """Twice as deep in one of the orders, or with half of the units gone."""
    graph = traced(name)
    if way == "squeeze":
        steps = [stage.period or 1 for stage in graph.stages]
        halves = [
            max(len(stage) // 2 // step, 1) * step for stage, step in zip(graph.stages, steps, strict=True)
        ]
        return eir.squeeze(graph, to_stages=halves)
    return eir.stretch(graph, to_stages=[2 * len(stage) for stage in graph.stages], order=way)


def run(module: nn.Module, graph: eir.Graph) -> torch.Tensor:
    inputs = graph.origin.inputs
    assert inputs is not None
    with torch.no_grad():
        found: Any = module.eval()(*inputs.args, **inputs.kwargs)
    for name in ("logits", "logits_per_text", "last_hidden_state"):
        if getattr(found, name, None) is not None:
            result: torch.Tensor = getattr(found, name)
            return result
    raise AssertionError(f"{type(module).__name__} returns {type(found).__name__}")


def native(module: Any) -> Any:
    """A new network of the emitted one's configuration, gone through what config.json holds."""
    return type(module)(type(module.config).from_dict(module.config.to_dict()))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.everyday(6)
def test_the_structure_is_found(name: str) -> None:
    assert {stage.name: len(stage) for stage in traced(name).stages} == FAMILIES[name].stages


@pytest.mark.parametrize("way", ["append", "interpolate", "squeeze"])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.everyday(6)
def test_a_native_network_of_the_emitted_configuration_is_the_same(name: str, way: Way) -> None:
    graph = resized(name, way)
    module: Any = graph.to_module()
    live: Any = traced(name).origin.module
    assert type(module) is type(live)
    other = native(module)
    other.load_state_dict(graph.state_dict(), strict=True)
    assert torch.equal(run(module, graph), run(other, graph))
    assert len(list(module.parameters())) == len(list(other.parameters()))
    source = traced(name).state_dict()
    assert all(torch.equal(t, source[graph.lineage()[n]]) for n, t in graph.state_dict().items())


@pytest.mark.parametrize("name", GENERATING)
@pytest.mark.slow
def test_generation_with_the_cache_gives_the_tokens_without(name: str) -> None:
    module: Any = resized(name, "append").to_module().eval()
    tokens = torch.tensor([[5, 6, 7, 8, 9]])
    start = {"decoder_start_token_id": 0} if module.config.is_encoder_decoder else {}
    found = [
        module.generate(
            tokens,
            **start,
            max_new_tokens=8,
            do_sample=False,
            use_cache=cache,
            eos_token_id=None,
            pad_token_id=0,
        )
        for cache in (True, False)
    ]
    assert torch.equal(*found)
    assert found[0].shape[1] >= 9


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("swin", "t5"))) for name in FAMILIES]
)
@pytest.mark.everyday(4)
def test_files_round_trip(name: str, tmp_path: Path) -> None:
    graph = resized(name, "append")
    eir.save(graph, tmp_path / "model")
    module: Any = graph.to_module()
    again = type(module).from_pretrained(tmp_path / "model")
    assert torch.equal(run(again, graph), run(module, graph))
    assert again.config.to_dict().keys() == module.config.to_dict().keys()


@pytest.mark.slow
def test_configurations_say_the_new_depth() -> None:
    wanted: dict[str, dict[str, object]] = {
        "bert": {"num_hidden_layers": 6},
        "qwen3_sliding": {
            "num_hidden_layers": 6, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"] * 2,
        },
        "gemma3": {"num_hidden_layers": 8, "layer_types": ["sliding_attention", "full_attention"] * 4},
        "gpt_neo": {"num_layers": 8, "attention_layers": ["global", "local"] * 4},
        "convnext": {"depths": [4, 4, 6, 4]},
        "swin": {"depths": [4, 8], "num_heads": [2, 4]},
        "t5": {"num_layers": 6, "num_decoder_layers": 6},
        "whisper": {"encoder_layers": 6, "decoder_layers": 6},
    }  # fmt: skip
    for name, attributes in wanted.items():
        module: Any = resized(name, "append").to_module()
        config = module.config
        assert {key: getattr(config, key) for key in attributes} == attributes, name


@pytest.mark.slow
def test_layers_know_their_numbers() -> None:
    for name, layers in (("llama", "model.layers"), ("gpt2", "transformer.h"), ("qwen3", "model.layers")):
        module = resized(name, "interpolate").to_module()
        numbers = [
            next(part.layer_idx for part in layer.modules() if hasattr(part, "layer_idx"))
            for layer in module.get_submodule(layers).children()
        ]
        assert numbers == list(range(6)), name


@pytest.mark.parametrize(
    ("name", "stage", "changed", "kept"),
    [
        ("t5", "encoder.block", ("num_layers", 5), ("num_decoder_layers", 3)),
        ("t5", "decoder.block", ("num_decoder_layers", 5), ("num_layers", 3)),
        ("whisper", "model.encoder.layers", ("encoder_layers", 5), ("decoder_layers", 3)),
        ("whisper", "model.decoder.layers", ("decoder_layers", 5), ("encoder_layers", 3)),
    ],
)
@pytest.mark.slow
def test_stacks_are_addressed_apart(
    name: str, stage: str, changed: tuple[str, int], kept: tuple[str, int]
) -> None:
    graph = eir.stretch(traced(name), to_stages={stage: 5})
    module: Any = graph.to_module()
    assert [getattr(module.config, key) for key, _ in (changed, kept)] == [changed[1], kept[1]]
    other = native(module)
    other.load_state_dict(graph.state_dict(), strict=True)
    assert torch.equal(run(module, graph), run(other, graph))


@pytest.mark.slow
def test_the_towers_of_clip_are_addressed_apart() -> None:
    for tower, other in (("text", "vision"), ("vision", "text")):
        graph = eir.stretch(traced("clip"), to_stages={f"{tower}_model.encoder.layers": 5})
        module: Any = graph.to_module()
        assert getattr(module.config, f"{tower}_config").num_hidden_layers == 5
        assert getattr(module.config, f"{other}_config").num_hidden_layers == 3
        twin = native(module)
        twin.load_state_dict(graph.state_dict(), strict=True)
        assert torch.equal(run(module, graph), run(twin, graph))


def test_one_layer_applied_many_times_has_nothing_to_clone() -> None:
    import transformers as t

    config = t.AlbertConfig(
        embedding_size=16,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        vocab_size=50,
        num_hidden_layers=5,
    )
    with pytest.raises(eir.StructureError) as caught:
        eir.stretch(eir.trace(t.AlbertModel(config)), to_units=8)
    assert str(caught.value) == (
        "nothing in AlbertModel repeats: encoder.albert_layer_groups.0.albert_layers.0 runs 5 times over the same "
        "weights, so its depth is a count and there is nothing to clone; set that count (num_hidden_layers in a "
        "configuration) and load the same weights"
    )


@pytest.mark.slow
def test_a_model_on_the_meta_device_is_read_without_weights() -> None:
    import transformers as t

    with torch.device("meta"):
        model = t.LlamaForCausalLM(t.LlamaConfig(num_hidden_layers=32))
    graph = eir.stretch(eir.trace(model), to_units=48)
    assert graph.parameter_count() > 9_000_000_000
    assert {stage.name: len(stage) for stage in graph.stages} == {"model.layers": 48}
