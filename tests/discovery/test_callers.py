"""What the caller of blocks does: counts them, runs other methods than forward, gives the last one another role."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import elastic_ir as eir

WIDTH = 8
X, Y = torch.randn(2, WIDTH), torch.randn(2, WIDTH)


def linears(count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))


class Meeting(nn.Module):
    """Two streams that meet in every second block alone: with operations of the caller, which block it is shows."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left, self.right = linears(count), linears(count)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for index, (left, right) in enumerate(zip(self.left, self.right, strict=True)):
            if index % 2:
                x, y = x + torch.relu(left(y)), y + torch.relu(right(x))
            else:
                x, y = x + torch.tanh(left(x)), y + torch.tanh(right(y))
        return x + y


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x))


class Cross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x) * self.other(y))


class Hybrid(nn.Module):
    """The layers of two streams, by turns of their own and across (Demucs)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = nn.ModuleList(Cross() if index % 2 else Own() for index in range(count))
        self.right = nn.ModuleList(Cross() if index % 2 else Own() for index in range(count))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for index, (left, right) in enumerate(zip(self.left, self.right, strict=True)):
            x, y = (left(x, y), right(y, x)) if index % 2 else (left(x), right(y))
        return x + y


@pytest.mark.parametrize(("make", "free"), [(Meeting, 2), (Hybrid, 4)], ids=["operations", "modules"])
def test_a_block_that_only_begins_a_period_stays_the_last(make: type[Meeting | Hybrid], free: int) -> None:
    model = make(5).eval()
    graph = eir.trace(model, (X, Y))
    (stage,) = graph.stages
    assert (len(stage.blocks), stage.exit is not None and stage.exit.path) == (free, "left.4")
    deeper, native = eir.stretch(graph, to_stages=[len(stage) + free // 2]), make(7).eval()
    native.load_state_dict(deeper.state_dict())
    assert torch.allclose(deeper.to_module()(X, Y), native(X, Y), atol=1e-6)
    assert torch.equal(eir.squeeze(deeper, to_stages=[len(stage)]).to_module()(X, Y), model(X, Y))


class Turns(nn.Module):
    """One kind of layer, for each stream by itself and across them by turns (LoFTR)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Cross() for _ in range(count))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            if index % 2:
                x = layer(x, y)
                y = layer(y, x)
            else:
                x, y = layer(x, x), layer(y, y)
        return x - 2 * y


@pytest.mark.parametrize("plan", [[0, 1, 2, 3, 0, 1], [0, 1, 0, 1, 2, 3], [2, 3]])
def test_a_first_block_that_reads_otherwise_than_the_next_one(plan: list[int]) -> None:
    (stage,) = (graph := eir.trace(Turns(4).eval(), (X, Y))).stages
    assert (len(stage.blocks), stage.period) == (4, 2)
    made = eir.squeeze(graph, plan=[plan]) if len(plan) < 4 else eir.stretch(graph, plan=[plan])
    native = Turns(len(plan)).eval()
    native.load_state_dict(made.state_dict())
    assert torch.allclose(made.to_module()(X, Y), native(X, Y), atol=1e-6)


def test_layers_of_two_kinds_in_any_order_are_free_to_the_last() -> None:
    """One stream, and a caller that treats all layers alike."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), (nn.ReLU(), nn.Tanh())[i % 2]) for i in range(5)))
    (stage,) = eir.trace(model.eval(), (X,)).stages
    assert (len(stage.blocks), stage.exit, stage.period) == (5, None, 1)


class Scaled(nn.Module):
    """A gate and a shift, computed by two methods."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(WIDTH), nn.Parameter(torch.randn(WIDTH, WIDTH))

    def widths(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.norm(x) @ self.gate)


class Methods(nn.Module):
    """The caller runs methods of a layer that are not its forward (hyper-connections)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([Scaled(), nn.Linear(8, 8)]) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            scaled, linear = layer.children()
            assert isinstance(scaled, Scaled)
            x = x + scaled.widths(x) * linear(x)
        return x


class Convolutions(nn.Module):
    """Lists called convs1 and convs2, which are no layers 1 and 2 (HiFi-GAN)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.convs1, self.convs2 = linears(count), linears(count)

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.convs1, self.convs2, strict=True):
            x = x + second(torch.relu(first(torch.relu(x))))
        return x


