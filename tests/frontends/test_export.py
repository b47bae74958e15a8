"""What an exported graph is without: regions that change no value, and casts that return what they are given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import elastic_ir as eir

WIDTH = 8


class Casting(nn.Module):
    """Computes in a region where autocast is off, as rotary embeddings do, and casts to the dtype that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            scale = x.float().pow(2).mean(-1, keepdim=True)
            scale, _ = scale.rsqrt(), scale.sqrt()
        return residual + self.outer(self.inner(x * scale).relu())  # type: ignore[no-any-return]


class Casts(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Casting() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_regions_that_change_no_value_are_part_of_the_graph() -> None:
    graph = eir.trace(Casts().eval(), (torch.randn(2, WIDTH),), frontend="export")
    operations = {node.op for node in graph}
    assert not any("wrap_with" in op or op.startswith("submod") for op in operations)
    assert {"aten.pow.Tensor_Scalar", "aten.rsqrt.default"} <= operations
    assert [(stage.name, len(stage.blocks), stage.period) for stage in graph.stages] == [("blocks", 3, 1)]


def test_a_cast_to_the_dtype_that_a_tensor_has_is_not_an_operation() -> None:
    graph = eir.trace(Casts().eval(), (torch.randn(2, WIDTH),), frontend="export")
    assert not any(node.op.startswith("aten.to.") for node in graph)
    assert all(len(block.inputs) == len(block.outputs) == 1 for block in graph.stages[0].blocks)


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        copied = x.to(torch.float32, copy=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.layer(x)
        return y.to(torch.float32) + copied.to(torch.float64)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("operation", "count"), [("aten.to.", 6), ("wrap_with_autocast", 2)])
def test_casts_that_cast_and_copies_and_autocast_that_is_on_stay(operation: str, count: int) -> None:
    graph = eir.trace(nn.Sequential(Half(), Half()).eval(), (torch.randn(2, WIDTH),), frontend="export")
    assert sum(node.op.startswith(operation) for node in graph) == count


@pytest.mark.slow
def test_blocks_that_run_the_like_region_are_alike() -> None:
    model = nn.Sequential(
        *(nn.Sequential(Half(), nn.Linear(WIDTH, WIDTH).double()) for _ in range(3))
    ).double()
    graph = eir.trace(model.eval(), (torch.randn(2, WIDTH, dtype=torch.float64),), frontend="export")
    assert [(stage.name, len(stage.blocks)) for stage in graph.stages] == [("network", 3)]
    assert len({block.signature for block in graph.stages[0].blocks}) == 1
