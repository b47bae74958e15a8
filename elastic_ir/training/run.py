"""Running: jobs handed to an executor as soon as what they need is there, and none that is done already."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from elastic_ir.training.executors import Executor
from elastic_ir.training.jobs import Job, in_order
from elastic_ir.training.store import Store


@dataclass
class Progress:
    """How far a run is: jobs by what became of them, and how long the rest is likely to take."""

    total: int
    done: int = 0  #: finished, here or before
    running: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  #: by key, what went wrong
    skipped: list[str] = field(default_factory=list)  #: they need one that failed
    seconds: dict[str, list[float]] = field(default_factory=dict)  #: by kind, of the jobs finished here
    left: dict[str, int] = field(default_factory=dict)  #: by kind, jobs neither finished nor given up
    slots: int = 1

    @property
    def time_left(self) -> float | None:
        """Seconds until all is done, by the mean of what each kind has taken; None before anything is known."""
        total = time_of(self.left, self.seconds)
        return None if total is None else total / self.slots


def time_of(left: Mapping[str, int], seconds: Mapping[str, list[float]]) -> float | None:
    """Seconds that jobs take one after the other, each the mean of its kind, or of all kinds; None if none is known."""
    means = {kind: mean for kind, times in seconds.items() if (mean := sum(times) / len(times)) > 0}
    if not means:
        return None
    typical = sum(means.values()) / len(means)
    return sum(count * means.get(kind, typical) for kind, count in left.items())


def run(
    wanted: Iterable[Job], store: Store, executor: Executor, report: Callable[[Progress], None] | None = None,
    ended_well: Callable[[Job, dict[str, Any]], None] | None = None,
) -> Progress:  # fmt: skip
    """Do all jobs that are wanted and what they need; a job that fails takes only those with it that need it.

    ``report`` is told of the progress, ``ended_well`` of each job that was finished here, with its result.
    """
    jobs = in_order(wanted)
    by_key = {job.key: job for job in jobs}
    finished = {job.key for job in jobs if store.has(job.key)}
    progress = Progress(len(jobs), len(finished), slots=executor.slots)
    waiting = {
        job.key: {n.key for n in job.needs.values()} - finished for job in jobs if job.key not in finished
    }
    readers: dict[str, list[str]] = {}
    for key, needs in waiting.items():
        progress.left[by_key[key].kind] = progress.left.get(by_key[key].kind, 0) + 1
        for needed in needs:
            readers.setdefault(needed, []).append(key)
    ready = [key for key, needs in waiting.items() if not needs]
    begun: dict[str, float] = {}
    lost: set[str] = set()

    def give_up(key: str) -> None:
        for reader in readers.get(key, ()):
            if reader not in lost:
                lost.add(reader)
                progress.skipped.append(reader)
                progress.left[by_key[reader].kind] -= 1
                give_up(reader)

    try:
        while ready or begun:
            while ready and len(begun) < executor.slots:
                key = ready.pop(0)
                begun[key] = time.perf_counter()
                executor.submit(by_key[key].spec())
            progress.running = list(begun)
            if report is not None:
                report(progress)
            for ended in executor.wait():
                kind = by_key[ended.key].kind
                progress.left[kind] -= 1
                took = time.perf_counter() - begun.pop(ended.key)
                if ended.result is None:
                    progress.failed[ended.key] = ended.error
                    give_up(ended.key)
                    continue
                progress.done += 1
                if ended_well is not None:
                    ended_well(by_key[ended.key], ended.result)
                progress.seconds.setdefault(kind, []).append(took)
                for reader in readers.get(ended.key, ()):
                    waiting[reader].discard(ended.key)
                    if not waiting[reader] and reader not in lost:
                        ready.append(reader)
    finally:
        executor.close()
    progress.running = []
    if report is not None:
        report(progress)
    return progress
