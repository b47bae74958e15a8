"""Clean-up passes on ONNX graphs: what goes, that the checker and onnxruntime agree, and that blocks stay blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import elastic_ir as eir
from elastic_ir.emit.onnx.save import save_onnx
from elastic_ir.ir.graph import Graph
from elastic_ir.onnx_model import OnnxSource
from elastic_ir.passes import CommonSubexpressions, DeadCode, FoldConstants, Pipeline, RemoveIdentities
from tests.networks.onnx_files import PATHS, feeds, run

ALL = "fold-constants,remove-identities,cse,dce"


def text(graph: Graph) -> str:
    """The nodes as they are printed, without attributes and scopes."""
    lines = str(graph).partition("nodes\n")[2].splitlines()
    return "\n".join(re.sub(r" \{.*\}| in \S+", "", line.strip()) for line in lines)


def numbers(*values: float, kind: str = "int64") -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    return np.array(values, kind)


def model(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[str] = ("y",),
    batch: str | int = "n",
    **tables: Any,
) -> Graph:
    """A model of an image of 4 channels; whatever is among ``tables`` is an initializer."""
    rng = np.random.default_rng(0)
    stored = []
    for name, table in tables.items():
        array = (
            rng.standard_normal(table).astype(np.float32) if isinstance(table, tuple) else np.asarray(table)
        )
        stored.append(numpy_helper.from_array(array, name))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4, 6, 6])]
    ends = [helper.make_empty_tensor_value_info(name) for name in outputs]
    for end in ends:
        end.type.tensor_type.elem_type = TensorProto.FLOAT
    graph = helper.make_graph(nodes, "small", inputs, ends, stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(made), folder / "small.onnx")
    return eir.load(folder / "small.onnx")


def check_same(before: Graph, after: Graph, folder: Path) -> None:
    """Both are written, pass the checker, and give the same in onnxruntime; what is written is read again."""
    given = feeds(before)
    first, second = folder / "before.onnx", folder / "after.onnx"
    save_onnx(before, first)
    save_onnx(after, second)
    for ours, theirs in zip(run(second, given), run(first, given), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    wide = {name: np.concatenate([array, array]) for name, array in given.items()}
    if not fixed_batch(before):
        for ours, theirs in zip(run(second, wide), run(first, wide), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert text(eir.load(second)).count("\n") == text(after).count("\n")


def fixed_batch(graph: Graph) -> bool:
    """Whether the file says how many images there are."""
    assert isinstance(graph.origin, OnnxSource)
    return bool(graph.origin.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value)


node = helper.make_node


def sizes() -> list[onnx.NodeProto]:
    """Half of the channels, counted from the shape; the batch stays open."""
    return [
        node("Conv", ["x", "k"], ["c"], kernel_shape=[1, 1]),
        node("Shape", ["c"], ["s"]),
        node("Gather", ["s", "one"], ["width"]),
        node("Gather", ["s", "zero"], ["many"]),
        node("Div", ["width", "two"], ["half"]),
        node("Unsqueeze", ["half", "zeros"], ["half1"]),
        node("Unsqueeze", ["many", "zeros"], ["many1"]),
        node("Concat", ["many1", "two1", "half1", "rest"], ["shape"], axis=0),
        node("Reshape", ["c", "shape"], ["y"]),
    ]


CONSTANTS: dict[str, Any] = {
    "one": numbers(1).reshape(()), "zero": numbers(0).reshape(()), "two": numbers(2).reshape(()), "zeros": numbers(0),
    "two1": numbers(2), "rest": numbers(-1),
}  # fmt: skip


def test_fold_constants(tmp_path: Path) -> None:
    graph = model(tmp_path, sizes(), k=(8, 4, 1, 1), **CONSTANTS)
    clean = FoldConstants().run(graph)
    assert (
        text(clean)
        == """\
