"""The search for tickets: levels as they should be, files that every command takes, and no level done twice."""

from __future__ import annotations

import copy
import json
import random
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir as program
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.tickets import sparsity
from elastic_ir.training.data import Split, load_data
from elastic_ir.training.fit import fit
from elastic_ir.training.pruning import fingerprints, imp
from elastic_ir.training.pruning.imp import Level, find_tickets, next_masks
from elastic_ir.training.settings import Pruning, Training
from tests.training.nets import QUICK, TWO_LEVELS, digits, perceptron

DATA = digits()
SHORT = Training(steps=4, batch_size=64)


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


@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on_behind_its_last_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = search(tmp_path / "whole")
    calls = 0

    def stopping(*args: object, **named: object) -> float:
        nonlocal calls
        calls += "masks" in named  # a level's training, not the way to the rewind point
        if calls == 3:
            raise KeyboardInterrupt
        return fit(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(imp, "fit", stopping)
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
    with pytest.raises(PlanError, match=r"with another pruning \(rewind was 5, now 6\); give another"):
        search(tmp_path, Pruning(levels=0, rewind=6))
    with pytest.raises(PlanError, match=r"with another training \(steps was 40, now 41.*\); give"):
        find_tickets(perceptron(), DATA, Training(steps=41), Pruning(levels=0, rewind=5), tmp_path)
    with pytest.raises(PlanError, match="holds a search with another network"):
        find_tickets(perceptron(seed=1), DATA, QUICK, Pruning(levels=0, rewind=5), tmp_path)
    fewer = load_data("digits", limit=100)
    with pytest.raises(PlanError, match="holds a search with another data"):
        find_tickets(perceptron(), fewer, QUICK, Pruning(levels=0, rewind=5), tmp_path)


class Weighed:
    """A loss that is an object, with a setting."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, output: Tensor, labels: Tensor) -> Tensor:
        return self.weight * F.cross_entropy(output, labels)


class Margin(nn.MultiMarginLoss):
    """A loss that is a module, and says its settings in its repr no more than torch's do."""


def halved(output: Tensor, labels: Tensor, share: float = 0.5) -> Tensor:
    return share * F.cross_entropy(output, labels)


LOSSES: list[Any] = [
    None, halved, partial(halved, share=0.1), partial(halved, share=0.2), Weighed(1.0), Weighed(2.0),
    Margin(margin=1.0), Margin(margin=2.0), nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1),
    nn.CrossEntropyLoss(weight=torch.ones(10)), nn.CrossEntropyLoss(weight=torch.arange(10.0)),
]  # fmt: skip


def test_a_search_with_another_loss_is_refused(tmp_path: Path) -> None:
    told = [fingerprints.of_loss(loss) for loss in LOSSES]
    assert len(set(told)) == len(LOSSES), told
    assert told == [fingerprints.of_loss(copy.deepcopy(loss)) for loss in LOSSES]  # and each is known again
    assert not any(" at 0x" in one or "\n" in one for one in told)
    none = Pruning(levels=0, rewind=0)
    find_tickets(perceptron(), DATA, SHORT, none, tmp_path, loss=Weighed(1.0))
    with pytest.raises(
        PlanError,
        match=r"another loss \(was tests\..*\.test_imp\.Weighed weight=1\.0, now .* weight=2\.0\); give another",
    ):
        find_tickets(perceptron(), DATA, SHORT, none, tmp_path, loss=Weighed(2.0))
    with pytest.raises(PlanError, match="holds a search with another loss"):
        find_tickets(perceptron(), DATA, SHORT, none, tmp_path)
    assert len(find_tickets(perceptron(), DATA, SHORT, none, tmp_path, loss=Weighed(1.0))) == 1


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_search_with_other_images_is_refused(tmp_path: Path, part: str) -> None:
    """One pixel of one image is enough; the labels are the same."""
    none = Pruning(levels=0, rewind=0)
    find_tickets(perceptron(), DATA, SHORT, none, tmp_path)
    split: Split = getattr(DATA, part)
    assert split.images is not None
    images = split.images.clone()
    images[7, 0, 3, 3] += 1
    changed: dict[str, Any] = {part: Split(images, split.labels)}
    with pytest.raises(PlanError, match=r"holds a search with another (data .* and another )?set of images"):
        find_tickets(perceptron(), replace(DATA, **changed), SHORT, none, tmp_path)
    assert len(find_tickets(perceptron(), DATA, SHORT, none, tmp_path)) == 1


