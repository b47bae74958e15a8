"""Hostile inputs are answered in one line, at once, and in little memory: each in a process forked from a warm one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests import warm
from tests.safety.hostile_inputs import INPUTS

SECONDS, MEGABYTES = 5, 300


def run(words: list[str], said: Path) -> None:
    """Run a command; what it says, and how much memory and time it took, goes to a file."""
    from elastic_ir.cli.app import elastic_ir

    handle = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, begun, code = resident("VmRSS"), time.process_time(), 70
    try:
        elastic_ir(words, standalone_mode=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else bool(error.code)
    print("\ntook", resident("VmHWM") - before, time.process_time() - begun, flush=True)
    os._exit(code)


def resident(field: str) -> int:
    """Megabytes of this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(field))


@pytest.mark.slow
def test_each_is_answered_at_once_and_in_little_memory(tmp_path: Path) -> None:
    wrong = {}
    for name, (make, wanted) in INPUTS.items():
        folder, file = tmp_path / name, tmp_path / f"{name}.txt"
        folder.mkdir()
        process = warm.context().Process(target=run, args=(make(folder), file))
        process.start()
        process.join(30)  # other work on the machine makes it longer, and what waits for ever is longer still
        code = process.exitcode
        process.kill()
        process.join()
        text = file.read_text()
        said, _, took = text.rpartition("\ntook ")
        peak, seconds = map(float, took.split()) if code in (0, 1, 2) else (0.0, 0.0)
        print(f"{name:45} {code} {seconds:6.2f} s {peak:5.0f} MB  {' '.join(said.split())[-150:]}")
        fine = code in (0, 1, 2) and seconds < SECONDS and peak < MEGABYTES and "unexpected" not in said
        fine &= code != 1 or (said.startswith("error: ") and len(said.strip().splitlines()) == 1)
        fine &= not wanted or (code != 0 and wanted in said)
        if not fine:
            wrong[name] = code, text[-300:]
    assert len(INPUTS) > 60
    assert not wrong
