"""compact, fold-batchnorm, net2wider and nm-project on graphs of ONNX: as from PyTorch, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

import elastic_ir as eir
from elastic_ir.analysis.cost import compare_costs
from elastic_ir.analysis.input_axes import InputAxes
from elastic_ir.cli.app import elastic_ir
from elastic_ir.emit.onnx.model import build_onnx
from elastic_ir.emit.onnx.save import save_onnx
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.onnx_model import OnnxSource
from elastic_ir.passes import Compact, FoldBatchNorm, Net2Wider, NMProject, Pass, Pipeline
from elastic_ir.tensors.lazy import Mask
from elastic_ir.zoo import cifar_resnet
from tests.networks.onnx_files import PATHS, feeds, run


def trained(model: nn.Module) -> nn.Module:
    """A network whose norms and weights are no longer those of a fresh one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand_like(buffer) + (0.5 if "var" in name else -0.5))
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def half_pruned(bias: float) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A ResNet-20 without half of the filters within its blocks, and what the norms make of them."""
    model = trained(cifar_resnet(20))
    masks = {}
    for name, parameter in model.named_parameters():
        if ".conv1." in name:
            masks[name] = torch.ones_like(parameter)
            masks[name][: len(parameter) // 2] = 0
            with torch.no_grad():
                model.get_parameter(name.replace("conv1.weight", "bn1.bias"))[: len(parameter) // 2] = bias
    return model, masks


def prune(graph: Graph, share: float = 0.5) -> Graph:
    """Masks that take away whole outputs of every layer that has some to spare."""
    rng = np.random.default_rng(0)
    axis_of = InputAxes(graph)
    for weight in graph.weights.values():
        axis = axis_of(weight)
        out = 1 - (axis if isinstance(axis, int) else 0)  # a ConvTranspose has its inputs first
        if weight.prunable and weight.mask is None and weight.shape[out] > 4:
            array = np.moveaxis(np.ones(weight.shape, bool), out, 0)
            array[rng.random(len(array)) < share] = False
            weight.storage.mask = Mask.from_array(np.moveaxis(array, 0, out))
    return graph


def check_same(before: Graph, after: Graph, folder: Path, tolerance: float = 1e-5) -> None:
    """Both are written, pass the checker, and give the same in onnxruntime."""
    given = feeds(before)
    first, second = folder / "before.onnx", folder / "after.onnx"
    save_onnx(before, first)
    save_onnx(after, second)
    for ours, theirs in zip(run(second, given), run(first, given), strict=True):
        assert np.abs(ours - theirs).max() <= tolerance * max(1.0, float(np.abs(theirs).max()))
    origin = eir.load(second).origin
    assert isinstance(origin, OnnxSource)
    shapes = origin.types
    for entry in onnx.load(second, load_external_data=False).graph.value_info:
        told = [d.dim_value for d in entry.type.tensor_type.shape.dim if d.HasField("dim_value")]
        if entry.name in shapes and len(told) == len(shapes[entry.name].shape):
            assert tuple(told) == shapes[entry.name].shape, entry.name


@pytest.mark.slow
@pytest.mark.parametrize("bias", [-1.0, 1.0])
def test_compact_as_from_pytorch(bias: float, tmp_path: Path) -> None:
    model, masks = half_pruned(bias)
    graph = eir.trace(model, masks=masks)
    small = Compact().run(graph)
    path = tmp_path / "pruned.onnx"
    save_onnx(graph, path)
    source = eir.load(path, mask_from_zeros=True)
    cut = Compact().run(source)
    assert cut.parameter_count() == small.parameter_count()
    ours = {name: weight.shape for name, weight in cut.weights.items()}
    assert ours == {n: w.shape for n, w in small.weights.items() if not n.endswith("num_batches_tracked")}
    assert Compact().summary(cut) == Compact().summary(small)
    check_same(source, cut, tmp_path)
    (given,) = feeds(source).values()
    with torch.no_grad():
        expected = small.to_module().eval()(torch.from_numpy(given)).numpy()
        module = cut.to_module().eval()(torch.from_numpy(given)).numpy()
    (found,) = run(tmp_path / "after.onnx", feeds(source))
    for result in (found, module):
        assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_dead_units_go(tmp_path: Path) -> None:
    model = trained(cifar_resnet(20))
    with torch.no_grad():
        for path in ("layer1.1", "layer3.2"):
            model.get_parameter(f"{path}.conv2.weight").zero_()
            norm = model.get_submodule(f"{path}.bn2")
            assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
            norm.bias.zero_()
            norm.running_mean.zero_()
    save_onnx(eir.trace(model), tmp_path / "m.onnx")
    source = eir.load(tmp_path / "m.onnx", mask_from_zeros=True)
    after = Compact().run(source)
    assert after.history.reports["compact"]["units"] == ["layer1.1", "layer3.2"]
    assert after.depth == 16 and [len(stage) for stage in after.stages] == [2, 3, 2]
    check_same(source, after, tmp_path)


class Convolutions(nn.Module):
    """Groups, skips, a transposed convolution, two norms, a resize and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 32, 3, 2, 1, bias=False)
        self.n1 = nn.BatchNorm2d(32)
        self.c = nn.Conv2d(32, 32, 3, 1, 1, groups=4)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.up2 = nn.ConvTranspose2d(16, 16, 3, 1, 1, groups=2)
        self.d = nn.Conv2d(48, 16, 3)
        self.n2 = nn.InstanceNorm2d(16, affine=True)
        self.slope = nn.PReLU(16)
        self.e = nn.Conv2d(16, 8, 1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.f = nn.Linear(8 * 49, 20)
        self.n3 = nn.BatchNorm1d(20)
        self.g = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = F.relu(self.n1(self.b(F.leaky_relu(self.a(x)))))
        wide = wide + F.gelu(self.c(wide))
        tall = self.up2(F.hardswish(self.up(wide)))
        joined = torch.cat([tall, F.interpolate(wide, scale_factor=2.0)], 1)
        narrow = self.e(self.slope(self.n2(F.elu(self.d(joined)))))
        gated = narrow * torch.sigmoid(self.gate(narrow.mean((2, 3), keepdim=True)))
        result: torch.Tensor = self.g(torch.tanh(self.n3(self.f(F.max_pool2d(gated, 2).flatten(1)))))
        return result


class Tokens(nn.Module):
    """Linear layers on sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 32), nn.Linear(32, 64)
        self.c, self.norm = nn.Linear(64, 32, bias=False), nn.LayerNorm(32)
        self.d, self.e = nn.Linear(32, 24), nn.Linear(24, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = self.norm(x + self.c(F.gelu(self.b(x))))
        result: torch.Tensor = self.e(torch.sigmoid(self.d(x)).mean(1))
        return result


@pytest.mark.slow
@pytest.mark.parametrize("passes", [[Compact()], [FoldBatchNorm()], [FoldBatchNorm(), Compact()]], ids=str)
@pytest.mark.parametrize(
    ("maker", "shape"), [(Convolutions, (2, 3, 16, 16)), (Tokens, (2, 7, 12))], ids=["convolutions", "tokens"]
)
def test_small_networks(
    maker: type[nn.Module], shape: tuple[int, ...], passes: list[Pass], tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    save_onnx(eir.trace(trained(maker()), (torch.randn(shape),)), path)
    source = prune(eir.load(path))
    after = source
    for item in passes:
        after = item.run(after)
        assert item.summary(after)
    if passes[-1].name == "compact":
        assert after.parameter_count() < 0.95 * source.parameter_count()
    check_same(source, after, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_widened_as_from_pytorch(stream: bool, tmp_path: Path) -> None:
    """The same channels get copies, and the network computes what it did."""
    widen = Net2Wider(factor=1.5, stream=stream, seed=2)
    graph = eir.trace(trained(cifar_resnet(14, width=8)))
    wider = widen.run(graph)
    save_onnx(graph, tmp_path / "m.onnx")
    source = eir.load(tmp_path / "m.onnx")
    after = widen.run(source)
    ours, theirs = after.history.reports["net2wider"], wider.history.reports["net2wider"]
    assert ours["layers"] == theirs["layers"] and ours["skipped"].keys() == theirs["skipped"].keys()
    native = wider.state_dict()
    for name, tensor in after.state_dict().items():
        assert torch.equal(tensor, native[name]), name
    check_same(source, after, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("maker", "shape"), [(Convolutions, (2, 3, 16, 16)), (Tokens, (2, 7, 12))], ids=["convolutions", "tokens"]
)
def test_widened_networks_compute_the_same(
    maker: type[nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Groups, transposed convolutions, products whose weight has its inputs first, constants beside tensors, masks."""
    save_onnx(eir.trace(trained(maker()), (torch.randn(shape),)), tmp_path / "m.onnx")
    source = prune(eir.load(tmp_path / "m.onnx"), share=0.25)
    after = Net2Wider(stream=True).run(source)
    assert after.parameter_count() > 1.5 * source.parameter_count()
    assert abs(after.sparsity() - source.sparsity()) < 0.05
    check_same(source, after, tmp_path)
    again = Pipeline.parse("net2wider{factor=1.25 seed=1 stream=true},compact,fold-batchnorm").run(after)
    check_same(source, again, tmp_path, 1e-4)


def test_noise_goes_to_the_copies_alone(tmp_path: Path) -> None:
    """Also where a weight has its outputs along the second axis, as a MatMul has."""
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(size=size).astype(np.float32) for name, size in (("a", (6, 10)), ("b", (10, 3)))
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]  # fmt: skip
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, size])
        for name, size in (("x", 6), ("y", 3))
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    onnx.save(
        helper.make_model(
            helper.make_graph(nodes, "m", ends[:1], ends[1:], tensors),
            opset_imports=[helper.make_opsetid("", 17)],
        ),
        tmp_path / "m.onnx",
    )
    source = eir.load(tmp_path / "m.onnx")
    first = next(name for name, weight in source.weights.items() if weight.shape == (6, 10))
    plain, noisy = (Net2Wider(noise=noise).run(source).state_dict()[first].numpy() for noise in (0.0, 0.01))
    copies = np.r_[False, (plain[:, 1:] == plain[:, :-1]).all(0)]
    assert copies.sum() == 10
    assert ((plain == noisy).all(0) == ~copies).all()


