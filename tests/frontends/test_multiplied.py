"""Parameters that a forward multiplies with by itself: which of them are layers, and blocks that consist of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import elastic_ir as eir
from elastic_ir.choices import Frontend


class Plain(nn.Module):
    """``x @ w``."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(8, 16) / 4), nn.Parameter(torch.randn(16, 8) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(x @ self.up) @ self.down


class Functional(nn.Module):
    """``F.linear`` with weights of two ranks that are views of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(8, 8) / 4), nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(F.linear(x, self.w.t(), self.b))


class Heads(nn.Module):
    """An ``einsum`` over heads, beside a vector of scales that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale = nn.Parameter(torch.randn(2, 8, 4) / 4), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.einsum("bd,hdk->bhk", x, self.heads).flatten(1)


class LowRank(nn.Module):
    """A weight that is a product of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(8, 2) / 2), nn.Parameter(torch.randn(2, 8) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(x @ (self.left @ self.right))


class StateSpace(nn.Module):
    """Mamba's decay and skip are no layers; its projections are."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log, self.D = nn.Parameter(torch.rand(8, 4)), nn.Parameter(torch.ones(8))
        self.out_proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        state = (x[..., None] * torch.exp(-torch.exp(self.A_log))).sum(-1)
        return torch.add(x, self.out_proj(state + self.D * x))


class Positions(nn.Module):
    """A query times a table of relative positions: no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.rel_pos = nn.Linear(8, 8), nn.Parameter(torch.randn(8, 8) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, (self.query(x) @ self.rel_pos).softmax(-1))


class Planar(nn.Module):
    """A step of a planar flow: vectors alone."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.w = nn.Parameter(torch.randn(1, 8) / 4), nn.Parameter(torch.randn(1, 8) / 4)

    def forward(self, z: Tensor) -> Tensor:
        return z + self.u * torch.tanh((self.w * z).sum(1, keepdim=True))


KINDS: dict[type[nn.Module], tuple[set[str], int]] = {
    Plain: ({"up", "down"}, 2),
    Functional: ({"w"}, 1),
    Heads: ({"heads"}, 1),
    LowRank: ({"left", "right"}, 2),
    StateSpace: ({"out_proj.weight"}, 1),
    Positions: ({"query.weight"}, 1),
    Planar: (set(), 0),
}


@pytest.mark.everyday(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_blocks_of_parameters(kind: Callable[[], nn.Module], frontend: Frontend) -> None:
    torch.manual_seed(0)
    layers, depth = KINDS[kind]  # type: ignore[index]
    network, given = nn.Sequential(*(kind() for _ in range(3))), torch.randn(2, 8)
    graph = eir.trace(network, given, frontend=frontend)
    assert {name[2:] for name, weight in graph.weights.items() if weight.layer} == layers
    assert graph.depth == 3 * depth
    deeper = eir.stretch(graph, to_units=5)
    module = deeper.to_module()
    assert type(module) is nn.Sequential
    native = nn.Sequential(*(kind() for _ in range(5)))
    native.load_state_dict(deeper.state_dict(), strict=True)
    assert torch.equal(native(given), module(given))
    assert len(eir.squeeze(deeper, to_units=3).stages[0]) == 3


class Lists(nn.Module):
    """Weights and biases in lists of their own; ``fused`` reads an entry of each in one operation."""

    def __init__(self, count: int, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.kernels = nn.ParameterList(nn.Parameter(torch.randn(8, 8) / 4) for _ in range(count))
        self.shifts = nn.ParameterList(nn.Parameter(torch.randn(8)) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for kernel, shift in zip(self.kernels, self.shifts, strict=True):
            x = x + torch.tanh(F.linear(x, kernel, shift) if self.fused else x @ kernel + shift)
        return x


class Keyed(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ParameterDict({str(i): nn.Parameter(torch.randn(8, 8) / 4) for i in range(count)})

    def forward(self, x: Tensor) -> Tensor:
        for kernel in self.layers.values():
            x = x + torch.tanh(x @ kernel)
        return x


@pytest.mark.parametrize(
    "make",
    [lambda n: Lists(n, fused=False), lambda n: Lists(n, fused=True), Keyed],
    ids=["two", "fused", "dict"],
)
def test_entries_of_lists_are_slots(make: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    given, source = torch.randn(2, 8), make(3)
    graph = eir.trace(source, given)
    assert [len(stage) for stage in graph.stages] == [3] and graph.depth == 3
    deeper = eir.stretch(graph, to_units=5)
    module, native = deeper.to_module(), make(5)
    native.load_state_dict(deeper.state_dict(), strict=True)
    assert type(module) is type(source) and torch.equal(native(given), module(given))
    module(given).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    back = eir.squeeze(deeper, to_units=3).state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in source.state_dict().items())


def test_a_masked_parameter_counts_in_the_sparsity() -> None:
    network = nn.Sequential(*(Plain() for _ in range(2)))
    mask = torch.ones(8, 16)
    mask[:4] = 0
    graph = eir.trace(network, torch.randn(2, 8), masks={"0.up": mask})
    assert graph.sparsity() == 0.5 and not graph.weights["0.down"].counted
    deeper = eir.stretch(graph, plan=[[0, 0, 1]])
    assert torch.equal(deeper.masks()["1.up"], mask)
    assert not deeper.to_module().get_parameter("1.up")[:4].any()