class Branches(nn.Module):
    """Such lists in blocks that run side by side."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Convolutions(count) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.blocks
        return torch.tanh(left(x)) + torch.tanh(right(x))


class Skips(nn.Module):
    """The last layer gives its result where the others give a skip (pytorch-tcn)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = linears(count)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for index, layer in enumerate(self.layers):
            skip = torch.tanh(layer(x))
            x = torch.relu(x + skip)
            if index < len(self.layers) - 1:
                skips.append(skip)
        return torch.stack([*skips, x]).sum(0)


@pytest.mark.parametrize(
    ("make", "stages", "free"), [(Methods, 1, 3), (Branches, 2, 3), (Skips, 1, 2)], ids=lambda item: str(item)
)
def test_a_deeper_one_is_the_native_one(
    make: type[Methods | Branches | Skips], stages: int, free: int
) -> None:
    model = make(3).eval()
    graph = eir.trace(model, (X,))
    assert [len(stage.blocks) for stage in graph.stages] == [free] * stages
    deeper, native = eir.stretch(graph, to_stages=[4] * stages), make(4).eval()
    native.load_state_dict(deeper.state_dict())
    assert torch.allclose(deeper.to_module()(X), native(X), atol=1e-6)
    assert torch.equal(eir.squeeze(deeper, to_stages=[3] * stages).to_module()(X), model(X))


class Lending(nn.Module):
    """Steps that all run the layer of a list elsewhere, whose one other layer repeats nothing (TabNet)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.first = nn.ModuleList([nn.Sequential(nn.Linear(4, 8)), nn.Sequential(nn.Linear(8, 8))])
        self.steps = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first[1](torch.tanh(self.first[0](x))))
        weight = self.first.get_parameter("1.0.weight")
        for step in self.steps:
            x = x + torch.relu(step(torch.tanh(nn.functional.linear(x, weight))))
        return x


def test_a_layer_that_others_run_too_is_no_stage_by_itself() -> None:
    graph = eir.trace(Lending(3).eval(), (torch.randn(2, 4),))
    assert [(stage.name, len(stage)) for stage in graph.stages] == [("steps", 3)]


class Backwards(nn.Module):
    """All but the last of a list are run from the end, so that it does not show what a longer one would run."""

    def __init__(self) -> None:
        super().__init__()
        self.flows = linears(4)

    def forward(self, x: Tensor) -> Tensor:
        for flow in reversed(self.flows[:-1]):
            x = torch.relu(flow(x))
        return x


class TwiceInside(nn.Module):
    """Each layer runs twice in a row, and the two together once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH // 2, WIDTH // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.relu(self.first(x)))[:, : WIDTH // 2]
        result: Tensor = self.second(torch.tanh(self.second(x)))
        return result


class Chosen(nn.Module):
    """All results but the first are concatenated (ECAPA-TDNN)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(WIDTH, 6), *(nn.Linear(6, 6) for _ in range(3))])
        self.head = nn.Linear(18, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for block in self.blocks:
            x = torch.relu(block(x))
            found.append(x)
        return self.head(torch.cat(found[1:], -1))  # type: ignore[no-any-return]


class Normed(nn.Module):
    """Weights that are divided by their norms are read twice each, and no layer runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            x = torch.relu(nn.functional.linear(x, layer.weight / layer.weight.norm()))
        return x


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Normed, "no two blocks in a row have equal operations and weight shapes"),
        (TwiceInside, "no two blocks in a row have equal operations and weight shapes"),
        (
            Backwards,
            r"the children of 'flows' run from the last one to the first \(flows\.2 before flows\.1\)",
        ),
        (Chosen, r"blocks\.1 hands a value to cat in its own forward, outside of 'blocks'"),
    ],
)
def test_the_reason_why_nothing_repeats(make: type[nn.Module], reason: str) -> None:
    with pytest.raises(eir.StructureError, match=reason):
        _ = eir.trace(make().eval(), (X,)).stages


class Halved(nn.Module):
    """A layer that stands between two blocks is of neither, nor is what is made of its result."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.between = linears(4), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for at, block in enumerate(self.blocks):
            if at == 2:
                x = self.between(x).flip(-1)
            x = x + torch.relu(block(x))
        return x


def test_what_is_made_of_a_layer_between_blocks_is_no_block_s() -> None:
    first, second = eir.trace(Halved().eval(), (X,)).stages
    assert len({block.signature for stage in (first, second) for block in stage.blocks}) == 1
