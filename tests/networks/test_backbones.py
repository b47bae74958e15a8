"""Backbones of transformers: the features that they give out are those of the same layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import elastic_ir as eir
from elastic_ir.errors import PlanError


def backbone(out_indices: list[int]) -> Any:
    """A DINOv2 of four layers that gives out these of its states."""
    small = {"hidden_size": 16, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    settings = {**small, "num_hidden_layers": 4, "out_indices": out_indices}
    torch.manual_seed(0)
    model: Any = transformers.Dinov2Backbone(transformers.Dinov2Config.from_dict(settings))
    return model.eval()


@pytest.mark.slow
def test_a_backbone_gives_the_features_of_the_same_layers(tmp_path: Path) -> None:
    """DINOv2 with each layer followed by a copy that does nothing: what it gives out is what it gave."""
    model = backbone([1, 3, 4])
    model.save_pretrained(tmp_path / "d")
    graph = eir.load(tmp_path / "d", headers_only=True)
    eir.save(
        eir.stretch(graph, to_units=8, order="interpolate", zero="layer_scale1,layer_scale2"),
        tmp_path / "deep",
    )
    deep: Any = transformers.Dinov2Backbone.from_pretrained(tmp_path / "deep")
    assert deep.config.out_indices == [2, 6, 8]
    image = torch.randn(1, 3, 16, 16)
    deep.eval()
    with torch.no_grad():
        pairs = zip(model(image).feature_maps, deep(image).feature_maps, strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    with pytest.raises(PlanError, match=r"out_features = \['stage1', 'stage3', 'stage4'\] takes features"):
        eir.save(eir.squeeze(graph, to_units=2), tmp_path / "shallow")
    assert not (tmp_path / "shallow").exists()


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [6, 3])
def test_a_traced_backbone_stays_in_its_class(blocks: int) -> None:
    """What its module says of its states follows too, and its outputs are those of the graph."""
    graph = eir.trace(backbone([1, 4]), (torch.randn(1, 3, 16, 16),))
    made: Any = (eir.stretch if blocks > 4 else eir.squeeze)(graph, to_stages=[blocks]).to_module()
    assert type(made) is transformers.Dinov2Backbone
    assert made.stage_names == ["stem", *(f"stage{at}" for at in range(1, blocks + 1))]
    assert made.out_features == made.config.out_features == ["stage1", f"stage{blocks}"]
    assert len(made(torch.randn(1, 3, 16, 16)).feature_maps) == 2


@pytest.mark.slow
def test_the_states_between_stages_are_no_layers() -> None:
    """A stage of ResNet may have as many blocks as the network has stages."""
    config = transformers.ResNetConfig(
        depths=[1, 4, 1, 1], embedding_size=8, hidden_sizes=[8, 8, 8, 8], layer_type="basic"
    )
    model: Any = transformers.ResNetBackbone(config)
    graph = eir.trace(model.eval(), (torch.randn(1, 3, 32, 32),))
    stage = max(graph.stages, key=len)
    assert len(stage) == len(model.stage_names) - 1
    made: Any = eir.stretch(graph, to_stages={stage.name: 5}).to_module()
    assert made.stage_names == model.stage_names and made.out_features == model.out_features
