"""Extents that a Reshape asks for, put together by a Concat, as exporters write the flattening of an open batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import elastic_ir as eir
from elastic_ir.passes import Compact, Net2Wider


def exported(path: Path, *, shared: bool = False, ends: bool = True) -> Path:
    """Convolutions, the mean over the map, a flattening to ``[Shape(x)[0], 8]``, and a linear layer."""
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(s).astype(np.float32) for s in ((8, 3, 3, 3), (8, 8, 3, 3)))
    first[2:4] = second[5] = 0
    second[:, 2:4] = 0
    last = rng.standard_normal((4, 8)).astype(np.float32)
    named = {"a.weight": first, "b.weight": second, "fc.weight": last}
    whole = {"axes": [2, 3], "eight": [8], "zero": [0]}
    weights = [numpy_helper.from_array(array, name) for name, array in named.items()]
    weights += [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in whole.items()]
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "a.weight"], ["c1"], name="/a/Conv", pads=[1, 1, 1, 1]),
        make("Relu", ["c1"], ["r1"], name="/Relu"),
        make("Conv", ["r1", "b.weight"], ["c2"], name="/b/Conv", pads=[1, 1, 1, 1]),
        make("Relu", ["c2"], ["r2"], name="/Relu_1"),
        make("ReduceMean", ["r2", "axes"], ["m"], name="/Mean", keepdims=1),
    ]
    if ends:
        nodes.append(make("Shape", ["m"], ["s"], name="/Shape", start=0, end=1))
    else:
        nodes.append(make("Shape", ["m"], ["whole"], name="/Shape"))
        nodes.append(make("Gather", ["whole", "zero"], ["s"], name="/Gather", axis=0))
    nodes.append(make("Concat", ["s", "eight"], ["extents"], name="/Concat", axis=0))
    nodes.append(make("Reshape", ["m", "extents"], ["flat"], name="/Reshape"))
    nodes.append(make("Gemm", ["flat", "fc.weight"], ["y"], name="/fc/Gemm", transB=1))
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    if shared:
        nodes.append(make("Reshape", ["m", "extents"], ["other"], name="/Reshape_1"))
        results.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["n", 8]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    graph = helper.make_graph(nodes, "net", inputs, results, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def shapes(graph: eir.Graph) -> list[tuple[int, ...]]:
    return [weight.shape for weight in graph.weights.values()]


def outputs(path: Path) -> NDArray[Any]:
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    result = ort.InferenceSession(path).run(None, {"x": x})[0]
    assert isinstance(result, np.ndarray)
    return result


@pytest.mark.parametrize("ends", [True, False])
def test_the_extent_follows_the_channels(tmp_path: Path, ends: bool) -> None:
    source = exported(tmp_path / "m.onnx", ends=ends)
    done = Compact().run(eir.load(source, mask_from_zeros=True))
    assert shapes(done) == [(6, 3, 3, 3), (7, 6, 3, 3), (4, 7)]
    eir.save(done, tmp_path / "small.onnx")
    np.testing.assert_allclose(outputs(tmp_path / "small.onnx"), outputs(source), rtol=1e-4, atol=1e-5)


def test_it_follows_when_the_network_is_widened(tmp_path: Path) -> None:
    source = exported(tmp_path / "m.onnx")
    done = Net2Wider(factor=1.5).run(eir.load(source))
    assert shapes(done) == [(12, 3, 3, 3), (12, 12, 3, 3), (4, 12)]
    eir.save(done, tmp_path / "wide.onnx")
    np.testing.assert_allclose(outputs(tmp_path / "wide.onnx"), outputs(source), rtol=1e-4, atol=1e-5)


def test_extents_that_others_read_too_stay(tmp_path: Path) -> None:
    graph = eir.load(exported(tmp_path / "m.onnx", shared=True), mask_from_zeros=True)
    done = Compact().run(graph)
    assert shapes(done) == [(6, 3, 3, 3), (8, 6, 3, 3), (4, 8)]
