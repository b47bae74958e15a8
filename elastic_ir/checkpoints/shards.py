"""Writing the shards of a plan: one after the other here, or shared among processes or the workers of a Ray cluster.

Each worker writes whole files into the folder of the run that asked for them, which alone holds its lock, marks what is
finished and gives the folder its name. So a worker that dies leaves an unfinished file, as a run that dies does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

from elastic_ir.errors import ElasticError, EmitError, OutputError, first_line
from elastic_ir.formats.safetensors import safetensors_head, write_safetensors
from elastic_ir.tensors.lazy import TensorData, nbytes

#: A file of tensors: those, and its metadata.
Shard: TypeAlias = tuple[Mapping[str, TensorData], Mapping[str, str]]


@dataclass(frozen=True)
class Workers:
    """Who writes: this process, ``jobs`` processes, or ``jobs`` tasks at once on a Ray cluster (all of its, where 1).

    ``ray`` is an address as :func:`elastic_ir.safety.cluster.connected` takes it; its machines have to see source and
    target under the same paths.
    """

    jobs: int = 1
    ray: str | None = None

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise OutputError(f"{self.jobs} processes write nothing; give 1 or more")


def write_shards(
    folder: Path,
    shards: Mapping[str, Shard],
    durable: bool,
    workers: Workers,
    finish: Callable[[str], None],
    tell: Callable[[int], None],
) -> None:
    """Write files by name into a folder and call ``finish`` with each; ``tell`` with bytes written since the last call.

    Raises what :func:`write_shard` does; OutputError where a worker was killed. When it returns or raises, no worker
    writes any more.
    """
    if workers.ray is None and (workers.jobs == 1 or len(shards) < 2):
        for name, (tensors, metadata) in shards.items():
            write_shard(folder / name, tensors, metadata, durable, tell)
            finish(name)
        return
    with (_on_ray if workers.ray is not None else _in_processes)(workers, len(shards)) as submit:
        waiting = {
            submit(folder / name, tensors, metadata, durable): name
            for name, (tensors, metadata) in shards.items()
        }
        for future in as_completed(waiting):
            future.result()
            tell(sum(map(nbytes, shards[waiting[future]][0].values())))
            finish(waiting[future])


def write_shard(
    path: Path,
    tensors: Mapping[str, TensorData],
    metadata: Mapping[str, str],
    durable: bool,
    tell: Callable[[int], None] | None = None,
) -> None:
    """Write one file; EmitError where it does not come out as its header states, a source having been cut."""
    write_safetensors(path, tensors, metadata, tell, durable)
    if not is_whole(path, tensors, metadata):
        raise EmitError(f"{path.name} did not come out as long as its header states")


def is_whole(path: Path, tensors: Mapping[str, TensorData], metadata: Mapping[str, str]) -> bool:
    """Whether a file is what the plan has there, by its header and its size."""
    head = safetensors_head(tensors, metadata)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return size == len(head) + sum(map(nbytes, tensors.values())) and file.read(len(head)) == head
    except FileNotFoundError:
        return False


# -- workers -----------------------------------------------------------------------------------------------------------

Submit: TypeAlias = Callable[..., "Future[None]"]


@contextlib.contextmanager
def _in_processes(workers: Workers, count: int) -> Iterator[Submit]:
    """Processes of this machine, which end when the block does, or this process: whatever ends it."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(min(workers.jobs, count), context, _obey, (reader,))
    try:
        yield lambda *given: pool.submit(write_shard, *given)
    except BrokenProcessPool as error:
        raise OutputError(
            "a process that wrote a part was killed, perhaps for want of memory; try again with fewer --jobs"
        ) from error
    finally:
        writer.close()
        pool.shutdown(cancel_futures=True)
        reader.close()


def _obey(stop: Connection) -> None:
    """End with the process that has the other end of a pipe; Ctrl-C is its affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end() -> None:
        with contextlib.suppress(EOFError, OSError):
            stop.recv()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


@contextlib.contextmanager
def _on_ray(workers: Workers, count: int) -> Iterator[Submit]:
    """Tasks of a cluster; those that are left when the block ends are cancelled, and waited for."""
    from elastic_ir.safety.cluster import connected

    ray = connected(workers.ray or "auto")
    task = ray.remote(num_cpus=1, max_retries=0)(write_shard)
    submitted: list[Any] = []

    def submit(*given: Any) -> Future[None]:
        if workers.jobs > 1 and len(submitted) >= workers.jobs:  # as many at once
            ray.wait(submitted, num_returns=len(submitted) - workers.jobs + 1)
        submitted.append(task.remote(*given))
        future: Future[None] = submitted[-1].future()
        return future

    try:
        yield submit
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)  # Ray wraps what a task raised
        if isinstance(cause, ElasticError | OSError):
            raise cause from None
        raise OutputError(f"a worker of Ray failed ({type(error).__name__}: {first_line(error)})") from error
    finally:
        for reference in submitted:
            ray.cancel(reference, force=True)
        if submitted:
            ray.wait(submitted, num_returns=len(submitted), timeout=60)