%x = input() : f32[1, 4, 6, 6]
%Conv = onnx.Conv(%x, @k) : f32[1, 8, 6, 6]
%Shape = onnx.Shape(%Conv) : i64[4]
%Gather = onnx.Gather(%Shape, i64(0)) : i64[]
%Unsqueeze = onnx.Unsqueeze(%Gather, i64[0]) : i64[1]
%Concat = onnx.Concat(%Unsqueeze, i64[2], i64[4], i64[-1]) : i64[4]
%Reshape = onnx.Reshape(%Conv, %Concat) : f32[1, 2, 4, 36]
%output = output((%Reshape,))"""
    )
    assert FoldConstants().summary(clean) == "folded 3 nodes"
    check_same(graph, clean, tmp_path)


def test_fold_constants_of_a_file_whose_batch_is_fixed(tmp_path: Path) -> None:
    graph = model(tmp_path, sizes(), batch=3, k=(8, 4, 1, 1), **CONSTANTS)
    clean = FoldConstants().run(graph)
    assert "onnx.Reshape(%Conv, i64[3, 2, 4, -1])" in text(clean) and len(clean) == 4
    check_same(graph, clean, tmp_path)


def test_fold_what_is_computed_of_weights(tmp_path: Path) -> None:
    nodes = [
        node("ReduceMean", ["k"], ["m"], axes=[1, 2, 3], keepdims=1),
        node("Sub", ["k", "m"], ["centred"]),
        node("Conv", ["x", "centred"], ["c"], kernel_shape=[1, 1]),
        node("Flatten", ["c"], ["f"]),
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("MatMul", ["f", "t"], ["y"]),
    ]
    graph = model(tmp_path, nodes, k=(8, 4, 1, 1), w=(5, 288))
    assert text(FoldConstants().run(graph)) == text(graph)
    clean = FoldConstants(weights=True).run(graph)
    assert [n.op for n in clean if n.kind == "onnx"] == ["onnx.Conv", "onnx.Flatten", "onnx.MatMul"]
    assert [weight.shape for weight in clean.weights.values()] == [(8, 4, 1, 1), (288, 5)]
    check_same(graph, clean, tmp_path)
    given = {"x": feeds(graph)["x"]}
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "after.onnx").graph.initializer}
    np.testing.assert_allclose(stored["k"].mean((1, 2, 3)), 0, atol=1e-6)
    assert run(tmp_path / "after.onnx", given)[0].shape == (1, 5)


def test_identities(tmp_path: Path) -> None:
    nodes = [
        node("Identity", ["k"], ["k2"]),
        node("Conv", ["x", "k2"], ["c"], kernel_shape=[1, 1]),
        node("Dropout", ["c"], ["d", "mask"]),
        node("Cast", ["d"], ["f"], to=TensorProto.FLOAT),
        node("Reshape", ["f", "same"], ["r"]),
        node("Pad", ["r", "none"], ["p"]),
        node("Transpose", ["p"], ["t"], perm=[0, 1, 2, 3]),
        node("Reshape", ["t", "other"], ["o"]),
        node("Identity", ["o"], ["y"]),
        node("Identity", ["x"], ["z"]),
    ]
    tables: dict[str, Any] = {
        "same": numbers(0, 0, -1, 6),
        "other": numbers(-1, 8, 6, 6),
        "none": numbers(*[0] * 8),
    }
    graph = model(tmp_path, nodes, ("y", "z"), k=(8, 4, 1, 1), **tables)
    clean = RemoveIdentities().run(graph)
    assert (
        text(clean)
        == """\
