"""How long a network takes in onnxruntime: two networks run turn by turn, so that a slow moment hits both."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from elastic_ir.emit.onnx.save import save_onnx
from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Graph

ROUNDS, SECONDS = 30, 10.0  #: at most this many turns, and at most about this long
_FEW = 6  #: turns of which nothing can be told
_SAMPLES = 2000  #: of the turns, for the spread


@dataclass(frozen=True)
class Latency:
    """Milliseconds of each run of two networks that ran turn by turn, the first of which are left out."""

    runs_before: tuple[float, ...]
    runs_after: tuple[float, ...]

    @property
    def before(self) -> float:
        """The median of the first network's runs, to the digits that are shown."""
        return _shown(self.runs_before)

    @property
    def after(self) -> float:
        """The median of the second network's runs, to the digits that are shown."""
        return _shown(self.runs_after)

    @property
    def ratio(self) -> float:
        """``after / before``: the ratio of the medians."""
        return self.after / self.before

    @cached_property
    def spread(self) -> tuple[float, float]:
        """The 95 % confidence interval of the ratio: the same ratio of turns drawn anew, again and again.

        It is the bootstrap's percentile interval (Efron & Tibshirani 1993, An Introduction to the Bootstrap, section
        13.3). Both runs of a turn are drawn together, for a slow moment hits both.
        """
        import numpy as np

        runs = np.array([self.runs_before, self.runs_after])
        count = runs.shape[1]
        drawn = np.random.default_rng(0).integers(count, size=(_SAMPLES, count))
        before, after = np.median(runs[:, drawn], axis=2)
        low, high = np.quantile(after / before, (0.025, 0.975))
        return min(float(low), self.ratio), max(float(high), self.ratio)

    @property
    def noise(self) -> bool:
        """Whether the two may be equally fast: 1 lies within the spread, or there are too few turns to tell."""
        low, high = self.spread
        return len(self.runs_before) < _FEW or low <= 1 <= high


def _shown(runs: tuple[float, ...]) -> float:
    return float(f"{statistics.median(runs):.4g}")


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
