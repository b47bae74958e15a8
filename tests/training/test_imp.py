"""The search for tickets: levels as they should be, files that every command takes, and no level done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir as program
from elastic_ir.errors import PlanError
from elastic_ir.tickets import sparsity
from elastic_ir.training import imp
from elastic_ir.training.data import load_data
from elastic_ir.training.imp import Level, find_tickets, next_masks
from elastic_ir.training.settings import Pruning, Training
from tests.training.nets import QUICK, TWO_LEVELS, digits, perceptron

DATA = digits()


def search(folder: Path, pruning: Pruning = TWO_LEVELS) -> list[Level]:
    return find_tickets(perceptron(), DATA, QUICK, pruning, folder)


def test_levels_prune_the_share_and_their_tickets_are_nested(tmp_path: Path) -> None:
    levels = search(tmp_path)
    assert [level.number for level in levels] == [0, 1, 2]
    assert [level.sparsity for level in levels] == pytest.approx([0, 0.5, 0.75], abs=1e-3)
    assert levels[0].accuracy > 0.8 and levels[2].accuracy > 0.6
    graphs = [eir.load(level.path) for level in levels]
    rewound = torch.load(tmp_path / "rewind.pt", weights_only=True)
    for graph, level in zip(graphs, levels, strict=True):
        assert graph.sparsity() == pytest.approx(level.sparsity)
        state, masks = graph.state_dict(), graph.masks()
        for name, tensor in rewound.items():
            assert torch.equal(state[name], tensor * masks.get(name, torch.ones(()))), name
        assert sparsity(masks) == pytest.approx(level.sparsity)
    one, two = graphs[1].masks(), graphs[2].masks()
    assert all((one[name] >= two[name]).all() for name in two) and any((one[n] > two[n]).any() for n in two)
    assert not torch.equal(rewound["head.weight"], perceptron().head.weight)  # step 5, not 0


def test_what_is_pruned_is_the_smallest_of_what_training_made() -> None:
    network = perceptron()
    pruned = next_masks(network, {}, Pruning(2, share=0.25), 1)
    kept = torch.cat([network.get_parameter(n)[m].abs() for n, m in pruned.items()])
    gone = torch.cat([network.get_parameter(n)[~m].abs() for n, m in pruned.items()])
    assert gone.max() <= kept.min() and sparsity(pruned) == pytest.approx(0.25, abs=1e-3)
    left_out = next_masks(network, {}, Pruning(2, share=0.25, leave_out=("head",)), 1)
    assert "head.weight" not in left_out and "stem.weight" in left_out


def test_a_search_that_was_stopped_goes_on_behind_its_last_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = search(tmp_path / "whole")
    real, calls = imp.train_ticket, 0

    def stopping(*args: object, **named: object) -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(imp, "train_ticket", stopping)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "parts")
    resumed = search(tmp_path / "parts")
    assert calls == 4  # three before, and only the level that was missing now
    assert [(level.sparsity, level.accuracy) for level in resumed] == [
        (level.sparsity, level.accuracy) for level in whole
    ]
    more = search(tmp_path / "parts", Pruning(levels=3, rewind=5, share=0.5))
    assert calls == 5 and more[3].sparsity == pytest.approx(0.875, abs=1e-3)


def test_another_search_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    search(tmp_path, Pruning(levels=0, rewind=5))
    with pytest.raises(PlanError, match="holds a search with another pruning"):
        search(tmp_path, Pruning(levels=0, rewind=6))
    with pytest.raises(PlanError, match="holds a search with another training"):
        find_tickets(perceptron(), DATA, Training(steps=41), Pruning(levels=0, rewind=5), tmp_path)
    with pytest.raises(PlanError, match="holds a search with another network"):
        find_tickets(perceptron(seed=1), DATA, QUICK, Pruning(levels=0, rewind=5), tmp_path)
    fewer = load_data("digits", limit=100)
    with pytest.raises(PlanError, match="holds a search with another data"):
        find_tickets(perceptron(), fewer, QUICK, Pruning(levels=0, rewind=5), tmp_path)


def test_rewinding_to_step_0_gives_the_initialization(tmp_path: Path) -> None:
    levels = search(tmp_path, Pruning(levels=1, rewind=0, share=0.5))
    graph = eir.load(levels[1].path)
    state, masks = graph.state_dict(), graph.masks()
    for name, tensor in perceptron().state_dict().items():
        assert torch.equal(tensor * masks.get(name, torch.ones(())), state[name]), name


def test_find_on_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "tickets"
    told = CliRunner().invoke(
        program,
        ["lottery", "find", "tests.training.nets:Perceptron", "--steps", "30", "--rewind", "3", "--levels", "1",
         "--share", "0.5", "--log", "csv", "-o", str(out)],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    assert "level  0: sparsity   0.0 %" in told.output and "level  1: sparsity  50.0 %" in told.output
    last = told.output.splitlines()[-2:]
    dense = json.loads((out / "level00.json").read_text())["accuracy"]
    assert [line.split(maxsplit=1) for line in last] == [
        ["tickets:", f"{out / 'levelNN.pt'}, NN from 00 (dense) to 01"],
        ["dense:", f"accuracy {100 * dense:.2f} %"],
    ]
    assert "best" not in told.output  # it would be chosen by what the test data say
    assert {path.name for path in (out / "logs").iterdir()} == {"rewind", "level00", "level01"}
    assert json.loads((out / "level01.json").read_text())["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert eir.stretch(eir.load(out / "level01.pt"), to_units=4).sparsity() > 0.4
