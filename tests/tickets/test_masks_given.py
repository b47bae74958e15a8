"""What masks are taken, in which forms, and what is said of those that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from elastic_ir.errors import MaskError
from elastic_ir.tensors.lazy import Mask
from elastic_ir.tickets import apply_masks, enforce
from tests.tickets.small import assert_dead, backward, network, some_masks, train


def test_tied_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    mask = torch.eye(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    enforcer = enforce(model, optimizer, {"0.weight": mask, "1.weight": mask})
    for _ in range(3):
        backward(model(torch.ones(2, 4)).square().sum())
        optimizer.step()
    assert torch.equal(model.get_parameter("1.weight") != 0, mask.bool())
    assert list(enforcer.masks) == ["0.weight"]
    with pytest.raises(
        MaskError, match=r"'0.weight' and '1.weight' are one tied weight, but their masks differ"
    ):
        enforce(model, optimizer, {"0.weight": mask, "1.weight": 1 - mask})


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float16])
def test_masks_of_any_dtype_and_form(dtype: torch.dtype) -> None:
    masks = some_masks()
    forms: list[dict[str, Any]] = [
        {name: mask.to(dtype) for name, mask in masks.items()},
        {name: mask.numpy() for name, mask in masks.items()},
        {name: Mask.from_array(mask.numpy()) for name, mask in masks.items()},
    ]
    for form in forms:
        model = network()
        apply_masks(model, form)
        assert_dead(model, masks)


def test_the_masks_given_may_change_afterwards() -> None:
    model, masks = network(), {name: mask.float() for name, mask in some_masks().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    enforce(model, optimizer, masks)
    for mask in masks.values():
        mask.zero_()
    train(model, optimizer)
    assert_dead(model, some_masks())


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            {"9.weight": torch.ones(1)},
            "the mask '9.weight' fits no weight of the network (it has, for example, 0.weight, ",
        ),
        (
            {"a.b": torch.ones(1)},
            "the mask 'a.b' fits no weight of the network (it has none that ends in 'b')",
        ),
        ({"4.weight": torch.ones(128)}, "the mask of '4.weight' has shape [128], its weight [5, 128]"),
        (
            {"4.weight": torch.full((5, 128), 0.5)},
            "the mask of '4.weight' holds the value 0.5; a mask holds only 0 and 1",
        ),
        (
            {"4.weight": np.full((5, 128), 2)},
            "the mask of '4.weight' holds the value 2; a mask holds only 0 and 1",
        ),
        ({"4.weight": torch.full((5, 128), float("nan"))}, "holds the value nan"),
    ],
    ids=["unknown", "unknown role", "shape", "half", "two", "nan"],
)
def test_errors_name_the_weight_and_nothing_is_changed(masks: dict[str, Any], message: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    good = {"0.weight": torch.zeros(8, 3, 3, 3)}
    for attempt in (
        lambda: enforce(model, optimizer, good | masks),
        lambda: apply_masks(model, good | masks),
    ):
        with pytest.raises(MaskError) as caught:
            attempt()
        assert message in str(caught.value)
    assert model.get_parameter("0.weight").count_nonzero() == 8 * 3 * 9


def test_a_module_under_torch_prune_is_told_what_to_do() -> None:
    model = network()
    prune.random_unstructured(model[4], "weight", 0.5)  # type: ignore[no-untyped-call]
    with pytest.raises(
        MaskError, match=r"'4.weight' is under torch.nn.utils.prune; call prune.remove on it first"
    ):
        enforce(model, torch.optim.SGD(model.parameters(), lr=0.1), some_masks())
