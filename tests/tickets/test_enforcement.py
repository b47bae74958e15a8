"""Pruned weights stay at +0 whatever trains the network, and the others train as if the pruned ones did not exist."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from elastic_ir.tickets import MaskEnforcer, enforce, magnitude_masks, sparsity
from tests.tickets.small import MASKED, assert_dead, backward, batch, loss_of, network, some_masks, train

Make = Callable[[Any], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "momentum-foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, foreach=True),
    "momentum-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=4, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("mask_gradients", [True, False])
def test_no_optimizer_revives_a_pruned_weight(make: Make, mask_gradients: bool) -> None:
    model, masks = network(), some_masks()
    names = [name for name, _ in model.named_parameters()]
    optimizer = make(model.parameters())
    enforce(model, optimizer, masks, mask_gradients=mask_gradients)
    assert_dead(model, masks)
    for _ in range(4):
        train(model, optimizer, steps=1)
        assert_dead(model, masks)
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == list(network().state_dict())


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "lbfgs"])
def test_survivors_train_as_a_masked_reference_does(name: str) -> None:
    """Bit for bit against masking gradients and weights by hand, with gradient clipping in between."""
    masks, make = some_masks(), OPTIMIZERS[name]
    model, reference = network(), network()
    optimizer, other = make(model.parameters()), make(reference.parameters())
    enforce(model, optimizer, masks)
    pairs = [(reference.get_parameter(name), mask) for name, mask in masks.items()]
    for weight, mask in pairs:
        weight.data[~mask] = 0
    for step in range(4):
        for net, opt in ((model, optimizer), (reference, other)):
            opt.zero_grad()
            backward(loss_of(net, step))
            if net is reference:
                for weight, mask in pairs:
                    assert weight.grad is not None
                    weight.grad[~mask] = 0
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            opt.step()
        for weight, mask in pairs:
            weight.data[~mask] = 0
    for key, value in reference.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_gradients_of_pruned_weights_are_zero_or_dense_as_asked() -> None:
    masks = some_masks()
    for mask_gradients in (True, False):
        model = network()
        enforce(model, torch.optim.SGD(model.parameters(), lr=0.1), masks, mask_gradients=mask_gradients)
        backward(loss_of(model))
        gradient = model.get_parameter("4.weight").grad
        assert gradient is not None
        assert bool((gradient[~masks["4.weight"]] == 0).all()) is mask_gradients
        assert gradient[masks["4.weight"]].count_nonzero() > 0


def test_a_gradient_that_is_to_be_differentiated_stays_in_the_graph() -> None:
    model, masks = network(), some_masks()
    enforce(model, torch.optim.SGD(model.parameters(), lr=0.1), masks)
    weight = model.get_parameter("4.weight")
    (gradient,) = torch.autograd.grad(loss_of(model), weight, create_graph=True)
    assert gradient[~masks["4.weight"]].count_nonzero() == 0
    (second,) = torch.autograd.grad(gradient.square().sum(), weight)
    assert second[masks["4.weight"]].count_nonzero() > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0, -0.0])
def test_a_pruned_weight_gone_wrong_becomes_plus_zero(value: float) -> None:
    """The product of such a weight with 0 would be NaN, or -0.0."""
    model, masks = network(), some_masks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    enforcer = enforce(model, optimizer, masks)
    for name in MASKED:
        model.get_parameter(name).data[~masks[name]] = value
    optimizer.step()
    assert_dead(model, masks)
    model.get_parameter("0.weight").data[~masks["0.weight"]] = value
    enforcer.apply()
    assert_dead(model, masks)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_weights_of_any_dtype(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3, bias=False, dtype=dtype)
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    enforcer = enforce(layer, optimizer, {"weight": mask})
    for _ in range(2):
        optimizer.zero_grad()
        backward(layer(torch.ones(2, 4, dtype=dtype)).abs().float().sum())
        assert layer.weight.grad is not None
        assert (layer.weight.grad != 0).equal(mask.bool())
        optimizer.step()
    assert (layer.weight != 0).equal(mask.bool())
    assert enforcer.masks["weight"].equal(mask.bool())


def test_masks_follow_the_module_to_another_dtype_and_layout() -> None:
    model, masks = network(), some_masks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    enforcer = enforce(model, optimizer, masks)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it for modules
    train(model, optimizer)
    assert_dead(model, masks)
    model.double()
    for state in optimizer.state.values():
        state.clear()
    images, labels = batch()
    backward(F.cross_entropy(model(images.double()), labels))
    optimizer.step()
    assert_dead(model, masks)
    assert all(enforcer.masks[name].equal(mask) for name, mask in masks.items())


@pytest.mark.parametrize("mask_gradients", [True, False])
def test_a_momentum_from_dense_training_does_not_revive(mask_gradients: bool) -> None:
    dense = network()
    trained = torch.optim.SGD(dense.parameters(), lr=0.1, momentum=0.9)
    train(dense, trained)
    state, masks = trained.state_dict(), some_masks()

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    enforce(model, optimizer, masks, mask_gradients=mask_gradients)
    optimizer.load_state_dict(state)
    for name in MASKED:
        momentum = optimizer.state[model.get_parameter(name)]["momentum_buffer"]
        assert (momentum != 0).equal(masks[name])
        momentum.fill_(3.0)  # and where it was written behind the enforcer's back
    train(model, optimizer)
    assert_dead(model, masks)

    enforce(dense, trained, masks)  # set up with the momentum already there
    assert (trained.state[dense.get_parameter("4.weight")]["momentum_buffer"] != 0).equal(masks["4.weight"])


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_weights_are_masked_at_once(assign: bool) -> None:
    model, masks = network(), some_masks()
    enforce(model, torch.optim.SGD(model.parameters(), lr=0.1), masks)
    dense = network(seed=5).state_dict()
    model.load_state_dict(dense, assign=assign)
    assert_dead(model, masks)
    model[4].load_state_dict(
        {key: value + 1 for key, value in network(6)[4].state_dict().items()}, assign=assign
    )
    assert_dead(model, masks)
    backward(loss_of(model))
    gradient = model.get_parameter("4.weight").grad
    assert gradient is not None
    assert gradient[~masks["4.weight"]].count_nonzero() == 0


def test_frozen_weights_are_masked_once_and_join_when_they_are_added() -> None:
    model, masks = network(), some_masks()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[4].parameters(), lr=0.1, momentum=0.9)
    enforce(model, optimizer, masks)
    assert_dead(model, masks)
    version = model.get_parameter("0.weight")._version
    train(model, optimizer)
    assert_dead(model, masks)
    assert model.get_parameter("0.weight")._version == version  # untouched: a graph may still need it
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    train(model, optimizer)
    assert_dead(model, masks)
    gradient = model.get_parameter("0.weight").grad
    assert gradient is not None
    assert gradient[~masks["0.weight"]].count_nonzero() == 0


def test_sparse_gradients_of_an_embedding() -> None:
    table = nn.Embedding(4, 3, sparse=True)
    mask = torch.tensor([[1, 0, 1]]).expand(4, 3)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    enforce(table, optimizer, {"weight": mask})
    backward(table(torch.tensor([1, 2])).sum())
    optimizer.step()
    assert torch.equal(table.weight != 0, mask.bool())


def test_remove_and_the_with_block_end_it() -> None:
    model, masks = network(), some_masks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with enforce(model, optimizer, masks) as enforcer:
        assert isinstance(enforcer, MaskEnforcer)
        train(model, optimizer, steps=1)
    assert_dead(model, masks)
    train(model, optimizer, steps=1)
    revived = model.get_parameter("4.weight")[~masks["4.weight"]]
    assert revived.count_nonzero() > 0
    enforcer.remove()
    model.load_state_dict(network(3).state_dict())
    assert model.get_parameter("4.weight").count_nonzero() == masks["4.weight"].numel()


def test_copies_and_pickles_of_the_module_are_free_of_the_enforcer() -> None:
    model, masks = network(), some_masks()
    enforce(model, torch.optim.SGD(model.parameters(), lr=0.1), masks)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert_dead(twin, masks)
        twin.load_state_dict(network(3).state_dict())
        assert twin.get_parameter("4.weight").count_nonzero() == masks["4.weight"].numel()
        backward(loss_of(twin))
        gradient = twin.get_parameter("4.weight").grad
        assert gradient is not None
        assert gradient[~masks["4.weight"]].count_nonzero() > 0
    assert_dead(model, masks)


def test_magnitude_masks_enforced_keep_their_sparsity() -> None:
    model = network()
    masks = magnitude_masks(model, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    enforcer = enforce(model, optimizer, masks)
    train(model, optimizer)
    weights = {name: model.get_parameter(name) for name in MASKED}
    assert sparsity(enforcer.masks) == sparsity(masks) == pytest.approx(0.8, abs=1e-3)
    assert sparsity({name: weight != 0 for name, weight in weights.items()}) == sparsity(masks)
