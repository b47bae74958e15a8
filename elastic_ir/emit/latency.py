"""How long a network takes in onnxruntime: two networks run turn by turn, so that a slow moment hits both."""

from __future__ import annotations

import math
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
    """Milliseconds of each run of two networks that ran turn by turn, the first of which are left out."""

    runs_before: tuple[float, ...]
    runs_after: tuple[float, ...]

    @property
    def before(self) -> float:
        """The median of the first network's runs."""
        return statistics.median(self.runs_before)

    @property
    def after(self) -> float:
        """The median of the second network's runs."""
        return statistics.median(self.runs_after)

    @property
    def ratio(self) -> float:
        """``after / before``: the ratio of the medians."""
        return self.after / self.before

    @property
    def ratios(self) -> list[float]:
        """The ratios of runs side by side, in rising order."""
        return sorted(after / before for before, after in zip(self.runs_before, self.runs_after, strict=True))

    @property
    def spread(self) -> tuple[float, float]:
        """Between which values the middle half of the ratios lies."""
        at = len(self.ratios) // 4
        return self.ratios[at], self.ratios[-1 - at]

    @property
    def noise(self) -> bool:
        """Whether the two may be equally fast: the 95 % confidence interval of the ratios' median contains 1.

        The interval lies between two order statistics, by the binomial distribution (Conover, Practical Nonparametric
        Statistics, 3rd edition, section 3.2). Of fewer than six turns there is none, and all counts as noise.
        """
        ordered, count = self.ratios, len(self.ratios)
        tail, below = 0.0, -1
        for k in range(count):
            tail += math.comb(count, k) / 2**count
            if tail > 0.025:
                break
            below = k
        return below < 0 or ordered[below] <= 1 <= ordered[-1 - below]


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
        if time.perf_counter() > end and turn >= 8:
            break
    return Latency(tuple(times[0]), tuple(times[1]))


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
