"""Where each method's training starts: the weights and masks of the rewind point, and the user's own loss."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.analysis.pruning.flops import dpf_step, forward_cost, scoring_cost
from elastic_ir.tickets import magnitude_masks, sparsity
from elastic_ir.training.callbacks import save_state
from elastic_ir.training.fit import fit
from elastic_ir.training.pruning.imp import save_ticket
from elastic_ir.training.settings import Training
from elastic_ir.training.studies.methods import Start, copies_in, of_method, transformed
from elastic_ir.training.studies.work import Work
from tests.training.nets import digits, perceptron

DATA = digits()
TRAINING = Training(steps=8, batch_size=32)


def their_loss(output: Tensor, labels: Tensor) -> Tensor:
    """Somebody's own loss."""
    return nn.functional.multi_margin_loss(output, labels)


def start(
    folder: Path, method: str, *, source: int = 2, target: int = 3, leave_out: tuple[str, ...] = (), **options: Any
) -> Start:  # fmt: skip
    """The start of a method on a perceptron of so many blocks, with a ticket of another one as its source."""
    donor, own = perceptron(1, source), perceptron(2, target)
    for name, network in (("source", donor), ("ticket", own)):
        (folder / name).mkdir(exist_ok=True)
        save_state(network.state_dict(), folder / name / "state.pt")
        masks = magnitude_masks(network, 0.6, leave_out)
        save_ticket(network, network.state_dict(), masks, DATA, folder / name / "ticket.pt")
    needs = {"source": folder / "source", "source_rewind": folder / "source", "ticket": folder / "ticket"}
    given = {
        "method": method, "seed": 0, "rewind": 2, "options": options, "leave_out": list(leave_out),
        "source": {"factory": "tests.training.nets:Perceptron", "blocks": source},
        "network": {"factory": "tests.training.nets:Perceptron", "blocks": target},
    }  # fmt: skip
    work = Work(given, needs)
    work.network, work.data, work.training, work.loss = own, DATA, TRAINING, their_loss
    return of_method(work)


@pytest.mark.everyday(4)
@pytest.mark.parametrize(
    "method", ["imp", "dense", "transform", "hybrid", "magnitude", "random", "reinit", "snip", "rigl", "dpf"]
)
def test_every_method_trains_by_the_loss_that_the_study_names(tmp_path: Path, method: str) -> None:
    assert start(tmp_path, method).loss is their_loss


@pytest.mark.slow
def test_a_transformed_ticket_has_the_weights_and_masks_of_its_source(tmp_path: Path) -> None:
    found = start(tmp_path, "transform")
    donor = perceptron(1, 2)
    masks = magnitude_masks(donor, 0.6)
    state = found.network.state_dict()
    for mine, theirs in (("stem", "stem"), ("blocks.1.fc1", "blocks.1.fc1"), ("head", "head")):
        assert torch.equal(state[f"{mine}.weight"], donor.get_parameter(f"{theirs}.weight"))
        assert torch.equal(found.masks[f"{mine}.weight"], masks[f"{theirs}.weight"])
    assert len(found.masks) == len(masks) + 2


@pytest.mark.slow
def test_permuted_copies_keep_their_sparsity_and_leave_the_others_alone(tmp_path: Path) -> None:
    plain, mixed = (start(tmp_path, "transform", permute_copies=choice).masks for choice in (False, True))
    different = {name for name, mask in plain.items() if not torch.equal(mask, mixed[name])}
    graph = transformed(
        eir.trace(perceptron(1, 2), (torch.zeros(1, *DATA.shape),)), perceptron(2, 3), DATA, {}
    )
    assert different == {name for name in copies_in(graph) if name in plain} and len(different) == 2
    assert all(plain[name].sum() == mixed[name].sum() for name in different)


@pytest.mark.slow
def test_what_a_transformed_ticket_is_compared_with(tmp_path: Path) -> None:
    """Section 4.1: its masks over other weights, its weights under random masks, and neither."""
    plain = start(tmp_path, "transform")
    new = start(tmp_path, "transform", new_weights=True)
    mixed = start(tmp_path, "transform", permute_masks=True)
    neither = start(tmp_path, "transform", new_weights=True, permute_masks=True)
    weights = {name for name in plain.masks if plain.network.get_parameter(name).std() > 0}
    for name in weights:
        own = plain.network.get_parameter(name)
        assert torch.equal(mixed.network.get_parameter(name), own)
        assert not torch.equal(new.network.get_parameter(name), own)
        assert torch.equal(new.network.get_parameter(name), neither.network.get_parameter(name))
        assert torch.equal(new.masks[name], plain.masks[name])
        assert not torch.equal(mixed.masks[name], plain.masks[name])
        assert mixed.masks[name].sum() == plain.masks[name].sum() and torch.equal(
            mixed.masks[name], neither.masks[name]
        )
    copies = [new.network.get_parameter(f"blocks.{number}.fc1.weight") for number in range(3)]
    assert not any(torch.equal(one, other) for one, other in combinations(copies, 2))


def test_a_hybrid_leaves_out_what_the_search_left_out(tmp_path: Path) -> None:
    found = start(tmp_path, "hybrid", leave_out=("head",))
    plain = start(tmp_path, "transform", leave_out=("head",))
    assert "head.weight" not in found.masks and set(found.masks) == set(plain.masks)
    assert sparsity(found.masks) == pytest.approx(sparsity(plain.masks), abs=1e-4)


@pytest.mark.parametrize(("method", "counted"), [("hybrid", True), ("snip", True), ("transform", False)])
def test_scores_are_counted_where_weights_are_scored(tmp_path: Path, method: str, counted: bool) -> None:
    found = start(tmp_path, method)
    dense = forward_cost(found.network, torch.zeros(1, *DATA.shape)).dense
    assert found.scoring == (scoring_cost("snip", dense, 8 * TRAINING.batch_size) if counted else 0)


def test_the_hybrid_of_a_deeper_source_has_no_extra_blocks(tmp_path: Path) -> None:
    hybrid, plain = (start(tmp_path, method, source=3, target=2) for method in ("hybrid", "transform"))
    assert set(hybrid.masks) == set(plain.masks)
    assert all(torch.equal(mask, plain.masks[name]) for name, mask in hybrid.masks.items())


@pytest.mark.slow
def test_dpf_costs_more_while_it_is_still_pruning(tmp_path: Path) -> None:
    found = start(tmp_path, "dpf")
    fit(found.network, DATA, TRAINING, callbacks=found.callbacks)
    cost = forward_cost(found.network, torch.zeros(1, *DATA.shape))
    pruned = dpf_step(cost.sparse(found.final_masks()), cost.dense)
    assert 1.02 * pruned < found.flops(DATA, 10) / 10 < 3 * cost.dense
