"""Executors when workers die: killed while idle, killed at work, told to end; only the job at fault is given up."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from elastic_ir.training.fit import fit
from elastic_ir.training.settings import Training
from elastic_ir.training.studies import executors
from elastic_ir.training.studies.executors import Ended, InProcess, Processes
from elastic_ir.training.studies.jobs import Job
from elastic_ir.training.studies.run import run
from elastic_ir.training.studies.store import Store
from tests.training import deaths
from tests.training.nets import Signalled, digits


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Processes]]:
    """Makes Processes whose workers do what tests.training.deaths does; they are closed at the end."""
    monkeypatch.setattr(executors, "_work", deaths.work)
    made: list[Processes] = []

    def make(count: int) -> Processes:
        made.append(Processes(str(tmp_path), count))
        return made[-1]

    yield make
    for one in made:
        one.close()


def rest(executor: Processes, count: int) -> dict[str, Ended]:
    """So many ended jobs by key."""
    found: dict[str, Ended] = {}
    while len(found) < count:
        found |= {ended.key: ended for ended in executor.wait()}
    return found


def until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def test_a_worker_that_is_killed_between_two_jobs_is_replaced(processes: Callable[[int], Processes]) -> None:
    executor = processes(1)
    executor.submit({"key": "one"})
    first = rest(executor, 1)["one"].result
    assert first is not None
    os.kill(first["process"], signal.SIGKILL)
    until(lambda: not multiprocessing.active_children())
    time.sleep(0.2)  # the pool, too, has seen that its worker is gone
    executor.submit({"key": "two"})
    second = rest(executor, 1)["two"]
    assert second.result is not None and second.result["process"] != first["process"], second.error


def test_a_worker_that_died_at_work_is_no_reason_to_refuse_the_next_job(
    processes: Callable[[int], Processes], tmp_path: Path
) -> None:
    executor = processes(2)
    executor.submit({"key": "fatal", "die": 1})
    until((tmp_path / "deaths").exists)
    until(lambda: not multiprocessing.active_children())
    time.sleep(0.2)
    executor.submit({"key": "next"})
    ended = rest(executor, 2)
    assert [ended[key].error for key in ("fatal", "next")] == ["", ""]
    assert ended["fatal"].result is not None and ended["fatal"].result["begun"] == 2


def test_a_job_that_always_kills_its_worker_takes_no_neighbour_with_it(
    processes: Callable[[int], Processes],
) -> None:
    """The neighbour is at work while the worker beside it dies three times, and is not even begun again."""
    executor = processes(2)
    executor.submit({"key": "healthy", "await": 3})
    executor.submit({"key": "fatal", "die": 99})
    ended = rest(executor, 2)
    assert ended["fatal"].error.startswith("its worker died 3 times (BrokenProcessPool: ")
    assert ended["healthy"].result is not None and ended["healthy"].result["begun"] == 1


def test_a_worker_that_leaves_is_one_that_died(processes: Callable[[int], Processes]) -> None:
    executor = processes(1)
    executor.submit({"key": "once", "leave": 1})
    executor.submit({"key": "ever", "leave": 99})
    executor.submit({"key": "wrong", "fail": "by itself"})
    ended = rest(executor, 3)
    assert ended["once"].result is not None and ended["once"].result["begun"] == 2
    assert ended["ever"].error == "its worker died 3 times (SystemExit: 143)"
    assert ended["wrong"].error == "ValueError: by itself"


def signalled(folder: Path) -> Job:
    """A training that is told to end (SIGTERM) the first time that it is run."""
    network = {
        "factory": "tests.training.nets:Signalled",
        "mark": str(folder / "mark"),
        "number": int(signal.SIGTERM),
    }
    options: dict[str, Any] = {"network": network, "data": {"name": "digits"}, "seed": 0, "rewind": 2}
    return Job("rewind", {**options, "training": {"steps": 4}})


def test_a_study_in_this_process_ends_when_it_is_told_to(tmp_path: Path) -> None:
    job, store = signalled(tmp_path), Store(tmp_path / "store")
    with pytest.raises(SystemExit) as ended:
        run([job], store, InProcess(str(store.folder)))
    assert ended.value.code == 143  # Lightning's own says 0
    assert not store.has(job.key) and list(store.folder.iterdir()) == []
    assert run([job], store, InProcess(str(store.folder))).done == 1


def test_a_training_that_is_interrupted_says_so(tmp_path: Path) -> None:
    """Lightning makes a SystemExit of it, which a study would take for a worker that died."""
    network = Signalled(str(tmp_path / "mark"), signal.SIGINT)
    # ignored where the tests run in the background
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(network, digits(), Training(steps=4))
    finally:
        signal.signal(signal.SIGINT, before)


LISTENING = """
import os, sys
from pathlib import Path
from elastic_ir.training.studies.executors import RayCluster

cluster = RayCluster(sys.argv[1], "local")
waiting = {}
for table in ("tcp", "tcp6"):
    for line in Path("/proc/net", table).read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            waiting[f"socket:[{fields[9]}]"] = fields[1].partition(":")[0]
ours, grown = {os.getpid()}, True
parents = {}
for folder in Path("/proc").glob("[0-9]*"):
    parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
while grown:
    grown = {child for child, parent in parents.items() if parent in ours} - ours
    ours |= grown
for process in ours:
    for handle in Path(f"/proc/{process}/fd").iterdir():
        try:
            print(waiting[os.readlink(handle)])
        except (KeyError, OSError):
            pass
"""


@pytest.mark.slow
def test_a_local_ray_cluster_listens_on_loopback_alone(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    told = subprocess.run(
        [sys.executable, "-c", LISTENING, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    addresses = set(told.stdout.split())
    assert addresses, "a cluster listens"
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert addresses <= loopback
