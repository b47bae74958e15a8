"""Data that are no labelled images: dtypes stay, what is random is drawn anew, and what is measured is told truly."""

from __future__ import annotations

import csv
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir as program
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.training import Pruning, Training, find_tickets
from elastic_ir.training.checks import check_fit
from elastic_ir.training.data import Data, Split
from elastic_ir.training.fit import accuracy, fit, mean_loss, measured
from elastic_ir.training.loader import BatchStream, batches_of
from elastic_ir.training.reports.csv import write_numbers
from elastic_ir.training.reports.plots import draw
from elastic_ir.training.reports.report import Cell, Findings, answers, collect, markdown
from elastic_ir.training.settings import Precision
from elastic_ir.training.studies.executors import InProcess
from elastic_ir.training.studies.run import run
from elastic_ir.training.studies.store import Store
from elastic_ir.training.studies.study import Study, runs
from elastic_ir.training.studies.study_file import read_study
from tests.training.kinds_of_data import HERE, Augmented, given, made

QUICK = Training(steps=60, batch_size=30, lr=0.1)
BCE, MSE = nn.BCEWithLogitsLoss(), nn.MSELoss()


@pytest.mark.parametrize(
    ("name", "inputs", "targets"),
    [
        ("flat", torch.float32, torch.float32), ("column", torch.float32, torch.float32),
        ("doubles", torch.float64, torch.float64), ("tokens", torch.int64, torch.int32),
        ("masks", torch.float32, torch.int64), ("pixels", torch.uint8, torch.int64),
        ("tensor_datasets", torch.float32, torch.float32), ("listed", torch.float32, torch.int64),
    ],
)  # fmt: skip
def test_dtypes_stay(name: str, inputs: torch.dtype, targets: torch.dtype) -> None:
    data = given(name)
    for split in (data.train, data.test):
        assert split.images.dtype == inputs and split.labels.dtype == targets
    x, y = next(iter(BatchStream(data, 4, seed=0, stop=1, dtype=torch.float32)))
    assert x.dtype == (torch.float32 if inputs.is_floating_point else inputs)
    assert y.dtype == (torch.float32 if targets.is_floating_point else targets)


def test_values_are_those_that_were_given() -> None:
    """Targets between 0 and 1 would all be 0 as whole numbers."""
    for name in ("flat", "column", "doubles", "several_labels"):
        data = given(name)
        assert len(data.train.labels.unique()) >= 2 and 0 < float(data.train.labels.mean()) < 1
    whole, part = given("tensor_datasets").train, given("tensor_datasets").test
    assert len(whole) == 120 and len(part) == 30
    assert all((whole.images == row).all(1).any() for row in part.images)


@pytest.mark.parametrize(
    ("name", "network", "loss", "bar"),
    [
        ("column", "line", MSE, 0.01), ("flat", "single", MSE, 0.01), ("doubles", "three", MSE, 0.02),
        ("several_labels", "three", BCE, 0.6), ("shares", "three", None, 1.0),
    ],
)  # fmt: skip
def test_what_is_no_class_is_trained_and_measured_by_its_loss(
    name: str, network: str, loss: nn.Module | None, bar: float
) -> None:
    data, trained = given(name), made(network)
    check_fit(trained, data, QUICK, loss)
    before = measured(trained, data.test, loss)
    fit(trained, data, QUICK, loss=loss)
    after = measured(trained, data.test, loss)
    assert after.measure == before.measure == "loss" and str(after) == f"loss {after.value:.4g}"
    assert after.value < bar < before.value
    with torch.no_grad():
        expected = (loss or nn.CrossEntropyLoss())(
            trained(data.test.images.float()), data.test.labels.float()
        )
    assert after.value == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(PlanError, match=r"an accuracy is of class numbers, and the targets are float"):
        accuracy(trained, data.test)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_token_ids_stay_whole_numbers(precision: Precision) -> None:
    data, network = given("tokens"), made("Reader")
    check_fit(network, data, QUICK, None)
    fit(network, data, Training(steps=80, batch_size=30, lr=0.3, precision=precision))
    found = measured(network, data.test)
    assert found.measure == "accuracy" and found.value > 0.9


