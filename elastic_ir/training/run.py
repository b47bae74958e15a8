"""Running: jobs handed to an executor as soon as what they need is there, and none that is done already."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from elastic_ir.training.executors import Executor
from elastic_ir.training.jobs import Job, Sort, in_order
from elastic_ir.training.store import Store


@dataclass
class Progress:
    """How far a run is: jobs by what became of them, and how long the rest is likely to take."""

    total: int
    done: int = 0  #: finished, here or before
    running: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  #: by key, what went wrong
    skipped: list[str] = field(default_factory=list)  #: they need one that failed
    seconds: dict[Sort, list[float]] = field(default_factory=dict)  #: of the jobs finished here
    before: dict[Sort, list[float]] = field(default_factory=dict)  #: of those that were finished already
    left: dict[Sort, int] = field(default_factory=dict)  #: jobs neither finished nor given up
    slots: int = 1

    @property
    def time_left(self) -> float | None:
        """Seconds until all is done, by what such jobs have taken, here if any were; None before anything is known."""
        total = time_of(self.left, self.before | self.seconds)
        return None if total is None else total / self.slots


def time_of(left: Mapping[Sort, int], seconds: Mapping[Sort, list[float]]) -> float | None:
    """Seconds that jobs take one after the other, each the mean of its sort; None where nothing is known.

    A sort that was never seen counts as its kind does on other networks, a kind that was never seen as all do.
    """
    means = {sort: mean for sort, times in seconds.items() if (mean := sum(times) / len(times)) > 0}
    if not means:
        return None
    typical = _mean(means.values())

    def guess(sort: Sort) -> float:
        return (
            means.get(sort) or _mean(mean for (kind, _), mean in means.items() if kind == sort[0]) or typical
        )

    return sum(count * guess(sort) for sort, count in left.items())


def _mean(values: Iterable[float]) -> float:
    """The mean, 0 of nothing."""
    found = list(values)
    return sum(found) / len(found) if found else 0.0


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
    for job in jobs:
        if job.key in finished:
            progress.before.setdefault(job.sort, []).append(float(store.result(job.key)["seconds"]))
    waiting = {
        job.key: {n.key for n in job.needs.values()} - finished for job in jobs if job.key not in finished
    }
    readers: dict[str, list[str]] = {}
    for key, needs in waiting.items():
        progress.left[by_key[key].sort] = progress.left.get(by_key[key].sort, 0) + 1
        for needed in needs:
            readers.setdefault(needed, []).append(key)
    # the first of what can be done: a job that waited stands before those of later studies
    place = {key: number for number, key in enumerate(waiting)}
    ready = [place[key] for key, needs in waiting.items() if not needs]  # ascending, so a heap
    keys = list(waiting)
    begun: dict[str, float] = {}
    lost: set[str] = set()

    def give_up(key: str) -> None:
        for reader in readers.get(key, ()):
            if reader not in lost:
                lost.add(reader)
                progress.skipped.append(reader)
                progress.left[by_key[reader].sort] -= 1
                give_up(reader)

    try:
        while ready or begun:
            while ready and len(begun) < executor.slots:
                key = keys[heapq.heappop(ready)]
                begun[key] = time.perf_counter()
                executor.submit(by_key[key].spec())
            progress.running = list(begun)
            if report is not None:
                report(progress)
            for ended in executor.wait():
                sort = by_key[ended.key].sort
                progress.left[sort] -= 1
                took = time.perf_counter() - begun.pop(ended.key)
                if ended.result is None:
                    progress.failed[ended.key] = ended.error
                    give_up(ended.key)
                    continue
                progress.done += 1
                if ended_well is not None:
                    ended_well(by_key[ended.key], ended.result)
                progress.seconds.setdefault(sort, []).append(took)
                for reader in readers.get(ended.key, ()):
                    waiting[reader].discard(ended.key)
                    if not waiting[reader] and reader not in lost:
                        heapq.heappush(ready, place[reader])
    finally:
        executor.close()
    progress.running = []
    if report is not None:
        report(progress)
    return progress
