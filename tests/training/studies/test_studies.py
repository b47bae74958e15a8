"""The studies under studies/: their transformations exist, they share their tickets, and run to their ends."""

from __future__ import annotations

from functools import cache, partial
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml

import elastic_ir as eir
from elastic_ir.analysis.gradinit import GradInit
from elastic_ir.training.data import Data, Split
from elastic_ir.training.reports.report import answers, collect, markdown
from elastic_ir.training.studies import tweaks
from elastic_ir.training.studies.executors import InProcess
from elastic_ir.training.studies.jobs import in_order
from elastic_ir.training.studies.methods import transformed
from elastic_ir.training.studies.names import build
from elastic_ir.training.studies.run import run
from elastic_ir.training.studies.store import Store
from elastic_ir.training.studies.study import Study, runs
from elastic_ir.training.studies.study_file import read_study

FOLDER = Path(__file__).parents[3] / "studies"
ABLATIONS = ("study-b", "study-c", "study-d")


@cache
def study(name: str) -> Study:
    """A study of the repository."""
    return read_study(FOLDER / f"{name}.yaml")


def keys(name: str, *kinds: str) -> set[str]:
    """The keys of its jobs of some kinds."""
    return {job.key for job in in_order(item.job for item in runs(study(name))) if job.kind in kinds}


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_studies_share_what_study_a_trains(name: str) -> None:
    own = {job.key for job in in_order(item.job for item in runs(study(name)) if item.sparsity <= 0.9)}
    levels = {key for key in own if key.startswith(("rewind", "level"))}
    assert levels and levels <= keys("study-a", "rewind", "level")


def test_said_or_not_what_a_transformation_usually_does_is_one_job() -> None:
    assert (
        len(keys("study-b", "train") & keys("study-a", "train")) == 6
    )  # append and drop the last, three seeds each


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ABLATIONS, "study-a", "study-vgg", "vgg"])
def test_the_transformations_of_a_study_are_those_of_its_networks(name: str) -> None:
    found = study(name)
    size = 32 if name == "vgg" else 28
    results = {}
    for entry in found.compare:
        if entry.method != "transform" or set(entry.options) & {
            "permute_copies",
            "permute_masks",
            "new_weights",
        }:
            continue  # the others differ by their masks or weights
        for source, goal in product(entry.sources or found.networks, entry.targets or found.networks):
            if source == goal:
                continue
            donor, target = (build({"network": found.networks[key], "seed": 0}) for key in (source, goal))
            graph = eir.trace(donor.eval(), (torch.zeros(1, 3, size, size),))
            images = Split(torch.zeros(1, 3, size, size), torch.zeros(1, dtype=torch.long))
            data = Data("zeros", images, images)
            made = transformed(graph, target, data, {"options": entry.options})
            target.load_state_dict(made.state_dict())
            results[f"{entry.label} {source} {goal}"] = tuple(made.lineage().items())
    assert results
    if name == "study-b":
        assert len(set(results.values())) == len(results) == 9


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One for all studies, which share much of what they train."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["study-a", *ABLATIONS])
def test_a_study_runs_to_its_end_on_digits(
    name: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a search for scales is as long as several of these trainings
    monkeypatch.setattr(tweaks, "GradInit", partial(GradInit, steps=4))
    whole = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    networks = {key: {**value, "width": 2} for key, value in whole["networks"].items()}
    small = {
        **whole, "networks": networks, "data": {"name": "digits", "channels": 3, "limit": 64}, "seeds": [0],
        "training": {"steps": 4, "batch_size": 16}, "pruning": {"rewind": 1, "share": 0.7},
    }  # fmt: skip
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(small))
    found = read_study(path)
    ended = run([item.job for item in runs(found)], store, InProcess(str(store.folder), 1))
    assert not ended.failed and ended.done == ended.total
    report = collect(found, store)
    assert report.missing == 0 and markdown(report)
    given = answers(report)
    assert len(given) >= len(found.claims) and {answer.verdict for answer in given} == {"undecided"}