def test_a_class_for_each_pixel() -> None:
    data, network = given("masks"), made("Painter")
    check_fit(network, data, QUICK, None)
    fit(network, data, QUICK)
    found = measured(network, data.test)
    with torch.no_grad():
        right = (network(data.test.images).argmax(1) == data.test.labels)[:, :-1]
    assert found.measure == "accuracy" and found.value == pytest.approx(float(right.float().mean()))
    assert 0.9 < found.value <= 1
    with pytest.raises(PlanError, match=r"augment moves .* and the targets of .* are 8x8 each"):
        check_fit(network, data, Training(steps=4, augment=True), None)


def test_whole_numbers_that_are_no_classes() -> None:
    data = given("counts")
    assert measured(made("line"), data.test, lambda out, y: ((out - y) ** 2).mean()).measure == "loss"
    beyond = Split(data.test.images, data.test.labels[:, 0])  # some are larger than there are outputs
    assert measured(made("three"), beyond, lambda out, y: (out.mean(1) - y).square().mean()).measure == "loss"


@pytest.mark.parametrize(
    ("name", "network", "loss", "message"),
    [
        ("flat", "line", MSE, r"are 2x1, its targets 2: MSELoss would compare every output with every target; "),
        ("flat", "line", None, r"are float32, 2 for a batch of two, which are neither numbers of classes nor shares"),
        ("column", "line", None, r"float32, 2x1 for a batch of two.*name a loss .*torch\.nn:MSELoss"),
        ("several_labels", "three", None, r"neither numbers of classes nor shares of them that add up to 1"),
        ("pixels", "Painter", None, r"2x1x8x8 of uint8 as .* body\.0 takes float32, as images\.float\(\) / 255 gives"),
        ("column", "Reader", MSE, r"embed takes token ids, int64; the data's function has to return that"),
    ],
)  # fmt: skip
def test_what_would_be_trained_wrong_is_refused(
    name: str, network: str, loss: nn.Module | None, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        check_fit(made(network), given(name), QUICK, loss)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("named", r"item 0 is a dict; expected a pair \(input, target\)"),
        ("boxes", r"the target of item 0 is a dict; expected one tensor, array or number"),
        ("two_inputs", r"the input of item 0 is a tuple; expected one tensor"),
        ("two_arrays", r"the array of inputs is a tuple; expected one tensor"),
    ],
)
def test_items_that_are_no_pairs_of_tensors_are_told(name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        given(name)


def drawn(data: Data, stop: int, start: int = 0, **how: int) -> list[Tensor]:
    return [x for x, _ in BatchStream(data, 4, seed=1, start=start, stop=stop, **how)]  # type: ignore[arg-type]


def by_item(batches: list[Tensor]) -> Tensor:
    """The rows of whole epochs, in the order of their numbers."""
    whole = torch.cat(batches)
    return whole[whole[:, -1].argsort()]


def test_augmentation_is_drawn_anew_each_epoch_and_the_same_every_time() -> None:
    data = given("augmented")
    assert data.train.images is None  # read, not held: it would be frozen
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    before = torch.rand(()).item(), random.random(), np.random.rand()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    batches = drawn(data, 6)
    assert (torch.rand(()).item(), random.random(), np.random.rand()) == before  # nobody else's dice move
    first, second = by_item(batches[:3]), by_item(batches[3:])
    assert torch.equal(first[:, -1], second[:, -1]) and (first[:, :3] != second[:, :3]).all()
    assert len(set(torch.cat(batches)[:, :3].flatten().tolist())) == 72  # no two draws are one
    assert all(map(torch.equal, batches, drawn(data, 6)))
    assert all(map(torch.equal, batches[4:], drawn(data, 6, start=4)))  # as a rewound training sees them
    halves = [drawn(data, 2, rank=rank, world=2) for rank in (0, 1)]
    assert torch.equal(batches[1][1::2], halves[1][1])
    other = torch.cat([x for x, _ in BatchStream(data, 4, seed=2, stop=3)])
    assert not set(other[:, 0].tolist()) & set(torch.cat(batches)[:, 0].tolist())


def test_worker_processes_draw_the_same() -> None:
    data = given("augmented")
    assert all(map(torch.equal, drawn(data, 6), drawn(data, 6, workers=2)))


def test_a_test_split_is_drawn_the_same_every_time() -> None:
    split = given("augmented").test
    one, two = (torch.cat([x for x, _ in batches_of(split, 3, "cpu")]) for _ in range(2))
    assert torch.equal(one, two) and len(one) == 4 and len(set(one[:, :3].flatten().tolist())) == 12


def test_trainings_on_augmented_data_are_equal_and_read_every_epoch() -> None:
    states = []
    for _ in range(2):
        data, network = given("augmented"), made("line")
        begun = data.train.dataset.reads
        fit(network, data, Training(steps=9, batch_size=4, lr=0.001), loss=MSE)
        assert (
            data.train.dataset.reads - begun == 37
        )  # three epochs of twelve, and the first one for its shape
        states.append(network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_our_augmentation_is_added_to_what_a_dataset_gives() -> None:
    class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.ones(1, 8, 8), index

    data = Data("ones", Split(None, None, Images()), Split(None, None, Images()), 4)
    ((plain, _),) = BatchStream(data, 4, seed=0, stop=1)
    ((moved, _),) = BatchStream(data, 4, seed=0, stop=1, augment=True)
    assert bool((plain == 1).all()) and bool((moved == 0).any())


def test_a_limit_of_sorted_data_keeps_all_classes() -> None:
    few = given("ordered", limit=6)
    assert few.train.labels.tolist() == [2, 2, 0, 0, 3, 3]
    assert few.train.images[:, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert len(given("ordered").train) == 60
    shuffled = given("flat", limit=6)
    assert torch.equal(shuffled.train.images, given("flat").train.images[:6])


def test_a_training_that_diverged_is_no_result() -> None:
    network = made("line")
    with pytest.raises(
        PlanError, match=r"diverged: after step 60 .* is not finite; a smaller lr or a warmup may help"
    ):
        fit(network, given("column"), Training(steps=60, batch_size=30, lr=1e4), loss=MSE)
    data = given("column")
    with pytest.raises(PlanError, match="the loss of Sequential is nan: the training diverged"):
        mean_loss(network, data.test, MSE)
    classes = Split(data.test.images, torch.zeros(len(data.test), dtype=torch.int64))
    with pytest.raises(PlanError, match="the outputs of Sequential are not a number"):
        accuracy(network, classes)


def test_tickets_of_a_regression(tmp_path: Path) -> None:
    levels = find_tickets(
        made("line"), given("column"), QUICK, Pruning(levels=2, rewind=5, share=0.5), tmp_path, loss=MSE
    )
    for level in levels:
        assert level.loss is not None and level.loss < 0.02 and level.accuracy != level.accuracy
        assert eir.load(level.path).sparsity() == pytest.approx(level.sparsity)
    again = find_tickets(
        made("line"), given("column"), QUICK, Pruning(levels=2, rewind=5, share=0.5), tmp_path, loss=MSE
    )
    assert [level.loss for level in again] == [level.loss for level in levels]


def test_finding_on_the_command_line(tmp_path: Path) -> None:
    def find(network: str, data: str, *more: str) -> str:
        told = CliRunner().invoke(
            program,
            ["lottery", "find", f"{HERE}:{network}", "--data", f"{HERE}:{data}", "--steps", "20", "--levels", "0",
             "--batch-size", "30", *more, "-o", str(tmp_path / network)],
        )  # fmt: skip
        assert told.exit_code == 0, told.output
        return told.output

    told = find("line", "column", "--loss", "torch.nn:MSELoss")
    assert "level  0: sparsity   0.0 %, loss 0." in told and "dense:      loss 0." in told
    assert "accuracy" not in told and "accuracy " in find("Reader", "tokens")


def regression(folder: Path, **changes: Any) -> Study:
    found = {
        "name": "tiny", "data": f"{HERE}:column", "loss": "torch.nn:MSELoss", "seeds": [0, 1],
        "networks": {"one": {"factory": f"{HERE}:line"}}, "training": {"steps": 30, "batch_size": 30},
        "pruning": {"share": 0.5}, "sparsities": [0.5],
        "compare": [{"method": "imp"}, {"method": "random"}, {"method": "imp", "label": "line", "connect": True}],
        "claims": [{"text": "tickets", "better": "imp", "than": "random", "sparsities": [0.5], "margin": -1.0}],
        **changes,
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(found, sort_keys=False))
    return read_study(folder / "tiny.yaml")


@pytest.mark.slow
def test_a_study_of_a_regression_says_loss(tmp_path: Path) -> None:
    study, store = regression(tmp_path), Store(tmp_path / "store")
    ended = run([item.job for item in runs(study)], store, InProcess(str(store.folder)))
    assert not ended.failed and ended.done == ended.total
    results = [store.result(item.job.key) for item in runs(study)]
    assert all(0 < result["loss"] < 1 and "accuracy" not in result for result in results)
    ends = next(result for result in results if "barrier" in result)
    middle = max(ends["losses"]) - (ends["losses"][0] + ends["losses"][-1]) / 2
    assert ends["barrier"] == pytest.approx(max(middle, 0)) and ends["loss"] == max(ends["losses"])
    found = collect(study, store)
    text = markdown(found)
    assert "Loss on the test data (the targets are not classes; the lower the better), mean" in text
    assert "## one (loss)\n" in text and "barrier, of the loss" in text and "ccuracy" not in text
    (given_,) = answers(found)
    assert given_.verdict == "yes" and abs(given_.difference) < 1  # at most one worse: a gain above -1
    assert draw(found, tmp_path) and write_numbers(found, tmp_path, "tiny")
    with (tmp_path / "tiny-results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(row["accuracy"] == "" and 0 < float(row["loss"]) < 1 for row in rows)
    told = CliRunner().invoke(
        program, ["lottery", "run", str(tmp_path / "tiny.yaml"), "--store", str(store.folder)]
    )
    assert told.exit_code == 0 and f"jobs done: {ended.total} of {ended.total}" in told.output.replace(
        "  ", " "
    )


def test_claims_on_losses_know_that_less_is_better(tmp_path: Path) -> None:
    claim = {"text": "x", "better": "imp", "than": "random", "sparsities": [0.5]}
    study = regression(
        tmp_path,
        dense_at_least=0.5,
        claims=[claim, {**claim, "measure": "loss"}, {**claim, "measure": "accuracy"}],
    )
    found = Findings(study, {}, 0, 0)
    found.asked = {("one", label, 0.5) for label in ("imp", "random")}
    found.cells["one", "imp", 0.5] = Cell([0.1, 0.11], measure="loss")
    found.cells["one", "random", 0.5] = Cell([0.5, 0.52], measure="loss")
    whys = [(item.verdict, item.why) for item in answers(found)]
    assert (
        whys[0] == whys[1] == ("undecided", "the dense network was not trained: add imp or dense to compare")
    )
    assert whys[2] == ("undecided", "the loss was measured, not the accuracy")
    found.dense["one"] = Cell([0.1], measure="loss")
    assert (
        answers(found)[0].why
        == "dense_at_least is an accuracy, and the dense network is measured by its loss"
    )
    found.study = replace(study, dense_at_least=0.0)
    one, two, three = answers(found)
    assert one.verdict == two.verdict == "yes" and one.difference < 0 and three.verdict == "undecided"


def test_data_as_a_function_gives_them_have_keys_of_their_own(tmp_path: Path) -> None:
    """What was trained on them before, with other dtypes, is no result of theirs."""
    (first, *_), (ours, *_) = (
        [item.job for item in runs(regression(tmp_path, **changes))] for changes in ({}, {"data": "digits"})
    )
    assert first.options["data"] == {"name": f"{HERE}:column", "as_given": True}
    assert ours.options["data"] == {"name": "digits"}


def test_a_dataset_of_ones_own_dice_is_read_too() -> None:
    """What is random in a way that no seed decides is no reason to hold it in memory."""
    data = given("augmented")
    assert isinstance(data.train.dataset, Augmented) and data.shape == (8,) and data.classes == 0
