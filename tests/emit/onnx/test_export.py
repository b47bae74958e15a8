"""Networks exported by us: the same structure as in PyTorch, names of the state dict, outputs as PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
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

import elastic_ir as eir
from elastic_ir.emit.onnx.save import OnnxReport, save_onnx
from elastic_ir.errors import EmitError
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import cifar_resnet, cifar_vgg
from tests.networks.onnx_files import feeds, run

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99,
}  # fmt: skip
MAKERS: dict[str, Callable[[], nn.Module]] = {
    "cifar_resnet20": lambda: cifar_resnet(20),
    "cifar_vgg16": lambda: cifar_vgg(16),
    "resnet18": torchvision.models.resnet18,
    "resnet50": torchvision.models.resnet50,
    "mobilenet_v2": lambda: torchvision.models.MobileNetV2(
        inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 3, 2], [6, 32, 2, 2]]
    ),
    "vit": lambda: torchvision.models.VisionTransformer(32, 8, 4, 4, 32, 64),
    "convnext": lambda: timm.create_model("convnext_atto", depths=(2, 2, 3, 2), dims=(8, 16, 24, 32)),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SMALL)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=2)),
}
SLOW = {"resnet50", "convnext", "mobilenet_v2", "vit", "cifar_vgg16", "llama"}
ALL = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else []) for name in MAKERS]


@cache
def traced(name: str) -> eir.Graph:
    torch.manual_seed(0)
    model = MAKERS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # no two norms alike, so that sharing equal ones would show
            parameter.add_(0.02 * torch.randn_like(parameter))
    return eir.trace(model)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, OnnxReport]]:
    folder = tmp_path_factory.mktemp("exports")

    @cache
    def make(name: str) -> tuple[Path, OnnxReport]:
        path = folder / f"{name}.onnx"
        return path, save_onnx(traced(name), path)

    return make


@pytest.mark.parametrize("name", ALL)
@pytest.mark.everyday(1)
def test_names_and_structure(name: str, exported: Callable[[str], tuple[Path, OnnxReport]]) -> None:
    path, report = exported(name)
    graph, read = traced(name), eir.load(path)
    assert report.difference is not None and report.difference.largest <= report.difference.allowed
    assert report.dynamic
    names = {tensor.name for tensor in onnx.load(path).graph.initializer}
    wanted = {w.name for w in graph.weights.values() if w.persistent and w.is_parameter}
    assert wanted <= names | {n for n in wanted if _tied_with(n, names, graph)}

    def told(found: eir.Graph) -> list[Any]:
        return [(s.name, len(s), s.entry.path if s.entry else None, s.period) for s in found.stages]

    assert told(read) == told(graph)
    assert read.depth == graph.depth


def _tied_with(name: str, names: set[str], graph: eir.Graph) -> bool:
    storage = graph.weights[name].storage
    return any(w.storage is storage and w.name in names for w in graph.weights.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_stretch_as_onnx_is_stretch_in_pytorch(
    name: str, exported: Callable[[str], tuple[Path, OnnxReport]], tmp_path: Path
) -> None:
    path, _ = exported(name)
    graph = eir.load(path)
    stage = max(graph.stages, key=lambda found: len(found.blocks))
    target = {stage.name: len(stage) + 2}
    (made,) = eir.save(eir.stretch(graph, to_stages=target), tmp_path / "deeper.onnx")
    given = feeds(graph)
    module = eir.stretch(traced(name), to_stages=target).to_module().eval()
    tensors = [torch.from_numpy(value) for value in given.values()]
    with torch.no_grad():
        result = module(tensors[0]) if len(tensors) == 1 else module(**dict(zip(given, tensors, strict=True)))
    expected = result if isinstance(result, torch.Tensor) else next(iter(result.values()))
    found = run(made, given)[0]
    assert np.abs(found - expected.numpy()).max() <= 1e-4 * max(1.0, float(expected.abs().max()))
    (same,) = eir.save(
        eir.squeeze(eir.load(made), to_stages={stage.name: len(stage)}), tmp_path / "back.onnx"
    )
    for ours, theirs in zip(run(same, given), run(path, given), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.slow
def test_names_after_a_stretch_are_the_native_ones(
    exported: Callable[[str], tuple[Path, OnnxReport]], tmp_path: Path
) -> None:
    path, _ = exported("resnet18")
    deeper = eir.stretch(eir.load(path), to_depth=34, order="interpolate")
    (made,) = eir.save(deeper, tmp_path / "r34.onnx")
    names = {tensor.name for tensor in onnx.load(made).graph.initializer}
    native = dict(torchvision.models.resnet34().named_parameters())
    assert native.keys() <= names


@pytest.fixture(scope="module")
def ticket() -> eir.Graph:
    torch.manual_seed(0)
    model = cifar_resnet(20)
    return eir.trace(model, masks=magnitude_masks(model, 0.9))


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.slow
def test_pruned_weights_stay_zero(ticket: eir.Graph, tmp_path: Path, fold: bool) -> None:
    save_onnx(ticket, tmp_path / "t.onnx", fold_batchnorm=fold)
    model = onnx.load(tmp_path / "t.onnx")
    kinds = {node.op_type for node in model.graph.node}
    assert ("BatchNormalization" in kinds) != fold
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, mask in ticket.masks().items():
        assert not tensors[name][mask.numpy() == 0].any()


@pytest.mark.slow
def test_sparse(ticket: eir.Graph, tmp_path: Path) -> None:
    dense = save_onnx(ticket, tmp_path / "dense.onnx")
    sparse = save_onnx(ticket, tmp_path / "sparse.onnx", sparse=True)
    assert sparse.dense_size == dense.size
    assert sparse.size < 0.36 * dense.size
    model = onnx.load(tmp_path / "sparse.onnx")
    assert len(model.graph.sparse_initializer) == sparse.sparse_weights > 15
    names = {item.values.name for item in model.graph.sparse_initializer}
    assert names <= ticket.masks().keys()
    graph = eir.load(tmp_path / "sparse.onnx")
    given = feeds(graph)
    assert np.array_equal(run(tmp_path / "sparse.onnx", given)[0], run(tmp_path / "dense.onnx", given)[0])
    for name in names:  # the masks come back
        assert torch.equal(graph.masks()[name].bool(), ticket.masks()[name].bool())
    deeper = eir.stretch(graph, to_depth=32)
    (path,) = eir.save(deeper, tmp_path / "deeper.onnx")
    assert len(onnx.load(path).graph.sparse_initializer) > len(names)
    (same,) = eir.save(eir.squeeze(deeper, to_depth=20), tmp_path / "same.onnx")
    assert onnx.load(same) == model
    save_onnx(graph, tmp_path / "again.onnx", sparse=False)
    assert np.array_equal(run(tmp_path / "again.onnx", given)[0], run(tmp_path / "dense.onnx", given)[0])
    assert not onnx.load(tmp_path / "again.onnx").graph.sparse_initializer


@pytest.mark.slow
def test_the_batch_is_open_unless_it_is_fixed(ticket: eir.Graph, tmp_path: Path) -> None:
    save_onnx(ticket, tmp_path / "open.onnx")
    image = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)
    (name,) = feeds(eir.load(tmp_path / "open.onnx"))
    assert run(tmp_path / "open.onnx", {name: image})[0].shape == (5, 10)
    assert not save_onnx(ticket, tmp_path / "fixed.onnx", dynamic=False).dynamic
    dims = onnx.load(tmp_path / "fixed.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [1, 3, 32, 32]


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 21])
def test_opset(ticket: eir.Graph, tmp_path: Path, opset: int) -> None:
    assert save_onnx(ticket, tmp_path / "t.onnx", opset=opset).opset == opset
    assert onnx.load(tmp_path / "t.onnx").opset_import[0].version == opset


def test_nothing_of_this_machine_is_written(ticket: eir.Graph, tmp_path: Path) -> None:
    save_onnx(ticket, tmp_path / "t.onnx")
    content = (tmp_path / "t.onnx").read_bytes()
    assert b"stack_trace" not in content and b"/" + b"site-packages" not in content and b".py" not in content


@pytest.mark.slow
def test_external_data_above_the_limit(
    ticket: eir.Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elastic_ir.emit.onnx.save.LIMIT", 100_000)
    report = save_onnx(ticket, tmp_path / "t.onnx")
    assert [path.name for path in report.paths] == ["t.onnx", "t.onnx.data"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.onnx", "t.onnx.data"]
    graph = eir.load(tmp_path / "t.onnx")
    deeper = eir.stretch(graph, to_depth=32)
    written = eir.save(deeper, tmp_path / "deep.onnx")
    assert [path.name for path in written] == ["deep.onnx", "deep.onnx.data"]
    given = feeds(graph)
    back = eir.save(eir.squeeze(eir.load(written[0]), to_depth=20), tmp_path / "back.onnx")
    assert np.array_equal(run(back[0], given)[0], run(tmp_path / "t.onnx", given)[0])


@pytest.mark.slow
def test_a_difference_is_an_error(ticket: eir.Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("elastic_ir.emit.comparison", fromlist=["x"]).TOLERANCES, "float32", 1e-12)
    with pytest.raises(EmitError) as caught:
        save_onnx(ticket, tmp_path / "t.onnx")
    assert "output 0 of t.onnx differs from the module's by" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_state_dict_alone_cannot_be_exported(ticket: eir.Graph, tmp_path: Path) -> None:
    torch.save(ticket.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(EmitError) as caught:
        save_onnx(eir.load(tmp_path / "bare.pt"), tmp_path / "t.onnx")
    assert (
        str(caught.value)
        == "bare is a state dict without a network; say with --arch SOURCE what it belongs to"
    )


@pytest.mark.slow
def test_an_onnx_source_keeps_its_opset(ticket: eir.Graph, tmp_path: Path) -> None:
    save_onnx(ticket, tmp_path / "t.onnx")
    graph = eir.load(tmp_path / "t.onnx")
    with pytest.raises(EmitError) as caught:
        save_onnx(graph, tmp_path / "u.onnx", opset=18)
    assert str(caught.value) == (
        "t.onnx has opset 20 and keeps it; convert it with onnx.version_converter to get 18"
    )
    with pytest.raises(EmitError) as caught:
        save_onnx(graph, tmp_path / "u.onnx", fold_batchnorm=True)
    assert "t.onnx is ONNX already" in str(caught.value)


@pytest.mark.slow
def test_an_onnx_graph_as_a_checkpoint(ticket: eir.Graph, tmp_path: Path) -> None:
    save_onnx(ticket, tmp_path / "t.onnx")
    deeper = eir.stretch(eir.load(tmp_path / "t.onnx"), to_depth=32)
    eir.save(deeper, tmp_path / "t.safetensors")
    read = eir.load(tmp_path / "t.safetensors")
    assert [len(stage) for stage in read.stages] == [5, 5, 5]
    native = {n for n, _ in cifar_resnet(32).named_parameters()}
    assert native <= read.weights.keys()


@pytest.mark.slow
def test_a_module_is_saved_as_it_is_traced(tmp_path: Path) -> None:
    (path,) = eir.save(cifar_resnet(14), tmp_path / "m.onnx")
    assert [len(stage) for stage in eir.load(path).stages] == [2, 2, 2]
