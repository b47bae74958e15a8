"""Real trainings in worker processes and on Ray: the same results, though workers die or are told to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from elastic_ir.training.studies.executors import InProcess, Processes, RayCluster
from elastic_ir.training.studies.run import Progress, run
from elastic_ir.training.studies.store import Store
from tests.training.studies.test_executors import signalled
from tests.training.studies.test_run import jobs_of, study


@pytest.mark.slow
def test_several_processes_do_the_same_though_one_is_told_to_end(tmp_path: Path) -> None:
    jobs, told = jobs_of(study(tmp_path, compare=[{"method": "imp"}])), signalled(tmp_path)
    many, one = Store(tmp_path / "many"), Store(tmp_path / "one")
    ended = run([told, *jobs], many, Processes(str(many.folder), 2))
    assert ended.done == ended.total and not ended.failed
    assert (tmp_path / "mark").exists() and many.has(told.key)
    run(jobs, one, InProcess(str(one.folder)))
    for job in jobs:
        assert many.result(job.key)["accuracy"] == one.result(job.key)["accuracy"]


@pytest.mark.slow
def test_workers_end_with_the_study_that_was_killed(tmp_path: Path) -> None:
    """Waiting for their next job, they would hold their memory for ever."""
    code = (
        "import sys, time\n"
        "from elastic_ir.training.studies.executors import Processes\n"
        "if __name__ == '__main__':\n"
        "    pool = Processes(sys.argv[1], 1)\n"
        "    import os\n"
        "    print(pool._made().submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    (tmp_path / "killed.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "killed.py"), str(tmp_path)], stdout=subprocess.PIPE, env=environment
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
        parent.kill()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"the worker {worker} lives on")


@pytest.mark.slow
def test_a_ray_cluster_whose_workers_are_killed_and_told_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ["PYTHONPATH"]]))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        jobs, told, store = jobs_of(study(tmp_path)), signalled(tmp_path), Store(tmp_path / "store")
        executor = RayCluster(str(store.folder), "auto")
        killed: list[int] = []

        def kill_one(now: Progress) -> None:
            if now.done < 3 or killed:
                return
            for _ in range(100):
                if busy := [worker for worker in _workers() if worker != os.getpid()]:
                    killed.append(busy[0])
                    os.kill(busy[0], signal.SIGKILL)
                    return
                time.sleep(0.05)

        ended = run([told, *jobs], store, executor, kill_one)
    finally:
        ray.shutdown()
    assert executor.slots == 2 and killed
    assert (tmp_path / "mark").exists() and store.has(told.key)
    assert ended.done == ended.total == 9 and not ended.failed
    alone = Store(tmp_path / "alone")
    run(jobs, alone, InProcess(str(alone.folder)))
    for job in jobs:
        assert json.dumps(store.result(job.key)["layers"]) == json.dumps(alone.result(job.key)["layers"])
        assert store.result(job.key)["accuracy"] == pytest.approx(alone.result(job.key)["accuracy"], abs=0.02)


def _workers() -> list[int]:
    """The process ids of Ray's workers that run one of our jobs, started by this test's cluster."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                title = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if title.startswith("ray::_work"):
                found.append(int(folder.name))
    return found
