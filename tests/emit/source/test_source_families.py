"""Python source of networks of timm, torchvision and transformers: strict loads, equal outputs, other depths."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.emit.source.file import network_of, source_of
from elastic_ir.ir.graph import Graph

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")


def made_by(text: str, **arguments: Any) -> nn.Module:
    """The network of a source text."""
    namespace: dict[str, Any] = {}
    exec(compile(text, "net.py", "exec"), namespace)
    made: nn.Module = namespace[network_of(text)](**arguments)
    return made


def check(graph: Graph, text: str, *inputs: torch.Tensor, **arguments: Any) -> None:
    """A network of the text has a graph's names, and computes what its module does."""
    made = made_by(text, **arguments)
    assert list(made.state_dict()) == list(graph.state_dict())
    made.load_state_dict(graph.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(made.eval()(*inputs), graph.to_module().eval()(*inputs))


def vision(name: str, **options: Any) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model.eval()


def vgg() -> nn.Module:
    model = torchvision.models.vgg11_bn(num_classes=3)
    model.classifier = nn.Sequential(nn.Dropout(), nn.Linear(512 * 49, 3))
    out: nn.Module = model.eval()
    return out


def mobilenet() -> nn.Module:
    model: nn.Module = timm.create_model("mobilenetv2_100").eval()
    return model


def small_vit() -> nn.Module:
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", depth=3, img_size=64).eval()
    return model


def few_layers() -> nn.Module:
    from torchvision.models import VisionTransformer

    model: nn.Module = VisionTransformer(64, 16, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=64).eval()
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], int, dict[str, Any], dict[str, Any]]] = {
    "resnet18": (lambda: vision("resnet18"), 64, {"to_stages": (2, 3, 2, 4)}, {"depths": (2, 3, 2, 4)}),
    "resnet50": (lambda: vision("resnet50"), 64, {"to_stages": (3, 4, 8, 3)}, {"depths": (3, 4, 8, 3)}),
    "vgg11_bn": (vgg, 64, {"to_stages": (1, 1, 3, 2, 3)}, {"depths": (3, 2, 3)}),
    "mobilenet_v2": (
        lambda: vision("mobilenet_v2"), 64, {"to_stages": {"features:3": 5}}, {"depths": (2, 5, 4, 3, 3)},
    ),
    "timm's mobilenetv2": (mobilenet, 64, {"to_stages": (1, 2, 3, 4, 3, 4, 1)}, {"depths": (2, 3, 4, 3, 4)}),
    "timm's vit": (small_vit, 64, {"to_units": 5}, {"depth": 5}),
    "vit of torchvision": (few_layers, 64, {"to_units": 5}, {"depth": 5}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_families(name: str) -> None:
    build, side, target, arguments = CASES[name]
    graph = eir.trace(build(), input_shape=((1, 3, side, side),))
    text = source_of(graph)
    images = torch.randn(2, 3, side, side)
    check(graph, text, images)
    deeper = eir.stretch(graph, **target)
    check(deeper, text, images, **arguments)
    ran = subprocess.run([sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "100", "--check", "-"],
                         input=text, capture_output=True, text=True)  # fmt: skip
    assert ran.returncode == 0


@pytest.mark.slow
def test_what_is_shared_is_written_once() -> None:
    text = source_of(eir.trace(vision("resnet50"), input_shape=((1, 3, 64, 64),)))
    assert text.count("class Bottleneck(nn.Module)") == 1 and text.count("class ") == 2
    assert "if stride != 1 or in_channels != 4 * out_channels" in text
    text = source_of(eir.trace(vision("mobilenet_v2"), input_shape=((1, 3, 64, 64),)))
    assert "self.residual = stride == 1 and in_channels == out_channels" in text
    assert "class Conv2dNormActivation(nn.Sequential)" in text
    text = source_of(eir.trace(mobilenet(), input_shape=((1, 3, 64, 64),)))
    assert "class BatchNormAct2d(nn.BatchNorm2d)" in text and "nn.Identity() if" not in text


def test_rates_that_rise_evenly_follow_the_depths() -> None:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    def build(last: int) -> nn.Module:
        settings = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, last)]
        model: nn.Module = ConvNeXt(settings, stochastic_depth_prob=0.3, num_classes=3).eval()
        return model

    graph = eir.trace(build(3), input_shape=((1, 3, 32, 32),))
    text = source_of(graph)
    assert "drop_rate: float = 0.3" in text
    made, native = made_by(text, depths=(2, 6)), build(6)
    assert list(made.state_dict()) == list(native.state_dict())
    rates = [block.rate for block in made.modules() if type(block).__name__ == "StochasticDepth"]
    assert rates == pytest.approx(
        [block.p for block in native.modules() if type(block).__name__ == "StochasticDepth"]
    )


