"""The store: finished jobs in a folder, one folder each, there whole or not at all.

What is done is known by looking: a job is done if its folder has a ``result.json``. Several processes and machines may
share a store on a common file system; each job has a lock (:mod:`elastic_ir.formats.locks`), so that one does it.
Where files cannot be locked, two that do the same job at once waste time and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from elastic_ir.errors import SourceError
from elastic_ir.formats.locks import locked

RESULT = "result.json"


class Store:
    """Folders of finished jobs below one folder."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Where a job's files lie, or will."""
        return self.folder / key

    def has(self, key: str) -> bool:
        return (self.folder / key / RESULT).is_file()

    def result(self, key: str) -> dict[str, Any]:
        """What a finished job found; SourceError where it is not finished, or its file is damaged."""
        path = self.folder / key / RESULT
        try:
            found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise SourceError(f"the job {key} is not done") from error
        except ValueError as error:
            raise SourceError(
                f"{path} is damaged ({error}); delete its folder, and the job is done again"
            ) from error
        return found

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[bool]:
        """Whether this process may do a job while the block runs; not where another one is doing it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self._lock(key)) as mine:
            yield mine

    def busy(self, key: str) -> bool:
        """Whether another process is doing a job."""
        if not self._lock(key).exists():
            return False
        with self.locked(key) as mine:
            return not mine

    def _lock(self, key: str) -> Path:
        return self.folder / f".{key}.lock"

    @contextlib.contextmanager
    def workspace(self, spec: Mapping[str, Any]) -> Iterator[Path]:
        """A folder to work in, which becomes the job's when the block ends well and has written a result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / f".{spec['key']}.{platform.node()}.{os.getpid()}.{secrets.token_hex(4)}"
        place.mkdir()
        try:
            (place / "job.json").write_text(json.dumps(spec, indent=1) + "\n", "utf-8")
            yield place
            target = self.path(spec["key"])
            if target.exists() and not self.has(spec["key"]):  # a copy that was cut short
                shutil.rmtree(target)
            try:
                place.rename(target)
            except OSError:
                if not self.has(spec["key"]):  # else another process was faster, with the same result
                    raise
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def working(self) -> dict[str, float]:
        """Jobs being done, and for how many seconds; of other machines also those whose process was killed."""
        found: dict[str, float] = {}
        for place in self.folder.glob(".*-*.*") if self.folder.is_dir() else ():
            key, _, worker = place.name[1:].partition(".")
            if _left(worker):
                continue
            with contextlib.suppress(OSError):
                found[key] = time.time() - (place / "job.json").stat().st_mtime
        return found

    def write_result(self, place: Path, result: Mapping[str, Any]) -> None:
        """The last thing that a job writes into its workspace."""
        (place / RESULT).write_text(json.dumps(result, indent=1) + "\n", "utf-8")

    def sweep(self, older_than: float = 7 * 24 * 3600.0) -> int:
        """Delete what killed processes have left, workspaces and locks; returns the number of workspaces.

        Of this machine those whose process is gone and whose job is not being done, of others those unchanged for so
        many seconds: a job writes into its workspace at its end only, so that a long training's looks abandoned.
        """
        gone = 0
        for place in self.folder.glob(".*-*.*") if self.folder.is_dir() else ():
            key, _, worker = place.name[1:].partition(".")
            with contextlib.suppress(OSError):
                if worker == "lock":
                    self.busy(key)  # which deletes a lock that no process holds
                elif place.is_dir() and (
                    time.time() - place.stat().st_mtime > older_than or (_left(worker) and not self.busy(key))
                ):
                    shutil.rmtree(place)
                    gone += 1
        return gone


def _left(worker: str) -> bool:
    """Whether a workspace was a process's of this machine that is gone."""
    host, _, process = worker.rpartition(".")[0].rpartition(".")
    return host == platform.node() and process.isdigit() and not _alive(int(process))


def _alive(process: int) -> bool:
    """Whether this machine has a process of that id."""
    try:
        os.kill(process, 0)
    except OSError as error:  # it may be another user's
        return not isinstance(error, ProcessLookupError)
    return True
