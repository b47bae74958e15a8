"""Stacks side by side, encoders, decoders and towers, each addressed by its name: loaded by from_pretrained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

import elastic_ir as eir
from elastic_ir.errors import PlanError, StructureError
from tests.networks.transformers_families import KV, SMALL, VISION

TEXT: dict[str, Any] = {**KV, "vocab_size": 60, "num_hidden_layers": 4}
TOWER: dict[str, Any] = {**VISION, "num_hidden_layers": 3}
ROTARY: dict[str, Any] = {"type": "mrope", "mrope_section": [1, 1, 2]}
VISUAL: dict[str, Any] = {
    "depth": 3,
    "embed_dim": 32,
    "hidden_size": 32,
    "num_heads": 4,
    "mlp_ratio": 2,
    "patch_size": 8,
}
TOKENS: dict[str, Any] = {
    "image_token_id": 58,
    "video_token_id": 57,
    "vision_start_token_id": 56,
    "vision_end_token_id": 55,
}

MODELS: dict[str, Callable[[], Any]] = {
    "clip": lambda: t.CLIPModel(
        t.CLIPConfig(text_config={**SMALL, "num_hidden_layers": 4}, vision_config=TOWER, projection_dim=16)
    ),
    "llava": lambda: t.LlavaForConditionalGeneration(
        t.LlavaConfig(
            vision_config=t.CLIPVisionConfig(**TOWER), text_config=t.LlamaConfig(**{**TEXT, "hidden_size": 64}),
            image_token_index=59,
        )
    ),
    "qwen2_vl": lambda: t.Qwen2VLForConditionalGeneration(
        t.Qwen2VLConfig(text_config={**TEXT, "rope_scaling": ROTARY}, vision_config=VISUAL, **TOKENS)
    ),
    "t5": lambda: t.T5ForConditionalGeneration(
        t.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=3, num_decoder_layers=4, num_heads=4, vocab_size=50)
    ),
}  # fmt: skip
#: The stages by name, and what counts them in the configuration that is loaded.
STAGES: dict[str, dict[str, Callable[[Any], int]]] = {
    "clip": {
        "text_model.encoder.layers": lambda c: c.text_config.num_hidden_layers,
        "vision_model.encoder.layers": lambda c: c.vision_config.num_hidden_layers,
    },
    "llava": {
        "language_model.model.layers": lambda c: c.text_config.num_hidden_layers,
        "vision_tower.encoder.layers": lambda c: c.vision_config.num_hidden_layers,
    },
    "qwen2_vl": {
        "model.layers": lambda c: c.text_config.num_hidden_layers,
        "visual.blocks": lambda c: c.vision_config.depth,
    },
    "t5": {"encoder.block": lambda c: c.num_layers, "decoder.block": lambda c: c.num_decoder_layers},
}


@pytest.mark.everyday(4)
@pytest.mark.parametrize("way", ["to_stages", "plan"])
@pytest.mark.parametrize(
    ("name", "stage"), [(name, stage) for name, stages in STAGES.items() for stage in stages]
)
def test_one_of_several_stacks(name: str, stage: str, way: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    model.save_pretrained(tmp_path / "source")
    graph = eir.load(tmp_path / "source", headers_only=True)
    counts = {one.name: len(one) for one in graph.stages}
    assert set(STAGES[name]) <= set(counts)
    wanted = {**counts, stage: counts[stage] + 1}
    last = counts[stage] - 1
    given: dict[str, Any] = {"to_stages": f"{stage}={last + 2}", "plan": f"{stage}=0-{last},{last}"}
    deeper = eir.stretch(graph, **{way: given[way]})
    assert {one.name: len(one) for one in deeper.stages} == wanted
    eir.save(deeper, tmp_path / "out", check=False)
    loaded, report = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert {one: read(loaded.config) for one, read in STAGES[name].items()} == {
        one: wanted[one] for one in STAGES[name]
    }


def test_plans_of_several_stages_by_name(tmp_path: Path) -> None:
    MODELS["clip"]().save_pretrained(tmp_path / "source")
    graph = eir.load(tmp_path / "source", headers_only=True)
    both = eir.stretch(graph, plan="vision_model.encoder.layers=2,0 | text_model.encoder.layers=0:0;1:1,2")
    assert both.resequenced.plan == ((0, 1, 1), (2, 0))
    with pytest.raises(
        StructureError, match=r"there is no stage 'tower'; the stages are 'text_model\.encoder\.layers', "
    ):
        eir.stretch(graph, plan="tower=0,1")
    with pytest.raises(PlanError, match=r"'0,1' in 'a=0,1\|0,1' names no stage; name all of them"):
        eir.stretch(graph, plan="a=0,1|0,1")
    with pytest.raises(PlanError, match="the stage 'a' is planned twice"):
        eir.stretch(graph, plan="a=0,1|a=0")
    with pytest.raises(PlanError, match=r"or name those that change: vision_model\.encoder\.layers=\.\.\."):
        eir.stretch(graph, plan="0,1")
