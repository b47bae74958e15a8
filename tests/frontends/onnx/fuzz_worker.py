"""A process that reads damaged ONNX files, and stretches and writes those that still have a structure.

``python -m tests.frontends.onnx.fuzz_worker FIRST BEHIND STEP FOLDER`` prints one line of JSON for each: its number
before it begins, then what came of it. A file that takes too long, or too much memory, ends the process: what hangs in
C++ hears no other signal than one that kills.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from elastic_ir.emit.onnx.save import save_onnx
from elastic_ir.errors import ElasticError, StructureError
from elastic_ir.frontends.onnx.graph import load_onnx
from elastic_ir.passes.depth.stretch import Stretch
from tests.frontends.onnx.mutants import mutant

SECONDS = 10
MEMORY = 1 << 30  #: beyond what the libraries have taken
_LONGEST = 1000  #: characters of a message


def peak_memory() -> int:
    """The most memory that this process has held, in MB; getrusage would count what its parent held at the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10


def _refusal(error: ElasticError) -> str:
    text = str(error)
    if len(text.splitlines()) != 1 or len(text) > _LONGEST or "Traceback" in text:
        raise AssertionError(f"no plain line: {text[:2000]!r}")
    return f"{type(error).__name__}: {text}"


def outcome(path: Path) -> str:
    """What a user would see of it; any other exception than ElasticError is a defect and leaves."""
    try:
        graph = load_onnx(path)
        str(graph)
    except ElasticError as error:
        return _refusal(error)
    made = "loaded"
    try:
        first, *rest = graph.stages
        counts = [len(first) + (first.period or 1), *map(len, rest)]
        graph = Stretch(to_stages=counts).run(graph)
        made = "stretched"
    except StructureError as error:
        _refusal(error)
    except ElasticError as error:
        return _refusal(error)
    target = path.with_name("out.onnx")
    try:
        save_onnx(graph, target, sparse=(None, True, False)[path.stat().st_size % 3])
        load_onnx(target)
    except ElasticError as error:
        return f"{made}, {_refusal(error)}"
    return f"{made}, written"


def run(numbers: range, folder: Path) -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    path = folder / "in.onnx"
    for number in numbers:
        path.write_bytes(mutant(number))
        print(json.dumps({"begun": number}), flush=True)
        begin = time.perf_counter()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            found, defect = outcome(path), ""
        except BaseException as error:
            found, defect = f"defect: {type(error).__name__}: {error}"[:2000], traceback.format_exc()[-4000:]
        signal.setitimer(signal.ITIMER_PROF, 0)
        took = time.perf_counter() - begin
        peak = peak_memory()
        print(
            json.dumps({"number": number, "found": found, "defect": defect, "took": took, "peak": peak}),
            flush=True,
        )


if __name__ == "__main__":
    first, behind, step = map(int, sys.argv[1:4])
    run(range(first, behind, step), Path(sys.argv[4]))
