"""Locks: a file that one process of those that share a folder has at a time, so that none does another's work twice.

The kernel gives a lock back when its process ends, however that ends; no lock is ever stale. On a network file system
the server does (NFS 4, Lustre with ``flock``, CephFS), for a machine that is gone after its lease. Where files cannot
be locked at all, everybody gets the lock, unless it is needed: work may then be done twice, as without locks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from elastic_ir.formats.files import MOVES_OPEN, is_named, try_lock

LOOK = 0.5  #: seconds between two looks at what another process has


@contextlib.contextmanager
def locked(path: Path, needed: bool = False) -> Iterator[bool]:
    """Whether the lock at ``path`` is this process's while the block runs; it is not where another one has it.

    The file names who has it, and goes with the lock. Nobody waits here. ``needed`` raises OSError where files cannot
    be locked.
    """
    handle = _taken(path)
    if needed and handle == -1:
        raise OSError(errno.ENOLCK, f"files cannot be locked in {path.parent}")
    try:
        yield handle is not None
    finally:
        if handle is not None and handle >= 0:
            _given_back(path, handle)


@contextlib.contextmanager
def waited_for(path: Path, told: Callable[[str], None] | None = None) -> Iterator[None]:
    """The lock at ``path`` while the block runs, waited for where another process has it; ``told`` once who that is."""
    while True:
        with locked(path) as mine:
            if mine:
                yield
                return
        if told is not None:
            told(owner(path))
            told = None
        time.sleep(LOOK)


def owner(path: Path) -> str:
    """Who has a lock, for a message: ``process 123 on host``."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if found := path.read_text("utf-8").strip():
            return found
    return "another process"


def _given_back(path: Path, handle: int) -> None:
    """Remove a lock's file and close it; the block may have removed it, and another process have a new one."""
    with contextlib.suppress(OSError):
        if MOVES_OPEN and is_named(path, handle):
            path.unlink()  # before it is given back, so that nobody can have got this file
    os.close(handle)
    if not MOVES_OPEN:
        with contextlib.suppress(OSError):
            path.unlink()  # which fails where another process has opened it


def _taken(path: Path) -> int | None:
    """The open file of a lock that was got, -1 where files cannot be locked, None where another process has it."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            if not path.exists():
                return -1  # in a folder that is only read; whoever has to write reports it
            handle = os.open(path, os.O_RDONLY)  # of another user, who shares the folder
        got = try_lock(handle)
        if not got:
            os.close(handle)
            return -1 if got is None else None
        if is_named(path, handle):
            with contextlib.suppress(OSError):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
            return handle
        os.close(handle)  # the one who had it has taken its file away meanwhile
