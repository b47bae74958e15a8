"""Runs that are stopped: what they leave, what goes on with it, and what is refused."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import elastic_ir as eir
from elastic_ir.checkpoints import resumable as partial
from elastic_ir.checkpoints import shards
from elastic_ir.checkpoints import write as checkpoint
from elastic_ir.checkpoints.resumable import leftover, partial_folder
from elastic_ir.checkpoints.write import save_checkpoint
from elastic_ir.errors import OutputError, SourceError
from elastic_ir.formats.files import sync
from elastic_ir.formats.safetensors import write_safetensors
from tests import warm
from tests.checkpoints import killed
from tests.checkpoints.folders import config, llama, run, write

PLAN = ("--plan", "0-3,1", "--shard-size", "700")
KEPT = "what is finished of it is kept (files: {}), and --resume goes on with that"


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write(tmp_path / "source", llama(), config(4), shards=3)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def whole(source: Path, tmp_path: Path) -> dict[str, bytes]:
    """What an without_side_effects run writes."""
    assert run("stretch", source, *PLAN, "-o", tmp_path / "without_side_effects").exit_code == 0
    return tree(tmp_path / "without_side_effects")


def stop_at(number: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the writing of one file begin and then fail."""
    files = 0

    def failing(path: Path, *rest: Any) -> None:
        nonlocal files
        files += 1
        if files == number:
            path.write_bytes(b"part of it")
            raise error
        write_safetensors(path, *rest)

    monkeypatch.setattr(shards, "write_safetensors", failing)


