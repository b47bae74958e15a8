"""The uniform entry point: exact totals, what a method keeps of a reference, and what it asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastic_ir.analysis.pruning.scores import snip_scores
from elastic_ir.errors import MaskError
from elastic_ir.tickets import magnitude_masks, sparsity
from elastic_ir.training.pruning.baselines import METHODS, Baseline, prune, reinitialise
from elastic_ir.zoo import cifar_resnet


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return cifar_resnet(8, width=4)


def data() -> list[tuple[Tensor, Tensor]]:
    dice = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5, 3, 8, 8, generator=dice), torch.randint(10, (5,), generator=dice)) for _ in range(2)
    ]


def ask(method: Baseline, model: nn.Module, share: float | None, **options: Any) -> dict[str, Tensor]:
    options.setdefault("batches", data())
    options.setdefault("loss", F.cross_entropy)
    return prune(method, model, share, iterations=options.pop("iterations", 10), **options)


@pytest.mark.parametrize("share", [0.0, 0.36, 0.8926, 0.99, 1.0])
@pytest.mark.parametrize("method", ["magnitude", "snip", "grasp", "synflow"])
def test_the_total_is_met_to_the_weight(method: Baseline, share: float) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = ask(method, model, share)
    assert list(masks) == list(magnitude_masks(model, 0.5))
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(share * total)
    assert all(m.dtype == torch.bool and m.shape == model.get_parameter(n).shape for n, m in masks.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    again = ask(method, model, share)
    assert all(torch.equal(mask, again[name]) for name, mask in masks.items())


@pytest.mark.parametrize("method", ["magnitude", "snip", "grasp", "synflow"])
def test_what_is_left_out_gets_no_mask_and_does_not_count(method: Baseline) -> None:
    model = network()
    masks = ask(method, model, 0.8, leave_out=("conv1", "fc"))
    assert set(magnitude_masks(model, 0.8)) - set(masks) == {"conv1.weight", "fc.weight"}
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(0.8 * total)


def test_methods_choose_differently() -> None:
    model = network()
    found = {name: ask(name, model, 0.8) for name in ("magnitude", "snip", "grasp", "synflow")}
    names = list(found)
    for one in names:
        for other in names[names.index(one) + 1 :]:
            assert any(not torch.equal(mask, found[other][key]) for key, mask in found[one].items())


def test_random_permutes_each_layer_s_mask() -> None:
    model = network()
    reference = magnitude_masks(model, 0.8)
    masks = prune("random", model, reference=reference)
    assert {n: int(m.sum()) for n, m in masks.items()} == {n: int(m.sum()) for n, m in reference.items()}
    assert any(not torch.equal(mask, reference[name]) for name, mask in masks.items())
    same, other = (
        prune("random", model, reference=reference),
        prune("random", model, reference=reference, seed=1),
    )
    assert all(torch.equal(mask, same[name]) for name, mask in masks.items())
    assert any(not torch.equal(mask, other[name]) for name, mask in masks.items())
    # as many in common as two independent draws of each layer's density have
    common = sum(int((mask & reference[name]).sum()) for name, mask in masks.items())
    expected = sum(int(mask.sum()) ** 2 / mask.numel() for mask in masks.values())
    assert common == pytest.approx(expected, rel=0.2)


def test_reinit_keeps_the_masks_and_draws_the_weights_that_a_factory_would() -> None:
    model = network()
    with torch.no_grad():
        model.get_buffer("bn1.running_mean").add_(3)
    reference = magnitude_masks(model, 0.8)
    random = torch.get_rng_state()
    masks = prune("reinit", model, 0.8, reference=reference, factory=lambda: cifar_resnet(8, width=4), seed=5)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(mask, reference[name]) for name, mask in masks.items())
    expected = network(5).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_reinit_without_a_factory_resets_each_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.MultiheadAttention(8, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reinitialise(model, seed=3)
    one = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not torch.equal(one["0.weight"], before["0.weight"])
    assert not torch.equal(one["2.in_proj_weight"], before["2.in_proj_weight"])
    assert one["0.weight"].abs().max() <= 8**-0.5  # the uniform bound of nn.Linear
    reinitialise(model, seed=3)
    assert all(torch.equal(tensor, one[name]) for name, tensor in model.state_dict().items())


def test_reinit_refuses_what_it_cannot_reset_and_changes_nothing() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.scale = nn.Parameter(torch.ones(3))

    model = Scaled()
    before = model.linear.weight.detach().clone()
    with pytest.raises(
        MaskError, match=r"the network itself \(Scaled\) has parameters and no reset_parameters"
    ):
        reinitialise(model)
    with pytest.raises(MaskError, match="another network: 'scale'"):
        reinitialise(model, lambda: nn.Sequential(nn.Linear(3, 3)))
    assert torch.equal(model.linear.weight, before)


def test_hybrid_keeps_the_given_masks_and_meets_the_total_with_snip() -> None:
    model = network()
    everything = magnitude_masks(model, 0.7)
    given = {name: mask for name, mask in everything.items() if not name.startswith("layer3.")}
    masks = ask("hybrid", model, 0.8, reference=given)
    assert list(masks) == list(everything)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(0.8 * total)
    assert all(torch.equal(masks[name], mask) for name, mask in given.items())
    scores = snip_scores(model, data(), F.cross_entropy, masks=given)
    extra = [name for name in masks if name not in given]
    kept = torch.cat([scores[name][masks[name]] for name in extra])
    gone = torch.cat([scores[name][~masks[name]] for name in extra])
    assert gone.max() <= kept.min()
    unmasked = snip_scores(model, data(), F.cross_entropy)
    assert any(
        not torch.equal(unmasked[name], scores[name]) for name in extra
    )  # scored in the pruned network


def test_a_total_that_hybrid_cannot_meet_is_refused_with_the_range() -> None:
    model = network()
    given = {name: m for name, m in magnitude_masks(model, 0.9).items() if not name.startswith("layer1.")}
    with pytest.raises(MaskError, match=r"can be 0\.8\d+ to 0\.9\d+"):
        ask("hybrid", model, 0.5, reference=given)
    with pytest.raises(MaskError, match="none is left for SNIP"):
        ask("hybrid", model, 0.9, reference=magnitude_masks(model, 0.9))


@pytest.mark.parametrize(
    ("method", "missing"),
    [(name, need) for name, method in METHODS.items() for need in method.needs],
)
def test_what_a_method_needs_is_said_in_one_line(method: Baseline, missing: str) -> None:
    model = network()
    options: dict[str, Any] = {
        "sparsity": 0.5,
        "batches": data(),
        "loss": F.cross_entropy,
        "reference": magnitude_masks(model, 0.5),
        "input_shape": (3, 8, 8),
    }
    options[missing] = None
    if missing == "input_shape":
        options["batches"] = None  # or it would be read off
    with pytest.raises(MaskError, match=f"^pruning by '{method}' needs '{missing}': [^\n]+$"):
        prune(method, model, options.pop("sparsity"), **options)


def test_other_errors() -> None:
    model = network()
    with pytest.raises(MaskError, match=r"method is magnitude, random, .* or hybrid, not 'snap'"):
        prune("snap", model, 0.5)  # type: ignore[arg-type]
    with pytest.raises(MaskError, match="between 0 and 1"):
        ask("snip", model, 1.5)
    with pytest.raises(MaskError, match=r"sparsity of 0\.8000, not 0\.5"):
        prune("random", model, 0.5, reference=magnitude_masks(model, 0.8))
    with pytest.raises(MaskError, match="neither a prunable weight nor a module"):
        ask("synflow", model, 0.5, leave_out="nothing")


def test_a_batch_s_shape_serves_synflow_and_data_does_not_matter() -> None:
    model = network()
    found = prune("synflow", model, 0.9, batches=data(), iterations=5)
    assert sparsity(found) == pytest.approx(0.9, abs=1e-3)
    same = prune("synflow", model, 0.9, input_shape=(3, 8, 8), iterations=5)
    assert all(torch.equal(mask, same[name]) for name, mask in found.items())
