"""U-Nets and autoencoders of diffusers: the entry that counts layers of many lists, loaded and run by the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import elastic_ir as eir
from elastic_ir.errors import PlanError
from tests.checkpoints.folders import run
from tests.checkpoints.oracle.test_libraries import Here, changed, diffusers_network

pytestmark = pytest.mark.slow

#: The channels of SD 1.5, so that layers on the way up are of three kinds in one block.
CONDITION: dict[str, Any] = {
    "block_out_channels": (8, 16, 32, 32), "layers_per_block": 2, "sample_size": 16, "cross_attention_dim": 16,
    "attention_head_dim": 4, "norm_num_groups": 4,
}  # fmt: skip
LARGE: dict[str, Any] = {
    "block_out_channels": (8, 16, 32), "layers_per_block": 2, "sample_size": 16, "cross_attention_dim": 16,
    "attention_head_dim": 4, "norm_num_groups": 4, "transformer_layers_per_block": (1, 2, 4),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
PLAIN: dict[str, Any] = {
    "block_out_channels": (8, 16, 32), "layers_per_block": 2, "sample_size": 16, "norm_num_groups": 4,
    "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2, "latent_channels": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4, "layers_per_block": 2,
}  # fmt: skip
#: class, settings, what is asked for, entries of the result
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "unet": ("UNet2DModel", PLAIN, {"to_units": 4}, {"layers_per_block": 4}),
    "conditional": ("UNet2DConditionModel", CONDITION, {"to_stages": "layers_per_block=3"}, {"layers_per_block": 3}),
    "one level": (
        "UNet2DConditionModel", CONDITION, {"to_stages": {"layers_per_block.1": 3}}, {"layers_per_block": [2, 3, 2, 2]},
    ),
    "levels": (
        "UNet2DConditionModel", {**CONDITION, "layers_per_block": (1, 2, 3, 2)},
        {"to_stages": "layers_per_block.1=3,layers_per_block.2=5"}, {"layers_per_block": [1, 3, 5, 2]},
    ),
    "transformers": (
        "UNet2DConditionModel", LARGE, {"to_stages": "transformer_layers_per_block.2=6"},
        {"transformer_layers_per_block": [1, 2, 6], "layers_per_block": 2},
    ),
    "autoencoder": ("AutoencoderKL", VAE, {"to_units": 3}, {"layers_per_block": 3}),
}  # fmt: skip


def inputs(name: str) -> tuple[Any, ...]:
    torch.manual_seed(0)
    if name == "AutoencoderKL":
        return (torch.randn(1, 3, 16, 16),)
    channels = 4 if name == "UNet2DConditionModel" else 3
    more = (torch.randn(1, 5, 16),) if name == "UNet2DConditionModel" else ()
    return (torch.randn(1, channels, 16, 16), 3, *more)


@pytest.mark.parametrize("which", CASES)
def test_the_deeper_network_loads_and_runs(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elastic_ir.checkpoints.oracle.comparison.started", Here)
    name, settings, target, wanted = CASES[which]
    network = diffusers_network(name, **settings)
    network.save_pretrained(tmp_path / "source")
    graph = eir.load(tmp_path / "source", headers_only=True)
    compared = changed(eir.stretch(graph, **target), tmp_path / "out", monkeypatch)
    assert compared.kind == name and not compared.entries
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: made[key] for key in wanted} == wanted
    deeper, report = type(network).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        assert torch.isfinite(deeper(*inputs(name)).sample).all()
    assert run("verify", tmp_path / "out", "--against", tmp_path / "source").exit_code == 0
    if which != "unet":
        return  # looking for the source's configuration by experiments takes long
    back = run("undo", tmp_path / "out", "-o", tmp_path / "back")
    assert back.exit_code == 0, back.output
    again = type(network).from_pretrained(tmp_path / "back")
    assert all(torch.equal(again.state_dict()[key], one) for key, one in network.state_dict().items())


def test_a_unet_of_one_layer_a_block_has_none_to_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is the first of its block, or the first and the last, and reads other channels than one more would."""
    monkeypatch.setattr("elastic_ir.checkpoints.oracle.comparison.started", Here)
    diffusers_network("UNet2DModel", **{**PLAIN, "layers_per_block": 1}).save_pretrained(tmp_path / "source")
    with pytest.raises(
        PlanError,
        match=r"layers_per_block counts .*, and of down_blocks.1.\w+ \(1 layer\) none can be copied",
    ):
        eir.stretch(eir.load(tmp_path / "source", headers_only=True), to_stages={"layers_per_block": 2})


def test_entries_within_one_another_are_not_changed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elastic_ir.checkpoints.oracle.comparison.started", Here)
    diffusers_network("UNet2DConditionModel", **LARGE).save_pretrained(tmp_path / "source")
    graph = eir.load(tmp_path / "source", headers_only=True)
    with pytest.raises(PlanError, match=r"lies in the layers of .*, so both cannot change at once"):
        eir.stretch(graph, to_stages="layers_per_block=3,transformer_layers_per_block.2=6")
    with pytest.raises(PlanError, match="layers_per_block is 2 already"):
        eir.stretch(graph, to_stages="layers_per_block=2")


def test_a_component_of_a_pipeline_is_loaded_with_the_others(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.DDPMPipeline(diffusers_network("UNet2DModel", **PLAIN), diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "source")
    result = run(
        "stretch", tmp_path / "source", "--component", "unet", "--to-units", "3", "-o", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    deeper = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    assert deeper.unet.config.layers_per_block == 3
    deeper.set_progress_bar_config(disable=True)
    images = deeper(
        num_inference_steps=1, output_type="np", generator=torch.Generator().manual_seed(0)
    ).images
    assert images.shape == (1, 16, 16, 3)
