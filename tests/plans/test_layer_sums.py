"""Weighted sums over all blocks of a traced network follow a plan, so that copies have the weight of their source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.errors import ElasticError


class Mixed(nn.Module):
    """Blocks whose states are summed: what enters each (``before``) or what leaves it, and the last one normed."""

    def __init__(self, before: bool = False, temperature: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4))
        self.mix = nn.Parameter(torch.randn(5))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)
        self.before, self.temperature = before, temperature

    def forward(self, x: Any) -> Any:
        states = [] if self.before else [x]
        for layer in self.layers:
            if self.before:
                states.append(x)
            x = x + layer(x)
            if not self.before:
                states.append(x)
        if self.before:
            states.append(self.norm(x))
        mix = self.mix if self.temperature == 1 else self.mix / self.temperature
        weights = torch.softmax(mix, 0)
        return self.head((torch.stack(states, 1) * weights.view(-1, 1)).sum(1))


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("plan", [[0, 0, 1, 2, 3, 3, 3], [0, 1, 3], [1, 0, 2, 3]])
def test_entries_are_of_what_blocks_give(before: bool, plan: list[int]) -> None:
    torch.manual_seed(0)
    model = Mixed(before)
    graph = eir.trace(model, example_inputs=(torch.randn(2, 8),))
    made: Any = eir.stretch(graph, plan=[plan]).to_module()
    entries = torch.tensor([0, *(block + 1 for block in plan)])
    often = torch.tensor([(entries == entry).sum() for entry in entries])
    assert torch.allclose(made.mix, model.mix[entries] - often.log())
    states, x = [], torch.randn(2, 8)
    for layer in made.layers:
        states.append(x)
        x = x + layer(x)
    states.append(made.norm(x) if before else x)
    wanted = made.head((torch.stack(states, 1) * made.mix.softmax(0).view(-1, 1)).sum(1))
    assert torch.allclose(made(states[0]), wanted, atol=1e-6)


def test_copies_that_compute_nothing_leave_the_sum_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mixed()
    x = torch.randn(2, 8)
    graph = eir.trace(model, example_inputs=(x,))
    deeper = eir.stretch(graph, to_units=7, order="interpolate", zero=["0"])
    assert torch.allclose(deeper.to_module()(x), model(x), atol=1e-6)
    again = eir.stretch(deeper, to_units=9, order="interpolate")
    back = eir.squeeze(eir.squeeze(again, to_units=7, drop="even"), to_units=4, drop="even")
    assert torch.equal(back.state_dict()["mix"], model.mix)
    eir.save(deeper, tmp_path / "net.pt")
    assert eir.load(tmp_path / "net.pt").weights["mix"].shape == (8,)


def test_a_softmax_of_something_else_is_refused() -> None:
    """As before: what is made does not run."""
    graph = eir.trace(Mixed(temperature=2.0), example_inputs=(torch.randn(2, 8),))
    with pytest.raises(ElasticError, match="does not run"):
        eir.stretch(graph, to_units=6).to_module()
