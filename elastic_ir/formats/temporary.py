"""Temporary names that say whose they are, so that what a killed process has left goes with the next save. No torch.

A name holds the machine, the process and when that began: a file of a process that lives, of another machine on a
shared disk, or of another container, is nobody's to remove but its own.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
from pathlib import Path

_STEM, _SUFFIX = 100, 20  #: bytes of a target's name that its temporary's keeps
#: ``.STEM.MACHINE-PROCESS-BEGUN.TOKEN.tmp`` and the target's ending, for writers that go by it.
_OURS = re.compile(
    r"\..*\.([0-9a-f]{12})-([0-9]{1,10})-([0-9]{1,20})\.[0-9a-f]{8}\.tmp(?:\.[^.]*)?", re.DOTALL
)


def temporary_name(target: Path) -> Path:
    """A new name beside a target; what earlier processes have left in that folder is removed.

    The ending stays the target's.
    """
    sweep(target.parent)
    owner = f"{_machine()}-{os.getpid()}-{_begun(os.getpid())}"
    stem, suffix = _cut(target.stem, _STEM), _cut(target.suffix, _SUFFIX)
    return target.with_name(f".{stem}.{owner}.{secrets.token_hex(4)}.tmp{suffix}")


def sweep(folder: Path) -> None:
    """Remove the temporaries of this machine's processes that are gone; what cannot be removed stays."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _OURS.fullmatch(entry.name)
            if match is None or match[1] != _machine() or _lives(int(match[2]), int(match[3])):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


@functools.cache
def _machine() -> str:
    """What tells this machine, since its start, and this container on it, from others."""
    told = [platform.node()]
    with contextlib.suppress(OSError):
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with contextlib.suppress(OSError):
        told.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _begun(process: int) -> int:
    """When a process began, in the system's own units; 0 where the system does not say, -1 where there is none."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except FileNotFoundError:
        return -1 if Path("/proc/self/stat").exists() else 0
    except OSError:  # it ended just now
        return -1
    return int(text.rpartition(")")[2].split()[19])  # the name in brackets may hold anything


def _lives(process: int, begun: int) -> bool:
    """Whether the process of that id is still there, and no later one that got its id."""
    if begun:
        return _begun(process) == begun
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's, or no process could have this id
        return True
    return True


def _cut(text: str, size: int) -> str:
    """As much of a text as takes so many bytes in a file's name."""
    while len(os.fsencode(text)) > size:
        text = text[: min(len(text) - 1, size)]
    return text
