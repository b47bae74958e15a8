"""Sparse ONNX files: from PyTorch and ONNX, however the source keeps its weights, with zeros of either sign."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from elastic_ir.emit.onnx.save import save_onnx
from elastic_ir.tensors.arrays import nonzero
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import cifar_resnet

RNG = np.random.default_rng(0)


def pruned(*shape: int, dtype: str = "float32", negative: bool = True, share: float = 0.9) -> np.ndarray:
    """A weight of which a share is zero; half of the zeros are -0.0, as ``weight * mask`` leaves them."""
    values = RNG.standard_normal(shape).astype(dtype)
    keep = RNG.random(shape) >= share
    return values * keep if negative else np.where(keep, values, np.zeros((), dtype))


def model(
    nodes: list[onnx.NodeProto], tensors: list[TensorProto], kind: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", kind, [2, 64])],
        [helper.make_tensor_value_info("y", kind, [2, 64])], tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tensor(values: np.ndarray, name: str = "w") -> TensorProto:
    return numpy_helper.from_array(values, name)


def gemm() -> onnx.ModelProto:
    return model([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], [tensor(pruned(64, 64))])


def matmul() -> onnx.ModelProto:
    return model([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor(pruned(64, 64))])


def shared() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    return model(nodes, [tensor(pruned(64, 64))])


def constant() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=tensor(pruned(64, 64))),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return model(nodes, [])


def as_floats() -> onnx.ModelProto:
    """The numbers in ``float_data``, as some writers have them."""
    values = pruned(64, 64)
    made = helper.make_tensor("w", TensorProto.FLOAT, [64, 64], values.flatten().tolist())
    return model([helper.make_node("MatMul", ["x", "w"], ["y"])], [made])


def halves() -> onnx.ModelProto:
    made = tensor(pruned(64, 64, dtype="float16"))
    return model([helper.make_node("MatMul", ["x", "w"], ["y"])], [made], TensorProto.FLOAT16)


def halves_by_their_bits() -> onnx.ModelProto:
    """Sixteen bits in ``int32_data``."""
    bits = pruned(64, 64, dtype="float16").view(np.uint16).flatten().tolist()
    made = TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=[64, 64], int32_data=bits)
    return model([helper.make_node("MatMul", ["x", "w"], ["y"])], [made], TensorProto.FLOAT16)


def doubles() -> onnx.ModelProto:
    made = tensor(pruned(64, 64, dtype="float64"))
    return model([helper.make_node("MatMul", ["x", "w"], ["y"])], [made], TensorProto.DOUBLE)


def old() -> onnx.ModelProto:
    """An IR from before sparse initializers, which lists every weight as an input."""
    made = gemm()
    made.ir_version = 3
    made.opset_import[0].version = 8
    made.graph.node[0].input.append("c")
    made.graph.initializer.append(tensor(np.zeros(64, np.float32), "c"))
    for item in made.graph.initializer:
        made.graph.input.append(helper.make_tensor_value_info(item.name, item.data_type, list(item.dims)))
    return made


FORMS = [gemm, matmul, shared, constant, as_floats, halves, halves_by_their_bits, doubles, old]


def run(path: Path) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    kind = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}[entry.type]
    given = np.random.default_rng(1).standard_normal(entry.shape).astype(kind)
    found: list[np.ndarray] = session.run(None, {entry.name: given})
    return found


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_weights_of_an_onnx_file_become_sparse(
    form: Callable[[], onnx.ModelProto], zeros: bool, tmp_path: Path
) -> None:
    """However the file keeps its weight, with the mask taken from the zeros and without."""
    source, out = tmp_path / "net.onnx", tmp_path / "sparse.onnx"
    onnx.save(form(), source)
    report = save_onnx(eir.load(source, mask_from_zeros=zeros), out, sparse=True)
    assert report.sparse_weights == 1
    assert report.dense_size is not None and report.size < 0.7 * report.dense_size
    assert report.difference is not None and report.difference.largest == 0
    written = onnx.load(out)
    onnx.checker.check_model(written)
    assert [item.values.name for item in written.graph.sparse_initializer] == ["w"]
    values = numpy_helper.to_array(written.graph.sparse_initializer[0].values)
    assert len(values) == np.count_nonzero(values) < 0.2 * 64 * 64
    for ours, theirs in zip(run(out), run(source), strict=True):
        assert np.array_equal(ours, theirs)
    again = eir.load(out)
    kept = {
        weight.mask.size - weight.mask.zeros for weight in again.weights.values() if weight.mask is not None
    }
    assert kept == {len(values)}


def test_external_data(tmp_path: Path) -> None:
    source, out = tmp_path / "net.onnx", tmp_path / "there" / "sparse.onnx"
    out.parent.mkdir()
    made = matmul()
    made.graph.node[0].output[0] = "h"
    made.graph.node.append(helper.make_node("MatMul", ["h", "d"], ["y"]))
    made.graph.initializer.append(tensor(pruned(64, 64, share=0.1), "d"))
    onnx.save(made, source, save_as_external_data=True, location="net.data", size_threshold=0)
    report = save_onnx(eir.load(source), out, sparse=True)
    assert report.sparse_weights == 1 and [path.name for path in report.paths] == [
        "sparse.onnx",
        "sparse.onnx.data",
    ]
    assert sum(path.stat().st_size for path in report.paths) < 0.8 * (tmp_path / "net.data").stat().st_size
    assert np.array_equal(run(out)[0], run(source)[0])


def test_a_sparse_file_stays_sparse_and_its_share_is_of_the_dense_one(tmp_path: Path) -> None:
    onnx.save(gemm(), tmp_path / "net.onnx")
    first = save_onnx(eir.load(tmp_path / "net.onnx"), tmp_path / "one.onnx", sparse=True)
    second = save_onnx(eir.load(tmp_path / "one.onnx"), tmp_path / "two.onnx", sparse=True)
    assert (first.sparse_weights, second.sparse_weights) == (1, 1)
    assert first.dense_size is not None and second.dense_size is not None
    assert abs(first.size / first.dense_size - second.size / second.dense_size) < 0.05


class Two(nn.Module):
    """One layer pruned by a product, one that keeps its zeros of either sign."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 64, dtype=dtype), nn.Linear(64, 64, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.two(self.one(x).relu())
        return made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_negative_zeros_count_as_zeros(dtype: torch.dtype, tmp_path: Path) -> None:
    """As masks, and written as +0.0 where pruned; a weight of -0.0 that a mask keeps stays what it is."""
    network = Two(dtype).eval()
    keep = torch.rand(64, 64) >= 0.9
    network.one.weight.data = network.one.weight.data * keep
    assert bool(torch.signbit(network.one.weight[~keep]).any())
    torch.save(network.state_dict(), tmp_path / "net.pt")
    graph = eir.load(tmp_path / "net.pt", mask_from_zeros=True)
    mask = graph.masks()["one.weight"]
    assert torch.equal(mask.bool(), keep) and "two.weight" not in graph.masks()
    written = graph.state_dict()["one.weight"]
    assert not torch.signbit(written[~keep]).any() and torch.equal(written[keep], network.one.weight[keep])
    for name in ("net.ticket", "net.safetensors"):
        eir.save(graph, tmp_path / name)
        back = eir.load(tmp_path / name)
        assert torch.equal(back.state_dict()["one.weight"].view(torch.uint8), written.view(torch.uint8))


