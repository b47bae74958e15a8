"""fold-batchnorm: convolutions and linear layers with the norm behind them in their weights."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.passes import Compact, FoldBatchNorm
from elastic_ir.zoo import cifar_resnet, cifar_vgg
from tests.passes.pruned import pruned, randomise_norms, same_function


def fold(graph: eir.Graph) -> eir.Graph:
    return FoldBatchNorm().run(graph)


GOLDEN = """\
weights
  @0.weight : f32[4, 2, 3, 3] mask(18 of 72 pruned)
  @0.bias : f32[4] from @1.bias
  @3.weight : f32[3, 4]
  @3.bias : f32[3]
nodes
  %input = input() : f32[2, 2, 3, 3]
  %_0 = nn.Conv2d(%input) {in_channels=2, out_channels=4, kernel_size=(3, 3), stride=(1, 1), padding=(0, 0), \
dilation=(1, 1), groups=1, bias=True, padding_mode='zeros'} in 0 : f32[2, 4, 1, 1]
  %_1 = nn.Identity(%_0) in 1 : f32[2, 4, 1, 1]
  %_2 = nn.Flatten(%_1) {start_dim=1, end_dim=-1} in 2 : f32[2, 4]
  %_3 = nn.Linear(%_2) {in_features=4, out_features=3, bias=True} in 3 : f32[2, 3]
  %_4 = nn.Identity(%_3) in 4 : f32[2, 3]
  %output = output(%_4) : f32[2, 3]
