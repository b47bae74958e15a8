"""Locks: each job is done by one of several processes, which may end in any way; the others go on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from elastic_ir.errors import PlanError
from elastic_ir.formats.locks import locked, owner, waited_for
from elastic_ir.training.fit import Measured
from elastic_ir.training.pruning import imp
from elastic_ir.training.settings import Pruning, Training
from elastic_ir.training.studies.executors import Ended, InProcess
from elastic_ir.training.studies.job_kinds import execute
from elastic_ir.training.studies.jobs import Job
from elastic_ir.training.studies.run import run
from elastic_ir.training.studies.store import Store
from tests.training.nets import digits, perceptron

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from elastic_ir.formats.locks import locked
with locked(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has a lock."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"True\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("end", ["well", "killed"])
def test_a_lock_ends_with_its_process(tmp_path: Path, end: str) -> None:
    path = tmp_path / ".lock"
    with holder(path) as process:
        with locked(path) as mine:
            assert not mine
        assert owner(path).startswith(f"process {process.pid} on ")
        if end == "well":
            process.communicate()
            assert not path.exists()
        else:
            process.kill()
            process.wait()
        with locked(path) as mine:
            assert mine and owner(path).startswith(f"process {os.getpid()} on ")
    assert list(tmp_path.iterdir()) == [] and owner(path) == "another process"


def test_a_lock_is_had_by_one_of_many(tmp_path: Path) -> None:
    """Its file comes and goes, so that one may have opened a file that is no lock any more."""
    path, inside, most = tmp_path / ".lock", [0], [0]

    def work() -> None:
        for _ in range(40):
            with locked(path) as mine:
                if mine:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0.0005)
                    inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and not path.exists()


def test_the_lock_that_another_made_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locked(path) as mine:
        assert mine
        path.unlink()
        stack = ExitStack()
        assert stack.enter_context(locked(path))
    with stack, locked(path) as third:
        assert path.exists() and not third
    assert not path.exists()


def test_where_files_cannot_be_locked_everybody_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / ".lock") as one, locked(tmp_path / ".lock") as two:
        assert one and two


def test_who_is_waited_for_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, told = tmp_path / ".lock", list[str]()
    monkeypatch.setattr("elastic_ir.formats.locks.LOOK", 0.01)
    with holder(path) as process:
        threading.Timer(0.1, process.kill).start()
        with waited_for(path, told.append):
            assert path.exists()
    assert len(told) == 1 and str(process.pid) in told[0]


def plain(key: str, **needs: Job) -> Job:
    return Job("rewind", {"name": key}, needs)


class Quick(InProcess):
    """Does nothing for a job, under its lock as the real thing does it."""

    def __init__(self, store: Store) -> None:
        super().__init__(str(store.folder))
        self.store, self.did = store, list[str]()

    def wait(self, seconds: float | None = None) -> list[Ended]:
        spec = self._waiting.pop(0)
        with self.store.locked(spec["key"]) as mine:
            if not mine:
                return [Ended(spec["key"], None)]
            self.did.append(spec["key"])
            return [Ended(spec["key"], finished(self.store, spec))]


def finished(store: Store, spec: Mapping[str, Any]) -> dict[str, Any]:
    with store.workspace(spec) as place:
        store.write_result(place, {"seconds": 1.0})
    return store.result(spec["key"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("studies.run", "pruning.imp"):
        monkeypatch.setattr(f"elastic_ir.training.{module}.LOOK", 0.02)


def test_what_another_command_is_at_is_skipped_and_its_result_taken(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = plain("first"), plain("second")
    last = plain("last", first=first)
    executor, ends = Quick(store), list[str]()
    with holder(tmp_path / f".{first.key}.lock") as process:
        assert store.busy(first.key) and not store.busy(second.key)
        assert execute(first.spec(), str(tmp_path)) is None

        def other(now: Any) -> None:
            if now.elsewhere and second.key in ends and not store.has(first.key):
                finished(store, first.spec())
                process.kill()

        progress = run([first, second, last], store, executor, other, lambda job, _: ends.append(job.key))
    assert executor.did == [second.key, last.key] and ends == [second.key, first.key, last.key]
    assert (progress.done, progress.failed, progress.elsewhere) == (3, {}, [])
    assert sum(progress.left.values()) == 0


def test_a_job_whose_worker_was_killed_is_taken_over(tmp_path: Path) -> None:
    store, job = Store(tmp_path), plain("only")
    executor = Quick(store)
    with holder(tmp_path / f".{job.key}.lock") as process:
        threading.Timer(0.2, process.kill).start()
        progress = run([job], store, executor)
    assert executor.did == [job.key] and progress.done == 1
    assert [path.name for path in tmp_path.iterdir()] == [job.key]


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    store, job = Store(tmp_path), plain("only")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = os.uname().nodename
    left = tmp_path / f".{job.key}.{host}.{dead.pid}.0123"
    mine = tmp_path / f".{job.key}.{host}.{os.getpid()}.0123"
    other = tmp_path / f".{job.key}.elsewhere.{dead.pid}.0123"
    lock = tmp_path / ".level-0123.lock"
    for place in (left, mine, other):
        place.mkdir()
    lock.write_text("process 1 on mars\n")
    with holder(tmp_path / f".{job.key}.lock"):
        assert store.sweep() == 0 and left.exists() and not lock.exists()
    assert store.sweep() == 1 and not left.exists() and mine.exists() and other.exists()


def search(folder: Path, told: Any = None, **changes: Any) -> list[imp.Level]:
    training = Training(**{"steps": 4, "batch_size": 64, **changes})
    return imp.find_tickets(perceptron(), digits(), training, Pruning(levels=1), folder, waiting=told)


def test_two_searches_in_one_folder_share_their_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one trains the dense network and is killed; this one waits, takes that, and goes on."""
    search(tmp_path)
    before = (tmp_path / "level00.json").read_text()
    for name in ("level00.json", "level01.json"):
        (tmp_path / name).unlink()
    real, trained, told = imp.train_level, list[int](), list[str]()

    def train(*args: Any, **named: Any) -> tuple[float, Measured]:
        trained.append(args[6])
        return real(*args, **named)

    monkeypatch.setattr(imp, "train_level", train)
    with holder(tmp_path / ".search.lock") as process:

        def other(who: str) -> None:
            told.append(who)
            (tmp_path / "level00.json").write_text(before)
            os.kill(process.pid, signal.SIGKILL)

        with pytest.raises(
            PlanError, match=rf"steps was 4, now 5.*\(process {process.pid} on .* is working on it\)"
        ):
            search(tmp_path, steps=5)
        levels = search(tmp_path, other)
    assert trained == [1] and len(levels) == 2 and len(told) == 1
    assert not (tmp_path / ".search.lock").exists()