@pytest.fixture
def stopped(source: Path, tmp_path: Path, whole: dict[str, bytes]) -> Path:
    """The work of a run that was interrupted when three shards were done."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(4, KeyboardInterrupt(), patch)
        done = run("stretch", source, *PLAN, "-o", tmp_path / "out")
    assert done.exit_code == 130
    assert done.output.endswith(f"{tmp_path / 'out'}: {KEPT.format(3)}\ninterrupted\n")
    folder = tmp_path / ".out.partial"
    assert sorted(path.name for path in folder.iterdir()) == ["journal", "whole"]
    assert not (tmp_path / "out").exists()
    return folder


def same(folder: Path, whole: dict[str, bytes]) -> bool:
    """Whether a target is whole, and nothing lies beside it."""
    return tree(folder) == whole and not list(folder.parent.glob(".*"))


def test_resume_goes_on(source: Path, tmp_path: Path, stopped: Path, whole: dict[str, bytes]) -> None:
    kept = {path.name: path.stat().st_ino for path in (stopped / "whole").iterdir()}
    told: list[tuple[int, int]] = []
    graph = eir.stretch(eir.load(source, headers_only=True), plan=[[0, 1, 2, 3, 1]])
    out = tmp_path / "out"
    save_checkpoint(graph, out, check=False, shard_size=700, resume=True, tell=lambda *now: told.append(now))
    assert same(out, whole)
    assert len(kept) == 3 and all((out / name).stat().st_ino == inode for name, inode in kept.items())
    assert 1000 < told[0][0] < told[0][1] == told[-1][0]  # it begins with what was there


def test_resume_from_another_folder(
    source: Path, tmp_path: Path, stopped: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source)
    assert run("stretch", ".", *PLAN, "-o", "../out", "--resume").exit_code == 0
    assert same(tmp_path / "out", whole)


def test_resume_of_nothing_is_a_run(source: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    assert run("stretch", source, *PLAN, "-o", tmp_path / "out", "--resume").exit_code == 0
    assert same(tmp_path / "out", whole)
    done = run("stretch", source, *PLAN, "-o", tmp_path / "out", "--resume")
    assert done.output.endswith(f"error: {tmp_path / 'out'} exists already and is not an empty folder\n")
    assert same(tmp_path / "out", whole)


def test_without_resume_it_is_removed(
    source: Path, tmp_path: Path, stopped: Path, whole: dict[str, bytes]
) -> None:
    (stopped / "whole" / "other.safetensors").write_text("of an earlier plan")
    done = run("stretch", source, *PLAN, "-o", tmp_path / "out")
    assert f"removed:    {stopped}, which an earlier run had left\n" in done.output
    assert same(tmp_path / "out", whole)


def test_dry_run_tells_what_is_there(source: Path, tmp_path: Path, stopped: Path) -> None:
    for option, way in (("--resume", "--resume goes on with it"), ("", "without --resume it is removed")):
        done = run("stretch", source, *PLAN, "-o", tmp_path / "out", "--dry-run", *filter(None, [option]))
        assert f"begun:      {stopped} holds 3 finished files; {way}\n" in done.output
    assert stopped.is_dir()


def change_journal(folder: Path, **entries: object) -> None:
    journal = folder / "journal"
    journal.write_text(json.dumps(json.loads(journal.read_text()) | entries) + "\n")


@pytest.mark.parametrize(
    ("edit", "options", "why"),
    [
        (None, ("--plan", "0-3,2", "--shard-size", "700"), "for another plan, source or shard size"),
        (None, ("--plan", "0-3,1", "--shard-size", "800"), "for another plan, source or shard size"),
        (
            lambda source, _: os.utime(source / "model-00002-of-00003.safetensors"),
            PLAN,
            "from a source that was changed since",
        ),
        (lambda _, work: change_journal(work, version="0.0.0"), PLAN, "by ElasticIR 0.0.0"),
        (lambda _, work: (work / "journal").write_text("{"), PLAN, "and its journal is damaged"),
        (lambda _, work: (work / "journal").write_text('{"a": 1}\n'), PLAN, "and its journal is damaged"),
    ],
)
def test_what_cannot_be_resumed(
    source: Path,
    tmp_path: Path,
    stopped: Path,
    edit: Callable[[Path, Path], None] | None,
    options: tuple[str, ...],
    why: str,
) -> None:
    if edit is not None:
        edit(source, stopped)
    before = tree(stopped)
    done = run("stretch", source, *options, "-o", tmp_path / "out", "--resume")
    assert done.exit_code == 1
    assert done.output.endswith(
        f"error: {tmp_path / 'out'} cannot be resumed: .out.partial beside it was begun {why}; without --resume "
        "it is begun anew\n"
    )
    assert tree(stopped) == before
    assert run("stretch", source, *options, "-o", tmp_path / "out").exit_code == 0
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("damage", ["cut", "header", "gone"])
def test_a_kept_file_that_is_not_whole(
    source: Path, tmp_path: Path, stopped: Path, whole: dict[str, bytes], damage: str
) -> None:
    path = sorted((stopped / "whole").iterdir())[1]
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:-1] if damage == "cut" else data[:20] + b"!" + data[21:])
    (stopped / "whole" / "left.over").write_text("of nothing")
    assert run("stretch", source, *PLAN, "-o", tmp_path / "out", "--resume").exit_code == 0
    assert same(tmp_path / "out", whole)


@pytest.mark.parametrize("durable", [True, False])
def test_after_the_system_has_started_anew(
    source: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """Then only what was synced counts; the other files may have lost their bytes."""
    options = ("stretch", source, *PLAN, "-o", tmp_path / "out", *(["--durable"] if durable else []))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(4, KeyboardInterrupt(), patch)
        run(*options)
    kept = {path.name: path.stat() for path in (tmp_path / ".out.partial" / "whole").iterdir()}
    assert kept
    for name, status in kept.items():  # a machine that crashed keeps names and sizes, and loses bytes
        if not durable:
            (tmp_path / ".out.partial" / "whole" / name).write_bytes(whole[name][:-8] + bytes(8))
        assert status.st_size == len(whole[name])
    monkeypatch.setattr(partial, "boot_id", lambda: "another")
    assert run(*options, "--resume").exit_code == 0
    assert same(tmp_path / "out", whole)
    again = {name: (tmp_path / "out" / name).stat().st_mtime_ns == s.st_mtime_ns for name, s in kept.items()}
    assert set(again.values()) == {durable}


def test_durable_syncs_a_file_before_its_mark(
    source: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, str]] = []
    rename = os.rename

    def told_sync(path: Path) -> None:
        steps.append(("sync", path.name))
        sync(path)

    def told_rename(old: Path, new: Path) -> None:
        steps.append(("name", new.name))
        rename(old, new)

    monkeypatch.setattr(partial, "sync", told_sync)
    monkeypatch.setattr(os, "rename", told_rename)
    assert run("stretch", source, *PLAN, "-o", tmp_path / "out", "--durable").exit_code == 0
    shards = [name for name in whole if name.endswith(".safetensors")]
    assert len(shards) > 3
    for name in shards:
        assert steps.index(("sync", name)) < steps.index(("name", name))
    assert ("sync", "config.json") in steps[: steps.index(("name", "out"))]
    assert steps[-1] == ("sync", tmp_path.name)
    assert same(tmp_path / "out", whole)


def test_a_failing_sync_of_the_name_is_told_as_what_it_is(
    source: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> None:
        if path == tmp_path and (tmp_path / "out").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(path)

    monkeypatch.setattr(partial, "sync", failing)
    done = run("stretch", source, *PLAN, "-o", tmp_path / "out", "--durable")
    assert done.exit_code == 1
    assert "out is written and whole, but its name may not be on the disk: input/output error" in done.output
    assert same(tmp_path / "out", whole)
    assert list(tmp_path.glob(".*")) == []


def test_durable_after_a_run_without(
    source: Path,
    tmp_path: Path,
    stopped: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(partial, "sync", lambda path: synced.append(path.name))
    kept = {path.name for path in (stopped / "whole").iterdir()}
    stop_at(1, OSError(errno.EIO, os.strerror(errno.EIO)), monkeypatch)
    done = run("stretch", source, *PLAN, "-o", tmp_path / "out", "--resume", "--durable")
    assert f"out could not be written: input/output error; {KEPT.format(3)}\n" in done.output
    assert set(synced) >= kept  # before the journal says so
    assert json.loads((stopped / "journal").read_text())["durable"] is True


def test_killed_between_the_name_and_the_end(
    source: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial.Work, "remove", lambda _: None)
        run("stretch", source, *PLAN, "-o", tmp_path / "out")
    assert tree(tmp_path / "out") == whole
    assert (tmp_path / ".out.partial" / "journal").exists()
    assert run("stretch", source, *PLAN, "-o", tmp_path / "out", "--resume").exit_code == 0
    assert same(tmp_path / "out", whole)


def test_killed_while_earlier_work_is_removed(source: Path, tmp_path: Path, stopped: Path) -> None:
    """Its files count no more, and what another has put at the target since is not taken for its end."""
    change_journal(stopped, ending=True)
    (stopped / "whole").rename(stopped / "begun")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("another's")
    done = run("stretch", source, *PLAN, "-o", tmp_path / "out", "--resume")
    assert done.output.endswith(f"error: {tmp_path / 'out'} exists already and is not an empty folder\n")
    assert tree(tmp_path / "out") == {"a": b"another's"} and not stopped.exists()


def test_a_leftover_of_nothing_does_not_stay(source: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    (tmp_path / ".without_side_effects.partial").mkdir()
    done = run("stretch", source, *PLAN, "-o", tmp_path / "without_side_effects", "--resume")
    assert "without_side_effects exists already" in done.output
    assert not list(tmp_path.glob(".*"))


# -- what stops a run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_stopped_before_anything_is_done(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    stop_at(1, error, monkeypatch)
    done = run("stretch", source, *PLAN, "-o", tmp_path / "out")
    said = "interrupted" if isinstance(error, KeyboardInterrupt) else "nothing of it is left"
    assert done.output.endswith(f"{said}\n") and "kept" not in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_disk_that_is_full_midway(
    source: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(4, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), patch)
        done = run("stretch", source, *PLAN, "-o", tmp_path / "out")
    said = f"error: {tmp_path / 'out'} could not be written: no space left on device; {KEPT.format(3)}\n"
    assert done.output.endswith(said)
    assert run("stretch", source, *PLAN, "-o", tmp_path / "out", "--resume").exit_code == 0
    assert same(tmp_path / "out", whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 128 KiB; skipped where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing may be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_real_disk_that_is_full_midway(
    source: Path,
    tmp_path: Path,
    small_disk: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "_ROOM", 0)
    (small_disk / "ballast").write_bytes(bytes(100 << 10))  # files of a page each: some fit, and not all
    done = run("stretch", source, *PLAN, "-o", small_disk / "out")
    assert done.output.splitlines()[-1].startswith(
        f"error: {small_disk / 'out'} could not be written: no space"
    )
    work = leftover(small_disk / "out")
    assert work is not None and list((work / "whole").iterdir())
    assert not (small_disk / "out").exists()
    (small_disk / "ballast").unlink()
    assert run("stretch", source, *PLAN, "-o", small_disk / "out", "--resume").exit_code == 0
    assert same(small_disk / "out", whole)


def test_what_lies_there_counts_as_room(
    source: Path, tmp_path: Path, stopped: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.statvfs(tmp_path)
    held = partial.held_by(stopped)
    total = sum(map(len, whole.values()))
    monkeypatch.setattr(checkpoint, "_ROOM", 0)
    few = os.statvfs_result((status.f_bsize, 1, 0, total - held, total - held, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: few)
    assert held >= 3 * 512
    assert run("stretch", source, *PLAN, "-o", tmp_path / "out", "--resume").exit_code == 0
    none = os.statvfs_result((status.f_bsize, 1, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: none)
    done = run("stretch", source, *PLAN, "-o", tmp_path / "two")
    assert "GB free; make room" in done.output and leftover(tmp_path / "two") is None
    assert not list(tmp_path.glob(".*"))


def test_two_runs_on_one_target(source: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    """The second one says so, whether it would resume or not, and disturbs nothing."""
    graph = eir.stretch(eir.load(source, headers_only=True), plan=[[0, 1, 2, 3, 1]])
    said: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        if done in (0, total):
            said.append(run("stretch", source, *PLAN, "-o", tmp_path / "out").output)
            said.append(run("stretch", source, *PLAN, "-o", tmp_path / "out", "--resume").output)

    save_checkpoint(graph, tmp_path / "out", check=False, shard_size=700, tell=meanwhile)
    told = f"error: {tmp_path / 'out'} is being written by another run; wait for it, or write elsewhere with -o OUT\n"
    assert len(said) == 4 and all(one.endswith(told) for one in said)
    assert same(tmp_path / "out", whole)


def test_a_target_that_appears_meanwhile(
    source: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    graph = eir.stretch(eir.load(source, headers_only=True), plan=[[0, 1, 2, 3, 1]])

    def appear(done: int, total: int) -> None:
        if done == total:
            out.mkdir()
            (out / "a").write_text("another's")

    with pytest.raises(OutputError, match="out could not be written: directory not empty; what is finished"):
        save_checkpoint(graph, out, check=False, shard_size=700, tell=appear)
    assert tree(out) == {"a": b"another's"}
    done = run("stretch", source, *PLAN, "-o", out, "--resume")
    assert done.output.endswith(
        f"out exists already and is not an empty folder; {tmp_path / '.out.partial'} holds unfinished work on it\n"
    )
    assert run("stretch", source, *PLAN, "-o", out).output == done.output
    out.rename(tmp_path / "away")
    monkeypatch.setattr(shards, "write_safetensors", None)  # nothing is left to be written
    assert run("stretch", source, *PLAN, "-o", out, "--resume").exit_code == 0
    assert same(out, whole)


def test_an_empty_folder_is_filled(source: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    (tmp_path / "out").mkdir()
    assert run("stretch", source, *PLAN, "-o", tmp_path / "out").exit_code == 0
    assert same(tmp_path / "out", whole)


@pytest.mark.parametrize("form", ["file", "folder", "link"])
def test_something_else_in_the_way(source: Path, tmp_path: Path, form: str) -> None:
    place = tmp_path / ".out.partial"
    if form == "file":
        place.write_text("mine")
    elif form == "folder":
        (place / "whole").mkdir(parents=True)
        (place / "whole" / "a").write_text("mine")
    else:
        place.symlink_to(source)
    for option in ([], ["--resume"]):
        done = run("stretch", source, *PLAN, "-o", tmp_path / "out", *option)
        assert done.exit_code == 1
        assert done.output.splitlines()[-1].startswith(f"error: {tmp_path}")
    assert place.read_text() == "mine" if form == "file" else tree(place)
    if form == "folder":
        assert done.output.endswith(
            f"error: {place} is in the way, and was not left by a run of yours; move it elsewhere\n"
        )
        assert tree(place) == {"whole/a": b"mine"}


def test_long_names(source: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    names = ["x" * 255, "x" * 254 + "y", "é" * 127]
    assert len({partial_folder(tmp_path / name) for name in names}) == 3
    for name in names:
        assert run("stretch", source, *PLAN, "-o", tmp_path / name).exit_code == 0
        assert same(tmp_path / name, whole)


@pytest.mark.parametrize("file", ["model-00003-of-00003.safetensors", "tokenizer.json"])
def test_a_source_that_changes_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Of what was finished before nothing could be used, whatever the file is."""
    graph = eir.stretch(eir.load(source, headers_only=True), to_units=5)

    def touch(done: int, total: int) -> None:
        if done > total / 2:
            with (source / file).open("r+b") as opened:  # in place, to the same length
                first = opened.read(1)
                opened.seek(0)
                opened.write(first)

    with pytest.raises(SourceError, match=f"{file} was changed after it was read; read it again"):
        save_checkpoint(graph, tmp_path / "out", check=False, shard_size=700, tell=touch)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_source_that_cannot_be_read_for_a_while(
    source: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """A share that went away and came back has not changed."""
    graph = eir.stretch(eir.load(source, headers_only=True), plan=[[0, 1, 2, 3, 1]])
    shard = source / "model-00003-of-00003.safetensors"

    def lose(done: int, total: int) -> None:
        if done > total / 2 and shard.exists():
            shard.rename(tmp_path / "away")

    with pytest.raises(
        SourceError, match=r"00003.safetensors could not be read: .*; what is finished of it is kept"
    ):
        save_checkpoint(graph, tmp_path / "out", check=False, shard_size=700, tell=lose)
    (tmp_path / "away").rename(shard)
    assert run("stretch", source, *PLAN, "-o", tmp_path / "out", "--resume").exit_code == 0
    assert same(tmp_path / "out", whole)


# -- kill -9 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moments", "durable"),
    [
        (5, False),
        pytest.param(25, False, marks=pytest.mark.slow),
        pytest.param(12, True, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments(tmp_path: Path, moments: int, durable: bool) -> None:
    """The target is absent or whole, the source as it was, and ``--resume`` completes to the same bytes."""
    state = llama(20)
    source, out = write(tmp_path / "source", state, config(20), shards=3), tmp_path / "out"
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({name: np.arange(128).reshape(16, 8) % 3 == 0}, source / "model.masks.safetensors")
    options = ["stretch", str(source), "--to-units", "30", "--shard-size", "260", "--no-check"]
    options += ["--durable"] if durable else []
    context = warm.context()

    def start(target: Path, files: int, pause: float = 0.0) -> multiprocessing.process.BaseProcess:
        """A run that has just begun, or has just begun so many files."""
        here, there = context.Pipe()
        process = context.Process(target=killed.command, args=(there, [*options, "-o", str(target)], pause))
        process.start()
        there.close()
        for _ in range(1 + files):
            here.recv()
        return process

    seconds: list[float] = []
    for files in (0, 1, 0, 1):  # the first one also starts the server
        process = start(tmp_path / "without_side_effects", files)
        begun = time.perf_counter()
        process.join()
        seconds.append(time.perf_counter() - begun)
        assert process.exitcode == 0
        whole = tree(tmp_path / "without_side_effects")
        subprocess.run(["rm", "-r", str(tmp_path / "without_side_effects")], check=True)
    before = tree(source)
    assert len(whole) > 100
    stamps = {path: path.stat() for path in source.iterdir()}
    dice = random.Random(moments)
    partly = 0
    for moment in range(moments):
        if moment % 4 == 1:  # in the middle of the files, however fast or busy the machine is
            process = start(out, dice.randint(2, len(whole) // 2), pause=0.002)
            time.sleep(dice.uniform(0, 0.004))
        else:
            files = moment % 2  # every other kill while files are written
            process = start(out, files)
            time.sleep(dice.uniform(0, seconds[2 + files]))
        process.kill()
        process.join()
        assert not out.exists() or tree(out) == whole
        work = leftover(out)
        partly += work is not None and any((work / "whole").glob("*"))
        done = run(*options, "-o", out, "--resume")
        assert done.exit_code == 0 or (work is None and "exists already" in done.output), done.output
        assert tree(out) == whole
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
        subprocess.run(["rm", "-r", str(out)], check=True)
    assert tree(source) == before and {path: path.stat() for path in source.iterdir()} == stamps
    assert partly >= moments // 5  # or nothing was tested
