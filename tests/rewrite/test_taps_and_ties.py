"""What blocks hand out beside their flow, and weights that are tied across blocks, stay in step with the blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.choices import Frontend

D = 8


class Last(nn.Module):
    """Hands out the last state beside the stack of all states."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(n))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        states = []
        for layer in self.layers:
            x = torch.relu(layer(x))
            states.append(x)
        return x, torch.stack(states)


class Tied(nn.Module):
    """A norm behind each layer, the same one in each slot of its list; the last slot's name is the one that is read."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(n))
        self.norms = nn.ModuleList([nn.LayerNorm(D)] * n)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(torch.relu(layer(x)))
        return x


def _agree(kind: type[Last] | type[Tied], frontend: Frontend) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, D)
    graph = eir.trace(kind(3).eval(), (x,), frontend=frontend)
    for count, changed in ((4, eir.stretch(graph, to_stages=[4])), (2, eir.squeeze(graph, to_stages=[2]))):
        module, native = changed.to_module().eval(), kind(count).eval()
        native.load_state_dict(module.state_dict(), strict=True)
        mine, theirs = module(x), native(x)
        assert len(mine) == len(theirs)
        assert all(map(torch.equal, mine, theirs))


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_a_result_that_is_the_last_state_alone_stays_one(frontend: Frontend) -> None:
    _agree(Last, frontend)


def test_a_tied_weight_is_read_by_a_name_that_is_left() -> None:
    _agree(Tied, "export")
