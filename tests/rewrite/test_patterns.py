"""Patterns: what they match in graphs of every dialect, what they leave alone, and edits while matches are taken."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import elastic_ir as eir
from elastic_ir.choices import Frontend
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph, Node
from elastic_ir.rewrite.patterns import Pattern, any_of, chain, find, kinds_of, op, through, value
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.zoo import cifar_resnet

IMAGES = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def resnet(frontend: Frontend | Literal["onnx"], folder: Path) -> Graph:
    torch.manual_seed(0)
    model = cifar_resnet(20, width=4).eval()
    if frontend != "onnx":
        return eir.trace(model, (IMAGES,), frontend=frontend)
    eir.save(eir.trace(model, (IMAGES,)), folder / "net.onnx")
    return eir.load(folder / "net.onnx")


def residual() -> Pattern:
    """A block that keeps its shape: what is added to x is computed from x."""
    x = value("x")
    last = chain(x, "conv2d", "batchnorm", "relu", op("conv2d", name="last"), op("batchnorm", name="norm"))
    return op("relu", op("add", last, x, commutative=True, name="join"), name="out")


@pytest.mark.slow
@pytest.mark.parametrize("frontend", ["fx", "export", "onnx"])
def test_residual_blocks_in_every_dialect(frontend: Frontend | Literal["onnx"], tmp_path: Path) -> None:
    graph = resnet(frontend, tmp_path)
    found = list(find(graph, residual()))
    stages = graph.stages
    free = [block for stage in stages for block in stage.all_blocks if block.preserving]
    assert len(free) == 7
    assert [match.value("x") for match in found] == [block.input for block in free]
    assert [match.value("out") for match in found] == [block.output for block in free]
    assert [match.root for match in found] == [match.nodes[-1] for match in found]
    order = {node: place for place, node in enumerate(graph)}
    for match, block in zip(found, free, strict=True):
        places = [order[node] for node in match.nodes]
        assert places == sorted(places) and set(match.nodes) <= set(block.nodes)
        assert graph.weights[match.weight("last")].prunable


@pytest.mark.slow
def test_a_stage_a_unit_or_a_path() -> None:
    graph = resnet("fx", Path())
    stage = graph.stages[1]
    assert len(list(find(graph, residual(), within=stage))) == 2
    assert len(list(find(graph, residual(), within=stage.units[0]))) == 1
    assert len(list(find(graph, residual(), within=stage.blocks[1]))) == 1
    convolutions = op("conv2d", name="c")
    assert [m.node("c").scope for m in find(graph, convolutions, within="layer2.0")] == [
        "layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0",
    ]  # fmt: skip
    assert not list(find(graph, convolutions, within="layer"))  # no module of that name


def test_weights_attributes_and_conditions() -> None:
    graph = resnet("fx", Path())

    def count(**given: object) -> int:
        return len(list(find(graph, op("conv2d", **given))))  # type: ignore[arg-type]

    assert count() == 21 and count(weight=(None, None, 1, 1)) == 2 and count(weight=(None, 3, 3, 3)) == 1
    assert count(weight=(None, None)) == 0
    assert count(attributes={"stride": [2, 2]}) == 4
    assert count(attributes={"stride": lambda given: given == (2, 2), "kernel_size": (1, 1)}) == 2
    assert count(where=lambda node, graph: graph.weights[node.weights["weight"]].shape[0] == 16) == 7
    assert len(list(find(graph, op("nn.Conv2d")))) == 21 and not list(find(graph, op("nn.Conv1d")))
    assert len(list(find(graph, op(["add", "linear"])))) == 10


class Ways(nn.Module):
    """One activation spelt in many ways, some behind what does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.act, self.drop = nn.ReLU(), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.one(x))
        x = torch.relu(self.two(self.drop(x)).contiguous())
        x = self.act(x.relu_().relu())
        return x + 1


def ways() -> Graph:
    return eir.trace(Ways().eval(), (torch.randn(2, 4),))


def names(found: list[Node]) -> list[str]:
    return [node.name for node in found]


def test_kinds_are_those_of_every_spelling() -> None:
    graph = ways()
    found = [match.root.op for match in find(graph, op("relu"))]
    assert found == ["torch.nn.functional.relu", "torch.relu", "method.relu_", "method.relu", "nn.ReLU"]
    add = next(node for node in graph if node.op == "operator.add")
    assert "add" in kinds_of(add)
    linear = next(find(graph, op("nn.Linear", name="linear")))
    assert (linear.weight("linear"), linear.weight("linear", "bias")) == ("one.weight", "one.bias")


