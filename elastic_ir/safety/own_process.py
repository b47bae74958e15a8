"""A module of ours in a process of its own, beside what this one does: JSON in and out, offline, bounded. No torch.

The parent starts the module with some data; the module answers in :func:`serve`, and uses values that somebody else
wrote within :func:`bounded`. Importing libraries takes seconds, so a process that has answered is kept for a minute:
the next question to its module goes there. One that has not, when no answer is needed any more, is ended.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

#: Exit statuses of the watch, and what they say.
_MEMORY, _TIME = 90, 91
_REASONS = {_MEMORY: "it takes too much memory", _TIME: "it takes too long"}
_OFFLINE = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "USE_HUB_KERNELS": "NO",
    "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1",
}  # fmt: skip
_PAUSE = 0.02  #: seconds between two looks of the watch
_IDLE = 60.0  #: seconds for which a process is kept; it ends by itself a little later


class ProcessError(Exception):
    """The process gave no answer; the text says why, in words that can follow a colon."""


class OwnProcess:
    """A process that was started, and answers one question after the other."""

    def __init__(self, module: str, path: str) -> None:
        self.kind = module, path, os.getpid()  # a fork's questions would get in between
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  until it is stopped
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **_OFFLINE, "PYTHONPATH": path},
            cwd=os.path.abspath(os.sep),  # which stays, whatever this process has as its own
        )
        self._asking = threading.Thread()
        self._answered: float | None = None  # when, if it was asked

    def ask(self, question: str) -> None:
        """Give it a question, a line of JSON; that takes no longer where the process takes its time to read it."""

        def write() -> None:
            with contextlib.suppress(OSError):  # the process has ended, which the answer tells
                assert self._process.stdin is not None
                self._process.stdin.write(f"{question}\n".encode())
                self._process.stdin.flush()

        self._errors.seek(0)
        self._errors.truncate()
        self._answered = None
        self._asking = threading.Thread(target=write, daemon=True)
        self._asking.start()

    def answer(self) -> Any:
        """Wait for what the process answers, and return it; ProcessError where it does not."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line.endswith(b"\n"):
            self._answered = time.monotonic()
            return json.loads(line)
        status = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines()]
        last = next(filter(None, reversed(lines)), f"it ended with status {status}")
        raise ProcessError(_REASONS.get(status, last[:200]))

    @property
    def free(self) -> bool:
        """Whether it has answered, not too long ago, and waits for another question."""
        recent = self._answered is not None and time.monotonic() < self._answered + _IDLE
        return recent and self._process.poll() is None

    def stop(self) -> None:
        """End the process, if it still runs."""
        self._process.kill()
        self._process.wait()
        if self._asking.ident is not None:
            self._asking.join()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):  # what the process has not read any more
                if pipe is not None:
                    pipe.close()


_kept: list[OwnProcess] = []
_keeping = threading.Lock()


@contextlib.contextmanager
def started(module: str, data: Any) -> Iterator[OwnProcess]:
    """``python -m module``, given some data; it works while the block does something else, and no longer than that.

    It finds the libraries that this process finds, but for an unnamed working folder.
    """
    question = json.dumps(data)
    path = os.pathsep.join(os.path.abspath(place) for place in sys.path if place)
    process = _taken(module, path, os.getpid()) or OwnProcess(module, path)
    try:
        process.ask(question)
        yield process
    finally:
        _keep(process)


def _taken(*kind: Any) -> OwnProcess | None:
    """A process that was kept, if it is of this kind."""
    with _keeping:
        found = _kept.pop() if _kept and _kept[0].kind == kind else None
    if found is not None and not found.free:
        found.stop()
        found = None
    return found


def _keep(process: OwnProcess) -> None:
    """Keep a process in place of an earlier one, or end it."""
    with _keeping:
        kept = process.free
        ended = [*_kept, *([] if kept else [process])]
        _kept[:] = [process] if kept else []
    for one in ended:
        one.stop()


@atexit.register
def _end_all() -> None:
    for process in _kept:
        if process.kind[-1] == os.getpid():
            process.stop()


# -- in the process ---------------------------------------------------------------------------------------------------


def serve(answer: Callable[[Any], Any]) -> None:
    """Answer what the process is asked, until it is asked no more; what is printed goes to standard error meanwhile."""
    with os.fdopen(os.dup(0), "rb") as questions, os.fdopen(os.dup(1), "wb") as out, open(os.devnull) as none:
        os.dup2(none.fileno(), 0)
        os.dup2(2, 1)
        while question := _next(questions):
            out.write(json.dumps(answer(json.loads(question))).encode() + b"\n")
            out.flush()


def _next(questions: IO[bytes]) -> bytes:
    """The next line; none when there are no more."""
    late = time.monotonic() + 2 * _IDLE
    with _watching(lambda: 0 if time.monotonic() > late else None, pause=1.0):
        return questions.readline()


@contextlib.contextmanager
def bounded(memory: float, seconds: float) -> Iterator[None]:
    """End the process when, within the block, it takes more bytes of memory, or more seconds of the processor.

    On Windows its memory is not bounded.
    """
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "wb") as mark:
        mark.write(b"5")  # the peak is from now on
    most, end = _peak() + memory, time.process_time() + seconds

    def status() -> int | None:
        if _peak() > most:
            return _MEMORY
        return _TIME if time.process_time() > end else None

    with _watching(status, _PAUSE):
        yield


@contextlib.contextmanager
def _watching(status: Callable[[], int | None], pause: float) -> Iterator[None]:
    """End the process once there is a status to end it with, or when the one that started it has ended."""
    parent, over = os.getppid(), threading.Event()

    def watch() -> None:
        while not over.wait(pause):
            found = status()
            if found is not None or os.getppid() != parent:
                os._exit(found or 0)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _peak() -> int:
    """The most bytes of memory that this process has had, 0 where that is not known (Windows).

    Linux's ``ru_maxrss`` starts with what its parent had.
    """
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) << 10
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
