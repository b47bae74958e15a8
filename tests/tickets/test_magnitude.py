"""Masks by magnitude: an exact count over the whole network, and the same masks every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elastic_ir.errors import MaskError
from elastic_ir.frontends.trace import prunable_names
from elastic_ir.tensors.weights import looks_prunable
from elastic_ir.tickets import magnitude_masks, sparsity
from elastic_ir.zoo import cifar_resnet


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8926, 1.0])
def test_the_count_is_exact_and_the_smallest_go_first(share: float) -> None:
    model = cifar_resnet(8, width=4)
    masks = magnitude_masks(model, share)
    kept = torch.cat([model.get_parameter(n).detach()[m].abs() for n, m in masks.items()])
    gone = torch.cat([model.get_parameter(n).detach()[~m].abs() for n, m in masks.items()])
    assert gone.numel() == round(share * (gone.numel() + kept.numel()))
    assert not gone.numel() or not kept.numel() or gone.max() <= kept.min()
    assert all(m.dtype == torch.bool and m.shape == model.get_parameter(n).shape for n, m in masks.items())


def test_ties_go_by_position() -> None:
    state = {"a.weight": torch.ones(2, 2), "b.weight": -torch.ones(2, 2)}
    masks = magnitude_masks(state, 5 / 8)
    assert masks["a.weight"].tolist() == [[False, False], [False, False]]
    assert masks["b.weight"].tolist() == [[False, True], [True, True]]


def test_a_state_dict_gives_the_masks_of_its_module() -> None:
    model = cifar_resnet(8, width=4)
    ours, theirs = magnitude_masks(model, 0.7), magnitude_masks(model.state_dict(), 0.7)
    assert list(ours) == list(theirs)
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_what_is_left_out_gets_no_mask_and_does_not_count() -> None:
    model = cifar_resnet(8, width=4)
    everything = magnitude_masks(model, 0.5)
    names = list(everything)
    some = magnitude_masks(model, 0.5, leave_out=(names[0], "layer1"))
    assert set(some) == {name for name in names[1:] if not name.startswith("layer1.")}
    assert sparsity(some) == pytest.approx(0.5, abs=1e-3)
    assert set(magnitude_masks(model, 0.5, leave_out=names[0])) == set(names[1:])


def test_prunable_weights_are_those_of_the_frontends() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 8)
            self.norm = nn.LayerNorm([2, 4])
            self.bn = nn.BatchNorm1d(8)
            self.conv = nn.Conv1d(8, 8, 3)
            self.patch_embeddings = nn.Conv2d(3, 8, 2)  # named as a table, and a layer
            self.attention = nn.MultiheadAttention(8, 2)
            self.cross = nn.MultiheadAttention(8, 2, kdim=4, vdim=4)
            self.head = nn.Linear(8, 9)

    model = Mixed()
    assert set(magnitude_masks(model, 0.5)) == prunable_names(model)
    state: dict[str, Tensor] = {**model.state_dict(), "step": torch.tensor(1)}
    assert set(magnitude_masks(state, 0.5)) == {
        n for n, t in state.items() if looks_prunable(n, tuple(t.shape))
    }


def test_tied_weights_count_once_and_wrappers_leave_no_trace() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    compiled: Any = torch.compile(model, backend="eager")
    masks = magnitude_masks(compiled, 0.5)
    assert list(masks) == ["0.weight"]
    assert sparsity(masks) == 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_any_dtype(dtype: torch.dtype) -> None:
    weight = torch.tensor([[0.5, -2.0], [4.0, -0.25]]).to(dtype)
    assert magnitude_masks({"a.weight": weight}, 0.5)["a.weight"].tolist() == [[False, True], [True, False]]


def test_sparsity_of_masks() -> None:
    assert sparsity({"a": torch.tensor([1, 0, 0, 0]), "b": torch.tensor([True, False])}) == pytest.approx(
        4 / 6
    )
    assert sparsity({}) == 0.0


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ({"a.weight": torch.ones(2, 2)}, {"sparsity": 1.5}, "the sparsity 1.5 is not between 0 and 1"),
        (
            {"a.weight": torch.ones(2, 2)},
            {"sparsity": float("nan")},
            "the sparsity nan is not between 0 and 1",
        ),
        ({"a.weight": torch.full((2, 2), torch.nan)}, {"sparsity": 0.5}, "'a.weight' holds NaN"),
        (
            {"a.weight": torch.ones(2, 2, device="meta")},
            {"sparsity": 0.5},
            "'a.weight' is on the meta device",
        ),
        (
            {"a.weight": torch.ones(2, 2)},
            {"sparsity": 0.5, "leave_out": ("b",)},
            "'b', to be left out, is neither a prunable weight",
        ),
        ({"a.bias": torch.ones(2)}, {"sparsity": 0.5}, "no weight of a convolution or linear layer"),
    ],
)
def test_errors(source: dict[str, Tensor], options: dict[str, Any], message: str) -> None:
    with pytest.raises(MaskError) as caught:
        magnitude_masks(source, **options)
    assert message in str(caught.value)
