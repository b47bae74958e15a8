"""A row of one tensor for each block: the rows follow a plan, as those of the natively deeper network do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


class Unbound(Gains):
    """The rows are walked beside the layers, which torch.export reads."""

    def forward(self, x: Tensor) -> Tensor:
        for gain, mixed, layer in zip(
            torch.sigmoid(self.gains), self.mixed.unbind(), self.layers, strict=True
        ):
            x = x + torch.tanh(layer(x * gain + mixed))
        return x


class LookedUp(Table):
    """The row of each layer is looked up by its number."""

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = x + torch.tanh(layer(x + self.table(torch.tensor(index))))
        return x


class LookedUpAtOnce(Table):
    """The rows of all layers are looked up together."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table(torch.arange(len(self.layers)))
        for index, layer in enumerate(self.layers):
            x = x + torch.tanh(layer(x + rows[index]))
        return x


class Modulated(nn.Module):
    """One layer gives the scales and shifts of all blocks, and in the end those of the head, taken apart in a way."""

    def __init__(self, count: int, way: str) -> None:
        super().__init__()
        self.way = way
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH * (count + 1)))

    def parts(self, made: Tensor) -> list[tuple[Tensor, Tensor]]:
        count = len(self.layers) + 1
        if self.way == "chunks":
            return [(a, b) for a, b in (part.chunk(2, dim=-1) for part in made.chunk(count, dim=-1))]
        if self.way == "halves":
            parts = made.chunk(2 * count, dim=-1)
            return [(parts[2 * at], parts[2 * at + 1]) for at in range(count)]
        if self.way == "slices":
            ends = [2 * WIDTH * at for at in range(count)]
            return [(made[:, at : at + WIDTH], made[:, at + WIDTH : at + 2 * WIDTH]) for at in ends]
        axes = made.view(-1, count, 2, WIDTH)
        return [(axes[:, at, 0], axes[:, at, 1]) for at in range(count)]

    def forward(self, x: Tensor) -> Tensor:
        *parts, (scale, shift) = self.parts(self.modulate(x))
        for layer, (times, plus) in zip(self.layers, parts, strict=True):
            x = x + torch.tanh(layer(x * times + plus))
        return x * scale + shift


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


class Tabled(nn.Module):
    """Six rows for each block, to which a layer's output is added, taken apart before each block runs."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))
        self.table = nn.Parameter(torch.randn(count, 3, WIDTH))
        self.added = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table[None] + self.added(x).reshape(-1, 1, 3, WIDTH)
        for index, layer in enumerate(self.layers):
            scale, shift, gate = rows[:, index].chunk(3, 1)
            x = x + gate[:, 0] * torch.tanh(layer(x * scale[:, 0] + shift[:, 0]))
        return x


class Generated(nn.Module):
    """Weights that a network makes of a row for each block; and parts of a layer whose weight is computed."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(count))
        self.rows = nn.Embedding(count, 3)
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, WIDTH * WIDTH))
        self.scales = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH * count))

    def forward(self, x: Tensor) -> Tensor:
        weights, scales = self.generator(self.rows.weight), self.scales(x)
        for index, norm in enumerate(self.norms):
            made = nn.functional.linear(norm(x), weights[index].view(WIDTH, WIDTH))
            x = x + torch.tanh(made) * scales[:, index * WIDTH : (index + 1) * WIDTH]
        return x


class Normed(nn.Module):
    """A norm, written out, of what one layer gives for each block, with columns of a table added (Gemma 3n)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))
        self.project, self.table = nn.Linear(WIDTH, count * WIDTH), nn.Embedding(2, count * WIDTH)
        self.scale = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, len(self.layers), WIDTH)
        rows = self.project(x).view(shape).float()
        rows = rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        rows = rows + self.table((x.sum(1) > 0).long()).view(shape)
        for index, layer in enumerate(self.layers):
            x = x + torch.tanh(layer(x * rows[:, index]))
        return x


class Halves(nn.Module):
    """The scales of all blocks, and behind them all shifts: whose entries are whose does not show."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))
        self.both = nn.Linear(WIDTH, 2 * WIDTH * count)

    def forward(self, x: Tensor) -> Tensor:
        scales, shifts = self.both(x).chunk(2, -1)
        for index, layer in enumerate(self.layers):
            own = slice(index * WIDTH, (index + 1) * WIDTH)
            x = torch.sin(scales[:, own] * layer(x) + shifts[:, own])
        return x


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "rows": Gains,
    "spare rows": lambda count: Gains(count, 9),
    "embedding": Table,
    "unbound": Unbound,
    "looked up": LookedUp,
    "looked up at once": LookedUpAtOnce,
    "tabled": Tabled,
    "generated": Generated,
    "normed": Normed,
    **{way: partial(Modulated, way=way) for way in ("chunks", "halves", "slices", "axes")},
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
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
    assert str(made) == str(native)  # the sizes that layers state
    eir.save(deeper, tmp_path / "deeper.pt")
    assert torch.equal(eir.load(tmp_path / "deeper.pt").to_module()(X), native(X))
    back = eir.squeeze(deeper, to_stages=[4])
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.state_dict().items())
    assert torch.equal(back.to_module()(X), model(X))


def test_parts_of_what_an_export_checks() -> None:
    graph = eir.trace(Normed(4).eval(), (X,), frontend="export")
    assert any("_assert_tensor_metadata" in node.op for node in graph)
    Normed(6).load_state_dict(eir.stretch(graph, to_stages=[6]).state_dict())


def test_rows_that_others_read_too_stay() -> None:
    model = Partly(4).eval()
    deeper = eir.stretch(eir.trace(model, (X,)), to_stages=[5])
    assert deeper.state_dict()["gains"].shape == (4, WIDTH)
    assert torch.equal(eir.squeeze(deeper, to_stages=[4]).to_module()(X), model(X))


def test_parts_that_cannot_follow_are_refused() -> None:
    model = Halves(4).eval()
    graph = eir.trace(model, (X,))
    with pytest.raises(
        eir.PlanError, match=r"takes a part of its own of what 'both\.weight' gives.*--keep-beside"
    ):
        eir.stretch(graph, to_stages=[6])
    kept = eir.stretch(graph, to_stages=[6], keep_beside="both")
    assert kept.state_dict()["both.weight"].shape == model.both.weight.shape
