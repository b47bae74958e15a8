"""Reports: means and intervals, claims answered from them, tables and plots; and the line between two trainings."""

from __future__ import annotations

import copy
import csv
import json
import math
import re
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from scipy import stats
from torch import nn

from elastic_ir.cli.app import elastic_ir
from elastic_ir.training.connectivity import Line, barrier, between
from elastic_ir.training.fit import fit
from elastic_ir.training.reports.csv import write_numbers
from elastic_ir.training.reports.intervals import MOST, half_width, seeds_needed, welch
from elastic_ir.training.reports.report import Cell, Findings, answers, collect, markdown
from elastic_ir.training.settings import Training
from elastic_ir.training.studies.jobs import in_order
from elastic_ir.training.studies.store import Store
from elastic_ir.training.studies.study import runs
from elastic_ir.training.studies.study_file import read_study
from tests.training.nets import digits, perceptron

STUDY: dict[str, Any] = {
    "name": "tiny",
    "title": "Tiny",
    "data": "digits",
    "networks": {name: {"factory": "tests.training.nets:Perceptron"} for name in ("two", "three")},
    "training": {"steps": 12},
    "pruning": {"share": 0.5},
    "sparsities": [0.5],
    "seeds": [0, 1, 2],
    "compare": [
        {"method": "imp"},
        {"method": "random"},
        {"method": "transform", "label": "line", "connect": True, "targets": "two"},
    ],
    "claims": [
        {"text": "own tickets beat random ones", "better": "imp", "than": "random", "sparsities": [0.5]}
    ],
}


