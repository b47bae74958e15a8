"""Modules of ours in a process of their own: what they answer, what ends them, and which are kept."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from elastic_ir.safety import own_process
from elastic_ir.safety.own_process import ProcessError, started

HEAD = "import json, os, sys, time\nfrom elastic_ir.safety.own_process import bounded, serve\n"
NAME = "module_of_a_test"
PID = "def answer(data): return os.getpid()\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    own_process._end_all()


def write(folder: Path, body: str, name: str = NAME) -> None:
    (folder / f"{name}.py").write_text(f"{HEAD}{body}\nserve(answer)\n")


def answered(data: object = None, name: str = NAME) -> object:
    with started(name, data) as process:
        return process.answer()


def ends(pid: object) -> bool:
    """Whether a process is gone, or is soon; one that nobody has waited for is."""
    command = Path(f"/proc/{pid}/cmdline")
    for _ in range(500):
        try:
            if not command.read_bytes():
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_data_goes_in_and_comes_out_whatever_is_printed(folder: Path) -> None:
    body = """
def answer(data):
    print("noise"); os.system("echo more noise")
    return [data["number"], len(data["long"]), os.environ["HF_HUB_OFFLINE"], "" in sys.path, sys.stdin.read()]
"""
    write(folder, body)
    for number in (3, 4):
        assert answered({"number": number, "long": "x" * 10**6}) == [number, 10**6, "1", False, ""]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise ValueError('so it is')", "ValueError: so it is"),
        ("sys.exit(7)", "it ended with status 7"),
        ("with bounded(50e6, 60):\n  held = []\n  while True: held.append(b'x' * 10**6)", "it takes too much memory"),
        ("with bounded(1e9, 0.2):\n  while True: pass", "it takes too long"),
    ],
)  # fmt: skip
def test_no_answer_is_told_why(folder: Path, body: str, why: str) -> None:
    """Also where the process had answered before; the next question goes to another."""
    lines = body.replace("\n", "\n  ")
    write(folder, f"def answer(data):\n  if not data: return os.getpid()\n  {lines}")
    before = answered()
    with pytest.raises(ProcessError) as failed:
        answered(1)
    assert str(failed.value) == why
    assert answered() != before


def test_what_a_question_took_is_not_counted_in_the_next(folder: Path) -> None:
    body = """
def answer(size):
    with bounded(100e6, 0.5):
        end, held = time.process_time() + 0.3, b"x" * size
        while time.process_time() < end: pass
        return len(held)
"""
    write(folder, body)
    assert [answered(size) for size in (60 << 20, 60 << 20, 60 << 20)] == [60 << 20] * 3
    with pytest.raises(ProcessError, match="it takes too much memory"):
        answered(120 << 20)


def test_it_ends_with_the_block(folder: Path) -> None:
    write(
        folder,
        f"def answer(data):\n  open('{folder}/pid', 'w').write(str(os.getpid()))\n  time.sleep(60)",
    )
    begun = time.monotonic()
    with started(NAME, None):
        while not (folder / "pid").exists() or not (folder / "pid").read_text():
            assert time.monotonic() - begun < 30
            time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)
    assert time.monotonic() - begun < 40


# -- which are kept ----------------------------------------------------------------------------------------------------


def test_one_that_has_answered_is_asked_again(folder: Path) -> None:
    write(folder, PID)
    write(folder, PID, "another_module")
    first = answered()
    assert answered() == first
    other = answered(name="another_module")  # one is kept, the last
    assert other != first and ends(first)
    with started("another_module", None) as busy:
        assert answered(name="another_module") not in (first, other)
        assert busy.answer() == other
    assert answered(name="another_module") == other
    own_process._end_all()
    assert ends(other)


def test_one_that_would_find_other_libraries_is_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, PID)
    first = answered()
    monkeypatch.syspath_prepend(folder / "libraries")
    assert answered() != first


def test_it_is_kept_for_a_while(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, PID)
    first = answered()
    monkeypatch.setattr(own_process, "_IDLE", 0.0)
    assert answered() != first


def test_it_ends_by_itself(folder: Path) -> None:
    write(folder, f"from elastic_ir.safety import own_process\nown_process._IDLE = 1.0\n{PID}")
    pid = answered()
    assert ends(pid)
    assert answered() != pid


def test_it_ends_with_what_has_started_it(folder: Path) -> None:
    """However that ends; a fork of it starts its own."""
    write(folder, PID)
    code = f"""
import os, signal
from elastic_ir.safety.own_process import started
def answered():
    with started({NAME!r}, None) as process:
        return process.answer()
print(first := answered(), flush=True)
if not os.fork():
    assert answered() != first
    os._exit(0)
assert os.wait()[1] == 0
assert answered() == first
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode < 0, done.stderr
    assert ends(done.stdout.strip())