"""


def test_golden_text() -> None:
    """The norms' places are taken by identities; names and masks of what is left stay."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3)
    )
    mask = torch.ones(4, 2, 3, 3)
    mask[2] = 0
    graph = eir.trace(model.eval(), (torch.zeros(2, 2, 3, 3),), masks={"0.weight": mask})
    done = fold(graph)
    text = str(done)
    assert text[text.index("weights\n") :] == GOLDEN
    state = done.state_dict()["0.weight"]
    assert (state[2] == 0).all()
    assert state[[0, 1, 3]].all()
    assert [type(layer).__name__ for layer in done.to_module()] == [  # type: ignore[attr-defined]
        "Conv2d", "Identity", "Flatten", "Linear", "Identity",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("model", [cifar_resnet(20, width=8), cifar_vgg(13)], ids=["resnet", "vgg"])
def test_networks_of_the_zoo(model: nn.Module) -> None:
    graph, x = pruned(model, (2, 3, 32, 32))
    done = fold(graph)
    assert not done.history.reports["fold-batchnorm"]["skipped"]
    assert done.depth == graph.depth
    assert [len(stage) for stage in done.stages] == [len(stage) for stage in graph.stages]
    assert done.masks().keys() == graph.masks().keys()
    assert set(done.weights) - set(graph.weights) <= {n.replace("weight", "bias") for n in graph.masks()}
    same_function(graph, done, x)
    same_function(graph, Compact().run(done), x)
    same_function(graph, fold(Compact().run(graph)), x)
    for name, mask in done.masks().items():
        assert not done.state_dict()[name][mask == 0].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    graph, x = pruned(getattr(models, name)(num_classes=10), (2, 3, 64, 64))
    done = fold(graph)
    module = same_function(graph, done, x)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    assert type(module) is type(graph.origin.module)


class Awkward(nn.Module):
    """A norm behind an addition, one whose layer is read twice, one without statistics, one on another axis."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv1d(4, 4, 1) for _ in range(3))
        self.added, self.forked, self.plain = (nn.BatchNorm1d(4) for _ in range(3))
        self.own = nn.BatchNorm1d(4, track_running_stats=False)
        self.last, self.across = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.added(x + self.one(x)))
        y = self.plain(self.three(self.own(self.forked(y) + y)))
        out: Tensor = self.across(self.last(y))
        return out


def test_what_cannot_be_folded_is_said() -> None:
    model = Awkward()
    randomise_norms(model.plain)
    x = torch.randn(3, 4, 4, dtype=torch.double)
    graph = eir.trace(model.double().eval(), (x,))
    done = fold(graph)
    report = done.history.reports["fold-batchnorm"]
    assert report["folded"] == ["plain"]
    assert report["skipped"] == {
        "added": "it does not directly follow a convolution or linear layer",
        "forked": "%add_1 reads the output of two as well",
        "own": "it has no statistics of its own",
        "across": "it normalises another axis than the outputs of last",
    }
    same_function(graph, done, x)


def test_a_shared_layer_is_left_alone() -> None:
    conv = nn.Conv2d(3, 3, 1)
    graph = eir.trace(
        nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3)).eval(), (torch.zeros(1, 3, 2, 2),)
    )
    assert fold(graph).history.reports["fold-batchnorm"]["skipped"] == dict.fromkeys(
        ("1", "3"), "0 is used more than once"
    )


def test_a_folded_network_can_be_stretched_and_written(tmp_path: Path) -> None:
    graph, x = pruned(cifar_resnet(14, width=4), (1, 3, 16, 16))
    done = eir.stretch(fold(graph), to_depth=20)
    assert done.lineage()["layer1.2.conv1.bias"] == "layer1.1.bn1.bias"
    eir.save(done, tmp_path / "folded.pt")
    again = eir.load(tmp_path / "folded.pt")
    assert again.depth == 20
    assert torch.equal(again.to_module().eval()(x), done.to_module().eval()(x))


def test_optimizer_state_cannot_follow() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    graph = eir.trace(model.eval(), (torch.zeros(1, 1, 2, 2),))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 1, 2, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(eir.EmitError, match="train before folding"):
        fold(graph).remap_optimizer_state(optimizer.state_dict(), [n for n, _ in model.named_parameters()])


def test_bare_weights_are_refused(tmp_path: Path) -> None:
    torch.save(cifar_resnet(14, width=4).state_dict(), tmp_path / "bare.pt")
    with pytest.raises(eir.PlanError, match="fold-batchnorm has to see what reads what"):
        fold(eir.load(tmp_path / "bare.pt"))


def test_an_unbatched_convolution_has_its_channels_on_another_axis() -> None:
    """(channels, length) looks to the norm like (batch, channels)."""
    model = nn.Sequential(nn.Conv1d(3, 5, 1), nn.BatchNorm1d(5)).eval()
    graph = eir.trace(model, (torch.randn(3, 5),))
    assert fold(graph).history.reports["fold-batchnorm"]["skipped"] == {
        "1": "it normalises another axis than the outputs of 0"
    }


def test_a_norm_whose_scale_is_computed_is_left() -> None:
    with pytest.warns(FutureWarning):  # the older form keeps the class
        model = nn.Sequential(nn.Linear(3, 4), nn.utils.weight_norm(nn.BatchNorm1d(4))).eval()
    graph = eir.trace(model, (torch.randn(2, 3),))
    assert fold(graph).history.reports["fold-batchnorm"]["skipped"] == {
        "1": "its scale is computed from others"
    }


# -- the same words for ONNX -------------------------------------------------------------------------------------------

NORM = ("scale", "shift", "mean", "variance")


def onnx_graph(
    folder: Path, nodes: list[onnx.NodeProto], rank: int, weights: dict[str, tuple[int, ...]]
) -> eir.Graph:
    """A file of some nodes from x, of four channels, to y; norms read the same four tensors of size 4."""
    torch.manual_seed(0)
    values = {name: torch.randn(shape) for name, shape in weights.items()}
    values |= {name: torch.rand(4) + 0.5 for name in NORM}
    made = helper.make_model(
        helper.make_graph(
            nodes, "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 4, 4, 4)[:rank])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4, 4, 4, 4)[:rank])],
            [helper.make_tensor(k, TensorProto.FLOAT, v.shape, v.flatten().tolist()) for k, v in values.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )  # fmt: skip
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, folder / "m.onnx")
    return eir.load(folder / "m.onnx")


def norm(source: str, result: str = "y") -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", [source, *NORM], [result])


@pytest.mark.parametrize(
    ("nodes", "rank", "weights", "reason"),
    [
        ([("Relu", "x", "a")], 4, {}, "it does not directly follow a convolution or linear layer"),
        ([("MatMul", "w x", "a")], 2, {"w": (4, 4)}, "it does not directly follow a convolution or linear layer"),
        ([("ConvTranspose", "x w", "a")], 4, {"w": (4, 4, 1, 1)},
         "it does not directly follow a convolution or linear layer"),
        ([("MatMul", "x w", "a")], 3, {"w": (4, 4)}, "it normalises another axis than the outputs of .+"),
        ([("Abs", "w", "v"), ("Conv", "x v", "a")], 4, {"w": (4, 4, 1, 1)},
         "the weight of .+ is computed from others"),
        ([("Conv", "x w", "b"), ("Conv", "b w", "a")], 4, {"w": (4, 4, 1, 1)}, ".+ is used more than once"),
        ([("Conv", "x w b", "a")], 4, {"w": (4, 4, 1, 1), "b": (4,)}, ""),
        ([("Gemm", "x w", "a")], 2, {"w": (4, 4)}, ""),
        ([("MatMul", "x w", "a")], 2, {"w": (4, 4)}, ""),
        ([("Transpose", "w", "v"), ("MatMul", "x v", "a")], 2, {"w": (4, 4)}, ""),
        ([("Transpose", "w", "v"), ("Gemm", "x v b", "a")], 2, {"w": (4, 4), "b": (4,)}, ""),
    ],
)  # fmt: skip
def test_onnx_layers(
    nodes: list[tuple[str, str, str]],
    rank: int,
    weights: dict[str, tuple[int, ...]],
    reason: str,
    tmp_path: Path,
) -> None:
    made = [helper.make_node(kind, given.split(), [result]) for kind, given, result in nodes]
    graph = onnx_graph(tmp_path, [*made, norm("a")], rank, weights)
    done = fold(graph)
    said = list(done.history.reports["fold-batchnorm"]["skipped"].values())
    assert len(said) == bool(reason)
    assert all(re.fullmatch(reason, each) for each in said), said
    x = torch.randn((4,) * rank)
    before, after = (each.to_module(check=False).eval()(x) for each in (graph, done))
    assert torch.allclose(before, after, atol=1e-5)
    assert any(node.op == "onnx.BatchNormalization" for node in done) == bool(reason)
