"""A row of one tensor for each block: the rows follow a plan, as those of the natively deeper network do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import elastic_ir as eir

WIDTH = 6
X = torch.randn(2, WIDTH)


class Gains(nn.Module):
    """A row and a number for each layer; ``spare`` rows are for deeper networks."""

    def __init__(self, count: int, spare: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))
        self.gains = nn.Parameter(torch.randn(spare or count, WIDTH))
        self.mixed = nn.Parameter(torch.randn(count))

    def forward(self, x: Tensor) -> Tensor:
        start = x
        for index, layer in enumerate(self.layers):
            x = x + torch.tanh(layer(x * self.gains[index] + self.mixed[index] * start))
        return x


class Table(nn.Module):
    """The rows of an embedding, in a forward that torch.export reads."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))
        self.table = nn.Embedding(count, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = x + torch.tanh(layer(x + self.table.weight[index]))
        return x[: len(x)]


class Partly(nn.Module):
    """The first row is read elsewhere as well, so that which rows are the blocks' is not plain."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))
        self.gains = nn.Parameter(torch.randn(count, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.gains[0]
        for index, layer in enumerate(self.layers):
            x = x + torch.tanh(layer(x * self.gains[index]))
        return x


@pytest.mark.parametrize(
    "make", [Gains, lambda count: Gains(count, 9), Table], ids=["rows", "spare rows", "embedding"]
)
def test_a_deeper_one_is_the_native_one(make: Callable[[int], nn.Module], tmp_path: Path) -> None:
    model, native = make(4).eval(), make(6).eval()
    graph = eir.trace(model, (X,))
    (stage,) = graph.stages
    assert len({block.signature for block in stage.blocks}) == 1
    deeper = eir.stretch(graph, to_stages=[6])
    native.load_state_dict(deeper.state_dict())
    made = deeper.to_module()
    assert type(made) is type(model)
    assert torch.equal(made(X), native(X))
    eir.save(deeper, tmp_path / "deeper.pt")
    assert torch.equal(eir.load(tmp_path / "deeper.pt").to_module()(X), native(X))
    back = eir.squeeze(deeper, to_stages=[4])
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.state_dict().items())
    assert torch.equal(back.to_module()(X), model(X))


def test_rows_that_others_read_too_stay() -> None:
    model = Partly(4).eval()
    deeper = eir.stretch(eir.trace(model, (X,)), to_stages=[5])
    assert deeper.state_dict()["gains"].shape == (4, WIDTH)
    assert torch.equal(eir.squeeze(deeper, to_stages=[4]).to_module()(X), model(X))
