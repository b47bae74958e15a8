"""What makes a stage and a unit where the blocks alone do not show it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import elastic_ir as eir

WIDTH = 8


def outline(graph: eir.Graph) -> list[tuple[str, int, int, int | None]]:
    """Name, blocks that are kept, free blocks and period of each stage."""
    return [(stage.name, stage.fixed, len(stage.blocks), stage.period) for stage in graph.stages]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.project(x)
        return x + torch.softmax(y @ y.transpose(1, 2) + mask, -1) @ y  # type: ignore[no-any-return]


class Sliding(nn.Module):
    """Blocks that differ in the mask that their caller gives them, every ``every``-th the full one."""

    def __init__(self, depth: int, every: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(depth))
        self.every = every

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[1], x.shape[1])
        full = ones.triu(1) * -100
        sliding = full + ones.tril(-2) * -100
        for index, layer in enumerate(self.layers):
            x = layer(x, full if (index + 1) % self.every == 0 else sliding)
        return x


@pytest.mark.parametrize(("depth", "every"), [(4, 2), (6, 2), (6, 3), (8, 4)])
def test_masks_made_outside_the_blocks_show_the_period(depth: int, every: int) -> None:
    x = torch.randn(1, 5, WIDTH)
    graph = eir.trace(Sliding(depth, every).eval(), (x,), frontend="export")
    assert outline(graph) == [("layers", 0, depth, every)]
    deeper = eir.stretch(graph, to_units=depth // every + 1).to_module()
    native = Sliding(depth + every, every).eval()
    native.load_state_dict(deeper.state_dict())
    assert torch.allclose(deeper(x), native(x))


def test_masks_that_follow_no_period_leave_single_blocks() -> None:
    class Odd(Sliding):
        def forward(self, x: Tensor) -> Tensor:
            full = torch.zeros(x.shape[1], x.shape[1])
            sliding = full + 1
            for index, layer in enumerate(self.layers):
                x = layer(x, full if index in (0, 3, 4) else sliding)
            return x

    graph = eir.trace(Odd(6, 1).eval(), (torch.randn(1, 5, WIDTH),))
    assert outline(graph) == [("layers", 0, 6, 1)]


class Queries(nn.Module):
    """A norm and a projection, each one module, that the caller applies behind every block (DETR's decoders)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(depth))
        self.norm, self.scale = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(5, 5)
        for layer in self.layers:
            x = layer(x * self.scale(x), mask)
            x = self.norm(x)
        return x


@pytest.mark.parametrize("frontend", ["fx", "export"])
@pytest.mark.parametrize("depth", [2, 4])
def test_a_module_that_the_caller_shares_between_blocks_stays_one(frontend: str, depth: int) -> None:
    x = torch.randn(1, 5, WIDTH)
    model = Queries(depth).eval()
    graph = eir.trace(model, (x,), frontend=frontend)
    assert outline(graph) == [("layers", 0, depth, 1)]
    deeper = eir.stretch(graph, to_stages={"layers": depth + 2})
    module = deeper.to_module()
    native = Queries(depth + 2).eval()
    native.load_state_dict(module.state_dict())
    assert torch.equal(module(x), native(x))
    assert torch.equal(eir.squeeze(deeper, to_stages={"layers": depth}).to_module()(x), model(x))


def test_a_norm_that_only_later_layers_have_is_theirs() -> None:
    """DnCNN: the first layer has no norm, the last one is bare, and what is between repeats."""
    middle = [
        part for _ in range(4) for part in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    ]
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), *middle, nn.Conv2d(8, 3, 3, padding=1))
    graph = eir.trace(model.eval(), (torch.randn(1, 8, 8, 8),))
    assert outline(graph) == [("network", 1, 4, 1)]
    assert [len(block.children) for block in graph.stages[0].all_blocks] == [2, 3, 3, 3, 3]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu())  # type: ignore[no-any-return]


class Heads(nn.Module):
    """A backbone that repeats, and heads side by side that each are a layer behind another one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(Residual() for _ in range(3)))
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(nn.Conv2d(8, 6, 1), nn.SiLU()), nn.Sequential(nn.Conv2d(6, 6, 1), nn.SiLU()),
                nn.Conv2d(6, 2, 1),
            )
            for _ in range(2)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return torch.cat([head(x) for head in self.heads], 1)


def test_heads_side_by_side_are_not_stages() -> None:
    graph = eir.trace(Heads().eval(), (torch.randn(1, 8, 4, 4),))
    assert [stage.name for stage in graph.stages] == ["body"]
