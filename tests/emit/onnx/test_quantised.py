"""After a change of depth quantised values are read at the scales that they are made with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import elastic_ir as eir

WIDTH = 12
ORDERS = {"up": (0, 1, 1, 2), "again": (0, 2, 1, 2), "down": (0, 2)}


def network(order: tuple[int, ...]) -> onnx.ModelProto:
    """Residual blocks over quantised values, in an order by hand; every block has scales of its own."""
    generator = np.random.default_rng(0)
    stored: dict[str, np.ndarray] = {
        "stem.scale": np.array(0.02, np.float32),
        "zero": np.array(128, np.uint8),
    }
    for index in range(3):
        stored[f"layers.{index}.weight"] = generator.integers(90, 170, (WIDTH, WIDTH)).astype(np.uint8)
        for name, step in (("weight", 0.011), ("product", 0.05), ("sum", 0.06)):
            stored[f"layers.{index}.{name}_scale"] = np.array(step * (1 + 0.3 * index), np.float32)
    nodes = [helper.make_node("QuantizeLinear", ["x", "stem.scale", "zero"], ["q"], name="quantise")]
    at, scale = "q", "stem.scale"
    for place, index in enumerate(order):
        block = f"layers.{index}"
        product, total = f"{block}.product_scale", f"{block}.sum_scale"
        weight = [f"{block}.weight", f"{block}.weight_scale", "zero"]
        nodes += [
            helper.make_node("QLinearMatMul", [at, scale, "zero", *weight, product, "zero"], [f"p{place}"]),
            helper.make_node(
                "QLinearAdd",
                [at, scale, "zero", f"p{place}", product, "zero", total, "zero"],
                [f"a{place}"],
                domain="com.microsoft",
            ),
        ]
        for node in nodes[-2:]:
            node.name = f"/layers.{place}/{node.op_type}"
        at, scale = f"a{place}", total
    nodes.append(helper.make_node("DequantizeLinear", [at, scale, "zero"], ["y"], name="dequantise"))
    used = {name for node in nodes for name in node.input}
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items() if name in used]
    names = [f"{kind}{place}" for place in range(len(order)) for kind in "pa"]
    inside = [helper.make_tensor_value_info(name, TensorProto.UINT8, ["n", WIDTH]) for name in names]
    graph = helper.make_graph(nodes, "quantised", info[:1], info[1:], tensors, value_info=inside)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    given = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)
    (found,) = session.run(None, {"x": given})
    return np.asarray(found)


@pytest.mark.parametrize("name", ORDERS)
def test_scales_follow_the_values(name: str, tmp_path: Path) -> None:
    source, plan = network((0, 1, 2)), ORDERS[name]
    onnx.save(source, tmp_path / "a.onnx")
    graph = eir.load(tmp_path / "a.onnx")
    assert [len(stage) for stage in graph.stages] == [3]
    (same,) = eir.save(graph, tmp_path / "same.onnx")
    assert onnx.load(same) == source
    change = eir.stretch if len(plan) > 3 else eir.squeeze
    (path,) = eir.save(change(graph, plan={graph.stages[0].name: plan}), tmp_path / "b.onnx")
    assert np.array_equal(run(onnx.load(path)), run(network(plan)))