class Streamed(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images that are augmented by torch's, Python's and numpy's dice, or by dice of its own."""

    def __init__(self, kind: str, count: int = 40, own: bool = False) -> None:
        self.kind, self.count, self.seen = kind, count, 0
        self.own = torch.Generator().manual_seed(torch.seed()) if own else None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        self.seen += 1
        moved = torch.rand((), generator=self.own).item() + random.random() + np.random.rand()
        return torch.full((1, 8, 8), ord(self.kind) + place + moved), place % 10


def test_streamed_images_are_known_by_a_few(tmp_path: Path) -> None:
    def stream(kind: str, **options: Any) -> Split:
        return Split(None, None, Streamed(kind, **options))

    same = stream("a")
    draws = []
    for look in (False, True):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        told = fingerprints.of_images(stream("a")) if look else ""
        draws.append((told, torch.rand(()).item(), random.random(), np.random.rand()))
    assert draws[0][1:] == draws[1][1:]  # the caller's dice are left as they were
    assert fingerprints.of_images(same) == draws[1][0]
    assert same.dataset.seen == 10  # two looks at five of them
    assert fingerprints.of_images(same) != fingerprints.of_images(stream("b"))
    own = fingerprints.of_images(stream("a", own=True))
    assert own == fingerprints.of_images(stream("a", own=True)) != fingerprints.of_images(same)
    claim = (tmp_path, perceptron(), replace(DATA, train=same), QUICK, TWO_LEVELS, 0, None)
    imp._claim(*claim)
    (tmp_path / "level00.json").write_text("{}")
    imp._claim(*claim)
    fewer = replace(DATA, train=stream("a", count=39))
    with pytest.raises(PlanError, match="holds a search with another data"):
        imp._claim(tmp_path, perceptron(), fewer, QUICK, TWO_LEVELS, 0, None)
    other = replace(DATA, train=stream("b"))
    with pytest.raises(PlanError, match="holds a search with another set of images"):
        imp._claim(tmp_path, perceptron(), other, QUICK, TWO_LEVELS, 0, None)


def test_a_folder_of_an_earlier_search_is_told(tmp_path: Path) -> None:
    """Searches once noted neither images nor loss; whether they are this one's, nobody can say."""
    claim = (tmp_path, perceptron(), DATA, QUICK, TWO_LEVELS, 0, None)
    imp._claim(*claim)
    (tmp_path / "level00.json").write_text("{}")
    noted = json.loads((tmp_path / "search.json").read_text())
    del noted["set of images"], noted["loss"]
    (tmp_path / "search.json").write_text(json.dumps(noted))
    with pytest.raises(
        PlanError,
        match="holds an earlier search, which does not record its set of images and loss; give another",
    ):
        imp._claim(*claim)
    (tmp_path / "search.json").write_text("[1]")
    with pytest.raises(SourceError, match=r"search\.json is damaged: it holds no mapping"):
        imp._claim(*claim)
    (tmp_path / "level00.json").unlink()  # without a level there is nothing to lose
    imp._claim(*claim)
    assert "loss" in json.loads((tmp_path / "search.json").read_text())


def find(*arguments: object, factory: str = "tests.training.nets:Perceptron", steps: int = 6) -> Result:
    fixed = ["lottery", "find", factory, "--steps", str(steps), "--levels", "0", "--batch-size", "32"]
    return CliRunner().invoke(program, [*fixed, *map(str, arguments)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--rewind", "70"], "a training of 6 steps cannot be rewound to step 70"),
        (["--leave-out", "hedd"], "'hedd', to be left out, is neither a prunable weight"),
        (["--data", "tests.training.nets:pair"], "stem has a weight of 16x64 and got 2x16; "),
    ],
)
def test_a_search_that_is_refused_leaves_its_folder_alone(
    tmp_path: Path, wrong: list[str], message: str
) -> None:
    out = tmp_path / "tickets"
    refused = find("-o", out, *wrong)
    assert refused.exit_code == 1 and message in refused.output, refused.output
    assert refused.output.count("\n") == 1 and not out.exists()


def test_a_search_without_a_finished_level_gives_way(tmp_path: Path) -> None:
    """What it has left is not taken for the new one's."""
    none = Pruning(levels=0, rewind=1)
    find_tickets(perceptron(), DATA, SHORT, none, tmp_path / "clean")
    find_tickets(perceptron(), DATA, replace(SHORT, lr=0.01), none, tmp_path / "used")
    (tmp_path / "used" / "level00.json").unlink()
    find_tickets(perceptron(), DATA, SHORT, none, str(tmp_path / "used"))  # a folder may be text
    one, two = (torch.load(tmp_path / name / "rewind.pt") for name in ("clean", "used"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_search_whose_folder_was_taken_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(*_: object, **__: object) -> tuple[float, float]:
        (tmp_path / "search.json").write_text("{}")
        return 0.0, 0.0

    monkeypatch.setattr(imp, "train_level", take)
    with pytest.raises(PlanError, match="was taken by another search meanwhile"):
        find_tickets(perceptron(), DATA, SHORT, Pruning(levels=0), tmp_path)
    assert not (tmp_path / "level00.json").exists()


@pytest.mark.slow
def test_the_search_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "lottery.md").read_text("utf-8")
    (script,) = [
        code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "find_tickets" in code
    ]
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    graph = eir.load(tmp_path / "my-tickets" / "level02.pt")
    assert graph.sparsity() == pytest.approx(0.36, abs=1e-3)


def test_debug_and_interrupts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("by chance")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(imp, "train_level", fail)
    assert "run again with --debug" in find("-o", tmp_path).output
    assert find("-o", tmp_path, "--debug").exception is error
    for command in ("run", "status", "report"):
        study = [command, str(tmp_path / "absent.yaml"), "--debug", "--store", str(tmp_path)]
        assert isinstance(CliRunner().invoke(program, ["lottery", *study]).exception, SourceError)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(imp, "train_level", interrupt)
    stopped = find("-o", tmp_path)
    assert stopped.exit_code == 130 and stopped.stderr == "interrupted; run the same command to go on\n"


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
