"""Operators of ONNX as torch functions: the onnx package's own cases for each, and onnxruntime where opsets differ."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase

from elastic_ir.emit.onnx_operators.table import OPERATORS
from elastic_ir.errors import EmitError
from elastic_ir.frontends.onnx.graph import OLDEST_OPSET, load_onnx

DOCUMENT = Path(__file__).parents[3] / "docs/onnx-to-torch.md"
#: Kept as Python numbers where they follow from shapes alone; as tensors they are never needed.
SIZE_OPERATORS = {"Shape", "Size"}
KNOWN = {*OPERATORS, *SIZE_OPERATORS, "Constant"}
#: Element types that torch computes with; it has no arithmetic in uint16 to uint64, nor strings, nor four bits.
COMPUTED = {
    TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16, TensorProto.COMPLEX64,
}  # fmt: skip
#: Refused, in words that hold these; by the start of the case's name.
REFUSED = {
    "test_lstm_with_peepholes": "more than the 7 operands",
    "test_resize_tf_crop_and_resize": "tf_crop_and_resize",
    "test_resize_downsample_scales_linear_antialias": "antialias=1",
    "test_resize_downsample_sizes_linear_antialias": "antialias=1",
    "test_resize_downsample_scales_cubic_antialias": "antialias=1",
    "test_resize_downsample_sizes_cubic_antialias": "antialias=1",
}
#: Not compared, by the start of the case's name, and why.
OTHERWISE = {
    "test_training_dropout": "dropouts follow the module's mode",
    "test_resize_downsample_scales_linear_align_corners": "expects fractions of lengths, unlike onnxruntime",
    "test_resize_downsample_scales_cubic_align_corners": "expects fractions of lengths, unlike onnxruntime",
}


@functools.cache
def cases() -> dict[str, TestCase]:
    """The cases whose operators are all in the table, in opsets that are read and types that torch computes with."""
    found = {}
    for case in collect_testcases(None):
        model = case.model
        if model is None or any(entry.domain and entry.domain != "ai.onnx" for entry in model.opset_import):
            continue
        entries = (*model.graph.input, *model.graph.output)
        types = {entry.type.tensor_type.elem_type for entry in entries}
        plain = all(entry.type.HasField("tensor_type") for entry in entries) and types <= COMPUTED
        if (
            {node.op_type for node in model.graph.node} <= KNOWN
            and plain
            and model.opset_import[0].version >= OLDEST_OPSET
        ):
            found[case.name] = case
    return found


def tensor(item: Any) -> torch.Tensor:
    """A case's tensor: an array, a message, or an array of a type that numpy lacks."""
    if isinstance(item, TensorProto):
        item = onnx.numpy_helper.to_array(item)
    array = np.array(item)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def run(model: onnx.ModelProto, folder: Path, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    path = folder / "model.onnx"
    onnx.save(model, path)
    with torch.no_grad():
        results = load_onnx(path).to_module()(*inputs)
    return [results] if isinstance(results, torch.Tensor) else list(results)


def compare(
    made: list[torch.Tensor], expected: list[torch.Tensor], loose: float = 1e-5, relative: float = 1e-4
) -> None:
    assert len(made) == len(expected)
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=max(loose, relative), atol=loose, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("operator", sorted(KNOWN))  # not by cases, which take ten seconds to make
def test_cases_of_the_onnx_package(operator: str, tmp_path: Path) -> None:
    for name, case in cases().items():
        assert case.model is not None
        if case.model.graph.node[0].op_type == operator and not name.startswith(tuple(OTHERWISE)):
            try:
                try_case(name, case, tmp_path)
            except BaseException as error:
                error.add_note(f"the case is {name}")
                raise


def try_case(name: str, case: TestCase, tmp_path: Path) -> None:
    words = next((text for start, text in REFUSED.items() if name.startswith(start)), None)
    assert case.model is not None and case.data_sets is not None
    for inputs, outputs in case.data_sets:
        given = [tensor(item) for item in inputs]
        if words is not None:
            with pytest.raises(EmitError, match=re.escape(words)):
                run(case.model, tmp_path, given)
            continue
        expected = [tensor(item) for item in outputs]
        half = any(item.dtype in (torch.float16, torch.bfloat16) for item in (*given, *expected))
        wide = any(item.dtype == torch.bfloat16 for item in (*given, *expected))
        loose = 2e-2 if wide else 2e-3 if half else 1e-5
        compare(run(case.model, tmp_path, given), expected, loose, case.rtol)  # some are rounded


@pytest.mark.slow
def test_most_operators_have_a_case() -> None:
    """Against a filter that leaves out what it should not; the rest is compared with onnxruntime below."""
    seen = {node.op_type for case in cases().values() if case.model for node in case.model.graph.node}
    tested = {single[0] for single in SINGLE}
    without = {name for name in OPERATORS if name not in seen} - tested
    assert without == set()
    assert len(cases()) > 1000


#: Operator, opset, shapes or arrays of the inputs, attributes, number of outputs: where opsets differ, and what the
#: package has no case of.
X = np.random.default_rng(0)


def noise(*shape: int) -> Any:
    return X.standard_normal(shape).astype(np.float32)


def whole(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


IMAGE = noise(2, 4, 7, 6)
SINGLE: list[tuple[str, int, list[Any], dict[str, Any]]] = [
    ("Softmax", 11, [noise(2, 3, 4)], {}),
    ("Softmax", 11, [noise(2, 3, 4)], {"axis": 2}),
    ("Softmax", 13, [noise(2, 3, 4)], {}),
    ("LogSoftmax", 11, [noise(2, 3, 4)], {"axis": 1}),
    ("Hardmax", 11, [noise(2, 3, 4)], {"axis": 1}),
    ("Clip", 9, [noise(3, 4)], {"min": -0.5, "max": 0.25}),
    ("Clip", 11, [noise(3, 4), np.float32(-0.5), np.float32(0.25)], {}),
    ("Clip", 11, [noise(3, 4), None, np.float32(0.25)], {}),
    ("Squeeze", 11, [noise(1, 3, 1)], {"axes": [0]}),
    ("Unsqueeze", 11, [noise(3)], {"axes": [0, 2]}),
    ("ReduceSum", 11, [noise(2, 3, 4)], {"axes": [1], "keepdims": 0}),
    ("ReduceSum", 13, [noise(2, 3, 4), whole(-1)], {}),
    ("ReduceMean", 13, [noise(2, 3, 4)], {"axes": [-1]}),
    ("Slice", 9, [noise(5, 6)], {"starts": [1, -3], "ends": [4, 1000], "axes": [0, 1]}),
    ("Slice", 13, [noise(5, 6), whole(-1), whole(-1000), whole(1), whole(-2)], {}),
    ("Pad", 10, [noise(3, 4)], {"pads": [1, 0, 0, 2], "value": 1.5}),
    ("Pad", 11, [noise(3, 4), whole(1, 0, 2, -1), np.float32(2)], {}),
    ("Pad", 11, [noise(3, 4), whole(2, 1, 0, 3)], {"mode": "reflect"}),
    ("TopK", 11, [noise(3, 5), whole(2)], {"largest": 0}),
    ("Split", 11, [noise(6, 2)], {"axis": 0, "split": [1, 5]}),
    ("Split", 13, [noise(6, 2), whole(2, 4)], {"axis": 0}),
    ("Split", 18, [noise(7, 2)], {"axis": 0, "num_outputs": 2}),
    ("Upsample", 7, [IMAGE], {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "nearest"}),
    ("Upsample", 9, [IMAGE, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}),
    ("Resize", 10, [IMAGE, np.array([1, 1, 2, 1.5], np.float32)], {"mode": "linear"}),
    ("Resize", 10, [IMAGE, np.array([1, 1, 0.5, 2], np.float32)], {"mode": "nearest"}),
    ("Resize", 13, [IMAGE, None, None, whole(2, 4, 5, 9)], {"mode": "linear"}),
    ("Resize", 13, [IMAGE, None, np.array([1, 1, 2, 2], np.float32)], {"mode": "cubic"}),
    ("Resize", 13, [IMAGE, None, np.array([1, 1, 0.6, 0.6], np.float32)],
     {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ("Scatter", 9, [noise(3, 4), np.array([[0, 2]], np.int64), noise(1, 2)], {"axis": 1}),
    ("BatchNormalization", 9, [IMAGE, noise(4), noise(4), noise(4), np.abs(noise(4))], {"epsilon": 1e-3}),
    ("BatchNormalization", 15, [IMAGE, noise(4), noise(4), noise(4), np.abs(noise(4))], {}),
    ("Dropout", 7, [noise(3)], {"ratio": 0.3}),
    ("Conv", 11, [IMAGE, noise(6, 2, 3, 2), noise(6)], {"group": 2, "pads": [0, 1, 2, 0], "strides": [2, 1]}),
    ("Conv", 11, [noise(1, 2, 9), noise(3, 2, 3)], {"auto_pad": "SAME_LOWER", "strides": [2]}),
    ("Conv", 11, [noise(1, 2, 4, 5, 6), noise(3, 2, 2, 2, 2)], {"auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", 11, [IMAGE, noise(4, 2, 3, 3), noise(4)], {"group": 2, "strides": [2, 2], "pads": [1, 0, 0, 1]}),
    ("ConvTranspose", 11, [IMAGE, noise(4, 2, 3, 3), noise(2)],
     {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ("ConvTranspose", 11, [noise(1, 2, 5), noise(2, 3, 4), noise(3)], {"strides": [3], "output_shape": [14]}),
    ("MaxPool", 12, [IMAGE], {"kernel_shape": [3, 2], "pads": [2, 0, 1, 1], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", 12, [IMAGE], {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("AveragePool", 11, [IMAGE], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0], "count_include_pad": 1}),
    ("AveragePool", 11, [IMAGE], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0], "strides": [2, 2]}),
    ("AveragePool", 11, [IMAGE], {"kernel_shape": [2, 2], "ceil_mode": 1, "strides": [2, 2]}),
    ("GlobalLpPool", 13, [IMAGE], {"p": 3}),
    ("LRN", 13, [IMAGE], {"size": 3, "alpha": 0.5}),
    ("GroupNormalization", 21, [IMAGE, noise(4), noise(4)], {"num_groups": 2}),
    ("Gemm", 11, [noise(3, 2), noise(3, 4), noise(2, 1)], {"alpha": 0.5, "beta": 2.0, "transA": 1}),
    ("LSTM", 14, [noise(4, 2, 3), noise(2, 20, 3), noise(2, 20, 5), noise(2, 40), None, noise(2, 2, 5), noise(2, 2, 5)],
     {"direction": "bidirectional", "hidden_size": 5}),
    ("LSTM", 14, [noise(4, 2, 3), noise(1, 20, 3), noise(1, 20, 5)], {"direction": "reverse", "hidden_size": 5}),
    ("GRU", 14, [noise(4, 2, 3), noise(2, 15, 3), noise(2, 15, 5), noise(2, 30), None, noise(2, 2, 5)],
     {"direction": "bidirectional", "hidden_size": 5, "linear_before_reset": 1}),
    ("GRU", 14, [noise(4, 2, 3), noise(2, 15, 3), noise(2, 15, 5), noise(2, 30)],
     {"direction": "bidirectional", "hidden_size": 5}),
    ("RNN", 14, [noise(4, 2, 3), noise(1, 5, 3), noise(1, 5, 5)], {"hidden_size": 5, "direction": "reverse"}),
    ("MatMulInteger", 10, [np.arange(6, dtype=np.uint8).reshape(2, 3), np.arange(6, dtype=np.int8).reshape(3, 2),
                           np.uint8(3), np.int8(-1)], {}),
    ("QuantizeLinear", 13, [noise(3, 4), np.array([0.1, 0.2, 0.3], np.float32), np.array([0, 3, -2], np.int8)],
     {"axis": 0}),
    ("SimplifiedLayerNormalization", 17, [noise(2, 3, 8), noise(8)], {"epsilon": 1e-6}),
    ("com.microsoft.FusedConv", 13, [IMAGE, noise(6, 4, 3, 3), noise(6)], {"activation": "Relu"}),
    ("com.microsoft.FusedConv", 13, [IMAGE, noise(6, 4, 3, 3)],
     {"activation": "LeakyRelu", "activation_params": [0.2], "pads": [1, 1, 1, 1]}),
    ("com.microsoft.FusedMatMul", 13, [noise(2, 3, 4), noise(2, 5, 4)], {"transB": 1, "alpha": 0.5}),
    ("com.microsoft.Gelu", 13, [noise(3, 4)], {}),
    ("com.microsoft.BiasGelu", 13, [noise(3, 4), noise(4)], {}),
    ("com.microsoft.FastGelu", 13, [noise(3, 4), noise(4)], {}),
    ("com.microsoft.QuickGelu", 13, [noise(3, 4)], {"alpha": 1.5}),
    ("com.microsoft.SkipLayerNormalization", 13, [noise(2, 3, 8), noise(2, 3, 8), noise(8), noise(8), noise(8)], {}),
]  # fmt: skip
OUTPUTS = {"TopK": 2, "Split": 2, "LSTM": 3, "GRU": 2, "RNN": 2}


def single(
    name: str, opset: int, arrays: list[Any], attributes: dict[str, Any], *, fixed: bool
) -> onnx.ModelProto:
    """A model of one operator; its operands but the first are initializers if ``fixed``, else inputs."""
    domain, _, kind = name.rpartition(".")
    names = ["" if item is None else f"in{place}" for place, item in enumerate(arrays)]
    outputs = [f"out{place}" for place in range(OUTPUTS.get(name, 1))]
    node = helper.make_node(kind, names, outputs, domain=domain, **attributes)
    there = [(n, np.asarray(a)) for n, a in zip(names, arrays, strict=True) if a is not None]
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in there
    ]
    weights = [onnx.numpy_helper.from_array(a, n) for n, a in there[1:]] if fixed else []
    results = [helper.make_empty_tensor_value_info(item) for item in outputs]
    graph = helper.make_graph([node], "single", inputs[:1] if fixed else inputs, results, weights)
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("fixed", [True, False], ids=["weights", "inputs"])
@pytest.mark.parametrize(
    "place", range(len(SINGLE)), ids=[f"{s[0]}-{s[1]}-{i}" for i, s in enumerate(SINGLE)]
)
def test_as_in_onnxruntime(place: int, fixed: bool, tmp_path: Path) -> None:
    name, opset, arrays, attributes = SINGLE[place]
    model = single(name, opset, arrays, attributes, fixed=fixed)
    given = [np.asarray(item) for item in arrays if item is not None][: 1 if fixed else None]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(
        None, {entry.name: item for entry, item in zip(model.graph.input, given, strict=True)}
    )
    compare(run(model, tmp_path, [tensor(item) for item in given]), [tensor(item) for item in expected])


def test_the_document_lists_the_table() -> None:
    listed = set(re.findall(r"`([A-Za-z0-9.]+)`", DOCUMENT.read_text("utf-8").partition("## Operators")[2]))
    assert listed == {*OPERATORS, *SIZE_OPERATORS}