def test_paths_and_choices() -> None:
    graph = ways()
    pattern = op("linear", through(op("relu", name="before"), "dropout", "identity"), name="after")
    (match,) = find(graph, pattern)
    assert match.node("before").op == "torch.nn.functional.relu" and match.node("after").scope == "two"
    assert [node.op for node in match.nodes][1:-1] == ["nn.Dropout"]
    behind = op("relu", through(op("linear", name="layer"), "contiguous"))
    assert [m.node("layer").scope for m in find(graph, behind)] == ["one", "two"]
    either = op("linear", any_of(chain("x", "dropout"), "x"), name="layer")
    assert [(m.node("layer").scope, m.value("x").name) for m in find(graph, either)] == [
        ("one", "x"), ("two", "relu"),
    ]  # fmt: skip


def test_matches_do_not_overlap() -> None:
    graph = ways()
    pairs = [names(list(match.nodes)) for match in find(graph, chain("x", "relu", "relu"))]
    assert pairs == [["relu_1", "relu_"], ["relu_2", "act"]]
    assert len(list(find(graph, chain("x", "relu", op("relu"))))) == len(pairs)


class Shared(nn.Module):
    """A layer whose result is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x)
        out: torch.Tensor = F.relu(y) + self.two(y) - F.relu(self.two(x))
        return out


def test_what_others_read_is_no_inner_node() -> None:
    graph = eir.trace(Shared().eval(), (torch.randn(2, 4),))
    (alone,) = find(graph, chain("x", op("linear", name="layer"), "relu"))
    assert alone.node("layer").scope == "two"
    found = [
        m.node("layer").scope
        for m in find(graph, chain("x", op("linear", name="layer", shared=True), "relu"))
    ]
    assert found == ["one", "two"]


def test_the_same_name_is_the_same_value() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = x * x + x * y
            return result

    graph = eir.trace(Twice(), (torch.randn(2), torch.randn(2)))
    (square,) = find(graph, op("mul", "a", "a"))
    assert square.value("a").name == "x" and "b" not in square
    assert len(list(find(graph, op("mul", "a", "b")))) == 2
    x = op("input", name="in")
    assert len(list(find(graph, op("mul", x, x)))) == 0  # x is read elsewhere too
    shared = op("input", name="in", shared=True)
    assert len(list(find(graph, op("mul", shared, shared)))) == 1
    assert len(list(find(graph, op("mul", ...)))) == 2 and not list(find(graph, op("mul", "a")))


def test_edits_while_matches_are_taken() -> None:
    graph = ways().copy()
    with Rewriter(graph) as rewriter:
        for match in find(graph, chain("x", op("relu")), rewriter=rewriter):
            rewriter.dissolve(match.root, match.value("x"))
    assert not [node for node in graph if "relu" in kinds_of(node)]
    (match,) = find(graph, op("add", op("contiguous")))
    assert match.nodes[0].op == "method.contiguous"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: op([]), "names no operation"),
        (lambda: op("add", ..., "x"), "... stands before other operands"),
        (lambda: op("add", "x", commutative=True), "'add' is commutative, which takes two operands"),
        (lambda: chain("x", op("add", "y")), "a step of a chain is an operation without operands"),
        (lambda: list(find(ways(), value("x"))), "the root of a pattern is an operation"),
        (lambda: next(find(ways(), op("add"))).value("y"), "captures no 'y'; it captures nothing"),
        (lambda: next(find(ways(), op("add", name="a"))).weight("a"), r"%add \(operator.add\) has no weight"),
    ],
)
def test_what_cannot_be_is_said(make: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.slow
def test_time_goes_with_the_nodes() -> None:
    graphs = [eir.trace(cifar_resnet(depth, width=2).eval()) for depth in (56, 224)]
    for graph in graphs:
        graph.structure  # noqa: B018
    ratios = []
    for _ in range(3):
        spent = []
        for graph in graphs:
            start = time.perf_counter()
            assert len(list(find(graph, residual()))) == sum(len(stage.blocks) for stage in graph.stages) + 1
            spent.append((time.perf_counter() - start) / len(graph))
        ratios.append(spent[1] / spent[0])
    assert min(ratios) < 2
