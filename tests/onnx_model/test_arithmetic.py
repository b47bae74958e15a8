"""ONNX operators run in the reference implementation: on sizes, on literals, and on channels that are constant."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from elastic_ir.ir.graph import Literal, Node
from elastic_ir.onnx_model.arithmetic import LARGEST, elementwise, is_small, run_nodes
from elastic_ir.onnx_model.limits import unbounded_shapes

UNARY = (
    "Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Neg",
    "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
)  # fmt: skip


def node(kind: str, *args: Any, **attributes: Any) -> Node:
    return Node("n", f"onnx.{kind}", (None, *args), kind="onnx", attributes=attributes)


def test_a_chain_of_nodes() -> None:
    nodes = [helper.make_node("Div", ["a", "b"], ["c"]), helper.make_node("Neg", ["c"], ["d"])]
    found = run_nodes(nodes, {"a": np.array([7, -7]), "b": np.array([2, 2])}, {"": 17})
    assert found.tolist() == [-3, 3]  # whole numbers are cut towards zero


def test_what_is_small_is_decided_before_it_is_run() -> None:
    assert is_small("Expand", (LARGEST,)) and not is_small("Expand", (LARGEST, 2))
    assert is_small("Slice", None) and is_small("Cast", (-1, 4))
    assert not is_small("Range", None) and not is_small("Where", (-1,))


@pytest.mark.parametrize("opset", [7, 13, 20])
@pytest.mark.parametrize("kind", ["Relu", "Sigmoid", "Tanh", "Exp", "Neg"])
def test_one_tensor(kind: str, opset: int) -> None:
    numbers = np.array([-2.0, 0.0, math.nan, 3.0])
    expected: dict[str, Any] = {
        "Relu": np.maximum(numbers, 0), "Sigmoid": 1 / (1 + np.exp(-numbers)), "Tanh": np.tanh(numbers),
        "Exp": np.exp(numbers), "Neg": -numbers,
    }  # fmt: skip
    np.testing.assert_allclose(elementwise(node(kind), numbers, {"": opset}), expected[kind], rtol=1e-6)


def test_bounds_are_attributes_or_operands() -> None:
    numbers, bounded = np.array([-2.0, 0.5, math.nan, 3.0]), [-1.0, 0.5, math.nan, 1.0]
    low, high = Literal("float32", (), (-1.0,)), Literal("float32", (), (1.0,))
    np.testing.assert_equal(elementwise(node("Clip", min=-1.0, max=1.0), numbers, {"": 6}), bounded)
    np.testing.assert_equal(elementwise(node("Clip", low, high), numbers, {"": 13}), bounded)
    np.testing.assert_equal(elementwise(node("Clip", low), numbers, {"": 13}), [-1.0, 0.5, math.nan, 3.0])


@given(
    st.lists(st.floats(-9, 9) | st.just(math.nan), min_size=1), st.sampled_from(["Relu", "Gelu", "Softplus"])
)
def test_what_is_not_constant_stays_so(numbers: list[float], kind: str) -> None:
    channels = np.array(numbers)
    found = elementwise(node(kind), channels, {"": 20})
    np.testing.assert_array_equal(np.isnan(found), np.isnan(channels))


@pytest.mark.parametrize("kind", UNARY)
def test_every_operator_of_one_tensor_runs(kind: str) -> None:
    assert np.isfinite(elementwise(node(kind), np.array([0.5]), {"": 22})).all()


def test_what_cannot_be_run_is_not_constant() -> None:
    numbers = np.ones(2)
    assert np.isnan(elementwise(node("Clip", min=0.0), numbers, {})).all()  # attributes of an older form
    assert np.isnan(elementwise(node("Unknown"), numbers, {"": 13})).all()
    assert np.isnan(elementwise(node("Log"), np.array([-1.0, 0.0]), {"": 13})).all()


@pytest.mark.parametrize(("length", "unbounded"), [([4], []), ([600], [1]), (["n"], [1])])
def test_shapes_of_unknown_length(length: list[Any], unbounded: list[int]) -> None:
    """A Reshape to what an input says; one to a constant, or to the shape of a value, is bounded."""
    nodes = [
        helper.make_node("Reshape", ["x", "one"], ["flat"]), helper.make_node("Reshape", ["x", "to"], ["y"]),
        helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Reshape", ["x", "s"], ["z"]),
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])]
    weights = [numpy_helper.from_array(np.array([-1]), "one")]
    if length == ["n"]:
        inputs.append(helper.make_tensor_value_info("to", TensorProto.INT64, length))
    else:
        weights.append(numpy_helper.from_array(np.ones(length, np.int64), "to"))
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_empty_tensor_value_info("z")], weights)
    assert unbounded_shapes(helper.make_model(graph)) == unbounded
