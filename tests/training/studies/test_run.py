"""Jobs and studies: keys that follow from content, nothing done twice, failures that stay their own, any executor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from elastic_ir.errors import PlanError, SourceError
from elastic_ir.training.fit import logger_in
from elastic_ir.training.settings import Log
from elastic_ir.training.studies.executors import Ended, InProcess, RayCluster
from elastic_ir.training.studies.jobs import Job, in_order
from elastic_ir.training.studies.names import build
from elastic_ir.training.studies.run import Progress, run
from elastic_ir.training.studies.store import Store
from elastic_ir.training.studies.study import Study, runs
from elastic_ir.training.studies.study_file import read_study

NETWORKS = {
    "two": {"factory": "tests.training.nets:Perceptron", "blocks": 2},
    "three": {"factory": "tests.training.nets:Perceptron", "blocks": 3},
}
STUDY: dict[str, Any] = {
    "name": "tiny",
    "data": "digits",
    "networks": NETWORKS,
    "training": {"steps": 12, "batch_size": 64},
    "pruning": {"rewind": 2, "share": 0.5},
    "sparsities": [0.5],
    "seeds": [0],
    "compare": [{"method": "imp"}, {"method": "transform", "label": "from {source}"}],
}


def study(folder: Path, **changes: Any) -> Study:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return read_study(path)


def jobs_of(found: Study) -> list[Job]:
    return [item.job for item in runs(found)]


def network_job(folder: Path, **network: Any) -> Job:
    """A job that trains a network of the tests for two steps."""
    options = {
        "network": {"factory": "tests.training.nets:Perceptron", **network}, "data": {"name": "digits"}, "seed": 0,
        "training": {"steps": 4}, "rewind": 2,
    }  # fmt: skip
    return Job("rewind", options)


def test_a_key_follows_from_the_content_and_from_what_is_needed() -> None:
    first = Job("rewind", {"seed": 0})
    assert first.key == Job("rewind", {"seed": 0}).key and first.key.startswith("rewind-")
    assert first.key != Job("rewind", {"seed": 1}).key != Job("level", {"seed": 1}).key
    reader = Job("level", {}, {"rewind": first})
    assert reader.key != Job("level", {}, {"rewind": Job("rewind", {"seed": 1})}).key
    assert [job.key for job in in_order([reader, first, reader])] == [first.key, reader.key]


def test_a_study_becomes_runs_that_share_their_jobs(tmp_path: Path) -> None:
    found = study(tmp_path)
    items = list(runs(found))
    assert [(r.network, r.label, r.sparsity) for r in items] == [
        ("two", "imp", 0.0), ("two", "imp", 0.5), ("three", "imp", 0.0), ("three", "imp", 0.5),
        ("two", "from three", 0.5), ("three", "from two", 0.5),
    ]  # fmt: skip
    assert len(in_order(jobs_of(found))) == 2 + 4 + 2
    other = study(tmp_path, compare=[{"method": "imp", "targets": "two"}], name="another")
    assert {job.key for job in jobs_of(other)} < {job.key for job in jobs_of(found)}


def test_the_dense_network_too_may_have_tweaks_and_two_trainings(tmp_path: Path) -> None:
    compare = [
        {"method": "dense"},
        {"method": "dense", "tweaks": ["label-smoothing"]},
        {"method": "dense", "connect": True},
    ]
    found = [item for item in runs(study(tmp_path, compare=compare)) if item.network == "two"]
    assert [(item.label, item.job.kind, item.sparsity, item.own) for item in found] == [
        ("dense", "level", 0.0, True),
        ("dense, label-smoothing", "train", 0.0, False),
        ("dense, line", "connect", 0.0, False),
    ]
    assert found[1].job.options["tweaks"] == ["label-smoothing"]


def test_a_setting_at_its_default_changes_no_key(tmp_path: Path) -> None:
    plain = study(tmp_path)
    said = study(tmp_path, training={**STUDY["training"], "momentum": 0.9})
    other = study(tmp_path, training={**STUDY["training"], "momentum": 0.8})
    assert [j.key for j in jobs_of(plain)] == [j.key for j in jobs_of(said)]
    assert not {j.key for j in jobs_of(plain)} & {j.key for j in jobs_of(other)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"compare": [{"method": "magic"}]},
            r"compare\[0\]\.method: 'magic' is not imp, dense, .* or dpf",
        ),
        ({"compare": [{"method": "imp", "targets": ["four"]}]}, r"compare\[0\]: there is no network 'four'"),
        (
            {"compare": [{"method": "dense", "sparsities": [0.5]}]},
            r"compare\[0\]: the dense network has a sparsity of 0, not 0\.5",
        ),
        ({"compare": [{"methods": "imp"}]}, r"compare\[0\]: there is no entry 'methods'"),
        ({"networks": {"two": {"blocks": 2}}}, r"networks\.two: give factory: package\.module:function"),
        (
            {"claims": [{"text": "x", "better": "imp", "than": "luck"}]},
            r"claims\[0\]: nothing is labelled 'luck'",
        ),
        ({"training": {"steps": 0}}, r"training\.steps: 0 is not a whole number of at least 1"),
        ({"sparsity": 1}, "there is no entry 'sparsity'"),
        ({"seeds": None}, "seeds is missing"),
        ({"networks": []}, r"networks: expected a mapping, not \[\]"),
        ({"seeds": ["a"]}, r"seeds\[0\]: 'a' is not a whole number"),
        ({"sparsities": [90]}, r"sparsities\[0\]: 90 is not a share from 0 to below 1; write 0\.9 for 90 %"),
        (
            {"pruning": {"share": 1e-5}},
            r"pruning a share of 1e-05 a level does not reach 0\.5 in 1,000 levels",
        ),
        ({"sparsities": ["high"]}, r"sparsities\[0\]: 'high' is not a share"),
        ({"pruning": 3}, "pruning: expected a mapping .*, not 3"),
        ({"pruning": {"rewind": 12}}, "a training of 12 steps cannot be rewound to step 12"),
        (
            {"data": {"name": "digits", "chanels": 3}},
            "data: there is no entry 'chanels'; the entries are name,",
        ),
        ({"data": {"channels": 3}}, "data: name is missing"),
        ({"data": {"name": "digits", "channels": "3"}}, r"data\.channels: '3' is not a whole number"),
        (
            {"compare": [{"method": "transform", "options": {"oder": "interpolate"}}]},
            r"compare\[0\]: transform has no option 'oder'; its options are order, replicate, drop",
        ),
        (
            {"compare": [{"method": "snip", "options": {"batches": 3}}]},
            "snip has no option 'batches'; it has none",
        ),
        (
            {"compare": [{"method": "snip", "sparsities": [0.0]}]},
            "snip has nothing to prune at a sparsity of 0",
        ),
        ({"compare": [{"method": "rigl", "tweaks": ["ghost-skips"]}]}, "not for rigl"),
        ({"compare": [{"method": "imp", "tweaks": ["soft-labels", "label-smoothing"]}]}, "give one of them"),
        (
            {"loss": "torch.nn:MSELoss", "compare": [{"method": "imp", "tweaks": ["label-smoothing"]}]},
            "label-smoothing would take the place of the study's own loss torch.nn:MSELoss",
        ),
        (
            {"compare": [{"method": "imp"}, {"method": "random", "label": "imp"}]},
            r"two entries of compare are called 'imp' on two at 50\.0 %; give one another label",
        ),
        (
            {"claims": [{"text": "x", "better": "imp", "than": "imp", "targets": "four"}]},
            r"claims\[0\]: there is no network 'four'",
        ),
        (
            {"claims": [{"text": "x", "better": "imp", "than": "imp", "measure": "barrier"}]},
            r"claims\[0\]: barrier compares what was trained twice \(connect\), which 'imp' contradicts",
        ),
    ],
)
def test_what_is_wrong_in_a_study_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        study(tmp_path, **changes)


def test_entries_without_a_label_have_one_that_tells_them_apart(tmp_path: Path) -> None:
    found = study(tmp_path, compare=[
        {"method": "imp"}, {"method": "imp", "connect": True}, {"method": "imp", "tweaks": "ghost-skips"},
        {"method": "transform", "sources": "two", "options": {"order": "interpolate"}},
    ])  # fmt: skip
    assert {run.label for run in runs(found)} == {
        "imp", "imp, line", "imp, ghost-skips", "transform from two, order interpolate"
    }  # fmt: skip


def test_a_number_that_is_asked_for_twice_counts_once(tmp_path: Path) -> None:
    """A second time would make the interval of the mean narrower than the seeds have made it."""
    once = list(runs(study(tmp_path, compare=[{"method": "random"}])))
    twice = list(runs(study(tmp_path, compare=[{"method": "random"}] * 2, sparsities=[0.5, 0.499])))
    assert [(run.label, run.job.key) for run in twice] == [(run.label, run.job.key) for run in once]


def test_a_file_that_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(SourceError, match=r"a\.yaml line 1: not valid YAML"):
        read_study(tmp_path / "a.yaml")
    with pytest.raises(SourceError, match=r"absent\.yaml could not be read: no such file"):
        read_study(tmp_path / "absent.yaml")
    (tmp_path / "b.yaml").write_text("3")
    with pytest.raises(PlanError, match="a study is a mapping"):
        read_study(tmp_path / "b.yaml")


@pytest.mark.slow
def test_a_study_runs_and_nothing_is_done_twice(tmp_path: Path) -> None:
    found, store = study(tmp_path), Store(tmp_path / "store")
    seen: list[tuple[int, int]] = []
    ended = run(
        jobs_of(found), store, InProcess(str(store.folder)), lambda now: seen.append((now.done, now.total))
    )
    assert (ended.done, ended.total, ended.failed) == (8, 8, {}) and seen[0] == (0, 8) and seen[-1] == (8, 8)
    for item in runs(found):
        result = store.result(item.job.key)
        assert 0.1 < result["accuracy"] <= 1 and result["sparsity"] == pytest.approx(item.sparsity, abs=0.05)

    class Never(InProcess):
        def submit(self, spec: Mapping[str, Any]) -> None:
            raise AssertionError(f"{spec['key']} is done")

    again = run(jobs_of(found), store, Never(str(store.folder)))
    assert (again.done, again.total) == (8, 8)


@pytest.mark.slow
def test_what_a_search_leaves_out_no_method_prunes(tmp_path: Path) -> None:
    methods = ["imp", "magnitude", "random", "snip", "synflow", "rigl", "dpf"]
    compare = [
        *({"method": method, "targets": "two"} for method in methods),
        *({"method": method, "targets": "three", "sources": "two"} for method in ("transform", "hybrid")),
    ]
    pruning = {"rewind": 2, "share": 0.5, "leave_out": "head"}
    found, store = study(tmp_path, compare=compare, pruning=pruning), Store(tmp_path / "store")
    ended = run(jobs_of(found), store, InProcess(str(store.folder)))
    assert not ended.failed
    for item in runs(found):
        layers = store.result(item.job.key)["layers"]
        assert "head.weight" not in layers and (item.sparsity == 0 or "stem.weight" in layers), item.label


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on(tmp_path: Path) -> None:
    found, store = study(tmp_path), Store(tmp_path / "store")

    class Killed(InProcess):
        count = 0

        def wait(self, seconds: float | None = None) -> list[Ended]:
            self.count += 1
            if self.count == 4:
                raise KeyboardInterrupt
            return super().wait(seconds)

    with pytest.raises(KeyboardInterrupt):
        run(jobs_of(found), store, Killed(str(store.folder)))
    done = [job.key for job in in_order(jobs_of(found)) if store.has(job.key)]
    assert len(done) == 3
    ended = run(jobs_of(found), store, InProcess(str(store.folder)))
    assert ended.done == 8
    assert sum(len(took) for (kind, _), took in ended.seconds.items() if kind == "train") == 2
    assert sum(map(len, ended.seconds.values())) == 5


def test_a_failure_takes_only_what_needs_it(tmp_path: Path) -> None:
    networks = {**NETWORKS, "three": {"factory": "tests.training.nets:Doomed"}}
    found, store = study(tmp_path, networks=networks), Store(tmp_path / "store")
    ended = run(jobs_of(found), store, InProcess(str(store.folder)))
    (why,) = ended.failed.values()
    assert why.endswith("nets:Doomed fails without arguments: ValueError: no such network")
    assert ended.done == 3 and len(ended.skipped) == 4 and ended.done + len(ended.skipped) + 1 == ended.total
    assert all(count == 0 for count in ended.left.values())


def test_what_a_killed_job_left_is_no_result(tmp_path: Path) -> None:
    store, job = Store(tmp_path), network_job(tmp_path)
    store.path(job.key).mkdir()
    (store.path(job.key) / "state.pt").write_bytes(b"half")
    assert not store.has(job.key)
    with pytest.raises(SourceError, match="is not done"):
        store.result(job.key)
    run([job], store, InProcess(str(tmp_path)))
    assert store.has(job.key) and (store.path(job.key) / "state.pt").stat().st_size > 100
    (store.path(job.key) / "result.json").write_text("{")
    with pytest.raises(SourceError, match=r"is damaged .* delete its folder"):
        store.result(job.key)


def test_workspaces_that_nobody_works_in_are_swept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    left = tmp_path / ".level-abc.0123"
    left.mkdir()
    assert store.sweep() == 0 and store.sweep(older_than=-1) == 1 and not left.exists()
    with pytest.raises(ZeroDivisionError), store.workspace({"key": "x", "needs": {}}):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["csv", "tensorboard"])
def test_trainings_log_into_the_folder_of_their_job(tmp_path: Path, kind: Log) -> None:
    job = network_job(tmp_path)
    store = Store(tmp_path)
    run([job], store, InProcess(str(tmp_path), log=kind))
    names = [path.name for path in (store.path(job.key) / "log").iterdir()]
    if kind == "csv":
        lines = (store.path(job.key) / "log" / "metrics.csv").read_text().splitlines()
        assert set(lines[0].split(",")) == {"epoch", "loss", "rate", "step"} and len(lines) == 3
    else:
        assert any(name.startswith("events.out.tfevents") for name in names)


def test_a_missing_tensorboard_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.fabric.loggers import tensorboard

    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr(tensorboard, "_TENSORBOARDX_AVAILABLE", False)
    with pytest.raises(SourceError, match=r"pip install 'elastic-ir\[tensorboard\]'"):
        logger_in("tensorboard", tmp_path)


def test_a_store_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    ended = run([network_job(tmp_path)], Store(tmp_path / "store"), InProcess(str(tmp_path / "store")))
    assert "FileExistsError" in next(iter(ended.failed.values()))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            {"factory": "tests.training.nets:Perceptron", "blokcs": 2},
            r"fails with blokcs=2: TypeError: .*unexpected keyword",
        ),
        (
            {"factory": "operator:neg"},
            r"the network's factory operator:neg fails without arguments: TypeError: ",
        ),
        ({"factory": "tests.training.nets:absent"}, r"cannot be found: .*absent"),
        ({"factory": ":absent"}, r"cannot be found"),
        ({"factory": "tests.training.nets:perceptrons"}, r"cannot be found"),
        ({"factory": "tests.training.nets:Block"}, r"nets:Block fails without arguments: .*width"),
        (
            {"factory": "resnet20"},
            r"'resnet20' does not name a network; give PACKAGE\.MODULE:FACTORY, timm:NAME or",
        ),
        ({"factory": "tests.training.nets:nothing"}, r"returns a int, not a torch module"),
    ],
)
def test_a_factory_that_fails_is_told(network: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        build({"network": network, "seed": 0})


def test_a_network_of_timm_takes_its_arguments_and_seed() -> None:
    pytest.importorskip("timm")
    network = {"factory": "timm:test_resnet", "num_classes": 7}
    one, two, other = (build({"network": network, "seed": seed}) for seed in (0, 0, 1))
    states = [made.state_dict()["conv1.0.weight"] for made in (one, two, other)]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    assert one.get_parameter("fc.weight").shape[0] == 7
    with pytest.raises(SourceError, match="timm has no model 'absent'"):
        build({"network": {"factory": "timm:absent"}, "seed": 0})


def test_what_is_at_work_is_known_by_its_process(tmp_path: Path) -> None:
    store, job = Store(tmp_path), network_job(tmp_path)
    with store.workspace(job.spec()) as place:
        assert set(store.working()) == {job.key} and 0 <= store.working()[job.key] < 60
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        place.rename(str(place).replace(f".{os.getpid()}.", f".{dead.pid}."))
        assert store.working() == {}
        Path(str(place).replace(f".{os.getpid()}.", f".{dead.pid}.")).rename(place)
        store.write_result(place, {})
    assert store.working() == {} and store.has(job.key)


def test_a_ray_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        SourceError,
        match=r"a cluster needs ray, which cannot be imported .*; pip install 'elastic-ir\[ray\]'",
    ):
        RayCluster(str(tmp_path), "auto")

    class Unreachable:
        @staticmethod
        def is_initialized() -> bool:
            return False

        @staticmethod
        def init(**_: Any) -> None:
            raise RuntimeError("no such address")

    monkeypatch.setitem(sys.modules, "ray", Unreachable)
    with pytest.raises(
        SourceError, match=r"no Ray cluster at '1\.2\.3\.4:5' \(RuntimeError: no such address\)"
    ):
        RayCluster(str(tmp_path), "1.2.3.4:5")


def test_what_can_be_done_is_done_in_the_order_of_the_studies(tmp_path: Path) -> None:
    """A job that waits for another one does not fall behind those of a later study."""
    first, second = (study(tmp_path, seeds=[seed], compare=[{"method": "imp"}]) for seed in (0, 1))
    order: list[str] = []
    wanted = [*jobs_of(first), *jobs_of(second)]
    run(
        wanted,
        Store(tmp_path / "store"),
        InProcess(str(tmp_path / "store")),
        ended_well=lambda job, _: order.append(job.key),
    )
    assert order == [job.key for job in in_order(wanted)]


def test_time_left_follows_from_what_jobs_took() -> None:
    now = Progress(10, slots=2)
    assert now.time_left is None
    now.seconds, now.left = {("level", "a"): [2.0, 4.0]}, {("level", "a"): 4, ("train", "a"): 2}
    assert now.time_left == pytest.approx((4 * 3 + 2 * 3) / 2)
    now.before = {("level", "a"): [100.0], ("train", "b"): [7.0]}  # what was measured now counts more
    assert now.time_left == pytest.approx((4 * 3 + 2 * 7) / 2)