def findings(folder: Path, scores: dict[str, list[float]], **changes: Any) -> Findings:
    """What a report finds where the jobs of each label had these accuracies, one for each seed."""
    folder.mkdir(exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    study, store = read_study(path), Store(folder / "store")
    for item in sorted(runs(study), key=lambda item: item.sparsity):
        label = "dense" if item.sparsity == 0 else item.label
        if label not in scores or store.has(item.job.key):
            continue
        result: dict[str, Any] = {
            "accuracy": scores[label][item.seed], "seconds": 1.0, "flops": 3.0,
            "sparsity": item.sparsity + 0.01 * (label == "random"),
        }  # fmt: skip
        if item.label == "line":
            result |= {"barrier": 0.1, "accuracies": [0.9, 0.8, 0.9]}
        for job in in_order([item.job]):
            if job is item.job or not store.has(job.key):
                with store.workspace(job.spec()) as place:
                    store.write_result(
                        place, result if job is item.job else {**result, "accuracy": 0.95, "sparsity": 0.0}
                    )
    return collect(study, store)


def test_intervals_are_those_of_student_and_welch() -> None:
    one, two = [90.0, 91.0, 92.5], [88.0, 88.5, 87.0, 89.0]
    interval = stats.t.interval(0.95, 2, loc=stats.tmean(one), scale=stats.sem(one))
    assert half_width(one) == pytest.approx((interval[1] - interval[0]) / 2)
    expected = stats.ttest_ind(one, two, equal_var=False).confidence_interval(0.95)
    assert welch(one, two) == pytest.approx((expected.high - expected.low) / 2)
    assert half_width([90.0]) == math.inf == welch([90.0], two) and welch([1.0, 1.0], [2.0, 2.0]) == 0


def test_the_seeds_that_would_decide_are_the_fewest_that_do() -> None:
    one, two = [90.0, 91.0, 92.0], [89.0, 91.5, 90.3]  # these spreads, at every number of seeds

    def at(count: int) -> float:
        parts = [1.0 / count, float(np.var(two, ddof=1)) / count]
        freedom = sum(parts) ** 2 / sum(part**2 / (count - 1) for part in parts)
        return float(stats.t.ppf(0.975, freedom)) * math.sqrt(sum(parts))

    for distance in (0.3, 0.7, 2.0):
        needed = seeds_needed(one, two, distance)
        assert at(needed) < distance <= at(needed - 1)
    assert seeds_needed(one, two, 1e-9) == MOST and seeds_needed([1.0, 1.0], [2.0, 2.0], 0.5) == 2


@pytest.mark.parametrize(
    ("imp", "changes", "verdict", "why"),
    [
        ([0.90, 0.901, 0.902], {}, "yes", ""),
        ([0.60, 0.601, 0.602], {}, "no", ""),
        ([0.70, 0.85, 0.99], {}, "undecided", "the interval holds the margin; about"),
        (
            [0.90, 0.901, 0.902],
            {"dense_at_least": 0.96},
            "undecided",
            "the dense network reaches 95.0 %, not 96 %",
        ),
        ([0.90, 0.901, 0.902], {"seeds": [0]}, "undecided", "one seed: run three or more"),
    ],
)
def test_a_claim_is_answered_only_where_the_numbers_allow_it(
    tmp_path: Path, imp: list[float], changes: dict[str, Any], verdict: str, why: str
) -> None:
    scores = {"dense": [0.95] * 3, "imp": imp, "random": [0.80, 0.802, 0.801]}
    given = answers(findings(tmp_path, scores, **changes))
    assert [(item.network, item.verdict) for item in given] == [("two", verdict), ("three", verdict)]
    assert given[0].why.startswith(why) and given[0].sparsity == 0.5


def test_a_margin_moves_the_answer(tmp_path: Path) -> None:
    scores = {"imp": [0.80, 0.801, 0.802], "random": [0.803, 0.804, 0.805]}
    claims = [{**STUDY["claims"][0], "margin": -1.0, "targets": "two"}]
    (given,) = answers(findings(tmp_path, scores, claims=claims))
    assert given.verdict == "yes" and given.difference == pytest.approx(-0.3)


def test_the_report_as_markdown(tmp_path: Path) -> None:
    scores = {
        "dense": [0.95, 0.95, 0.95],
        "imp": [0.90, 0.901, 0.902],
        "random": [0.80, 0.802, 0.801],
        "line": [0.8] * 3,
    }
    found = findings(tmp_path, scores)
    text = markdown(found)
    folders = [path.name for path in (tmp_path / "store").iterdir()]  # rewind points too, and each job once
    assert sorted(found.seconds) == sorted(folders)
    assert f" Budget: {len(found.seconds)} jobs, 0.0 hours of training in all." in text
    assert text.startswith("# Tiny\n") and "Not finished" not in text
    assert "| method | 0.0 % | 50.0 % |" in text
    assert "| imp | 95.00 ± 0.00 | 90.10 ± 0.25 |" in text and "| random |  | 80.10 ± 0.25 |" in text
    assert "| two | line | 50.0 % | 10.00 ± 0.00 |" in text
    assert "| two | random | 50.0 % | 51.00 % |" in text and "| two | imp | 50.0 % | 50.00 % |" not in text
    assert "| two | imp | 50.0 % | 0.500 | 1.50 |" in text
    assert "| own tickets beat random ones | two | 50.0 % | +10.00 ± 0.23 | +0 | yes |" in text
    # the ticket whose masks are permuted has been pruned for it, but not trained
    assert "| two | random | 50.0 % | 0.500 | 1.50 |" in text
    partial = markdown(findings(tmp_path, {}, seeds=[0, 1, 2, 3]))
    assert "**Not finished: 7 of 28 numbers are missing.**" in partial


def test_the_sparsity_of_each_layer_of_the_sparsest_tickets(tmp_path: Path) -> None:
    scores = {"dense": [0.95] * 3, "imp": [0.9] * 3, "random": [0.8] * 3}
    found = findings(tmp_path, scores)
    assert "sparsity by layer" not in markdown(found)
    for row in found.rows:
        if row.run.label in ("imp", "random"):
            row.result["layers"] = {"stem.weight": 0.1 * row.run.seed, "blocks.0.weight": 0.5}
            if row.run.label == "random":
                del row.result["layers"]["stem.weight"]
    text = markdown(found).partition("## two: sparsity by layer\n")[2].partition("## ")[0]
    assert "Of the tickets at 50.0 %, mean over the seeds" in text
    assert "| layer | imp | random |" in text
    assert "| `stem.weight` | 10.0 % |  |" in text and "| `blocks.0.weight` | 50.0 % | 50.0 % |" in text


def test_costs_are_in_dense_trainings_in_whatever_order_methods_stand(tmp_path: Path) -> None:
    entries = [
        {"method": "imp"},
        {"method": "transform", "label": "ETT from {source}", "sparsities": [0.0, 0.5]},
        {"method": "imp", "label": "line", "connect": True, "sparsities": [0.0], "targets": "two"},
        {"method": "dense", "label": "smooth", "tweaks": ["label-smoothing"]},
    ]
    networks = {
        name: {"factory": "tests.training.nets:Perceptron", "blocks": blocks}
        for name, blocks in (("two", 2), ("three", 3))
    }
    scores = {"dense": [0.95] * 3, "imp": [0.9] * 3, "line": [0.8] * 3, "ETT from two": [0.9] * 3}
    changes: dict[str, Any] = {"networks": networks, "claims": [], "seeds": [0]}
    tables = set()
    for number, compare in enumerate(permutations(entries)):
        found = findings(tmp_path / str(number), scores, compare=compare, **changes)
        assert set(found.dense) == {"two", "three"}
        lines = markdown(found).split("## Training FLOPs")[1].splitlines()
        tables.add(tuple(sorted(line for line in lines if "| imp |" in line or "ETT" in line)))
    assert len(tables) == 1
    # the source's rewind point, its dense level, and the training: nothing of the target's own rewind point
    assert "| three | ETT from two | 50.0 % | 0.500 | 1.50 |" in next(iter(tables))


def test_scoring_is_no_part_of_the_training(tmp_path: Path) -> None:
    found = findings(tmp_path, {"dense": [0.95] * 3, "imp": [0.9] * 3, "random": [0.8] * 3})
    store = Store(tmp_path / "store")
    for item in runs(found.study):
        if item.label == "random":
            result = {**store.result(item.job.key), "scoring": 1.0}
            (store.path(item.job.key) / "result.json").write_text(json.dumps(result))
    assert "| two | random | 50.0 % | 0.333 | 1.50 |" in markdown(collect(found.study, store))


def test_a_claim_at_any_sparsity_is_told_where_it_was_not_run(tmp_path: Path) -> None:
    claims = [{"text": "all", "better": "imp", "than": "random", "targets": ["two"]}]
    (given,) = answers(findings(tmp_path, {}, claims=claims))
    assert (given.sparsity, given.verdict, given.why) == (0.5, "undecided", "not run yet")


def test_a_claim_at_a_sparsity_is_about_its_level_alone_and_told_where_it_was_not_run(tmp_path: Path) -> None:
    changes = {
        "pruning": {"share": 0.1}, "sparsities": [0.27, 0.34],  # levels 3 and 4: 27.1 and 34.4 %
        "compare": [{"method": "imp"}, {"method": "random"}],
        "claims": [{**STUDY["claims"][0], "sparsities": [0.34], "targets": "two"}],
    }  # fmt: skip
    scores = {"dense": [0.95] * 3, "imp": [0.90, 0.901, 0.902], "random": [0.80, 0.802, 0.801]}
    (given,) = answers(findings(tmp_path, scores, **changes))
    assert (given.sparsity, given.verdict) == (0.3439, "yes")
    (missing,) = answers(findings(tmp_path / "new", {}, **changes))
    assert (missing.verdict, missing.why) == ("undecided", "not run yet")
    assert "undecided: not run yet" in markdown(findings(tmp_path / "new", {}, **changes))


def test_a_claim_about_barriers_wants_the_lower_one(tmp_path: Path) -> None:
    lines = [{"method": method, "connect": True, "targets": "two"} for method in ("imp", "random")]
    claim = {
        "text": "tickets are stable",
        "better": "imp, line",
        "than": "random, line",
        "measure": "barrier",
    }
    found = findings(tmp_path, {}, compare=lines, claims=[claim])
    for label, barriers in (("imp, line", [1.0, 1.1, 1.2]), ("random, line", [5.0, 5.2, 5.1])):
        found.cells["two", label, 0.5] = Cell([80.0] * 3, barriers=barriers)
    (given,) = answers(found)
    assert given.verdict == "yes" and given.difference == pytest.approx(-4.0)


def test_the_numbers_as_csv(tmp_path: Path) -> None:
    found = findings(tmp_path, {"dense": [0.95] * 3, "imp": [0.9, 0.8, 0.7], "line": [0.8] * 3})
    found.rows[0].result["layers"] = {"stem.weight": 0.25}
    assert write_numbers(found, tmp_path, "tiny") == ["tiny-results.csv", "tiny-layers.csv"]
    with (tmp_path / "tiny-results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found.total - found.missing == 15
    own = [row for row in rows if (row["network"], row["label"], row["sparsity"]) == ("two", "imp", "0.5")]
    assert [(row["seed"], float(row["accuracy"])) for row in own] == [("0", 0.9), ("1", 0.8), ("2", 0.7)]
    assert [row["barrier"] for row in rows if row["label"] == "line"] == ["0.1"] * 3
    lines = (tmp_path / "tiny-layers.csv").read_text().splitlines()
    assert len(lines) == 2 and ",stem.weight,0.25," in lines[1]


@pytest.mark.slow
def test_report_on_the_command_line_writes_tables_and_plots(tmp_path: Path) -> None:
    findings(tmp_path, {"dense": [0.9] * 3, "imp": [0.8] * 3, "random": [0.7] * 3, "line": [0.8] * 3})
    arguments = ["lottery", "report", str(tmp_path / "tiny.yaml"), "--store", str(tmp_path / "store"), "-o"]
    told = CliRunner().invoke(elastic_ir, [*arguments, str(tmp_path / "out")])
    assert told.exit_code == 0, told.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    stems = ("two", "two-methods", "three", "three-methods", "connectivity")
    assert names == {"tiny.md", "tiny-results.csv", "tiny-layers.csv"} | {
        f"tiny-{stem}.{form}" for stem in stems for form in ("png", "svg")
    }
    assert "![tiny-two.png](tiny-two.png)" in (tmp_path / "out" / "tiny.md").read_text()
    first = (tmp_path / "out" / "tiny-two.svg").read_bytes()
    CliRunner().invoke(elastic_ir, [*arguments, str(tmp_path / "again")])
    assert (tmp_path / "again" / "tiny-two.svg").read_bytes() == first
    (tmp_path / "again" / "tiny.md").unlink()
    refused = CliRunner().invoke(elastic_ir, [*arguments, str(tmp_path / "again")])
    assert (
        refused.exit_code == 1
        and "tiny-" in refused.output
        and "or write over it with --force" in refused.output
    )
    assert not (tmp_path / "again" / "tiny.md").exists()
    assert CliRunner().invoke(elastic_ir, [*arguments, str(tmp_path / "again"), "--force"]).exit_code == 0
    assert {path.name for path in (tmp_path / "again").iterdir()} == names
    assert "own tickets beat random ones (two, 50 %): yes" in told.output


def test_run_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    changes = {"compare": [{"method": "imp"}], "claims": [], "seeds": [0]}
    path.write_text(yaml.safe_dump({**STUDY, **changes}))
    arguments = ["lottery", "run", str(path), "--store", str(tmp_path / "store")]
    planned = CliRunner().invoke(elastic_ir, [*arguments, "--dry-run"])
    assert (
        planned.exit_code == 0 and "level   2     0" in planned.output and "rewind  1     0" in planned.output
    )
    assert not (tmp_path / "store").exists()
    told = CliRunner().invoke(elastic_ir, arguments)
    assert told.exit_code == 0, told.output
    for network in ("two", "three"):  # numbers as they come; these two share their jobs
        assert f"{network}, imp, 50.0 %, seed 0: accuracy " in told.output
    status = CliRunner().invoke(elastic_ir, ["lottery", "status", *arguments[2:]])
    assert status.exit_code == 0 and "tiny   2 of 2   3     3 " in status.output, status.output
    assert "jobs done:  3 of 3" in told.output and "jobs: 3 of 3 done, 0 running, 0 left" in told.output
    path.write_text(yaml.safe_dump({**STUDY, **changes, "data": "mnist"}))
    for more in ([], ["--dry-run"]):
        failed = CliRunner().invoke(elastic_ir, [*arguments, *more])
        assert failed.exit_code == 1 and "error: tiny: data: there is no data 'mnist'" in failed.output
    path.write_text(yaml.safe_dump({**STUDY, **changes, "data": "tests.training.nets:failing"}))
    failed = CliRunner().invoke(elastic_ir, arguments)  # known, and only a job finds out that it fails
    assert (
        failed.exit_code == 1
        and "nets:failing fails without arguments: AttributeError: 'int' object" in failed.output
    )
    assert "skipped:    2 jobs that need a failed one" in failed.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": {"two": {"factory": "tests.training.nets:absent"}}}, "networks.two: .* cannot be found"),
        ({"networks": {"two": {"factory": "tests.training.nets:Doomed"}}}, "networks.two: .* ValueError: no such"),
        ({"data": "tests.training.nets:absent"}, "data: tests.training.nets:absent cannot be found"),
        ({"loss": "torch.nn:Absent"}, "loss: the loss torch.nn:Absent cannot be found"),
    ],
)  # fmt: skip
def test_a_name_that_stands_for_nothing_is_told_before_any_job(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "compare": [{"method": "imp"}], "claims": [], **changes}))
    for more in ([], ["--dry-run"]):
        arguments = ["lottery", "run", str(path), "--store", str(tmp_path / "store"), *more]
        told = CliRunner().invoke(elastic_ir, arguments)
        assert told.exit_code == 1 and re.search(f"error: tiny: {message}", told.output), told.output
        assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_store_that_is_not_there_is_told(tmp_path: Path, command: str) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    arguments = ["lottery", command, str(tmp_path / "tiny.yaml"), "--store", str(tmp_path / "typo")]
    told = CliRunner().invoke(elastic_ir, arguments)
    assert told.exit_code == 1 and f"error: there is no store {tmp_path / 'typo'}: " in told.output
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_the_line_between_two_networks() -> None:
    data = digits()
    one, two = perceptron(0), perceptron(1)
    for network in (one, two):
        fit(network, data, Training(steps=60, batch_size=64))
    ends = [copy.deepcopy(network.state_dict()) for network in (one, two)]
    half = between(ends[0], ends[1], 0.5)
    torch.testing.assert_close(half["head.bias"], (ends[0]["head.bias"] + ends[1]["head.bias"]) / 2)
    line = barrier(perceptron(), ends[0], ends[1], data, points=5)
    assert line.shares == [0, 0.25, 0.5, 0.75, 1.0] and len(line.values) == 5
    assert line.height > 0.1  # two initializations share no basin
    flat = barrier(perceptron(), ends[0], ends[0], data, points=3)
    assert flat.height == 0 and len(set(flat.values)) == 1
    assert Line([0, 0.5, 1], [0.9, 0.5, 0.7]).height == pytest.approx(0.3)


def test_whole_numbers_are_not_interpolated() -> None:
    norm = nn.BatchNorm1d(3)
    one = copy.deepcopy(norm.state_dict())
    two = {name: tensor + 4 for name, tensor in one.items()}
    half = between(one, two, 0.5)
    assert int(half["num_batches_tracked"]) == 0 and half["running_mean"].tolist() == [2, 2, 2]
    assert json.dumps(half["weight"].tolist()) == "[3.0, 3.0, 3.0]"