COMMAND = """
import os, sys
from elastic_ir.training.studies import job_kinds as kinds
from elastic_ir.cli.app import elastic_ir

def counted(do):
    def done(work):
        with open(sys.argv[1], "a") as file:
            file.write(f"{os.getpid()} {work.place.name.split('.')[1]}\\n")
        return do(work)
    return done

for kind, do in list(kinds.KINDS.items()):
    kinds.KINDS[kind] = counted(do)
elastic_ir(sys.argv[2:])
"""


@pytest.mark.slow
def test_three_commands_on_one_store_of_which_one_is_killed(tmp_path: Path) -> None:
    study = {
        "name": "tiny", "data": "digits", "training": {"steps": 200, "batch_size": 64},
        "networks": {"two": {"factory": "tests.training.nets:Perceptron", "blocks": 2}},
        "pruning": {"rewind": 2, "share": 0.5}, "sparsities": [0.5], "seeds": [0, 1, 2],
        "compare": [{"method": "imp"}, {"method": "random"}],
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'torchvision_cpu'}",
        "OMP_NUM_THREADS": "1",
    }

    log = tmp_path / "log"

    def begun() -> list[tuple[str, str]]:
        return [(p, k) for p, k in map(str.split, log.read_text().splitlines())] if log.exists() else []

    arguments = ["lottery", "run", str(tmp_path / "study.yaml"), "--store", str(tmp_path / "store")]
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(log), *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        )
        for _ in range(3)
    ]  # fmt: skip
    while not (busy := [one for one in commands if [p for p, _ in begun()].count(str(one.pid)) >= 2]):
        assert any(one.poll() is None for one in commands)
        time.sleep(0.01)
    # whichever is ahead: on a busy machine one may do much before the others have started
    busy[0].kill()
    commands.remove(busy[0])
    busy[0].communicate()
    said = [one.communicate()[0] for one in commands]
    assert [one.returncode for one in commands] == [0, 0], said
    assert all("12 of 12" in one for one in said), said
    keys = [key for _, key in begun()]
    assert len(set(keys)) == 12 and len(keys) <= 13  # the one that was killed at it may be done again
    assert len({process for process, _ in begun()}) == 3
    left = {path.name for path in (tmp_path / "store").iterdir() if path.is_dir() and path.name[0] != "."}
    assert left == set(keys)
