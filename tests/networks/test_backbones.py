"""Backbones of transformers: the features that they give out are those of the same layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import elastic_ir as eir
from elastic_ir.errors import PlanError


def test_a_backbone_gives_the_features_of_the_same_layers(tmp_path: Path) -> None:
    """DINOv2 with each layer followed by a copy that does nothing: what it gives out is what it gave."""
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    config = transformers.Dinov2Config.from_dict({**small, "out_indices": [1, 3, 4]})
    torch.manual_seed(0)
    model: Any = transformers.Dinov2Backbone(config)
    model.save_pretrained(tmp_path / "d")
    graph = eir.load(tmp_path / "d", headers_only=True)
    eir.save(
        eir.stretch(graph, to_units=8, order="interpolate", zero="layer_scale1,layer_scale2"),
        tmp_path / "deep",
    )
    deep: Any = transformers.Dinov2Backbone.from_pretrained(tmp_path / "deep")
    assert deep.config.out_indices == [2, 6, 8]
    image = torch.randn(1, 3, 16, 16)
    model.eval(), deep.eval()
    with torch.no_grad():
        pairs = zip(model(image).feature_maps, deep(image).feature_maps, strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    with pytest.raises(PlanError, match=r"out_features = \['stage1', 'stage3', 'stage4'\] takes features"):
        eir.save(eir.squeeze(graph, to_units=2), tmp_path / "shallow")
    assert not (tmp_path / "shallow").exists()