@pytest.mark.slow
def test_layers_to_widen_are_named_as_in_the_file(tmp_path: Path) -> None:
    save_onnx(eir.trace(cifar_resnet(14, width=4)), tmp_path / "m.onnx")
    source = eir.load(tmp_path / "m.onnx")
    after = Net2Wider(layers="layer2.*.conv1").run(source)
    assert list(after.history.reports["net2wider"]["layers"]) == [
        f"layer2.{block}.conv{number}" for block in (0, 1) for number in (1, 2)
    ]
    with pytest.raises(PlanError, match=r"layers='conv9' fits no layer with a weight"):
        Net2Wider(layers="conv9").run(source)


def old_model(path: Path) -> Graph:
    """IR version 3, initializers among the inputs, weights inputs first, extents in literals and value_info."""
    rng = np.random.default_rng(0)
    tables = {
        "k": (16, 3, 3, 3), "kb": (16,), "slope": (16, 1, 1), "w1": (256, 24), "b1": (24,), "w2": (24, 16),
        "scale": (16,), "shift": (16,), "mean": (16,), "var": (16,), "w3": (16, 4), "b3": (1, 4),
    }  # fmt: skip
    arrays = {name: rng.random(shape, np.float32) - 0.4 * (name != "var") for name, shape in tables.items()}
    arrays["k"][:8] = 0
    arrays["w1"][:, :12] = 0
    arrays["w2"][:, 4:10] = 0
    arrays["b1"][:4] = 0.5
    numbers = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    numbers.append(numpy_helper.from_array(np.array([1, 256], np.int64), "flat"))
    nodes = [
        helper.make_node("Conv", ["x", "k", "kb"], ["c"], pads=[0] * 4),
        helper.make_node("PRelu", ["c", "slope"], ["p"]),
        helper.make_node("Reshape", ["p", "flat"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["m"]),
        helper.make_node("Add", ["m", "b1"], ["a"]),
        helper.make_node("MatMul", ["a", "w2"], ["m2"]),
        helper.make_node("BatchNormalization", ["m2", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("Gemm", ["n", "w3", "b3"], ["y"]),
    ]

    def info(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    inputs = [info("x", 1, 3, 6, 6), *(info(name, *shape) for name, shape in tables.items())]
    inputs.append(helper.make_tensor_value_info("flat", TensorProto.INT64, [2]))
    told = [info("c", 1, 16, 4, 4), info("p", 1, 16, 4, 4), info("r", 1, 256), info("m", 1, 24)]
    made = helper.make_graph(nodes, "old", inputs, [info("y", 1, 4)], numbers, value_info=told)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 8)], ir_version=3)
    onnx.save(model, path)
    return eir.load(path, mask_from_zeros=True)


def test_an_old_model(tmp_path: Path) -> None:
    source = old_model(tmp_path / "old.onnx")
    folded = FoldBatchNorm().run(source)
    report = folded.history.reports["fold-batchnorm"]
    assert report["folded"] and not report["skipped"]
    assert [node.op for node in folded if node.kind == "onnx"].count("onnx.Add") == 2  # a MatMul has no bias
    check_same(source, folded, tmp_path)
    cut = Compact().run(source)
    assert isinstance(source.origin, OnnxSource)
    shapes = {source.origin.initializer_of[name]: weight.shape for name, weight in cut.weights.items()}
    assert shapes["k"] == (8, 3, 3, 3) and shapes["slope"] == (8, 1, 1)
    assert shapes["w1"] == (128, 12) and shapes["b1"] == (12,)  # what was constant is in the mean of the norm
    assert shapes["w2"] == (12, 10) and shapes["var"] == (10,) and shapes["w3"] == (10, 4)
    check_same(source, cut, tmp_path)
    check_same(source, FoldBatchNorm().run(cut), tmp_path)
    again = eir.load(tmp_path / "after.onnx")
    assert again.parameter_count() == FoldBatchNorm().run(cut).parameter_count()


@pytest.mark.parametrize("name", ["light-resnet50", "opennsfw", "minilm", "ocr-cls"])
def test_without_masks_nothing_changes(name: str) -> None:
    source = eir.load(PATHS[name])
    assert not any(weight.mask for weight in source.weights.values())
    after = Compact().run(source)
    assert build_onnx(after)[0] == build_onnx(source)[0]
    assert (Compact().summary(after) or "").startswith("nothing is dead")


@pytest.mark.parametrize(
    "name", [pytest.param("light-resnet50", marks=pytest.mark.slow), "opennsfw", "minilm", "ocr-cls"]
)
def test_real_files(name: str, tmp_path: Path) -> None:
    source = prune(eir.load(PATHS[name]))
    cut = Compact().run(source)
    assert cut.parameter_count() < source.parameter_count()
    check_same(source, cut, tmp_path)
    if name == "light-resnet50":
        folded = FoldBatchNorm().run(cut)
        assert len(folded.history.reports["fold-batchnorm"]["folded"]) == 53
        check_same(source, folded, tmp_path)


@pytest.mark.slow
def test_stretch_after_fold_keeps_zeros(tmp_path: Path) -> None:
    model, masks = half_pruned(-1.0)
    path = tmp_path / "m.onnx"
    save_onnx(eir.trace(model, masks=masks), path)
    folded = FoldBatchNorm().run(eir.load(path, mask_from_zeros=True))
    assert not any("bn" in name for name in folded.weights)
    assert "layer1.0.conv1.bias" in folded.weights
    (made,) = eir.save(eir.stretch(folded, to_depth=32), tmp_path / "deep.onnx")
    deep = eir.load(made)
    assert deep.depth == 32 and "layer2.4.conv2.bias" in deep.weights
    values = {t.name: numpy_helper.to_array(t) for t in onnx.load(made).graph.initializer}
    assert not values["layer1.4.conv1.weight"][:8].any() and values["layer1.4.conv1.weight"][8:].any()
    back = eir.squeeze(deep, to_depth=20)
    check_same(folded, back, tmp_path)


@pytest.mark.slow
def test_nm_groups_lie_along_the_inputs(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    config = transformers.BertConfig(**sizes, num_hidden_layers=2, vocab_size=99)
    path = tmp_path / "bert.onnx"
    save_onnx(eir.trace(transformers.BertModel(config)), path)
    for source in (eir.load(path), eir.load(PATHS["minilm"])):
        after = NMProject().run(source)
        report = after.history.reports["nm-project"]
        assert len(report["projected"]) >= 12
        axes: set[int] = set()
        for node in source:
            for place, item in enumerate(node.args):
                weight = source.weights.get(getattr(item, "name", ""))
                if node.op not in ("onnx.MatMul", "onnx.Transpose") or weight is None or place > 1:
                    continue
                mask = after.weights[weight.name].mask
                if mask is None:
                    continue
                axis = int(node.op == "onnx.Transpose")  # inputs first, but behind a Transpose
                groups = np.moveaxis(mask.array(), axis, -1).reshape(-1, 4)
                assert (groups.sum(1) == 2).all()
                axes.add(axis)
        assert axes
        check_same(after, eir.load(save(after, tmp_path / "nm.onnx")), tmp_path)
        assert NMProject().summary(after) is not None


def save(graph: Graph, path: Path) -> Path:
    """The file that was written."""
    return eir.save(graph, path)[0]


@pytest.mark.slow
def test_what_nm_project_leaves_says_why(tmp_path: Path) -> None:
    after = NMProject(rows=1, columns=1).run(eir.load(PATHS["light-resnet50"]))
    skipped = after.history.reports["nm-project"]["skipped"]
    assert list(skipped.values()) == ["3 inputs are not a multiple of 4"]
    path = tmp_path / "m.onnx"
    save_onnx(eir.trace(trained(Convolutions()), (torch.randn(2, 3, 16, 16),)), path)
    skipped = NMProject().run(eir.load(path)).history.reports["nm-project"]["skipped"]
    assert skipped["up.weight"] == "ConvTranspose may store its weight another way round"


def test_an_unknown_operator_keeps_what_it_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.random((8, 3, 1, 1), np.float32)
    kernel[:4] = 0
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="conv"),
        helper.make_node("LpNormalization", ["c"], ["y"], axis=1),
    ]
    infos = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", [1, 3, 4, 4]), ("y", [1, 8, 4, 4]))
    ]
    made = helper.make_graph(nodes, "g", infos[:1], infos[1:], [numpy_helper.from_array(kernel, "k")])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    after = Compact().run(eir.load(path, mask_from_zeros=True))
    assert after.weights["k"].shape == (8, 3, 1, 1)
    assert after.history.reports["compact"]["refused"] == {
        "LpNormalization": "onnx.LpNormalization reads 4 constant channels, which it may mix"
    }


