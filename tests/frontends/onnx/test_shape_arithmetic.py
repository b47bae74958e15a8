"""Shapes that a file computes from shapes, and what is not followed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from elastic_ir.frontends.onnx.types import complete_types
from elastic_ir.ir.graph import TensorType

INPUT = {"x": TensorType((2, 7, 5), "float32")}


def model(nodes: list[onnx.NodeProto], constants: dict[str, Any], result: str = "y") -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [2, 7, 5])],
        [helper.make_tensor_value_info(result, 7, None)], tensors,
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


#: From the shape [2, 7, 5] to numbers that then are a shape.
SUMS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "over floats": (
        [
            node("Cast", "s", "f", to=1), node("Div", "f two", "h"), node("Ceil", "h", "c"),
            node("Cast", "c", "n", to=7),
        ],
        {"two": np.float32(2)},
    ),
    "cut towards zero": (
        [node("Neg", "s", "m"), node("Div", "m two", "d"), node("Neg", "d", "n")], {"two": [2, 2, 2]}
    ),
    "backwards": ([node("Slice", "s from to axes step", "n")],
                  {"from": [-1], "to": [np.iinfo(np.int64).min], "axes": [0], "step": [-1]}),
    "a filled tensor": ([node("ConstantOfShape", "one", "z"), node("Cast", "z", "i", to=7),
                         node("Add", "i s", "n")], {"one": [1]}),
    "scattered": ([node("ScatterND", "s at values", "n")], {"at": [[1]], "values": [3]}),
    "the rest": ([node("Mod", "s three", "m"), node("Max", "m one", "n")], {"three": [3, 3, 3], "one": [1]}),
}  # fmt: skip


@pytest.mark.parametrize("name", SUMS)
def test_sums_are_as_onnx_computes_them(name: str) -> None:
    nodes, constants = SUMS[name]
    nodes = [node("Shape", "x", "s"), *nodes, node("ConstantOfShape", "n", "y")]
    made = model(nodes, constants)
    made.graph.output[0].type.tensor_type.elem_type = 1
    (expected,) = ReferenceEvaluator(made).run(None, {"x": np.zeros((2, 7, 5), np.float32)})
    assert complete_types(made, INPUT)[0]["y"] == TensorType(np.shape(expected), "float32")


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([node("Div", "s zero", "n"), node("ConstantOfShape", "n", "y")], {"zero": [0, 0, 0]}),
        ([node("ConstantOfShape", "many", "z"), node("ConstantOfShape", "z", "y")], {"many": [1 << 40]}),
        ([node("Range", "a b c", "n"), node("ConstantOfShape", "n", "y")], {"a": 0, "b": 1 << 40, "c": 1}),
        ([node("Unknown", "s", "n"), node("ConstantOfShape", "n", "y")], {}),
        ([node("Identity", "", "n"), node("ConstantOfShape", "n", "y")], {}),
        ([node("Concat", "", "n"), node("ConstantOfShape", "n", "y")], {}),
    ],
)
def test_what_is_not_followed_stays_open(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> None:
    assert "y" not in complete_types(model([node("Shape", "x", "s"), *nodes], constants), INPUT)[0]


@pytest.mark.parametrize(
    ("made", "shape", "dtype"),
    [
        (helper.make_node("BiasGelu", ["x", "b"], ["y"], domain="com.microsoft"), (2, 7, 5), "float32"),
        (helper.make_node("Attention", ["x", "w", "b"], ["y"], domain="com.microsoft", num_heads=1), (2, 7, 4),
         "float32"),
        (helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", alpha=2.0), (2, 7, 12),
         "float32"),
        (helper.make_node("QAttention", ["x", "q", "b"], ["y"], domain="com.microsoft", num_heads=1), (2, 7, 4),
         "float32"),
    ],
)  # fmt: skip
def test_operators_of_onnxruntime(made: onnx.NodeProto, shape: tuple[int, ...], dtype: str) -> None:
    zeros = np.zeros((5, 12), np.float32)
    found, _ = complete_types(model([made], {"w": zeros, "b": zeros[0], "q": zeros.astype(np.int8)}), INPUT)
    assert found["y"] == TensorType(shape, dtype)


def test_nothing_is_done_where_all_is_known() -> None:
    made = model([node("Shape", "x", "y")], {})
    assert complete_types(made, {**INPUT, "y": TensorType((3,), "int64")}) == ({}, True)
