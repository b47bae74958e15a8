"""Inputs and outputs of which every block has one grow and shrink with the stack, in their places, with their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import elastic_ir as eir
from elastic_ir.emit.onnx.ends import renumber

WIDTH = 8


def decoder(blocks: int, *, split: bool = False) -> onnx.ModelProto:
    """Residual blocks that each add a past to a key, and hand out the sum; ``split``: all keys first, then values."""
    generator = np.random.default_rng(0)
    nodes, stored, at = [], [], "x"
    for index in range(blocks):
        for role in ("key", "value"):
            present = f"present.{index}.{role}"
            weight = (0.2 * generator.standard_normal((WIDTH, WIDTH))).astype(np.float32)
            stored.append(numpy_helper.from_array(weight, f"layers.{index}.{role}.weight"))
            nodes += [
                helper.make_node("MatMul", [at, f"layers.{index}.{role}.weight"], [f"{role}{index}"]),
                helper.make_node(
                    "Concat", [f"past.{index}.{role}", f"{role}{index}"], [f"present.{index}.{role}"], axis=0
                ),
                helper.make_node("ReduceMean", [present], [f"{role}{index}m"], axes=[0]),
            ]
        nodes += [
            helper.make_node("Mul", [f"key{index}m", f"value{index}m"], [f"product{index}"]),
            helper.make_node("Add", [at, f"product{index}"], [f"sum{index}"]),
        ]
        at = f"sum{index}"
    nodes.append(helper.make_node("Tanh", [at], ["y"]))
    numbers = range(blocks)
    pairs = [(i, r) for i in numbers for r in ("key", "value")]
    if split:
        pairs = [(i, r) for r in ("key", "value") for i in numbers]

    def info(name: str, rows: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, WIDTH])

    graph = helper.make_graph(
        nodes,
        "decoder",
        [info("x", "rows"), *(info(f"past.{i}.{r}", "past") for i, r in pairs)],
        [info("y", "rows"), *(info(f"present.{i}.{r}", "all") for i, r in pairs)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def states(blocks: int, *, normed: bool) -> onnx.ModelProto:
    """Residual blocks whose results are outputs as well; of the last one, where ``normed``, what comes of it."""
    generator = np.random.default_rng(0)
    nodes, at = [helper.make_node("MatMul", ["x", "stem.weight"], ["states.0"])], "states.0"
    names = [
        "stem.weight",
        *(f"layers.{index}.weight" for index in range(blocks)),
        "norm.weight",
        "head.weight",
    ]
    stored = [
        numpy_helper.from_array((0.2 * generator.standard_normal((WIDTH, WIDTH))).astype(np.float32), name)
        for name in names
    ]
    for index in range(blocks):
        after = f"states.{index + 1}" if index + 1 < blocks or not normed else "last"
        nodes += [
            helper.make_node("MatMul", [at, f"layers.{index}.weight"], [f"m{index}"]),
            helper.make_node("Relu", [f"m{index}"], [f"r{index}"]),
            helper.make_node("Add", [at, f"r{index}"], [after]),
        ]
        at = after
    if normed:
        nodes.append(helper.make_node("MatMul", [at, "norm.weight"], [f"states.{blocks}"]))
    nodes.append(helper.make_node("MatMul", [f"states.{blocks}", "head.weight"], ["y"]))
    names = ["y", *(f"states.{index}" for index in range(blocks + 1))]
    graph = helper.make_graph(
        nodes,
        "states",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH]) for name in names],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def repeated(model: onnx.ModelProto, source: onnx.ModelProto, blocks: list[int]) -> onnx.ModelProto:
    """A deeper model by hand: its weights are those of the source's blocks."""
    held = {tensor.name: tensor for tensor in source.graph.initializer}
    for tensor in model.graph.initializer:
        parts = tensor.name.split(".")
        parts[1] = str(blocks[int(parts[1])]) if parts[0] == "layers" else parts[1]
        tensor.raw_data = held[".".join(parts)].raw_data
    return model


def ends(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    def shape(entry: onnx.ValueInfoProto) -> str:
        dims = entry.type.tensor_type.shape.dim
        return f"{entry.name} {[dim.dim_param or dim.dim_value for dim in dims]}"

    return [shape(entry) for entry in model.graph.input], [shape(entry) for entry in model.graph.output]


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    generator = np.random.default_rng(1)
    rows = {"x": 1}
    feeds = {
        entry.name: generator.standard_normal((rows.get(entry.name, 3), WIDTH)).astype(np.float32)
        for entry in session.get_inputs()
    }
    return list(session.run(None, feeds))


MAKERS: dict[str, Callable[[int], onnx.ModelProto]] = {
    "pairs": decoder,
    "columns": lambda blocks: decoder(blocks, split=True),
    "hidden": lambda blocks: states(blocks, normed=False),
    "hidden-normed": lambda blocks: states(blocks, normed=True),
}


@pytest.mark.parametrize("plan", [(0, 1, 1, 2), (0, 0, 1, 2), (0, 1, 2, 2), (0, 2)], ids=str)
@pytest.mark.parametrize("kind", MAKERS)
def test_ends_follow_the_stack(kind: str, plan: tuple[int, ...], tmp_path: Path) -> None:
    make = MAKERS[kind]
    source = make(3)
    onnx.save(source, tmp_path / "a.onnx")
    graph = eir.load(tmp_path / "a.onnx")
    assert [len(stage) for stage in graph.stages] == [3]
    (same,) = eir.save(graph, tmp_path / "same.onnx")
    assert onnx.load(same) == source
    change = eir.stretch if len(plan) > 3 else eir.squeeze
    changed = change(graph, plan={graph.stages[0].name: plan})
    (path,) = eir.save(changed, tmp_path / "b.onnx")
    found, wanted = onnx.load(path), repeated(make(len(plan)), source, list(plan))
    assert ends(found) == ends(wanted)
    for ours, theirs in zip(run(found), run(wanted), strict=True):
        assert np.array_equal(ours, theirs)
    if len(plan) > 3:
        (back,) = eir.save(eir.squeeze(eir.load(path), to_stages=[3], drop="tail"), tmp_path / "c.onnx")
        assert ends(onnx.load(back)) == ends(source)


@pytest.mark.parametrize(
    ("before", "now", "wanted"),
    [
        (["y", "h.0", "h.1"], ["y", "h.0", "h.1", "h.1"], ["y", "h.0", "h.1", "h.2"]),
        (["k1", "k2", "k3"], ["k1", "k3"], ["k1", "k2"]),
        (["a.08", "a.10"], ["a.08", "a.10", "a.10"], ["a.08", "a.10", "a.12"]),
        (["p.0.k2", "p.1.k2"], ["p.0.k2", "p.0.k2", "p.1.k2"], ["p.0.k2", "p.1.k2", "p.2.k2"]),
        (["412", "498"], ["412", "498", "498"], ["412", "498", "498__new"]),
        (["y", "z"], ["y", "y", "z"], ["y", "y__new", "z"]),
        (["h.0", "y2"], ["h.0", "h.0", "y2"], ["h.0", "h.1", "y2"]),
    ],
)
def test_names_go_on(before: list[str], now: list[str], wanted: list[str]) -> None:
    assert renumber(before, now, lambda name: f"{name}__new") == wanted
