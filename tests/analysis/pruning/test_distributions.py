"""Layer-wise densities: the published formulas, layers kept dense, and totals met to the weight."""

from __future__ import annotations

import math

import pytest
import torch

from elastic_ir.analysis.pruning.distributions import (
    DISTRIBUTIONS,
    Distribution,
    densities,
    kept_counts,
    random_masks,
    rigl_masks,
)
from elastic_ir.errors import MaskError
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import cifar_resnet

SHAPES = {
    name: tuple(weight.shape)
    for name, weight in cifar_resnet(20).state_dict().items()
    if name.endswith("weight") and weight.ndim > 1
}


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.9, 0.98, 0.999, 1.0])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_total_is_met_to_the_weight(distribution: Distribution, share: float) -> None:
    counts = kept_counts(SHAPES, share, distribution)
    sizes = {name: math.prod(shape) for name, shape in SHAPES.items()}
    assert sum(counts.values()) == sum(sizes.values()) - round(share * sum(sizes.values()))
    found = densities(SHAPES, share, distribution)
    assert all(0 <= counts[name] <= sizes[name] for name in SHAPES)
    assert all(abs(counts[name] - found[name] * sizes[name]) <= 1 for name in SHAPES)
    assert list(counts) == list(found) == list(SHAPES)


def test_uniform_is_the_same_everywhere() -> None:
    found = densities({"a": (10, 10), "b": (40, 5, 3, 3)}, 0.7, "uniform")
    assert found == pytest.approx({"a": 0.3, "b": 0.3})


def test_erdos_renyi_by_hand() -> None:
    """100x100 and 50x20 at 90 %: shares 0.02 and 0.07, weights 10,000 and 1,000, 1,100 stay; scale 1100/270."""
    found = densities({"a": (100, 100), "b": (50, 20)}, 0.9, "erdos-renyi")
    assert found == pytest.approx({"a": 0.02 * 1100 / 270, "b": 0.07 * 1100 / 270})


def test_the_kernel_counts_in_erk_only() -> None:
    """64x32x3x3 and 64x32 differ in ERK: (64 + 32 + 3 + 3) / 18432 against 96 / 2048."""
    shapes = {"conv": (64, 32, 3, 3), "point": (64, 32)}
    er, erk = densities(shapes, 0.95, "erdos-renyi"), densities(shapes, 0.95, "erk")
    assert er["conv"] == pytest.approx(er["point"])
    assert erk["point"] / erk["conv"] == pytest.approx((96 / 2048) / (102 / 18432))
    linear = {"a": (100, 100), "b": (50, 20)}
    assert densities(linear, 0.9, "erk") == densities(linear, 0.9, "erdos-renyi")


def test_a_layer_that_would_exceed_one_stays_dense_and_the_others_give() -> None:
    """By hand: 10x1 would have density 3.4 at 80 % of 1,010 weights; it keeps its 10, the other 192."""
    found = densities({"big": (50, 20), "small": (10, 1)}, 0.8, "erk")
    assert found["small"] == 1
    assert found["big"] == pytest.approx(192 / 1000)
    assert kept_counts({"big": (50, 20), "small": (10, 1)}, 0.8, "erk") == {"big": 192, "small": 10}


def test_layers_become_dense_one_after_the_other() -> None:
    """Only after the smallest is dense does the next one exceed 1; the rest stays in proportion."""
    found = densities(SHAPES, 0.5, "erk")
    share = {name: sum(shape) / math.prod(shape) for name, shape in SHAPES.items()}
    dense = [name for name, density in found.items() if density == 1]
    sparse = [name for name in SHAPES if name not in dense]
    assert len(dense) >= 2
    assert min(share[name] for name in dense) > max(share[name] for name in sparse)
    assert len({round(found[name] / share[name], 6) for name in sparse}) == 1


def test_layers_that_are_named_stay_dense_and_the_others_give() -> None:
    """By hand: 300 of 1,000 weights stay, 100 of them in the first; the others share 200 among 900."""
    shapes = {"first": (10, 10), "b.one": (40, 10), "b.two": (5, 10, 10)}
    found = densities(shapes, 0.7, "uniform", dense="first")
    assert found == pytest.approx({"first": 1, "b.one": 2 / 9, "b.two": 2 / 9})
    assert kept_counts(shapes, 0.7, "uniform", dense=["first"]) == {"first": 100, "b.one": 89, "b.two": 111}
    assert densities(shapes, 0.1, "erk", dense="b") == pytest.approx({"first": 0, "b.one": 1, "b.two": 1})
    with pytest.raises(
        MaskError,
        match=r"sparsity of 0\.2 leaves 800 of 1,000 weights, fewer than the 900 of b\.one, b\.two, to be",
    ):
        densities(shapes, 0.2, "uniform", dense="b")
    with pytest.raises(MaskError, match="'c', to be kept dense, is neither a prunable weight"):
        kept_counts(shapes, 0.2, dense=["c"])


def test_rigl_keeps_the_first_layer_dense_under_uniform_only() -> None:
    model = cifar_resnet(8, width=4)
    masks = rigl_masks(model, 0.9, "uniform", seed=3)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == total - round(0.9 * total)
    shares = {name: float(mask.float().mean()) for name, mask in masks.items()}
    assert shares.pop("conv1.weight") == 1
    rest = total - masks["conv1.weight"].numel()
    expected = (total - round(0.9 * total) - masks["conv1.weight"].numel()) / rest
    assert all(abs(share - expected) * masks[name].numel() <= 1 for name, share in shares.items())
    erk = rigl_masks(model, 0.9, seed=3)
    assert all(torch.equal(mask, erk[name]) for name, mask in random_masks(model, 0.9, seed=3).items())
    without = rigl_masks(
        model, 0.9, "uniform", leave_out="conv1"
    )  # dense already; the next one is not the first
    assert max(float(mask.float().mean()) for mask in without.values()) < 0.12
    with pytest.raises(MaskError, match=r"fewer than the 108 of conv1\.weight, to be kept dense"):
        rigl_masks(model, 0.999, "uniform")


def test_masks_have_the_counts_and_follow_the_seed() -> None:
    model = cifar_resnet(8, width=4)
    masks = random_masks(model, 0.8, leave_out="conv1")
    shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
    assert list(masks) == list(magnitude_masks(model, 0.5, leave_out="conv1"))
    assert {name: int(mask.sum()) for name, mask in masks.items()} == kept_counts(shapes, 0.8)
    same, other = (
        random_masks(model, 0.8, leave_out="conv1"),
        random_masks(model, 0.8, leave_out="conv1", seed=1),
    )
    assert all(torch.equal(mask, same[name]) for name, mask in masks.items())
    assert any(not torch.equal(mask, other[name]) for name, mask in masks.items())


@pytest.mark.parametrize(
    ("shapes", "share", "distribution", "message"),
    [
        (SHAPES, 0.5, "er", "distribution is uniform, erdos-renyi or erk, not 'er'"),
        (SHAPES, 1.1, "erk", "between 0 and 1"),
        ({}, 0.5, "erk", "no weights to spread"),
        ({"norm": (4,)}, 0.5, "erk", r"'norm' has shape \[4\]"),
    ],
)
def test_errors(
    shapes: dict[str, tuple[int, ...]], share: float, distribution: Distribution, message: str
) -> None:
    with pytest.raises(MaskError, match=message):
        densities(shapes, share, distribution)
