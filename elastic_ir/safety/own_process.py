"""A module of ours in a process of its own, beside what this one does: JSON in and out, offline, bounded. No torch.

The parent starts the module with some data; the module takes them by :func:`received`, writes its answer to what
:func:`answering` gives it, and calls :func:`bounded` before it uses values that somebody else wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

#: Exit statuses of the watch, and what they say.
_MEMORY, _TIME = 90, 91
_REASONS = {_MEMORY: "it takes too much memory", _TIME: "it takes too long"}
_OFFLINE = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "USE_HUB_KERNELS": "NO",
    "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1",
}  # fmt: skip
_PAUSE = 0.02  #: seconds between two looks of the watch


class ProcessError(Exception):
    """The process gave no answer; the text says why, in words that can follow a colon."""


class OwnProcess:
    """A process that was started."""

    def __init__(self, process: subprocess.Popen[bytes], out: IO[bytes], errors: IO[bytes]) -> None:
        self._process, self._out, self._errors = process, out, errors

    def answer(self) -> Any:
        """Wait for the end, and return what the process has answered; ProcessError where it has not."""
        status = self._process.wait()
        self._out.seek(0)
        try:
            return json.loads(self._out.read())
        except ValueError:
            self._errors.seek(0)
            lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines()]
            last = next(filter(None, reversed(lines)), f"it ended with status {status}")
            raise ProcessError(_REASONS.get(status, last[:200])) from None

    def stop(self) -> None:
        """End the process, if it still runs."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def started(module: str, data: Any) -> Iterator[OwnProcess]:
    """``python -m module``, given some data; it runs while the block does something else, and no longer than that.

    It finds the libraries that this process finds, but for an unnamed working folder.
    """
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, **_OFFLINE, "PYTHONPATH": path}
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as errors,
    ):
        given.write(json.dumps(data).encode())
        given.seek(0)
        process = OwnProcess(
            subprocess.Popen(
                [sys.executable, "-P", "-m", module], stdin=given, stdout=out, stderr=errors, env=environment
            ),
            out,
            errors,
        )
        try:
            yield process
        finally:
            process.stop()


# -- in the process ---------------------------------------------------------------------------------------------------


def received() -> Any:
    """The data that the process was started with."""
    return json.load(sys.stdin.buffer)


@contextlib.contextmanager
def answering() -> Iterator[IO[bytes]]:
    """What the answer is written to; standard output is standard error meanwhile."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        yield out


def bounded(memory: float, seconds: float) -> None:
    """End the process when from here on it takes more bytes of memory, or more seconds of the processor.

    On Windows its memory is not bounded. It ends with the process that started it, too.
    """
    most, end, parent = _peak() + memory, time.process_time() + seconds, os.getppid()

    def watch() -> None:
        while True:
            time.sleep(_PAUSE)
            if _peak() > most:
                os._exit(_MEMORY)
            if time.process_time() > end or os.getppid() != parent:
                os._exit(_TIME)

    threading.Thread(target=watch, daemon=True).start()


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
