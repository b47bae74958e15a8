"""Files without names: the same structure as in the named ones, and after the same stretch the same outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer

import elastic_ir as eir
from tests.discovery.nameless import export_older, write_nameless
from tests.networks.onnx_files import feeds, run

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99,
}  # fmt: skip
SPEECH: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 3, "decoder_layers": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 99,
    "max_source_positions": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


def swin(*depths: int) -> nn.Module:
    made: nn.Module = SwinTransformer(
        [4, 4], 24, list(depths), [1, 2, 4][: len(depths)], [4, 4], num_classes=10
    )
    return made


def convnext() -> nn.Module:
    blocks = [CNBlockConfig(12, 24, 2), CNBlockConfig(24, 48, 3), CNBlockConfig(48, None, 2)]
    made: nn.Module = ConvNeXt(blocks, num_classes=10)
    return made


def vit() -> nn.Module:
    made: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4)
    return made


def clip() -> nn.Module:
    vision = {**SMALL, "num_hidden_layers": 3, "image_size": 64, "patch_size": 16}
    vision.pop("vocab_size")
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=SMALL, vision_config=vision, projection_dim=32)
    )


#: By the older exporter, with the sides of the image and the opset.
OLDER: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet18": (torchvision.models.resnet18, 64, 11),
    "resnet18d": (lambda: timm.create_model("resnet18d"), 64, 17),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 64, 13),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, 64, 17),
    "regnet_y": (torchvision.models.regnet_y_400mf, 64, 13),
    "vit": (vit, 64, 17),
    "swin": (lambda: swin(2, 4, 2), 64, 17),
    "swin-11": (lambda: swin(2, 2), 32, 11),
    "convnext": (convnext, 64, 13),
}
#: By PyTorch's newer exporter, through our own export.
NEWER: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SMALL)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_embd=32, n_layer=4, n_head=4, vocab_size=99, n_positions=64, bos_token_id=0, eos_token_id=0
        )
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=2)),
    "clip": clip,
    "whisper": lambda: transformers.WhisperModel(transformers.WhisperConfig(**SPEECH)),
    "resnet50": torchvision.models.resnet50,
    "mobilenetv3": lambda: timm.create_model("mobilenetv3_large_100"),
    "convnext": convnext,
    "vit": vit,
    "swin": lambda: swin(2, 4, 2),
}
#: The sides of an image, where one is enough that is smaller than the network's own.
SIDES = {"mobilenetv3": 64, "convnext": 64, "swin": 64}
LONG, QUICK = {"swin"}, {"bert"}
ALL = [
    *(
        pytest.param("older", name, id=f"older-{name}", marks=pytest.mark.slow if name in LONG else [])
        for name in OLDER
    ),
    *(pytest.param("newer", n, id=f"newer-{n}", marks=[] if n in QUICK else pytest.mark.slow) for n in NEWER),
]


def export(way: str, name: str, path: Path) -> Path:
    if way == "older":
        make, side, opset = OLDER[name]
        return export_older(make(), (torch.randn(1, 3, side, side),), path, opset)
    torch.manual_seed(0)
    model = NEWER[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    inputs = (torch.randn(1, 3, SIDES[name], SIDES[name]),) if name in SIDES else None
    (made,) = eir.save(eir.trace(model, inputs), path, check=False)
    return made


def told(graph: eir.Graph) -> list[Any]:
    """What is the same under any names: blocks, whether one opens the stage, units, whether a layer stands before."""
    return [(len(s), s.entry is not None, s.period, s.transition is not None) for s in graph.stages]


@pytest.mark.parametrize(("way", "name"), ALL)
@pytest.mark.slow
def test_nameless_is_as_named(way: str, name: str, tmp_path: Path) -> None:
    path = export(way, name, tmp_path / "named.onnx")
    bare = write_nameless(path, tmp_path / "nameless.onnx")
    named, found = eir.load(path), eir.load(bare)
    assert told(found) == told(named)
    assert found.depth == named.depth

    counts = [len(stage) + ((stage.period or 1) if stage.blocks else 0) for stage in named.stages]
    (left,) = eir.save(eir.stretch(named, to_stages=counts), tmp_path / "left.onnx")
    deeper = eir.stretch(found, to_stages=counts)
    (right,) = eir.save(deeper, tmp_path / "right.onnx")
    given = zip(run(left, feeds(named)), run(right, feeds(found)), strict=True)
    assert all(np.array_equal(ours, theirs) for ours, theirs in given)

    read = eir.load(right)  # what was written has the structure that was asked for
    assert [len(stage) for stage in read.stages] == counts
    back = eir.squeeze(deeper, to_stages=[len(stage) for stage in found.stages])
    (same,) = eir.save(back, tmp_path / "back.onnx")
    assert onnx.load(same) == onnx.load(bare)


def test_transitions_stand_beside_the_blocks(tmp_path: Path) -> None:
    export("older", "convnext", tmp_path / "named.onnx")
    graph = eir.load(write_nameless(tmp_path / "named.onnx", tmp_path / "nameless.onnx"))
    assert [stage.transition for stage in graph.stages] == [None, "transition_a", "transition_b"]
    assert [block.path for stage in graph.stages for block in stage.blocks] == [
        f"blocks.{i}" for i in range(7)
    ]
    assert "transition_a.conv_a.weight" in graph.weights


def test_several_trunks_have_a_container_each(tmp_path: Path) -> None:
    torch.manual_seed(0)
    left, right = (nn.ModuleList(Residual(width) for _ in range(3)) for width in (8, 12))

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = left, right

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            for block in self.left:
                x = block(x)
            for block in self.right:
                y = block(y)
            found: torch.Tensor = x.mean((2, 3)) @ y.mean((2, 3))[:, :8].T
            return found

    inputs = (torch.randn(1, 8, 8, 8), torch.randn(1, 12, 8, 8))
    path = export_older(Towers(), inputs, tmp_path / "towers.onnx")
    graph = eir.load(write_nameless(path, tmp_path / "nameless.onnx"))
    assert sorted((stage.name, len(stage)) for stage in graph.stages) == [("blocks", 3), ("blocks_b", 3)]


class Residual(nn.Module):
    """Expand, filter each channel, gate if asked for, project; and the shortcut."""

    def __init__(self, width: int, kernel: int = 3, gate: bool = False) -> None:
        super().__init__()
        wide = 2 * width
        self.expand = nn.Conv2d(width, wide, 1)
        self.filter = nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide)
        self.reduce = nn.Conv2d(wide, 4, 1) if gate else None
        self.restore = nn.Conv2d(4, wide, 1)
        self.project = nn.Conv2d(wide, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.filter(self.expand(x).relu()).relu()
        if self.reduce is not None:
            y = y * self.restore(self.reduce(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        result: torch.Tensor = x + self.project(y)
        return result


def test_kernels_that_differ_in_extent_do_not_part_a_stage(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *(Residual(8, kernel) for kernel in (3, 5, 3, 5, 5)))
    path = export_older(model, (torch.randn(1, 3, 16, 16),), tmp_path / "m.onnx")
    graph = eir.load(write_nameless(path, tmp_path / "nameless.onnx"))
    (stage,) = graph.stages
    assert len(stage.blocks) == 5 and stage.period == 1
    assert all(block.layers == 3 for block in stage.blocks)


def test_gates_are_no_layers_of_a_unit(tmp_path: Path) -> None:
    """A block without a gate is of the same kind as those with one."""
    blocks = (Residual(8, gate=gate) for gate in (False, True, True, False))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *blocks)
    path = export_older(model, (torch.randn(1, 3, 16, 16),), tmp_path / "m.onnx")
    graph = eir.load(write_nameless(path, tmp_path / "nameless.onnx"))
    (stage,) = graph.stages
    assert [block.layers for block in stage.blocks] == [3, 3, 3, 3]
    assert graph.depth == 13


def test_what_follows_the_last_block_alone_is_not_cloned(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), *(Residual(8) for _ in range(3)), nn.InstanceNorm2d(8, affine=True), nn.Tanh()
    )
    path = export_older(model, (torch.randn(1, 3, 16, 16),), tmp_path / "m.onnx")
    graph = eir.load(write_nameless(path, tmp_path / "nameless.onnx"))
    (stage,) = graph.stages
    assert len({block.signature for block in stage.blocks}) == 1
    (made,) = eir.save(eir.stretch(graph, to_stages=[5]), tmp_path / "deep.onnx")
    assert [node.op_type for node in onnx.load(made).graph.node].count("InstanceNormalization") == 1
