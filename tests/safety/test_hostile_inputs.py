"""Hostile inputs are answered in one line, at once, and in little memory: each in a process forked from a warm one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.safety.hostile_inputs import INPUTS

SECONDS, MEGABYTES = 5, 300

#: Imports what commands import, then for each line (a list of words as JSON) forks, runs, and answers with a line.
_SERVER = """
import json, os, resource, sys, tempfile, threading, time
import torch, transformers, onnx, yaml, onnxruntime, numpy, safetensors
from transformers.models.llama import modeling_llama
import elastic_ir.cli.app as app, elastic_ir.cli.inspect, elastic_ir.cli.resize, elastic_ir.cli.apply
import elastic_ir.cli.lottery
import elastic_ir.frontends.sources, elastic_ir.frontends.torch_file, elastic_ir.frontends.trace, elastic_ir.emit.files
torch.set_num_threads(1)

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith(field))

for line in sys.stdin:
    words = json.loads(line)
    said = tempfile.TemporaryFile("w+")
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.dup2(said.fileno(), 1); os.dup2(said.fileno(), 2)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak starts anew
        before, code = resident("VmRSS"), 70
        try:
            app.elastic_ir(words, standalone_mode=True)
        except SystemExit as error:
            code = error.code or 0
        print("\\npeak", resident("VmHWM") - before, flush=True)
        os._exit(code)
    timer = threading.Timer(LIMIT, os.kill, (pid, 9)); timer.start()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]); timer.cancel()
    said.seek(0)
    text, _, peak = said.read().rpartition("\\npeak ")
    print(json.dumps([status, time.monotonic() - start, int(peak or 0), text]), flush=True)
"""


@pytest.mark.slow
def test_each_is_answered_at_once_and_in_little_memory(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER.replace("LIMIT", "30")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as server:  # fmt: skip
        assert server.stdin is not None and server.stdout is not None
        wrong = {}
        for name, (make, wanted) in INPUTS.items():
            folder = tmp_path / name
            folder.mkdir()
            words = make(folder)
            print(json.dumps(words), file=server.stdin, flush=True)
            code, seconds, peak, said = json.loads(server.stdout.readline())
            print(f"{name:45} {code:3} {seconds:6.2f} s {peak:5} MB  {' '.join(said.split())[-150:]}")
            fine = code in (0, 1, 2) and seconds < SECONDS and peak < MEGABYTES and "unexpected" not in said
            fine &= code != 1 or (said.startswith("error: ") and len(said.strip().splitlines()) == 1)
            fine &= not wanted or (code != 0 and wanted in said)
            if not fine:
                wrong[name] = code, round(seconds, 2), peak, said[-300:]
        server.stdin.close()
    assert len(INPUTS) > 60
    assert not wrong
