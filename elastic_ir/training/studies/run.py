"""Running: jobs handed to an executor as soon as what they need is there, and none that is done already.

A job that another command is doing is set aside: its result is taken when it is there, or the job when it is
free again.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from elastic_ir.formats.locks import LOOK
from elastic_ir.training.studies.jobs import Job, Sort, in_order
from elastic_ir.training.studies.store import Store

if TYPE_CHECKING:
    from elastic_ir.training.studies.executors import Executor


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
    elsewhere: list[str] = field(default_factory=list)  #: jobs that other commands are doing

    @classmethod
    def of(cls, jobs: Sequence[Job], store: Store, finished: Collection[str], slots: int = 1) -> Progress:
        """Jobs of which those with the keys ``finished`` are done, and no other has been begun."""
        found = cls(len(jobs), len(finished), slots=slots)
        for job in jobs:
            if job.key in finished:
                found.before.setdefault(job.sort, []).append(float(store.result(job.key)["seconds"]))
            else:
                found.left[job.sort] = found.left.get(job.sort, 0) + 1
        return found

    @property
    def time_left(self) -> float | None:
        """Seconds until all is done; None before anything is known.

        A job takes the mean of its sort, here if any were done here. A sort that was never seen counts as its kind does
        on other networks, a kind that was never seen as all do.
        """
        seen = self.before | self.seconds
        means = {sort: mean for sort, times in seen.items() if (mean := fmean(times)) > 0}
        if not means:
            return None
        typical: dict[str, float] = {
            kind: fmean(mean for (other, _), mean in means.items() if other == kind) for kind, _ in means
        }
        every = fmean(means.values())
        total = sum(count * means.get(sort, typical.get(sort[0], every)) for sort, count in self.left.items())
        return total / self.slots


def run(
    wanted: Iterable[Job], store: Store, executor: Executor, report: Callable[[Progress], None] | None = None,
    ended_well: Callable[[Job, dict[str, Any]], None] | None = None,
) -> Progress:  # fmt: skip
    """Do all jobs that are wanted and what they need; a job that fails takes only those with it that need it.

    ``report`` is called with the progress, ``ended_well`` with each job that was finished meanwhile and its result, be
    it here or by another command on the same store.
    """
    jobs = in_order(wanted)
    by_key = {job.key: job for job in jobs}
    finished = {job.key for job in jobs if store.has(job.key)}
    progress = Progress.of(jobs, store, finished, executor.slots)
    waiting = {
        job.key: {n.key for n in job.needs.values()} - finished for job in jobs if job.key not in finished
    }
    readers: dict[str, list[str]] = {}
    for key, needs in waiting.items():
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

    def finish(key: str, result: dict[str, Any]) -> None:
        progress.done += 1
        progress.left[by_key[key].sort] -= 1
        if ended_well is not None:
            ended_well(by_key[key], result)
        for reader in readers.get(key, ()):
            waiting[reader].discard(key)
            if not waiting[reader] and reader not in lost:
                heapq.heappush(ready, place[reader])

    elsewhere = progress.elsewhere

    def look() -> None:
        """Take what other commands have finished, and what they have left."""
        for key in [*elsewhere]:
            if store.has(key):
                elsewhere.remove(key)
                finish(key, store.result(key))
            elif not store.busy(key):
                elsewhere.remove(key)
                heapq.heappush(ready, place[key])

    try:
        while ready or begun or elsewhere:
            look()
            while ready and len(begun) < executor.slots:
                key = keys[heapq.heappop(ready)]
                if store.has(key):  # by another command, since this one looked
                    finish(key, store.result(key))
                    continue
                begun[key] = time.perf_counter()
                executor.submit(by_key[key].spec())
            progress.running = list(begun)
            if report is not None:
                report(progress)
            if not begun:
                if elsewhere:
                    time.sleep(LOOK)
                continue
            for ended in executor.wait(LOOK) if elsewhere else executor.wait():
                sort = by_key[ended.key].sort
                took = time.perf_counter() - begun.pop(ended.key)
                if ended.result is not None:
                    progress.seconds.setdefault(sort, []).append(took)
                    finish(ended.key, ended.result)
                elif ended.error:
                    progress.left[sort] -= 1
                    progress.failed[ended.key] = ended.error
                    give_up(ended.key)
                else:
                    elsewhere.append(ended.key)
    finally:
        executor.close()
    progress.running = []
    if report is not None:
        report(progress)
    return progress
