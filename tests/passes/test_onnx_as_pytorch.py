"""Passes over ONNX files: the same is cut, folded and projected as on the network that was exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from numpy.typing import NDArray

import elastic_ir as eir
from elastic_ir.emit.onnx.save import save_onnx
from elastic_ir.passes import Compact, FoldBatchNorm, NMProject, Pipeline
from elastic_ir.zoo import cifar_resnet
from tests.networks.onnx_files import feeds, run


@pytest.fixture(scope="module")
def pruned() -> eir.Graph:
    """A ResNet-14 half of whose inner filters are pruned, with statistics that are not trivial."""
    torch.manual_seed(0)
    model = cifar_resnet(14).eval()
    masks = {}
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(0.1 * torch.rand_like(buffer))
        for name, parameter in model.named_parameters():
            if ".conv1." in name:
                half = len(parameter) // 2
                masks[name] = torch.ones_like(parameter)
                masks[name][:half] = 0
                model.get_parameter(name.replace("conv1.weight", "bn1.bias"))[:half] = -0.5
    return eir.trace(model, masks=masks)


@pytest.fixture(scope="module")
def path(pruned: eir.Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("onnx") / "pruned.onnx"
    save_onnx(pruned, made)
    return made


def close(ours: list[NDArray[np.float32]], theirs: list[NDArray[np.float32]]) -> bool:
    return all(
        np.abs(a - b).max() <= 1e-5 * max(1.0, np.abs(b).max()) for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.slow
def test_compact_cuts_what_it_cuts_in_pytorch(pruned: eir.Graph, path: Path, tmp_path: Path) -> None:
    graph = eir.load(path, mask_from_zeros=True)
    small = Compact().run(graph)
    native = Compact().run(pruned)
    assert small.parameter_count() == native.parameter_count() < 0.6 * graph.parameter_count()
    (made,) = eir.save(small, tmp_path / "small.onnx")
    given = feeds(graph)
    assert close(run(made, given), run(path, given))
    shapes = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(made).graph.initializer}
    for name, weight in native.weights.items():
        if weight.is_parameter:
            assert shapes[name] == weight.shape


@pytest.mark.slow
def test_nothing_dead_changes_nothing(tmp_path: Path) -> None:
    save_onnx(eir.trace(cifar_resnet(14)), tmp_path / "m.onnx")
    (same,) = eir.save(Compact().run(eir.load(tmp_path / "m.onnx")), tmp_path / "same.onnx")
    assert onnx.load(same) == onnx.load(tmp_path / "m.onnx")


@pytest.mark.slow
def test_batch_norms_are_folded_and_zeros_stay(path: Path, tmp_path: Path) -> None:
    graph = eir.load(path, mask_from_zeros=True)
    folded = FoldBatchNorm().run(graph)
    assert not any(node.op == "onnx.BatchNormalization" for node in folded)
    (made,) = eir.save(folded, tmp_path / "folded.onnx")
    given = feeds(graph)
    assert close(run(made, given), run(path, given))
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(made).graph.initializer}
    for name, mask in graph.masks().items():
        assert not tensors[name][mask.numpy() == 0].any()
    deeper = eir.stretch(eir.load(made), to_depth=20)  # and it can still be changed
    (deep,) = eir.save(deeper, tmp_path / "deep.onnx")
    assert np.isfinite(run(deep, given)[0]).all()


@pytest.mark.slow
def test_groups_lie_along_what_a_layer_sums_over(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=64
    )
    traced = eir.trace(transformers.BertModel(config))
    native = NMProject().run(traced).masks()
    assert len(native) >= 12
    save_onnx(traced, tmp_path / "bert.onnx")
    graph = NMProject().run(eir.load(tmp_path / "bert.onnx"))
    found = graph.masks()
    for name, mask in found.items():  # torch's layout is kept, and so are the groups
        assert torch.equal(mask.bool(), native[name].bool())
        assert int(mask.reshape(mask.shape[0], -1, 4).sum(-1).max()) <= 2
    assert found.keys() == native.keys()
    # and where the matrix lies the other way round, as older exporters write it
    weight = np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("x", 32), ("y", 16))]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    body = onnx.helper.make_graph(
        [node], "g", ends[:1], ends[1:], [onnx.numpy_helper.from_array(weight, "w")]
    )
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    (mask,) = NMProject().run(eir.load(tmp_path / "m.onnx")).masks().values()
    assert int(mask.T.reshape(16, -1, 4).sum(-1).max()) == 2 == int(mask.T.reshape(16, -1, 4).sum(-1).min())


@pytest.mark.slow
def test_a_pipeline_over_an_onnx_file(path: Path, tmp_path: Path) -> None:
    graph = eir.load(path, mask_from_zeros=True)
    small = Pipeline.parse("compact,fold-batchnorm,stretch{to-depth=20}").run(graph)
    (made,) = eir.save(small, tmp_path / "small.onnx")
    assert [len(stage) for stage in eir.load(made).stages] == [3, 3, 3]
    assert np.isfinite(run(made, feeds(graph))[0]).all()