def test_a_kept_negative_zero_stays_bit_for_bit(tmp_path: Path) -> None:
    network = Two(torch.float32).eval()
    keep = torch.ones(64, 64, dtype=torch.bool)
    keep[:, ::2] = False
    network.one.weight.data[0, 1] = -0.0
    graph = eir.trace(network, (torch.randn(2, 64),), masks={"one.weight": keep})
    for name in ("net.pt", "net.ticket", "net.safetensors"):
        eir.save(graph, tmp_path / name)
        assert torch.signbit(eir.load(tmp_path / name).state_dict()["one.weight"][0, 1])


@pytest.mark.slow
def test_a_file_of_negative_zeros_is_as_small_as_one_of_zeros(tmp_path: Path) -> None:
    """A ResNet pruned to a tenth: from a .pt, from its ONNX file, and from a file with -0.0, by the command line."""
    torch.manual_seed(0)
    network = cifar_resnet(8).eval()
    masks = magnitude_masks(network, 0.9)
    graph = eir.trace(network, masks=masks)
    eir.save(graph, tmp_path / "net.pt")
    eir.save(graph, tmp_path / "net.onnx")
    for name, parameter in network.named_parameters():
        if name in masks:
            parameter.data = parameter.data * masks[name]
    eir.save(eir.trace(network), tmp_path / "negative.pt")
    eir.save(eir.trace(network), tmp_path / "negative.onnx")
    for source in ("net.pt", "net.onnx", "negative.pt", "negative.onnx"):
        out = tmp_path / f"{source}.sparse.onnx"
        result = CliRunner().invoke(
            elastic_ir, ["export", str(tmp_path / source), "--sparse", "-o", str(out)]
        )
        assert result.exit_code == 0, result.output
        assert out.stat().st_size < 0.4 * (tmp_path / "net.onnx").stat().st_size
        assert (
            "in onnxruntime, from " + ("the dense model" if ".onnx" in source else "PyTorch") in result.output
        )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_zeros_are_told_from_bytes(dtype: str) -> None:
    from elastic_ir.tensors.lazy import InlineData

    values = np.array([0.0, -0.0, 1.0, -1.0, np.nan, np.inf, np.finfo(dtype).smallest_subnormal], dtype)
    found = nonzero(InlineData((7,), dtype, values.tobytes()))
    assert found.tolist() == [False, False, True, True, True, True, True]
