"""Executors: where jobs run. In this process, in several, or on a Ray cluster; the same jobs for each.

An executor takes a job's spec and later returns which have ended. A worker that dies does not make its job fail: the
job is handed out again, a few times.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor as Pool
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from elastic_ir.safety.cluster import connected
from elastic_ir.training.settings import Log

_TRIES = 3


@dataclass(frozen=True)
class Ended:
    """A job that ended: its result, or what went wrong in one line; neither where another process is doing it."""

    key: str
    result: dict[str, Any] | None
    error: str = ""


class Executor(Protocol):
    """Runs jobs; ``slots`` are how many at once."""

    slots: int

    def submit(self, spec: Mapping[str, Any]) -> None: ...
    def wait(self, seconds: float | None = None) -> list[Ended]:
        """What has ended since; without ``seconds`` at least one job, else what does in that time."""

    def close(self) -> None: ...


def _in_one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _ended(key: str, result: Callable[[], dict[str, Any] | None]) -> Ended:
    """A job that ended with a result or an exception, which must not end the other jobs; a SIGTERM does."""
    try:
        return Ended(key, result())
    except Exception as error:
        raised = getattr(error, "cause", None) or error  # Ray wraps what a job raised
        return Ended(key, None, _in_one_line(raised))


class InProcess:
    """In this process, one job after the other."""

    slots = 1

    def __init__(self, folder: str, threads: int = 0, log: Log = "") -> None:
        self.folder, self.threads, self.log = folder, threads, log
        self._waiting: list[Mapping[str, Any]] = []

    def submit(self, spec: Mapping[str, Any]) -> None:
        self._waiting.append(spec)

    def wait(self, seconds: float | None = None) -> list[Ended]:
        spec = self._waiting.pop(0)
        return [_ended(spec["key"], lambda: _work(spec, self.folder, self.threads, self.log))]

    def close(self) -> None:
        self._waiting.clear()


def _prepare(threads: int) -> None:
    """What a worker process does first; torch's threads have to be few before it starts any."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose study was killed would wait for its next job for ever, and hold its memory."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(spec: Mapping[str, Any], folder: str, threads: int, log: Log) -> dict[str, Any] | None:
    from elastic_ir.training.studies.job_kinds import execute

    return execute(spec, folder, threads, log)


class Processes:
    """In so many processes of this machine, each with ``threads`` threads.

    Each is a pool of its own. A pool of several is broken as a whole by one worker that dies: it would not be known
    whose job killed it, and what ran in the others would be lost with it.
    """

    def __init__(self, folder: str, count: int, threads: int = 1, log: Log = "") -> None:
        self.folder, self.slots, self.threads, self.log = folder, count, threads, log
        self._idle: list[Pool] = []
        self._running: dict[
            concurrent.futures.Future[dict[str, Any] | None], tuple[Pool, Mapping[str, Any]]
        ] = {}
        self._waiting: list[Mapping[str, Any]] = []
        self._deaths: dict[str, int] = {}  #: by key, how many workers died while doing a job

    def _made(self) -> Pool:
        return Pool(1, multiprocessing.get_context("spawn"), _prepare, (self.threads,))

    def submit(self, spec: Mapping[str, Any]) -> None:
        self._waiting.append(spec)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and len(self._running) < self.slots:
            pool, spec = self._idle.pop() if self._idle else self._made(), self._waiting.pop(0)
            try:
                future = pool.submit(_work, spec, self.folder, self.threads, self.log)
            except BrokenProcessPool:  # its worker was killed while it had nothing to do
                pool.shutdown(wait=False)
                pool = self._made()
                future = pool.submit(_work, spec, self.folder, self.threads, self.log)
            self._running[future] = pool, spec

    def wait(self, seconds: float | None = None) -> list[Ended]:
        done, _ = concurrent.futures.wait(self._running, seconds, concurrent.futures.FIRST_COMPLETED)
        ended: list[Ended] = []
        for future in done:
            pool, spec = self._running.pop(future)
            key = spec["key"]
            error = future.exception()
            if not isinstance(error, (BrokenProcessPool, SystemExit)):
                ended.append(_ended(key, future.result))
                self._idle.append(pool)
                continue
            pool.shutdown(wait=False)  # killed, or terminated (SIGTERM) while it trained
            self._deaths[key] = self._deaths.get(key, 0) + 1
            if self._deaths[key] < _TRIES:
                self._waiting.append(spec)
            else:
                ended.append(Ended(key, None, f"its worker died {_TRIES} times ({_in_one_line(error)})"))
        self._hand_out()
        return ended

    def close(self) -> None:
        self._waiting.clear()
        for pool in (*self._idle, *(pool for pool, _ in self._running.values())):
            pool.shutdown(wait=False, cancel_futures=True)


class RayCluster:
    """On a Ray cluster: ``auto`` is the one that this machine belongs to, ``local`` a new one, else its address.

    Whoever reaches a Ray cluster may run code on it. A ``local`` one, of this machine alone, therefore listens on the
    loopback address, without a dashboard, unless ``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1`` says otherwise. Its workers
    see the store under the same path. Raises SourceError where Ray is not installed or not reached, or would listen
    wider.
    """

    def __init__(self, folder: str, address: str, threads: int = 1, log: Log = "") -> None:
        self._ray: Any = connected(address)
        self.folder, self.threads, self.log = os.path.abspath(folder), threads, log
        self.slots = max(int(self._ray.cluster_resources().get("CPU", 1)) // threads, 1)
        # a worker that dies, of a SystemExit as well, is Ray's to replace, and what it did runs again
        self._remote = self._ray.remote(num_cpus=threads, max_retries=_TRIES, retry_exceptions=False)(_work)
        self._running: dict[Any, Mapping[str, Any]] = {}

    def submit(self, spec: Mapping[str, Any]) -> None:
        self._running[self._remote.remote(dict(spec), self.folder, self.threads, self.log)] = spec

    def wait(self, seconds: float | None = None) -> list[Ended]:
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [
            _ended(self._running.pop(reference)["key"], partial(self._ray.get, reference))
            for reference in done
        ]

    def close(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
