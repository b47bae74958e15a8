"""Equal tensors that an exporter keeps once: an Identity at the top gives the one that is there its other names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import elastic_ir as eir

WIDTH = 8


def shared(blocks: int, holder: int) -> onnx.ModelProto:
    """Residual blocks with biases of their own names that are one tensor; ``holder`` is the block that has it."""
    generator = np.random.default_rng(0)
    arrays = {f"layers.{i}.weight": generator.standard_normal((WIDTH, WIDTH)) for i in range(blocks)}
    arrays[f"layers.{holder}.bias"] = generator.standard_normal(WIDTH)
    stored = [
        numpy_helper.from_array((0.3 * array).astype(np.float32), name) for name, array in arrays.items()
    ]
    others = [index for index in reversed(range(blocks)) if index != holder]
    nodes = [
        helper.make_node("Identity", [f"layers.{holder}.bias"], [f"layers.{i}.bias"], name=f"Identity_{i}")
        for i in others
    ]
    at = "x"
    for index in range(blocks):
        nodes += [
            helper.make_node("Gemm", [at, f"layers.{index}.weight", f"layers.{index}.bias"], [f"g{index}"]),
            helper.make_node("Relu", [f"g{index}"], [f"r{index}"]),
            helper.make_node("Add", [at, f"r{index}"], [f"a{index}"]),
        ]
        for node in nodes[-3:]:
            node.name = f"/layers.{index}/{node.op_type}"
        at = f"a{index}"
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", at)]
    graph = helper.make_graph(nodes, "shared", info[:1], info[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    given = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)
    (found,) = session.run(None, {"x": given})
    return np.asarray(found)


@pytest.mark.parametrize("plan", [(0, 1, 2, 2, 1), (1, 2), (2,)], ids=str)
@pytest.mark.parametrize("holder", [0, 1, 2])
def test_a_shared_tensor_follows_its_blocks(holder: int, plan: tuple[int, ...], tmp_path: Path) -> None:
    source = shared(3, holder)
    onnx.save(source, tmp_path / "a.onnx")
    graph = eir.load(tmp_path / "a.onnx")
    assert {f"layers.{index}.bias" for index in range(3)} <= graph.weights.keys()
    assert [len(stage) for stage in graph.stages] == [3]
    assert graph.depth == 3
    assert graph.parameter_count() == 3 * WIDTH * WIDTH + WIDTH
    (same,) = eir.save(graph, tmp_path / "same.onnx")
    assert onnx.load(same) == source
    wanted = shared(len(plan), 0)
    held = {tensor.name: tensor.raw_data for tensor in source.graph.initializer}
    for tensor in wanted.graph.initializer:
        parts = tensor.name.split(".")
        tensor.raw_data = held[f"layers.{plan[int(parts[1])] if parts[2] == 'weight' else holder}.{parts[2]}"]
    change = eir.stretch if len(plan) > 3 else eir.squeeze
    (path,) = eir.save(change(graph, plan={graph.stages[0].name: plan}), tmp_path / "b.onnx")
    assert np.array_equal(run(onnx.load(path)), run(wanted))
    names = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert len(names) == len(plan) + 1
