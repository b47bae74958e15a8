"""A figure: ratios of what is measured to a peer or a limit of the same run, with minimum, median and maximum.

Every program here measures in interleaved pairs (ours, the peer, ours, the peer ...), so that a slow moment of the
machine hits both, and takes the ratio within each pair. At least five pairs count, after one that does not: it reads
files from the disk and compiles. ``python -m benchmarks`` collects the figures of all programs; see ``__main__.py``.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

PAIRS = 5  #: that count, at the least
#: Names the file to which each figure is appended as a line of JSON; ``python -m benchmarks`` sets it.
COLLECTED = "ELASTIC_IR_FIGURES"


@dataclass(frozen=True)
class Figure:
    """One row of README's table."""

    name: str  #: what is measured, relative to what
    values: tuple[float, ...]
    limit: float
    at_least: bool = False  #: whether the limit is the smallest value wanted, not the largest
    unit: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def held(self) -> bool:
        """Whether the median keeps to the limit; that of a NaN does not."""
        return self.median >= self.limit if self.at_least else self.median <= self.limit

    def __str__(self) -> str:
        spread = f" ({shown(min(self.values))} to {shown(max(self.values))})" if len(self.values) > 1 else ""
        limit = f"{'at least ' if self.at_least else ''}{shown(self.limit)}{self.unit}"
        return f"{self.name}: {shown(self.median)}{spread}{self.unit}; limit {limit}{'' if self.held else ': MISSED'}"


@dataclass
class Figures:
    """The figures of one program, printed as they are found."""

    found: list[Figure] = field(default_factory=list)

    def add(
        self, name: str, values: Sequence[float], *, limit: float, at_least: bool = False, unit: str = ""
    ) -> Figure:
        """Print and keep a figure; several values are of several rounds."""
        figure = Figure(name, tuple(values), limit, at_least, unit)
        self.found.append(figure)
        print(figure, flush=True)
        if COLLECTED in os.environ:
            with open(os.environ[COLLECTED], "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(figure)) + "\n")
        return figure

    def ratio(
        self,
        name: str,
        ours: Callable[[], float],
        peer: Callable[[], float],
        *,
        limit: float,
        at_least: bool = False,
        rounds: int = PAIRS,
    ) -> Figure:
        """The ratios of two measurements (seconds, bytes) taken in turn; see :func:`pairs`."""
        return self.add(
            name, [a / b for a, b in pairs(ours, peer, rounds=rounds)], limit=limit, at_least=at_least
        )

    def done(self, *libraries: str) -> int:
        """Print the machine and the versions of libraries; the exit status, 1 where a limit is passed."""
        print(machine(*libraries))
        return int(not all(figure.held for figure in self.found))


def shown(value: float) -> str:
    """A number with what a reader needs of it: two decimals, three where it is close to 0 or to 1.

    >>> shown(0.154), shown(1.016), shown(8.7), shown(201.4), shown(5)
    ('0.154', '1.016', '8.7', '201', '5')
    """
    if math.isinf(value):
        return "any"
    if value == int(value):
        return str(int(value))
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 2:
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return f"{value:.3f}" if abs(value) < 0.2 or abs(value - 1) < 0.05 else f"{value:.2f}"


def pairs(
    ours: Callable[[], float], peer: Callable[[], float], *, rounds: int = PAIRS
) -> list[tuple[float, float]]:
    """What two measurements gave in turn; each begins every second pair, and one pair before does not count.

    ValueError for fewer rounds than five: their spread says nothing.
    """
    if rounds < PAIRS:
        raise ValueError(f"{rounds} pairs are too few; at least {PAIRS}")
    ours(), peer()
    found = []
    for turn in range(rounds):
        if turn % 2:
            second, first = peer(), ours()
        else:
            first, second = ours(), peer()
        found.append((first, second))
    return found


def wall(work: Callable[[], object]) -> float:
    """Seconds that a call takes by the clock; what it returns is freed behind the second reading."""
    begin = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - begin
    del result
    return seconds


def process(arguments: Sequence[str]) -> float:
    """Seconds that a command takes, which has to succeed."""
    begin = time.perf_counter()
    subprocess.run(arguments, check=True, capture_output=True)
    return time.perf_counter() - begin


def process_with_peak(command: Sequence[str]) -> tuple[float, float]:
    """Seconds from start to finish of a process, which has to succeed, and its peak of resident memory in MB."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {child.returncode}")
    return seconds, usage.ru_maxrss / 1024


def machine(*libraries: str) -> str:
    """The machine in a line: processors, how busy it is, Python, and versions of libraries."""
    from importlib.metadata import version

    parts = [f"{os.cpu_count()} x {_processor()}, load {os.getloadavg()[0]:.1f}, {platform.system()}"]
    parts.append(f"Python {platform.python_version()}")
    parts += [f"{name} {version(name)}" for name in libraries]
    return ", ".join(parts)


def _processor() -> str:
    """The processor's own name, where Linux tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
