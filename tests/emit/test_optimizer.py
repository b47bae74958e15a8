"""Optimizer state through clones and deletions: training goes on as if the network had always been so deep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Graph
from tests.emit.nets import IMAGE, image, network, some_masks

Optimizer = torch.optim.Optimizer


def sgd(groups: Any) -> Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def adam(groups: Any) -> Optimizer:
    return torch.optim.AdamW(groups, lr=1e-3, amsgrad=True)


MAKERS = pytest.mark.parametrize("make", [sgd, adam])


def groups_of(model: nn.Module, several: bool) -> list[dict[str, Any]]:
    """All parameters in one group, or matrices and the rest apart with settings of their own."""
    parameters = list(model.parameters())
    if not several:
        return [{"params": parameters}]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "lr": 0.5},
    ]


def names_of(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """The parameters' names in the optimizer's order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def step(model: nn.Module, optimizer: Optimizer) -> None:
    model.train()
    optimizer.zero_grad()
    model(image()).square().mean().backward()
    optimizer.step()


def trained(make: Any, several: bool) -> tuple[nn.Module, Optimizer, Graph]:
    model = network()
    optimizer = make(groups_of(model, several))
    for _ in range(2):
        step(model, optimizer)
    return model, optimizer, eir.trace(model, input_shape=IMAGE)


def state_by_name(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    return {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}


@MAKERS
@pytest.mark.parametrize("several", [False, True])
def test_clones_get_moments_of_their_own(make: Any, several: bool) -> None:
    model, optimizer, graph = trained(make, several)
    deeper = eir.stretch(graph, to_depth=26)
    state = deeper.remap_optimizer_state(optimizer.state_dict(), names_of(model, optimizer))
    made = deeper.to_module()
    fresh = make(groups_of(made, several))
    fresh.load_state_dict(state)
    before, after = state_by_name(model, optimizer), state_by_name(made, fresh)
    assert len(after) > len(before)
    for name, moments in after.items():
        source = before[deeper.lineage()[name]]
        assert moments.keys() == source.keys()
        for key, value in moments.items():
            assert torch.equal(value, source[key]), (name, key)
    tensors = [v.data_ptr() for moments in after.values() for v in moments.values() if v.ndim]
    tensors += [v.data_ptr() for moments in before.values() for v in moments.values() if v.ndim]
    assert len(set(tensors)) == len(tensors)
    for ours, theirs in zip(fresh.param_groups, optimizer.param_groups, strict=True):
        assert {k: v for k, v in ours.items() if k != "params"} == {
            k: v for k, v in theirs.items() if k != "params"
        }
    step(made, fresh)
    assert all(torch.isfinite(p).all() for p in made.parameters())


@pytest.mark.everyday(1)
@MAKERS
@pytest.mark.parametrize("several", [False, True])
def test_squeezed_back_training_goes_on_unchanged(make: Any, several: bool) -> None:
    model, optimizer, graph = trained(make, several)
    names = names_of(model, optimizer)
    deeper = eir.stretch(graph, to_depth=26)
    state = deeper.remap_optimizer_state(optimizer.state_dict(), names)
    middle = deeper.to_module()
    held = make(groups_of(middle, several))
    held.load_state_dict(state)
    back = eir.squeeze(eir.trace(middle, input_shape=IMAGE), to_depth=14)
    again = back.remap_optimizer_state(held.state_dict(), names_of(middle, held))
    made = back.to_module()
    fresh = make(groups_of(made, several))
    fresh.load_state_dict(again)
    step(made, fresh)
    step(model, optimizer)
    for (name, ours), theirs in zip(made.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@MAKERS
def test_moments_of_pruned_weights_are_zero(make: Any) -> None:
    model, optimizer, _ = trained(make, False)
    graph = eir.stretch(eir.trace(model, masks=some_masks(model), input_shape=IMAGE), to_depth=20)
    state = graph.remap_optimizer_state(optimizer.state_dict(), names_of(model, optimizer))
    made = graph.to_module()
    fresh = make(made.parameters())
    fresh.load_state_dict(state)
    masks = graph.masks()
    for name, moments in state_by_name(made, fresh).items():
        for key, value in moments.items():
            if name in masks and value.ndim:
                assert not value[masks[name] == 0].any(), (name, key)
                assert value[masks[name] == 1].any(), (name, key)


def test_an_optimizer_before_its_first_step() -> None:
    model = network()
    optimizer = sgd(model.parameters())
    deeper = eir.stretch(eir.trace(model, input_shape=IMAGE), to_depth=20)
    state = deeper.remap_optimizer_state(optimizer.state_dict(), names_of(model, optimizer))
    assert state["state"] == {}
    fresh = sgd(deeper.to_module().parameters())
    fresh.load_state_dict(state)
    assert fresh.param_groups[0]["momentum"] == 0.9


def test_a_part_of_the_parameters() -> None:
    """Fine-tuning: the optimizer holds the last stage alone."""
    model = network()
    chosen = [(n, p) for n, p in model.named_parameters() if n.startswith("layer3")]
    optimizer = sgd([p for _, p in chosen])
    step(model, optimizer)
    deeper = eir.stretch(eir.trace(model, input_shape=IMAGE), to_depth=20)
    state = deeper.remap_optimizer_state(optimizer.state_dict(), [n for n, _ in chosen])
    wanted = [n for n, _ in deeper.to_module().named_parameters() if n.startswith("layer3")]
    assert len(state["state"]) == len(state["param_groups"][0]["params"]) == len(wanted) > len(chosen)


def test_names_that_do_not_fit() -> None:
    model, optimizer, graph = trained(sgd, False)
    state, names = optimizer.state_dict(), names_of(model, optimizer)
    for given, message in (
        (names[:-1], f"the optimizer holds {len(names)} parameters, {len(names) - 1} names are given"),
        (
            [names[0], *names[:-1]],
            "a parameter name is given twice; tied parameters occur once in an optimizer",
        ),
        (
            ["nothing", *names[1:]],
            "'nothing' is not a parameter of the source network, which is the one that was traced or loaded; "
            "to start from a later one, trace its module",
        ),
    ):
        with pytest.raises(EmitError) as caught:
            graph.remap_optimizer_state(state, given)
        assert str(caught.value) == message
