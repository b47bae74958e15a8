"""One value may be several streams of a block: its copies read each stream of the block before them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import elastic_ir as eir

X = torch.randn(3, 8)


class Reversible(nn.Module):
    """Both halves start as one tensor (RevNet, Reformer)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.f = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))
        self.g = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x, x
        for f, g in zip(self.f, self.g, strict=True):
            left = left + torch.tanh(f(right))
            right = right + torch.relu(g(left))
        return left - 2 * right


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_any_plan_is_the_native_network(plan: list[int]) -> None:
    made = eir.stretch(eir.trace(Reversible(3).eval(), (X,)), plan=[plan])
    native = Reversible(len(plan)).eval()
    native.load_state_dict(made.state_dict())
    assert type(made.to_module()) is Reversible
    assert torch.allclose(made.to_module()(X), native(X), atol=1e-6)


def test_the_first_block_is_copied_in_a_network_that_was_squeezed(tmp_path: Path) -> None:
    """Its inputs are one value then, and so they are in a file of it."""
    eir.save(eir.squeeze(eir.trace(Reversible(4).eval(), (X,)), plan=[[2, 3]]), tmp_path / "two.pt")
    deeper = eir.stretch(eir.load(tmp_path / "two.pt"), plan=[[0, 0, 1, 1]])
    native = Reversible(4).eval()
    native.load_state_dict(deeper.state_dict())
    assert torch.allclose(deeper.to_module()(X), native(X), atol=1e-6)


def test_a_block_that_is_alone_does_not_show_its_streams() -> None:
    one = eir.squeeze(eir.trace(Reversible(3).eval(), (X,)), plan=[[1]])
    with pytest.raises(
        eir.StructureError, match=r"f\.0 takes one value for several streams, and no other block"
    ):
        eir.stretch(one, plan=[[0, 0]])
