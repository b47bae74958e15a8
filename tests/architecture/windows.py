"""A process without what Windows lacks, and with its rules for open files; run by test_other_systems.py. Linux only.

Files that are open get no other name and are not removed, folders are not opened, what is open for reading alone is not
synced, and a lock is one of ``msvcrt``. Run: ``python windows.py SCRIPT``, the script in that process.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import os
import shutil
import subprocess  # noqa: F401  it asks what system it is when it is imported
import sys
import tempfile  # noqa: F401
import types
from pathlib import Path
from typing import Any

import numpy  # noqa: F401  has parts of its own for Windows

LACKING = (
    "geteuid", "getuid", "statvfs", "copy_file_range", "preadv", "posix_fadvise", "POSIX_FADV_DONTNEED",
    "POSIX_FADV_SEQUENTIAL", "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "fork", "fchmod", "sysconf",
    "sched_getaffinity",
)  # fmt: skip
_real: Any = types.SimpleNamespace(**{name: getattr(os, name) for name in dir(os)})


def refused(path: Any) -> PermissionError:
    return PermissionError(errno.EACCES, "Permission denied", os.fsdecode(path))


def is_open(path: Any) -> bool:
    """Whether this process has a file open, or one in a folder."""
    given = _real.path.realpath(path)
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = _real.readlink(entry)
        except FileNotFoundError:  # that of the listing itself
            continue
        if target == given or target.startswith(f"{given}/"):
            return True
    return False


def moving(name: str) -> Any:
    def move(source: Any, target: Any, **options: Any) -> None:
        if is_open(source) or (_real.path.exists(target) and is_open(target)):
            raise refused(source)
        if name == "rename" and _real.path.exists(target):
            raise FileExistsError(errno.EEXIST, "File exists", os.fsdecode(target))
        getattr(_real, name)(source, target, **options)

    return move


def removing(path: Any, **options: Any) -> None:
    if is_open(path):
        raise refused(path)
    _real.unlink(path, **options)


def opening(path: Any, flags: int, *more: Any, **options: Any) -> int:
    if _real.path.isdir(path):
        raise refused(path)
    return int(_real.open(path, flags, *more, **options))


def syncing(handle: int) -> None:
    lines = Path(f"/proc/self/fdinfo/{handle}").read_text().splitlines()
    flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
    if flags & 3 == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    _real.fsync(handle)


def locking(handle: int, mode: int, size: int) -> None:
    assert (mode, size) == (2, 1)
    assert os.lseek(handle, 0, os.SEEK_CUR) > 1 << 20, "the lock would keep others from reading the owner"
    try:
        _flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PermissionError(errno.EACCES, "Permission denied") from error


_flock = fcntl.flock


def become_windows() -> None:
    """Take away what Windows lacks, and have its rules."""
    import elastic_ir.formats.files
    import elastic_ir.formats.locks

    modules: Any = sys.modules
    modules["fcntl"] = modules["resource"] = None
    modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
    for name in LACKING:
        delattr(os, name)
    changed: Any = os
    changed.rename, changed.replace = moving("rename"), moving("replace")
    changed.unlink = changed.remove = removing
    changed.open, changed.fsync = opening, syncing
    changed_shutil: Any = shutil
    changed_shutil._use_fd_functions = False
    changed_shutil.disk_usage = lambda path: types.SimpleNamespace(free=1 << 40)  # Windows has another one
    for module in (elastic_ir.formats.files, elastic_ir.formats.locks):
        assert module.MOVES_OPEN
        vars(module)["MOVES_OPEN"] = False  # what os.name == "nt" gives


if __name__ == "__main__":
    become_windows()
    script = Path(sys.argv.pop(1))
    sys.path.insert(0, str(Path(__file__).parents[2]))
    code = compile(script.read_text("utf-8"), str(script), "exec")
    builtins.exec(code, {"__name__": "__main__"})
