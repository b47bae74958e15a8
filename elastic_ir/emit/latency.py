"""How long a network takes in onnxruntime: two networks run turn by turn, so that a slow moment hits both."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic_ir.emit.onnx.save import save_onnx
from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Graph

ROUNDS, SECONDS = 30, 10.0  #: at most this many turns, and at most about this long


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one run of each of two networks, medians, and the median ratio of runs side by side."""

    before: float
    after: float
    ratio: float


def compare_latency(before: Graph, after: Graph, threads: int = 1) -> Latency:
    """Run two networks in onnxruntime on the CPU; raises EmitError where one cannot be exported or run."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("before.onnx", "after.onnx")]
        for graph, path in zip((before, after), paths, strict=True):
            save_onnx(graph, path, check=False, dynamic=False)
        return time_files(paths[0], paths[1], threads)


def time_files(first: Path, second: Path, threads: int = 1) -> Latency:
    """Run two ONNX files turn by turn, on the same numbers."""
    sessions = [_session(path, threads) for path in (first, second)]
    feeds = [_feeds(session) for session in sessions]
    times: list[list[float]] = [[], []]
    end = time.perf_counter() + SECONDS
    for turn in range(ROUNDS + 3):
        for place, (session, given) in enumerate(zip(sessions, feeds, strict=True)):
            start = time.perf_counter()
            session.run(None, given)
            if turn >= 3:  # the first turns allocate
                times[place].append((time.perf_counter() - start) * 1e3)
        if time.perf_counter() > end and turn >= 6:
            break
    ratio = statistics.median(theirs / ours for ours, theirs in zip(*times, strict=True))
    return Latency(statistics.median(times[0]), statistics.median(times[1]), ratio)


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a type of its own for every kind of refusal
        raise EmitError(
            f"onnxruntime does not load {path.name}: {' '.join(str(error).split())[:300]}"
        ) from error


def _feeds(session: Any) -> dict[str, Any]:
    import numpy as np

    generator = np.random.default_rng(0)
    kinds = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
    feeds = {}
    for entry in session.get_inputs():
        shape = [extent if isinstance(extent, int) and extent > 0 else 1 for extent in entry.shape]
        kind = kinds.get(entry.type)
        feeds[entry.name] = (
            generator.standard_normal(shape).astype(kind) if kind is not None else np.ones(shape, np.int64)
        )
    return feeds
