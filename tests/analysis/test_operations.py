"""Operations counted from shapes are those that torch counts, or none are given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.analysis.cost import operations
from elastic_ir.analysis.operations import counted
from elastic_ir.analysis.pruning.flops import forward_cost
from elastic_ir.zoo import cifar_resnet


class Twice(nn.Module):
    """One layer that runs twice, a grouped convolution, and a depthwise one with a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.same = nn.Conv2d(8, 8, 1, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, groups=8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.same(torch.relu(self.same(self.first(x))))
        result: torch.Tensor = self.last(self.depthwise(x).mean((2, 3)))
        return result


@pytest.mark.parametrize(
    ("model", "shape"),
    [(cifar_resnet(20, width=4), (2, 3, 32, 32)), (Twice(), (3, 4, 9, 9))],
    ids=["resnet", "twice"],
)
def test_shapes_tell_what_torch_counts(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    graph = eir.trace(model, (x,))
    found, wanted = counted(graph), forward_cost(model.eval(), x)
    assert found is not None
    assert dict(found.weights) == dict(wanted.weights) and (found.rest, found.dense) == (0, wanted.dense)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121", "convnext_tiny"])
def test_a_library_s_networks(name: str) -> None:
    graph = eir.load(f"torchvision:{name}", headers_only=True, input_shape=[(1, 3, 64, 64)])
    found = counted(graph)
    assert found is not None and graph.origin.inputs is not None
    inputs = graph.origin.inputs.to("meta")
    assert found.dense == forward_cost(graph._module_for_shapes(), *inputs.args, **inputs.kwargs).dense


class Products(nn.Module):
    """What is multiplied with no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.project(x)
        return x @ x.transpose(1, 2)


def test_what_is_not_known_is_run_instead() -> None:
    x = torch.zeros(2, 5, 4)
    graph = eir.trace(Products(), (x,))
    assert counted(graph) is None
    found = operations(graph)
    assert found is not None and found.rest == 2 * 2 * 5 * 5 * 4
