"""RigL and DPF: what holds at every update, and that both learn the digits under their masks."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastic_ir.analysis.pruning.distributions import random_masks
from elastic_ir.errors import MaskError
from elastic_ir.tickets import magnitude_masks, sparsity
from elastic_ir.training.pruning.dynamic import DPF, RigL
from tests.training.digits import accuracy, batches, network, train


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, **options)


def alive(masks: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


def assert_dead(model: nn.Module, masks: dict[str, Tensor]) -> None:
    for name, mask in masks.items():
        assert not model.get_parameter(name)[~mask].count_nonzero(), name


def backward(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    F.cross_entropy(model(data[0]), data[1]).backward()  # type: ignore[no-untyped-call]


def momentum(optimizer: torch.optim.Optimizer, parameter: Tensor, key: str = "momentum_buffer") -> Tensor:
    found = optimizer.state[parameter][key]
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_rigl_update_by_update(kind: str) -> None:
    """Each update against a plain recount: counts per layer, smallest dropped, steepest grown, from zero."""
    model = network()
    optimizer = sgd(model) if kind == "sgd" else torch.optim.Adam(model.parameters(), weight_decay=1e-3)
    rigl = RigL(model, optimizer, random_masks(model, 0.8), 40, interval=5)
    counts = alive(rigl.masks)
    updates = 0
    for step, data in enumerate(batches(40), 1):
        optimizer.zero_grad()
        backward(model, data)
        before = rigl.masks
        weights = {name: model.get_parameter(name).detach().clone() for name in before}
        gradients = {name: model.get_parameter(name).grad.clone() for name in before}  # type: ignore[union-attr]
        other = model.get_parameter("7.bias").detach().clone()
        changed = rigl.before_step()
        assert changed == (step % 5 == 0 and step < 30)
        optimizer.step()
        assert alive(rigl.masks) == counts
        assert_dead(model, rigl.masks)
        if not changed:
            assert all(torch.equal(mask, before[name]) for name, mask in rigl.masks.items())
            continue
        updates += 1
        assert torch.equal(model.get_parameter("7.bias"), other)  # no step of the weights
        for name, after in rigl.masks.items():
            count = int(rigl.drop_fraction(step) * counts[name])
            smallest = (
                weights[name]
                .abs()
                .masked_fill(~before[name], torch.inf)
                .reshape(-1)
                .argsort(stable=True)[:count]
            )
            left = before[name].clone()
            left.view(-1)[smallest] = False
            assert (after & left).sum() == left.sum()  # what was not dropped is still alive
            grown = after & ~left
            assert grown.sum() == count
            slopes = gradients[name].abs()
            rest = ~after
            assert not count or slopes[grown].min() >= slopes[rest].max()
            new = after & ~before[name]
            weight = model.get_parameter(name)
            assert not weight[new].count_nonzero()
            for key in ("momentum_buffer",) if kind == "sgd" else ("exp_avg", "exp_avg_sq"):
                assert not momentum(optimizer, weight, key)[new].count_nonzero()
                assert not momentum(optimizer, weight, key)[~after].count_nonzero()
            assert torch.equal(weight[after & before[name]], weights[name][after & before[name]])
            assert rigl.history[-1].grown[name] == new.sum()
    assert updates == len(rigl.history) == 5
    assert sum(rigl.history[0].grown.values()) > 50


def test_grown_weights_learn() -> None:
    model = network()
    optimizer = sgd(model)
    rigl = RigL(model, optimizer, random_masks(model, 0.8), 100, interval=3)
    start = rigl.masks
    train(model, optimizer, 4, rigl.before_step)
    grown = rigl.masks["7.weight"] & ~start["7.weight"]
    assert grown.any()
    assert model.get_parameter("7.weight")[grown].count_nonzero() == grown.sum()


def test_the_drop_fraction_follows_the_cosine() -> None:
    model = network()
    rigl = RigL(model, sgd(model), random_masks(model, 0.5), 1000, drop_fraction=0.4, end=0.75)
    assert rigl.drop_fraction(0) == pytest.approx(0.4)
    assert rigl.drop_fraction(375) == pytest.approx(0.2)
    assert rigl.drop_fraction(250) == pytest.approx(0.2 * (1 + math.cos(math.pi / 3)))
    assert rigl.drop_fraction(750) == rigl.drop_fraction(999) == 0


def test_rigl_gives_dead_weights_no_momentum_between_updates() -> None:
    """The survivors train as under a fixed mask: the same weights as with plain enforcement."""
    from elastic_ir.tickets import enforce

    one, other = network(), network()
    masks = random_masks(one, 0.8)
    rigl = RigL(one, first := sgd(one), masks, 100, interval=50)
    second = sgd(other)
    enforce(other, second, masks)
    train(one, first, 6, rigl.before_step)
    train(other, second, 6, lambda: None)
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter, other.get_parameter(name), rtol=0, atol=0)


def test_rigl_waits_for_finite_gradients() -> None:
    model = network()
    optimizer = sgd(model)
    rigl = RigL(model, optimizer, random_masks(model, 0.8), 100, interval=2)
    for step, data in enumerate(batches(3), 1):
        optimizer.zero_grad()
        backward(model, data)
        if step == 2:
            model.get_parameter("7.weight").grad[0, 0] = torch.inf  # type: ignore[index]
            assert not rigl.before_step()
            optimizer.zero_grad()  # what a GradScaler does with such a step
        elif step == 3:
            assert rigl.before_step()
        else:
            assert not rigl.before_step()
            optimizer.step()


def test_rigl_goes_on_from_its_state() -> None:
    model = network()
    optimizer = sgd(model)
    rigl = RigL(model, optimizer, random_masks(model, 0.8), 30, interval=4)
    train(model, optimizer, 10, rigl.before_step, seed=1)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), rigl.state_dict()))
    train(model, optimizer, 10, rigl.before_step, seed=2)
    fresh = network(9)
    fresh.load_state_dict(saved[0])
    again = sgd(fresh)
    again.load_state_dict(saved[1])
    resumed = RigL(fresh, again, saved[2]["masks"], 30, interval=4)
    resumed.load_state_dict(saved[2])
    train(fresh, again, 10, resumed.before_step, seed=2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name
    elsewhere = network()
    strange = RigL(elsewhere, sgd(elsewhere), random_masks(elsewhere, 0.8, seed=3), 30)
    with pytest.raises(MaskError, match="made with other masks than the state's"):
        strange.load_state_dict(saved[2])


def test_dense_layers_stay_dense() -> None:
    model = network()
    optimizer = sgd(model)
    masks = random_masks(model, 0.8)
    masks["0.weight"][:] = True
    rigl = RigL(model, optimizer, masks, 20, interval=2)
    train(model, optimizer, 10, rigl.before_step)
    assert rigl.masks["0.weight"].all()
    assert len(rigl.history) == 5
    assert all(update.grown["0.weight"] == update.dropped["0.weight"] == 0 for update in rigl.history)


def test_dpf_step_by_step() -> None:
    """Against the algorithm written out: dense weights moved by gradients that were taken at the pruned ones."""
    model, twin = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dpf = DPF(model, optimizer, 0.9, 24, interval=4)
    names = list(magnitude_masks(model, 0.5))
    dense = {name: parameter.detach().clone() for name, parameter in twin.named_parameters()}
    masks = {name: torch.ones_like(dense[name], dtype=torch.bool) for name in names}
    for step, data in enumerate(batches(24), 1):
        optimizer.zero_grad()
        backward(model, data)
        dpf.before_step()
        optimizer.step()
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                parameter.copy_(dense[name] * masks.get(name, 1))
        twin.zero_grad()
        backward(twin, data)
        for name, parameter in twin.named_parameters():
            dense[name] -= 0.1 * parameter.grad  # type: ignore[operator]
        if step % 4 == 0:
            share = 0.9 - 0.9 * (1 - min(1, step / 12)) ** 3
            flat = torch.cat([dense[name].abs().reshape(-1) for name in names])
            cut = flat.sort().values[round(share * len(flat)) - 1]
            masks = {name: dense[name].abs() > cut for name in names}
        assert all(torch.equal(mask, masks[name]) for name, mask in dpf.masks.items())
        assert_dead(model, dpf.masks)
        for name, weight in dpf.dense.items():
            torch.testing.assert_close(weight, dense[name], rtol=0, atol=1e-6)
    assert sparsity(dpf.masks) == pytest.approx(0.9, abs=1e-3)


def test_dpf_s_sparsity_is_cubic() -> None:
    model = network()
    dpf = DPF(model, sgd(model), 0.9, 1000, initial=0.1, start=0.1, end=0.6)
    assert sparsity(dpf.masks) == pytest.approx(0.1, abs=1e-3)
    assert dpf.sparsity_at(0) == dpf.sparsity_at(100) == pytest.approx(0.1)
    assert dpf.sparsity_at(350) == pytest.approx(0.9 - 0.8 / 8)
    assert dpf.sparsity_at(600) == dpf.sparsity_at(1000) == 0.9


def test_pruned_weights_learn_in_dpf_and_come_back() -> None:
    model = network()
    optimizer = sgd(model)
    dpf = DPF(model, optimizer, 0.9, 60, interval=4, end=0.1)
    train(model, optimizer, 10, dpf.before_step)
    dense, masks = dpf.dense, dpf.masks
    train(model, optimizer, 2, dpf.before_step)
    moved = sum(int((weight != dense[name])[~masks[name]].sum()) for name, weight in dpf.dense.items())
    assert moved > 0.9 * sum(int((~mask).sum()) for mask in masks.values())
    train(model, optimizer, 48, dpf.before_step)
    late = [update for update in dpf.history if update.step > 12]
    assert sum(sum(update.grown.values()) for update in late) > 20
    assert all(sum(update.grown.values()) == sum(update.dropped.values()) for update in late)


def test_dpf_reaches_the_wanted_sparsity_even_if_the_last_masks_did_not() -> None:
    model = network()
    optimizer = sgd(model)
    dpf = DPF(model, optimizer, 0.9, 10, interval=7, end=1.0)
    train(model, optimizer, 10, dpf.before_step)
    assert sparsity(dpf.masks) < 0.89
    dpf.finish()
    assert sparsity(dpf.masks) == pytest.approx(0.9, abs=1e-3)
    assert_dead(model, dpf.masks)
    optimizer.step()  # no hook is left that would complain
    assert not any(layer._forward_pre_hooks for layer in model)


def test_dpf_forward_after_a_step_that_never_came_is_pruned() -> None:
    model = network()
    optimizer = sgd(model)
    dpf = DPF(model, optimizer, 0.9, 20, interval=2, end=0.1)
    train(model, optimizer, 4, dpf.before_step)
    images, labels = next(iter(batches(1)))
    backward(model, (images, labels))
    model.eval()
    expected = model(images)
    dpf.before_step()
    assert model.get_parameter("7.weight")[~dpf.masks["7.weight"]].count_nonzero()
    assert torch.equal(model(images), expected)
    assert_dead(model, dpf.masks)


def test_a_copy_of_the_module_takes_no_dpf_along() -> None:
    model = network()
    dpf = DPF(model, sgd(model), 0.9, 20)
    twin = copy.deepcopy(model)
    dpf.before_step()
    with torch.no_grad():
        twin.get_parameter("7.weight").fill_(1)
        twin(torch.randn(2, 1, 8, 8))
    assert twin.get_parameter("7.weight").eq(1).all()
    assert dpf._pending


def test_dpf_goes_on_from_its_state() -> None:
    model = network()
    optimizer = sgd(model)
    dpf = DPF(model, optimizer, 0.9, 30, interval=4)
    train(model, optimizer, 10, dpf.before_step, seed=1)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), dpf.state_dict()))
    train(model, optimizer, 10, dpf.before_step, seed=2)
    fresh = network(9)
    fresh.load_state_dict(saved[0])
    again = sgd(fresh)
    again.load_state_dict(saved[1])
    resumed = DPF(fresh, again, 0.9, 30, interval=4)
    resumed.load_state_dict(saved[2])
    train(fresh, again, 10, resumed.before_step, seed=2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name


def test_dpf_refuses_weights_from_elsewhere_and_steps_without_notice() -> None:
    model = network()
    optimizer = sgd(model)
    dpf = DPF(model, optimizer, 0.9, 20)
    backward(model, next(iter(batches(1))))
    with pytest.raises(MaskError, match="call before_step"):
        optimizer.step()
    model.load_state_dict(network(1).state_dict())
    with pytest.raises(MaskError, match=r"'0\.weight' was set from outside"):
        dpf.before_step()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rigl", "dpf"])
def test_digits_are_learned(method: str) -> None:
    """At 90 % sparsity, in 150 steps of 64 images; one seed gives one network."""

    def run(seed: int, steps: int) -> tuple[nn.Module, dict[str, Tensor]]:
        model = network(seed)
        optimizer = sgd(model)
        if method == "rigl":
            trained: RigL | DPF = RigL(
                model, optimizer, random_masks(model, 0.9, seed=seed), 200, interval=10
            )
        else:
            trained = DPF(model, optimizer, 0.9, 150, interval=8)
        train(model, optimizer, steps, trained.before_step, seed=seed)
        trained.finish()
        return model, trained.masks

    model, masks = run(0, 150)
    assert sparsity(masks) == pytest.approx(0.9, abs=1e-3)
    assert_dead(model, masks)
    assert accuracy(model) > 0.93
    one, same, other = run(0, 25)[0], run(0, 25)[0], run(1, 25)[0]
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert not torch.equal(other.get_parameter("7.weight"), one.get_parameter("7.weight"))


def test_errors() -> None:
    model = network()
    optimizer = sgd(model)
    masks = random_masks(model, 0.8)
    with pytest.raises(MaskError, match="interval is 0; it must be at least 1"):
        RigL(model, optimizer, masks, 10, interval=0)
    with pytest.raises(MaskError, match=r"drop_fraction is 1\.5, not between 0 and 1"):
        RigL(model, optimizer, masks, 10, drop_fraction=1.5)
    with pytest.raises(MaskError, match="fits no weight"):
        RigL(model, optimizer, {"nothing.weight": torch.ones(1)}, 10)
    head = torch.optim.SGD(model[7].parameters(), lr=0.1)
    with pytest.raises(MaskError, match="the optimizer does not hold it"):
        RigL(model, head, masks, 10)
    with pytest.raises(MaskError, match="the optimizer does not hold it"):
        DPF(model, head, 0.9, 10)
    with pytest.raises(MaskError, match=r"ramp ends at 0\.1, before it starts at 0\.5"):
        DPF(model, optimizer, 0.9, 10, start=0.5, end=0.1)
    with pytest.raises(MaskError, match="is above the final one"):
        DPF(model, optimizer, 0.3, 10, initial=0.5)
    rigl = RigL(model, optimizer, masks, 10, interval=1)
    with pytest.raises(MaskError, match="no gradient to grow by; call before_step"):
        rigl.before_step()