%x = input() : f32[1, 4, 6, 6]
%Conv = onnx.Conv(%x, @k2) : f32[1, 8, 6, 6]
%output = output((%Conv, %x))"""
    )
    assert RemoveIdentities().summary(clean) == (
        "took out 1 dropout, 1 cast, 2 reshape, 1 pad, 1 transpose, 2 identity; this is for inference"
    )
    check_same_outputs(graph, clean, tmp_path)


def check_same_outputs(before: Graph, after: Graph, folder: Path) -> None:
    """As above, for a network that gives back an input: that costs a node when it is written."""
    given = feeds(before)
    save_onnx(before, folder / "before.onnx")
    save_onnx(after, folder / "after.onnx")
    for ours, theirs in zip(
        run(folder / "after.onnx", given), run(folder / "before.onnx", given), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    names = [entry.name for entry in onnx.load(folder / "after.onnx").graph.output]
    assert names == [entry.name for entry in onnx.load(folder / "before.onnx").graph.output]


def test_a_dropout_that_trains_stays(tmp_path: Path) -> None:
    nodes = [node("Dropout", ["x", "rate", "training"], ["d"]), node("Relu", ["d"], ["y"])]
    tables: dict[str, Any] = {"rate": np.array(0.5, np.float32), "training": np.array(True)}
    graph = model(tmp_path, nodes, **tables)
    assert text(Pipeline.parse(ALL).run(graph)) == text(graph)


def test_common_subexpressions(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "k"], ["a"], kernel_shape=[1, 1]),
        node("Conv", ["x", "k"], ["b"], kernel_shape=[1, 1]),
        node("Conv", ["x", "other"], ["c"], kernel_shape=[1, 1]),
        node("MaxPool", ["a"], ["pa"], kernel_shape=[2, 2]),
        node("MaxPool", ["b"], ["pb", "places"], kernel_shape=[2, 2]),
        node("Cast", ["places"], ["i"], to=TensorProto.FLOAT),
        node("Relu", ["b"], ["rb"]),
        node("Relu", ["a"], ["ra"]),
        node("RandomNormalLike", ["x"], ["r1"]),
        node("RandomNormalLike", ["x"], ["r2"]),
        node("Sub", ["r1", "r2"], ["r"]),
        node("Mul", ["r", "nothing"], ["r0"]),
        node("Add", ["pa", "pb"], ["s"]),
        node("Sum", ["ra", "rb", "c", "r0"], ["t"]),
    ]
    graph = model(
        tmp_path, nodes, ("s", "t", "i"), k=(4, 4, 1, 1), other=(4, 4, 1, 1), nothing=np.array(0, np.float32)
    )
    clean = CommonSubexpressions().run(graph)
    ops = [n.op.removeprefix("onnx.") for n in clean if n.kind == "onnx"]
    assert ops.count("Conv") == 2 and ops.count("Relu") == 1 and ops.count("RandomNormalLike") == 2
    assert ops.count("MaxPool") == 2  # the second also gives places
    assert CommonSubexpressions().summary(clean) == "merged 2 nodes with earlier ones"
    check_same_outputs(graph, clean, tmp_path)


def test_dead_code(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "k"], ["a"], kernel_shape=[1, 1]),
        node("Conv", ["x", "idle"], ["b"], kernel_shape=[1, 1]),
        node("Relu", ["b"], ["rb"]),
        node("MaxPool", ["b"], ["pb", "places"], kernel_shape=[2, 2]),
        node("RandomNormalLike", ["x"], ["r"]),
        node("MaxPool", ["a"], ["y", "unread"], kernel_shape=[2, 2]),
    ]
    graph = model(tmp_path, nodes, k=(4, 4, 1, 1), idle=(4, 4, 1, 1))
    clean = DeadCode().run(graph)
    ops = [n.op.removeprefix("onnx.") for n in clean if n.kind == "onnx"]
    assert ops == ["Conv", "RandomNormalLike", "MaxPool"] and set(clean.weights) == {"k", "idle"}
    check_same_outputs(graph, clean, tmp_path)
    assert {t.name for t in onnx.load(tmp_path / "after.onnx").graph.initializer} == {"k", "idle"}
    lean = DeadCode(weights=True).run(graph)
    assert set(lean.weights) == {"k"}
    check_same_outputs(graph, lean, tmp_path)
    assert {t.name for t in onnx.load(tmp_path / "after.onnx").graph.initializer} == {"k"}


@pytest.mark.parametrize(
    "name", [pytest.param("light-resnet50", marks=pytest.mark.slow), "minilm", "ocr-cls"]
)
def test_real_files(name: str, tmp_path: Path) -> None:
    graph = eir.load(PATHS[name])
    clean = Pipeline.parse(ALL).run(graph, verify_each=True)
    assert all(line["drift"] <= 1e-6 for line in clean.history.verified)
    assert len(clean) <= len(graph) - {"light-resnet50": 0, "minilm": 20, "ocr-cls": 2}[name]
    again = clean.copy()
    again._structure = None
    assert [(s.name, len(s), s.period) for s in again.stages] == [
        (s.name, len(s), s.period) for s in graph.stages
    ]
    counts = [len(stage) + (stage.period or 1) * bool(stage.blocks) for stage in graph.stages]
    deeper, twin = (eir.stretch(each, to_stages=counts) for each in (clean, graph))
    check_same_outputs(twin, deeper, tmp_path)
    reread = [eir.load(tmp_path / file) for file in ("after.onnx", "before.onnx")]
    assert [len(stage) for stage in reread[0].stages] == [len(stage) for stage in reread[1].stages]
    assert reread[0].depth == deeper.depth