def test_graphs_of_torch_export_are_refused_but_for_masks() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3)).eval()
    graph = eir.trace(model, (torch.randn(1, 3, 8, 8),), frontend="export")
    for item in (Compact(), FoldBatchNorm()):
        with pytest.raises(PlanError, match=f"traced by torch.export.*{item.name} cannot change; export it"):
            item.run(graph)
    assert NMProject().run(graph).history.reports["nm-project"]["projected"] == ["2.weight"]


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    model, masks = half_pruned(-1.0)
    save_onnx(eir.trace(model, masks=masks), tmp_path / "model.onnx")
    small = tmp_path / "small.onnx"
    command = ["apply", str(tmp_path / "model.onnx"), "--mask-from-zeros"]
    result = CliRunner().invoke(
        elastic_ir, [*command, "--passes", "compact,fold-batchnorm", "--measure", "-o", str(small)]
    )
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "note:       compact: cut 168 output channels, 18 layers are smaller" in lines
    assert "note:       fold-batchnorm: folded 21, left 0" in lines
    (flops,) = [line.split(":")[1] for line in lines if line.startswith("FLOPs")]
    before, after = (int(text.replace(",", "")) for text in flops.split("->"))
    assert 0.4 * before < after < 0.6 * before
    source, made = eir.load(tmp_path / "model.onnx"), eir.load(small)
    assert compare_costs(source, made).after.flops == after
    given = feeds(source)
    for ours, theirs in zip(run(small, given), run(tmp_path / "model.onnx", given), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    again = CliRunner().invoke(
        elastic_ir, ["apply", str(small), "--passes", "compact,fold-batchnorm,nm-project", "--dry-run"]
    )
    notes = [line.split(":", 1)[1].strip() for line in again.output.splitlines() if line.startswith("note")]
    assert notes[:2] == ["compact: nothing is dead", "fold-batchnorm: there is no batch norm"]
    assert (
        notes[2].startswith("nm-project: ")
        and "left (conv1.weight: 3 inputs are not a multiple of 4" in notes[2]
    )
