"""Shards written by several workers: the same folder as by one, resumed alike, and nothing left where one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import elastic_ir as eir
from elastic_ir.checkpoints import shards
from elastic_ir.checkpoints.shards import Shard, Workers, write_shards
from elastic_ir.checkpoints.write import save_checkpoint
from elastic_ir.errors import OutputError, SourceError
from tests.checkpoints.folders import config, llama, run, write

PLAN = ("--plan", "0-3,1", "--shard-size", "700")


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", llama(), config(4), shards=3)


@pytest.mark.parametrize("more", [(), ("--durable",)])
def test_two_processes_write_what_one_writes(source: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    assert run("stretch", source, *PLAN, "-o", tmp_path / "one").exit_code == 0
    done = run("stretch", source, *PLAN, "-o", tmp_path / "two", "--jobs", "2", *more)
    assert done.exit_code == 0, done.output
    assert tree(tmp_path / "two") == tree(tmp_path / "one")
    assert len(list((tmp_path / "two").glob("*.safetensors"))) > 3
    assert not list(tmp_path.glob(".*"))


def test_a_recipe_and_masks_pass_to_the_workers(source: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    graph = eir.load(source, headers_only=True, masks={name: np.eye(16, 8)})
    deeper = eir.stretch(graph, plan="0-3,1")
    for count in (1, 2):
        save_checkpoint(deeper, tmp_path / str(count), check=False, shard_size=700, workers=Workers(count))
    assert tree(tmp_path / "1") == tree(tmp_path / "2")
    masked = eir.load(tmp_path / "2", headers_only=True)
    assert masked.weights["model.layers.4.mlp.up_proj.weight"].mask is not None


def test_what_an_earlier_run_has_finished_is_not_written_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("stretch", source, *PLAN, "-o", tmp_path / "whole").exit_code == 0
    files = 0
    genuine = shards.__dict__["write_safetensors"]

    def stopped(*given: object) -> None:
        nonlocal files
        files += 1
        if files == 4:
            raise KeyboardInterrupt
        genuine(*given)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_safetensors", stopped)
        assert run("stretch", source, *PLAN, "-o", tmp_path / "out").exit_code == 130
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.partial" / "whole").iterdir()}
    assert len(kept) == 3
    assert run("stretch", source, *PLAN, "-o", tmp_path / "out", "--resume", "--jobs", "2").exit_code == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept} == kept


def test_an_error_of_a_worker_is_one_line(source: Path, tmp_path: Path) -> None:
    graph = eir.stretch(eir.load(source, headers_only=True), plan="0-3,1")
    (source / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        SourceError, match=r"model-00002-of-00003\.safetensors could not be read: no such file"
    ):
        save_checkpoint(graph, tmp_path / "out", check=False, shard_size=700, workers=Workers(2))
    assert not (tmp_path / "out").exists()
    again = write(tmp_path / "again", llama(), config(4), shards=3)
    changed = eir.stretch(eir.load(again, headers_only=True), plan="0-3,1")
    for file in (tmp_path / "again").glob("*.safetensors"):
        os.utime(file, ns=(1, 1))
    with pytest.raises(SourceError, match=r"was changed after it was read; read it again$"):
        save_checkpoint(changed, tmp_path / "next", check=False, shard_size=700, workers=Workers(2))
    assert not list(tmp_path.glob(".next*"))


class Deadly:
    """A tensor whose reading kills the process."""

    shape, dtype = (4,), "float32"

    def chunks(self) -> Iterator[memoryview]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield memoryview(bytes(16))


@pytest.mark.slow
def test_a_killed_worker_is_told_of(tmp_path: Path) -> None:
    files: dict[str, Shard] = {name: ({"a": Deadly()}, {}) for name in "ab"}
    with pytest.raises(
        OutputError, match=r"a process that wrote a part was killed, perhaps for want of memory"
    ):
        write_shards(tmp_path, files, False, Workers(2), lambda name: None, lambda size: None)


def test_options_that_fit_no_file(tmp_path: Path) -> None:
    done = run("stretch", tmp_path / "model.pt", "--to-units", "5", "--jobs", "2")
    assert done.exit_code == 2
    assert "--jobs is for checkpoint folders that are written as folders" in done.output
    with pytest.raises(OutputError, match="0 processes write nothing; give 1 or more"):
        Workers(0)


def children(parent: int) -> list[int]:
    """The processes that a process has begun, and theirs."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found += [int(status.parent.name), *children(int(status.parent.name))]
    return found


SLOW = """
import signal
import sys
from tests.checkpoints.test_shards import slow_run
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    slow_run(*sys.argv[1:])
"""


def slow_run(folder: str) -> None:
    """Write two files that never end."""
    files: dict[str, Shard] = {name: ({"a": SlowTensor(folder)}, {}) for name in "ab"}
    write_shards(Path(folder), files, False, Workers(2), lambda name: None, lambda size: None)


class SlowTensor:
    """A tensor that takes minutes; it says when its reading begins."""

    shape, dtype = (4,), "float32"

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def chunks(self) -> Iterator[memoryview]:
        (Path(self.folder) / f"begun-{os.getpid()}").touch()
        time.sleep(300)
        yield memoryview(bytes(16))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_run(tmp_path: Path, sent: signal.Signals) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, script, tmp_path], stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths}
    )
    try:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("begun-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        workers = [int(path.name.partition("-")[2]) for path in tmp_path.glob("begun-*")]
        assert len(workers) == 2
        assert set(workers) <= set(children(process.pid))
        process.send_signal(sent)
        process.wait(30)
        while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < until:
            time.sleep(0.05)
        assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    finally:
        process.kill()


def by_ray(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A stretch in a process of its own: Ray takes signals over where it is imported."""
    command = [sys.executable, "-m", "elastic_ir.cli", "stretch", *map(str, arguments), "--no-check"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_a_local_ray_cluster_writes_the_same(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    assert run("stretch", source, *PLAN, "-o", tmp_path / "one").exit_code == 0
    done = by_ray(source, *PLAN, "-o", tmp_path / "two", "--ray", "local", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


@pytest.mark.slow
def test_no_cluster_is_one_line(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = by_ray(source, *PLAN, "-o", tmp_path / "two", "--ray", "auto")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Ray cluster at 'auto'")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "two").exists()