@pytest.mark.slow
def test_both_modes_of_a_norm_that_was_traced_as_a_function() -> None:
    model = mobilenet()
    graph = eir.trace(model, input_shape=((1, 3, 64, 64),))
    made = made_by(source_of(graph))
    made.load_state_dict(graph.state_dict())
    images = torch.randn(4, 3, 64, 64)
    before = made.get_buffer("bn1.running_mean").clone()
    made.train(), model.train()
    torch.manual_seed(1)
    made(images)
    torch.manual_seed(1)
    model(images)
    assert not torch.equal(before, made.get_buffer("bn1.running_mean"))
    torch.testing.assert_close(made.state_dict(), model.state_dict())


def test_the_command_line(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from elastic_ir.cli.app import elastic_ir

    out = tmp_path / "net.py"
    ran = CliRunner().invoke(
        elastic_ir, ["export", "elastic_ir.zoo:cifar_resnet14", "-o", str(out), "--weights"]
    )
    assert ran.exit_code == 0, ran.output
    assert "strict load, and equal outputs" in ran.output
    made = made_by(out.read_text())
    made.load_state_dict(torch.load(tmp_path / "net.pt"), strict=True)
    mine = tmp_path / "mine.py"
    mine.write_text('"""Somebody\'s own."""\n')
    refused = CliRunner().invoke(elastic_ir, ["export", str(tmp_path / "net.pt"), "-o", str(mine)])
    assert refused.exit_code == 1 and "mine.py holds source that ElasticIR did not write" in refused.output
    assert mine.read_text() == '"""Somebody\'s own."""\n'
    ran = CliRunner().invoke(elastic_ir, ["export", str(tmp_path / "net.pt"), "-o", str(out), "--force"])
    assert ran.exit_code == 0 and 'torch.load("net.pt")' in out.read_text()
    ran = CliRunner().invoke(
        elastic_ir, ["export", str(tmp_path / "net.pt"), "-o", str(tmp_path / "a.onnx"), "--weights"]
    )
    assert ran.exit_code == 2 and "--weights is for .py files" in ran.output
    for command in (["stretch", "--to-depth", "20"], ["apply", "--passes", "fold-batchnorm"]):
        ran = CliRunner().invoke(
            elastic_ir, [*command, str(tmp_path / "net.pt"), "-o", str(tmp_path / "deep.py")]
        )
        assert ran.exit_code == 1 and "deep.py would hold no weights; write" in ran.output
    assert not (tmp_path / "deep.py").exists()


@pytest.mark.slow
def test_bert_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50,
        max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    graph = eir.trace(model)
    text = source_of(graph)
    assert "class BertSelfAttention(nn.Module)" in text and "for layer in self.layer:" in text
    tokens = torch.randint(0, 50, (3, 11))
    made = made_by(text)
    made.load_state_dict(graph.state_dict(), strict=True)
    made.eval()
    for mine, theirs in zip(made(tokens), model(tokens).to_tuple(), strict=True):
        torch.testing.assert_close(mine, theirs)
    deeper = eir.stretch(graph, to_units=4)
    made = made_by(text, depth=4)
    made.load_state_dict(deeper.state_dict(), strict=True)
    torch.testing.assert_close(made.eval()(tokens)[0], deeper.to_module().eval()(tokens)[0])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "line"), [("t5", "torch.where("), ("falcon", ".t()")])
def test_operations_that_are_no_plain_methods(name: str, line: str) -> None:
    from tests.networks.transformers_families import make

    graph = eir.trace(make(name))
    text = source_of(graph)  # which runs it, and compares its outputs with the graph's
    assert line in text
    assert list(made_by(text).state_dict()) == list(graph.state_dict())
